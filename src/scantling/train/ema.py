"""A moving average of a model's weights, which predicts better than the last step's (Polyak & Juditsky 1992)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_WARMUP = 10.0


class MovingAverage:
    """Keeps a second copy of a model whose weights trail the trained ones.

    Floating-point parameters and buffers are averaged, everything else (counters) is copied. The decay warms up,
    min(decay, (1 + t) / (10 + t)) at update t, so that short runs are not dominated by the initial weights.

    Attributes:
        model: The averaged model, always in evaluation mode and without gradients.
        updates: Number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay

    def decay(self) -> float:
        """The decay of the next update."""
        return min(self._decay, (1 + self.updates) / (_WARMUP + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`, which has the architecture given at construction."""
        pairs = list(zip(_distinct(self.model), _distinct(model), strict=True))
        floating = [(mean, current) for mean, current in pairs if mean.is_floating_point()]
        if floating:
            means, currents = zip(*floating, strict=True)
            torch._foreach_lerp_(means, currents, 1 - self.decay())
        for mean, current in pairs:
            if not mean.is_floating_point():
                mean.copy_(current)
        self.updates += 1


def _distinct(model: nn.Module) -> list[Tensor]:
    """List parameters and buffers once each, in a fixed order, shared ones not repeated."""
    return [*model.parameters(), *model.buffers()]

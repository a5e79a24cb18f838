"""Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights at the end of several epochs.

    weights at the end of each of the last epochs ── EpochAverage.take_in ──► their mean
    the mean, the training batches once more ── new_statistics ──► BatchNorm's means and variances under these weights

The mean lies in a flat part of what is minimised, where other images' losses are low, too. No epoch ever computed with
it, so BatchNorm's running statistics, which belong to other weights, are estimated anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class EpochAverage:
    """Keeps a second copy of a model with the mean weights of the epochs taken in.

    Parameters are averaged, each epoch counting alike; buffers are those of the last epoch, until the statistics among
    them are estimated.

    Attributes:
        model: The averaged model, in evaluation mode and without gradients; before the first epoch that of the start.
        epochs: Number of epochs taken in.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.epochs = 0

    @torch.no_grad()
    def take_in(self, model: nn.Module) -> None:
        """Count the weights of `model`, which has the architecture given at construction, as those of one epoch."""
        self.epochs += 1
        for mean, current in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(current, 1 / self.epochs)
        for own, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)


def estimated_layers(model: nn.Module) -> list[_BatchNorm]:
    """The layers whose statistics training moves; those that it leaves as they are are not among them.

    Args:
        model: Left in evaluation mode.
    """
    layers = [layer for layer in model.train().modules() if isinstance(layer, _BatchNorm)]
    found = [layer for layer in layers if layer.training and layer.track_running_stats]
    model.eval()
    return found


@contextmanager
def new_statistics(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within the block BatchNorm forgets its statistics and takes the mean of those of every batch that goes through.

    The variance is, as in training, the mean of the batches' own variances. The model is in training mode, so that
    layers see what they see there; whatever else a pass leaves in its buffers is put back, and it ends in evaluation
    mode. A block in which nothing goes through leaves means 0 and variances 1.

    Args:
        model: All of it.
        layers: Its `estimated_layers`.
    """
    model.train()
    statistics = {id(buffer) for layer in layers for buffer in layer.buffers()}
    others = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in statistics]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over the batches
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for buffer, before in others:
            buffer.copy_(before)
        model.eval()

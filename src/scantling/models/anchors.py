"""Anchors: prior boxes on a regular grid, one set of shapes per pyramid level.

An anchor of level L with aspect ratio r (height / width) and scale s is centred on the top left corner of its
cell, (x · stride, y · stride), with height stride · s · sqrt(r) and width stride · s / sqrt(r). This is the
convention of MMDetection's weights; half a cell's offset would only shift what the regression learns.
Dims: A shapes per cell, H x W cells, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from scantling.settings.fields import Positive


class AnchorConfig(BaseModel):
    """Shapes of the anchors.

    Attributes:
        scales: Side of the square anchor in units of the level's stride.
        ratios: Height over width.
        rounded: Whether corners about the cell's own are whole pixels, as in torchvision's detectors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scales: tuple[Positive, ...] = (8.0,)
    ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    rounded: bool = False

    @property
    def num_anchors(self) -> int:
        """Anchors per cell, A."""
        return len(self.scales) * len(self.ratios)


def cell_anchors(stride: int, config: AnchorConfig) -> Tensor:
    """Anchors of the cell at the origin, ratio-major: (A, 4) xyxy centred on (0, 0)."""
    roots = torch.tensor(config.ratios).sqrt()[:, None]
    sides = stride * torch.tensor(config.scales)[None, :]
    heights, widths = (sides * roots).flatten(), (sides / roots).flatten()
    anchors = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
    return anchors.round() if config.rounded else anchors


def grid_anchors(map_hw: tuple[int, int], stride: int, config: AnchorConfig) -> Tensor:
    """All anchors of one level.

    Args:
        map_hw: Size of the feature map in cells.
        stride: Image pixels per cell.
        config: Shapes.

    Returns:
        (H · W · A, 4) xyxy in image pixels; rows run over H, then W, then A, as a head's permuted output does.
    """
    height, width = map_hw
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    shift = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (shift + cell_anchors(stride, config)).view(-1, 4)


class AnchorCache:
    """Remembers the anchors of the last feature-map sizes: batches of equal size reuse them.

    Args:
        config: Shapes.
        strides: Stride of each level.
    """

    def __init__(self, config: AnchorConfig, strides: Sequence[int]) -> None:
        self.config = config
        self.strides = tuple(strides)
        self._known: dict[tuple[tuple[int, int], int, torch.device], Tensor] = {}

    def levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors for each level of `features` [(B, C, H, W)] on the features' device."""
        return [
            self._level((int(f.shape[-2]), int(f.shape[-1])), stride, f.device)
            for f, stride in zip(features, self.strides, strict=True)
        ]

    def _level(self, map_hw: tuple[int, int], stride: int, device: torch.device) -> Tensor:
        key = (map_hw, stride, device)
        if key not in self._known:
            if len(self._known) > 64:  # multi-scale training meets many sizes
                self._known.clear()
            self._known[key] = grid_anchors(map_hw, stride, self.config).to(device)
        return self._known[key]

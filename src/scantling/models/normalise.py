"""Pixels as networks want them: zero mean, unit variance.

Dims: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet's, per RGB channel in 0..255."""


class Normalise(nn.Module):
    """uint8 or float images in 0..255 -> zero mean, unit variance; padding becomes exactly 0.

    Args:
        mean: Per RGB channel, in 0..255.
        std: Per RGB channel, in 0..255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes_hw: Sequence[tuple[int, int]]) -> Tensor:
        """Normalise padded images (B, 3, H, W) whose unpadded sizes are `sizes_hw`."""
        normalised = (images.to(self.mean.dtype) - self.mean) / self.std
        for image, (height, width) in zip(normalised, sizes_hw, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return normalised

"""Feature pyramid network (Lin et al. 2017).

C2..C5 ── 1x1 lateral ──(+ nearest-neighbour upsampling of the coarser map)── 3x3 ──► p2..p5
p5 ── every second cell ──► p6   (only the RPN reads it)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.layers import ConvBlock, NormKind


class FPNConfig(BaseModel):
    """Width and normalisation of the pyramid.

    Attributes:
        channels: Width of every level.
        norm: Normalisation after each convolution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Annotated[int, Field(ge=1)] = 256
    norm: NormKind = "none"


class FPN(nn.Module):
    """Pyramid with one level per backbone map and one coarser level.

    Args:
        in_channels: Width of each backbone map, finest first.
        strides: Stride of each backbone map.
        config: Width and normalisation.

    Attributes:
        channels: Width of every level.
        strides: Strides of p2..p6.
    """

    def __init__(self, in_channels: Sequence[int], strides: Sequence[int], config: FPNConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.strides = (*strides, strides[-1] * 2)
        self.laterals = nn.ModuleList(
            ConvBlock(c, config.channels, 1, config.norm, relu=False) for c in in_channels
        )
        self.outputs = nn.ModuleList(
            ConvBlock(config.channels, config.channels, 3, config.norm, relu=False) for _ in in_channels
        )
        for block in [*self.laterals, *self.outputs]:
            if isinstance(block, ConvBlock):
                nn.init.xavier_uniform_(block.conv.weight)
                if block.conv.bias is not None:
                    nn.init.zeros_(block.conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first -> p2..p6, each (B, channels, H/stride, W/stride)."""
        merged = [lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            size = merged[finer].shape[-2:]
            merged[finer] = merged[finer] + F.interpolate(merged[finer + 1], size=size, mode="nearest")
        levels = [output(m) for output, m in zip(self.outputs, merged, strict=True)]
        return [*levels, levels[-1][:, :, ::2, ::2]]

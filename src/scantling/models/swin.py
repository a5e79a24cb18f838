"""Swin Transformer (Liu et al. 2021) as a source of feature maps for images of any size.

    image (B, 3, H, W) ── 4x4 patches ──► (B, H/4, W/4, C) ── layers_0 ──► layers_1 (halves, 2C) ──► ... layers_3 (8C)
    block:  x + attention in windows(norm x);  x + mlp(norm x);  every second block's windows are shifted by half

The detection models' order is kept: a map is padded to whole windows first and shifted then, with padding visible
as zeros. (timm shifts first; the two agree where the windows divide the map.) Weights have timm's names and order.
Dims: B images, H W cells, C channels, N tokens of a window, A heads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

DEFAULT_DROP_PATH = 0.1
_HIDDEN = -100.0  # added to attention between regions that a shift has made neighbours


@dataclass(frozen=True, slots=True)
class SwinShape:
    """Sizes of a published network.

    Attributes:
        channels: Width of the first stage; each later one doubles it.
        depths: Blocks per stage.
        heads: Attention heads per stage.
        window: Side of a window, cells.
    """

    channels: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int = 7


_SHAPES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def swin_shape(name: str) -> SwinShape | None:
    """Sizes of the Swin with this timm name (`swin_tiny_patch4_window7_224`); None for any other network."""
    match = re.match(r"swin_(tiny|small|base|large)_patch4_window(\d+)_\d+(\.|$)", name)
    return SwinShape(*_SHAPES[match[1]], window=int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """What a feature network delivers; the part of timm's interface that `Backbone` uses."""

    width: int

    def reduction(self) -> list[int]:
        """Stride of each map."""
        return [4, 8, 16, 32]

    def channels(self) -> list[int]:
        """Width of each map."""
        return [self.width * 2**stage for stage in range(4)]

    def module_name(self) -> list[str]:
        """Name of the module that makes each map."""
        return [f"layers_{stage}" for stage in range(4)]


class Swin(nn.Module):
    """The four stages.

    Args:
        shape: Sizes.
        drop_path: Stochastic depth of the last block; earlier blocks have proportionally less.
    """

    output_fmt = "NHWC"

    def __init__(self, shape: SwinShape, drop_path: float = DEFAULT_DROP_PATH) -> None:
        super().__init__()
        self.feature_info = FeatureInfo(shape.channels)
        self.patch_embed = _PatchEmbed(shape.channels)
        num_blocks = sum(shape.depths)
        rates = [drop_path * block / (num_blocks - 1) for block in range(num_blocks)]
        for stage, (depth, heads) in enumerate(zip(shape.depths, shape.heads, strict=True)):
            some, rates = rates[:depth], rates[depth:]
            width = shape.channels * 2**stage
            self.add_module(f"layers_{stage}", _Stage(width, heads, shape.window, some, halves=stage > 0))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), H and W multiples of 32 -> four maps (B, H/s, W/s, C)."""
        x = self.patch_embed(images)
        maps = []
        for name in self.feature_info.module_name():
            x = self.get_submodule(name)(x)
            maps.append(x)
        return maps


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return embedded


class _Stage(nn.Module):
    def __init__(self, width: int, heads: int, window: int, rates: list[float], *, halves: bool) -> None:
        super().__init__()
        self.downsample = _PatchMerging(width // 2) if halves else nn.Identity()
        self.blocks = nn.Sequential(
            *(_Block(width, heads, window, window // 2 * (i % 2), rate) for i, rate in enumerate(rates))
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.blocks(self.downsample(x))
        return result


class _PatchMerging(nn.Module):
    """Four neighbouring cells become one of twice the width; order: column, then row, then channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        cells = x.view(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        merged: Tensor = self.reduction(self.norm(cells.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return merged


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _WindowAttention(width, heads, window)
        self.mlp = _Mlp(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result

    def _attend(self, x: Tensor) -> Tensor:
        """Attention within (shifted) windows of a map (B, H, W, C)."""
        height, width = x.shape[1:3]
        side, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        mask = None
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            mask = _region_mask((x.shape[1], x.shape[2]), side, shift, x)
        attended = _from_windows(self.attn(_to_windows(x, side), mask), x.shape, side)
        if shift:
            attended = attended.roll((shift, shift), (1, 2))
        return attended[:, :height, :width]


def _to_windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, N, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side, channels)


def _from_windows(windows: Tensor, shape: torch.Size, side: int) -> Tensor:
    """The inverse of `_to_windows`, for a map of this shape."""
    batch, height, width, channels = shape
    x = windows.view(batch, height // side, width // side, side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(shape)


def _region_mask(size_hw: tuple[int, int], side: int, shift: int, like: Tensor) -> Tensor:
    """(windows, 1, N, N): 0 between cells that were neighbours before the shift, hidden otherwise."""
    rows, columns = (
        torch.bucketize(
            torch.arange(length, device=like.device),
            torch.tensor([length - side, length - shift], device=like.device),
            right=True,
        )
        for length in size_hw
    )
    region = (rows[:, None] * 3 + columns).view(1, *size_hw, 1)
    windows = _to_windows(region, side)[0]  # (windows, N, 1)
    hidden = windows != windows.transpose(1, 2)
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill(hidden, _HIDDEN)[:, None]


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class _WindowAttention(nn.Module):
    """Self-attention in windows with a learnt bias per head and relative position (section 3.2)."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        cell = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = cell[:, None] - cell[None] + window - 1
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows (B, windows, N, C), mask (windows, 1, N, N) or None -> (B, windows, N, C)."""
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        )  # each (B, windows, A, N, C / A)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias if mask is None else bias + mask
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        result: Tensor = self.proj(attended.transpose(2, 3).flatten(3))
        return result

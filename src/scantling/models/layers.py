"""Building blocks: normalisation by name, convolution blocks, deformable convolution, RoI pooling.

Dims: B images, C channels, H W cells, R RoIs, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from scantling.errors import ConfigError
from scantling.ops.boxes import enlarge_boxes
from scantling.ops.roi_align import roi_align

NormKind = Literal["none", "bn", "sync_bn", "gn"]


def make_norm(kind: NormKind, channels: int) -> nn.Module:
    """A normalisation layer for `channels` channels; `none` is the identity."""
    if kind == "gn":
        return nn.GroupNorm(norm_groups(channels), channels)
    if kind == "sync_bn":
        return nn.SyncBatchNorm(channels)
    return nn.BatchNorm2d(channels) if kind == "bn" else nn.Identity()


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm layer: 32 (Wu & He 2018), fewer where 32 does not divide the channels."""
    return math.gcd(channels, 32)


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, optional ReLU; the bias is dropped where a norm follows.

    Args:
        in_channels: Input width.
        out_channels: Output width.
        kernel: Side of the kernel; the padding keeps the size at stride 1.
        norm: Kind of normalisation.
        relu: Whether a ReLU ends the block.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, norm: NormKind = "none", *, relu: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none")
        ]
        if norm != "none":
            layers.append(make_norm(norm, out_channels))
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)

    @property
    def conv(self) -> nn.Conv2d:
        """The block's convolution."""
        conv = self[0]
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"expected a Conv2d first, found {type(conv).__name__}")
        return conv


class Residual(nn.Module):
    """A branch's output added to a shortcut's.

    Args:
        branch: Convolutions.
        shortcut: The identity, or a convolution to the branch's width.
        relu: Whether a ReLU follows the sum.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module, *, relu: bool = True) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, C', S, S)."""
        total: Tensor = self.branch(x) + self.shortcut(x)
        return torch.relu(total) if self.relu else total


def conv_stack(
    in_channels: int, channels: int, num_convs: int, norm: NormKind = "none", *, residual: bool = False
) -> nn.Sequential:
    """3x3 convolutions in a row, or each two of them with a shortcut around (as SCNet has them in all its maps).

    Args:
        in_channels: Input width.
        channels: Width of the convolutions.
        num_convs: How many; 0 is the identity.
        norm: Their normalisation.
        residual: Whether each two have a shortcut: conv, ReLU, conv, and the sum as it is.

    Raises:
        ConfigError: An odd number of convolutions in pairs.
    """
    if residual and num_convs % 2:
        raise ConfigError(
            f"{num_convs} convolutions of which each two have a shortcut",
            hint="Give an even number (mask_convs, semantic_convs, context_convs), or residual: false.",
        )
    blocks: list[nn.Module] = []
    for _ in range(num_convs // 2 if residual else num_convs):
        first = ConvBlock(in_channels, channels, 3, norm)
        if residual:
            same = in_channels == channels
            shortcut = nn.Identity() if same else ConvBlock(in_channels, channels, 1, norm, relu=False)
            pair = nn.Sequential(first, ConvBlock(channels, channels, 3, norm, relu=False))
            blocks.append(Residual(pair, shortcut, relu=False))
        else:
            blocks.append(first)
        in_channels = channels
    return nn.Sequential(*blocks)


def init_conv(module: nn.Module, std: float | None = None) -> None:
    """Initialise every convolution and linear layer inside `module`; biases become 0.

    Args:
        module: Any module.
        std: Standard deviation of a normal distribution; None is He's normal initialisation (fan-out).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if std is None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def cell_patches(features: Tensor, image: Tensor, cells: Tensor) -> Tensor:
    """The 3x3 neighbourhoods of single cells; cells beyond the map are 0, as a padded convolution sees them.

    Args:
        features: (B, C, H, W).
        image: (M,) index of each cell's image.
        cells: (M,) index of each cell in its map, y · W + x.

    Returns:
        (M, 9 · C): rows of the neighbourhood, then columns, then channels.
    """
    height, width = features.shape[-2:]
    step = torch.arange(-1, 2, device=cells.device)
    y = (cells // width)[:, None, None] + step[:, None]
    x = (cells % width)[:, None, None] + step
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    found = features[image[:, None, None], :, y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return found.masked_fill(outside[..., None], 0).flatten(1)


class DeformConv(nn.Module):
    """Deformable convolution: a plain convolution predicts where each kernel tap looks.

    Version 1 (Dai et al. 2017) predicts an offset (dy, dx) per tap; version 2 (Zhu et al. 2019) also a
    modulation in 0..1 per tap. Offsets start at 0, so at first it is the convolution it replaces (version 2:
    half of it, the modulation being sigmoid(0), as published).

    Args:
        conv: The convolution replaced; its weight and bias are taken over.
        version: 1 or 2.
    """

    def __init__(self, conv: nn.Conv2d, version: Literal[1, 2] = 1) -> None:
        super().__init__()
        self.version = version
        if isinstance(conv.padding, str):
            raise TypeError(f"expected numeric padding, found {conv.padding!r}")
        self.stride, self.padding, self.dilation = (
            _pair(v) for v in (conv.stride, conv.padding, conv.dilation)
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.taps = math.prod(conv.kernel_size)
        self.offset = nn.Conv2d(
            conv.in_channels,
            self.taps * (2 if version == 1 else 3),
            kernel_size=_pair(conv.kernel_size),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        nn.init.zeros_(self.offset.weight)
        if self.offset.bias is not None:
            nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        predicted = self.offset(x).float()
        offset, mask = predicted, None
        if self.version == 2:
            offset, mask = predicted[:, : 2 * self.taps], predicted[:, 2 * self.taps :].sigmoid()
        with torch.autocast(
            x.device.type, enabled=False
        ):  # offsets in half precision lose sub-pixel accuracy
            out: Tensor = deform_conv2d(
                x.float(), offset, self.weight.float(),
                None if self.bias is None else self.bias.float(),
                stride=self.stride, padding=self.padding, dilation=self.dilation, mask=mask,
            )  # fmt: skip
        return out.to(x.dtype)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a convolution's setting, which torch types as any number of values."""
    vertical, horizontal = values
    return vertical, horizontal


class RoiPool(nn.Module):
    """RoIAlign over a feature pyramid: each RoI is pooled from the level that suits its size.

    A RoI of side s is read at level floor(log2(s / 56)) above the finest, clamped to the levels there are
    (Lin et al. 2017, equation 1, for a finest stride of 4).

    Args:
        strides: Stride of each level used, finest first.
        side: Output cells per side.
        samples: Samples per cell and direction, averaged (He et al. 2017 use 2); 0 takes as many as the cell has
            feature cells, which is what MMDetection and Detectron2 do and costs two to four times as much.
        aligned: Whether cells are shifted by the half a feature cell that pixel centres lie inwards; torchvision's
            detectors were trained without.
    """

    FINEST_SIDE = 14.0  # cells of the finest level; 56 px at stride 4

    def __init__(self, strides: Sequence[int], side: int, samples: int = 2, *, aligned: bool = True) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.side = side
        self.samples = samples
        self.aligned = aligned

    def forward(self, features: Sequence[Tensor], rois: Sequence[Tensor], enlarge: float = 1.0) -> Tensor:
        """Pool RoIs of each image.

        Args:
            features: Levels (B, C, H, W), finest first; further levels are not used.
            rois: For each image (R_i, 4) xyxy in image pixels.
            enlarge: Factor by which each RoI grows about its centre before it is pooled; its level stays.

        Returns:
            (R, C, side, side), images one after the other; R may be 0.
        """
        boxes = torch.cat(list(rois))
        image = torch.cat([torch.full((len(r), 1), i, device=boxes.device) for i, r in enumerate(rois)])
        area = boxes if enlarge == 1 else enlarge_boxes(boxes, enlarge)
        indexed = torch.cat([image.to(boxes.dtype), area], dim=1).float()
        levels = self.levels_of(boxes)
        pooled = features[0].new_zeros(len(boxes), features[0].shape[1], self.side, self.side)
        for level, stride in enumerate(self.strides):
            members = (levels == level).nonzero().squeeze(1)
            # a level without RoIs stays in the graph, so that every parameter gets a gradient; coordinates in half
            # precision would be off by pixels
            part = roi_align(
                features[level].float(),
                indexed[members],
                self.side,
                1 / stride,
                self.samples,
                aligned=self.aligned,
            )
            pooled[members] = part.to(pooled.dtype)
        return pooled

    def levels_of(self, boxes: Tensor) -> Tensor:
        """Level index (R,) of each box (R, 4)."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        finest = self.FINEST_SIDE * self.strides[0]
        return torch.floor(torch.log2(sides / finest + 1e-6)).clamp(0, len(self.strides) - 1).long()

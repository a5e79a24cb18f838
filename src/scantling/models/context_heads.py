"""Heads for the whole image: the fused semantic one (Chen et al. 2019), the global context (Vu et al. 2021).

    p2..p6 ── 1x1 conv, ReLU, each resized to p3 and summed ──► (B, C, H/8, W/8) ── convs ──► (B, C, H/8, W/8)
        ── 1x1 conv ────────► logits (B, L, H/8, W/8) ──► pixel-wise cross-entropy
        ── 1x1 conv, ReLU ──► features (B, C, H/8, W/8) ── RoiPool ──► added to what the box and mask heads read
    p6 ── convs ──► (B, C, H/64, W/64) ── mean over the image's cells ──► features (B, C)
        ── fc ──► logits (B, K), is there an object of the class? ──► binary cross-entropy
        ──────────────────────► added to every cell of every RoI that the box and mask heads read

Data sets for detection have no labels of pixels. They are derived from the masks of the instances: class + 1 inside
a mask, the later instance where several meet, 0 elsewhere; crowds, whose objects nobody drew, and padding count for
nothing. Dims: B images, C channels, L labels, R RoIs, K classes, S cells per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.errors import ConfigError
from scantling.models.box_heads import BoxHeadConfig
from scantling.models.layers import ConvBlock, RoiPool, conv_stack, init_conv
from scantling.settings.fields import Count
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks

FUSED_LEVEL = 1
"""Place in the pyramid of the level that all others are resized to: p3."""
IGNORED = -1
"""Label of cells that have no part in the loss."""


class SemanticHeadConfig(BaseModel):
    """Shape and loss of the semantic head.

    Attributes:
        num_convs: 3x3 convolutions on the fused level.
        residual: Whether each two of them have a shortcut, as in SCNet.
        num_labels: Labels L; None is K + 1.
        pool_side: Cells per side of the features pooled for a RoI; box heads read the mean of what falls in each of
            their cells.
        pool_samples: Samples per cell and direction; see `layers.RoiPool`.
        aligned: Whether RoIs are pooled to half a cell; see `layers.RoiPool`.
        weight: Factor of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_convs: Annotated[int, Field(ge=0)] = 4
    residual: bool = False
    num_labels: Count | None = None
    pool_side: Count = 14
    pool_samples: Annotated[int, Field(ge=0)] = 2
    aligned: bool = True
    weight: Annotated[float, Field(ge=0)] = 0.2


class SemanticOptions(BaseModel):
    """What a recipe may change in the semantic branch of any detector that has one.

    Attributes:
        semantic: Whether there is a semantic branch.
        semantic_convs: 3x3 convolutions of its head.
        semantic_weight: Factor of its loss.
        semantic_labels: Labels it tells apart, where they are not the categories and the ground; imported weights that
            learned from labels of pixels have their own number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    semantic: bool = True
    semantic_convs: Annotated[int, Field(ge=0)] = 4
    semantic_weight: Annotated[float, Field(ge=0)] = 0.2
    semantic_labels: Annotated[int, Field(ge=2)] | None = None

    def semantic_head(self, box_head: BoxHeadConfig, *, residual: bool = False) -> SemanticHeadConfig | None:
        """Shape and loss of the semantic head beside box heads of this shape; None for none.

        Args:
            box_head: The box heads.
            residual: Whether each two convolutions have a shortcut.
        """
        if not self.semantic:
            return None
        return SemanticHeadConfig(
            num_convs=self.semantic_convs,
            residual=residual,
            num_labels=self.semantic_labels,
            pool_side=2 * box_head.pool_side,
            pool_samples=box_head.pool_samples,
            aligned=box_head.aligned,
            weight=self.semantic_weight,
        )


class SemanticOutput(NamedTuple):
    """What the semantic head makes of a pyramid.

    Attributes:
        features: (B, C, H/8, W/8) for the other heads.
        logits: (B, L, H/8, W/8).
    """

    features: Tensor
    logits: Tensor


class SemanticHead(nn.Module):
    """Labels the cells of the whole image, and lends its features to the heads of single RoIs.

    Args:
        channels: Width of the pyramid, and of all layers here.
        strides: Stride of each level of the pyramid, p6 included.
        num_classes: Foreground classes K.
        config: Shape and loss.

    Raises:
        ConfigError: Fewer labels than there are classes and a ground.
    """

    def __init__(
        self, channels: int, strides: Sequence[int], num_classes: int, config: SemanticHeadConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.stride = strides[FUSED_LEVEL]
        num_labels = config.num_labels or num_classes + 1
        if num_labels <= num_classes:
            raise ConfigError(
                f"a semantic head of {num_labels} labels for {num_classes} categories",
                hint=f"It needs at least {num_classes + 1}: one for each category, and the ground.",
            )
        self.laterals = nn.ModuleList(ConvBlock(channels, channels, 1) for _ in strides)
        self.convs = conv_stack(channels, channels, config.num_convs, residual=config.residual)
        self.embed = ConvBlock(channels, channels, 1)
        self.logits = nn.Conv2d(channels, num_labels, 1)
        self.pool = RoiPool([self.stride], config.pool_side, config.pool_samples, aligned=config.aligned)
        init_conv(self)
        init_conv(self.logits, std=0.001)  # undecided, as the other predictors start

    def forward(self, levels: Sequence[Tensor]) -> SemanticOutput:
        """p2..p6 (B, C, H/s, W/s) -> features and logits on p3's cells."""
        size = levels[FUSED_LEVEL].shape[-2:]
        fused = torch.zeros_like(levels[FUSED_LEVEL])
        for lateral, level in zip(self.laterals, levels, strict=True):
            resized = F.interpolate(level, size=size, mode="bilinear", align_corners=True)
            fused = fused + lateral(resized)  # (B, C, H/8, W/8); p3 itself stays as it is
        hidden = self.convs(fused)
        return SemanticOutput(features=self.embed(hidden), logits=self.logits(hidden))

    def losses(self, logits: Tensor, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """`class`: the mean cross-entropy of the cells that have a label.

        Args:
            logits: (B, L, H/8, W/8).
            truths: Ground truth of each image with its masks.

        Raises:
            TypeError: Objects without masks.
        """
        height, width = logits.shape[-2:]
        labels = [semantic_targets(truth, (height, width), self.stride) for truth in truths]
        targets = torch.stack(labels).to(logits.device)  # (B, H/8, W/8)
        total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
        return {"class": self.config.weight * total / (targets != IGNORED).sum().clamp(min=1)}

    def of_rois(self, features: Tensor, rois: Sequence[Tensor], side: int) -> Tensor:
        """What a head reads of the features.

        Args:
            features: (B, C, H/8, W/8).
            rois: For each image (R_i, 4) xyxy in image pixels.
            side: Cells per side S of what the head reads.

        Returns:
            (R, C, S, S), images one after the other; R may be 0.
        """
        pooled: Tensor = self.pool([features], rois)
        return pooled if side == self.pool.side else F.adaptive_avg_pool2d(pooled, side)


def semantic_targets(truth: Instances, cells_hw: tuple[int, int], stride: int) -> Tensor:
    """Labels of an image's cells, each that of its upper left pixel.

    Args:
        truth: Ground truth of the image.
        cells_hw: Height and width of the map of cells, those of padding included.
        stride: Pixels per cell and direction.

    Returns:
        (H/8, W/8) int64 on the CPU: 0 where there is no object, class + 1 inside its mask; `IGNORED` in a crowd
        outside of single objects, and in padding.

    Raises:
        TypeError: Objects without masks of the image.
    """
    targets = np.full(cells_hw, IGNORED, dtype=np.int64)
    height, width = truth.size_hw
    targets[: -(-height // stride), : -(-width // stride)] = 0
    if len(truth) == 0:
        return torch.from_numpy(targets)
    if not isinstance(truth.masks, ImageMasks):
        raise TypeError(f"a semantic head learns from masks of the image, found {type(truth.masks).__name__}")
    labels = truth.labels.cpu() + 1
    if truth.is_crowd is not None:
        labels[truth.is_crowd.cpu()] = IGNORED
    drawn = list(zip(labels.tolist(), truth.masks, strict=True))
    for label, (patch, (x, y)) in sorted(drawn, key=lambda pair: pair[0] != IGNORED):  # crowds first
        cells = patch[-y % stride :: stride, -x % stride :: stride]
        shown = targets[-(-y // stride) :, -(-x // stride) :][: cells.shape[0], : cells.shape[1]]
        shown[cells[: shown.shape[0], : shown.shape[1]] != 0] = label
    return torch.from_numpy(targets)


class ContextHeadConfig(BaseModel):
    """Shape and loss of the global context head.

    Attributes:
        num_convs: 3x3 convolutions on the coarsest level.
        residual: Whether each two of them have a shortcut.
        weight: Factor of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_convs: Annotated[int, Field(ge=0)] = 4
    residual: bool = True
    weight: Annotated[float, Field(ge=0)] = 3.0


class ContextOutput(NamedTuple):
    """What the global context head makes of the coarsest level.

    Attributes:
        features: (B, C) for the other heads.
        logits: (B, K).
    """

    features: Tensor
    logits: Tensor


class ContextHead(nn.Module):
    """Tells which classes an image holds, and lends what it knows of the image to the heads of single RoIs.

    Args:
        channels: Width of the pyramid, and of all layers here.
        num_classes: Foreground classes K.
        config: Shape and loss.

    Source:
        Vu et al. 2021, "SCNet", section 3.4. The mean is over the cells that lie in the image; MMDetection also takes
        in those of the batch's padding, so that an image's features depend on the images beside it.
    """

    def __init__(self, channels: int, num_classes: int, config: ContextHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = conv_stack(channels, channels, config.num_convs, residual=config.residual)
        self.logits = nn.Linear(channels, num_classes)
        init_conv(self)
        init_conv(self.logits, std=0.01)

    def forward(self, level: Tensor, stride: int, sizes_hw: Sequence[tuple[int, int]]) -> ContextOutput:
        """The coarsest level -> features and logits of the whole images.

        Args:
            level: (B, C, H/s, W/s).
            stride: Its s.
            sizes_hw: Unpadded size of each image.
        """
        hidden = self.convs(level)
        means = [
            cells[:, : -(-height // stride), : -(-width // stride)].mean(dim=(1, 2))
            for cells, (height, width) in zip(hidden, sizes_hw, strict=True)
        ]
        features = torch.stack(means)  # (B, C)
        return ContextOutput(features=features, logits=self.logits(features))

    def losses(self, logits: Tensor, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """`class`: the mean binary cross-entropy over images and classes.

        Args:
            logits: (B, K).
            truths: Ground truth of each image; a crowd counts as objects of its class, no object as none.
        """
        present = torch.zeros_like(logits, dtype=torch.float32)  # (B, K)
        for row, truth in zip(present, truths, strict=True):
            row[truth.labels] = 1
        return {"class": self.config.weight * F.binary_cross_entropy_with_logits(logits.float(), present)}


def context_of_rois(features: Tensor, rois: Sequence[Tensor]) -> Tensor:
    """What a head reads of the images' context.

    Args:
        features: (B, C).
        rois: For each image (R_i, 4); only their number counts.

    Returns:
        (R, C, 1, 1), images one after the other.
    """
    parts = [own.expand(len(boxes), -1) for own, boxes in zip(features, rois, strict=True)]
    return torch.cat(parts)[:, :, None, None]

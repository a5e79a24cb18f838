"""Mask heads: pooled RoI features in, a square of mask logits out; their targets and loss (He et al. 2017).

    p2..p5, boxes ── RoiPool ──► (R, C, 14, 14) ── 4 x (3x3 conv, norm, ReLU) ── 2x2 deconv, ReLU ──► (R, C', 28, 28)
                                                ── 1x1 conv ──► logits (R, K, 28, 28), or (R, 1, 28, 28) for all classes
    flow:    a head of HTC adds 1x1 conv(features before the deconv of the stage before) to the pooled RoI
    targets: RoIAlign of the truth's mask with the RoI's box, on where it covers half a cell
    loss:    binary cross-entropy of the positives' own class

Dims: B images, C channels, R RoIs, P positives, K classes, M side of a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.box_heads import BoxHeadConfig, RoiSamples
from scantling.models.layers import ConvBlock, NormKind, RoiPool, conv_stack, init_conv
from scantling.settings.fields import Count
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks

COVERED = 0.5
"""Share of a cell that the object covers from which on the target is 1."""


class MaskHeadConfig(BaseModel):
    """Shape and loss of one mask head.

    Attributes:
        num_convs: 3x3 convolutions before the resolution is doubled.
        channels: Their width.
        residual: Whether each two of them have a shortcut, as in SCNet.
        norm: Normalisation of the convolutions.
        pool_side: Cells per side of the pooled RoI; masks have twice as many.
        pool_samples: Samples per cell and direction; see `layers.RoiPool`.
        aligned: Whether RoIs are pooled to half a cell; see `layers.RoiPool`.
        class_agnostic: One mask for all classes, or one per class.
        weight: Factor of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_convs: Annotated[int, Field(ge=0)] = 4
    channels: Count = 256
    residual: bool = False
    norm: NormKind = "none"
    pool_side: Count = 14
    pool_samples: Annotated[int, Field(ge=0)] = 2
    aligned: bool = True
    class_agnostic: bool = False
    weight: Annotated[float, Field(ge=0)] = 1.0


class MaskOptions(BaseModel):
    """What a recipe may change in the mask heads of any detector that has them.

    Attributes:
        mask_convs: 3x3 convolutions of a mask head.
        mask_channels: Their width.
        mask_norm: Their normalisation; as the box heads' where it is left out.
        mask_class_agnostic: One mask for all classes, or one per class.
        mask_weight: Factor of the masks' loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_convs: Annotated[int, Field(ge=0)] = 4
    mask_channels: Count = 256
    mask_norm: NormKind | None = None
    mask_class_agnostic: bool = False
    mask_weight: Annotated[float, Field(ge=0)] = 1.0

    def mask_head(self, box_head: BoxHeadConfig) -> MaskHeadConfig:
        """Shape and loss of the mask heads beside box heads of this shape."""
        return MaskHeadConfig(
            num_convs=self.mask_convs,
            channels=self.mask_channels,
            norm=self.mask_norm or box_head.norm,
            pool_side=2 * box_head.pool_side,
            pool_samples=box_head.pool_samples,
            aligned=box_head.aligned,
            class_agnostic=self.mask_class_agnostic,
            weight=self.mask_weight,
        )


class MaskHead(nn.Module):
    """Draws a mask inside each box.

    Args:
        in_channels: Width of the levels.
        strides: Strides of the levels that are pooled, finest first.
        num_classes: Foreground classes K.
        config: Shape and loss.
        informed: Whether the head also reads the features of the stage before (HTC).

    Attributes:
        side: M.
    """

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        num_classes: int,
        config: MaskHeadConfig,
        *,
        informed: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.side = 2 * config.pool_side
        self.pool = RoiPool(strides, config.pool_side, config.pool_samples, aligned=config.aligned)
        self.convs = conv_stack(
            in_channels, config.channels, config.num_convs, config.norm, residual=config.residual
        )
        width = config.channels if config.num_convs else in_channels
        self.upsample = nn.ConvTranspose2d(width, config.channels, 2, stride=2)
        self.logits = nn.Conv2d(config.channels, 1 if config.class_agnostic else num_classes, 1)
        self.flow = ConvBlock(width, in_channels, 1, config.norm) if informed else None
        init_conv(self)
        # as the other predictors start: undecided. He's initialisation goes by the number of classes, and with few of
        # them the first masks would be certain and wrong.
        init_conv(self.logits, std=0.001)

    def forward(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Levels and boxes [(R_i, 4)] of each image -> logits (R, K or 1, M, M), image after image."""
        return self.draw(self.features(self.pool(levels, boxes)))

    def features(self, pooled: Tensor, earlier: Tensor | None = None) -> Tensor:
        """What the head makes of pooled RoIs before it draws.

        Args:
            pooled: (R, C, M / 2, M / 2).
            earlier: Features (R, C', M / 2, M / 2) of the stage before, for a head that reads them.

        Returns:
            (R, C', M / 2, M / 2).

        Raises:
            TypeError: A head that reads earlier features gets none, or one that does not gets some.
        """
        if (self.flow is None) != (earlier is None):
            raise TypeError(
                f"earlier features: {earlier is not None}, a head that reads them: {self.flow is not None}"
            )
        if self.flow is not None:
            pooled = pooled + self.flow(earlier)
        if (
            pooled.device.type == "cpu"
        ):  # the layers below take 0.5 to 0.9 of the time in this layout (bench/masks.py)
            pooled = pooled.contiguous(memory_format=torch.channels_last)
        hidden: Tensor = self.convs(pooled)
        return hidden

    def draw(self, features: Tensor) -> Tensor:
        """(R, C', M / 2, M / 2) -> logits (R, K or 1, M, M)."""
        logits: Tensor = self.logits(F.relu_(self.upsample(features)))
        return logits

    def own_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(R, M, M) of logits (R, K or 1, M, M) and labels (R,): those of the RoI's class."""
        if self.config.class_agnostic:
            return logits[:, 0]
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def losses(
        self, logits: Tensor, samples: Sequence[RoiSamples], truths: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """`mask`: the mean over all cells of all positives; 0 (with a gradient path) where there is none.

        Args:
            logits: (P, K or 1, M, M) of the positives among the samples; see `positive_boxes`.
            samples: RoIs of each image; background takes no part.
            truths: Ground truth of each image with its masks.

        Raises:
            TypeError: Objects without masks.
        """
        labels = torch.cat([s.labels[s.matched >= 0] for s in samples])
        matched = [s.matched[s.matched >= 0] for s in samples]
        parts = zip(truths, matched, positive_boxes(samples), strict=True)
        targets = torch.cat([mask_targets(*part, self.side) for part in parts])
        own = self.own_logits(logits, labels).float()  # (P, M, M)
        on = (targets >= COVERED).to(own.dtype)
        total = F.binary_cross_entropy_with_logits(own, on, reduction="sum")
        return {"mask": self.config.weight * total / max(on.numel(), 1)}


def positive_boxes(samples: Sequence[RoiSamples]) -> list[Tensor]:
    """For each image the boxes (P_i, 4) that stand for an object: those a mask head learns from."""
    return [s.boxes[s.matched >= 0] for s in samples]


def mask_targets(truth: Instances, matched: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What a mask head should draw inside each box.

    Args:
        truth: Ground truth of one image.
        matched: (P,) row of the truth each box stands for.
        boxes: (P, 4) xyxy in the image's frame.
        side: M.

    Returns:
        (P, M, M) in [0, 1], the covered share of each cell: RoIAlign of the dense mask. (0, M, M) for no boxes.

    Raises:
        TypeError: The truth has no masks in the image's frame.
    """
    if len(matched) == 0:
        return boxes.new_zeros(0, side, side)
    if not isinstance(truth.masks, ImageMasks):
        raise TypeError(f"a mask head learns from masks of the image, found {type(truth.masks).__name__}")
    return truth.masks[matched].crop_and_resize(boxes, side)


def soft_masks(
    heads: Sequence[MaskHead], logits: Iterable[Tensor], instances: Sequence[Instances]
) -> list[RoiMasks]:
    """Masks for given boxes: the mean of the heads' probabilities.

    Args:
        heads: At least one; several are the stages of a cascade.
        logits: What each head has drawn, (R, K or 1, M, M), images one after the other.
        instances: Boxes and labels of each image; may be empty.

    Returns:
        For each image its masks, in the order of its boxes.
    """
    mean = mean_probabilities(heads, logits, torch.cat([found.labels for found in instances]))
    return [RoiMasks(probabilities=part) for part in torch.split(mean, [len(each) for each in instances])]


def mean_probabilities(heads: Sequence[MaskHead], logits: Iterable[Tensor], labels: Tensor) -> Tensor:
    """(R, M, M) float32: the mean of what several heads have drawn for each RoI's class.

    Args:
        heads: At least one.
        logits: Of each head (R, K or 1, M, M).
        labels: (R,) in 0..K-1.
    """
    drawn = [
        head.own_logits(part, labels).float().sigmoid() for head, part in zip(heads, logits, strict=True)
    ]
    return torch.stack(drawn).mean(dim=0)

"""A light segmenter: our feature pyramid, summed at its finest level. For CPUs, and where no further library is wanted.

    image ── Backbone ──► C2..C5 ── FPN ──► p2..p5, each resized to p2 and summed ──► (B, C, H/4, W/4)
        ── 3x3 convolutions ── 1x1 ──► (B, 1 + P, H/4, W/4) ── resized ──► logits (B, 1 + P, H, W): ground, planes
    training: cross-entropy of every pixel + dice loss of every plane         scores: softmax, without the ground

After the semantic branch of Panoptic FPN (Kirillov et al. 2019, section 3.2), with one resize per level instead of a
chain of convolutions and resizes. Cross-entropy alone leaves small defects at "ground" for long, because they are few
of the pixels; the dice loss (Milletari et al. 2016) counts them by their own area.
Dims: B images, P planes, H W pixels.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.backbone import Backbone, BackboneConfig, BackboneNorm
from scantling.models.context_heads import IGNORED
from scantling.models.contract import Segmenter
from scantling.models.layers import ConvBlock, NormKind, init_conv
from scantling.models.neck import FPN, FPNConfig
from scantling.models.normalise import PIXEL_MEAN, PIXEL_STD, Normalise
from scantling.settings.fields import Count, NonNegative
from scantling.structures.sample import Batch


class FPNSegmenterOptions(BaseModel):
    """All numbers of the light segmenter.

    Attributes:
        backbone: timm model name; any network that a detector takes.
        norm: Normalisation in the backbone; see `BackboneConfig.norm`.
        frozen_stages: Stem and this many stages are not trained.
        drop_path: Stochastic depth rate; null keeps the network's own.
        channels: Width of the pyramid and of all layers after it.
        num_convs: 3x3 convolutions on the summed level.
        head_norm: Normalisation in the pyramid and after it.
        dice_weight: Factor of the dice loss; 0 leaves cross-entropy alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "resnet50"
    norm: BackboneNorm = "bn_eval"
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    channels: Count = 128
    num_convs: Annotated[int, Field(ge=0)] = 2
    head_norm: NormKind = "gn"
    dice_weight: NonNegative = 1.0


class FPNSegmenter(Segmenter):
    """See the module's head.

    Args:
        options: All numbers.
        num_planes: P.
        by_category: Whether the planes are categories.
        pretrained: Fetch timm's published weights of the backbone.
    """

    def __init__(
        self, options: FPNSegmenterOptions, num_planes: int, *, by_category: bool, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.options, self.num_planes, self.by_category = options, num_planes, by_category
        self.normalise = Normalise(PIXEL_MEAN, PIXEL_STD)
        self.backbone = Backbone(
            BackboneConfig(
                name=options.backbone,
                norm=options.norm,
                frozen_stages=options.frozen_stages,
                drop_path=options.drop_path,
                pretrained=pretrained,
            )
        )
        width, norm = options.channels, options.head_norm
        pyramid = FPNConfig(channels=width, norm=norm)
        self.neck = FPN(self.backbone.channels, self.backbone.strides, pyramid)
        self.decoder = nn.Sequential(*(ConvBlock(width, width, 3, norm) for _ in range(options.num_convs)))
        self.logits = nn.Conv2d(width, 1 + num_planes, 1)
        init_conv(self.decoder)
        init_conv(self.logits, std=0.01)  # undecided at first

    def pixel_logits(self, batch: Batch) -> Tensor:
        """(B, 1 + P, H, W), padding included; resized before the softmax, so that edges fall between cells."""
        maps = self.backbone(self.normalise(batch.images, batch.sizes_hw))
        finest, *coarser = self.neck(maps)[:-1]
        summed = finest
        for level in coarser:
            summed = summed + F.interpolate(level, finest.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.logits(self.decoder(summed)).float()
        return F.interpolate(logits, batch.images.shape[-2:], mode="bilinear", align_corners=False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`class`: mean cross-entropy of the pixels that have a label; `dice`: mean over the planes.

        Raises:
            TypeError: Objects without masks.
        """
        targets, logits = self.targets(batch), self.pixel_logits(batch)  # (B, H, W), (B, 1 + P, H, W)
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        losses = {"class": total / (targets != IGNORED).sum().clamp(min=1)}
        if self.options.dice_weight:
            losses["dice"] = self.options.dice_weight * dice_loss(logits, targets)
        return losses

    def scores(self, batch: Batch) -> list[Tensor]:
        """See `Segmenter.scores`."""
        maps = self.pixel_logits(batch).softmax(dim=1)[:, 1:]
        return [one[:, :height, :width] for one, (height, width) in zip(maps, batch.sizes_hw, strict=True)]


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the share that prediction and truth have in common, 2 |A B| / (|A| + |B|), mean over the planes.

    Each plane is counted over the whole batch; 1 is added above and below, so that a plane that is nowhere and is
    predicted nowhere costs nothing.

    Args:
        logits: (B, 1 + P, H, W), the ground first.
        targets: (B, H, W) int64, 0..P, `IGNORED` where there is no label.
    """
    has_label = (targets != IGNORED)[:, None]  # (B, 1, H, W)
    truth = F.one_hot(targets.clamp(min=0), logits.shape[1]).permute(0, 3, 1, 2)[:, 1:] * has_label
    found = logits.softmax(dim=1)[:, 1:] * has_label
    common, both = ((found * truth).sum((0, 2, 3)), (found + truth).sum((0, 2, 3)))  # (P,)
    return torch.mean(1 - (2 * common + 1) / (both + 1))

"""Faster R-CNN with a feature pyramid (Ren et al. 2015; Lin et al. 2017).

    images (B, 3, H, W) ── Normalise ── Backbone ── FPN ──► p2..p6 (B, C, H/s, W/s)
    p2..p6 ── RPN ──► proposals [(R, 4)]
    p2..p5, proposals ── RoiPool ──► (R, C, 7, 7) ── BoxHead ──► logits (R, K + 1), deltas (R, K, 4)
    training:  assign IoU 0.5, sample 512 ──► cross-entropy + smooth L1
    test:      softmax, decode ──► (box, class) candidates ── NMS ──► detections

Dims: B images, C channels, R RoIs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from scantling.models.assign import AssignConfig, SampleConfig
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.box_heads import BoxHead, BoxHeadConfig, RoiSamples, sample_rois
from scantling.models.layers import RoiPool
from scantling.models.neck import FPN, FPNConfig
from scantling.models.rpn import RPN, RPNConfig
from scantling.models.suppression import SuppressConfig
from scantling.models.two_stage import Detector, Normalise, top_candidates
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class FasterRCNNConfig(BaseModel):
    """All numbers of a Faster R-CNN; defaults are the common R50-FPN settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneConfig = BackboneConfig()
    neck: FPNConfig = FPNConfig()
    rpn: RPNConfig = RPNConfig()
    head: BoxHeadConfig = BoxHeadConfig()
    assign: AssignConfig = AssignConfig()
    sample: SampleConfig = SampleConfig()
    suppression: SuppressConfig = SuppressConfig()
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD


class FasterRCNN(Detector):
    """The detector.

    Args:
        config: All its numbers.
        num_classes: Foreground classes K.
    """

    def __init__(self, config: FasterRCNNConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.suppression = config.suppression
        self.normalise = Normalise(config.pixel_mean, config.pixel_std)
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(self.backbone.channels, self.backbone.strides, config.neck)
        self.rpn = RPN(self.neck.channels, self.neck.strides, config.rpn)
        self.pool = RoiPool(self.backbone.strides, config.head.pool_side, config.head.pool_samples)
        self.head = BoxHead(self.neck.channels, num_classes, config.head)

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> p2..p6."""
        levels: list[Tensor] = self.neck(self.backbone(images))
        return levels

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """RPN and box-head losses of one step."""
        features = self.features(self.normalise(batch.images, batch.sizes_hw))
        output = self.rpn(features)
        proposals = self.rpn.train_proposals(output, batch.sizes_hw)
        return self.rpn.losses(output, batch) | self.roi_losses(features, proposals, batch.instances)

    def candidates(self, batch: Batch) -> list[Instances]:
        """Scored boxes before suppression."""
        features = self.features(self.normalise(batch.images, batch.sizes_hw))
        proposals = self.rpn.test_proposals(self.rpn(features), batch.sizes_hw)
        return self.roi_candidates(features, proposals, batch.sizes_hw)

    def roi_losses(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], truths: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Losses of the box head on sampled proposals [(R_i, 4)] of each image."""
        config = self.config
        per_image = [
            sample_rois(p, t, self.num_classes, config.assign, config.sample)
            for p, t in zip(proposals, truths, strict=True)
        ]
        logits, deltas = self.head(self.pool(features, [s.boxes for s in per_image]))
        losses = self.head.losses(logits, deltas, RoiSamples.cat(per_image))
        return {f"box_head/{name}": value for name, value in losses.items()}

    def roi_candidates(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Candidates of each image for given proposals [(R_i, 4)]."""
        logits, deltas = self.head(self.pool(features, proposals))
        counts = [len(p) for p in proposals]
        probabilities = torch.split(logits.float().softmax(dim=1), counts)
        return [
            top_candidates(self.head.decode(rois, d, size), p, size, self.suppression, self.class_names)
            for rois, d, p, size in zip(
                proposals, torch.split(deltas, counts), probabilities, sizes_hw, strict=True
            )
        ]

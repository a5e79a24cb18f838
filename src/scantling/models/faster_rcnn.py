"""Faster R-CNN with a feature pyramid (Ren et al. 2015; Lin et al. 2017), and Mask R-CNN (He et al. 2017).

    images (B, 3, H, W) ── Normalise ── Backbone ── FPN ──► p2..p6 (B, C, H/s, W/s)
    p2..p6 ── RPN ──► proposals [(R, 4)]
    p2..p5, proposals ── RoiPool ──► (R, C, 7, 7) ── BoxHead ──► logits (R, K + 1), deltas (R, K, 4)
    training:  assign IoU 0.5, sample 512 ──► cross-entropy + smooth L1
    test:      softmax, decode ──► (box, class) candidates ── NMS ──► detections
    masks:     p2..p5, boxes ── MaskHead ──► (R, 28, 28); learned from the positives of the same sample

Mask R-CNN is this class with a mask head (`config.mask`), Mask Scoring R-CNN with a MaskIoU head too
(`config.mask_iou`). Dims: B images, C channels, R RoIs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scantling.models.assign import AssignConfig
from scantling.models.box_heads import BoxHead, BoxHeadConfig, RoiSamples, sample_rois
from scantling.models.contract import CandidateLimits, Encoded
from scantling.models.layers import RoiPool
from scantling.models.mask_heads import MaskHead, MaskHeadConfig, MaskOptions, positive_boxes, soft_masks
from scantling.models.mask_iou import MaskIoUConfig, MaskIoUOptions
from scantling.models.two_stage import BoxHeadOptions, TwoStageConfig, TwoStageDetector, top_candidates
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks


class FasterRCNNConfig(TwoStageConfig):
    """All numbers of a Faster R-CNN; defaults are the common R50-FPN settings.

    Attributes:
        head: The box head.
        assign: Overlaps of its positives and negatives.
        mask: The mask head; None for boxes alone.
        mask_iou: What predicts how well masks fit; None for none.
    """

    head: BoxHeadConfig = BoxHeadConfig()
    assign: AssignConfig = AssignConfig()
    mask: MaskHeadConfig | None = None
    mask_iou: MaskIoUConfig | None = None


class FasterRCNNOptions(BoxHeadOptions):
    """What a recipe may change in a Faster R-CNN."""

    def config(self, *, pretrained: bool) -> FasterRCNNConfig:
        """All numbers."""
        return FasterRCNNConfig(head=self.box_head(), **self.shared(pretrained=pretrained))


class MaskRCNNOptions(FasterRCNNOptions, MaskOptions, MaskIoUOptions):
    """What a recipe may change in a Mask R-CNN."""

    def config(self, *, pretrained: bool) -> FasterRCNNConfig:
        """All numbers; truths claim their best RoI, as published for this method alone."""
        boxes = super().config(pretrained=pretrained)
        claiming = boxes.assign.model_copy(update={"low_quality_iou": boxes.assign.positive_iou})
        own = {
            "mask": self.mask_head(boxes.head),
            "mask_iou": self.mask_iou_head(self.mask_channels, self.fc_channels),
        }
        return boxes.model_copy(update={"assign": claiming, **own})


class FasterRCNN(TwoStageDetector):
    """The detector; `TwoStageDetector` makes the features and the proposals.

    Args:
        config: All its numbers.
        num_classes: Foreground classes K.
    """

    config: FasterRCNNConfig

    def __init__(self, config: FasterRCNNConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        head, strides = config.head, self.backbone.strides
        self.pool = RoiPool(strides, head.pool_side, head.pool_samples, aligned=head.aligned)
        self.head = BoxHead(self.neck.channels, num_classes, head)
        self.has_masks = config.mask is not None
        self.mask_head = (
            None if config.mask is None else MaskHead(self.neck.channels, strides, num_classes, config.mask)
        )
        if config.mask is not None:
            self.rank_by_masks(config.mask_iou, config.mask.pool_side)

    def roi_losses(self, encoded: Encoded, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """Losses of the heads on sampled proposals."""
        config = self.config
        samples = [
            sample_rois(p, t, self.num_classes, config.assign, config.sample)
            for p, t in zip(encoded.proposals, truths, strict=True)
        ]
        logits, deltas = self.head(self.pool(encoded.levels, [s.boxes for s in samples]))
        found = self.head.losses(logits, deltas, RoiSamples.cat(samples))
        losses = {f"box_head/{name}": value for name, value in found.items()}
        if self.mask_head is not None:
            pooled = self.mask_pooled(encoded, positive_boxes(samples))
            drawn = self.mask_head.draw(self.mask_head.features(pooled))
            found = self.mask_head.losses(drawn, samples, truths)
            losses |= {f"mask_head/{name}": value for name, value in found.items()}
            losses |= self.mask_iou_losses([self.mask_head], pooled, [drawn], samples, truths)
        return losses

    def roi_candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Candidates of each image for its proposals."""
        proposals = encoded.proposals
        logits, deltas = self.head(self.pool(encoded.levels, proposals))
        counts = [len(p) for p in proposals]
        scores = torch.split(self.head.class_loss.probabilities(logits), counts)
        parts = zip(proposals, torch.split(deltas, counts), scores, encoded.sizes_hw, strict=True)
        return [
            top_candidates(self.head.decode(rois, d, size), s, size, limits) for rois, d, s, size in parts
        ]

    def mask_pooled(self, encoded: Encoded, boxes: Sequence[Tensor]) -> Tensor:
        """What the mask head reads; see `TwoStageDetector`."""
        if self.mask_head is None:
            return super().mask_pooled(encoded, boxes)
        pooled: Tensor = self.mask_head.pool(encoded.levels, boxes)
        return pooled

    def masks(self, encoded: Encoded, instances: Sequence[Instances]) -> list[RoiMasks]:
        """Soft masks (N_i, 28, 28) for the given boxes of each image."""
        if self.mask_head is None:
            return super().masks(encoded, instances)
        logits = self.mask_head(encoded.levels, [found.boxes for found in instances])
        return soft_masks([self.mask_head], [logits], instances)

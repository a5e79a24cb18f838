"""Hybrid Task Cascade (Chen et al. 2019): boxes and masks refined in turns, each mask head knowing the ones before.

    p2..p6 ── RPN ──► proposals [(R, 4)]
    p2..p6 ── SemanticHead ──► semantic (B, C, H/8, W/8); its labels are trained x 0.2              (may be left out)
    stage s = 0, 1, 2, with pool(x) = RoiPool(p2..p5, x) + RoiPool(semantic, x):
        pool(boxes_s) (R, C, 7, 7) ── BoxHead_s ──► logits (R, K + 1), deltas (R, 4) ── decode ──► boxes_{s+1}
        pool(boxes_{s+1}) (R, C, 14, 14) ── MaskHead_0 ─ 1x1 ─► + ── MaskHead_1 ─ 1x1 ─► + ── .. ── MaskHead_s
            ──► (R, K, 28, 28)
        training: boxes_s and, for the masks, boxes_{s+1} assigned at IoU 0.5 / 0.6 / 0.7; losses x 1 / 0.5 / 0.25
    test: scores = softmax(mean over stages of logits), boxes = boxes_3 ──► candidates ── NMS ──► detections
          masks = mean over stages of sigmoid(MaskHead_s(detections))

A mask is learned on the boxes that its own stage has just refined (interleaved execution). What goes from one mask head
to the next are its features before the resolution is doubled; a loss reaches all heads before (mask information flow).
All three stages' masks are averaged, as in the paper; MMDetection 3.3.0 returns the last one's. Data sets without
labels of pixels get them from the masks; see `context_heads`. Dims: B images, C channels, R RoIs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from scantling.models.box_heads import BoxHead, RoiSamples, sample_rois
from scantling.models.cascade_rcnn import (
    CascadeMaskRCNNOptions,
    CascadeRCNNConfig,
    StageConfig,
    StageOutput,
    mean_candidates,
    refine_samples,
    run_stages,
)
from scantling.models.context_heads import SemanticHead, SemanticHeadConfig, SemanticOptions
from scantling.models.contract import CandidateLimits, Encoded
from scantling.models.layers import RoiPool
from scantling.models.mask_heads import MaskHead, MaskHeadConfig, positive_boxes, soft_masks
from scantling.models.two_stage import TwoStageDetector
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks
from scantling.structures.sample import Batch


class HTCConfig(CascadeRCNNConfig):
    """All numbers of a Hybrid Task Cascade: those of a cascade, and of the semantic branch.

    Attributes:
        mask: Shape of every stage's mask head.
        semantic: The semantic branch; None for none.
    """

    mask: MaskHeadConfig = MaskHeadConfig()
    semantic: SemanticHeadConfig | None = SemanticHeadConfig()


class HTCOptions(CascadeMaskRCNNOptions, SemanticOptions):
    """What a recipe may change in a Hybrid Task Cascade."""

    def config(self, *, pretrained: bool) -> HTCConfig:
        """All numbers."""
        cascade = super().config(pretrained=pretrained)
        semantic = self.semantic_head(self.box_head())
        return HTCConfig.model_validate({**dict(cascade), "semantic": semantic})


class HTC(TwoStageDetector):
    """The detector; `TwoStageDetector` makes the features and the proposals.

    Args:
        config: All its numbers.
        num_classes: Foreground classes K.
    """

    config: HTCConfig
    has_masks = True

    def __init__(self, config: HTCConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        first, strides, channels = config.stages[0].head, self.backbone.strides, self.neck.channels
        self.pool = RoiPool(strides, first.pool_side, first.pool_samples, aligned=first.aligned)
        self.stages = nn.ModuleList(BoxHead(channels, num_classes, s.head) for s in config.stages)
        self.mask_stages = nn.ModuleList(
            MaskHead(channels, strides, num_classes, config.mask, informed=number > 0)
            for number in range(len(config.stages))
        )
        self.semantic_head = (
            None
            if config.semantic is None
            else SemanticHead(channels, self.neck.strides, num_classes, config.semantic)
        )
        self.rank_by_masks(config.mask_iou, config.mask.pool_side)

    @property
    def heads(self) -> list[BoxHead]:
        """The box heads in order."""
        return [head for head in self.stages if isinstance(head, BoxHead)]

    @property
    def mask_heads(self) -> list[MaskHead]:
        """The mask heads in order."""
        return [head for head in self.mask_stages if isinstance(head, MaskHead)]

    def encode(self, batch: Batch) -> Encoded:
        """Levels, proposals, and the features of the semantic branch."""
        encoded = super().encode(batch)
        return replace(encoded, semantic=self.semantic_features(encoded))

    def semantic_features(self, encoded: Encoded) -> Tensor | None:
        """(B, C, H/8, W/8) of the semantic branch, computed unless they are there; None where there is no branch."""
        if self.semantic_head is None or encoded.semantic is not None:
            return encoded.semantic
        features: Tensor = self.semantic_head(encoded.levels).features
        return features

    def pooled(
        self, pool: RoiPool, levels: Sequence[Tensor], semantic: Tensor | None, rois: Sequence[Tensor]
    ) -> Tensor:
        """What a head reads: the RoIs pooled from the pyramid, plus from the semantic features if there are any.

        Args:
            pool: That of the box heads or that of the mask heads.
            levels: p2..p6, (B, C, H/s, W/s).
            semantic: (B, C, H/8, W/8), or None.
            rois: For each image (R_i, 4) xyxy.

        Returns:
            (R, C, S, S), images one after the other.
        """
        pooled: Tensor = pool(levels, rois)
        if self.semantic_head is None or semantic is None:
            return pooled
        return pooled + self.semantic_head.of_rois(semantic, rois, pool.side)

    def roi_losses(self, encoded: Encoded, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """Losses of the semantic branch and of all stages, starting from the proposals."""
        losses: dict[str, Tensor] = {}
        rois, levels, semantic = list(encoded.proposals), encoded.levels, None
        if self.semantic_head is not None:
            semantic, cells = self.semantic_head(levels)
            found = self.semantic_head.losses(cells, truths)
            losses |= {f"semantic_head/{name}": value for name, value in found.items()}
        for number, (head, stage) in enumerate(zip(self.heads, self.config.stages, strict=True)):
            samples = self._sampled(rois, truths, stage)
            boxes = [s.boxes for s in samples]
            logits, deltas = head(self.pooled(self.pool, levels, semantic, boxes))
            found = head.losses(logits, deltas, RoiSamples.cat(samples))
            rois = refine_samples(head, samples, logits, deltas, [t.size_hw for t in truths])
            refined = self._sampled(rois, truths, stage)  # interleaved: masks learn on what the boxes became
            pooled = self.pooled(self.mask_heads[0].pool, levels, semantic, positive_boxes(refined))
            drawing = self.mask_heads[number]
            features = informed_features(self.mask_heads[: number + 1], pooled)
            drawn = drawing.draw(features[-1])
            found |= drawing.losses(drawn, refined, truths)
            losses |= {f"stage{number}/{name}": stage.weight * value for name, value in found.items()}
        if self.mask_iou_head is None:
            return losses
        before = [m.draw(each) for m, each in zip(self.mask_heads[:-1], features[:-1], strict=True)]
        return losses | self.mask_iou_losses(self.mask_heads, pooled, [*before, drawn], refined, truths)

    def _sampled(
        self, rois: Sequence[Tensor], truths: Sequence[Instances], stage: StageConfig
    ) -> list[RoiSamples]:
        return [
            sample_rois(r, t, self.num_classes, stage.assign, self.config.sample)
            for r, t in zip(rois, truths, strict=True)
        ]

    def run_stages(self, encoded: Encoded) -> list[StageOutput]:
        """Test-time pass of the boxes through all stages; see `cascade_rcnn.run_stages`."""
        semantic = self.semantic_features(encoded)
        return run_stages(
            self.heads, lambda rois: self.pooled(self.pool, encoded.levels, semantic, rois), encoded
        )

    def roi_candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Candidates of each image for its proposals."""
        return mean_candidates(self.heads[-1], self.run_stages(encoded), encoded.sizes_hw, limits)

    def mask_pooled(self, encoded: Encoded, boxes: Sequence[Tensor]) -> Tensor:
        """What every mask head reads; see `TwoStageDetector`."""
        semantic = self.semantic_features(encoded)
        return self.pooled(self.mask_heads[0].pool, encoded.levels, semantic, boxes)

    def mask_logits(self, encoded: Encoded, boxes: Sequence[Tensor]) -> list[Tensor]:
        """What each stage draws, (R, K or 1, M, M), into the boxes [(R_i, 4)] of each image."""
        features = informed_features(self.mask_heads, self.mask_pooled(encoded, boxes))
        return [head.draw(each) for head, each in zip(self.mask_heads, features, strict=True)]

    def masks(self, encoded: Encoded, instances: Sequence[Instances]) -> list[RoiMasks]:
        """Soft masks (N_i, 28, 28) for the given boxes of each image: the mean of all stages'."""
        drawn = self.mask_logits(encoded, [found.boxes for found in instances])
        return soft_masks(self.mask_heads, drawn, instances)


def informed_features(heads: Sequence[MaskHead], pooled: Tensor) -> list[Tensor]:
    """Mask information flow: what each head makes of the same pooled RoIs and of the features of the head before.

    Args:
        heads: The stages up to the one that is wanted, in order.
        pooled: (R, C, M / 2, M / 2).

    Returns:
        For each head its features (R, C', M / 2, M / 2).
    """
    features: list[Tensor] = []
    for head in heads:
        features.append(head.features(pooled, features[-1] if features else None))
    return features

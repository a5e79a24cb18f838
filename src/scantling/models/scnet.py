"""SCNet (Vu et al. 2021): a cascade of boxes, and one mask branch that learns on boxes like those it will meet.

    p2..p6 ── RPN ──► proposals [(R, 4)]
    p2..p6 ── SemanticHead ──► semantic (B, C, H/8, W/8); its labels are trained x 0.2                (may be left out)
    p6 ───── ContextHead ───► context (B, C); the classes an image holds are trained x 3              (may be left out)
    with pool(x) = RoiPool(p2..p5, x) + RoiPool(semantic, x) + context of x's image:
    stage s = 0, 1, 2:
        pool(boxes_s) (R, C, 7, 7) ── fc, fc ──► hidden (R, F) ──► logits (R, L), deltas (R, 4)
            ── decode ──► boxes_{s+1}
        training: assign at IoU 0.5 / 0.6 / 0.7; losses x 1 / 0.5 / 0.25
    the last stage's boxes, and what its box head makes of them:
        hidden (R, F) ── fc ──► (R, C, 7, 7) ── bilinear x 2 ──► relayed (R, C, 14, 14)               (may be left out)
        pool(boxes) (R, C, 14, 14) + relayed ── MaskHead: 6 x (two 3x3 convs with a shortcut) ──► (R, K, 28, 28)
        training: the positives at IoU 0.7, the boxes that stage 2 reads; loss x 1.75, as much as all stages together
    test: scores = mean over stages of logits, boxes = boxes_3 ──► candidates ── NMS ──► detections
          masks = sigmoid(MaskHead(detections)); the last box head reads the detections again for what it relays

A mask head in every stage, as in HTC, learns mostly on boxes worse than those it draws in at test time; here it learns
on those of the last stage alone. As in MMDetection, where the paper's authors have published it, these are the boxes
that the last stage reads, not those it makes of them: its box head has read them, and what it made of them can be
relayed. The labels of the semantic branch come from the masks; see `context_heads`. Team RalleyTheValley
(DeepSportRadar, 2021) trained it with deformable convolution and Seesaw loss: `zoo.MODELS["scnet_r50_dcn_seesaw"]`.
Dims: B images, C channels, R RoIs, K classes, L logits, F features of a box head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scantling.models.box_heads import BoxHead, RoiSamples, sample_rois
from scantling.models.cascade_rcnn import (
    CascadeMaskRCNNOptions,
    CascadeRCNNConfig,
    StageOutput,
    mean_candidates,
    refine_samples,
    run_stages,
)
from scantling.models.context_heads import (
    ContextHead,
    ContextHeadConfig,
    SemanticHead,
    SemanticHeadConfig,
    SemanticOptions,
    context_of_rois,
)
from scantling.models.contract import CandidateLimits, Encoded
from scantling.models.layers import RoiPool, init_conv
from scantling.models.mask_heads import MaskHead, MaskHeadConfig, positive_boxes, soft_masks
from scantling.models.two_stage import TwoStageDetector
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks
from scantling.structures.sample import Batch


class SCNetConfig(CascadeRCNNConfig):
    """All numbers of an SCNet: those of a cascade, and of what surrounds it.

    Attributes:
        mask: Shape of the one mask head.
        semantic: The semantic branch; None for none.
        context: The global context head; None for none.
        relay: Whether the mask head reads what the last box head made of its RoIs.
    """

    mask: MaskHeadConfig = MaskHeadConfig(num_convs=12, residual=True)
    semantic: SemanticHeadConfig | None = SemanticHeadConfig(residual=True)
    context: ContextHeadConfig | None = ContextHeadConfig()
    relay: bool = True


class SCNetOptions(CascadeMaskRCNNOptions, SemanticOptions):
    """What a recipe may change in an SCNet.

    Attributes:
        context: Whether there is a global context head.
        context_convs: 3x3 convolutions of it.
        context_weight: Factor of its loss.
        relay: Whether the mask head reads what the last box head made of its RoIs.
        residual: Whether each two convolutions of the mask, semantic and context heads have a shortcut.
    """

    mask_convs: Annotated[int, Field(ge=0)] = 12
    context: bool = True
    context_convs: Annotated[int, Field(ge=0)] = 4
    context_weight: Annotated[float, Field(ge=0)] = 3.0
    relay: bool = True
    residual: bool = True

    def config(self, *, pretrained: bool) -> SCNetConfig:
        """All numbers."""
        cascade = super().config(pretrained=pretrained)
        head = self.box_head()
        context = ContextHeadConfig(
            num_convs=self.context_convs, residual=self.residual, weight=self.context_weight
        )
        own = {
            "mask": self.mask_head(head).model_copy(update={"residual": self.residual}),
            "semantic": self.semantic_head(head, residual=self.residual),
            "context": context if self.context else None,
            "relay": self.relay,
        }
        return SCNetConfig.model_validate({**dict(cascade), **own})


class FeatureRelay(nn.Module):
    """Turns what a box head made of a RoI into a map for the mask head.

    Args:
        in_features: Width F of the box head's features.
        channels: Width C of the map.
        side: Cells per side S that the box head read; the map has twice as many.

    Source:
        Vu et al. 2021, section 3.3: a fully connected layer and bilinear interpolation.
    """

    def __init__(self, in_features: int, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        self.fc = nn.Linear(in_features, channels * side**2)
        init_conv(self)

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, F) -> (R, C, 2 S, 2 S); R may be 0."""
        cells = self.fc(hidden).view(-1, self.channels, self.side, self.side)
        return F.interpolate(cells, scale_factor=2, mode="bilinear", align_corners=True)


class SCNet(TwoStageDetector):
    """The detector; `TwoStageDetector` makes the features and the proposals.

    Args:
        config: All its numbers.
        num_classes: Foreground classes K.
    """

    config: SCNetConfig
    has_masks = True

    def __init__(self, config: SCNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        first, strides, channels = config.stages[0].head, self.backbone.strides, self.neck.channels
        self.pool = RoiPool(strides, first.pool_side, first.pool_samples, aligned=first.aligned)
        self.stages = nn.ModuleList(BoxHead(channels, num_classes, s.head) for s in config.stages)
        self.mask_head = MaskHead(channels, strides, num_classes, config.mask)
        last = config.stages[-1].head
        self.relay = FeatureRelay(last.fc_channels, channels, last.pool_side) if config.relay else None
        self.semantic_head = (
            None
            if config.semantic is None
            else SemanticHead(channels, self.neck.strides, num_classes, config.semantic)
        )
        self.context_head = (
            None if config.context is None else ContextHead(channels, num_classes, config.context)
        )
        self.rank_by_masks(config.mask_iou, config.mask.pool_side)

    @property
    def heads(self) -> list[BoxHead]:
        """The box heads in order."""
        return [head for head in self.stages if isinstance(head, BoxHead)]

    def encode(self, batch: Batch) -> Encoded:
        """Levels, proposals, the features of the semantic branch, and the context."""
        return self.surveyed(super().encode(batch))

    def surveyed(self, encoded: Encoded) -> Encoded:
        """The same with semantic features (B, C, H/8, W/8) and context (B, C), computed where they are missing."""
        if self.semantic_head is not None and encoded.semantic is None:
            encoded = replace(encoded, semantic=self.semantic_head(encoded.levels).features)
        if self.context_head is not None and encoded.context is None:
            found = self.context_head(encoded.levels[-1], self.neck.strides[-1], encoded.sizes_hw)
            encoded = replace(encoded, context=found.features)
        return encoded

    def pooled(self, pool: RoiPool, encoded: Encoded, rois: Sequence[Tensor]) -> Tensor:
        """What a head reads: the RoIs pooled from the pyramid, their semantic features, their image's context.

        Args:
            pool: That of the box heads or that of the mask head.
            encoded: Surveyed.
            rois: For each image (R_i, 4) xyxy.

        Returns:
            (R, C, S, S), images one after the other.
        """
        pooled: Tensor = pool(encoded.levels, rois)
        if self.semantic_head is not None and encoded.semantic is not None:
            pooled = pooled + self.semantic_head.of_rois(encoded.semantic, rois, pool.side)
        if encoded.context is not None:
            pooled = pooled + context_of_rois(encoded.context, rois)
        return pooled

    def roi_losses(self, encoded: Encoded, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """Losses of the branches for the whole image, of all stages from the proposals on, and of the mask head."""
        losses: dict[str, Tensor] = {}
        if self.semantic_head is not None:
            semantic, cells = self.semantic_head(encoded.levels)
            found = self.semantic_head.losses(cells, truths)
            losses |= {f"semantic_head/{name}": value for name, value in found.items()}
            encoded = replace(encoded, semantic=semantic)
        if self.context_head is not None:
            context, present = self.context_head(encoded.levels[-1], self.neck.strides[-1], encoded.sizes_hw)
            found = self.context_head.losses(present, truths)
            losses |= {f"context_head/{name}": value for name, value in found.items()}
            encoded = replace(encoded, context=context)
        rois = list(encoded.proposals)
        for number, (head, stage) in enumerate(zip(self.heads, self.config.stages, strict=True)):
            samples = [
                sample_rois(r, t, self.num_classes, stage.assign, self.config.sample)
                for r, t in zip(rois, truths, strict=True)
            ]
            hidden = head.trunk(self.pooled(self.pool, encoded, [s.boxes for s in samples]))  # (R, F)
            logits, deltas = head.predict(hidden)
            found = head.losses(logits, deltas, RoiSamples.cat(samples))
            losses |= {f"stage{number}/{name}": stage.weight * value for name, value in found.items()}
            rois = refine_samples(head, samples, logits, deltas, [t.size_hw for t in truths])
        positive = torch.cat([s.matched for s in samples]) >= 0
        read = self.relayed(encoded, positive_boxes(samples), hidden[positive])
        drawn = self.mask_head.draw(self.mask_head.features(read))
        found = self.mask_head.losses(drawn, samples, truths)
        weight = sum(stage.weight for stage in self.config.stages)
        losses |= {f"mask_head/{name}": weight * value for name, value in found.items()}
        return losses | self.mask_iou_losses([self.mask_head], read, [drawn], samples, truths)

    def relayed(self, encoded: Encoded, boxes: Sequence[Tensor], hidden: Tensor) -> Tensor:
        """What the mask head reads, (R, C, S, S), images one after the other.

        Args:
            encoded: Surveyed.
            boxes: For each image (R_i, 4) xyxy.
            hidden: (R, F), what the last box head made of them.
        """
        pooled = self.pooled(self.mask_head.pool, encoded, boxes)
        return pooled if self.relay is None else pooled + self.relay(hidden)

    def mask_pooled(self, encoded: Encoded, boxes: Sequence[Tensor]) -> Tensor:
        """The same for given boxes, which the last box head reads first; see `TwoStageDetector`."""
        surveyed = self.surveyed(encoded)
        return self.relayed(surveyed, boxes, self.heads[-1].trunk(self.pooled(self.pool, surveyed, boxes)))

    def run_stages(self, encoded: Encoded) -> list[StageOutput]:
        """Test-time pass of the boxes through all stages; see `cascade_rcnn.run_stages`."""
        surveyed = self.surveyed(encoded)
        return run_stages(self.heads, lambda rois: self.pooled(self.pool, surveyed, rois), surveyed)

    def roi_candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Candidates of each image for its proposals."""
        return mean_candidates(self.heads[-1], self.run_stages(encoded), encoded.sizes_hw, limits)

    def mask_logits(self, encoded: Encoded, boxes: Sequence[Tensor]) -> Tensor:
        """What the mask head draws, (R, K or 1, M, M), into the boxes [(R_i, 4)] of each image."""
        return self.mask_head.draw(self.mask_head.features(self.mask_pooled(encoded, boxes)))

    def masks(self, encoded: Encoded, instances: Sequence[Instances]) -> list[RoiMasks]:
        """Soft masks (N_i, 28, 28) for the given boxes of each image."""
        drawn = self.mask_logits(encoded, [found.boxes for found in instances])
        return soft_masks([self.mask_head], [drawn], instances)

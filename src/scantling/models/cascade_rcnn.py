"""Cascade R-CNN (Cai & Vasconcelos 2018): box heads in a row, each trained on the boxes of the one before.

    p2..p6 ── RPN ──► proposals [(R, 4)]
    stage s = 0, 1, 2:
        boxes_s ── RoiPool ──► (R, C, 7, 7) ── BoxHead_s ──► logits (R, K + 1), deltas (R, 4)
        training: assign at IoU 0.5 / 0.6 / 0.7, sample, losses x 1 / 0.5 / 0.25
        boxes_{s+1} = decode(boxes_s, deltas)     (ground-truth boxes added for training are dropped first)
        boxes_s (positives) ── MaskHead_s ──► (R, 28, 28)                          (Cascade Mask R-CNN only)
    test: scores = softmax(mean over stages of logits), boxes = boxes_3 ──► candidates ── NMS ──► detections
          masks = mean over stages of sigmoid(MaskHead_s(boxes))

The paper leaves open how the stages' classifiers are averaged at test time; as in MMDetection (whose weights and
results we reproduce) it is their logits that are. Cascade Mask R-CNN is this class with mask heads (`config.mask`).

The DelftBikes detector (CS21, `papers`: Cascade R-50 + FPN with deformable convolution and GroupNorm) is this class
with the options of `zoo.MODELS["cascade_rcnn_r50_dcn_gn"]`. Dims: B images, C channels, R RoIs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.assign import AssignConfig
from scantling.models.box_heads import BoxHead, BoxHeadConfig, RoiSamples, sample_rois
from scantling.models.contract import CandidateLimits, Encoded
from scantling.models.layers import RoiPool
from scantling.models.mask_heads import MaskHead, MaskHeadConfig, MaskOptions, positive_boxes, soft_masks
from scantling.models.mask_iou import MaskIoUConfig, MaskIoUOptions
from scantling.models.two_stage import BoxHeadOptions, TwoStageConfig, TwoStageDetector, top_candidates
from scantling.settings.fields import Fraction
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks


class StageConfig(BaseModel):
    """One stage of the cascade.

    Attributes:
        head: The box head.
        assign: Overlaps of its positives and negatives.
        weight: Factor of its losses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: BoxHeadConfig
    assign: AssignConfig
    weight: Annotated[float, Field(ge=0)] = 1.0


def published_stages(
    head: BoxHeadConfig, ious: tuple[float, float, float] = (0.5, 0.6, 0.7)
) -> tuple[StageConfig, ...]:
    """The three stages of the paper: IoU 0.5, 0.6, 0.7; weights 1, 0.5, 0.25; ever finer deltas.

    Args:
        head: Shape of all three heads; its `stds` are replaced.
        ious: Overlap from which on a RoI is positive, of each stage.
    """
    scales = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
    return tuple(
        StageConfig(
            head=head.model_copy(update={"stds": stds}),
            assign=AssignConfig(positive_iou=iou, negative_iou=iou),
            weight=weight,
        )
        for stds, iou, weight in zip(scales, ious, (1.0, 0.5, 0.25), strict=True)
    )


class CascadeRCNNConfig(TwoStageConfig):
    """All numbers of a Cascade R-CNN; defaults are the paper's with R50-FPN.

    Attributes:
        stages: The box heads in order.
        mask: Shape of every stage's mask head; None for boxes alone.
        mask_iou: What predicts how well masks fit; None for none.
    """

    stages: tuple[StageConfig, ...] = published_stages(BoxHeadConfig(class_agnostic=True))
    mask: MaskHeadConfig | None = None
    mask_iou: MaskIoUConfig | None = None


class CascadeRCNNOptions(BoxHeadOptions):
    """What a recipe may change in a Cascade R-CNN; defaults where MMDetection's differ from those of Faster R-CNN.

    Attributes:
        stage_ious: Overlap with an object from which on a RoI is positive, of each stage.
    """

    stage_ious: tuple[Fraction, Fraction, Fraction] = (0.5, 0.6, 0.7)
    class_agnostic: bool = True
    smooth_l1_beta: Annotated[float, Field(ge=0)] = 1.0
    rpn_beta: Annotated[float, Field(ge=0)] = 1 / 9
    num_train_proposals: Annotated[int, Field(ge=1)] = 2000

    def config(self, *, pretrained: bool) -> CascadeRCNNConfig:
        """All numbers."""
        stages = published_stages(self.box_head(), self.stage_ious)
        return CascadeRCNNConfig(stages=stages, **self.shared(pretrained=pretrained))


class CascadeMaskRCNNOptions(CascadeRCNNOptions, MaskOptions, MaskIoUOptions):
    """What a recipe may change in a Cascade Mask R-CNN."""

    def config(self, *, pretrained: bool) -> CascadeRCNNConfig:
        """All numbers."""
        boxes = super().config(pretrained=pretrained)
        own = {
            "mask": self.mask_head(self.box_head()),
            "mask_iou": self.mask_iou_head(self.mask_channels, self.fc_channels),
        }
        return boxes.model_copy(update=own)


class CascadeRCNN(TwoStageDetector):
    """The detector; `TwoStageDetector` makes the features and the proposals.

    Args:
        config: All its numbers.
        num_classes: Foreground classes K.
    """

    config: CascadeRCNNConfig

    def __init__(self, config: CascadeRCNNConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        first, strides = config.stages[0].head, self.backbone.strides
        self.pool = RoiPool(strides, first.pool_side, first.pool_samples, aligned=first.aligned)
        self.stages = nn.ModuleList(BoxHead(self.neck.channels, num_classes, s.head) for s in config.stages)
        self.has_masks = config.mask is not None
        self.mask_stages = nn.ModuleList(
            MaskHead(self.neck.channels, strides, num_classes, config.mask)
            for _ in config.stages
            if config.mask is not None
        )
        if config.mask is not None:
            self.rank_by_masks(config.mask_iou, config.mask.pool_side)

    @property
    def heads(self) -> list[BoxHead]:
        """The box heads in order."""
        return [head for head in self.stages if isinstance(head, BoxHead)]

    @property
    def mask_heads(self) -> list[MaskHead]:
        """The mask heads in order; none for boxes alone."""
        return [head for head in self.mask_stages if isinstance(head, MaskHead)]

    def roi_losses(self, encoded: Encoded, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """Losses of all stages, starting from the proposals."""
        losses: dict[str, Tensor] = {}
        rois, levels = list(encoded.proposals), encoded.levels
        for number, (head, stage) in enumerate(zip(self.heads, self.config.stages, strict=True)):
            samples = [
                sample_rois(r, t, self.num_classes, stage.assign, self.config.sample)
                for r, t in zip(rois, truths, strict=True)
            ]
            logits, deltas = head(self.pool(levels, [s.boxes for s in samples]))
            found = head.losses(logits, deltas, RoiSamples.cat(samples))
            if self.has_masks:
                pooled = self.mask_pooled(encoded, positive_boxes(samples))
                drawn = self.mask_heads[number].draw(self.mask_heads[number].features(pooled))
                found |= self.mask_heads[number].losses(drawn, samples, truths)
            losses |= {f"stage{number}/{name}": stage.weight * value for name, value in found.items()}
            rois = refine_samples(head, samples, logits, deltas, [t.size_hw for t in truths])
        if self.mask_iou_head is not None:
            all_drawn = [head.draw(head.features(pooled)) for head in self.mask_heads[:-1]]
            losses |= self.mask_iou_losses(self.mask_heads, pooled, [*all_drawn, drawn], samples, truths)
        return losses

    def run_stages(self, encoded: Encoded) -> list[StageOutput]:
        """Test-time pass through all stages; see `run_stages`."""
        return run_stages(self.heads, lambda rois: self.pool(encoded.levels, rois), encoded)

    def roi_candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Candidates of each image for its proposals."""
        return mean_candidates(self.heads[-1], self.run_stages(encoded), encoded.sizes_hw, limits)

    def mask_pooled(self, encoded: Encoded, boxes: Sequence[Tensor]) -> Tensor:
        """What every mask head reads; see `TwoStageDetector`."""
        if not self.has_masks:
            return super().mask_pooled(encoded, boxes)
        pooled: Tensor = self.mask_heads[0].pool(encoded.levels, boxes)
        return pooled

    def masks(self, encoded: Encoded, instances: Sequence[Instances]) -> list[RoiMasks]:
        """Soft masks (N_i, 28, 28) for the given boxes of each image: the mean of all stages'."""
        if not self.has_masks:
            return super().masks(encoded, instances)
        boxes = [found.boxes for found in instances]
        return soft_masks(
            self.mask_heads, (head(encoded.levels, boxes) for head in self.mask_heads), instances
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """One stage's input and predictions, per image.

    Attributes:
        rois: (R_i, 4) boxes the stage read.
        logits: (R_i, L), L being the class loss's.
        deltas: (R_i, 4) or (R_i, K, 4).
    """

    rois: Sequence[Tensor]
    logits: Sequence[Tensor]
    deltas: Sequence[Tensor]


def run_stages(
    heads: Sequence[BoxHead], pool: Callable[[Sequence[Tensor]], Tensor], encoded: Encoded
) -> list[StageOutput]:
    """Test-time pass through all stages; each stage reads the boxes the one before decoded.

    Args:
        heads: The stages in order.
        pool: RoIs [(R_i, 4)] of each image -> what a head reads, (R, C, S, S), images one after the other.
        encoded: Proposals, sizes of the images.

    Returns:
        What each stage read and predicted.
    """
    rois = list(encoded.proposals)
    counts = [len(r) for r in rois]
    outputs: list[StageOutput] = []
    for number, head in enumerate(heads):
        if number:
            before = outputs[-1]
            parts = zip(rois, before.logits, before.deltas, encoded.sizes_hw, strict=True)
            rois = [decode_best(heads[number - 1], *part) for part in parts]
        logits, deltas = head(pool(rois))
        outputs.append(
            StageOutput(rois=rois, logits=torch.split(logits, counts), deltas=torch.split(deltas, counts))
        )
    return outputs


def mean_candidates(
    head: BoxHead,
    outputs: Sequence[StageOutput],
    sizes_hw: Sequence[tuple[int, int]],
    limits: CandidateLimits,
) -> list[Instances]:
    """Candidates of each image: the last stage's boxes, scored by the mean of all stages' logits.

    Args:
        head: The last stage.
        outputs: Of all stages.
        sizes_hw: Size of each image.
        limits: Which are handed on.
    """
    last, found = outputs[-1], []
    for image, size_hw in enumerate(sizes_hw):
        mean_logits = torch.stack([o.logits[image].float() for o in outputs]).mean(dim=0)
        boxes = head.decode(last.rois[image], last.deltas[image], size_hw)
        found.append(top_candidates(boxes, head.class_loss.probabilities(mean_logits), size_hw, limits))
    return found


def decode_best(
    head: BoxHead, rois: Tensor, logits: Tensor, deltas: Tensor, size_hw: tuple[int, int]
) -> Tensor:
    """One box per RoI: the class-agnostic one, or that of the likeliest foreground class.

    Args:
        head: The head that made the predictions.
        rois: (R, 4) xyxy.
        logits: (R, L).
        deltas: (R, 4) or (R, K, 4).
        size_hw: The image's size; boxes are clipped to it.

    Returns:
        (R, 4) xyxy.
    """
    if deltas.dim() == 3:
        best = _likeliest(head, logits)
        deltas = deltas[torch.arange(len(best), device=best.device), best]
    return head.decode(rois, deltas, size_hw)


def _likeliest(head: BoxHead, logits: Tensor) -> Tensor:
    """(R,) foreground class with the highest of the logits (R, L)."""
    return logits[:, : head.num_classes].argmax(dim=1)


@torch.no_grad()
def refine_samples(
    head: BoxHead,
    samples: Sequence[RoiSamples],
    logits: Tensor,
    deltas: Tensor,
    sizes_hw: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Boxes of the next stage in training: the decoded samples without the added ground truth.

    A class-specific head decodes a positive RoI with its true class, a negative one with its likeliest.

    Args:
        head: The stage that predicted.
        samples: What it read, per image.
        logits: (R, L), images one after the other.
        deltas: (R, 4) or (R, K, 4).
        sizes_hw: Size of each image.

    Returns:
        Per image (R_i', 4) xyxy, detached.
    """
    if deltas.dim() == 3:
        labels = torch.cat([part.labels for part in samples])
        chosen = torch.where(labels == head.num_classes, _likeliest(head, logits), labels)
        deltas = deltas[torch.arange(len(chosen), device=chosen.device), chosen]
    refined = []
    of_images = torch.split(deltas, [len(part.boxes) for part in samples])
    for part, own_deltas, size in zip(samples, of_images, sizes_hw, strict=True):
        refined.append(head.decode(part.boxes, own_deltas, size)[~part.is_truth])
    return refined

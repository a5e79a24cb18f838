"""The contract of every detector, and what two-stage detectors share up to their proposals.

    losses(batch)     -> {name: scalar}     every entry is added to the training loss
    candidates(batch) -> [Instances]        scored boxes before suppression (what test-time augmentation pools)
    predict(batch)    -> [Instances]        candidates after suppression

    Batch (uint8, padded) ── Normalise ── Backbone ── FPN ──► features p2..p6 (B, C, H/s, W/s)
    p2..p6 ── RPN ──► proposals [(R, 4)]
    p2..p6, proposals ──► roi_losses / roi_candidates, which each method has for itself

Boxes are absolute xyxy in the frame of the batch's images. K foreground classes are 0..K-1; K is background.
Dims: B images, C channels, R RoIs, K classes, N boxes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.errors import ConfigError
from scantling.models.assign import SampleConfig
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.neck import FPN, FPNConfig
from scantling.models.rpn import RPN, RPNConfig
from scantling.ops.nms import suppress
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch

Fraction = Annotated[float, Field(ge=0, le=1)]
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SuppressConfig(BaseModel):
    """How scored candidates become detections.

    Attributes:
        method: `hard` NMS, or soft-NMS with `soft_linear` or `soft_gaussian` decay (Bodla et al. 2017).
        iou_threshold: One overlap for all categories, or a mapping from category name to overlap, in which
            `default` serves the categories that are not named.
        sigma: Width of the gaussian decay.
        score_threshold: Candidates at or below this score are not considered.
        min_score: Soft-NMS drops boxes whose decayed score falls below this.
        max_per_image: Detections kept per image, best first.
        max_candidates: Candidates kept per image (and scale) before suppression, best first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    iou_threshold: Fraction | dict[str, Fraction] = 0.5
    sigma: Annotated[float, Field(gt=0)] = 0.5
    score_threshold: Fraction = 0.05
    min_score: Fraction = 1e-3
    max_per_image: Annotated[int, Field(ge=1)] = 100
    max_candidates: Annotated[int, Field(ge=1)] = 1000

    def thresholds(self, class_names: Sequence[str]) -> float | Tensor:
        """Overlap threshold as `ops.nms.suppress` takes it.

        Args:
            class_names: Category names in label order.

        Returns:
            The one threshold, or a float tensor (K,) in label order.

        Raises:
            ConfigError: A named category does not exist, or one is missing and there is no `default`.
        """
        if not isinstance(self.iou_threshold, dict):
            return self.iou_threshold
        named = dict(self.iou_threshold)
        default = named.pop("default", None)
        unknown = sorted(set(named) - set(class_names))
        missing = sorted(set(class_names) - set(named)) if default is None else []
        if unknown or missing:
            raise ConfigError(
                f"iou_threshold: unknown categories {unknown}, categories without a value {missing}",
                hint=f"The categories are {list(class_names)}; add `default` for those not named.",
            )
        return torch.tensor([named.get(name, default) for name in class_names], dtype=torch.float32)


class Detector(nn.Module, ABC):
    """What training, prediction and combination rely on; see the module's head.

    Attributes:
        num_classes: Number of foreground classes K.
        suppression: Settings of `predict`'s last step.
        class_names: Category names in label order; needed only for per-category thresholds.
    """

    num_classes: int
    suppression: SuppressConfig
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of one training step; their sum is what is minimised."""

    @abstractmethod
    def candidates(self, batch: Batch) -> list[Instances]:
        """Scored boxes of each image before suppression, best first, in the batch's frame."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that DistributedDataParallel sees them."""
        return self.losses(batch)

    def predict(self, batch: Batch) -> list[Instances]:
        """Detections of each image, best first, in the batch's frame."""
        return [
            suppress_instances(found, self.suppression, self.class_names) for found in self.candidates(batch)
        ]


def suppress_instances(found: Instances, config: SuppressConfig, class_names: Sequence[str]) -> Instances:
    """Remove or down-weight detections that overlap a better one of the same category.

    Args:
        found: Scored instances of one image; may be empty.
        config: Method and thresholds.
        class_names: Category names in label order (used by per-category thresholds only).

    Returns:
        At most `max_per_image` instances, best first, with their (decayed) scores.
    """
    keep, scores = suppress(
        found.boxes,
        scores_of(found),
        found.labels,
        method=config.method,
        iou_threshold=config.thresholds(class_names),
        sigma=config.sigma,
        min_score=config.min_score,
        max_per_image=config.max_per_image,
    )
    return found[keep].replace(scores=scores)


def scores_of(found: Instances) -> Tensor:
    """Scores (N,) of predictions; refuses ground truth, which has none."""
    if found.scores is None:
        raise TypeError("expected scored predictions, found ground truth (scores is None)")
    return found.scores


class Normalise(nn.Module):
    """uint8 or float images in 0..255 -> zero mean, unit variance; padding becomes exactly 0.

    Args:
        mean: Per RGB channel, in 0..255.
        std: Per RGB channel, in 0..255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes_hw: Sequence[tuple[int, int]]) -> Tensor:
        """Normalise padded images (B, 3, H, W) whose unpadded sizes are `sizes_hw`."""
        normalised = (images.to(self.mean.dtype) - self.mean) / self.std
        for image, (height, width) in zip(normalised, sizes_hw, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return normalised


class TwoStageConfig(BaseModel):
    """The settings all two-stage detectors have; a method's config adds those of its heads.

    Attributes:
        backbone: Network that makes the features.
        neck: The pyramid.
        rpn: The proposals.
        sample: RoIs per image that enter a head's loss.
        suppression: From candidates to detections.
        pixel_mean: Subtracted from RGB values in 0..255.
        pixel_std: What they are then divided by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneConfig = BackboneConfig()
    neck: FPNConfig = FPNConfig()
    rpn: RPNConfig = RPNConfig()
    sample: SampleConfig = SampleConfig()
    suppression: SuppressConfig = SuppressConfig()
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD


class TwoStageDetector(Detector):
    """Images to features to proposals; what becomes of the proposals is the method's.

    Args:
        config: All numbers.
        num_classes: Foreground classes K.
    """

    config: TwoStageConfig

    def __init__(self, config: TwoStageConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.suppression = config.suppression
        self.normalise = Normalise(config.pixel_mean, config.pixel_std)
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(self.backbone.channels, self.backbone.strides, config.neck)
        self.rpn = RPN(self.neck.channels, self.neck.strides, config.rpn)

    @abstractmethod
    def roi_losses(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], truths: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Losses of the heads, given p2..p6 and the proposals [(R_i, 4)] of each image."""

    @abstractmethod
    def roi_candidates(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Candidates of each image, given p2..p6 and its proposals [(R_i, 4)]."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of the RPN and of the heads."""
        features = self.features(self.normalise(batch.images, batch.sizes_hw))
        output = self.rpn(features)
        proposals = self.rpn.train_proposals(output, batch.sizes_hw)
        return self.rpn.losses(output, batch) | self.roi_losses(features, proposals, batch.instances)

    def candidates(self, batch: Batch) -> list[Instances]:
        """Scored boxes before suppression."""
        features = self.features(self.normalise(batch.images, batch.sizes_hw))
        proposals = self.rpn.test_proposals(self.rpn(features), batch.sizes_hw)
        return self.roi_candidates(features, proposals, batch.sizes_hw)

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> p2..p6."""
        levels: list[Tensor] = self.neck(self.backbone(images))
        return levels


def top_candidates(
    boxes: Tensor, probabilities: Tensor, size_hw: tuple[int, int], config: SuppressConfig
) -> Instances:
    """The best (box, class) pairs of one image.

    Args:
        boxes: (R, 4) shared by all classes, or (R, K, 4) one per class; xyxy in the image's frame.
        probabilities: (R, K + 1) softmax output, background last.
        size_hw: The image's size.
        config: Score threshold and the number of candidates.

    Returns:
        Scored instances above the threshold, best first; empty when there are none.
    """
    num_classes = probabilities.shape[1] - 1
    scores = probabilities[:, :num_classes].flatten()
    index = (scores > config.score_threshold).nonzero().squeeze(1)
    scores = scores[index]
    order = scores.argsort(descending=True, stable=True)[: config.max_candidates]
    index = index[order]
    roi, labels = index // max(num_classes, 1), index % max(num_classes, 1)
    chosen = boxes[roi] if boxes.dim() == 2 else boxes[roi, labels]
    return Instances(size_hw=size_hw, boxes=chosen.float(), labels=labels, scores=scores[order].float())


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Sum of all entries of a detector's losses."""
    return torch.stack(list(losses.values())).sum()

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

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from scantling.models.assign import SampleConfig
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.neck import FPN, FPNConfig
from scantling.models.rpn import RPN, RPNConfig
from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Detector(nn.Module, ABC):
    """What training, prediction and combination rely on; see the module's head.

    Attributes:
        num_classes: Number of foreground classes K.
        suppression: Settings of `predict`'s last step.
        class_names: Category names in label order; needed only for settings per category.
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
    boxes: Tensor,
    probabilities: Tensor,
    size_hw: tuple[int, int],
    config: SuppressConfig,
    class_names: Sequence[str],
) -> Instances:
    """The best (box, class) pairs of one image.

    Args:
        boxes: (R, 4) shared by all classes, or (R, K, 4) one per class; xyxy in the image's frame.
        probabilities: (R, K + 1) softmax output, background last.
        size_hw: The image's size.
        config: Score threshold, one or one per category, and the number of candidates.
        class_names: Category names in label order (used by settings per category only).

    Returns:
        Scored instances above the threshold, best first; empty when there are none.

    Raises:
        ConfigError: See `SuppressConfig.thresholds`.
    """
    num_classes = probabilities.shape[1] - 1
    limits = config.thresholds(class_names).score_threshold
    scores = probabilities[:, :num_classes]
    above = scores > (limits.to(scores.device) if isinstance(limits, Tensor) else limits)
    index = above.flatten().nonzero().squeeze(1)
    scores = scores.flatten()[index]
    order = scores.argsort(descending=True, stable=True)[: config.max_candidates]
    index = index[order]
    roi, labels = index // max(num_classes, 1), index % max(num_classes, 1)
    chosen = boxes[roi] if boxes.dim() == 2 else boxes[roi, labels]
    return Instances(size_hw=size_hw, boxes=chosen.float(), labels=labels, scores=scores[order].float())


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Sum of all entries of a detector's losses."""
    return torch.stack(list(losses.values())).sum()

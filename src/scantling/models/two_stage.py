"""The contract of every detector, and the steps two-stage detectors share.

    Batch (uint8, padded) ── normalise_images ──► backbone ──► neck ──► features p2..p6
        losses(batch)     -> {name: scalar}     every entry is added to the training loss
        candidates(batch) -> [Instances]        scored boxes before suppression (what test-time augmentation pools)
        predict(batch)    -> [Instances]        candidates after suppression

Boxes are absolute xyxy in the frame of the batch's images. K foreground classes are 0..K-1; K is background.
Dims: B images, R RoIs, K classes, N boxes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch


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

"""What training, prediction and combination rely on in every detector, and in every segmenter (at the end).

    losses(batch)               -> {name: scalar}   every entry is added to the training loss
    encode(batch)               -> Encoded          features once; opaque to callers
    candidates(encoded, limits) -> [Instances]      scored boxes before suppression
    masks(encoded, instances)   -> [RoiMasks]       for given boxes: after suppression, after refinement, of any tool
    mask_ious(encoded, instances, masks) -> [(N,)]  how well they fit, of a detector that ranks by it: `ranks_by_masks`

Boxes are absolute xyxy in the frame of the batch's images. K foreground classes are 0..K-1. Suppression and category
names are the caller's; see `suppression.detect` for all steps in a row.
Dims: B images, C channels, R proposals, K classes, N boxes, M side of a mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scantling.models.backbone import Backbone
from scantling.models.context_heads import semantic_targets
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks
from scantling.structures.sample import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLimits:
    """Which scored boxes a detector hands on.

    Attributes:
        score_threshold: Only scores above it; one for all categories, or (K,) float32.
        max_candidates: At most this many boxes per image, best first.
    """

    score_threshold: float | Tensor = 0.05
    max_candidates: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What a detector has computed of a batch, for its own later steps.

    Attributes:
        levels: Pyramid levels (B, C, H/s, W/s), finest first.
        sizes_hw: Unpadded size of each image.
        proposals: For each image (R_i, 4) xyxy.
        semantic: Features of a semantic branch, where the method has one.
        context: (B, C) of the whole images, where the method has it.
    """

    levels: Sequence[Tensor]
    sizes_hw: Sequence[tuple[int, int]]
    proposals: Sequence[Tensor]
    semantic: Tensor | None = None
    context: Tensor | None = None


class Detector(nn.Module, ABC):
    """A trained or trainable detector; see the module's head.

    Attributes:
        num_classes: Number of foreground classes K.
        has_masks: Whether `masks` gives any, and training needs the masks of the truth.
        ranks_by_masks: Whether `mask_ious` gives any, by which scores are multiplied once masks are drawn.
    """

    num_classes: int
    has_masks: bool = False
    ranks_by_masks: bool = False

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of one training step; their sum is what is minimised."""

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """What all later steps need of the images, computed once; ground truth is not looked at."""

    @abstractmethod
    def candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Scored boxes of each image before suppression, best first, in the batch's frame."""

    def masks(
        self,
        encoded: Encoded,  # noqa: ARG002 - the signature is what methods with masks have
        instances: Sequence[Instances],  # noqa: ARG002
    ) -> list[RoiMasks]:
        """Soft masks for given boxes.

        Args:
            encoded: Of the batch that the boxes lie in.
            instances: For each image boxes and labels in the batch's frame; may be empty. Scores play no part.

        Raises:
            TypeError: The detector has no masks.
        """
        raise TypeError(f"{type(self).__name__} has no masks")

    def mask_ious(
        self,
        encoded: Encoded,  # noqa: ARG002 - the signature is what methods with a MaskIoU head have
        instances: Sequence[Instances],  # noqa: ARG002
        masks: Sequence[RoiMasks],  # noqa: ARG002
    ) -> list[Tensor]:
        """Predicted IoU, (N,) in [0, 1] for each image, of drawn masks with the objects they stand for.

        Args:
            encoded: As for `masks`.
            instances: As for `masks`.
            masks: What `masks` gave for them.

        Raises:
            TypeError: The detector predicts none.
        """
        raise TypeError(f"{type(self).__name__} does not rank by masks")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that DistributedDataParallel sees them."""
        return self.losses(batch)

    def backbones(self) -> dict[str, Backbone]:
        """The networks that weights of a classifier, or of own-crop pretraining, can be loaded into.

        Returns:
            By their place in the detector, as its keys begin: `backbone.`; of a composite one `backbone.assistant.` and
            `backbone.lead.`.
        """
        return {f"{name}.": module for name, module in self.named_modules() if isinstance(module, Backbone)}


class Segmenter(nn.Module, ABC):
    """A trained or trainable segmenter: it says of every pixel whether it belongs to an object, and not to which.

        losses(batch) -> {name: scalar}       every entry is added to the training loss
        scores(batch) -> [(P, H, W)]          of the pixels of each image, without its padding, in [0, 1]

    Attributes:
        num_planes: P: 1 for the foreground of all categories, else one for each of the K, in label order.
        by_category: Whether the planes are categories.
    """

    num_planes: int
    by_category: bool

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of one training step, from the masks of the truth; their sum is what is minimised."""

    @abstractmethod
    def scores(self, batch: Batch) -> list[Tensor]:
        """Scores of each image's pixels; one above 0.5 is called the plane's, and there is one such plane at most."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that DistributedDataParallel sees them."""
        return self.losses(batch)

    def targets(self, batch: Batch) -> Tensor:
        """(B, H, W) int64, the label of each pixel: 0 the ground, then the planes; -1 counts for nothing."""
        height, width = batch.images.shape[-2:]
        labels = torch.stack([semantic_targets(truth, (height, width), 1) for truth in batch.instances])
        return (labels if self.by_category else labels.clamp(max=1)).to(batch.images.device)


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Sum of all entries of a detector's losses."""
    return torch.stack(list(losses.values())).sum()

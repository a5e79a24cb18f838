"""The MaskIoU head of Mask Scoring R-CNN (Huang et al. 2019): how much of an object does its mask get right?

    pooled RoI (R, C, S, S) ──────────────────────────────────────────┐
    own class's mask, probabilities (R, 2 S, 2 S) ── 2x2 max pooling ──┴► (R, C + 1, S, S)
        ── 3 x (3x3 conv, ReLU) ── 3x3 conv with stride 2, ReLU ──► (R, C', S / 2, S / 2)
        ── fc, ReLU, fc, ReLU ── fc ──► IoU for each class (R, K)
    target: IoU of the mask, on from a probability of 0.5, with the whole object, what the RoI misses of it too
    loss:   half the squared difference, mean over the positives' own class
    test:   score of an instance = score of its class x predicted IoU, once its mask is drawn

One score per instance is what results, thresholds and ensembles know, so the product is it, for boxes too: the score of
the class alone decides what is suppressed and which boxes are kept, and is then replaced. Masks of several stages are
one mask, their mean; the head learns on it with the last stage's RoIs, whose boxes are the nearest to those that masks
are drawn in at the end. The paper has Mask R-CNN alone. Dims: C channels, R RoIs, P positives, K classes, S cells per
side, M = 2 S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.box_heads import RoiSamples
from scantling.models.layers import init_conv
from scantling.models.mask_heads import COVERED, mask_targets, positive_boxes
from scantling.ops.boxes import box_area
from scantling.settings.fields import Count
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.masks import RoiMasks


class MaskIoUConfig(BaseModel):
    """Shape and loss of the MaskIoU head.

    Attributes:
        num_convs: 3x3 convolutions; the last has stride 2.
        channels: Their width.
        fc_channels: Width of the two fully connected layers.
        weight: Factor of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_convs: Count = 4
    channels: Count = 256
    fc_channels: Count = 1024
    weight: Annotated[float, Field(ge=0)] = 1.0


class MaskIoUOptions(BaseModel):
    """What a recipe may change in how the masks of any detector that draws some are ranked.

    Attributes:
        mask_iou: Predict each mask's IoU with its object, and multiply scores by it.
        mask_iou_weight: Factor of that head's loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_iou: bool = False
    mask_iou_weight: Annotated[float, Field(ge=0)] = 1.0

    def mask_iou_head(self, channels: int, fc_channels: int) -> MaskIoUConfig | None:
        """Shape and loss of the head; None for none.

        Args:
            channels: Width of the mask heads' convolutions.
            fc_channels: Width of the box heads' fully connected layers.
        """
        if not self.mask_iou:
            return None
        return MaskIoUConfig(channels=channels, fc_channels=fc_channels, weight=self.mask_iou_weight)


class MaskIoUHead(nn.Module):
    """Predicts the IoU of drawn masks with what they should show.

    Args:
        in_channels: Width of the pooled RoIs.
        side: S, cells per side of them.
        num_classes: Foreground classes K.
        config: Shape and loss.
    """

    def __init__(self, in_channels: int, side: int, num_classes: int, config: MaskIoUConfig) -> None:
        super().__init__()
        self.config = config
        widths = [in_channels + 1, *[config.channels] * config.num_convs]
        convs: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True), start=1):
            stride = 2 if number == config.num_convs else 1
            convs += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*convs)
        cells = ((side + 1) // 2) ** 2
        self.fcs = nn.Sequential(
            nn.Linear(config.channels * cells, config.fc_channels), nn.ReLU(inplace=True),
            nn.Linear(config.fc_channels, config.fc_channels), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.ious = nn.Linear(config.fc_channels, num_classes)
        init_conv(self)
        init_conv(self.ious, std=0.01)

    def forward(self, pooled: Tensor, probabilities: Tensor) -> Tensor:
        """Pooled RoIs (R, C, S, S) and their masks (R, 2 S, 2 S) -> IoU for each class (R, K); R may be 0."""
        drawn = F.max_pool2d(probabilities[:, None].to(pooled.dtype), 2)  # (R, 1, S, S)
        hidden = self.convs(torch.cat([pooled, drawn], dim=1))
        ious: Tensor = self.ious(self.fcs(hidden.flatten(1)))
        return ious

    def losses(
        self,
        pooled: Tensor,
        probabilities: Tensor,
        samples: Sequence[RoiSamples],
        truths: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """`iou`: of the positives whose mask meets its object; 0 (with a gradient path) where there is none.

        Args:
            pooled: (P, C, S, S) of the positives among the samples; see `mask_heads.positive_boxes`.
            probabilities: (P, M, M) of their own class.
            samples: RoIs of each image; background takes no part.
            truths: Ground truth of each image with its masks.

        Source:
            Huang et al. 2019, section 3.2; that masks which miss their object are left out is their code's.
        """
        labels = torch.cat([s.labels[s.matched >= 0] for s in samples])
        boxes = positive_boxes(samples)
        drawn = torch.split(probabilities.detach(), [len(own) for own in boxes])
        parts = zip(truths, [s.matched[s.matched >= 0] for s in samples], boxes, drawn, strict=True)
        targets = torch.cat([mask_iou_targets(*part) for part in parts])  # (P,)
        own = self(pooled, probabilities).float()[torch.arange(len(labels), device=labels.device), labels]
        squared = (own - targets).square() * (targets > 0)
        return {"iou": self.config.weight * squared.sum() / 2 / (targets > 0).sum().clamp(min=1)}


@torch.no_grad()
def mask_iou_targets(truth: Instances, matched: Tensor, boxes: Tensor, probabilities: Tensor) -> Tensor:
    """IoU of drawn masks with the objects they stand for, in cells of each RoI.

    Args:
        truth: Ground truth of one image.
        matched: (P,) row of the truth each box stands for.
        boxes: (P, 4) xyxy in the image's frame.
        probabilities: (P, M, M) drawn inside the boxes.

    Returns:
        (P,) in [0, 1]; the object counts with all its pixels, those outside of the box too. (0,) for no boxes.

    Raises:
        TypeError: The truth has no masks in the image's frame.
    """
    side = probabilities.shape[-1]
    inside = mask_targets(truth, matched, boxes, side) >= COVERED  # (P, M, M)
    if len(matched) == 0 or not isinstance(truth.masks, ImageMasks):
        return boxes.new_zeros(len(matched))
    drawn = probabilities >= COVERED
    common = (drawn & inside).sum(dim=(1, 2)).float()
    cells_per_pixel = side**2 / box_area(boxes).clamp(min=1e-6)
    whole = truth.masks.areas().to(boxes)[matched] * cells_per_pixel
    union = drawn.sum(dim=(1, 2)) + whole - common
    return (common / union.clamp(min=1e-6)).clamp(max=1)


def predicted_ious(
    head: MaskIoUHead, pooled: Tensor, instances: Sequence[Instances], masks: Sequence[RoiMasks]
) -> list[Tensor]:
    """IoU of drawn masks with their objects, for the class each instance has.

    Args:
        head: The head.
        pooled: (R, C, S, S), images one after the other.
        instances: Boxes and labels of each image; may be empty.
        masks: Those that were drawn for them.

    Returns:
        For each image (N_i,) float32, held to [0, 1]: a regression knows no bounds, scores do.
    """
    labels = torch.cat([found.labels for found in instances])
    ious = head(pooled, torch.cat([own.probabilities for own in masks])).float()
    own = ious[torch.arange(len(labels), device=labels.device), labels].clamp(0, 1)
    return list(torch.split(own, [len(found) for found in instances]))

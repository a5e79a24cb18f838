"""Losses of the heads: pure functions, each a sum over its terms divided by a count the caller names.

Dividing by a given count (not by the number of positives) keeps the box loss's weight independent of how many
RoIs happen to be positive, as in Fast R-CNN (Girshick 2015) and its descendants.
Dims: R RoIs or anchors, P positives, K classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scantling.ops.boxes import decode_boxes, encode_boxes, paired_iou

BoxLossKind = Literal["smooth_l1", "iou", "giou", "diou", "ciou"]


class BoxLossConfig(BaseModel):
    """Regression loss of a box head.

    Attributes:
        kind: `smooth_l1` on encoded deltas, or 1 - (generalised/distance/complete) IoU on decoded boxes.
        beta: Where smooth L1 turns from quadratic to linear.
        weight: Factor of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: BoxLossKind = "smooth_l1"
    beta: Annotated[float, Field(ge=0)] = 1.0
    weight: Annotated[float, Field(ge=0)] = 1.0


def smooth_l1(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Summed smooth L1 distance; 0 for empty input, with a gradient path.

    Args:
        predicted: Any shape.
        target: Same shape.
        beta: Turning point; 0 is plain L1.
    """
    return F.smooth_l1_loss(predicted, target, beta=beta, reduction="sum")


def box_regression_loss(
    references: Tensor,
    deltas: Tensor,
    truths: Tensor,
    stds: tuple[float, float, float, float],
    config: BoxLossConfig,
) -> Tensor:
    """Summed and weighted regression loss of matched boxes.

    Args:
        references: (P, 4) anchors or RoIs, xyxy.
        deltas: (P, 4) predicted encoding relative to `references`.
        truths: (P, 4) matched ground truth, xyxy.
        stds: Scale of each delta.
        config: Which loss.

    Returns:
        A scalar; 0 (with a gradient path) for P = 0.
    """
    deltas = deltas.float()
    if config.kind == "smooth_l1":
        targets = encode_boxes(references, truths, stds)  # (P, 4)
        return config.weight * smooth_l1(deltas, targets, config.beta)
    overlap = paired_iou(decode_boxes(references, deltas, stds), truths, kind=config.kind)  # (P,)
    return config.weight * (1 - overlap).sum()


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean softmax cross-entropy over RoIs; 0 for R = 0.

    Args:
        logits: (R, K + 1), background last.
        labels: (R,) in 0..K.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)


def objectness_loss(logits: Tensor, is_object: Tensor) -> Tensor:
    """Mean binary cross-entropy over sampled anchors; 0 for none.

    Args:
        logits: (R,).
        is_object: (R,) bool.
    """
    target = is_object.to(logits.dtype).float()  # (R,)
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum") / max(len(logits), 1)

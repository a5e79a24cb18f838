"""Suppression of duplicate detections: hard and soft, one threshold or one per group. The only NMS there is.

Boxes of different groups (categories) never touch each other. Whatever the method, what is kept comes back in order
of falling score, and at equal scores the lower index first. N: boxes; G: groups that occur; K: all groups.
"""

from __future__ import annotations

from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from scantling.ops.boxes import box_area

SoftMethod = Literal["linear", "gaussian"]
SuppressMethod = Literal["hard", "soft_linear", "soft_gaussian", "none"]


class SoftOptions(TypedDict, total=False):
    """What only the soft methods use; meaning and defaults are those of `soft_nms`."""

    sigma: float
    min_score: float


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: a box goes when a better one overlaps it by more than the threshold.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        iou_threshold: In [0, 1].

    Returns:
        Indices of what stays, int64, best first; (0,) for no boxes.
    """
    keep: Tensor = torchvision_nms(boxes.float(), scores.float(), iou_threshold)
    return keep


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float | Tensor) -> Tensor:
    """`nms` within each group.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        groups: (N,) int64 group of each box.
        iou_threshold: One for all, or (K,) one per group, indexed by `groups`.

    Returns:
        Indices of what stays in any group, int64, best first, ties by lower index; (0,) for no boxes.
    """
    if boxes.numel() == 0:
        return groups.new_zeros(0)
    thresholds = _threshold_per_box(iou_threshold, groups)
    kept = [rows[nms(boxes[rows], scores[rows], limit)] for rows, limit in _parts(groups, thresholds)]
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True, stable=True).indices]


def _parts(groups: Tensor, thresholds: Tensor) -> list[tuple[Tensor, float]]:
    """Rows of each group, in index order, with the group's threshold."""
    order = groups.sort(stable=True).indices
    counts = torch.unique_consecutive(groups[order], return_counts=True)[1].tolist()
    parts = order.split(counts)
    return [(rows, float(thresholds[rows[0]])) for rows in parts]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    method: SoftMethod = "linear",
    iou_threshold: float | Tensor = 0.5,
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Lower the score of a box for every better box it overlaps, instead of removing it.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) in [0, 1].
        groups: (N,) int64 group of each box; groups do not interact.
        method: `linear`: s *= 1 - IoU where IoU > threshold. `gaussian`: s *= exp(-IoU² / sigma) for every overlap.
        iou_threshold: One for all, or (K,) one per group, indexed by `groups`; not used by `gaussian`.
        sigma: Width of `gaussian`, above 0.
        min_score: What falls below is dropped.

    Returns:
        Indices of what stays, int64, by falling new score, ties by lower index; and their new scores, float32.
        (0,) twice for no boxes.

    Source:
        Bodla et al. 2017; per-category thresholds: Algorithm 1 of the DelftBikes report of team CS21.
    """
    if boxes.numel() == 0:
        return groups.new_zeros(0), scores.new_zeros(0, dtype=torch.float32)
    thresholds = _threshold_per_box(iou_threshold, groups)
    slots = _layout(groups)
    used = slots >= 0
    left = torch.where(used, scores.double()[slots], -1.0)
    padded = boxes.double()[slots]
    limits = thresholds[slots]
    final = torch.full_like(left, -1.0)
    lanes = torch.arange(len(slots), device=boxes.device)
    for _ in range(slots.shape[1]):
        best, pick = left.max(dim=1)
        if not (best >= min_score).any():
            break
        final[lanes, pick] = torch.where(best >= min_score, best, final[lanes, pick])
        iou = _iou_with(padded, padded[lanes, pick])
        decay = (
            torch.exp(-iou.square() / sigma)
            if method == "gaussian"
            else torch.where(iou > limits, 1 - iou, 1.0)
        )
        left = torch.where(left > 0, left * decay, left)
        left[lanes, pick] = -1.0
    keep = final >= min_score
    rows, values = slots[keep], final[keep].float()
    rows, order = rows.sort()
    values, order = values[order].sort(descending=True, stable=True)
    return rows[order], values


def _layout(groups: Tensor) -> Tensor:
    """(G, n_max) rows of each group in index order, -1 where a group has fewer."""
    order = groups.sort(stable=True).indices
    counts = torch.unique_consecutive(groups[order], return_counts=True)[1].tolist()
    return torch.nn.utils.rnn.pad_sequence(list(order.split(counts)), batch_first=True, padding_value=-1)


def _iou_with(boxes: Tensor, best: Tensor) -> Tensor:
    """(G, n) overlap of every box (G, n, 4) with its group's chosen one (G, 4)."""
    wh = torch.minimum(boxes[..., 2:], best[:, None, 2:]) - torch.maximum(boxes[..., :2], best[:, None, :2])
    inter = wh.clamp(min=0).prod(-1)
    union = box_area(boxes) + box_area(best)[:, None] - inter
    return inter / union.clamp(min=1e-9)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: SuppressMethod = "hard",
    iou_threshold: float | Tensor = 0.5,
    max_per_image: int | None = 100,
    **soft: Unpack[SoftOptions],
) -> tuple[Tensor, Tensor]:
    """The detections of one image without duplicates: one entry for detectors, test-time scales and ensembles.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) in [0, 1].
        labels: (N,) int64 category of each box; categories do not interact.
        method: `hard` (`batched_nms`), `soft_linear`, `soft_gaussian` (`soft_nms`) or `none`.
        iou_threshold: One for all, or (K,) one per category.
        max_per_image: Keep at most this many, the best; None keeps all.
        **soft: `sigma` and `min_score` of `soft_nms`; ignored by the other methods.

    Returns:
        Indices of what stays, int64, and their scores, float32, both by falling score, ties by lower index. Boxes
        or scores that are not finite are left out. (0,) twice for no boxes.

    Raises:
        ValueError: Unknown method.
        TypeError: An option that does not exist.
    """
    if unknown := set(soft) - SoftOptions.__annotations__.keys():
        raise TypeError(f"suppress: unknown options {sorted(unknown)}")
    finite = (torch.isfinite(boxes).all(dim=-1) & torch.isfinite(scores)).nonzero()[:, 0]
    boxes, scores, labels = boxes[finite].float(), scores[finite].float(), labels[finite]
    if method == "soft_linear" or method == "soft_gaussian":
        kind: SoftMethod = "linear" if method == "soft_linear" else "gaussian"
        keep, scores = soft_nms(boxes, scores, labels, method=kind, iou_threshold=iou_threshold, **soft)
    elif method == "hard":
        keep = batched_nms(boxes, scores, labels, iou_threshold)
        scores = scores[keep]
    elif method == "none":
        scores, keep = scores.sort(descending=True, stable=True)
    else:
        raise ValueError(
            f"suppress: expected method hard, soft_linear, soft_gaussian or none, found {method!r}"
        )
    return finite[keep[:max_per_image]], scores[:max_per_image]


def _threshold_per_box(iou_threshold: float | Tensor, groups: Tensor) -> Tensor:
    """(N,) float64 threshold of each box's group."""
    table = torch.as_tensor(iou_threshold, dtype=torch.float64, device=groups.device)
    return table[groups] if table.ndim else table.expand(len(groups))

"""Suppression of duplicate detections: hard and soft, with settings for all or by category.

The only NMS there is, but for that of many detectors' files at once (`combine.fusion`).

Boxes of different groups (categories, images) never touch each other. Whatever the method, what is kept comes back
in order of falling score, and at equal scores the lower index first.
N: boxes; K: categories; G: groups that occur; n: boxes of the largest group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from scantling.ops.soft_nms import soft_nms
from scantling.ops.suppress_options import METHODS, SuppressOptions, methods_of


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
    order = groups.sort(stable=True).indices
    present, counts = torch.unique_consecutive(groups[order], return_counts=True)
    parts, limits = list(torch.split(order, counts.tolist())), _thresholds(iou_threshold, present)
    if boxes.is_cuda:
        boxes = _apart(boxes, groups)
        parts, limits = _join_equal(parts, limits)
    pairs = zip(parts, limits, strict=True)
    keep = torch.cat(
        [rows[torchvision_nms(boxes[rows], scores[rows].to(boxes), limit)] for rows, limit in pairs]
    )
    keep = keep.sort().values
    return keep[scores[keep].sort(descending=True, stable=True).indices]


def _thresholds(iou_threshold: float | Tensor, groups: Tensor) -> list[float]:
    """Threshold of each of these groups."""
    if isinstance(iou_threshold, Tensor) and iou_threshold.ndim:
        return iou_threshold.to(groups.device)[groups].tolist()
    return [float(iou_threshold)] * len(groups)


def _apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Boxes moved apart by group until groups cannot overlap; in float64, so that nothing is rounded."""
    boxes = boxes.double()
    low, high = boxes.min(), boxes.max()
    return boxes - low + groups[:, None] * (high - low + 1)


def _join_equal(parts: Sequence[Tensor], limits: Sequence[float]) -> tuple[list[Tensor], list[float]]:
    """Groups of equal threshold joined: an accelerator wants few calls, a CPU small ones."""
    shared = sorted(set(limits))
    pairs = list(zip(parts, limits, strict=True))
    return [torch.cat([rows for rows, limit in pairs if limit == one]) for one in shared], shared


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor | None = None,
    *,
    max_per_image: int | None = 100,
    **options: Unpack[SuppressOptions],
) -> tuple[Tensor, Tensor]:
    """The detections without duplicates: one entry for detectors, test-time scales and ensembles.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) in [0, 1].
        labels: (N,) int64 category of each box; categories do not interact.
        images: (N,) int64 image of each box, from 0; images do not interact. None: all are of one image.
        max_per_image: Keep at most this many of an image, the best; None keeps all.
        **options: See `SuppressOptions`.

    Returns:
        Indices of what stays, int64, and their scores, float32, both image by image, by falling score, ties by lower
        index. Boxes or scores that are not finite are left out. (0,) twice for no boxes.

    Raises:
        ValueError: Unknown method, or sigma not above 0.
        TypeError: An option that does not exist.
    """
    if unknown := set(options) - SuppressOptions.__annotations__.keys():
        raise TypeError(f"suppress: unknown options {sorted(unknown)}")
    finite = (torch.isfinite(boxes).all(dim=-1) & torch.isfinite(scores)).nonzero()[:, 0]
    boxes, scores, labels = boxes[finite].float(), scores[finite].float(), labels[finite]
    images = torch.zeros_like(labels) if images is None else images[finite]
    method = methods_of(labels, options.get("method", "hard"))
    hard, none = ((method == METHODS.index(name)).nonzero()[:, 0] for name in ("hard", "none"))
    soft = ((method != METHODS.index("hard")) & (method != METHODS.index("none"))).nonzero()[:, 0]
    left = _hard_of_images(boxes[hard], scores[hard], labels[hard], images[hard], options)
    fallen, lowered = soft_nms(
        boxes[soft], scores[soft], labels[soft], images[soft], max_per_image=max_per_image, **options
    )
    keep = torch.cat([none, hard[left], soft[fallen]])
    found = torch.cat([scores[none], scores[hard[left]], lowered])
    best = _best_of_images(keep, found, images[keep], max_per_image)
    return finite[keep[best]], found[best]


def _hard_of_images(
    boxes: Tensor, scores: Tensor, labels: Tensor, images: Tensor, options: SuppressOptions
) -> Tensor:
    """`batched_nms` with image and category as the group."""
    if len(boxes) == 0:
        return labels.new_zeros(0)
    num_labels, num_images = int(labels.max()) + 1, int(images.max()) + 1
    limit = torch.as_tensor(options.get("iou_threshold", 0.5))
    if limit.ndim:
        limit = limit[:num_labels].repeat(num_images)
    return batched_nms(boxes, scores, images * num_labels + labels, limit)


def _best_of_images(rows: Tensor, scores: Tensor, images: Tensor, max_per_image: int | None) -> Tensor:
    """Positions of the best of each image: image by image, by falling score, ties by lower row."""
    order = rows.argsort()
    order = order[scores[order].argsort(descending=True, stable=True)]
    order = order[images[order].argsort(stable=True)]
    if max_per_image is None or len(order) == 0:
        return order
    _, counts = torch.unique_consecutive(images[order], return_counts=True)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts).repeat_interleave(
        counts
    )
    return order[rank < max_per_image]

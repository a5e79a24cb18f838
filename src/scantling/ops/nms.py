"""Suppression of duplicate detections: hard and soft, one threshold or one per group. The only NMS there is.

Boxes of different groups (categories) never touch each other. Whatever the method, what is kept comes back in order
of falling score, and at equal scores the lower index first. N: boxes; G: groups that occur; K: all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from scantling.ops.boxes import MIN_UNION, box_area

SoftMethod = Literal["linear", "gaussian"]
SuppressMethod = Literal["hard", "soft_linear", "soft_gaussian", "none"]

_USED = np.float32(-1)  # below any score: taken, or a place that holds no box
_TINY = float(np.finfo(np.float32).tiny)
_MIN_STEPS = 16


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

    All groups advance together: step t takes the t-th box of every group, so the number of steps is the size of the
    largest group, not of all. Runs in main memory whatever the device: the steps depend on each other, and each is
    shorter than starting it on an accelerator would take. Several images at once: make image x category the group.

    Args:
        boxes: (N, 4) xyxy, finite.
        scores: (N,) in [0, 1].
        groups: (N,) int64 group of each box; groups do not interact.
        method: `linear`: s *= 1 - IoU where IoU > threshold. `gaussian`: s *= exp(-IoU² / sigma) for every overlap.
        iou_threshold: One for all, or (K,) one per group, indexed by `groups`; not used by `gaussian`.
        sigma: Width of `gaussian`, above 0.
        min_score: What falls below is dropped, and so is what falls to 0.

    Returns:
        Indices of what stays, int64, by falling new score, ties by lower index; and their new scores, float32.
        (0,) twice for no boxes.

    Raises:
        ValueError: Unknown method, or sigma not above 0.

    Source:
        Bodla et al. 2017; per-category thresholds: Algorithm 1 of the DelftBikes report of team CS21.
    """
    if method not in ("linear", "gaussian") or not sigma > 0:
        raise ValueError(f"soft_nms: expected linear or gaussian and sigma > 0, found {method!r} and {sigma}")
    fields = _fields(boxes)
    left = np.append(scores.detach().float().cpu().numpy(), _USED)
    group_of = groups.cpu().numpy()
    limits = (
        np.append(_thresholds(iou_threshold, groups), 0).astype(np.float32) if method == "linear" else None
    )
    floor = np.float32(max(min_score, _TINY))
    rows = np.argsort(group_of, kind="stable")
    kept_rows, kept_scores = [rows[:0]], [left[:0]]
    while len(rows := rows[left[rows] >= floor]):
        lanes = _lanes(rows, group_of)
        limit = None if limits is None else limits[lanes[:, :1]]
        current = left[lanes]
        picks, values = _advance(fields[:, lanes], current, limit, np.float32(sigma), floor)
        left[lanes], left[-1] = current, _USED
        kept_rows.append(lanes.ravel()[picks])
        kept_scores.append(values)
    keep, values = np.concatenate(kept_rows), np.concatenate(kept_scores)
    order = np.lexsort((keep, -values))
    return torch.from_numpy(keep[order]).to(groups.device), torch.from_numpy(values[order]).to(boxes.device)


def _fields(boxes: Tensor) -> NDArray[np.float32]:
    """(5, N + 1): x1, y1, x2, y2 and area of each box; the last column is a box without area, for padding."""
    flat = boxes.detach().float().cpu()
    table = torch.cat([flat, box_area(flat)[:, None]], dim=1)
    return np.ascontiguousarray(torch.cat([table, table.new_zeros(1, 5)]).T.numpy())


def _lanes(rows: NDArray[np.int64], group_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """(G, n) the rows of one group per lane, in order; -1, the padding's row, where a group has fewer than n."""
    group = group_of[rows]
    first = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    counts = np.diff(first, append=len(rows))
    lanes = np.full((len(counts), counts.max()), -1, dtype=np.int64)
    lanes[np.arange(counts.max()) < counts[:, None]] = rows
    return lanes


def _advance(
    fields: NDArray[np.float32],
    left: NDArray[np.float32],
    limit: NDArray[np.float32] | None,
    sigma: np.float32,
    floor: np.float32,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Take the next boxes of every lane, until enough are gone to make the lanes worth packing again.

    Args:
        fields: (5, G, n) of each lane's boxes.
        left: (G, n) scores as they stand; lowered in place, `_USED` for what is taken.
        limit: (G, 1) IoU threshold of each lane for the linear method; None for the gaussian one.
        sigma: Width of the gaussian.
        floor: Lowest score that is kept.

    Returns:
        What was taken, as indices into the flattened lanes, and the scores.
    """
    lanes, size = left.shape
    low, high, area = fields[:2].copy(), fields[2:4].copy(), fields[4]
    table, current = fields.reshape(5, -1), left.reshape(-1)
    picks, values = [], []
    for _ in range(max(_MIN_STEPS, size // 8)):
        pick = left.argmax(axis=1) + np.arange(0, lanes * size, size)
        value = current[pick]
        if not (value >= floor).any():
            break
        picks.append(pick)
        values.append(value)
        iou = _iou_with(table[:, pick, None], low, high, area)
        if limit is None:
            left *= np.exp(iou * iou / -sigma)
        else:
            np.multiply(left, 1 - iou, out=left, where=iou > limit)
        current[pick] = _USED
    taken, reached = np.concatenate(picks), np.concatenate(values)
    return taken[reached >= floor], reached[reached >= floor]


def _iou_with(
    best: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32], area: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(G, n) overlap of each lane's boxes with its best one, (5, G, 1): `boxes.pairwise_iou`, bit for bit."""
    sides = np.minimum(high, best[2:4])
    sides -= np.maximum(low, best[:2])
    np.maximum(sides, np.float32(0), out=sides)
    inter: NDArray[np.float32] = sides[0] * sides[1]
    union = area + best[4]
    union -= inter
    np.maximum(union, np.float32(MIN_UNION), out=union)
    inter /= union
    return inter


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
    if method == "soft_linear":
        keep, scores = soft_nms(boxes, scores, labels, method="linear", iou_threshold=iou_threshold, **soft)
    elif method == "soft_gaussian":
        keep, scores = soft_nms(boxes, scores, labels, method="gaussian", **soft)
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

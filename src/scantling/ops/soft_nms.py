"""Soft suppression of many groups of boxes at once (Bodla et al. 2017; Algorithm 1 of team CS21's report).

    boxes ── one lane per group ──► step t: the best box of every lane is taken, and the others of its lane fall
                  ▲                                           │
                  └── now and then packed again without what is taken, or too low to be among the best of its image

A group is a category of an image. All lanes advance together, so the number of steps is that of the longest lane,
and each step is a few array operations whatever the number of groups.
N: boxes; G: lanes; n: boxes of the longest lane.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.ops.boxes import box_area
from scantling.ops.suppress_options import METHODS, SuppressOptions, methods_of, values_of

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_USED = np.float32(-1)  # below any score: taken, or a place that holds no box
_TINY = float(np.finfo(np.float32).tiny)
_MIN_STEPS = 8  # taken of a lane before it is packed again,
_SHARE_OF_ALL, _SHARE_OF_FEW = (
    8,
    32,
)  # or this part of it, if all, or only the best few of an image, are wanted
_MAX_PADDED = 4  # a lane has at most this many places for each of its boxes
_PORTION = 1 << 15  # boxes of several images that are treated together: what fits into a processor's cache
_GAUSSIAN = METHODS.index("soft_gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor,
    *,
    max_per_image: int | None = None,
    **options: Unpack[SuppressOptions],
) -> tuple[Tensor, Tensor]:
    """Lower the score of a box for every better box of its image and category that it overlaps.

    Runs in main memory whatever the device: the steps depend on each other, and each is shorter than starting it on
    an accelerator would take.

    Args:
        boxes: (N, 4) xyxy, finite.
        scores: (N,) in [0, 1].
        labels: (N,) int64 category of each box.
        images: (N,) int64 image of each box, from 0.
        max_per_image: How many of an image are wanted, the best: more may be left out, these are not. None: all.
        **options: See `SuppressOptions`; `method` may name the others only for categories that no box has.

    Returns:
        Indices of what stays, int64, in no particular order, and their new scores, float32. (0,) twice for no boxes.

    Raises:
        ValueError: Unknown method, or sigma not above 0.

    Source:
        Bodla et al. 2017; per-category thresholds: Algorithm 1 of the DelftBikes report of team CS21.
    """
    if len(boxes) == 0:
        return labels.new_zeros(0), scores.new_zeros(0, dtype=torch.float32)
    rules = _rules(labels, options)
    ready = _Boxes.of(boxes, scores, labels, images)
    parts = [_decay(ready, rules, rows, max_per_image) for rows in _portions(ready, rules)]
    keep, found = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return torch.from_numpy(keep).to(labels.device), torch.from_numpy(found).to(boxes.device)


class _Boxes(NamedTuple):
    """All boxes, and after them one without area, for places of a lane that hold none.

    fields: (5, N + 1) x1, y1, x2, y2 and area, which is above 0.
    left: (N + 1,) scores as they stand, lowered in place; below 0 for what is taken.
    image: (N + 1,) image of each.
    group: (N + 1,) image and category of each.
    """

    fields: Floats
    left: Floats
    image: Indices
    group: Indices

    @classmethod
    def of(cls, boxes: Tensor, scores: Tensor, labels: Tensor, images: Tensor) -> _Boxes:
        """Columns in main memory; there is at least one box."""
        flat = boxes.detach().float().cpu()  # (N, 4)
        table = torch.cat([flat, box_area(flat)[:, None].clamp(min=_TINY)], dim=1)  # (N, 5)
        image = np.append(images.cpu().numpy(), 0)
        group = image * (int(labels.max()) + 1) + np.append(labels.cpu().numpy(), 0)
        fields = np.ascontiguousarray(torch.cat([table, table.new_tensor([[0, 0, 0, 0, _TINY]])]).T.numpy())
        return cls(fields, np.append(scores.detach().float().cpu().numpy(), _USED), image, group)


class _Rules(NamedTuple):
    """Settings of each box, or of each lane: the columns of `SuppressOptions` as the steps need them.

    limit: Overlap beyond which the linear method acts.
    sigma: Width of the gaussian.
    floor: Lowest score that is kept.
    gaussian: Whether the method is the gaussian one; lanes of it come last.
    """

    limit: Floats
    sigma: Floats
    floor: Floats
    gaussian: NDArray[np.bool_]

    def of(self, rows: Indices) -> _Rules:
        """The settings of these boxes."""
        return _Rules(self.limit[rows], self.sigma[rows], self.floor[rows], self.gaussian[rows])


def _rules(labels: Tensor, options: SuppressOptions) -> _Rules:
    sigma = values_of(labels, options.get("sigma", 0.5))
    method = methods_of(labels, options.get("method", "soft_linear"))
    if not (sigma > 0).all():
        raise ValueError(f"suppress: expected sigma > 0, found {sigma.min().item()}")
    return _Rules(
        values_of(labels, options.get("iou_threshold", 0.5)).cpu().numpy(),
        sigma.cpu().numpy(),
        values_of(labels, options.get("min_score", 1e-3)).cpu().numpy().clip(_TINY),
        (method == _GAUSSIAN).cpu().numpy(),
    )


def _portions(boxes: _Boxes, rules: _Rules) -> list[Indices]:
    """Rows of whole images, about `_PORTION` boxes at a time, the linear method's groups first in each."""
    order = np.argsort(boxes.image[:-1], kind="stable")
    first = np.flatnonzero(np.diff(boxes.image[order], prepend=-1))
    edges = first[np.flatnonzero(np.diff(first // _PORTION, prepend=-1))]
    return [
        rows[np.lexsort((boxes.group[rows], rules.gaussian[rows]))] for rows in np.split(order, edges[1:])
    ]


def _decay(boxes: _Boxes, rules: _Rules, rows: Indices, wanted: int | None) -> tuple[Indices, Floats]:
    """What stays of these rows, and the scores.

    No score ever rises. So once an image has as many boxes as are wanted, what has fallen below the least of them can
    neither come among them nor change one that does.
    """
    bar = np.zeros(boxes.image[rows].max() + 1, dtype=np.float32)
    keep, found = rows[:0], boxes.left[:0]
    while len(rows := rows[boxes.left[rows] >= np.maximum(rules.floor[rows], bar[boxes.image[rows]])]):
        lanes = _lanes(rows, boxes.group)  # (G, n)
        current = boxes.left[lanes]  # (G, n)
        steps = max(_MIN_STEPS, lanes.shape[1] // (_SHARE_OF_ALL if wanted is None else _SHARE_OF_FEW))
        picks, values = _advance(np.take(boxes.fields, lanes, axis=1), current, rules.of(lanes[:, :1]), steps)
        boxes.left[lanes] = current
        keep, found = np.concatenate([keep, lanes.ravel()[picks]]), np.concatenate([found, values])
        if wanted is not None:
            order, rank = _ranked(boxes.image[keep], found, keep)
            least, order = order[rank == wanted - 1], order[rank < wanted]
            bar[boxes.image[keep[least]]] = found[least]
            keep, found = keep[order], found[order]
    return keep, found


def _ranked(images: Indices, scores: Floats, rows: Indices) -> tuple[Indices, Indices]:
    """Positions image by image, best first, ties by lower row, and the rank of each in its image, from 0."""
    order = np.lexsort((rows, -scores, images))
    first = np.flatnonzero(np.diff(images[order], prepend=-1))
    return order, np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))


def _lanes(rows: Indices, group_of: Indices) -> Indices:
    """(G, n) the rows of one group per lane, in order; -1, the padding's row, where a group has fewer than n.

    Groups much smaller than the largest are left for later, when it has shrunk: little of a lane is padding.
    """
    group = group_of[rows]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    counts = np.diff(first, append=len(rows))
    large = counts * _MAX_PADDED >= counts.max()
    rows, counts = rows[np.repeat(large, counts)], counts[large]
    lanes = np.full((len(counts), counts.max()), -1, dtype=np.int64)
    lanes[np.arange(counts.max()) < counts[:, None]] = rows
    return lanes


def _advance(fields: Floats, left: Floats, rules: _Rules, steps: int) -> tuple[Indices, Floats]:
    """Take the next boxes of every lane, one in each step, as long as there are some.

    Args:
        fields: (5, G, n) of each lane's boxes.
        left: (G, n) scores as they stand; lowered in place, `_USED` for what is taken.
        rules: (G, 1) settings of each lane.
        steps: How many, at most.

    Returns:
        What was taken, as indices into the flattened lanes, and the scores.
    """
    lanes, size = left.shape  # G, n
    table, current, floor = (
        fields.reshape(5, -1),
        left.reshape(-1),
        rules.floor[:, 0],
    )  # (5, G · n), (G · n,), (G,)
    linear = int(np.count_nonzero(~rules.gaussian))
    limit, sigma = rules.limit[:linear], rules.sigma[linear:]
    starts = np.arange(0, lanes * size, size)
    picks, reached, taken = [], [], []
    for _ in range(steps):
        pick = left.argmax(axis=1) + starts  # (G,)
        value = current[pick]  # (G,)
        counts = value >= floor  # (G,)
        if not counts.any():
            break
        picks.append(pick)
        reached.append(value)
        taken.append(counts)
        factor = _iou_with(table[:, pick, None], fields)  # (G, n)
        if linear > 0:
            _linear_factor(factor[:linear], limit)
        if linear < lanes:
            _gaussian_factor(factor[linear:], sigma)
        left *= factor
        current[pick] = _USED
    among = np.concatenate(taken)
    return np.concatenate(picks)[among], np.concatenate(reached)[among]


def _linear_factor(iou: Floats, limit: Floats) -> None:
    """Overlaps (G, n) -> what they make of a score, in place: 1 - IoU above the limit, else 1."""
    above = (iou > limit).view(np.int8)  # as a factor: far faster than a masked operation
    iou *= above
    np.subtract(np.float32(1), iou, out=iou)


def _gaussian_factor(iou: Floats, sigma: Floats) -> None:
    """Overlaps (G, n) -> what they make of a score, in place: exp(-IoU² / sigma)."""
    np.maximum(iou, np.float32(0), out=iou)
    iou *= iou
    iou /= -sigma
    np.exp(iou, out=iou)


def _iou_with(best: Floats, fields: Floats) -> Floats:
    """Overlap of each lane's boxes with its best one, where there is any: `boxes.pairwise_iou`, bit for bit.

    Args:
        best: (5, G, 1).
        fields: (5, G, n), with areas above 0.

    Returns:
        (G, n); 0 or less for boxes that lie apart, which spares an operation.
    """
    sides = np.minimum(fields[2:4], best[2:4])  # (2, G, n)
    sides -= np.maximum(fields[:2], best[:2])
    inter: Floats = np.maximum(sides[0], np.float32(0), out=sides[0])  # (G, n)
    inter *= sides[1]
    union = np.add(fields[4], best[4], out=sides[1])  # (G, n)
    union -= inter
    inter /= union
    return inter

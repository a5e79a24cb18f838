"""Overlapping boxes of a category put into clusters: many images and categories at once.

Within a group (an image and category) the boxes come best first, and each joins the cluster that it overlaps most, if
by more than the group's threshold; otherwise it starts a cluster. That is sequential, but groups do not touch each
other, so they advance together:

    groups, largest first ─► packs of like size, one group per lane ─► step t: the t-th box of every lane
                                                                       against the clusters of its lane so far

The work is that of one box against all clusters of its group, whatever the number of groups, and the memory that of
one pack. N: boxes; G: lanes of a pack; S: boxes of its largest group, at most so many clusters; C: clusters so far.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TINY = 1e-200
"""The least area of a box: no IoU is 0 / 0."""

_PACK = 1 << 16  # boxes in a pack, padding included: what it needs stays in the cache
_MIN_LANES = 16


def cluster_boxes(boxes: Floats, weights: Floats, groups: Ints, limits: Floats, *, moving: bool) -> Ints:
    """Cluster of each box.

    Args:
        boxes: (N, 4) xyxy, finite.
        weights: (N,) above 0, of the boxes in the mean of their cluster.
        groups: (N,) group of each box, never falling; within a group the boxes stand in the order they are taken.
        limits: (N,) IoU that a box must exceed to join a cluster; one value per group.
        moving: A cluster is where the weighted mean of its boxes is, and moves with each; otherwise it stays where
            its first box is.

    Returns:
        (N,) numbers from 0, by group and, within it, in the order the clusters were started. At equal overlap with
        several clusters the earlier one is joined. (0,) for no boxes.
    """
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    counts = np.diff(first, append=len(groups))
    chosen = np.zeros(len(groups), dtype=np.int64)
    started = np.ones(len(first), dtype=np.int64)
    table = np.stack([*boxes.T, weights])  # (5, N)
    for lanes in _packs(counts):
        size = counts[lanes[0]]
        filled = np.arange(size)[:, None] < counts[lanes]  # (S, G)
        rows = np.where(filled, first[lanes] + np.arange(size)[:, None], 0)  # (S, G)
        pack = _Pack(table[:, rows], limits[first[lanes]], moving=moving)
        for step, active in enumerate(filled.sum(axis=1)[1:].tolist(), 1):
            pack.take(step, active)
        chosen[rows[filled]] = pack.chosen[filled]
        started[lanes] = pack.started
    return chosen + np.repeat(np.cumsum(started) - started, counts)


def _packs(counts: Ints) -> Iterator[Ints]:
    """Groups of more than one box, largest first, in portions of about `_PACK` boxes."""
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts > 1)]
    begin = 0
    while begin < len(order):
        end = begin + max(_MIN_LANES, _PACK // int(counts[order[begin]]))
        yield order[begin:end]
        begin = end


class _Pack:
    """Clusters of some groups, one lane each, the largest group first.

    Attributes:
        boxes: (S, 6, G) x1, y1, x2, y2, area, weight of the boxes by step.
        places: (5, S, G) x1, y1, x2, y2, area of the clusters.
        sums: (5, S, G) of the clusters' weighted x1, y1, x2, y2 and weights.
        started: (G,) clusters so far.
        chosen: (S, G) cluster of each box.
    """

    def __init__(self, table: Floats, limits: Floats, *, moving: bool) -> None:
        x1, y1, x2, y2, weights = table
        _, size, lanes = table.shape
        self.boxes = np.stack([x1, y1, x2, y2, _area(table), weights], axis=1)
        self.limits, self.moving = limits, moving
        self.places = np.zeros((5, size, lanes))
        self.places[4] = TINY
        self.places[:, 0] = self.boxes[0, :5]
        self.sums = np.zeros((5, size, lanes))
        self.sums[:, 0] = _weighted(self.boxes[0])
        self.started = np.ones(lanes, dtype=np.int64)
        self.chosen = np.zeros((size, lanes), dtype=np.int64)
        self.most = 1
        self.lane = np.arange(lanes)

    def take(self, step: int, active: int) -> None:
        """Put one more box of the first lanes, those that have one, into clusters."""
        box, lane = self.boxes[step, :, :active], self.lane[:active]
        iou = _iou(self.places[:, : self.most, :active], box)  # (C, G)
        nearest = iou.argmax(axis=0)  # (G,)
        joins = iou[nearest, lane] > self.limits[:active]  # (G,)
        cluster = np.where(joins, nearest, self.started[:active])
        self.chosen[step, :active] = cluster
        self.started[:active] += ~joins
        self.most = max(self.most, int(self.started[:active].max()))
        place = box[:5]  # (5, G)
        if self.moving:
            self.sums[:, cluster, lane] += _weighted(box)
            sums = self.sums[:, cluster, lane]  # (5, G) of the one cluster that each lane's box has come into
            corners = sums[:4] / sums[4]  # (4, G) weighted mean of its boxes
            place = np.where(joins, np.concatenate([corners, _area(corners)[None]]), place)
        else:
            place, cluster, lane = place[:, ~joins], cluster[~joins], lane[~joins]
        self.places[:, cluster, lane] = place


def _area(corners: Floats) -> Floats:
    area: Floats = np.maximum((corners[2] - corners[0]) * (corners[3] - corners[1]), TINY)
    return area


def _weighted(box: Floats) -> Floats:
    """(5, G) from (6, G): weight times x1, y1, x2, y2, and the weight."""
    return np.concatenate([box[:4] * box[5], box[5:]])


def _iou(places: Floats, box: Floats) -> Floats:
    """(C, G) overlap of each lane's clusters, (5, C, G), with its box, (5 or more, G)."""
    inter = np.minimum(places[2], box[2])  # (C, G): widths, then areas
    inter -= np.maximum(places[0], box[0])
    np.maximum(inter, 0, out=inter)
    height = np.minimum(places[3], box[3])  # (C, G)
    height -= np.maximum(places[1], box[1])
    np.maximum(height, 0, out=height)
    inter *= height
    union = np.add(places[4], box[4], out=height)
    union -= inter
    iou: Floats = np.divide(inter, union, out=inter)
    return iou

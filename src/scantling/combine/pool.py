"""The boxes of several detectors in one row, weighted and in the order in which they are fused.

N: boxes; K: categories; M: members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scantling.combine.clusters import Floats, Ints
from scantling.structures.detections import Detections

BOX_PORTION = 1 << 17
"""Boxes pooled at a time, so that memory does not grow with the data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Boxes of all members in some images, by image and category and within these in the order they are taken.

    Attributes:
        rows: (N,) images, labels, unweighted scores, boxes.
        members: (N,) index of the member of each box.
        weights: (N,) weight of that member in that category, above 0.
        scores: (N,) weighted scores, above 0.
        groups: (N,) image and category as one number.
    """

    rows: Detections
    members: Ints
    weights: Floats
    scores: Floats
    groups: Ints

    def __getitem__(self, rows: Ints) -> Pool:
        """Some of the boxes, in the order given."""
        return Pool(
            rows=self.rows[rows],
            members=self.members[rows],
            weights=self.weights[rows],
            scores=self.scores[rows],
            groups=self.groups[rows],
        )

    def scaled(self, weights: Floats) -> Detections:
        """The boxes with weighted scores in [0, 1], given all weights (M, K)."""
        return self.rows.replace(scores=self.scores / weights.max(axis=0)[self.rows.labels])


def pools(
    members: Sequence[Detections], weights: Floats, score_threshold: float, portion: int = BOX_PORTION
) -> Iterator[Pool]:
    """The boxes that count, some images at a time.

    Args:
        members: Detections of the same images, in any order; scores within rounding of [0, 1].
        weights: (M, K) of each member in each category; boxes of weight 0 do not count.
        score_threshold: Boxes at or below this score do not count.
        portion: About so many boxes at a time, whole images.
    """
    for parts in _portions(members, portion):
        rows = Detections.cat(parts)
        member = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        weight = weights[member, rows.labels]
        counts = (rows.scores > score_threshold) & (weight > 0)
        rows, member, weight = rows[counts], member[counts], weight[counts]
        scores = np.clip(rows.scores, 0, 1) * weight
        groups = rows.images * weights.shape[1] + rows.labels
        order = _order(groups, scores, rows.boxes, member)
        yield Pool(rows=rows, members=member, weights=weight, scores=scores, groups=groups)[order]


def _portions(members: Sequence[Detections], portion: int) -> Iterator[list[Detections]]:
    """Each member's boxes in the same few images, about so many boxes together."""
    num_images = max((int(member.images.max()) + 1 for member in members if len(member)), default=0)
    orders = [np.argsort(member.images, kind="stable") for member in members]
    counts = [np.bincount(member.images, minlength=num_images) for member in members]
    begins = [np.concatenate([[0], np.cumsum(count)]) for count in counts]
    total = np.sum(begins, axis=0)
    last = 0
    while last < num_images:
        first = last
        last = max(first + 1, int(np.searchsorted(total, total[first] + portion, side="right")) - 1)
        yield [
            member[order[begin[first] : begin[last]]]
            for member, order, begin in zip(members, orders, begins, strict=True)
        ]


def _order(groups: Ints, scores: Floats, boxes: Floats, members: Ints) -> Ints:
    """Order in which boxes are taken: by group, falling score; where these are equal, by box and member."""
    order = np.lexsort((-scores, groups))
    same = (np.diff(groups[order]) == 0) & (np.diff(scores[order]) == 0)
    tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    rows = order[tied[: len(order)]]
    keys = (members[rows], *boxes[rows].T[::-1], -scores[rows], groups[rows])
    order[tied[: len(order)]] = rows[np.lexsort(keys)]
    return order

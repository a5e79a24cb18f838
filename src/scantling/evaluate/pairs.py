"""Truths and detections of all images and categories as arrays, and COCO's greedy matching of them all at once.

Only pairs of a detection and a truth that overlap enough to match are kept, and the n-th detections of all images
and categories are matched together.

Dims: N objects, D detections, G truths, A area ranges, T IoU thresholds, P pairs of one detection.
Source: Lin et al., Microsoft COCO, ECCV 2014; matching and tie rules of pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scantling.evaluate.backends import IOU_THRESHOLDS
from scantling.ops import overlaps

_MAX_ROWS = 16_384  # matched at once

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objects:
    """Truths or detections, sorted by image and category; detections then by falling score.

    Attributes:
        keys: (N,) image and category in one number, ascending.
        is_crowd: (N,) regions in which a detection lies by its own area.
        is_ignored: (N,) crowd regions and single objects that count neither way, and may be matched many times.
        shapes: (N, 4) boxes xywh, or N masks as RLE.
    """

    keys: Ints
    images: Ints
    labels: Ints
    scores: Floats
    areas: Floats
    is_crowd: Flags
    is_ignored: Flags
    shapes: NDArray[Any]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, index: NDArray[Any]) -> Objects:
        """Those at some positions."""
        return Objects(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Detections and truths of one image and category that overlap by at least the lowest threshold.

    Those of one detection are neighbours, the preferred one last.
    """

    detections: Ints
    truths: Ints
    iou: Floats


def best_of_each(detections: Objects, limit: int) -> Objects:
    """At most `limit` of each image and category."""
    return detections.take(rank_among_equals(detections.keys) < limit)


def rank_among_equals(keys: Ints) -> Ints:
    """(N,) how many equal keys stand before each of the ascending keys."""
    return np.arange(len(keys)) - np.searchsorted(keys, keys, side="left")


# ---------------------------------------------------------------- pairs that may match


def find_pairs(detections: Objects, truths: Objects) -> Pairs:
    """Every pair worth matching, in the order of the detections."""
    order, other, iou = overlaps.find_pairs(
        detections.keys,
        detections.shapes,
        truths.keys,
        truths.shapes,
        is_crowd=truths.is_crowd,
        at_least=float(IOU_THRESHOLDS[0]),
    )
    preference = np.lexsort((other, iou, order))
    return Pairs(detections=order[preference], truths=other[preference], iou=iou[preference])


# ---------------------------------------------------------------- matching


def match_pairs(
    pairs: Pairs, detections: Objects, truths: Objects, truth_ignored: Flags
) -> tuple[Flags, Flags]:
    """(D, A, T) whether each detection matches a truth, and whether that one is not to be found."""
    shape = (truth_ignored.shape[1], len(IOU_THRESHOLDS))
    is_matched = np.zeros((len(detections), *shape), dtype=bool)
    on_ignored = np.zeros_like(is_matched)
    is_taken = np.zeros((len(truths), *shape), dtype=bool)
    matcher = _Matcher(
        pairs=pairs, is_reusable=truths.is_ignored, is_ignored=truth_ignored, is_taken=is_taken
    )
    for rows in _rounds(pairs, detections.keys):
        chosen = matcher.choose(rows)
        is_matched[rows] = chosen >= 0
        on_ignored[rows] = (chosen >= 0) & truth_ignored[chosen, np.arange(shape[0])[:, None]]
    return is_matched, on_ignored


def _rounds(pairs: Pairs, keys: Ints) -> Iterator[Ints]:
    """Detections that have pairs, the best of each image and category first, then the second, and so on."""
    paired = np.unique(pairs.detections)
    rank = rank_among_equals(keys[paired])
    order = np.argsort(rank, kind="stable")
    for part in np.split(paired[order], np.flatnonzero(np.diff(rank[order])) + 1):
        yield from (part[start : start + _MAX_ROWS] for start in range(0, len(part), _MAX_ROWS))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Matcher:
    """Gives truths away; `is_taken` (G, A, T) is written to."""

    pairs: Pairs
    is_reusable: Flags
    is_ignored: Flags
    is_taken: Flags

    def choose(self, rows: Ints) -> Ints:
        """(N, A, T) the truth that each of N detections gets, at most one detection per image and category; or -1.

        The largest overlap wins; of equal ones the last; truths not to be found only where no other is free.
        """
        first = np.searchsorted(self.pairs.detections, rows, side="left")
        counts = np.searchsorted(self.pairs.detections, rows, side="right") - first
        places = np.arange(counts.max(initial=1))
        pair = np.minimum(first[:, None] + places, first[:, None] + counts[:, None] - 1)
        truth = self.pairs.truths[pair]
        needed = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
        is_close = (self.pairs.iou[pair][..., None] >= needed) & (places < counts[:, None])[..., None]
        is_free = ~self.is_taken[truth] | self.is_reusable[truth][..., None, None]
        preference = places[:, None] + len(places) * ~self.is_ignored[truth]
        value = np.where(is_free & is_close[:, :, None], preference[..., None], -1).max(axis=1)
        chosen = np.where(value >= 0, truth[np.arange(len(rows))[:, None, None], value % len(places)], -1)
        detection, area, threshold = np.nonzero(chosen >= 0)
        self.is_taken[chosen[detection, area, threshold], area, threshold] = True
        return chosen

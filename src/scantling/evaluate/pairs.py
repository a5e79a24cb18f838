"""COCO's greedy matching of the detections of all images and categories at once.

Only pairs of a detection and a truth that overlap enough to match are kept, and the n-th detections of all images
and categories are matched together.

Dims: D detections, G truths, A area ranges, T IoU thresholds, N detections of one round, P pairs of one detection.
Source: Lin et al., Microsoft COCO, ECCV 2014; matching and tie rules of pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scantling.ops.overlaps import Flags, Floats, Ints, Pairs

NONE = -1
_MAX_ROWS = 16_384  # matched at once


def rank_among_equals(keys: Ints) -> Ints:
    """(N,) how many equal keys stand before each of the ascending keys."""
    return np.arange(len(keys)) - np.searchsorted(keys, keys, side="left")


def best_first(keys: Ints, scores: Floats, limit: int) -> Ints:
    """Rows by key and falling score, equal scores as given; at most `limit` of each key.

    Args:
        keys: (N,) image and category of each in one number.
        scores: (N,)
        limit: Rows kept of each key, best first.
    """
    order = np.lexsort((-scores, keys))
    return order[rank_among_equals(keys[order]) < limit]


def by_preference(pairs: Pairs) -> Pairs:
    """Pairs of one detection (`first`) as neighbours, by overlap, equal ones in order: preferred is the last."""
    return pairs.take(np.lexsort((pairs.second, pairs.iou, pairs.first)))


def match_pairs(
    pairs: Pairs, keys: Ints, truth_ignored: Flags, is_reusable: Flags, iou_thresholds: Floats
) -> Ints:
    """(D, A, T) the truth that each detection gets at each size and threshold, -1 for none.

    Args:
        pairs: Of D detections (`first`) and G truths of the same image and category, by preference.
        keys: (D,) image and category of each detection, ascending; those of one key best first.
        truth_ignored: (G, A) whether a truth is not to be found; such are taken only where no other is free.
        is_reusable: (G,) whether many detections may match it.
        iou_thresholds: (T,) overlaps from which a detection may match.
    """
    shape = (truth_ignored.shape[1], len(iou_thresholds))
    chosen = np.full((len(keys), *shape), NONE, dtype=np.int64)
    is_taken = np.zeros((len(truth_ignored), *shape), dtype=bool)
    matcher = _Matcher(
        pairs=pairs,
        is_reusable=is_reusable,
        is_ignored=truth_ignored,
        is_taken=is_taken,
        needed=np.minimum(iou_thresholds, 1 - 1e-10),
    )
    for rows in _rounds(pairs, keys):
        chosen[rows] = matcher.choose(rows)
    return chosen


def _rounds(pairs: Pairs, keys: Ints) -> Iterator[Ints]:
    """Detections that have pairs, the best of each image and category first, then the second, and so on."""
    paired = np.unique(pairs.first)
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
    needed: Floats

    def choose(self, rows: Ints) -> Ints:
        """(N, A, T) the truth that each of N detections gets, at most one detection per image and category; or -1.

        The largest overlap wins; of equal ones the last; truths not to be found only where no other is free.
        """
        first = np.searchsorted(self.pairs.first, rows, side="left")
        counts = np.searchsorted(self.pairs.first, rows, side="right") - first  # (N,)
        places = np.arange(counts.max(initial=1))  # (P,)
        pair = np.minimum(first[:, None] + places, first[:, None] + counts[:, None] - 1)  # (N, P)
        truth = self.pairs.second[pair]  # (N, P)
        is_close = (self.pairs.iou[pair][..., None] >= self.needed) & (places < counts[:, None])[
            ..., None
        ]  # (N, P, T)
        is_free = ~self.is_taken[truth] | self.is_reusable[truth][..., None, None]  # (N, P, A, T)
        preference = places[:, None] + len(places) * ~self.is_ignored[truth]  # (N, P, A)
        value = np.where(is_free & is_close[:, :, None], preference[..., None], NONE).max(axis=1)  # (N, A, T)
        chosen = np.where(value >= 0, truth[np.arange(len(rows))[:, None, None], value % len(places)], NONE)
        detection, area, threshold = np.nonzero(chosen >= 0)
        self.is_taken[chosen[detection, area, threshold], area, threshold] = True
        return chosen

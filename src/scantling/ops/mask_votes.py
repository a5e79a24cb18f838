"""Several masks of one object become one, pixel by pixel, by weighted vote; on run lengths.

    runs of N masks ─► +vote where a run begins, -vote where it ends ─► in order of place, summed up ─► runs of Q masks

Work and memory go by the number of runs, which is that of an object's columns, not by pixels. N: masks; Q: clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scantling.errors import DataError
from scantling.ops.overlaps import Floats, Ints
from scantling.ops.rle import RLE, check_size, rle_counts, rle_from_uncompressed

_ROUNDING = 1e-9  # of all votes: a sum of several is rounded, and a tie stays one


def vote_masks(masks: Sequence[RLE], votes: Floats, clusters: Ints, threshold: float = 0.5) -> list[RLE]:
    """The mask of each cluster: the pixels on which enough of its votes agree.

    Args:
        masks: N run lengths; those of a cluster are of one image.
        votes: (N,) weight of each, above 0.
        clusters: (N,) cluster of each, 0..Q-1; each number occurs.
        threshold: Share of its cluster's votes from which a pixel belongs to the object, above 0. A pixel with exactly
            this share belongs to it.

    Returns:
        Q masks; [] for none. One of a single mask covers what that mask covers.

    Raises:
        DataError: A mask is damaged, or those of a cluster are of different image sizes.
    """
    counts = [rle_counts(mask) for mask in masks]
    sizes: dict[int, tuple[int, int]] = {}
    for mask, cluster in zip(masks, clusters.tolist(), strict=True):
        size_hw = check_size(mask["size"])
        if sizes.setdefault(cluster, size_hw) != size_hw:
            raise DataError(
                f"masks of one object: expected images of one size, found {sizes[cluster]}, {size_hw}"
            )
    edges = [np.cumsum(each[: len(each) // 2 * 2]) for each in counts]  # on, off, on, off, ...
    lengths = [len(each) for each in edges]
    places = np.concatenate([np.zeros(0, dtype=np.int64), *edges])
    owner, change = np.repeat(clusters, lengths), np.repeat(votes, lengths)
    change[1::2] *= -1  # every mask has an even number of edges
    order = np.lexsort((places, owner))
    places, owner, change = places[order], owner[order], change[order]
    needed = np.bincount(clusters, votes) * (threshold - _ROUNDING)
    ends = np.searchsorted(owner, np.arange(len(needed) + 1)).tolist()
    return [
        _voted(places[a:b], change[a:b], limit, sizes[cluster])
        for cluster, (a, b, limit) in enumerate(zip(ends, ends[1:], needed.tolist(), strict=False))
    ]


def _voted(places: Ints, change: Floats, needed: float, size_hw: tuple[int, int]) -> RLE:
    """Runs on which the sum of the changes so far reaches what is needed."""
    last = np.flatnonzero(np.diff(places, append=-1))  # of several changes at one place the last sum counts
    is_on = np.cumsum(change)[last] >= needed
    flips = np.flatnonzero(np.diff(is_on, prepend=False))
    bounds = np.concatenate([[0], places[last][flips], [size_hw[0] * size_hw[1]]])
    counts = np.diff(bounds)
    return rle_from_uncompressed(counts[:-1] if counts[-1] == 0 else counts, size_hw)

"""Suppression by overlaps that are known: of masks, which only meet a few others.

    pairs that overlap ──► neighbours of each row ──► group by group: the best row is taken, its neighbours fall

`ops.nms` and `ops.soft_nms` reckon the overlaps of boxes as they go, of all with all; here a row touches nothing but
the rows it is paired with. The rules are the same. N: rows; P: pairs.
"""

from __future__ import annotations

import numpy as np

from scantling.ops.overlaps import Floats, Ints, Pairs
from scantling.ops.suppress_options import SuppressMethod

_USED = -1.0  # below any score


def suppress_pairs(
    scores: Floats,
    groups: Ints,
    pairs: Pairs,
    *,
    method: SuppressMethod,
    limits: Floats,
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> tuple[Ints, Floats]:
    """Of rows that overlap, remove the weaker (`hard`) or lower its score (the soft methods).

    Args:
        scores: (N,) above 0.
        groups: (N,) image and category of each row, never falling, from 0; pairs stay within one.
        pairs: Each pair once, the first row before the second; for the gaussian all that overlap, else at least those
            beyond the limit.
        method: As in `SuppressOptions`.
        limits: (N,) overlap beyond which a better row acts on this one.
        sigma: Width of the gaussian.
        min_score: The soft methods drop what falls below.

    Returns:
        Rows that stay, ascending, and their scores. At equal scores the earlier row is the better.

    Source:
        Bodla et al. 2017, with any overlap in place of that of boxes.
    """
    if method == "none":
        return np.arange(len(scores)), scores
    floor = max(np.finfo(np.float64).tiny, 0.0 if method == "hard" else min_score)
    rows, others, iou = (
        np.concatenate([pairs[one], pairs[other]]) for one, other in ((0, 1), (1, 0), (2, 2))
    )
    factors = _factors(iou, limits[rows], method, sigma)
    acts = np.flatnonzero(factors < 1)
    acts = acts[np.argsort(rows[acts], kind="stable")]
    ends = np.searchsorted(rows[acts], np.arange(len(scores) + 1))
    touched = np.flatnonzero(np.diff(ends))  # a row that nothing acts on keeps its score
    first = np.flatnonzero(np.diff(groups[touched], prepend=-1))
    place = np.zeros(len(scores), dtype=np.int64)  # of each touched row among those of its group
    place[touched] = np.arange(len(touched)) - np.repeat(first, np.diff(first, append=len(touched)))
    near, shares, left = place[others[acts]], factors[acts], scores.astype(np.float64, copy=True)
    left[touched] = 0.0
    for own in np.split(touched, first[1:]):
        current = scores[own].astype(np.float64)
        for _ in range(len(own)):
            best = int(current.argmax())
            if current[best] < floor:
                break
            left[own[best]] = current[best]
            neighbours = slice(ends[own[best]], ends[own[best] + 1])
            current[near[neighbours]] *= shares[neighbours]
            current[best] = _USED
    stays = np.flatnonzero(left >= floor)
    return stays, left[stays]


def _factors(iou: Floats, limits: Floats, method: SuppressMethod, sigma: float) -> Floats:
    """What each overlap makes of the score of the weaker row."""
    if method == "soft_gaussian":
        return np.exp(-(iou**2) / sigma)
    return np.where(iou > limits, 0.0 if method == "hard" else 1 - iou, 1.0)

"""How likely a label is wrong, measured against the bulk of the labels, most of which are right.

Every piece of evidence multiplies the odds of a fault, which start at a rate of faults. So scores of different kinds
of faults stand on one scale and can be ranked together. Groups are the categories, or categories and sizes; a small
group borrows from all labels. N: values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

BORROWED = 20.0
"""How many values of all labels stand beside a group's own."""
BORROWED_SPREAD = 50.0
"""The same for median and spread, which few values tell badly."""

MAX_PRECISION = 0.99
_NORMAL_SPREAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
_MAX_RATE = 0.2
_MAX_LOG_RATIO, _TIE_BREAK = 6.0, 0.01
_SURE_QUANTILE = 0.75


def posterior(rate: float | Floats, log_ratio: Floats) -> Floats:
    """(N,) probability after evidence: the odds of `rate` times exp(`log_ratio`)."""
    posterior_logit = np.log(rate) - np.log1p(-np.asarray(rate)) + log_ratio
    return np.asarray(1 / (1 + np.exp(-np.clip(posterior_logit, -50, 50))), dtype=np.float64)


def logit(probabilities: Floats) -> Floats:
    """(N,) log of p / (1 - p), for p strictly between 0 and 1."""
    return np.asarray(np.log(probabilities) - np.log1p(-probabilities), dtype=np.float64)


def robust_z(values: Floats, groups: Rows, min_spread: float) -> Floats:
    """How many deviations each value lies above what is usual in its group.

    Args:
        values: (N,); NaN is left out and stays NaN.
        groups: (N,) number of the group.
        min_spread: The deviation counts as this at least, so that differences nobody cares about do not stand out.

    Returns:
        (N,) (value - median) / deviation, both of the group and, as if it had 50 more members, of all values.
    """
    result = np.full(len(values), np.nan)
    known = np.isfinite(values)
    if not known.any():
        return result
    median_all, spread_all = _middle(values[known])
    for group in np.unique(groups[known]):
        rows = known & (groups == group)
        own = rows.sum() / (rows.sum() + BORROWED_SPREAD)
        median, spread = _middle(values[rows])
        median, spread = (
            own * median + (1 - own) * median_all,
            max(own * spread + (1 - own) * spread_all, min_spread),
        )
        result[rows] = (values[rows] - median) / spread
    return result


def deviation_log_ratio(z: Floats) -> Floats:
    """(N,) log of how much likelier a deviation is of a wrong label than of a right one.

    Right labels deviate normally, wrong ones by anything; so z^2 / 2, 0 for what is usual or less, and no more than
    6, since right labels have stragglers too. NaN, where nothing is known, gives 0.
    """
    usual = np.clip(np.nan_to_num(z), 0, None)
    return np.minimum(usual**2 / 2, _MAX_LOG_RATIO) + _TIE_BREAK * usual


def share_at_most(values: Floats, groups: Rows) -> Floats:
    """How usual a value this low is: the share of values of its group that are at most as large.

    Args:
        values: (N,); NaN is left out and stays NaN.
        groups: (N,) number of the group.

    Returns:
        (N,) in (0, 1]: the share of the group and, as if it had 20 more members, of all values.
    """
    known = ~np.isnan(values)
    ordered_all = np.sort(values[known])
    share_all = np.searchsorted(ordered_all, values, side="right") / max(len(ordered_all), 1)
    result = np.full(len(values), np.nan)
    for group in np.unique(groups[known]):
        rows = known & (groups == group)
        below = np.searchsorted(np.sort(values[rows]), values[rows], side="right")
        result[rows] = (below + BORROWED * share_all[rows]) / (rows.sum() + BORROWED)
    return result


def precision_of(scores: Floats, is_right: Flags, rate: float, recall: float) -> tuple[Floats, float]:
    """Probability that a detection is a real object, by its score, and the share of objects without a label.

    The share of detections that found a label grows with the score (isotonic regression). What the surest detections
    lack of 1 is put down half to the detector and half to labels that are missing; the latter the less, the more
    labels the detector overlooks (by the square of its recall), since a weak detector errs at high scores too.

    Args:
        scores: (M,) of one category, or of all.
        is_right: (M,) which of them found a label.
        rate: Share of missing labels that is assumed at least.
        recall: Share of the labels that were found.

    Returns:
        (M,) probabilities in [0, 0.99], which grow with the score; and the share of missing labels, from `rate` to
        0.2.
    """
    if not is_right.any():
        return np.zeros(len(scores)), rate
    from scipy.optimize import isotonic_regression  # half a second, which only audits need

    sure = scores >= np.quantile(scores[is_right], _SURE_QUANTILE)
    lacking = float(1 - is_right[sure].mean())
    missing = float(np.clip(lacking * recall**2 / 2, rate, _MAX_RATE))
    order = np.lexsort((~is_right, scores))  # right ones first among equals, which then share one value
    fitted = isotonic_regression(is_right[order].astype(np.float64))
    blocks = fitted.blocks
    at = [
        float(scores[order[first:last]].mean()) for first, last in zip(blocks[:-1], blocks[1:], strict=True)
    ]
    share = np.interp(scores, at, fitted.x[blocks[:-1]])
    return np.minimum(share / (1 - missing), MAX_PRECISION), missing


def _middle(values: Floats) -> tuple[float, float]:
    """Median, and the spread of the bulk around it on the scale of a standard deviation."""
    median = float(np.median(values))
    return median, _NORMAL_SPREAD * float(np.median(np.abs(values - median)))

"""Whether a score can be read as a probability: of predictions scoring 0.8, are 80 % right?

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (reliability diagram, expected calibration
error). A prediction is right if it is matched to a truth at the breakdown's IoU threshold; duplicates are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scantling.evaluate.breakdown import Breakdown

NUM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Predictions of like score; `mean_score` and `share_right` are None in an empty bin."""

    low: float
    high: float
    count: int
    mean_score: float | None
    share_right: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Reliability of all scores together.

    Attributes:
        bins: Equally wide from 0 to 1; a score on an edge belongs to the upper bin.
        error: Expected calibration error, the mean of |share right - mean score| over all predictions; None without
            predictions.
        num_predictions: That count; those on crowd regions do not.
    """

    bins: tuple[ReliabilityBin, ...]
    error: float | None
    num_predictions: int


def calibration_of(breakdown: Breakdown) -> Calibration:
    """Calibration of every prediction, accepted or not.

    Args:
        breakdown: Matched results; none gives empty bins.
    """
    pairs = [(m.predictions.scores[~m.is_ignored], m.is_hit[~m.is_ignored]) for m in breakdown.matches]
    scores = np.concatenate([np.zeros(0), *(scores for scores, _ in pairs)])
    is_hit = np.concatenate([np.zeros(0, dtype=bool), *(hits for _, hits in pairs)])
    edges = np.linspace(0, 1, NUM_BINS + 1)
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, NUM_BINS - 1)
    counts = np.bincount(place, minlength=NUM_BINS)
    sums = np.bincount(place, weights=scores, minlength=NUM_BINS)
    hits = np.bincount(place, weights=is_hit, minlength=NUM_BINS)
    bins = tuple(
        ReliabilityBin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            count=int(count),
            mean_score=float(sums[index] / count) if count else None,
            share_right=float(hits[index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    )
    error = float(np.abs(hits - sums).sum() / len(scores)) if len(scores) else None
    return Calibration(bins=bins, error=error, num_predictions=len(scores))

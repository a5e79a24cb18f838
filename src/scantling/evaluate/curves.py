"""What another score threshold would give: precision, recall and F1 over the threshold, by category and overall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scantling.evaluate.breakdown import Breakdown, best_threshold, outcomes_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ThresholdCurve:
    """One category, or all together, at every score threshold that changes something.

    Attributes:
        name: Category, or None for all predictions together.
        thresholds: (N,) falling; predictions scoring at least this count.
        precision: (N,) of the predictions, the share that is right.
        recall: (N,) of the truths, the share that is found.
        f1: (N,) harmonic mean of both.
        suggested: Threshold with the highest F1; None if nothing is found at any.
        num_truths: Truths to be found; without any there are no points.
    """

    name: str | None
    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    suggested: float | None
    num_truths: int

    @property
    def best_f1(self) -> float | None:
        """F1 at the suggested threshold."""
        return float(self.f1.max()) if self.suggested is not None else None


def threshold_curves(breakdown: Breakdown) -> tuple[ThresholdCurve, ...]:
    """One curve for all categories at one common threshold, then one for each category in label order.

    Args:
        breakdown: Matched results; without predictions or truths the curves have no points.
    """
    outcomes = [outcomes_of(label, breakdown.matches) for label in range(len(breakdown.points))]
    curves = [
        threshold_curve(point.name, *found) for point, found in zip(breakdown.points, outcomes, strict=True)
    ]
    scores = np.concatenate([np.zeros(0), *(found[0] for found in outcomes)])
    is_hit = np.concatenate([np.zeros(0, dtype=bool), *(found[1] for found in outcomes)])
    return (threshold_curve(None, scores, is_hit, sum(found[2] for found in outcomes)), *curves)


def threshold_curve(
    name: str | None, scores: NDArray[np.float64], is_hit: NDArray[np.bool_], num_truths: int
) -> ThresholdCurve:
    """Precision, recall and F1 at every threshold.

    Args:
        name: Category, or None.
        scores: (N,) in any order.
        is_hit: (N,) whether the prediction is right.
        num_truths: Truths to be found.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(is_hit[order], dtype=np.int64)
    accepted = np.arange(1, len(ranked) + 1)
    kept = np.append(ranked[1:] < ranked[:-1], True)[: len(ranked)] & (num_truths > 0)
    best = best_threshold(scores, is_hit, num_truths) if num_truths else None
    return ThresholdCurve(
        name=name,
        thresholds=ranked[kept],
        precision=hits[kept] / accepted[kept],
        recall=hits[kept] / max(num_truths, 1),
        f1=2 * hits[kept] / (accepted[kept] + num_truths),
        suggested=best[0] if best else None,
        num_truths=num_truths,
    )


def at_threshold(curve: ThresholdCurve, thresholds: Sequence[float]) -> NDArray[np.float64]:
    """(N, 3) precision, recall and F1 at given thresholds; NaN above the highest score."""
    index = np.searchsorted(-curve.thresholds, -np.asarray(thresholds), side="right") - 1
    values = np.stack([curve.precision, curve.recall, curve.f1], axis=1)
    found = np.full((len(index), 3), np.nan)
    found[index >= 0] = values[index[index >= 0]]
    return found

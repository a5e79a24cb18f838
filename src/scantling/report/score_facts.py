"""What scores are worth: curves over the score threshold, confusions and calibration of the reported results."""

from __future__ import annotations

import numpy as np

from scantling.evaluate.breakdown import Breakdown
from scantling.evaluate.calibration import calibration_of
from scantling.evaluate.coco_eval import Evaluation
from scantling.evaluate.confusion import confusion_of
from scantling.evaluate.curves import ThresholdCurve, at_threshold, threshold_curves
from scantling.report.content import ScoreFacts, Series

MAX_CATEGORIES = 7
_GRID = np.linspace(0.0, 1.0, 101)


def describe_scores(evaluation: Evaluation, breakdown: Breakdown) -> ScoreFacts:
    """Curves of all categories together and of the most frequent ones, and what goes with them.

    Args:
        evaluation: Of the results the breakdown is of.
        breakdown: Matched at IoU 0.5.
    """
    everything, *categories = threshold_curves(breakdown)
    frequent = sorted(range(len(categories)), key=lambda label: -categories[label].num_truths)[
        :MAX_CATEGORIES
    ]
    shown = [label for label in sorted(frequent) if categories[label].num_truths]
    f1 = [_f1_series("all", everything), *(_f1_series(str(categories[k].name), categories[k]) for k in shown)]
    return ScoreFacts(
        precision_recall=_precision_recall(evaluation, shown),
        f1=tuple(series for series in f1 if series.points),
        num_hidden=sum(curve.num_truths > 0 for curve in categories) - len(shown),
        threshold=everything.suggested,
        best_f1=everything.best_f1,
        confusion=confusion_of(breakdown),
        calibration=calibration_of(breakdown),
    )


def _precision_recall(evaluation: Evaluation, shown: list[int]) -> tuple[Series, ...]:
    """Interpolated precision at IoU 0.5, whose mean is AP50: of all categories on average, then of some."""
    precision = evaluation.curves.precision[0, :, :, 0, -1]
    defined = precision[:, (precision > -1).all(axis=0)]
    if not defined.size:
        return ()
    names = [result.name for result in evaluation.per_category]
    lines = {"all": defined.mean(axis=1)} | {names[label]: precision[:, label] for label in shown}
    return tuple(Series(name=name, points=_points(values)) for name, values in lines.items())


def _f1_series(name: str, curve: ThresholdCurve) -> Series:
    f1 = at_threshold(curve, _GRID.tolist())[:, 2]
    return Series(name=name, points=tuple(point for point in _points(f1) if not np.isnan(point[1])))


def _points(values: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in zip(_GRID, values, strict=True))

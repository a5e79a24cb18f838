"""Which category is taken for which, with background as a category of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scantling.evaluate.breakdown import Breakdown
from scantling.evaluate.matching import ImageMatch
from scantling.evaluate.pairs import NONE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confusion:
    """Counts at the operating points.

    Attributes:
        names: K categories; index K is the background.
        counts: (K + 1, K + 1) truths by row, predictions by column. The last row holds predictions of no truth, the
            last column truths that nothing found; every truth and every accepted prediction counts once.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]


def confusion_of(breakdown: Breakdown) -> Confusion:
    """Confusion of the predictions that reach their category's suggested threshold.

    What is right is paired first; what is left is paired whatever the categories, the surest prediction first
    with the truth it overlaps most. Crowd regions count neither way.

    Args:
        breakdown: Matched results; nothing at all gives zeros.
    """
    num_classes = len(breakdown.points)
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for image, match in enumerate(breakdown.matches):
        for truth, prediction in _pairs(match, breakdown.accepted(image), breakdown.iou_threshold):
            row = num_classes if truth == NONE else match.truths.labels[truth]
            column = num_classes if prediction == NONE else match.predictions.labels[prediction]
            counts[row, column] += 1
    return Confusion(names=tuple(point.name for point in breakdown.points), counts=counts)


def _pairs(match: ImageMatch, accepted: NDArray[np.bool_], iou_threshold: float) -> Iterator[tuple[int, int]]:
    """Truth and prediction of every entry of one image; NONE for the background."""
    is_open = match.truths.is_object
    for prediction in np.flatnonzero(accepted & match.is_hit):
        is_open[match.truth_of[prediction]] = False
        yield int(match.truth_of[prediction]), int(prediction)
    iou = match.iou
    for prediction in np.flatnonzero(accepted & (match.truth_of == NONE)):
        overlaps = np.where(is_open, iou[prediction], -1.0)
        nearest = int(overlaps.argmax()) if overlaps.size else NONE
        if nearest != NONE and overlaps[nearest] >= iou_threshold:
            is_open[nearest] = False
            yield nearest, int(prediction)
        else:
            yield NONE, int(prediction)
    for truth in np.flatnonzero(is_open):
        yield int(truth), NONE

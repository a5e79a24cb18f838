"""What goes wrong and where: operating points, errors by kind, the images that cost most.

The errors are those a user would meet: of each category only predictions that score at least the threshold at
which its F1 is highest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.evaluate.inputs import IouType, Result, eval_inputs
from scantling.evaluate.matching import ErrorKind, ImageMatch, match_images
from scantling.evaluate.pairs import NONE

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """One category at the score threshold that maximises its F1.

    Attributes:
        name: Category name.
        threshold: Predictions scoring at least this count. 0.5 where no threshold finds anything.
        precision: Of the predictions, the share that is right; None without predictions.
        recall: Of the truths, the share that is found; None without truths.
        f1: Harmonic mean of both; None without truths.
        hits: Predictions that are right.
        false_positives: Predictions that are wrong (crowd regions count neither way).
        misses: Truths not found.
        errors: Number of errors of each kind, `missed` among them.
    """

    name: str
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None
    hits: int
    false_positives: int
    misses: int
    errors: Mapping[ErrorKind, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCase:
    """One error at the operating points.

    Attributes:
        kind: What is wrong.
        image: Position of the image in the data set.
        label: Category of the prediction, or of the missed truth.
        box: xyxy of the prediction, or of the missed truth.
        score: Score of the prediction; for a miss, of the prediction that finds it but is below the threshold,
            or None if there is none.
        prediction: Position among the image's predictions; for a miss, of the accepted prediction nearest to it
            or None if there is none.
        truth: Position of the truth it concerns among the image's truths, or None for background.
        overlap: IoU of that truth and that prediction.
    """

    kind: ErrorKind
    image: int
    label: int
    box: tuple[float, float, float, float]
    score: float | None
    prediction: int | None
    truth: int | None
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSummary:
    """How one image went at the operating points."""

    image: int
    num_truths: int
    hits: int
    false_positives: int
    misses: int

    @property
    def num_errors(self) -> int:
        """False positives and misses."""
        return self.false_positives + self.misses


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Breakdown:
    """The errors of one list of results.

    Attributes:
        iou_type: Overlap that decided.
        iou_threshold: Overlap from which a prediction has found a truth.
        matches: One per image, in the data set's order.
        points: One per category, in label order.
    """

    iou_type: IouType
    iou_threshold: float
    matches: tuple[ImageMatch, ...]
    points: tuple[OperatingPoint, ...]

    def accepted(self, image: int) -> NDArray[np.bool_]:
        """(N,) which predictions of an image reach their category's threshold."""
        return _accepted(self.matches[image], [point.threshold for point in self.points])

    def errors(self, kind: ErrorKind | None = None) -> list[ErrorCase]:
        """All errors, or those of one kind: the surest false positives first, of misses the largest."""
        cases = [case for image in range(len(self.matches)) for case in self._cases(image)]
        chosen = [case for case in cases if kind is None or case.kind == kind]
        return sorted(chosen, key=_severity, reverse=True)

    def worst_images(self, limit: int | None = None) -> list[ImageSummary]:
        """Images with errors, those with most errors first (of equals, the one with fewer hits)."""
        summaries = [self._summary(image) for image in range(len(self.matches))]
        wrong = [summary for summary in summaries if summary.num_errors]
        return sorted(wrong, key=lambda summary: (-summary.num_errors, summary.hits))[:limit]

    def _cases(self, image: int) -> Iterator[ErrorCase]:
        match, accepted = self.matches[image], self.accepted(image)
        for index in np.flatnonzero(accepted):
            if (kind := match.kinds[index]) is not None:
                yield _false_positive(image, match, int(index), kind)
        for index in np.flatnonzero(_is_missed(match, accepted)):
            yield _miss(image, match, int(index), accepted)

    def _summary(self, image: int) -> ImageSummary:
        match, accepted = self.matches[image], self.accepted(image)
        return ImageSummary(
            image=image,
            num_truths=int(match.truths.is_object.sum()),
            hits=int((match.is_hit & accepted).sum()),
            false_positives=sum(match.kinds[index] is not None for index in np.flatnonzero(accepted)),
            misses=int(_is_missed(match, accepted).sum()),
        )


def break_down(
    dataset: CocoDataset,
    results: Sequence[Result],
    *,
    iou_type: IouType = "bbox",
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> Breakdown:
    """Match results to truths and say what is wrong.

    Args:
        dataset: The truth. Not changed.
        results: COCO result records in the data set's own ids; none at all: every truth is missed.
        iou_type: Overlap of boxes or of masks.
        iou_threshold: Overlap from which a prediction has found a truth.
        max_detections: Predictions kept per image and category, best first.

    Raises:
        DataError: Results that do not belong to the data set or are damaged; with all findings.
    """
    inputs = eval_inputs(dataset, results, iou_type)
    matches = tuple(match_images(inputs, iou_threshold=iou_threshold, max_detections=max_detections))
    points = [_operating_point(c.name, label, matches) for label, c in enumerate(dataset.categories)]
    return Breakdown(
        iou_type=iou_type, iou_threshold=iou_threshold, matches=matches, points=_count_errors(points, matches)
    )


def best_threshold(
    scores: NDArray[np.float64], is_hit: NDArray[np.bool_], num_truths: int
) -> tuple[float, float] | None:
    """Score threshold with the highest F1, and that F1; of equally good ones the highest threshold.

    Args:
        scores: (N,) in any order.
        is_hit: (N,) whether the prediction is right.
        num_truths: Truths to be found.

    Returns:
        None if no prediction is right.
    """
    if not is_hit.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(is_hit[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + num_truths)
    is_last_of_equals = np.append(ranked[1:] < ranked[:-1], True)
    best = int(np.argmax(np.where(is_last_of_equals, f1, -1.0)))
    return float(ranked[best]), float(f1[best])


def _operating_point(name: str, label: int, matches: Sequence[ImageMatch]) -> OperatingPoint:
    scores, is_hit, num_truths = outcomes_of(label, matches)
    best = best_threshold(scores, is_hit, num_truths)
    threshold = best[0] if best else DEFAULT_THRESHOLD
    accepted = scores >= threshold
    hits, wrong = int((accepted & is_hit).sum()), int((accepted & ~is_hit).sum())
    return OperatingPoint(
        name=name,
        threshold=threshold,
        precision=hits / (hits + wrong) if hits + wrong else None,
        recall=hits / num_truths if num_truths else None,
        f1=(best[1] if best else 0.0) if num_truths else None,
        hits=hits,
        false_positives=wrong,
        misses=num_truths - hits,
        errors={},
    )


def outcomes_of(
    label: int, matches: Sequence[ImageMatch]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Scores and outcomes of a category's predictions over all images, and the number of its truths."""
    scores, hits, num_truths = [np.zeros(0)], [np.zeros(0, dtype=bool)], 0
    for match in matches:
        counts = (match.predictions.labels == label) & ~match.is_ignored
        scores.append(match.predictions.scores[counts])
        hits.append(match.is_hit[counts])
        num_truths += int(((match.truths.labels == label) & match.truths.is_object).sum())
    return np.concatenate(scores), np.concatenate(hits), num_truths


def _count_errors(
    points: Sequence[OperatingPoint], matches: Sequence[ImageMatch]
) -> tuple[OperatingPoint, ...]:
    """The same points with their errors counted by kind."""
    thresholds = [point.threshold for point in points]
    counters = [Counter[ErrorKind]() for _ in points]
    for match in matches:
        for index in np.flatnonzero(_accepted(match, thresholds)):
            if (kind := match.kinds[index]) is not None:
                counters[match.predictions.labels[index]][kind] += 1
    for point, counter in zip(points, counters, strict=True):
        counter[ErrorKind.MISSED] = point.misses
    return tuple(
        replace(point, errors={kind: counter[kind] for kind in ErrorKind})
        for point, counter in zip(points, counters, strict=True)
    )


def _accepted(match: ImageMatch, thresholds: Sequence[float]) -> NDArray[np.bool_]:
    needed = np.asarray(thresholds, dtype=np.float64)[match.predictions.labels]
    return match.predictions.scores >= needed


def _is_missed(match: ImageMatch, accepted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    missed = match.truths.is_object
    found = match.prediction_of != NONE
    missed[found] &= ~accepted[match.prediction_of[found]]
    return missed


def _false_positive(image: int, match: ImageMatch, index: int, kind: ErrorKind) -> ErrorCase:
    nearest = int(match.nearest[index])
    return ErrorCase(
        kind=kind,
        image=image,
        label=int(match.predictions.labels[index]),
        box=_as_box(match.predictions.boxes[index]),
        score=float(match.predictions.scores[index]),
        prediction=index,
        truth=None if nearest == NONE else nearest,
        overlap=float(match.overlap[index]),
    )


def _miss(image: int, match: ImageMatch, index: int, accepted: NDArray[np.bool_]) -> ErrorCase:
    below = int(match.prediction_of[index])
    near = np.flatnonzero(accepted & (match.nearest == index))
    nearest = int(near[match.overlap[near].argmax()]) if near.size else None
    return ErrorCase(
        kind=ErrorKind.MISSED,
        image=image,
        label=int(match.truths.labels[index]),
        box=_as_box(match.truths.boxes[index]),
        score=None if below == NONE else float(match.predictions.scores[below]),
        prediction=nearest,
        truth=index,
        overlap=0.0 if nearest is None else float(match.overlap[nearest]),
    )


def _as_box(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


def _severity(case: ErrorCase) -> float:
    x1, y1, x2, y2 = case.box
    return (x2 - x1) * (y2 - y1) if case.kind == ErrorKind.MISSED else case.score or 0.0

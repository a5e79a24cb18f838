"""The few sentences and numbers at the top of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scantling.evaluate.bootstrap import Interval
from scantling.evaluate.breakdown import OperatingPoint
from scantling.evaluate.coco_eval import CategoryResult, Evaluation
from scantling.evaluate.matching import ErrorKind
from scantling.report.content import ReportContent, StageResult

KIND_WORDS: dict[ErrorKind, str] = {
    ErrorKind.MISSED: "missed objects",
    ErrorKind.BACKGROUND: "predictions where nothing is labelled",
    ErrorKind.CLASS: "objects taken for another category",
    ErrorKind.LOCALISATION: "badly placed predictions",
    ErrorKind.BOTH: "badly placed predictions of another category",
    ErrorKind.DUPLICATE: "duplicates",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One of the big numbers; `value` is None where undefined, `interval` also without a bootstrap."""

    name: str
    value: float | None
    meaning: str
    interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCount:
    """How often one kind of error happens, and its share of the most frequent kind."""

    kind: ErrorKind
    words: str
    count: int
    share: float


def headline_evaluation(stages: Sequence[StageResult]) -> Evaluation | None:
    """What the report is about: of the last stage what the run is judged by, masks or boxes."""
    return stages[-1].evaluations[-1] if stages and stages[-1].evaluations else None


def headlines(evaluation: Evaluation) -> tuple[Headline, ...]:
    """The four numbers everybody looks for first."""
    largest = evaluation.max_detections[-1]
    meanings = {
        "AP": "mean over IoU 0.50 to 0.95",
        "AP50": "at IoU 0.50",
        "AP75": "at IoU 0.75",
        f"AR{largest}": f"recall with {largest} predictions per image and category",
    }
    return tuple(
        Headline(
            name=name,
            value=evaluation.metrics.get(name),
            meaning=meaning,
            interval=evaluation.intervals.get(name),
        )
        for name, meaning in meanings.items()
    )


def sentences(content: ReportContent) -> tuple[str, ...]:
    """What a reader with half a minute should know; nothing without an evaluation."""
    evaluation = headline_evaluation(content.stages)
    if evaluation is None:
        return ()
    said = [_found(evaluation, content), _categories(evaluation), _most_frequent(content.points)]
    return tuple(sentence for sentence in said if sentence)


def error_counts(points: Sequence[OperatingPoint]) -> tuple[ErrorCount, ...]:
    """Errors over all categories, the most frequent kind first."""
    totals = {kind: sum(point.errors.get(kind, 0) for point in points) for kind in ErrorKind}
    largest = max(totals.values(), default=0) or 1
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return tuple(
        ErrorCount(kind=kind, words=KIND_WORDS[kind], count=count, share=count / largest)
        for kind, count in ranked
    )


def _found(evaluation: Evaluation, content: ReportContent) -> str:
    num_truths = sum(result.num_truths for result in evaluation.per_category)
    place = f"{evaluation.num_images:,} {content.split} {'image' if evaluation.num_images == 1 else 'images'}"
    if not num_truths:
        return f"There are no objects in {place}, so AP and AR are undefined."
    hits = sum(point.hits for point in content.points)
    wrong = sum(point.false_positives for point in content.points)
    if not hits:
        return f"None of the {num_truths:,} objects in {place} is found."
    return (
        f"Of the {num_truths:,} objects in {place}, {hits / num_truths:.0%} are found, "
        f"and {hits / (hits + wrong):.0%} of the predictions are right, "
        "at IoU 0.5 and the best score threshold of each category."
    )


def _categories(evaluation: Evaluation) -> str:
    defined = [result for result in evaluation.per_category if result.AP is not None]
    if len(defined) < 2:
        return ""
    best, worst = max(defined, key=_average), min(defined, key=_average)
    return f"Strongest on {best.name} (AP {best.AP:.3f}), weakest on {worst.name} (AP {worst.AP:.3f})."


def _average(result: CategoryResult) -> float:
    return result.AP or 0.0


def _most_frequent(points: Sequence[OperatingPoint]) -> str:
    counts = error_counts(points)
    total = sum(count.count for count in counts)
    if not total:
        return ""
    return f"The most frequent errors are {counts[0].words}: {counts[0].count:,} of {total:,}."

"""Which of two results is better, and whether other images could have said the opposite: a paired bootstrap.

Both are resampled with the same draws of images, so what is hard about an image is hard for both and cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.evaluate.bootstrap import (
    METRICS,
    Interval,
    Resampled,
    centre,
    interval,
    resample,
    weights_with_all,
)
from scantling.evaluate.inputs import IouType, Result, eval_inputs
from scantling.evaluate.outcomes import match_outcomes

_HEADER = f"{'metric':<7} {'A':>7} {'B':>7} {'B - A':>8}  {'95 % interval':<18} {'B > A':>6}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of two results.

    Attributes:
        category: Name, or None for the mean over all categories.
        metric: AP, AP50, AP75, APs, APm, APl, or AR (at 100 detections).
        first: Value of the first result (A); None where undefined.
        second: Value of the second result (B).
        difference: B minus A.
        interval: 95 % interval of the difference over images.
        share_better: Share of the resamples in which B is above A, the resampled differences moved as for the
            interval, so that it is above 0.975 just where the interval lies above 0.
    """

    category: str | None
    metric: str
    first: float | None
    second: float | None
    difference: float | None
    interval: Interval | None
    share_better: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two results on one data set.

    Attributes:
        iou_type: Overlap that counts.
        num_images: Images compared on.
        num_resamples: Draws of the bootstrap.
        max_detections: Predictions counted per image and category.
        overall: One for each metric.
        per_category: AP of each category, in label order.
    """

    iou_type: IouType
    num_images: int
    num_resamples: int
    max_detections: int
    overall: tuple[Difference, ...]
    per_category: tuple[Difference, ...]

    def to_text(self) -> str:
        """Tables for people."""
        limit = f", maxDets={self.max_detections}" if self.max_detections != 100 else ""
        counts = f"{self.num_images} images, {self.num_resamples} paired resamples{limit}"
        lines = [f"{self.iou_type}, {counts}", "", _HEADER, *map(_line, self.overall)]
        if len(self.per_category) > 1:
            lines += ["", f"AP by category; {_HEADER[8:].strip()}"]
            lines += [f"{_line(found)}  {found.category}" for found in self.per_category]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare_results(
    dataset: CocoDataset,
    first: Sequence[Result],
    second: Sequence[Result],
    *,
    iou_type: IouType = "bbox",
    bootstrap: int = 1000,
    seed: int = 0,
    max_detections: int = 100,
) -> Comparison:
    """Compare two lists of results on the same images.

    Args:
        dataset: The truth.
        first: COCO results in the data set's own ids (A).
        second: The same of what A is compared with (B).
        iou_type: Overlap of boxes or of masks.
        bootstrap: Resamples.
        seed: Of the resamples.
        max_detections: Predictions counted per image and category, best first.

    Raises:
        DataError: Results that do not belong to the data set or are damaged; with all findings.
    """
    weights = weights_with_all(len(dataset), bootstrap, seed)
    pair = [
        resampled_metrics(dataset, results, iou_type, weights, max_detections=max_detections)
        for results in (first, second)
    ]
    names = dataset.class_names
    return Comparison(
        iou_type=iou_type,
        num_images=len(dataset),
        num_resamples=bootstrap,
        max_detections=max_detections,
        overall=tuple(_differences(None, METRICS, [found.of(None) for found in pair])),
        per_category=tuple(
            difference
            for label, name in enumerate(names)
            for difference in _differences(name, METRICS[:1], [found.of(label) for found in pair])
        ),
    )


def resampled_metrics(
    dataset: CocoDataset,
    results: Sequence[Result],
    iou_type: IouType,
    weights: NDArray[np.float32],
    *,
    max_detections: int = 100,
) -> Resampled:
    """Every AP of some results for each draw of images.

    Args:
        dataset: The truth, I images.
        results: COCO results in the data set's own ids.
        iou_type: Overlap of boxes or of masks.
        weights: (I, S) how often each draw holds each image.
        max_detections: Predictions counted per image and category, best first.

    Raises:
        DataError: Results that do not belong to the data set or are damaged; with all findings.
    """
    inputs = eval_inputs(dataset, results, iou_type)
    return resample(match_outcomes(inputs, max_detections=max_detections), weights)


def _differences(
    category: str | None, metrics: Iterable[str], pair: Sequence[dict[str, NDArray[np.float64]]]
) -> list[Difference]:
    return [difference_of(category, metric, pair[0][metric], pair[1][metric]) for metric in metrics]


def difference_of(
    category: str | None, metric: str, first: NDArray[np.float64], second: NDArray[np.float64]
) -> Difference:
    """Compare two rows of values of one metric.

    Args:
        category: Name, or None for the mean over all categories.
        metric: Its name.
        first: (1 + S,) the measured value of A, then the resampled ones.
        second: The same of B, from the same draws.
    """
    differences = second - first
    measured = _defined(differences[0])
    moved = centre(measured, differences[1:])
    return Difference(
        category=category,
        metric=metric,
        first=_defined(first[0]),
        second=_defined(second[0]),
        difference=measured,
        interval=interval(measured, differences[1:], bounds=(-1.0, 1.0)),
        share_better=None if moved is None else float((moved > 0).mean()),
    )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _line(found: Difference) -> str:
    name = found.metric if found.category is None else ""
    return (
        f"{name:<7} {_number(found.first):>7} {_number(found.second):>7} {_number(found.difference, '+'):>8}  "
        f"{_range(found.interval):<18} {'-' if found.share_better is None else f'{found.share_better:.1%}':>6}"
    )


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _range(found: Interval | None) -> str:
    return "-" if found is None else f"[{found[0]:+.3f}, {found[1]:+.3f}]"

"""The official COCO numbers of a list of results: AP and AR, whole, by size and by category.

Source: Lin et al., Microsoft COCO, ECCV 2014, and the evaluation code pycocotools, whose numbers these are.
Detections of equal score within one image and category rank in the order of the result list, as there.
One convention is chosen: for masks, the size of a detection is its mask's area even if the result also has a
box (pycocotools then takes the box's; only AP by size can differ).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.errors import Finding, UsageError
from scantling.evaluate.backends import (
    AREA_NAMES,
    IOU_THRESHOLDS,
    Backend,
    Curves,
    Limits,
    match_and_accumulate,
    resolve_backend,
)
from scantling.evaluate.bootstrap import METRICS as RESAMPLED_METRICS
from scantling.evaluate.bootstrap import Interval, Resampled, interval, resample, weights_with_all
from scantling.evaluate.inputs import EvalInputs, IouType, Predictions, eval_inputs, limit_findings
from scantling.evaluate.occlusion import METRICS as OCCLUSION_METRICS
from scantling.evaluate.occlusion import OcclusionCounts, count_occluded, occlusion_values
from scantling.evaluate.outcomes import match_outcomes

T = TypeVar("T")

_ALL_IOUS = slice(None)
_IOU_NAMES = {"AP": "0.50:0.95", "AP50": "0.50", "AP75": "0.75"}
_TABLE_ROW = " {:<18} {} @[ IoU={:<9} | area={:>6s} | maxDets={:>3d} ] = {:0.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryResult:
    """The numbers of one category; None where they are undefined (no truth of that category and size).

    `AR100` is at the largest detection limit; `num_truths` leaves crowd regions and ignored objects out; `intervals`
    are as in `Evaluation`.
    """

    name: str
    category_id: int
    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR100: float | None
    num_truths: int
    num_predictions: int
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Everything one evaluation says.

    Attributes:
        iou_type: `bbox` or `segm`.
        metrics: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl (the ARs named after the limits
            when these are not 1, 10, 100), and OM, OIR, DPR if asked for; in [0, 1], None where undefined, never NaN.
        table: The twelve lines pycocotools prints, where undefined is -1.000, and one of occlusion where there is some.
        per_category: In label order.
        curves: The precision, recall and score arrays behind the numbers.
        max_detections: Detection limits per image and category.
        num_images: Images evaluated, with or without objects.
        findings: What the reader of the numbers has to know.
        backend: Engine that matched.
        intervals: 95 % interval over images of every AP metric, of AR at the last limit and of OM, OIR, DPR if asked;
            None where undefined; empty without a bootstrap.
        num_resamples: Of the bootstrap.
        resampled: Every AP metric of all images, then of each resample; None without a bootstrap.
    """

    iou_type: IouType
    metrics: Mapping[str, float | None]
    table: str
    per_category: tuple[CategoryResult, ...]
    curves: Curves
    max_detections: Limits
    num_images: int
    findings: tuple[Finding, ...]
    backend: str
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    num_resamples: int = 0
    resampled: Resampled | None = None


def evaluate_results(
    dataset: CocoDataset,
    results: Predictions,
    *,
    iou_type: IouType = "bbox",
    backend: Backend = "auto",
    max_detections: Sequence[int] = (1, 10, 100),
    bootstrap: int = 0,
    seed: int = 0,
    occlusion: bool = False,
) -> Evaluation:
    """Evaluate COCO results against a data set.

    Args:
        dataset: The truth; every image counts, also those without results. Not changed.
        results: COCO result records with the data set's own ids, `bbox` xywh in original pixels; or `Detections`. Those
            without what `iou_type` needs are left out and counted in a finding. Not changed. None at all: AP 0.
        iou_type: Overlap of boxes or of masks.
        backend: `auto` takes hotcoco where installed; the numbers are the same.
        max_detections: Three increasing limits; AP is taken at the last.
        bootstrap: Resamples of the images for the intervals; 0 for none.
        seed: Of the resamples.
        occlusion: Also measure how objects in several parts are found whole; only with masks.

    Raises:
        DataError: Results that do not belong to the data set or are damaged; with all findings.
        UsageError: The detection limits or the backend cannot be used, or occlusion is to be measured on boxes.
    """
    if occlusion and iou_type != "segm":
        raise UsageError("occlusion is measured on masks", hint="Evaluate masks: --iou-type segm.")
    limits = _check_limits(max_detections)
    engine = resolve_backend(backend)
    inputs = eval_inputs(dataset, results, iou_type)
    curves = match_and_accumulate(inputs, limits, engine)
    rows = _summary_rows(curves, limits)
    evaluation = Evaluation(
        iou_type=iou_type,
        metrics={row.key: row.value for row in rows},
        table="\n".join(row.line() for row in rows),
        per_category=_per_category(dataset, inputs, curves),
        curves=curves,
        max_detections=limits,
        num_images=len(dataset.images),
        findings=(*inputs.findings, *limit_findings(dataset, limits[-1])),
        backend=engine,
    )
    evaluation = _with_intervals(evaluation, inputs, bootstrap, seed) if bootstrap else evaluation
    return _with_occlusion(evaluation, count_occluded(inputs), seed) if occlusion else evaluation


def _with_intervals(evaluation: Evaluation, inputs: EvalInputs, resamples: int, seed: int) -> Evaluation:
    """The same evaluation with a bootstrap over its images."""
    outcomes = match_outcomes(inputs, max_detections=evaluation.max_detections[-1])
    resampled = resample(outcomes, weights_with_all(evaluation.num_images, resamples, seed))
    per_category = [
        replace(
            result,
            intervals={
                key: interval(getattr(result, key), values[1:])
                for key, values in _named(resampled.of(label), 100).items()
            },
        )
        for label, result in enumerate(evaluation.per_category)
    ]
    overall = _named(resampled.of(None), evaluation.max_detections[-1]).items()
    return replace(
        evaluation,
        intervals={key: interval(evaluation.metrics[key], values[1:]) for key, values in overall},
        per_category=tuple(per_category),
        num_resamples=resamples,
        resampled=resampled,
    )


def _with_occlusion(evaluation: Evaluation, counts: OcclusionCounts, seed: int) -> Evaluation:
    """The same evaluation with the occlusion metric, on the same draws of images."""
    values = occlusion_values(counts, weights_with_all(evaluation.num_images, evaluation.num_resamples, seed))
    measured = {key: None if np.isnan(found[0]) else float(found[0]) for key, found in values.items()}
    told = ", ".join(f"{key} = {-1.0 if value is None else value:0.3f}" for key, value in measured.items())
    split, found = int(counts.split.sum()), int(counts.found.sum())
    line = (
        f"\n Occlusion          {told} ({found} of {split} objects in several parts found)" if split else ""
    )
    drawn = {key: interval(measured[key], values[key][1:]) for key in values if evaluation.num_resamples}
    return replace(
        evaluation,
        metrics={**evaluation.metrics, **measured},
        table=evaluation.table + line,
        intervals={**evaluation.intervals, **drawn},
    )


def _named(values: Mapping[str, T], limit: int) -> dict[str, T]:
    """The same values with COCO's name for average recall, which holds the detection limit."""
    return {f"AR{limit}" if key == "AR" else key: value for key, value in values.items()}


def limits_up_to(max_detections: int) -> Limits:
    """COCO's limits 1 and 10, and the one that counts.

    Raises:
        UsageError: It is not above 10.
    """
    if max_detections <= 10:
        raise UsageError(f"--max-dets {max_detections}: use a number above 10")
    return (1, 10, max_detections)


def _check_limits(limits: Sequence[int]) -> Limits:
    if len(limits) != 3 or not 0 < limits[0] < limits[1] < limits[2]:
        raise UsageError(f"max_detections needs three increasing positive limits, found {tuple(limits)}.")
    return (limits[0], limits[1], limits[2])


def metrics_json(evaluations: Iterable[Evaluation]) -> dict[str, Any]:
    """What goes into `metrics.json`: flat `bbox/AP`: number or null, and the categories' numbers by name.

    After a bootstrap also `bbox/AP_interval`: [low, high] or null, and `bbox/resamples`: their number. Two
    categories of one name are told apart by their id.
    """
    flat: dict[str, Any] = {}
    categories: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        flat |= {f"{evaluation.iou_type}/{key}": value for key, value in evaluation.metrics.items()}
        flat |= _intervals_json(evaluation.iou_type, evaluation.intervals)
        if evaluation.num_resamples:
            flat[f"{evaluation.iou_type}/resamples"] = evaluation.num_resamples
        names = [result.name for result in evaluation.per_category]
        for result in evaluation.per_category:
            key = result.name if names.count(result.name) == 1 else f"{result.name} (id {result.category_id})"
            categories.setdefault(key, {}).update(_category_json(result, evaluation.iou_type))
    return {**flat, "categories": categories}


def _intervals_json(iou_type: str, intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    return {f"{iou_type}/{key}_interval": list(found) if found else None for key, found in intervals.items()}


def _category_json(result: CategoryResult, iou_type: str) -> dict[str, Any]:
    counts: dict[str, Any] = {"id": result.category_id, "truths": result.num_truths}
    measured = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    numbers = {f"{iou_type}/{name}": getattr(result, name) for name in measured}
    intervals = _intervals_json(iou_type, result.intervals)
    return {**counts, f"{iou_type}/predictions": result.num_predictions, **numbers, **intervals}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One line of the COCO table."""

    key: str
    area: str
    limit: int
    value: float | None

    def line(self) -> str:
        title = "Average Precision" if self.key.startswith("AP") else "Average Recall"
        iou = _IOU_NAMES.get(self.key, _IOU_NAMES["AP"])
        value = -1.0 if self.value is None else self.value
        return _TABLE_ROW.format(title, f"({self.key[:2]})", iou, self.area, self.limit, value)


def _summary_rows(curves: Curves, limits: Limits) -> list[_Row]:
    """The twelve numbers in COCO's order."""
    ious = {"AP": _ALL_IOUS, "AP50": _iou_index(0.5), "AP75": _iou_index(0.75)}
    rows = [
        _Row(key=key, area="all", limit=limits[-1], value=mean_defined(curves.precision[index, :, :, 0, -1]))
        for key, index in ious.items()
    ]
    rows += [
        _Row(key=f"AP{name[0]}", area=name, limit=limits[-1], value=mean_defined(values))
        for name, values in _by_size(curves.precision)
    ]
    rows += [
        _Row(key=f"AR{limit}", area="all", limit=limit, value=mean_defined(curves.recall[:, :, 0, index]))
        for index, limit in enumerate(limits)
    ]
    rows += [
        _Row(key=f"AR{name[0]}", area=name, limit=limits[-1], value=mean_defined(values))
        for name, values in _by_size(curves.recall)
    ]
    return rows


def _by_size(array: NDArray[np.float64]) -> list[tuple[str, NDArray[np.float64]]]:
    """Parts of a (..., A, M) array for small, medium and large objects at the largest limit."""
    return [(name, array[..., index, -1]) for index, name in enumerate(AREA_NAMES) if index]


def _iou_index(threshold: float) -> slice:
    index = int(np.argmin(np.abs(IOU_THRESHOLDS - threshold)))
    return slice(index, index + 1)


def interval_table(evaluation: Evaluation) -> str:
    """Lines for people: every AP metric with its 95 % interval; empty without a bootstrap."""
    if not evaluation.num_resamples:
        return ""
    title = f"95 % intervals over images ({evaluation.num_resamples} resamples)"
    keys = [*_named(dict.fromkeys(RESAMPLED_METRICS), evaluation.max_detections[-1]), *OCCLUSION_METRICS]
    lines = [_interval_line(evaluation, key) for key in keys if key in evaluation.metrics]
    return "\n".join([title, *lines])


def _interval_line(evaluation: Evaluation, key: str) -> str:
    value, found = evaluation.metrics[key], evaluation.intervals[key]
    if value is None or found is None:
        return f" {key:<5} undefined"
    return f" {key:<5} {value:.3f}  [{found[0]:.3f}, {found[1]:.3f}]"


def mean_defined(values: NDArray[np.float64]) -> float | None:
    """Mean of the entries that are defined (not -1); None if there is none."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else None


def _per_category(dataset: CocoDataset, inputs: EvalInputs, curves: Curves) -> tuple[CategoryResult, ...]:
    real = inputs.truths.labels[inputs.truths.is_object]
    truths = np.bincount(real, minlength=inputs.num_classes)
    predictions = np.bincount(inputs.detections.labels, minlength=inputs.num_classes)
    return tuple(
        CategoryResult(
            name=category.name,
            category_id=category.id,
            num_truths=int(truths[label]),
            num_predictions=int(predictions[label]),
            **cast("dict[str, Any]", _category_metrics(curves, label)),
        )
        for label, category in enumerate(dataset.categories)
    )


def _category_metrics(curves: Curves, label: int) -> dict[str, float | None]:
    precision, recall = curves.precision[:, :, label], curves.recall[:, label]
    return {
        "AP": mean_defined(precision[:, :, 0, -1]),
        "AP50": mean_defined(precision[_iou_index(0.5), :, 0, -1]),
        "AP75": mean_defined(precision[_iou_index(0.75), :, 0, -1]),
        **{f"AP{name[0]}": mean_defined(values) for name, values in _by_size(precision)},
        "AR100": mean_defined(recall[:, 0, -1]),
    }

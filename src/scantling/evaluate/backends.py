"""The two engines that match detections to truths the COCO way: pycocotools (the arbiter) and hotcoco (fast).

Dims: T IoU thresholds, R recall points, K categories, A area ranges, M detection limits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scantling.errors import UsageError
from scantling.evaluate.inputs import EvalInputs
from scantling.ops.overlaps import Ints, find_pairs

Backend = Literal["auto", "pycocotools", "hotcoco"]
Engine = Literal["pycocotools", "hotcoco"]
Record = dict[str, Any]
Limits = tuple[int, int, int]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_NAMES = ("all", "small", "medium", "large")
_BEYOND_ALL_SIZES = 1e11  # square pixels; the largest range ends at 1e10
_LIMITS_PARAMETER = "maxDets"  # the engines' name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """What every COCO number is an average of; -1 where there is no truth.

    Attributes:
        precision: (T, R, K, A, M) precision at recall 0, 0.01, ..., 1.
        recall: (T, K, A, M) highest recall reached.
        scores: (T, R, K, A, M) score at which that recall is reached.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]


def resolve_backend(backend: Backend) -> Engine:
    """The engine to use: `auto` is hotcoco where installed.

    Raises:
        UsageError: hotcoco was asked for and is not installed, or the name is unknown.
    """
    installed = importlib.util.find_spec("hotcoco") is not None
    if backend == "auto":
        return "hotcoco" if installed else "pycocotools"
    if backend not in ("pycocotools", "hotcoco"):
        raise UsageError(f"Unknown evaluation backend {backend!r}; use auto, pycocotools or hotcoco.")
    if backend == "hotcoco" and not installed:
        raise UsageError(
            "Evaluation with hotcoco was asked for, but it is not installed.",
            hint="Install it with `pip install 'scantling[fast]'`, or use the backend pycocotools.",
        )
    return backend


def match_and_accumulate(inputs: EvalInputs, limits: Limits, engine: Engine) -> Curves:
    """Precision, recall and score arrays of one evaluation; no detections give zero precision and recall.

    Args:
        inputs: Truth and detections.
        limits: Increasing limits on the detections kept per image and category.
        engine: Who computes.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        arrays = _hotcoco(inputs, limits) if engine == "hotcoco" else _pycocotools(inputs, limits)
    return Curves(precision=arrays["precision"], recall=arrays["recall"], scores=arrays["scores"])


def _pycocotools(inputs: EvalInputs, limits: Limits) -> Mapping[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, detections = COCO(), COCO()
    truth.dataset = _truth(inputs, limits[-1])
    detections.dataset = {**truth.dataset, "annotations": _with_areas(inputs)}
    truth.createIndex()
    detections.createIndex()
    evaluator = COCOeval(truth, detections, inputs.iou_type)
    setattr(evaluator.params, _LIMITS_PARAMETER, list(limits))
    evaluator.evaluate()
    evaluator.accumulate()
    arrays: Mapping[str, Any] = evaluator.eval
    return arrays


def _truth(inputs: EvalInputs, limit: int) -> dict[str, list[Record]]:
    """The truth in numbers of ours (image: position + 1, category: label + 1) and in terms that the engines know.

    They have no ignored objects. An object beyond all sizes is not to be found, and what matches it does not count;
    there are as many copies of it as there are detections that could, for an engine matches each once.
    """
    truths = inputs.truths
    ignored = np.flatnonzero(truths.is_ignored & ~truths.is_crowd)
    copies = np.clip(_num_near(inputs, ignored), 1, limit) if len(ignored) else ignored
    rows = np.concatenate([np.delete(np.arange(len(truths)), ignored), np.repeat(ignored, copies)])
    chosen = truths[rows]
    areas = np.where(np.isin(rows, ignored), _BEYOND_ALL_SIZES, chosen.areas)
    columns = (chosen.images + 1, chosen.labels + 1, chosen.boxes_xywh, areas, chosen.is_crowd.astype(int))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    records = _records(names, columns, chosen.masks if inputs.iou_type == "segm" else None)
    return {
        "images": [
            {"id": n, "height": height, "width": width}
            for n, (height, width) in enumerate(inputs.sizes_hw.tolist(), start=1)
        ],
        "annotations": [record | {"id": n} for n, record in enumerate(records, start=1)],
        "categories": [{"id": n, "name": str(n)} for n in range(1, inputs.num_classes + 1)],
    }


def _records(
    names: Sequence[str], columns: Sequence[NDArray[Any]], masks: NDArray[np.object_] | None
) -> list[Record]:
    """COCO's records out of columns (N, ...), which the engines are given."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    records: list[Record] = [dict(zip(names, row, strict=True)) for row in rows]
    for record, mask in zip(records, () if masks is None else masks.tolist(), strict=False):
        record["segmentation"] = mask
    return records


def _num_near(inputs: EvalInputs, rows: Ints) -> Ints:
    """Detections that overlap each of some truths enough to match it."""
    order = rows[np.argsort(inputs.truth_keys[rows], kind="stable")]
    pairs = find_pairs(
        inputs.keys,
        inputs.shapes,
        inputs.truth_keys[order],
        inputs.truth_shapes[order],
        at_least=float(IOU_THRESHOLDS[0]),
    )
    counts = np.zeros(len(inputs.truths), dtype=np.int64)
    counts[order] = np.bincount(pairs.second, minlength=len(order))
    return counts[rows]


def _detections(inputs: EvalInputs) -> list[Record]:
    """Results in numbers of ours; for masks without boxes, so that sizes are those of the masks."""
    found = inputs.detections
    names, columns = ["image_id", "category_id", "score"], [found.images + 1, found.labels + 1, found.scores]
    if inputs.iou_type == "segm":
        return _records(names, columns, found.masks)
    return _records([*names, "bbox"], [*columns, inputs.boxes_xywh], None)


def _with_areas(inputs: EvalInputs) -> list[Record]:
    """Detections completed as pycocotools' `loadRes` does, which fails on an empty list."""
    rows = zip(_detections(inputs), inputs.areas.tolist(), strict=True)
    return [{**d, "id": n, "area": area, "iscrowd": 0} for n, (d, area) in enumerate(rows, start=1)]


def _hotcoco(inputs: EvalInputs, limits: Limits) -> Mapping[str, Any]:
    import hotcoco

    truth = hotcoco.COCO(_truth(inputs, limits[-1]))
    evaluator = hotcoco.COCOeval(truth, truth.load_res(_detections(inputs)), inputs.iou_type)
    setattr(evaluator.params, _LIMITS_PARAMETER, list(limits))
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval or {}

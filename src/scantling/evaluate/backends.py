"""The two engines that match detections to truths the COCO way: pycocotools (the arbiter) and hotcoco (fast).

Dims: T IoU thresholds, R recall points, K categories, A area ranges, M detection limits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scantling.errors import UsageError
from scantling.evaluate.problem import Problem, Record

Backend = Literal["auto", "pycocotools", "hotcoco"]
Engine = Literal["pycocotools", "hotcoco"]
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


def match_and_accumulate(problem: Problem, limits: Limits, engine: Engine) -> Curves:
    """Precision, recall and score arrays of the problem; no detections give zero precision and recall.

    Args:
        problem: Truth and detections.
        limits: Increasing limits on the detections kept per image and category.
        engine: Who computes.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        arrays = _hotcoco(problem, limits) if engine == "hotcoco" else _pycocotools(problem, limits)
    return Curves(precision=arrays["precision"], recall=arrays["recall"], scores=arrays["scores"])


def _pycocotools(problem: Problem, limits: Limits) -> Mapping[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, detections = COCO(), COCO()
    truth.dataset = _truth(problem, limits[-1])
    detections.dataset = {**problem.truth, "annotations": _with_areas(problem)}
    truth.createIndex()
    detections.createIndex()
    evaluator = COCOeval(truth, detections, problem.iou_type)
    setattr(evaluator.params, _LIMITS_PARAMETER, list(limits))
    evaluator.evaluate()
    evaluator.accumulate()
    arrays: Mapping[str, Any] = evaluator.eval
    return arrays


def _truth(problem: Problem, limit: int) -> dict[str, list[Record]]:
    """The truth in terms that the engines know, which have no ignored objects.

    An object beyond all sizes is not to be found, and what matches it does not count; there are as many copies of it as
    there are detections that could, for an engine matches each once.
    """
    annotations = problem.truth["annotations"]
    ignored = [record for record in annotations if record["ignore"]]
    if not ignored:
        return problem.truth
    rivals = defaultdict(list)
    for detection in problem.detections:
        rivals[detection["image_id"], detection["category_id"]].append(detection)
    records = [record for record in annotations if not record["ignore"]]
    for record in ignored:
        near = _num_near(record, rivals[record["image_id"], record["category_id"]])
        records += [{**record, "area": _BEYOND_ALL_SIZES}] * max(1, min(near, limit))
    numbered = [{**record, "id": number} for number, record in enumerate(records, start=1)]
    return {**problem.truth, "annotations": numbered}


def _num_near(record: Record, detections: list[Record]) -> int:
    """Detections that overlap a truth enough to match it."""
    from pycocotools import mask as mask_api

    if not detections:
        return 0
    key = "segmentation" if "segmentation" in record else "bbox"
    shapes = [detection[key] for detection in detections]
    iou = mask_api.iou(shapes, [record[key]], [0])
    return int((np.asarray(iou) >= IOU_THRESHOLDS[0]).sum())


def _with_areas(problem: Problem) -> list[Record]:
    """Detections completed as pycocotools' `loadRes` does, which fails on an empty list."""
    from pycocotools import mask as mask_api

    if problem.iou_type == "bbox":
        areas = [d["bbox"][2] * d["bbox"][3] for d in problem.detections]
    else:
        areas = [float(mask_api.area(d["segmentation"])) for d in problem.detections]
    rows = zip(problem.detections, areas, strict=True)
    return [{**d, "id": n, "area": area, "iscrowd": 0} for n, (d, area) in enumerate(rows, start=1)]


def _hotcoco(problem: Problem, limits: Limits) -> Mapping[str, Any]:
    import hotcoco

    truth = hotcoco.COCO(_truth(problem, limits[-1]))
    evaluator = hotcoco.COCOeval(truth, truth.load_res(problem.detections), problem.iou_type)
    setattr(evaluator.params, _LIMITS_PARAMETER, list(limits))
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval or {}

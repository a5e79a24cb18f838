"""Scored boxes of a whole data set as columns: what is tuned, fused and eliminated many images at a time.

    COCO results ── detections_of ──► Detections ── results_of ──► COCO results
                                          └── save, load: a compact file of a run, for candidates before suppression

Row i of `detections_of(results)` is result i, so a mask or an order over the rows applies to the results too.
N: rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.results import Result, box_xywh
from scantling.data.findings import FindingLog, Policy, name_some
from scantling.data.io import atomic_write
from scantling.errors import DataError, Finding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """Scored boxes of many images.

    Attributes:
        images: (N,) int64, position of the image in the data set.
        labels: (N,) int64, 0..K-1.
        scores: (N,) float64.
        boxes: (N, 4) float64, absolute xyxy in original pixels.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.images)
        shapes = [self.images.shape, self.labels.shape, self.scores.shape, self.boxes.shape]
        if shapes != [(count,), (count,), (count,), (count, 4)]:
            raise ValueError(f"Detections: expected (N,) three times and (N, 4), found {shapes}")

    @classmethod
    def empty(cls) -> Self:
        """No detections."""
        none = np.zeros(0, dtype=np.int64)
        return cls(images=none, labels=none, scores=np.zeros(0), boxes=np.zeros((0, 4)))

    @classmethod
    def cat(cls, parts: Sequence[Detections]) -> Self:
        """The rows of several sets, one after the other; no sets give no rows."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return (
            cls(**{name: np.concatenate(values) for name, values in columns.items()})
            if parts
            else cls.empty()
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Self:
        """The rows that an index array, boolean mask (N,) or slice selects."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def with_scores(self, scores: NDArray[np.float64]) -> Self:
        """The same rows with other scores (N,)."""
        return replace(self, scores=scores)

    def by_score(self) -> Self:
        """The same rows image by image, best first; equal scores keep their order."""
        return self[np.lexsort((-self.scores, self.images))]


def detections_of(results: Sequence[Result], dataset: CocoDataset) -> Detections:
    """Checked COCO results (see `read_results`) as columns, in their order.

    Args:
        results: Of any tool; one without a box has that of its mask. [] gives N = 0.
        dataset: The data set that was predicted.
    """
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    boxes = np.array([box_xywh(result) for result in results], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        images=np.array([dataset.index_of[r["image_id"]] for r in results], dtype=np.int64),
        labels=np.array([label_of[r["category_id"]] for r in results], dtype=np.int64),
        scores=np.array([r["score"] for r in results], dtype=np.float64),
        boxes=boxes,
    )


def results_of(detections: Detections, dataset: CocoDataset) -> list[Result]:
    """Columns as COCO results with the data set's own ids, in their order.

    Args:
        detections: Of that data set.
        dataset: Where the ids come from.
    """
    ids, category_ids = [image.id for image in dataset.images], dataset.category_ids
    boxes_xywh = detections.boxes.copy()
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    columns = (
        detections.images.tolist(),
        detections.labels.tolist(),
        boxes_xywh.tolist(),
        detections.scores.tolist(),
    )
    return [
        {"image_id": ids[image], "category_id": category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in zip(*columns, strict=True)
    ]


def compare_detections(
    files: Sequence[tuple[str, Detections]], class_names: Sequence[str]
) -> tuple[Finding, ...]:
    """Warn of detections that do not belong together: the same twice, or of other images or categories.

    Args:
        files: Name and detections of each; empty ones are compared with nothing.
        class_names: Category names in label order.
    """
    filled = [(name, found) for name, found in files if len(found)]
    findings: list[Finding] = []
    for (first, found), (second, other) in combinations(filled, 2):
        log = FindingLog(second, Policy())
        if _same_rows(found, other):
            log.add("results-same-twice", f"holds the same predictions as {first}")
        elif not np.intersect1d(found.images, other.images).size:
            log.add("results-disjoint", f"has no image in common with {first}")
        findings += log.findings
    predicted = [set(np.unique(found.labels).tolist()) for _, found in filled]
    for (name, _), labels in zip(filled, predicted, strict=True):
        log = FindingLog(name, Policy())
        if lacking := sorted(set().union(*predicted) - labels):
            some = name_some([repr(class_names[label]) for label in lacking])
            log.add("results-categories-differ", f"has no prediction of {some}, which other files have")
        findings += log.findings
    return tuple(findings)


def _same_rows(first: Detections, second: Detections) -> bool:
    """Whether two hold the same rows, in whatever order."""
    if len(first) != len(second):
        return False
    mine, others = (np.column_stack([d.images, d.labels, d.scores, d.boxes]) for d in (first, second))
    return np.array_equal(mine[np.lexsort(mine.T)], others[np.lexsort(others.T)])


class SavedDetections(NamedTuple):
    """What a file of detections holds: the rows, and further columns (N,) by name."""

    detections: Detections
    extra: dict[str, NDArray[np.int32]]


def save_detections(detections: Detections, path: Path, **extra: NDArray[Any]) -> None:
    """Write a compact file (boxes and scores in single precision), atomically.

    Args:
        detections: N rows.
        path: Final name.
        **extra: Further columns (N,) of integers.

    Raises:
        UsageError: The file cannot be written.
    """
    columns = {
        "images": detections.images.astype(np.int32),
        "labels": detections.labels.astype(np.int32),
        "scores": detections.scores.astype(np.float32),
        "boxes": np.ascontiguousarray(detections.boxes, dtype=np.float32),
    }
    atomic_write(path, save(columns | {name: column.astype(np.int32) for name, column in extra.items()}))


def load_detections(path: Path) -> SavedDetections:
    """Read what `save_detections` wrote.

    Raises:
        DataError: The file is missing or is none of these.
    """
    try:
        columns = load(path.read_bytes())
        detections = Detections(
            images=columns.pop("images").astype(np.int64),
            labels=columns.pop("labels").astype(np.int64),
            scores=columns.pop("scores").astype(np.float64),
            boxes=columns.pop("boxes").astype(np.float64),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a file of detections ({error})") from error
    return SavedDetections(detections, columns)

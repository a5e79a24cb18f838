"""Detections out of COCO results and into them, and the compact file a run keeps them in.

    COCO results ── detections_of ──► Detections ── results_of ──► COCO results
                                          └── save, load: a compact file of a run, for candidates before suppression

Row i of `detections_of(results)` is result i, so a mask or an order over the rows applies to the results too.
N: rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.results import Result, box_xywh
from scantling.data.findings import FindingLog, Policy, name_some
from scantling.data.io import atomic_write
from scantling.errors import DataError, Finding
from scantling.ops.overlaps import xywh_to_xyxy, xyxy_to_xywh
from scantling.structures.detections import Detections, MaskColumn, object_column

_OWN_KEYS = {"image_id", "category_id", "bbox", "score", "segmentation"}
"""What columns hold; every other key of a result is carried along as it is."""


def detections_of(results: Sequence[Result], dataset: CocoDataset) -> Detections:
    """Checked COCO results (see `read_results`) as columns, in their order, with their masks and further keys.

    Args:
        results: Of any tool; one without a box has that of its mask. [] gives N = 0.
        dataset: The data set that was predicted.
    """
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    boxes_xywh = np.array([box_xywh(result) for result in results], dtype=np.float64).reshape(-1, 4)
    masks = [result.get("segmentation") for result in results]
    extra = [
        None if r.keys() <= _OWN_KEYS else {key: r[key] for key in r if key not in _OWN_KEYS} for r in results
    ]
    return Detections(
        images=np.array([dataset.index_of[r["image_id"]] for r in results], dtype=np.int64),
        labels=np.array([label_of[r["category_id"]] for r in results], dtype=np.int64),
        scores=np.array([r["score"] for r in results], dtype=np.float64),
        boxes=xywh_to_xyxy(boxes_xywh),
        masks=object_column(masks) if any(mask is not None for mask in masks) else None,
        extra=object_column(extra) if any(keys is not None for keys in extra) else None,
    )


def results_of(detections: Detections, dataset: CocoDataset) -> list[Result]:
    """Columns as COCO results with the data set's own ids, in their order; soft masks are pasted into their images.

    Args:
        detections: Of that data set.
        dataset: Where the ids and the sizes of the images come from.
    """
    detections = pasted(detections, dataset)
    ids, category_ids = [image.id for image in dataset.images], dataset.category_ids
    columns = (
        detections.images.tolist(),
        detections.labels.tolist(),
        xyxy_to_xywh(detections.boxes).tolist(),
        detections.scores.tolist(),
    )
    results: list[Result] = [
        {"image_id": ids[image], "category_id": category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in zip(*columns, strict=True)
    ]
    for result, mask in zip(results, _column(detections.masks), strict=False):
        if mask is not None:
            result["segmentation"] = mask
    for result, keys in zip(results, _column(detections.extra), strict=False):
        result.update(keys or {})
    return results


def pasted(detections: Detections, dataset: CocoDataset) -> Detections:
    """The rows with their soft masks as run lengths of their images; rows without soft masks as they are.

    Args:
        detections: Of that data set.
        dataset: Where the sizes of the images come from.
    """
    soft = detections.soft_masks
    if soft is None:
        return detections
    import torch

    from scantling.ops.masks import paste_masks

    masks = object_column([None] * len(detections))
    for image in np.unique(detections.images).tolist():
        rows = np.flatnonzero(detections.images == image)
        probabilities = torch.from_numpy(soft[rows]).float() / 255
        boxes = torch.from_numpy(detections.boxes[rows])
        masks[rows] = object_column(paste_masks(probabilities, boxes, dataset.images[image].size_hw))
    return detections.replace(masks=masks, soft_masks=None)


def _column(values: NDArray[np.object_] | None) -> list[Any]:
    return [] if values is None else values.tolist()


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
    """Write a compact file (boxes and scores in single precision, masks as they are), atomically.

    Args:
        detections: N rows, without further keys of other tools.
        path: Final name.
        **extra: Further columns (N,) of integers.

    Raises:
        UsageError: The file cannot be written.
        ValueError: Some rows have masks and some have none.
    """
    columns: dict[str, NDArray[Any]] = {
        "images": detections.images.astype(np.int32),
        "labels": detections.labels.astype(np.int32),
        "scores": detections.scores.astype(np.float32),
        "boxes": np.ascontiguousarray(detections.boxes, dtype=np.float32),
    }
    if detections.soft_masks is not None:
        columns["soft_masks"] = np.ascontiguousarray(detections.soft_masks)
    if detections.mask_ious is not None:
        columns["mask_ious"] = detections.mask_ious.astype(np.float32)
    if detections.masks is not None:
        columns |= _mask_columns(detections.masks)
    atomic_write(path, save(columns | {name: column.astype(np.int32) for name, column in extra.items()}))


def load_detections(path: Path) -> SavedDetections:
    """Read what `save_detections` wrote.

    Raises:
        DataError: The file is missing or is none of these.
    """
    try:
        columns = load(path.read_bytes())
        ious = columns.pop("mask_ious", None)
        detections = Detections(
            images=columns.pop("images").astype(np.int64),
            labels=columns.pop("labels").astype(np.int64),
            scores=columns.pop("scores").astype(np.float64),
            boxes=columns.pop("boxes").astype(np.float64),
            soft_masks=columns.pop("soft_masks", None),
            mask_ious=None if ious is None else ious.astype(np.float64),
            masks=_masks_of(columns) if "mask_counts" in columns else None,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a file of detections ({error})") from error
    return SavedDetections(detections, columns)


def _mask_columns(masks: MaskColumn) -> dict[str, NDArray[Any]]:
    """Run lengths as one text, where each ends in it, and the sizes of their images."""
    if any(mask is None for mask in masks):
        raise ValueError("save_detections: expected a mask in every row or in none")
    texts = [str(mask["counts"]).encode() for mask in masks]
    return {
        "mask_counts": np.frombuffer(b"".join(texts) or b"0", dtype=np.uint8),
        "mask_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "mask_sizes": np.array([mask["size"] for mask in masks], dtype=np.int32).reshape(-1, 2),
    }


def _masks_of(columns: dict[str, NDArray[Any]]) -> MaskColumn:
    text = columns.pop("mask_counts").tobytes().decode()
    ends, sizes = columns.pop("mask_ends").tolist(), columns.pop("mask_sizes").tolist()
    starts = [0, *ends][: len(ends)]
    return object_column(
        [{"size": size, "counts": text[a:b]} for a, b, size in zip(starts, ends, sizes, strict=True)]
    )

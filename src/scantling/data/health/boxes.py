"""Boxes that are probably not meant: tiny, huge, thin, or there twice; and statistics of sizes and shapes.

N: boxes of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import Annotation, ImageRecord, clipped_xyxy

TINY_SIDE = 4.0
"""Pixels of the shorter side below which a box is tiny."""
HUGE_SHARE = 0.95
"""Share of the image from which on a box is huge."""
THIN_RATIO = 20.0
NEAR_TWICE_IOU = 0.8

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A box worth a look.

    Attributes:
        code: Of the finding it belongs to.
        split: Where it is.
        image: Its image.
        annotation: The object.
        note: What is odd, with the number.
        oddness: The larger, the odder among those of the same code.
    """

    code: str
    split: str
    image: ImageRecord
    annotation: Annotation
    note: str
    oddness: float


def suspects(split: str, dataset: CocoDataset) -> list[Suspect]:
    """Every suspicious box of a split, the oddest of each kind first; crowds are left out."""
    found = []
    for image, labelled in zip(dataset.images, dataset.annotations, strict=True):
        objects = [annotation for annotation in labelled if annotation.is_object]
        for code, index, note, oddness in _oddities(objects, image.size_hw):
            suspect = Suspect(
                code=code, split=split, image=image, annotation=objects[index], note=note, oddness=oddness
            )
            found.append(suspect)
    return sorted(found, key=lambda suspect: (suspect.code, -suspect.oddness))


def _oddities(objects: list[Annotation], size_hw: tuple[int, int]) -> Iterator[tuple[str, int, str, float]]:
    """Code, position, note and oddness."""
    boxes = clipped_xyxy([annotation.box_xywh for annotation in objects], size_hw).astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    for index, (width, height) in enumerate(sides.tolist()):
        short, long = sorted((width, height))
        share = width * height / (size_hw[0] * size_hw[1])
        if short < TINY_SIDE:
            yield "box-tiny", index, f"{width:.1f} x {height:.1f} px", -short
        elif long > THIN_RATIO * short:
            yield "box-thin", index, f"{long / short:.0f} times as long as wide", long / short
        if share >= HUGE_SHARE:
            yield "box-huge", index, f"{share:.0%} of the image", share
    for first, second, iou in _near_twins(boxes, np.array([annotation.label for annotation in objects])):
        yield "box-near-twice", second, f"IoU {iou:.2f} with object {objects[first].id}", iou


def _near_twins(boxes: NDArray[np.float64], labels: NDArray[np.int64]) -> Iterator[tuple[int, int, float]]:
    """Pairs of one class that almost coincide; exact repetitions are a finding of the reader."""
    if len(boxes) < 2:
        return
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    shared = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
        boxes[:, None, :2], boxes[None, :, :2]
    )
    overlap = shared.clip(0).prod(axis=2)
    ious = overlap / np.maximum(sides[:, None] + sides[None] - overlap, 1e-9)
    alike = (
        (ious >= NEAR_TWICE_IOU)
        & (labels[:, None] == labels[None])
        & (boxes[:, None] != boxes[None]).any(axis=2)
    )
    for first, second in np.argwhere(np.triu(alike, 1)).tolist():
        yield first, second, float(ious[first, second])


def size_percentiles(dataset: CocoDataset) -> dict[str, list[float]]:
    """Percentiles of box size (square root of the area, px), of aspect (width / height), of objects per image.

    Lists are empty where there is nothing to count; `PERCENTILES` names their entries.
    """
    objects = [[a for a in annotations if a.is_object] for annotations in dataset.annotations]
    sides = np.array([a.box_xywh[2:] for many in objects for a in many]).reshape(-1, 2)
    return {
        "size": _percentiles(np.sqrt(sides.prod(axis=1))),
        "aspect": _percentiles(sides[:, 0] / sides[:, 1]),
        "objects_per_image": _percentiles(np.array([len(many) for many in objects], dtype=np.float64)),
    }


def _percentiles(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in np.percentile(values, PERCENTILES)] if len(values) else []

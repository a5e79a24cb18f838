"""Boxes that are probably not meant: tiny, huge, thin, or there twice; and statistics of sizes and shapes.

N: boxes of a split, P: pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import Annotation, ImageRecord
from scantling.data.truths import Truths, truths_of
from scantling.ops.overlaps import paired_iou

TINY_SIDE = 4.0
"""Pixels of the shorter side below which a box is tiny."""
HUGE_SHARE = 0.95
"""Share of the image from which on a box is huge."""
THIN_RATIO = 20.0
NEAR_TWICE_IOU = 0.8

_PAIRS = 1 << 20  # compared at once
_MOST = 1024  # boxes that one is compared with: in a heap of so many, one duplicate of each is told anyway
_ROUNDING = 1e-3  # pixels

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectBox:
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


def suspects(split: str, dataset: CocoDataset) -> list[SuspectBox]:
    """Every suspicious box of a split, the oddest of each kind first; crowds are left out."""
    truths = truths_of(dataset)
    objects = truths[truths.is_object]
    records = [annotation for many in dataset.annotations for annotation in many if annotation.is_object]
    images = [dataset.images[image] for image in objects.images]
    found = [
        SuspectBox(
            code=code,
            split=split,
            image=images[index],
            annotation=records[index],
            note=note,
            oddness=oddness,
        )
        for code, index, note, oddness in _oddities(objects, images)
    ]
    return sorted(found, key=lambda suspect: (suspect.code, -suspect.oddness))


def _oddities(objects: Truths, images: Sequence[ImageRecord]) -> Iterator[tuple[str, int, str, float]]:
    """Code, position, note and oddness."""
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    for index, (width, height) in enumerate(sides.tolist()):
        size_hw = images[index].size_hw
        short, long = sorted((width, height))
        share = width * height / (size_hw[0] * size_hw[1])
        if short < TINY_SIDE:
            yield "box-tiny", index, f"{width:.1f} x {height:.1f} px", -short
        elif long > THIN_RATIO * short:
            yield "box-thin", index, f"{long / short:.0f} times as long as wide", long / short
        if share >= HUGE_SHARE:
            yield "box-huge", index, f"{share:.0%} of the image", share
    for first, second, iou in near_duplicates(objects.boxes, objects.images, objects.labels):
        yield "box-near-twice", second, f"IoU {iou:.2f} with object {objects.ids[first]}", iou


def near_duplicates(
    boxes: NDArray[np.float64], images: NDArray[np.int64], labels: NDArray[np.int64]
) -> Iterator[tuple[int, int, float]]:
    """Every box that almost coincides with an earlier one of its class and image: that one, the box, their IoU.

    Boxes are swept in the order of their left (or upper) edges: of two with an IoU of t, the one that begins first
    begins at most 1 - t of its own width before the other, so only boxes that begin so near are compared. Exact
    repetitions are a finding of the reader and left out.

    Args:
        boxes: (N, 4) xyxy, sorted by image.
        images: (N,) position of each one's image.
        labels: (N,) classes.
    """
    groups = np.unique(np.stack([images, labels]), axis=1, return_inverse=True)[1].reshape(-1)
    sweeps = [_sweep(boxes[:, axis], boxes[:, axis + 2], groups) for axis in (0, 1)]
    order, reach = min(sweeps, key=lambda sweep: int(sweep[1].sum()))
    best_iou, best_duplicate = np.zeros(len(boxes)), np.zeros(len(boxes), dtype=np.int64)
    for rows in np.split(np.arange(len(order)), np.flatnonzero(np.diff(np.cumsum(reach) // _PAIRS)) + 1):
        here = np.repeat(rows, reach[rows])
        ahead = here + 1 + np.arange(len(here)) - np.repeat(np.cumsum(reach[rows]) - reach[rows], reach[rows])
        pair = np.sort(np.stack([order[here], order[ahead]]), axis=0)
        first, second = boxes[pair[0]], boxes[pair[1]]
        ious = np.where((first == second).all(axis=1), 0.0, paired_iou(first, second))
        better = (ious >= NEAR_TWICE_IOU) & (ious > best_iou[pair[1]])
        (duplicates, here), ious = pair[:, better], ious[better]
        by_iou = np.argsort(ious, kind="stable")  # the last assignment to a position counts: the best
        best_iou[here[by_iou]], best_duplicate[here[by_iou]] = ious[by_iou], duplicates[by_iou]
    for second in np.flatnonzero(best_iou).tolist():
        yield int(best_duplicate[second]), second, float(best_iou[second])


def _sweep(
    starts: NDArray[np.float64], ends: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order (N,) by group and start, and for each place how many that follow begin near enough to coincide."""
    order = np.lexsort((starts, groups))
    span = float(ends.max(initial=0.0)) * 2 + 1  # farther than any box of one group reaches into the next
    places = groups[order] * span + starts[order]
    slack = (1 - NEAR_TWICE_IOU) * (ends - starts)[order] + _ROUNDING
    reach = np.searchsorted(places, places + slack, side="right") - np.arange(len(order)) - 1
    return order, np.minimum(reach, _MOST)


def size_percentiles(dataset: CocoDataset) -> dict[str, list[float]]:
    """Percentiles of box size (square root of the area, px), of aspect (width / height), of objects per image.

    Lists are empty where there is nothing to count; `PERCENTILES` names their entries.
    """
    truths = truths_of(dataset)
    objects = truths[truths.is_object]
    sides, counts = objects.boxes_xywh[:, 2:], np.bincount(objects.images, minlength=len(dataset))
    return {
        "size": _percentiles(np.sqrt(sides.prod(axis=1))),
        "aspect": _percentiles(sides[:, 0] / sides[:, 1]),
        "objects_per_image": _percentiles(counts.astype(np.float64)),
    }


def _percentiles(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in np.percentile(values, PERCENTILES)] if len(values) else []

"""Labels of a whole data set as columns, and which detections found which of them.

N: labels, M: detections, n, m: those of one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.data.coco.records import AnnotationId
from scantling.ops.boxes import box_area, paired_iou, pairwise_intersection, pairwise_iou
from scantling.structures.detections import Detections

NONE = -1
CROWD_SHARE = 0.5
"""A detection of which this share lies in a crowd region says nothing about the labels."""

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
_AT_BORDER = 1.5  # pixels: formats differ by one in where an image ends


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """The objects of a data set, image by image, those of an image by id.

    Attributes:
        images: (N,) int64, position of the image in the data set.
        labels: (N,) int64, 0..K-1.
        boxes: (N, 4) float64, absolute xyxy clipped to the image.
        is_crowd: (N,) bool, crowd regions and ignored objects: nothing is said about them.
        is_cut: (N,) bool, whether the box touches the border of its image, so that the object may go on beyond it.
        ids: N ids of the annotations.
    """

    images: Rows
    labels: Rows
    boxes: Floats
    is_crowd: Flags
    is_cut: Flags
    ids: tuple[AnnotationId, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Association:
    """What detections say about labels.

    Attributes:
        found_by: (N,) detection of the label's own category that found it, -1 for none.
        seen_by: (N,) detection of any category that overlaps it, the one with the best score; -1 for none.
        rival: (N,) detection of another category on the label that found no label itself, the best; -1 for none.
        found: (M,) label that a detection found, -1 for none.
        is_explained: (M,) whether some label (or a crowd region, or a better detection) accounts for it.
        counts: (M,) whether it is right or wrong; repeated and crowded ones are neither.
    """

    found_by: Rows
    seen_by: Rows
    rival: Rows
    found: Rows
    is_explained: Flags
    counts: Flags


def labels_of(dataset: CocoDataset) -> Labels:
    """The labels of a data set as columns; a data set without any gives N = 0."""
    annotations = [annotation for per_image in dataset.annotations for annotation in per_image]
    counts = [len(per_image) for per_image in dataset.annotations]
    images = np.repeat(np.arange(len(dataset), dtype=np.int64), counts)
    boxes = np.array([annotation.box_xywh for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    sizes_hw = np.array([image.size_hw for image in dataset.images], dtype=np.float64).reshape(-1, 2)
    boxes = np.clip(boxes, 0, sizes_hw[images][:, [1, 0, 1, 0]])
    is_cut = (boxes[:, :2] < _AT_BORDER) | (boxes[:, 2:] > sizes_hw[images][:, ::-1] - _AT_BORDER)
    return Labels(
        images=images,
        labels=np.array([annotation.label for annotation in annotations], dtype=np.int64),
        boxes=boxes,
        is_cut=np.asarray(is_cut.any(axis=1), dtype=bool),
        is_crowd=np.array([not annotation.is_object for annotation in annotations], dtype=bool),
        ids=tuple(annotation.id for annotation in annotations),
    )


def overlaps(a: Floats, b: Floats) -> Floats:
    """(n, m) IoU of every box of `a` with every box of `b`, xyxy."""
    return pairwise_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def row_overlaps(a: Floats, b: Floats) -> Floats:
    """(N,) IoU of box i of `a` with box i of `b`, xyxy."""
    return paired_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def associate(
    labels: Labels, detections: Detections, *, iou_threshold: float, near_iou: float
) -> Association:
    """Match detections to labels in every image.

    A detection, best score first, finds the free label of its category that it overlaps most and by at least
    `iou_threshold`; what is then left may find what is left from `near_iou` on: a badly placed label is still the
    label of its object.

    Args:
        labels: Of the data set.
        detections: On the same images; none leave every label without a finder.
        iou_threshold: Overlap of a label and its detection.
        near_iou: Overlap from which a label without a detection and a detection without a label belong together.
    """
    num_labels, num_detections = len(labels), len(detections)
    found_by, seen_by, rival = (np.full(num_labels, NONE, dtype=np.int64) for _ in range(3))
    found = np.full(num_detections, NONE, dtype=np.int64)
    is_explained, counts = np.zeros(num_detections, dtype=bool), np.ones(num_detections, dtype=bool)
    for rows, own in _per_image(labels, detections):
        objects, crowds = own[~labels.is_crowd[own]], own[labels.is_crowd[own]]
        iou = overlaps(detections.boxes[rows], labels.boxes[objects])
        same = detections.labels[rows][:, None] == labels.labels[objects]
        taken = _match(np.where(same, iou, 0.0), (iou_threshold, near_iou))
        hit = taken != NONE
        found[rows[hit]] = objects[taken[hit]]
        found_by[objects[taken[hit]]] = rows[hit]
        crowded = _inside(detections.boxes[rows], labels.boxes[crowds])
        repeated = ~hit & (np.where(same, iou, 0.0) >= iou_threshold).any(axis=1)
        on_label = (iou >= iou_threshold).any(axis=1)
        is_explained[rows] = hit | crowded | on_label | _follows(detections.boxes[rows], iou_threshold)
        counts[rows] = ~(crowded | repeated)
        seen_by[objects] = _first(iou >= near_iou, rows)
        rival[objects] = _first((iou >= iou_threshold) & ~same & ~hit[:, None], rows)
    return Association(
        found_by=found_by, seen_by=seen_by, rival=rival, found=found, is_explained=is_explained, counts=counts
    )


def _per_image(labels: Labels, detections: Detections) -> Iterator[tuple[Rows, Rows]]:
    """For each image with detections their rows, best first, and the rows of its labels."""
    order = np.lexsort((-detections.scores, detections.images))
    images, starts = np.unique(detections.images[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(order) else []
    for image, rows in zip(images, parts, strict=True):
        first, last = np.searchsorted(labels.images, [image, image + 1])
        yield rows, np.arange(first, last)


def _match(iou: Floats, thresholds: tuple[float, ...]) -> Rows:
    """(m,) label that each detection takes, -1 for none; in the order of the rows, pass after pass."""
    taken = np.full(len(iou), NONE, dtype=np.int64)
    free = iou.copy()
    for threshold in thresholds:
        for row in np.flatnonzero((taken == NONE) & (free >= threshold).any(axis=1)):
            best = int(free[row].argmax())
            if free[row, best] >= threshold:
                taken[row] = best
                free[:, best] = 0.0
    return taken


def _inside(boxes: Floats, regions: Floats) -> Flags:
    """(m,) whether a box lies for the most part in one of the regions."""
    first, second = torch.from_numpy(boxes), torch.from_numpy(regions)
    share = pairwise_intersection(first, second) / box_area(first).clamp(min=1e-9)[:, None]
    inside: Flags = (share >= CROWD_SHARE).any(dim=1).numpy()
    return inside


def _follows(boxes: Floats, iou_threshold: float) -> Flags:
    """(m,) whether an earlier box, which has the better score, is about the same object."""
    earlier = np.tril(overlaps(boxes, boxes), k=-1)
    return np.asarray((earlier >= iou_threshold).any(axis=1), dtype=bool)


def _first(wanted: Flags, rows: Rows) -> Rows:
    """(n,) the first of the rows (m,) that is wanted (m, n) for each label, -1 for none."""
    if not len(rows):
        return np.full(wanted.shape[1], NONE, dtype=np.int64)
    return np.where(wanted.any(axis=0), rows[wanted.argmax(axis=0)], NONE)

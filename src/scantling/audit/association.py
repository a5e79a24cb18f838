"""Which detections found which labels, and what they say about the labels that none found.

N: labels, M: detections, n, m: those of one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scantling.data.truths import Truths
from scantling.ops.overlaps import pairwise_iou, pairwise_overlaps
from scantling.structures.detections import Detections

NONE = -1
CROWD_SHARE = 0.5
"""A detection of which this share lies in a crowd region says nothing about the labels."""

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


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


def associate(
    labels: Truths, detections: Detections, *, iou_threshold: float, near_iou: float
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
        objects, crowds = own[labels.is_object[own]], own[~labels.is_object[own]]
        iou = pairwise_iou(detections.boxes[rows], labels.boxes[objects])
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


def _per_image(labels: Truths, detections: Detections) -> Iterator[tuple[Rows, Rows]]:
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
    share = pairwise_overlaps(boxes, regions).of_first
    return np.asarray((share >= CROWD_SHARE).any(axis=1), dtype=bool)


def _follows(boxes: Floats, iou_threshold: float) -> Flags:
    """(m,) whether an earlier box, which has the better score, is about the same object."""
    earlier = np.tril(pairwise_iou(boxes, boxes), k=-1)
    return np.asarray((earlier >= iou_threshold).any(axis=1), dtype=bool)


def _first(wanted: Flags, rows: Rows) -> Rows:
    """(n,) the first of the rows (m,) that is wanted (m, n) for each label, -1 for none."""
    if not len(rows):
        return np.full(wanted.shape[1], NONE, dtype=np.int64)
    return np.where(wanted.any(axis=0), rows[wanted.argmax(axis=0)], NONE)

"""What became of every detection, at every IoU threshold and object size, in arrays.

Whatever is computed again and again from one matching, such as resampled averages, starts here; and so does what
needs many matchings of the same boxes, such as a search over thresholds (`MatchableBoxes`).

Dims: D detections, G truths, A area ranges, T IoU thresholds, I images, K categories, N candidates, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from scantling.data.coco import CocoDataset
from scantling.evaluate.pairs import (
    Flags,
    Floats,
    Ints,
    Objects,
    Pairs,
    best_of_each,
    find_pairs,
    match_pairs,
    rank_among_equals,
)
from scantling.evaluate.problem import Problem, Record, is_ignored
from scantling.structures.detections import Detections

AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Matched detections, and the truths to be found.

    Attributes:
        num_images: I.
        num_classes: K.
        labels: (D,) category of each detection, ascending.
        images: (D,) position of its image.
        scores: (D,) descending within a category; of equal scores the earlier image first.
        is_hit: (D, A, T) whether it finds a truth of that size.
        is_counted: (D, A, T) whether it counts at all: not on what is ignored, nor beyond that size.
        truth_labels: (G,) category of each truth.
        truth_images: (G,) position of its image.
        truth_counts: (G, A) whether it is to be found: an object that counts, of that size.
    """

    num_images: int
    num_classes: int
    labels: Ints
    images: Ints
    scores: Floats
    is_hit: Flags
    is_counted: Flags
    truth_labels: Ints
    truth_images: Ints
    truth_counts: Flags


def match_outcomes(problem: Problem, *, max_detections: int = 100) -> Outcomes:
    """Match every detection at all ten IoU thresholds and four area ranges.

    Args:
        problem: Truth and detections; none of either gives empty arrays.
        max_detections: Detections kept per image and category, best first.
    """
    num_images, num_classes = len(problem.truth["images"]), len(problem.truth["categories"])
    truths = _sort(
        problem.truth["annotations"], [r["area"] for r in problem.truth["annotations"]], num_classes
    )
    detections = best_of_each(_sort(problem.detections, _areas(problem), num_classes), max_detections)
    pairs = find_pairs(detections, truths)
    return _outcomes(detections, truths, pairs, AREA_RANGES, (num_images, num_classes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchableBoxes:
    """Boxes of which many selections and scores are to be matched; overlaps with the truths are computed once.

    Attributes:
        boxes: N candidates in the order given.
        truths: G truths.
        pairs: Of candidates and truths.
        shape: I and K.
    """

    boxes: Objects
    truths: Objects
    pairs: Pairs
    shape: tuple[int, int]

    @classmethod
    def over(cls, candidates: Detections, dataset: CocoDataset) -> Self:
        """Candidates of a data set and its truths; none of either is fine."""
        num_classes = len(dataset.categories)
        boxes, truths = _candidates(candidates, num_classes), _truths(dataset, num_classes)
        shape = (len(dataset), num_classes)
        return cls(boxes=boxes, truths=truths, pairs=find_pairs(boxes, truths), shape=shape)

    def outcomes(self, rows: Ints, scores: Floats, *, max_detections: int = 100) -> Outcomes:
        """Match a selection at all ten IoU thresholds, of objects of any size (A = 1).

        Args:
            rows: (D,) which candidates; may be empty. Of equal scores the earlier row ranks first.
            scores: (D,) of each.
            max_detections: Detections kept per image and category, best first.
        """
        chosen = replace(self.boxes.take(rows), scores=scores)
        order = np.lexsort((-scores, chosen.keys))
        order = order[rank_among_equals(chosen.keys[order]) < max_detections]
        pairs = self._pairs_of(rows[order])
        return _outcomes(chosen.take(order), self.truths, pairs, AREA_RANGES[:1], self.shape)

    def _pairs_of(self, rows: Ints) -> Pairs:
        """The pairs of some candidates, which are numbered anew."""
        first = np.searchsorted(self.pairs.detections, rows, side="left")
        counts = np.searchsorted(self.pairs.detections, rows, side="right") - first
        detections = np.repeat(np.arange(len(rows)), counts)
        starts = np.cumsum(counts) - counts
        index = np.repeat(first - starts, counts) + np.arange(len(detections))
        return Pairs(detections=detections, truths=self.pairs.truths[index], iou=self.pairs.iou[index])


def _outcomes(
    detections: Objects, truths: Objects, pairs: Pairs, area_ranges: Floats, shape: tuple[int, int]
) -> Outcomes:
    """Match what is sorted by image, category and falling score."""
    truth_ignored = truths.is_ignored[:, None] | _outside(truths.areas, area_ranges)
    is_matched, on_ignored = match_pairs(pairs, detections, truths, truth_ignored)
    is_ignored = on_ignored | (~is_matched & _outside(detections.areas, area_ranges)[:, :, None])
    ranking = np.lexsort((detections.images, -detections.scores, detections.labels))
    return Outcomes(
        num_images=shape[0],
        num_classes=shape[1],
        labels=detections.labels[ranking],
        images=detections.images[ranking],
        scores=detections.scores[ranking],
        is_hit=(is_matched & ~on_ignored)[ranking],
        is_counted=~is_ignored[ranking],
        truth_labels=truths.labels,
        truth_images=truths.images,
        truth_counts=~truth_ignored,
    )


# ---------------------------------------------------------------- objects as arrays


def _sort(records: Sequence[Record], areas: Sequence[float], num_classes: int) -> Objects:
    """Truths or detections as arrays; those of one image and category by falling score, equal ones as given."""
    images = np.array([record["image_id"] - 1 for record in records], dtype=np.int64)
    labels = np.array([record["category_id"] - 1 for record in records], dtype=np.int64)
    objects = Objects(
        keys=images * num_classes + labels,
        images=images,
        labels=labels,
        scores=np.array([record.get("score", 0.0) for record in records], dtype=np.float64),
        areas=np.array(areas, dtype=np.float64),
        is_crowd=np.array([bool(record.get("iscrowd", 0)) for record in records], dtype=bool),
        is_ignored=np.array([is_ignored(record) for record in records], dtype=bool),
        shapes=_shapes(records),
    )
    return objects.take(np.lexsort((-objects.scores, objects.keys)))


def _shapes(records: Sequence[Record]) -> NDArray[Any]:
    if records and "segmentation" in records[0]:
        shapes = np.empty(len(records), dtype=object)
        shapes[:] = [record["segmentation"] for record in records]
        return shapes
    return np.array([record["bbox"] for record in records], dtype=np.float64).reshape(-1, 4)


def _areas(problem: Problem) -> list[float]:
    if problem.iou_type == "bbox":
        return [record["bbox"][2] * record["bbox"][3] for record in problem.detections]
    return [float(mask_api.area(record["segmentation"])) for record in problem.detections]


def _outside(areas: Floats, area_ranges: Floats) -> Flags:
    """(N, A) whether an object is beyond each size."""
    return (areas[:, None] < area_ranges[:, 0]) | (areas[:, None] > area_ranges[:, 1])


def _candidates(candidates: Detections, num_classes: int) -> Objects:
    """Boxes as they are, in their order."""
    shapes = candidates.boxes.copy()
    shapes[:, 2:] -= shapes[:, :2]
    return Objects(
        keys=candidates.images * num_classes + candidates.labels,
        images=candidates.images,
        labels=candidates.labels,
        scores=candidates.scores,
        areas=shapes[:, 2] * shapes[:, 3],
        is_crowd=np.zeros(len(candidates), dtype=bool),
        is_ignored=np.zeros(len(candidates), dtype=bool),
        shapes=shapes,
    )


def _truths(dataset: CocoDataset, num_classes: int) -> Objects:
    """Boxes of a data set, sorted by image and category, those of one in the data set's order."""
    flat = [
        (image, annotation)
        for image, annotations in enumerate(dataset.annotations)
        for annotation in annotations
    ]
    images = np.array([image for image, _ in flat], dtype=np.int64)
    labels = np.array([annotation.label for _, annotation in flat], dtype=np.int64)
    shapes = np.array([annotation.box_xywh for _, annotation in flat], dtype=np.float64).reshape(-1, 4)
    truths = Objects(
        keys=images * num_classes + labels,
        images=images,
        labels=labels,
        scores=np.zeros(len(flat)),
        areas=shapes[:, 2] * shapes[:, 3],
        is_crowd=np.array([annotation.is_crowd for _, annotation in flat], dtype=bool),
        is_ignored=np.array([not annotation.is_object for _, annotation in flat], dtype=bool),
        shapes=shapes,
    )
    return truths.take(np.argsort(truths.keys, kind="stable"))

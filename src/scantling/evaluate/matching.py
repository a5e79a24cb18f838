"""Who found whom: detections of each image matched to its truths at one IoU threshold, by COCO's rules.

Dims: N predictions and M truths of one image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from scantling.evaluate.problem import IouType, Problem, Record, is_ignored
from scantling.ops.polygons import pairwise_mask_iou
from scantling.ops.rle import RLE

BACKGROUND_IOU = 0.1
NONE = -1


class ErrorKind(StrEnum):
    """What is wrong with a prediction, or with the lack of one.

    Source: Bolya et al., TIDE, ECCV 2020. Deviation: a false positive is explained by the one truth it overlaps
    most, instead of by the first of several tests that holds.
    """

    CLASS = "class"
    LOCALISATION = "localisation"
    BOTH = "both"
    DUPLICATE = "duplicate"
    BACKGROUND = "background"
    MISSED = "missed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shapes:
    """Objects of one image as arrays.

    Attributes:
        boxes_xywh: (N, 4) float64 left, top, width, height in original pixels, as found.
        labels: (N,) int64, 0..K-1.
        scores: (N,) float64, descending; 0 for truths.
        is_crowd: (N,) bool, regions in which a prediction lies by its own area; false for predictions.
        is_ignored: (N,) bool, crowd regions and single objects that count neither way; false for predictions.
        masks: Compressed RLE of each; None where boxes are compared.
    """

    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    masks: tuple[RLE | None, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(N, 4) float64 xyxy."""
        return np.concatenate(
            [self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageMatch:
    """The outcome of one image.

    Attributes:
        truths: M truths, crowd regions and ignored objects among them.
        predictions: N predictions, best score first.
        truth_of: (N,) truth each prediction found, -1 for none; what is ignored may be found many times.
        prediction_of: (M,) prediction that found each truth, -1 for none and for what is ignored.
        kinds: (N,) why a prediction is false; None where it is right or lies on what is ignored.
        nearest: (N,) truth (none that is ignored, of any category) it overlaps most, -1 if it overlaps none.
        overlap: (N,) IoU with that truth, or 0.
    """

    truths: Shapes
    predictions: Shapes
    truth_of: NDArray[np.int64]
    prediction_of: NDArray[np.int64]
    kinds: tuple[ErrorKind | None, ...]
    nearest: NDArray[np.int64]
    overlap: NDArray[np.float64]

    @property
    def is_hit(self) -> NDArray[np.bool_]:
        """(N,) whether a prediction found a truth that counts."""
        hits: NDArray[np.bool_] = (self.truth_of != NONE) & ~self.is_ignored
        return hits

    @property
    def is_ignored(self) -> NDArray[np.bool_]:
        """(N,) whether a prediction lies on what is ignored and counts neither way."""
        return np.isin(self.truth_of, np.flatnonzero(self.truths.is_ignored))


def match_images(
    problem: Problem, *, iou_threshold: float = 0.5, max_detections: int = 100
) -> list[ImageMatch]:
    """Match every image of the problem, in the data set's order.

    Args:
        problem: Truth and detections; images without either give empty matches.
        iou_threshold: Overlap from which a prediction has found a truth.
        max_detections: Predictions kept per image and category, best first.
    """
    truths, predictions = _by_image(problem.truth["annotations"]), _by_image(problem.detections)
    return [
        _match_image(
            _shapes(truths[image["id"]], problem.iou_type),
            _shapes(_best(predictions[image["id"]], max_detections), problem.iou_type),
            iou_threshold,
        )
        for image in problem.truth["images"]
    ]


def _by_image(records: Sequence[Record]) -> dict[int, list[Record]]:
    grouped: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        grouped[record["image_id"]].append(record)
    return grouped


def _best(records: list[Record], limit: int) -> list[Record]:
    """Best first (ties: earlier first), at most `limit` of each category."""
    kept, counts = [], dict[int, int]()
    for record in sorted(records, key=lambda record: -record["score"]):
        count = counts.get(record["category_id"], 0)
        counts[record["category_id"]] = count + 1
        if count < limit:
            kept.append(record)
    return kept


def _shapes(records: Sequence[Record], iou_type: IouType) -> Shapes:
    masks: tuple[RLE | None, ...] = tuple(record.get("segmentation") for record in records)
    if iou_type == "bbox":
        boxes_xywh = [record["bbox"] for record in records]
    else:
        boxes_xywh = [mask_api.toBbox(mask) for mask in masks]
    return Shapes(
        boxes_xywh=np.asarray(boxes_xywh, dtype=np.float64).reshape(-1, 4),
        labels=np.asarray([record["category_id"] - 1 for record in records], dtype=np.int64),
        scores=np.asarray([record.get("score", 0.0) for record in records], dtype=np.float64),
        is_crowd=np.asarray([bool(record.get("iscrowd", 0)) for record in records], dtype=bool),
        is_ignored=np.asarray([is_ignored(record) for record in records], dtype=bool),
        masks=masks,
    )


def _match_image(truths: Shapes, predictions: Shapes, iou_threshold: float) -> ImageMatch:
    iou = pairwise_iou(predictions, truths)
    truth_of = _match_greedily(iou, predictions, truths, iou_threshold)
    prediction_of = np.full(len(truths), NONE, dtype=np.int64)
    found = np.flatnonzero(truth_of != NONE)
    prediction_of[truth_of[found]] = found
    prediction_of[truths.is_ignored] = NONE
    nearest, overlap = _nearest(iou, truths)
    return ImageMatch(
        truths=truths,
        predictions=predictions,
        truth_of=truth_of,
        prediction_of=prediction_of,
        kinds=_kinds(truth_of, predictions, truths, (nearest, overlap), iou_threshold),
        nearest=nearest,
        overlap=overlap,
    )


def pairwise_iou(predictions: Shapes, truths: Shapes) -> NDArray[np.float64]:
    """(N, M) overlap; on a crowd region the share of the prediction inside it."""
    if not len(predictions) or not len(truths):
        return np.zeros((len(predictions), len(truths)))
    if truths.masks[0] is None:
        crowd = truths.is_crowd.astype(np.uint8).tolist()
        iou = mask_api.iou(predictions.boxes_xywh, truths.boxes_xywh, crowd)
        return np.asarray(iou, dtype=np.float64)
    sides = [[mask for mask in side.masks if mask is not None] for side in (predictions, truths)]
    return pairwise_mask_iou(sides[0], sides[1], truths.is_crowd)


def _match_greedily(
    iou: NDArray[np.float64], predictions: Shapes, truths: Shapes, iou_threshold: float
) -> NDArray[np.int64]:
    """(N,) truth found by each prediction, best score first; free truths before ignored ones, as COCO does."""
    truth_of = np.full(len(predictions), NONE, dtype=np.int64)
    if not len(truths):
        return truth_of
    needed, is_free = min(iou_threshold, 1 - 1e-10), ~truths.is_ignored
    for index in range(len(predictions)):
        same = truths.labels == predictions.labels[index]
        for candidates in (same & is_free, same & truths.is_ignored):
            best = _last_argmax(np.where(candidates, iou[index], -1.0))
            if candidates[best] and iou[index, best] >= needed:
                truth_of[index] = best
                is_free[best] = False
                break
    return truth_of


def _last_argmax(values: NDArray[np.float64]) -> int:
    """Position of the maximum; of several equal ones the last, as in COCO's matching."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def _nearest(iou: NDArray[np.float64], truths: Shapes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not iou.size:
        return np.full(len(iou), NONE, dtype=np.int64), np.zeros(len(iou))
    real = np.where(truths.is_ignored, 0.0, iou)
    nearest, overlap = real.argmax(axis=1), real.max(axis=1)
    return np.where(overlap > 0, nearest, NONE).astype(np.int64), overlap


def _kinds(
    truth_of: NDArray[np.int64],
    predictions: Shapes,
    truths: Shapes,
    nearest_overlap: tuple[NDArray[np.int64], NDArray[np.float64]],
    iou_threshold: float,
) -> tuple[ErrorKind | None, ...]:
    kinds: list[ErrorKind | None] = []
    for index, (nearest, overlap) in enumerate(zip(*nearest_overlap, strict=True)):
        if truth_of[index] != NONE:
            kinds.append(None)
        elif overlap < BACKGROUND_IOU:
            kinds.append(ErrorKind.BACKGROUND)
        else:
            same = predictions.labels[index] == truths.labels[nearest]
            close = overlap >= iou_threshold
            kinds.append(_KIND_OF[bool(same), bool(close)])
    return tuple(kinds)


_KIND_OF = {
    (True, True): ErrorKind.DUPLICATE,
    (True, False): ErrorKind.LOCALISATION,
    (False, True): ErrorKind.CLASS,
    (False, False): ErrorKind.BOTH,
}

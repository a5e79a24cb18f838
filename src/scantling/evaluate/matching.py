"""Who found whom: detections of each image matched to its truths at one IoU threshold, by COCO's rules.

Dims: N predictions and M truths of one image, D and G of all images.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from scantling.data.truths import Truths
from scantling.evaluate.inputs import EvalInputs
from scantling.evaluate.pairs import NONE, best_first, by_preference, match_pairs
from scantling.ops.overlaps import Floats, Ints, Pairs, find_pairs
from scantling.structures.detections import Detections

BACKGROUND_IOU = 0.1


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
        pairs: Predictions and truths that overlap, of any category; on a crowd region by the share of the prediction.
    """

    truths: Truths
    predictions: Detections
    truth_of: NDArray[np.int64]
    prediction_of: NDArray[np.int64]
    kinds: tuple[ErrorKind | None, ...]
    nearest: NDArray[np.int64]
    overlap: NDArray[np.float64]
    pairs: Pairs

    @property
    def is_hit(self) -> NDArray[np.bool_]:
        """(N,) whether a prediction found a truth that counts."""
        hits: NDArray[np.bool_] = (self.truth_of != NONE) & ~self.is_ignored
        return hits

    @property
    def is_ignored(self) -> NDArray[np.bool_]:
        """(N,) whether a prediction lies on what is ignored and counts neither way."""
        return np.isin(self.truth_of, np.flatnonzero(~self.truths.is_object))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(N, M) overlap of every prediction and truth."""
        table = np.zeros((len(self.predictions), len(self.truths)))
        table[self.pairs.first, self.pairs.second] = self.pairs.iou
        return table


def match_images(
    inputs: EvalInputs, *, iou_threshold: float = 0.5, max_detections: int = 100
) -> list[ImageMatch]:
    """Match every image, in the data set's order.

    Args:
        inputs: Truth and detections; images without either give empty matches.
        iou_threshold: Overlap from which a prediction has found a truth.
        max_detections: Predictions kept per image and category, best first.
    """
    given = best_first(inputs.keys, inputs.detections.scores, max_detections)
    kept, truths = inputs[given], inputs.truths
    pairs = find_pairs(
        kept.detections.images, kept.shapes, truths.images, kept.truth_shapes, is_crowd=truths.is_crowd
    )
    truth_of = _match_same(kept, pairs, iou_threshold)
    nearest, overlap = _nearest(pairs, truths, len(given))
    order = np.lexsort((given, -kept.detections.scores, kept.detections.images))  # best first in each image
    place = np.argsort(order)
    pairs = Pairs(place[pairs.first], pairs.second, pairs.iou)
    pairs = pairs.take(np.argsort(pairs.first, kind="stable"))
    whole = ImageMatch(
        truths=truths,
        predictions=kept.detections[order],
        truth_of=truth_of[order],
        prediction_of=np.full(len(truths), NONE, dtype=np.int64),
        kinds=(),
        nearest=nearest[order],
        overlap=overlap[order],
        pairs=pairs,
    )
    return _divided(whole, inputs.num_images, iou_threshold)


def _match_same(kept: EvalInputs, pairs: Pairs, iou_threshold: float) -> Ints:
    """(D,) truth of its own category that each detection found, -1 for none."""
    truths = kept.truths
    same = kept.detections.labels[pairs.first] == truths.labels[pairs.second]
    able = same & (pairs.iou >= min(iou_threshold, 1 - 1e-10))
    chosen = match_pairs(
        by_preference(pairs.take(able)),
        kept.keys,
        ~truths.is_object[:, None],
        ~truths.is_object,
        np.array([iou_threshold]),
    )
    return chosen[:, 0, 0]


def _nearest(pairs: Pairs, truths: Truths, num_detections: int) -> tuple[Ints, Floats]:
    """For each detection the truth that counts and that it overlaps most, of equal ones the first; and how far."""
    nearest, overlap = np.full(num_detections, NONE, dtype=np.int64), np.zeros(num_detections)
    real = pairs.take(truths.is_object[pairs.second])
    best = real.take(np.lexsort((-real.second, real.iou, real.first)))
    nearest[best.first], overlap[best.first] = best.second, best.iou  # the last assignment counts: the best
    return nearest, overlap


def _divided(whole: ImageMatch, num_images: int, iou_threshold: float) -> list[ImageMatch]:
    """The matches of all images, one by one; rows are numbered within each image."""
    edges = np.arange(num_images + 1)
    ends = np.searchsorted(whole.predictions.images, edges).tolist()
    truth_ends = np.searchsorted(whole.truths.images, edges).tolist()
    pair_ends = np.searchsorted(whole.pairs.first, ends).tolist()
    matches = []
    for image in range(num_images):
        rows, own = slice(*ends[image : image + 2]), slice(*truth_ends[image : image + 2])
        near = slice(*pair_ends[image : image + 2])
        truths, predictions = whole.truths[own], whole.predictions[rows]
        truth_of, nearest = (
            np.where(of == NONE, NONE, of - own.start) for of in (whole.truth_of[rows], whole.nearest[rows])
        )
        prediction_of = np.full(len(truths), NONE, dtype=np.int64)
        found = np.flatnonzero(truth_of != NONE)
        prediction_of[truth_of[found]] = found
        prediction_of[~truths.is_object] = NONE
        first, second, iou = whole.pairs.take(near)
        matches.append(
            ImageMatch(
                truths=truths,
                predictions=predictions,
                truth_of=truth_of,
                prediction_of=prediction_of,
                kinds=_kinds(truth_of, predictions, truths, (nearest, whole.overlap[rows]), iou_threshold),
                nearest=nearest,
                overlap=whole.overlap[rows],
                pairs=Pairs(first - rows.start, second - own.start, iou),
            )
        )
    return matches


def _kinds(
    truth_of: Ints,
    predictions: Detections,
    truths: Truths,
    nearest_overlap: tuple[Ints, Floats],
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

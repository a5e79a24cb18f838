"""Why a label may be wrong: for every label and reason how much likelier what is seen is than of a right label.

    labels, refined boxes, out-of-fold detections ──► Evidence ──loose, spurious, ...──► log ratios (N,)

N: labels, M: detections.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scantling.audit.association import NONE, Association, Flags, Floats, Rows
from scantling.audit.likelihood import (
    BORROWED,
    deviation_log_ratio,
    logit,
    posterior,
    precision_of,
    robust_z,
    share_at_most,
)
from scantling.data.truths import Truths
from scantling.ops.overlaps import paired_iou, pairwise_iou
from scantling.structures.detections import Detections

MIN_CALIBRATED = 30
"""Detections a category needs to be calibrated on its own; fewer are calibrated with all."""

_OCTAVES = 64
_BLUR = 0.02  # added to 1 - IoU before its logarithm: less is not told apart
_MIN_SPREAD = 0.25
_CONFIDENT = 0.5  # precision from which a detection has a say in where an object is
_AGREE = 0.5  # overlap of refined box and detection from which they are about the same object
_MARGIN = 1.0  # by which the refiner may exceed what the detector says of a label
_HAND_IN_HAND = 0.25  # weight of evidence that goes hand in hand with other evidence
_OVERLOOKED = 1.1  # log of how much oftener than its share an object is overlooked, because it is hard
_USUAL_SUPPORT = 0.25
_COINCIDE, _COINCIDE_WIDTH = 0.75, 0.05  # overlap of two labels at which one object is as likely as two
_NEAR = 0.4
_RARE = 0.02  # share of twins below which the share does not count
_TWO_FOUND = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Everything known about the labels of a data set.

    Attributes:
        labels: N labels.
        refined: (N, 4) their boxes after refinement, xyxy, NaN for those left alone; None without a refiner.
        detections: M out-of-fold detections; none were given if `has_detections` is false.
        has_detections: Whether the silence of the detections means something.
        association: Which detections found which labels.
        precision: (M,) probability that a detection is a real object of its category.
        missing_rate: (M,) share of objects of its category that seem to have no label.
        groups: (N,) number of category, size, and whether the border cuts it.
    """

    labels: Truths
    refined: Floats | None
    detections: Detections
    has_detections: bool
    association: Association
    precision: Floats = field(repr=False)
    missing_rate: Floats = field(repr=False)
    groups: Rows = field(repr=False)

    def support(self, rows: Rows) -> Floats:
        """(N,) precision of the detection of each label (-1 for none, which supports it by 0)."""
        return np.where(rows != NONE, np.append(self.precision, 0.0)[rows], 0.0)

    def detected(self, rows: Rows) -> Floats:
        """(N, 4) boxes of the detections of the labels, NaN for none."""
        boxes = np.concatenate([self.detections.boxes, np.full((1, 4), np.nan)])
        return boxes[rows]


def size_groups(labels: Truths) -> Rows:
    """(N,) number of the category, of the octave of the size (root of the area), and of whether the border cuts it."""
    sides = np.maximum(labels.boxes[:, 2:] - labels.boxes[:, :2], 1.0)
    octave: Rows = np.log2(np.sqrt(sides.prod(axis=1))).astype(np.int64)
    return (labels.labels * _OCTAVES + octave) * 2 + labels.is_cut


def calibrate(
    labels: Truths, detections: Detections, association: Association, rate: float
) -> tuple[Floats, Floats]:
    """Precision of every detection and the rate of missing labels of its category, both (M,).

    Args:
        labels: Of the data set.
        detections: Out-of-fold detections.
        association: With the labels.
        rate: Share of missing labels that is assumed at least.
    """
    precision, missing = np.zeros(len(detections)), np.full(len(detections), rate)
    is_right = association.found != NONE
    is_found = (association.found_by != NONE)[labels.is_object]
    of_found = labels.labels[labels.is_object]
    everything = (detections.scores[association.counts], is_right[association.counts])
    pooled = precision_of(*everything, rate, float(is_found.mean()) if len(is_found) else 0.0)
    for label in np.unique(detections.labels):
        rows = detections.labels == label
        counted = rows & association.counts
        enough = counted.sum() >= MIN_CALIBRATED and bool(is_right[counted].any())
        chosen = counted if enough else association.counts
        recall = float(is_found[of_found == label].mean()) if enough else 0.0
        fitted = precision_of(detections.scores[chosen], is_right[chosen], rate, recall) if enough else pooled
        precision[rows] = _carried(detections.scores, fitted[0], (chosen, rows))
        missing[rows] = fitted[1]
    return precision, missing


def _carried(scores: Floats, fitted: Floats, chosen_rows: tuple[Flags, Flags]) -> Floats:
    """The fitted values of some detections at the scores of others."""
    chosen, rows = chosen_rows
    if not len(fitted):
        return np.zeros(int(rows.sum()))
    order = np.argsort(scores[chosen], kind="stable")
    return np.interp(scores[rows], scores[chosen][order], fitted[order])


# ---------------------------------------------------------------- loose


def confident(evidence: Evidence) -> Floats:
    """(N, 4) boxes of confident detections that found the labels, NaN where there is none."""
    rows = evidence.association.found_by
    sure = evidence.support(rows) >= _CONFIDENT
    return np.where(sure[:, None], evidence.detected(rows), np.nan)


def consensus(evidence: Evidence) -> Floats:
    """(N, 4) where refiner and detector see the object, NaN where neither does.

    The mean of the refined box and the box of a confident detection where these agree, each weighted by the inverse
    square of how far it usually lies from the labels; where they do not, or where one is missing, the refined box,
    else the detection.
    """
    detected = confident(evidence)
    if evidence.refined is None:
        return detected
    agree = paired_iou(evidence.refined, detected) >= _AGREE
    either = np.where(np.isfinite(evidence.refined), evidence.refined, detected)
    if not agree.any():
        return either
    usual = [
        float(np.median(1 - paired_iou(evidence.labels.boxes[agree], boxes[agree]))) + _BLUR
        for boxes in (evidence.refined, detected)
    ]
    share = usual[1] ** 2 / (usual[0] ** 2 + usual[1] ** 2)
    return np.where(agree[:, None], share * evidence.refined + (1 - share) * detected, either)


def disagreement(evidence: Evidence, boxes: Floats) -> Floats:
    """(N,) deviations by which a label is farther from such boxes than is usual for its category and size."""
    distance = 1 - paired_iou(evidence.labels.boxes, boxes)
    distance[~np.isfinite(boxes).all(axis=1) | ~evidence.labels.is_object] = np.nan
    return robust_z(np.log(distance + _BLUR), evidence.groups, _MIN_SPREAD)


def loose(evidence: Evidence) -> Floats:
    """(N,) log ratio for a badly placed box, where refiner or detector says where the object is.

    Refiner and detector that agree with each other and not with the label weigh more than either: their mean is more
    exact, so what is usual is less. A confident detection that confirms the label outweighs the refiner. -inf where
    neither says anything.
    """
    z = disagreement(evidence, consensus(evidence))
    distance = np.fmin(z, disagreement(evidence, confident(evidence)) + _MARGIN)
    return np.where(np.isnan(distance), -np.inf, deviation_log_ratio(distance))


# ---------------------------------------------------------------- spurious, class, missing


def undetected_log_ratio(evidence: Evidence) -> Floats:
    """(N,) log ratio of the detector's silence about a label, where it sees other labels like it.

    A detection is there by its own mistake only. Divided by the share of labels of its category and size that the
    detector supports as little, and by 3, since most of what a detector overlooks is there and hard to see. -inf
    without detections.
    """
    if not evidence.has_detections:
        return np.full(len(evidence.labels), -np.inf)
    support = _of_objects(evidence, evidence.support(evidence.association.seen_by))
    ratio: Floats = np.log1p(-support) - np.log(share_at_most(support, evidence.groups)) - _OVERLOOKED
    return ratio


def _of_objects(evidence: Evidence, values: Floats) -> Floats:
    """(N,) values, NaN for crowd regions, which no detection finds: they say nothing of what is usual."""
    return np.where(evidence.labels.is_object, values, np.nan)


def spurious(evidence: Evidence) -> Floats:
    """(N,) log ratio for a label of nothing: the detector is silent, and a refined box finds nothing to hold on to."""
    log_ratio = undetected_log_ratio(evidence)
    if evidence.refined is not None:
        log_ratio = log_ratio + _HAND_IN_HAND * deviation_log_ratio(disagreement(evidence, evidence.refined))
    return log_ratio


def wrong_class(evidence: Evidence) -> Floats:
    """(N,) log ratio for another category: the one of a detection on the label that no label explains.

    The odds of that detection being right, times a little of how unusual it is that the detector supports the
    label's own category so little. -inf where there is no such detection.
    """
    rival = evidence.association.rival
    right = logit(np.clip(evidence.support(rival), 1e-3, None))
    own = share_at_most(
        _of_objects(evidence, evidence.support(evidence.association.found_by)), evidence.groups
    )
    return np.where(rival != NONE, right + _HAND_IN_HAND * np.log(_USUAL_SUPPORT / own), -np.inf)


def missing(evidence: Evidence) -> Floats:
    """(M,) probability that a detection which no label explains is an object without a label.

    A detection is real with its precision; of the real ones, the share that has no label is the category's rate of
    missing labels, while one that is not real never has a label. Whoever leaves out one object of an image often leaves
    out more, while a detector errs anywhere: the odds grow with the share of the image's confident detections that no
    label explains, compared with that of all images.
    """
    precision = logit(np.clip(evidence.precision, 1e-3, None))
    likely = posterior(evidence.missing_rate, precision + neglect(evidence))
    return np.where(evidence.association.is_explained, 0.0, likely)


def neglect(evidence: Evidence) -> Floats:
    """(M,) log of how much more of a detection's image is left without labels than is usual."""
    images, sure = evidence.detections.images, evidence.precision >= _CONFIDENT
    if not sure.any():
        return np.zeros(len(images))
    unexplained = sure & ~evidence.association.is_explained
    usual = (unexplained.sum() + 1) / (sure.sum() + 1)
    length = int(images.max()) + 1
    own = np.bincount(images[sure], minlength=length)
    bare = np.bincount(images[unexplained], minlength=length)
    share = (bare + BORROWED * usual) / (own + BORROWED)
    ratio: Floats = np.log(share / usual)[images]
    return ratio


# ---------------------------------------------------------------- duplicate


def duplicate(evidence: Evidence) -> tuple[Floats, Rows]:
    """(N,) log ratio for a label that repeats another one of its image; (N,) that other label, -1 for none.

    It grows with the overlap of the two boxes (or of their refined boxes, where the labels are near each other), and
    shrinks by the share of labels of the category that have such a neighbour, and where two detections found both.
    Of a pair only the label that the detector supports less, or whose box is worse, or that comes later, is named;
    the others have -inf.
    """
    labels, count = evidence.labels, len(evidence.labels)
    overlap, twin = np.zeros(count), np.full(count, NONE, dtype=np.int64)
    for rows in _images_of(labels):
        if len(rows) > 1:
            shared = _shared(evidence, rows)
            twin[rows], overlap[rows] = rows[shared.argmax(axis=1)], shared.max(axis=1)
    log_ratio = (overlap - _COINCIDE) / _COINCIDE_WIDTH
    for label in np.unique(labels.labels):
        own = (labels.labels == label) & labels.is_object
        log_ratio[own] -= np.log((overlap[own] >= _COINCIDE).sum() / (own.sum() + BORROWED) + _RARE)
    both = (evidence.association.found_by != NONE) & (evidence.association.found_by[twin] != NONE)
    log_ratio[both] -= _TWO_FOUND
    named = (overlap >= _NEAR) & _is_worse(evidence, twin)
    return np.where(named, log_ratio, -np.inf), np.where(named, twin, NONE)


def _images_of(labels: Truths) -> list[NDArray[np.int64]]:
    """Rows of the objects of each image, crowds left out."""
    rows = np.flatnonzero(labels.is_object)
    _, starts = np.unique(labels.images[rows], return_index=True)
    return np.split(rows, starts[1:]) if len(rows) else []


def _shared(evidence: Evidence, rows: Rows) -> Floats:
    """(n, n) overlap of the labels of one image with those of the same category; 0 on the diagonal."""
    labels = evidence.labels
    iou = pairwise_iou(labels.boxes[rows], labels.boxes[rows])
    if evidence.refined is not None:
        refined = pairwise_iou(evidence.refined[rows], evidence.refined[rows])
        iou = np.where(iou >= _NEAR, np.maximum(iou, refined), iou)
    same = labels.labels[rows][:, None] == labels.labels[rows]
    return np.where(same & ~np.eye(len(rows), dtype=bool), iou, 0.0)


def _is_worse(evidence: Evidence, twin: Rows) -> Flags:
    """(N,) whether a label is the worse one of itself and its twin."""
    support = evidence.support(evidence.association.found_by)
    boxes = consensus(evidence)
    fit = paired_iou(evidence.labels.boxes, boxes) if len(boxes) else support
    rank = np.arange(len(evidence.labels))
    keys = list(zip((support > 0).tolist(), fit.tolist(), (-rank).tolist(), strict=True))
    worse = [other == NONE or key < keys[other] for key, other in zip(keys, twin.tolist(), strict=True)]
    return np.array(worse, dtype=bool)

"""How well objects that lie in several parts are found whole: the occlusion metric of the DeepSportRadar challenge.

    truths ──► those whose mask has two or more parts: the largest is the body, the others are cut off
    detections ── matched to all truths, IoU above 0.5 ──► OIR: share of those truths that are found
               └─ what each has of a pixel cut off ───────► DPR: share of the pixels of those found
    OM = OIR x DPR

What a detection has of a pixel is its score over the sum of scores of all detections that contain the pixel, so that a
second detection of the same place costs. All sums run over the whole data set.

Dims: D detections, G truths, I images, R weightings of the images, P pairs.
Source: Challenge description, DeepSportRadar Instance Segmentation Challenge, edition of 2023. What it leaves open is
    as in its evaluation: pixels that touch at a corner are one part; a detection belongs to one truth at most, the
    largest overlap first. Its data has one category and neither crowd regions nor ignored objects; here detections and
    truths meet within a category, and what does not count in AP does not count. Undefined is None, there 0.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.evaluate.inputs import EvalInputs
from scantling.evaluate.pairs import NONE
from scantling.ops.overlaps import Floats, Ints, Pairs, find_pairs
from scantling.ops.rle import RLE, Patch, rle_to_patch
from scantling.structures.detections import Detections

METRICS = ("OM", "OIR", "DPR")
_MIN_IOU = 0.5  # exceeded, not reached


class OcclusionCounts(NamedTuple):
    """What the metric is made of, image by image.

    Attributes:
        split: (I,) truths in several parts.
        found: (I,) those of them that a detection found.
        pixels: (I,) pixels cut off from the bodies of those found.
        recalled: (I,) shares of these pixels that the detections have.
    """

    split: Floats
    found: Floats
    pixels: Floats
    recalled: Floats


def count_occluded(inputs: EvalInputs) -> OcclusionCounts:
    """Look at every truth in several parts, and at the detection that found it.

    Args:
        inputs: Truths and detections with masks; all detections count, however many. None of either gives zeros.
    """
    truths, detections = inputs.truths, inputs.detections
    masks = inputs.truth_shapes
    pairs = _same_category(inputs)
    prediction_of = _matched(pairs, detections.scores, len(truths))
    order = np.argsort(pairs.second, kind="stable")
    ends = np.searchsorted(pairs.second[order], np.arange(len(truths) + 1))
    counts = OcclusionCounts(*(np.zeros(inputs.num_images) for _ in OcclusionCounts._fields))
    for row in np.flatnonzero(truths.is_object).tolist():
        cut_off, offset = cut_off_of(masks[row])
        if not cut_off.any():
            continue
        image = truths.images[row]
        counts.split[image] += 1
        if prediction_of[row] == NONE:
            continue
        counts.found[image] += 1
        counts.pixels[image] += np.count_nonzero(cut_off)
        meeting = detections[pairs.first[order[ends[row] : ends[row + 1]]]]
        own = detections[prediction_of[row : row + 1]]
        counts.recalled[image] += float(_shares(own, meeting, cut_off.shape, offset)[cut_off].sum())
    return counts


def occlusion_values(counts: OcclusionCounts, weights: NDArray[np.float32]) -> dict[str, Floats]:
    """(R,) values of OM, OIR and DPR under every weighting of the images; NaN where undefined.

    Args:
        counts: Of every image.
        weights: (I, R) how often each image counts; a column of ones is the measurement itself.
    """
    split, found, pixels, recalled = (column @ weights.astype(np.float64) for column in counts)
    oir, dpr = _ratio(found, split), _ratio(recalled, pixels)
    return {"OM": np.where((split > 0) & (found == 0), 0.0, oir * dpr), "OIR": oir, "DPR": dpr}


def cut_off_of(mask: RLE) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """The pixels of a mask that are not in its largest part; of equally large ones the one that begins highest.

    Args:
        mask: Run lengths of the image.

    Returns:
        (h, w) the smallest window that holds the mask, nothing in it where the mask is in one part or empty; and the
        (x, y) where it begins.
    """
    patch, offset = rle_to_patch(mask)
    if not patch.size:
        return patch.astype(bool), offset
    _, parts, stats, _ = cv2.connectedComponentsWithStats(patch, connectivity=8)
    body = 1 + int(np.lexsort((stats[1:, cv2.CC_STAT_TOP], -stats[1:, cv2.CC_STAT_AREA]))[0])
    return (patch != 0) & (parts != body), offset


def _same_category(inputs: EvalInputs) -> Pairs:
    """Detections and objects of one image and category that overlap."""
    truths, detections = inputs.truths, inputs.detections
    pairs = find_pairs(detections.images, inputs.shapes, truths.images, inputs.truth_shapes)
    same = detections.labels[pairs.first] == truths.labels[pairs.second]
    return pairs.take(same & truths.is_object[pairs.second])


def _matched(pairs: Pairs, scores: Floats, num_truths: int) -> Ints:
    """(G,) detection of each truth, -1 for none: the largest overlap first, of equal ones the better score."""
    able = pairs.take(pairs.iou > _MIN_IOU)
    prediction_of = np.full(num_truths, NONE, dtype=np.int64)
    taken: set[int] = set()
    for place in np.lexsort((able.second, able.first, -scores[able.first], -able.iou)).tolist():
        detection, truth = int(able.first[place]), int(able.second[place])
        if detection not in taken and prediction_of[truth] == NONE:
            taken.add(detection)
            prediction_of[truth] = detection
    return prediction_of


def _shares(
    own: Detections, meeting: Detections, size_hw: tuple[int, ...], offset_xy: tuple[int, int]
) -> Floats:
    """(h, w) the score of one detection over the sum of scores of all, 0 outside of its mask.

    Args:
        own: The one detection.
        meeting: All detections that can lie in the window, that one among them.
        size_hw: Height and width of the window.
        offset_xy: Its upper left pixel.
    """
    total = np.zeros(size_hw)
    for mask, score in zip(meeting.mask_column, meeting.scores.tolist(), strict=True):
        total += score * _in_window(*rle_to_patch(mask), total.shape, offset_xy)
    mine = own.scores[0] * _in_window(*rle_to_patch(own.mask_column[0]), total.shape, offset_xy)
    return _ratio(mine, total, undefined=0.0)


def _in_window(
    patch: Patch, start_xy: tuple[int, int], size_hw: tuple[int, ...], offset_xy: tuple[int, int]
) -> Patch:
    """(h, w) what of a patch that begins at `start_xy` lies in a window that begins at `offset_xy`."""
    window = np.zeros(size_hw, dtype=np.uint8)
    here, there = [], []
    for axis in (0, 1):
        shift = start_xy[1 - axis] - offset_xy[1 - axis]
        begin, end = max(0, shift), max(0, min(size_hw[axis], shift + patch.shape[axis]))
        here.append(slice(begin, max(begin, end)))
        there.append(slice(begin - shift, max(begin, end) - shift))
    window[here[0], here[1]] = patch[there[0], there[1]]
    return window


def _ratio(part: Floats, whole: Floats, *, undefined: float = float("nan")) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, undefined), where=whole > 0)

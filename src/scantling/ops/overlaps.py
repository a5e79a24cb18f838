"""Boxes and masks of a whole data set as columns: their two forms, and the pairs of them that overlap.

    keys and boxes, or keys and masks, of N objects ──┐
                                                      ├─► find_pairs ──► Pairs (first, second, iou): one per overlap
    the same of M objects ────────────────────────────┘

Two objects are compared where their keys (an image, or an image and category) are equal. Masks are compared with
COCO's own code on run lengths, which looks only where boxes meet, or with that of rlemasklib where it is installed:
the same numbers, sooner. Torch is not needed here. N, M: objects; P: pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from scantling.ops.rle import RLE

try:
    from rlemasklib import RLEMask
except ImportError:  # an extra
    RLEMask = None

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Box = tuple[float, float, float, float]

_MAX_PAIRS = 1_000_000  # compared at once
_MAX_AREAS = 255  # of more masks at once pycocotools counts in a byte


class Pairs(NamedTuple):
    """Objects that overlap.

    Attributes:
        first: (P,) rows of the first set, ascending.
        second: (P,) rows of the second set; those of one row of the first ascending.
        iou: (P,) overlap in (0, 1].
    """

    first: Ints
    second: Ints
    iou: Floats

    def take(self, rows: NDArray[Any] | slice) -> Pairs:
        """Those at some positions."""
        return Pairs(self.first[rows], self.second[rows], self.iou[rows])


class Overlaps(NamedTuple):
    """How box i of one set and box i of another overlap; 0 where an area it is divided by is 0.

    Attributes:
        iou: (P,) intersection over union.
        of_first: (P,) share of the first box that lies inside the second.
        of_second: (P,) share of the second box that lies inside the first.
    """

    iou: Floats
    of_first: Floats
    of_second: Floats


def xywh_to_xyxy(boxes_xywh: Floats) -> Floats:
    """(N, 4) left, top, width, height to corners."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def xyxy_to_xywh(boxes: Floats) -> Floats:
    """(N, 4) corners to left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def corners(box_xywh: Sequence[float]) -> Box:
    """One box: left, top, width, height to corners."""
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


def from_corners(box: Sequence[float]) -> Box:
    """One box: corners to left, top, width, height."""
    x1, y1, x2, y2 = box
    return x1, y1, x2 - x1, y2 - y1


def box_areas(boxes: Floats) -> Floats:
    """(N,) area of each box xyxy; a reversed box has none."""
    areas: Floats = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    return areas


def paired_overlaps(boxes: Floats, others: Floats, areas: tuple[Floats, Floats] | None = None) -> Overlaps:
    """Overlap of box i with box i.

    Args:
        boxes: (P, 4) xyxy.
        others: (P, 4) xyxy, same frame.
        areas: (P,) areas of both where they are known more exactly, as COCO's width times height; None: from corners.
    """
    common = common_areas(boxes, others)
    first, second = areas if areas is not None else (box_areas(boxes), box_areas(others))
    return Overlaps(*(_share(common, whole) for whole in (first + second - common, first, second)))


def common_areas(boxes: Floats, others: Floats) -> Floats:
    """(...) area that boxes (..., 4) have in common with others of a shape that broadcasts to theirs; xyxy."""
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    areas: Floats = np.where((sides > 0).all(axis=-1), sides[..., 0] * sides[..., 1], 0.0)
    return areas


def pairwise_overlaps(boxes: Floats, others: Floats) -> Overlaps:
    """(N, M) overlaps of every box with every other, both (N or M, 4) xyxy: for the few boxes of one image."""
    first = np.repeat(np.arange(len(boxes)), len(others))
    second = np.tile(np.arange(len(others)), len(boxes))
    found = paired_overlaps(boxes[first], others[second])
    return Overlaps(*(values.reshape(len(boxes), len(others)) for values in found))


def pairwise_iou(boxes: Floats, others: Floats) -> Floats:
    """(N, M) IoU of every box with every other, both (N or M, 4) xyxy: for the few boxes of one image."""
    return pairwise_overlaps(boxes, others).iou


def paired_iou(boxes: Floats, others: Floats) -> Floats:
    """(P,) IoU of box i with box i, both (P, 4) xyxy; 0 for a box that is not finite."""
    return paired_overlaps(boxes, others).iou


def find_pairs(
    keys: Ints,
    shapes: NDArray[Any],
    other_keys: Ints,
    other_shapes: NDArray[Any],
    *,
    is_crowd: Flags | None = None,
    at_least: float = 0.0,
) -> Pairs:
    """Every pair of objects of one key that overlap.

    Args:
        keys: (N,) image, or image and category, of each object; in any order.
        shapes: (N, 4) boxes xywh, as COCO reckons areas, or (N,) masks as run lengths (`ops.rle.RLE`) of their image.
        other_keys: (M,) of the second set, ascending.
        other_shapes: (M, 4) or (M,), of the same kind.
        is_crowd: (M,) regions for which the overlap is the share of the first object inside; None: none.
        at_least: Pairs below this overlap are left out; pairs that do not touch always are.

    Returns:
        P pairs, by row of the first set.
    """
    crowd = np.zeros(len(other_keys), dtype=bool) if is_crowd is None else is_crowd
    compare = _mask_pairs if shapes.dtype.hasobject or other_shapes.dtype.hasobject else _box_pairs
    parts = [
        _at_least(found, at_least) for found in compare((keys, shapes), (other_keys, other_shapes), crowd)
    ]
    first, second, iou = (np.concatenate(columns) for columns in zip(_NO_PAIRS, *parts, strict=True))
    return Pairs(first, second, iou)


def find_pairs_within(keys: Ints, masks: NDArray[np.object_], *, at_least: float = 0.0) -> Pairs:
    """Every pair of masks of one key that overlap, each pair once.

    Args:
        keys: (N,) image, or image and category, of each mask; never falling.
        masks: (N,) run lengths (`ops.rle.RLE`) of their image.
        at_least: Pairs below this overlap are left out; pairs that do not touch always are.

    Returns:
        P pairs whose first row is before the second, by first row.
    """
    boxes = xywh_to_xyxy(np.asarray(coco_mask.toBbox(masks.tolist()), dtype=np.float64).reshape(-1, 4))
    areas, found = mask_areas(masks), [_NO_PAIRS]
    for one, other in _meeting(keys, boxes):
        common = np.minimum(np.minimum(areas[one], areas[other]), common_areas(boxes[one], boxes[other]))
        able = np.flatnonzero((common > 0) & (common >= at_least * (areas[one] + areas[other] - common)))
        first, second = np.minimum(one[able], other[able]), np.maximum(one[able], other[able])
        order = np.argsort(first, kind="stable")
        found.append(_at_least(_paired_masks(masks, first[order], second[order]), at_least))
    pairs = Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))
    return pairs.take(np.lexsort((pairs.second, pairs.first)))


def _paired_masks(masks: NDArray[np.object_], first: Ints, second: Ints) -> Pairs:
    """Overlap of mask `first[i]` with mask `second[i]`; `first` never falls."""
    iou, edges = np.zeros(len(first)), np.flatnonzero(np.diff(first, prepend=-1, append=-1)).tolist()
    for begin, end in itertools.pairwise(edges):
        others = masks[second[begin:end]].tolist()
        iou[begin:end] = coco_mask.iou([masks[first[begin]]], others, [0] * len(others))[0]
    return Pairs(first, second, iou)


def mask_areas(masks: NDArray[np.object_]) -> Floats:
    """(N,) number of pixels of each mask, given as run lengths."""
    listed = masks.tolist()
    parts = [coco_mask.area(listed[at : at + _MAX_AREAS]) for at in range(0, len(listed), _MAX_AREAS)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def _meeting(keys: Ints, boxes: Floats) -> Iterator[tuple[Ints, Ints]]:
    """Rows of pairs of one key whose boxes xyxy meet from left to right, each pair once, a bounded number at a time."""
    span = float(boxes.max(initial=0.0)) + 1
    left, right = keys * span + boxes[:, 0], keys * span + boxes[:, 2]
    order = np.argsort(left, kind="stable")
    after = np.arange(1, len(order) + 1)
    counts = np.searchsorted(left[order], right[order], side="left") - after
    counts = counts.clip(0)
    sums = np.cumsum(counts)
    for rows in np.split(after - 1, np.flatnonzero(np.diff(sums // _MAX_PAIRS)) + 1):
        first = np.repeat(rows, counts[rows])
        starts = np.cumsum(counts[rows]) - counts[rows]
        second = np.repeat(rows + 1 - starts, counts[rows]) + np.arange(len(first))
        yield order[first], order[second]


_NO_PAIRS = Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))


def _at_least(pairs: Pairs, overlap: float) -> Pairs:
    """Those that touch and overlap by so much."""
    kept = (pairs.iou >= overlap) & (pairs.iou > 0)
    if kept.all():
        return pairs
    return pairs.take(kept)


def pairs_of_keys(keys: Ints, other_keys: Ints, *, together: bool = False) -> Iterator[tuple[Ints, Ints]]:
    """Rows of all pairs of equal keys, a bounded number at a time; at least one portion.

    Args:
        keys: (N,) in any order.
        other_keys: (M,) ascending.
        together: Neighbours of one key are never divided, however many pairs they have.
    """
    begin = np.searchsorted(other_keys, keys, side="left")
    counts = np.searchsorted(other_keys, keys, side="right") - begin
    sums = np.cumsum(counts)
    if together and len(keys):
        run = np.cumsum(np.diff(keys, prepend=keys[0]) != 0)
        sums = sums[np.searchsorted(run, run, side="right") - 1]
    for rows in np.split(np.arange(len(keys)), np.flatnonzero(np.diff(sums // _MAX_PAIRS)) + 1):
        first = np.repeat(rows, counts[rows])
        starts = np.cumsum(counts[rows]) - counts[rows]
        yield first, np.repeat(begin[rows] - starts, counts[rows]) + np.arange(len(first))


def _box_pairs(one: tuple[Ints, Floats], other: tuple[Ints, Floats], is_crowd: Flags) -> Iterator[Pairs]:
    """All pairs of boxes xywh of one key with COCO's areas, a portion at a time."""
    areas = [boxes[:, 2] * boxes[:, 3] for _, boxes in (one, other)]
    corners = [xywh_to_xyxy(boxes) for _, boxes in (one, other)]
    for first, second in pairs_of_keys(one[0], other[0]):
        found = paired_overlaps(corners[0][first], corners[1][second], (areas[0][first], areas[1][second]))
        yield Pairs(first, second, np.where(is_crowd[second], found.of_first, found.iou))


def _mask_pairs(
    one: tuple[Ints, NDArray[Any]], other: tuple[Ints, NDArray[Any]], is_crowd: Flags
) -> Iterator[Pairs]:
    """Pairs of masks that meet, by row of the first set; COCO's code looks only where their boxes do."""
    order = np.argsort(one[0], kind="stable")
    begins = np.flatnonzero(np.diff(one[0][order], prepend=-1))
    flags = is_crowd.astype(np.uint8)
    found = [_NO_PAIRS]
    for rows in np.split(order, begins[1:]) if len(order) else ():
        low, high = np.searchsorted(other[0], one[0][rows[0]] + np.arange(2))
        if high > low:
            table = _mask_table(one[1][rows].tolist(), other[1][low:high].tolist(), flags[low:high])
            cells = np.ascontiguousarray(table).ravel()
            meeting = np.flatnonzero(cells > 0)
            first, second = np.divmod(meeting, high - low)
            found.append(Pairs(rows[first], low + second, cells[meeting]))
    first, second, iou = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.argsort(first, kind="stable")
    yield Pairs(first, second, iou).take(order)


def _mask_table(masks: list[RLE], others: list[RLE], is_crowd: NDArray[np.uint8]) -> Floats:
    """(N, M) overlap of each of N masks of an image with each of M; of a crowd region the share that lies in it."""
    if RLEMask is not None and not is_crowd.any():
        sizes = {tuple(mask["size"]) for mask in (*masks, *others)}
        if len(sizes) == 1:  # else COCO's code says that these do not overlap
            table: Floats = RLEMask.iou_matrix(
                *([RLEMask.from_dict(m) for m in each] for each in (masks, others))
            )
            return table
    by_coco: Floats = coco_mask.iou(masks, others, is_crowd)
    return by_coco


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=(whole > 0) & (part > 0))

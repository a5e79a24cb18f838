"""Boxes and masks of a whole data set as columns: their two forms, and the pairs of them that overlap.

    keys, boxes, masks of N objects ──┐
                                      ├─► find_pairs ──► Pairs (first, second, iou), sparse: one row per overlap
    keys, boxes, masks of M objects ──┘

Two objects are compared where their keys (an image, or an image and category) are equal. Masks are compared only where
boxes meet, with COCO's own code on run lengths. Torch is not needed here. N, M: objects; P: pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_MAX_PAIRS = 1_000_000  # compared at once


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
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    common = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    first, second = areas if areas is not None else (box_areas(boxes), box_areas(others))
    return Overlaps(*(_share(common, whole) for whole in (first + second - common, first, second)))


def pairwise_iou(boxes: Floats, others: Floats) -> Floats:
    """(N, M) IoU of every box with every other, both (N or M, 4) xyxy: for the few boxes of one image."""
    first = np.repeat(np.arange(len(boxes)), len(others))
    second = np.tile(np.arange(len(others)), len(boxes))
    return paired_overlaps(boxes[first], others[second]).iou.reshape(len(boxes), len(others))


def find_pairs(  # noqa: PLR0913 - two sets of two columns, and what counts
    keys: Ints,
    boxes: Floats,
    other_keys: Ints,
    other_boxes: Floats,
    *,
    masks: tuple[NDArray[Any], NDArray[Any]] | None = None,
    is_crowd: Flags | None = None,
    at_least: float = 0.0,
) -> Pairs:
    """Every pair of objects of one key that overlap.

    Args:
        keys: (N,) image, or image and category, of each object; in any order.
        boxes: (N, 4) xywh, as COCO reckons areas.
        other_keys: (M,) of the second set, ascending.
        other_boxes: (M, 4) xywh.
        masks: (N,) and (M,) run lengths (`ops.rle.RLE`) of the image; the overlap is then that of masks, and the
            boxes only say where to look (they must enclose the masks). None: boxes are compared.
        is_crowd: (M,) regions for which the overlap is the share of the first object inside; None: none.
        at_least: Pairs below this overlap are left out; pairs that do not touch always are.

    Returns:
        P pairs, by row of the first set.
    """
    crowd = np.zeros(len(other_keys), dtype=bool) if is_crowd is None else is_crowd
    parts = []
    for rows, partners in pairs_of_keys(keys, other_keys):
        found = Pairs(rows, partners, _iou_xywh(boxes[rows], other_boxes[partners], crowd[partners]))
        found = _at_least(found, 0.0 if masks is not None else at_least)
        if masks is not None:
            iou = _mask_iou(found.first, found.second, masks, crowd)
            found = _at_least(found._replace(iou=iou), at_least)
        parts.append(found)
    first, second, iou = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Pairs(first, second, iou)


def _at_least(pairs: Pairs, overlap: float) -> Pairs:
    """Those that touch and overlap by so much."""
    kept = (pairs.iou >= overlap) & (pairs.iou > 0)
    return Pairs(pairs.first[kept], pairs.second[kept], pairs.iou[kept])


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


def _iou_xywh(boxes: Floats, others: Floats, is_crowd: Flags) -> Floats:
    """(P,) overlap of pairs of boxes xywh with COCO's areas; on a crowd region the share of the box inside."""
    areas = boxes[:, 2] * boxes[:, 3], others[:, 2] * others[:, 3]
    found = paired_overlaps(xywh_to_xyxy(boxes), xywh_to_xyxy(others), areas)
    return np.where(is_crowd, found.of_first, found.iou)


def _mask_iou(first: Ints, second: Ints, masks: tuple[NDArray[Any], NDArray[Any]], is_crowd: Flags) -> Floats:
    """(P,) overlap of pairs of masks, of which one object's stand together.

    Pairs are taken in blocks of objects that share partners, so that each mask is handed over once; COCO's code leaves
    out pairs of a block whose boxes do not meet.
    """
    iou = np.zeros(len(first))
    for rows in _blocks(first, second):
        ours, mine = np.unique(first[rows], return_inverse=True)
        others, theirs = np.unique(second[rows], return_inverse=True)
        table = coco_mask.iou(
            masks[0][ours].tolist(), masks[1][others].tolist(), is_crowd[others].astype(np.uint8)
        )
        iou[rows] = np.asarray(table, dtype=np.float64)[mine, theirs]
    return iou


def _blocks(first: Ints, second: Ints) -> Iterator[NDArray[np.int64]]:
    """Positions of the pairs that belong to one connected group of objects."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(first):
        return
    ours, mine = np.unique(first, return_inverse=True)
    others, theirs = np.unique(second, return_inverse=True)
    size = len(ours) + len(others)
    graph = coo_array((np.ones(len(mine), dtype=np.int8), (mine, theirs + len(ours))), shape=(size, size))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group[mine], kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(group[mine][order])) + 1)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=(whole > 0) & (part > 0))

"""Pairs of boxes and masks: against hand-derived values, and against pycocotools on random objects."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from scantling.ops import overlaps
from scantling.ops.overlaps import find_pairs, find_pairs_within, paired_overlaps, pairs_of_keys, pairwise_iou
from scantling.ops.rle import rle_encode
from scantling.structures.detections import object_column


def test_values_derived_by_hand():
    box, other = np.array([[0.0, 0.0, 4.0, 2.0]]), np.array([[2.0, 0.0, 4.0, 6.0]])
    found = paired_overlaps(box, other)  # common 2 x 2, areas 8 and 12
    assert (found.iou[0], found.of_first[0], found.of_second[0]) == (4 / 16, 4 / 8, 4 / 12)
    point = np.array([[1.0, 1.0, 1.0, 1.0]])
    assert [value[0] for value in paired_overlaps(box, point)] == [0, 0, 0]
    assert pairwise_iou(box, np.concatenate([other, box])).tolist() == [[0.25, 1.0]]
    assert pairwise_iou(np.zeros((0, 4)), other).shape == (0, 1)


def objects(rng, number, size_hw=(48, 64)):
    """Random keys, and ellipses with their tight boxes."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width]
    centres, radii = rng.uniform(0, [width, height], (number, 2)), rng.uniform(2, 16, (number, 2))
    masks = [
        ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
        for (cx, cy), (rx, ry) in zip(centres, radii, strict=True)
    ]
    rles = [rle_encode(mask) for mask in masks]
    return rng.integers(0, 3, number), np.asarray(coco_mask.toBbox(rles)).reshape(-1, 4), object_column(rles)


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("at_least", [0.0, 0.3])
def test_pairs_are_those_that_pycocotools_finds(with_masks, at_least):
    rng = np.random.default_rng(1)
    keys, boxes, masks = objects(rng, 60)
    other_keys, other_boxes, other_masks = objects(rng, 40)
    order = np.argsort(other_keys, kind="stable")
    other_keys, other_boxes, other_masks = other_keys[order], other_boxes[order], other_masks[order]
    crowd = rng.random(40) < 0.3
    ours, theirs = (masks, other_masks) if with_masks else (boxes, other_boxes)
    found = find_pairs(keys, ours, other_keys, theirs, is_crowd=crowd, at_least=at_least)
    table = np.asarray(
        coco_mask.iou(
            ours.tolist() if with_masks else ours,
            theirs.tolist() if with_masks else theirs,
            crowd.astype(np.uint8).tolist(),
        )
    )
    table = np.where(keys[:, None] == other_keys, table, 0)
    first, second = np.nonzero((table > 0) & (table >= at_least))
    assert len(first) > 20
    assert found.first.tolist() == first.tolist()
    assert found.second.tolist() == second.tolist()
    np.testing.assert_array_equal(found.iou, table[first, second])


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (3, 0), (0, 3)])
def test_nothing_overlaps_nothing(ours, theirs):
    keys = [np.zeros(number, dtype=np.int64) for number in (ours, theirs)]
    boxes = [np.ones((number, 4)) for number in (ours, theirs)]
    masks = [np.empty(number, dtype=object) for number in (ours, theirs)]
    for shapes in (boxes, masks):
        found = find_pairs(keys[0], shapes[0], keys[1], shapes[1])
        assert [len(column) for column in found] == [0, 0, 0]


def test_portions_hold_every_pair_once_and_neighbours_together(monkeypatch):
    monkeypatch.setattr(overlaps, "_MAX_PAIRS", 7)
    keys = np.sort(np.random.default_rng(2).integers(0, 9, 30))
    expected = [(a, b) for a in range(30) for b in range(30) if keys[a] == keys[b]]
    for together in (False, True):
        portions = list(pairs_of_keys(keys, keys, together=together))
        assert len(portions) > 3
        found = [
            pair for first, second in portions for pair in zip(first.tolist(), second.tolist(), strict=True)
        ]
        assert found == expected
    owners = [set(keys[first].tolist()) for first, _ in portions]
    assert sum(map(len, owners)) == len(set(keys.tolist()))


def test_forms_of_boxes_derived_by_hand():
    box, box_xywh = (1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 3.0, 6.0)
    assert overlaps.from_corners(box) == box_xywh
    assert overlaps.corners(box_xywh) == box
    assert overlaps.xyxy_to_xywh(np.array([box])).tolist() == [list(box_xywh)]
    assert overlaps.xywh_to_xyxy(np.array([box_xywh])).tolist() == [list(box)]
    assert overlaps.xyxy_to_xywh(np.zeros((0, 4))).shape == (0, 4)


def test_a_box_that_is_not_there_overlaps_nothing():
    there, nowhere = np.array([[0.0, 0.0, 4.0, 2.0]]), np.full((1, 4), np.nan)
    assert (
        overlaps.paired_iou(there, nowhere).tolist() == overlaps.paired_iou(nowhere, nowhere).tolist() == [0]
    )
    assert pairwise_iou(np.concatenate([there, nowhere]), there).tolist() == [[1], [0]]


def test_masks_derived_by_hand_and_with_crowd():
    left, middle = (rle_encode(np.array([row] * 2)) for row in ([1, 1, 0, 0], [0, 1, 1, 0]))
    one, both, key = object_column([left]), object_column([left, middle]), np.zeros(1, dtype=np.int64)
    keys = np.zeros(2, dtype=np.int64)
    assert find_pairs(key, one, keys, both).iou.tolist() == [1.0, pytest.approx(1 / 3)]
    crowds = np.array([False, True])
    assert find_pairs(key, one, keys, both, is_crowd=crowds).iou.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("at_least", [0.0, 0.3])
def test_pairs_within_a_set_are_each_found_once(at_least, monkeypatch):
    keys, _, masks = objects(np.random.default_rng(3), 90)
    order = np.argsort(keys, kind="stable")
    keys, masks = keys[order], masks[order]
    monkeypatch.setattr(overlaps, "_MAX_PAIRS", 50)
    found = find_pairs_within(keys, masks, at_least=at_least)
    both = find_pairs(keys, masks, keys, masks, at_least=at_least)
    expected = both.take(both.first < both.second)
    assert len(expected.first) > 50
    for column, wanted in zip(found, expected, strict=True):
        assert column.tolist() == wanted.tolist()


def test_masks_without_pixels_or_alone_have_no_pairs():
    empty, full = rle_encode(np.zeros((4, 5))), rle_encode(np.ones((4, 5)))
    for masks in ([], [full], [empty, empty, full]):
        assert len(find_pairs_within(np.zeros(len(masks), dtype=np.int64), object_column(masks)).first) == 0
    found = find_pairs_within(np.array([0, 0, 1]), object_column([full, full, full]))
    assert [column.tolist() for column in found] == [[0], [1], [1.0]]


def test_areas_of_more_masks_than_a_byte_counts():
    masks = object_column([rle_encode(np.arange(12).reshape(3, 4) < n % 13) for n in range(600)])
    assert overlaps.mask_areas(masks).tolist() == [n % 13 for n in range(600)]
    assert overlaps.mask_areas(object_column([])).tolist() == []


def odd_masks(rng, number, size_hw):
    """Noise, blocks, nothing and everything."""
    dense = [rng.random(size_hw) < rng.random() for _ in range(number)]
    for mask, kind in zip(dense, rng.integers(0, 4, number), strict=True):
        if kind == 0:
            mask[:] = False
        elif kind == 1:
            mask[:] = True
        elif kind == 2:
            mask[: rng.integers(size_hw[0]) + 1] = False
    return object_column([rle_encode(mask) for mask in dense])


def test_masks_give_the_same_pairs_to_the_bit_with_and_without_the_faster_library(monkeypatch):
    assert overlaps.RLEMask is not None
    rng = np.random.default_rng(4)
    for _ in range(40):
        size_hw = tuple(rng.integers(1, 30, 2))
        first, second = odd_masks(rng, 6, size_hw), odd_masks(rng, 5, size_hw)
        keys, other_keys = rng.integers(0, 2, 6), np.sort(rng.integers(0, 2, 5))
        with monkeypatch.context() as patch:
            fast = find_pairs(keys, first, other_keys, second)
            patch.setattr(overlaps, "RLEMask", None)
            slow = find_pairs(keys, first, other_keys, second)
        assert [column.tolist() for column in fast] == [column.tolist() for column in slow]
    unlike = object_column([rle_encode(np.ones((3, 3), bool)), rle_encode(np.ones((4, 4), bool))])
    assert find_pairs(np.zeros(2, np.int64), unlike, np.zeros(1, np.int64), unlike[:1]).iou.tolist() == [1.0]

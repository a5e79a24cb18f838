"""Boxes that almost coincide: the same as by comparing all pairs, in memory that grows with the boxes alone."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from scantling.data.health.boxes import NEAR_TWICE_IOU, near_duplicates


def by_all_pairs(boxes, images, labels):
    """Best earlier twin of every box, box by box."""
    found = {}
    for second in range(len(boxes)):
        for first in range(second):
            a, b = boxes[first], boxes[second]
            width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            overlap = max(0, width) * max(0, height)
            union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap
            iou = overlap / union if union > 0 else 0
            together = (images[first], labels[first]) == (images[second], labels[second])
            if (
                together
                and not np.array_equal(a, b)
                and iou >= max(NEAR_TWICE_IOU, found.get(second, (0, 0))[1])
            ):
                found[second] = (first, iou)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("images", [1, 9])
def test_twins_are_those_of_all_pairs(seed, images):
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(0, 60, (160, 2)), rng.uniform(0, 30, (160, 2))
    copies = rng.integers(0, 160, 90)
    corner = np.concatenate([corner, corner[copies] + rng.normal(0, 0.5, (90, 2))])
    sides = np.concatenate([sides, sides[copies] * rng.uniform(0.9, 1.1, (90, 2))])
    boxes = np.concatenate([corner, corner + sides], axis=1)
    boxes[-3:] = boxes[:3]  # exact repetitions are no near ones
    places, labels = rng.integers(0, images, 160), rng.integers(0, 3, 160)
    places, labels = (np.concatenate([of_each, of_each[copies]]) for of_each in (places, labels))
    order = np.argsort(places, kind="stable")
    boxes, places, labels = boxes[order], places[order], labels[order]
    expected = by_all_pairs(boxes, places, labels)
    found = {second: iou for _, second, iou in near_duplicates(boxes, places, labels)}
    assert len(expected) > 5
    assert found == pytest.approx({second: iou for second, (_, iou) in expected.items()})


def test_the_best_earlier_box_is_named():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10.5]], dtype=float)
    zeros = np.zeros(3, dtype=np.int64)
    assert [duplicate[:2] for duplicate in near_duplicates(boxes, zeros, zeros)] == [(0, 1), (1, 2)]
    assert list(near_duplicates(boxes[:0], zeros[:0], zeros[:0])) == []


@pytest.mark.parametrize("kind", ["spread", "heap"])
def test_memory_does_not_grow_with_the_pairs(kind):
    rng = np.random.default_rng(0)
    count, spread, least = {"spread": (12_000, 900.0, 1000), "heap": (6000, 1.0, 5990)}[kind]
    corner = rng.uniform(0, spread, (count, 2))
    boxes = np.concatenate([corner, corner + 50 + rng.uniform(0, 1, (count, 2))], axis=1)
    zeros = np.zeros(count, dtype=np.int64)
    tracemalloc.start()
    found = list(near_duplicates(boxes, zeros, zeros))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) > least
    assert peak < 250e6  # one number for each pair: 1,152 MB, and 288 MB

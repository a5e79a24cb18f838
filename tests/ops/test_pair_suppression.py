"""Suppression by known overlaps: values derived by hand, and the suppression of boxes on masks that are boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scantling.ops.nms import suppress
from scantling.ops.overlaps import Pairs, find_pairs_within
from scantling.ops.pair_suppression import suppress_pairs
from scantling.ops.rle import rle_encode
from scantling.structures.detections import object_column

CHAIN = Pairs(np.array([0, 1]), np.array([1, 2]), np.array([0.6, 0.7]))
"""Three rows of which each overlaps the next."""
SCORES, GROUPS, LIMITS = np.array([0.9, 0.8, 0.5]), np.zeros(3, dtype=np.int64), np.full(3, 0.5)


def test_a_suppressed_row_suppresses_nothing():
    rows, scores = suppress_pairs(SCORES, GROUPS, CHAIN, method="hard", limits=LIMITS)
    assert (rows.tolist(), scores.tolist()) == ([0, 2], [0.9, 0.5])


def test_scores_fall_by_the_overlap_with_each_better_row():
    _, scores = suppress_pairs(SCORES, GROUPS, CHAIN, method="soft_linear", limits=LIMITS)
    # row 1 falls to 0.8 * 0.4 = 0.32, below row 2, which is taken first and lowers it to 0.32 * 0.3
    assert scores.tolist() == pytest.approx([0.9, 0.096, 0.5])
    _, scores = suppress_pairs(SCORES, GROUPS, CHAIN, method="soft_gaussian", limits=LIMITS, sigma=0.5)
    assert scores.tolist() == pytest.approx([0.9, 0.8 * np.exp(-0.72) * np.exp(-0.98), 0.5])


def test_what_falls_too_low_or_overlaps_too_little():
    rows, _ = suppress_pairs(SCORES, GROUPS, CHAIN, method="soft_linear", limits=LIMITS, min_score=0.2)
    assert rows.tolist() == [0, 2]
    wide = np.full(3, 0.6)
    rows, scores = suppress_pairs(SCORES, GROUPS, CHAIN, method="hard", limits=wide)
    assert (rows.tolist(), scores.tolist()) == ([0, 1], [0.9, 0.8])
    rows, scores = suppress_pairs(SCORES, GROUPS, CHAIN, method="none", limits=wide)
    assert (rows.tolist(), scores.tolist()) == ([0, 1, 2], SCORES.tolist())


def test_the_earlier_of_equally_good_rows_stays():
    pairs = Pairs(np.array([0]), np.array([1]), np.array([0.9]))
    rows, _ = suppress_pairs(np.array([0.5, 0.5]), GROUPS[:2], pairs, method="hard", limits=LIMITS[:2])
    assert rows.tolist() == [0]


def test_nothing_stays_nothing():
    none = np.zeros(0, dtype=np.int64)
    pairs = Pairs(none, none, np.zeros(0))
    rows, scores = suppress_pairs(np.zeros(0), none, pairs, method="soft_linear", limits=np.zeros(0))
    assert (len(rows), len(scores)) == (0, 0)


@pytest.mark.parametrize("method", ["hard", "soft_linear", "soft_gaussian"])
def test_masks_that_are_boxes_are_suppressed_as_the_boxes_are(method):
    rng = np.random.default_rng(0)
    images, labels = np.sort(rng.integers(0, 4, 160)), rng.integers(0, 2, 160)
    corners, sides = rng.integers(0, 20, (160, 2)), rng.integers(4, 24, (160, 2))
    boxes, scores = np.concatenate([corners, corners + sides], axis=1), rng.uniform(0.05, 1, 160)
    masks = np.zeros((160, 48, 48), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    groups = images * 2 + labels
    order = np.argsort(groups, kind="stable")
    limits = np.array([0.3, 0.55])
    pairs = find_pairs_within(groups[order], object_column([rle_encode(masks[row]) for row in order]))
    rows, found = suppress_pairs(
        scores[order], groups[order], pairs, method=method, limits=limits[labels[order]]
    )
    keep, expected = suppress(
        torch.from_numpy(boxes).float(),
        torch.from_numpy(scores),
        torch.from_numpy(labels),
        torch.from_numpy(images),
        method=method,
        iou_threshold=torch.tensor(limits),
        max_per_image=None,
    )
    assert 10 < len(rows) < 160 or method != "hard"
    assert dict(zip(order[rows].tolist(), found.tolist(), strict=True)) == pytest.approx(
        dict(zip(keep.tolist(), expected.tolist(), strict=True)), rel=1e-5
    )

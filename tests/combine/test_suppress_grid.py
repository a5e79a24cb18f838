"""The grid of suppression gives what suppression gives, option by option."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.combine.suppress_grid import Option, suppress_in_every_way
from scantling.data.detections import Detections
from scantling.models.suppression import SuppressConfig, suppress_detections

OPTIONS = [
    Option("hard", 0.3),
    Option("soft_linear", 0.3),
    Option("soft_gaussian", 0.2),
    Option("none"),
    Option("hard", 0.7),
    Option("soft_linear", 0.0),
    Option("soft_gaussian", 0.8),
]


def crowded(seed: int, count: int = 400) -> Detections:
    """Boxes around few places of three images and two categories, with equal scores and equal boxes among them."""
    generator = np.random.default_rng(seed)
    places = generator.uniform(0, 60, (count, 2))
    boxes = np.concatenate([places, places + generator.uniform(5, 60, (count, 2))], axis=1)
    boxes[::7] = boxes[0]
    return Detections(
        images=generator.integers(0, 3, count),
        labels=generator.integers(0, 2, count),
        scores=generator.integers(1, 60, count) / 60,
        boxes=boxes,
    )


def config_of(option: Option, **fields) -> SuppressConfig:
    value = {"soft_gaussian": {"sigma": option.value}, "none": {}}.get(
        option.method, {"iou_threshold": option.value}
    )
    return SuppressConfig(method=option.method, score_threshold=0.0, max_per_image=None, **value, **fields)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_option_keeps_what_suppression_keeps(seed):
    candidates = crowded(seed)
    every = suppress_in_every_way(candidates, OPTIONS, min_score=0.01, limit=len(candidates))
    for option, kept in zip(OPTIONS, every, strict=True):
        rows, scores = suppress_detections(candidates, config_of(option, min_score=0.01), ("bolt", "nut"))
        order = np.argsort(rows)
        assert kept.rows.tolist() == rows[order].tolist(), option
        assert kept.scores.tolist() == scores[order].tolist(), option


def test_the_limit_keeps_the_best_of_each_image_and_category():
    candidates = crowded(3)
    whole, few = (suppress_in_every_way(candidates, OPTIONS, limit=limit) for limit in (400, 4))
    for option, all_kept, kept in zip(OPTIONS, whole, few, strict=True):
        groups = candidates.images * 2 + candidates.labels
        for group in range(6):
            inside = groups[all_kept.rows] == group
            best = sorted(all_kept.scores[inside])[::-1][:4]
            assert sorted(kept.scores[groups[kept.rows] == group])[::-1] == best, option


def test_nothing_stays_nothing():
    for kept in suppress_in_every_way(Detections.empty(), OPTIONS):
        assert (len(kept.rows), len(kept.scores)) == (0, 0)

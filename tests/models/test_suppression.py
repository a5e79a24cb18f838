"""Settings by category, for one image and for a data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scantling.errors import ConfigError
from scantling.models.suppression import SuppressConfig, suppress_detections, suppress_instances
from scantling.models.two_stage import top_candidates
from scantling.ops.boxes import pairwise_iou
from scantling.structures.detections import Detections
from scantling.structures.instances import Instances

BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 10.0]])
FOUND = Instances(
    size_hw=(20, 20), boxes=BOXES, labels=torch.tensor([0, 0, 1]), scores=torch.tensor([0.9, 0.8, 0.7])
)
NAMES = ("wheel", "bell", "light")
MIXED = SuppressConfig(
    method={"bell": "hard", "light": "none", "default": "soft_linear"},
    iou_threshold={"bell": 0.7, "default": 0.3},
    sigma={"bell": 0.2, "wheel": 0.3, "light": 0.4},
    score_threshold={"wheel": 0.2, "default": 0.0},
    max_per_image=20,
)


def crowd(seed: int, count: int = 240, images: int = 5) -> Detections:
    """Overlapping boxes of three categories; scores of few digits, so that some are equal."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 40, (count, 2))
    return Detections(
        images=rng.integers(0, images, count) * 3,
        labels=rng.integers(0, 3, count),
        scores=rng.uniform(0, 1, count).round(2).astype(np.float32).astype(np.float64),
        boxes=np.concatenate([low, low + rng.uniform(3, 30, (count, 2))], axis=1).astype(np.float32) * 1.0,
    )


def test_every_setting_reaches_the_result():
    assert pairwise_iou(BOXES[:1], BOXES[1:2]).item() == pytest.approx(0.8)
    hard = suppress_instances(FOUND, SuppressConfig(), ())
    assert hard.scores.tolist() == pytest.approx([0.9, 0.7])
    soft = suppress_instances(FOUND, SuppressConfig(method="soft_linear"), ())
    assert soft.scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * 0.2])
    assert len(suppress_instances(FOUND, SuppressConfig(method="soft_linear", min_score=0.2), ())) == 2
    wide = suppress_instances(FOUND, SuppressConfig(method="soft_gaussian", sigma=0.64), ())
    assert wide.scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * np.exp(-1)])
    assert len(suppress_instances(FOUND, SuppressConfig(method="none"), ())) == 3
    assert len(suppress_instances(FOUND, SuppressConfig(score_threshold=0.75), ())) == 1
    assert len(suppress_instances(FOUND, SuppressConfig(max_per_image=1), ())) == 1


@pytest.mark.parametrize(
    ("changed", "scores"),
    [
        ({"iou_threshold": {"a": 0.85, "default": 0.5}}, [0.9, 0.8, 0.7]),
        ({"iou_threshold": {"b": 0.85, "default": 0.5}}, [0.9, 0.7]),
        ({"method": {"a": "soft_linear", "b": "hard"}}, [0.9, 0.7, 0.16]),
        ({"method": "soft_gaussian", "sigma": {"a": 0.64, "b": 0.1}}, [0.9, 0.7, 0.8 * np.exp(-1)]),
        ({"method": "none", "score_threshold": {"a": 0.85, "default": 0}}, [0.9, 0.7]),
        ({"method": "none", "score_threshold": {"b": 0.85, "default": 0}}, [0.9, 0.8]),
    ],
)
def test_every_setting_may_differ_between_categories(changed, scores):
    found = suppress_instances(FOUND, SuppressConfig(**changed), ("a", "b"))
    assert found.scores.tolist() == pytest.approx(scores)


@pytest.mark.parametrize("field", ["method", "iou_threshold", "sigma", "score_threshold"])
def test_names_that_do_not_fit_the_categories_are_told(field):
    value = "hard" if field == "method" else 0.5
    config = SuppressConfig(**{field: {"wheel": value, "saddle": value}})
    with pytest.raises(ConfigError, match=rf"{field}.*\['saddle'\].*\['bell', 'light'\]") as caught:
        config.thresholds(NAMES)
    assert "default" in str(caught.value.hint)
    assert config.model_copy(update={field: {"default": value}}).thresholds(NAMES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "softly"},
        {"method": {"wheel": "softly"}},
        {"iou_threshold": {"wheel": 1.5}},
        {"sigma": {"wheel": 0}},
        {"sigma": float("inf")},
        {"score_threshold": -0.1},
        {"max_per_image": 0},
        {"min_score": {"wheel": 0.1}},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        SuppressConfig(**wrong)


def test_settings_saved_before_there_were_mappings_load():
    old = {"method": "soft_linear", "iou_threshold": 0.4, "sigma": 0.5, "score_threshold": 1e-7}
    old |= {"min_score": 1e-3, "max_per_image": 100, "max_candidates": 1000}
    assert SuppressConfig(**old).model_dump() == old
    assert SuppressConfig.model_validate_json(MIXED.model_dump_json()) == MIXED


def test_candidates_are_those_above_the_threshold_of_their_category():
    scores = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.4, 0.05]])
    config = SuppressConfig(score_threshold={"wheel": 0.35, "bell": 0.3, "light": 0.07})
    found = top_candidates(BOXES[:2], scores, (20, 20), config.limits(NAMES))
    assert found.labels.tolist() == [0, 1, 2]
    assert found.scores.tolist() == pytest.approx([0.5, 0.4, 0.1])
    assert found.boxes.tolist() == BOXES[[0, 1, 0]].tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_per_image", [None, 20, 4])
def test_a_data_set_at_once_is_what_its_images_are_one_by_one(seed, max_per_image):
    detections = crowd(seed)
    config = MIXED.model_copy(update={"max_per_image": max_per_image})
    rows, scores = suppress_detections(detections, config, NAMES)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float64)
    expected_rows, expected_scores = [], []
    for image in np.unique(detections.images):
        mine = np.flatnonzero(detections.images == image)
        one = Instances(
            size_hw=(80, 80),
            boxes=torch.from_numpy(detections.boxes[mine]).float(),
            labels=torch.from_numpy(detections.labels[mine]),
            scores=torch.from_numpy(detections.scores[mine]).float(),
            ids=torch.from_numpy(mine),
        )
        found = suppress_instances(one, config, NAMES)
        expected_rows += found.ids.tolist()
        expected_scores += found.scores.tolist()
    assert rows.tolist() == expected_rows
    assert scores.tolist() == expected_scores


def test_a_score_that_nothing_lowers_keeps_all_its_digits():
    found = Detections(
        images=np.array([1, 1, 0]),
        labels=np.array([0, 0, 2]),
        scores=np.array([0.123456789012, 0.7654321012345, 1 / 3]),
        boxes=np.array([[0.0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 10, 10]]),
    )
    rows, scores = suppress_detections(found, SuppressConfig(method="soft_linear"), NAMES)
    assert rows.tolist() == [2, 1, 0]
    assert scores[:2].tolist() == [1 / 3, 0.7654321012345]
    assert scores[2] == pytest.approx(0.123456789012 * 0.2)


def test_no_detections():
    rows, scores = suppress_detections(Detections.empty(), MIXED, NAMES)
    assert (rows.tolist(), scores.tolist()) == ([], [])
    assert len(suppress_instances(Instances.empty((8, 8), scored=True), MIXED, NAMES)) == 0


def test_what_evaluation_counts_is_kept_unless_a_person_cuts_it():
    scores = torch.tensor([0.9, 0.04, 0.0011, 0.001])
    boxes = torch.tensor([[20.0 * place, 0, 20.0 * place + 10, 10] for place in range(4)])
    found = Instances(size_hw=(20, 100), boxes=boxes, labels=torch.zeros(4, dtype=torch.int64), scores=scores)
    kept = suppress_instances(found, SuppressConfig(), ())
    assert torch.equal(kept.scores, scores[:3])
    assert len(suppress_instances(found, SuppressConfig(score_threshold=0.05), ())) == 1

"""The paired bootstrap: what is equal, what is plainly better, and what is undefined."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.evaluate.coco_eval import evaluate_results
from scantling.evaluate.compare import compare_results


@pytest.fixture
def case(make_dataset):
    """Twenty images with two bolts each, a nut on the first one only; A finds the first bolts, B all bolts."""
    boxes = [[10.0, 10.0, 60.0, 50.0], [150.0, 100.0, 60.0, 50.0]]
    truths = [{"image_id": i, "category_id": 1, "bbox": box} for i in range(1, 21) for box in boxes]
    truths.append({"image_id": 1, "category_id": 2, "bbox": [20.0, 150.0, 40.0, 40.0]})
    dataset = make_dataset(truths, image_ids=range(1, 21), categories=((1, "bolt"), (2, "nut"), (3, "gap")))
    generator = np.random.default_rng(0)
    every = [{**truth, "score": float(generator.uniform(0.5, 1))} for truth in truths[:-1]]
    return dataset, every[::2], every


def test_equal_results_do_not_differ(case):
    dataset, _, every = case
    comparison = compare_results(dataset, every, every, bootstrap=50)
    assert {found.difference for found in comparison.overall} == {0.0, None}
    assert all(found.interval in {(0.0, 0.0), None} for found in comparison.overall)
    assert all(found.share_better in {0.0, None} for found in comparison.overall)


def test_what_is_better_on_every_image_is_better_on_every_resample(case):
    dataset, half, every = case
    comparison = compare_results(dataset, half, every, bootstrap=200)
    bolt = comparison.per_category[0]
    assert (bolt.category, bolt.metric, bolt.second, bolt.share_better) == ("bolt", "AP", 1.0, 1.0)
    assert bolt.difference == pytest.approx(1 - 51 / 101)  # half of the bolts: recalls 0, 0.01 ... 0.50
    assert 0 < bolt.interval[0] <= bolt.difference <= bolt.interval[1]
    other_way = compare_results(dataset, every, half, bootstrap=200).per_category[0]
    assert (other_way.difference, other_way.share_better) == (-bolt.difference, 0.0)
    assert other_way.interval == pytest.approx((-bolt.interval[1], -bolt.interval[0]))


def test_the_undefined_stays_undefined(case):
    dataset, half, every = case
    bolt, nut, gap = compare_results(dataset, half, every, bootstrap=200).per_category
    assert (gap.first, gap.second, gap.difference, gap.interval, gap.share_better) == (None,) * 5
    assert (nut.first, nut.second, nut.difference) == (0.0, 0.0, 0.0)


def test_values_are_those_of_the_evaluation_and_draws_those_of_the_seed(random_case):
    dataset, results = random_case(5)
    comparison = compare_results(dataset, results[:60], results, bootstrap=40, seed=1)
    for side, kept in (("first", results[:60]), ("second", results)):
        metrics = dict(evaluate_results(dataset, kept).metrics)
        metrics["AR"] = metrics["AR100"]
        for found in comparison.overall:
            assert getattr(found, side) == pytest.approx(metrics[found.metric], abs=1e-12)
    assert comparison == compare_results(dataset, results[:60], results, bootstrap=40, seed=1)
    other = compare_results(dataset, results[:60], results, bootstrap=40, seed=2)
    assert other.overall[0].interval != comparison.overall[0].interval


def test_interval_and_share_say_the_same(random_case):
    for seed in range(3):
        dataset, results = random_case(seed)
        comparison = compare_results(dataset, results[::2], results[1::2], bootstrap=400)
        for found in comparison.overall:
            if found.interval is not None:
                assert (found.interval[0] > 0) == (found.share_better > 0.975)


def test_tables(case):
    text = compare_results(*case, bootstrap=20).to_text()
    lines = text.splitlines()
    assert lines[0] == "bbox, 20 images, 20 paired resamples"
    assert any(line.startswith("AP ") and line.rstrip().endswith("100.0%") for line in lines)
    assert lines[-1].split() == ["-", "-", "-", "-", "-", "gap"]

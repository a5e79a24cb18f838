"""Objects marked difficult or ignore: neither required nor a mistake, by hand and by three engines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scantling.data.coco import ReadOptions, parse_coco
from scantling.evaluate.bootstrap import resample
from scantling.evaluate.breakdown import break_down
from scantling.evaluate.coco_eval import evaluate_results
from scantling.evaluate.inputs import eval_inputs
from scantling.evaluate.outcomes import match_outcomes

ORDINARY, MARKED = [10.0, 10.0, 40.0, 40.0], [100.0, 100.0, 60.0, 60.0]
BACKENDS = ("pycocotools", "hotcoco")


def truth_of(make_dataset, mark, *, count_difficult=False):
    """One ordinary and one marked object of one image, read as told."""
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": ORDINARY, "iscrowd": 0},
        {"image_id": 1, "category_id": 1, "bbox": MARKED, "iscrowd": 0, **mark},
    ]
    dataset = make_dataset(annotations, image_ids=(1,))
    options = ReadOptions(count_difficult=count_difficult)
    return parse_coco(json.loads(dataset.file.read_text()), dataset.file, None, options)


def found(*boxes):
    """Results of these boxes, the first with the best score."""
    return [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - 0.1 * n} for n, box in enumerate(boxes)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mark", [{"difficult": 1}, {"ignore": 1}, {"ignore": True}])
@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_what_is_marked_is_neither_required_nor_a_mistake(make_dataset, backend, mark, repeats):
    dataset, results = truth_of(make_dataset, mark), found(*[MARKED] * repeats, ORDINARY)
    evaluation = evaluate_results(dataset, results, backend=backend, bootstrap=20)
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert evaluation.intervals["AP"] == pytest.approx((1, 1))
    assert evaluation.per_category[0].num_truths == 1
    breakdown = break_down(dataset, results)
    assert (breakdown.points[0].hits, breakdown.points[0].false_positives, breakdown.points[0].misses) == (
        1,
        0,
        0,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_of_what_is_marked_is_a_mistake_unlike_in_a_crowd(make_dataset, backend):
    part = [100.0, 100.0, 30.0, 30.0]
    results = found(part, ORDINARY)
    marked = evaluate_results(truth_of(make_dataset, {"difficult": 1}), results, backend=backend)
    assert marked.metrics["AP"] == pytest.approx(0.5)
    crowd = evaluate_results(truth_of(make_dataset, {"iscrowd": 1}), results, backend=backend)
    assert crowd.metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_marked_objects_count_if_they_are_to(make_dataset, backend):
    dataset = truth_of(make_dataset, {"difficult": 1}, count_difficult=True)
    assert dataset.num_objects == 2
    evaluation = evaluate_results(dataset, found(ORDINARY), backend=backend)
    assert evaluation.metrics["AP"] == pytest.approx(51 / 101)


@pytest.mark.parametrize("value", [0, False, None])
def test_no_mark_is_no_mark(make_dataset, value):
    assert truth_of(make_dataset, {"difficult": value, "ignore": value}).num_objects == 2


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_three_engines_agree_on_random_problems(random_case, iou_type, seed):
    dataset, results = random_case(seed, masks=iou_type == "segm")
    content = json.loads(dataset.file.read_text())
    generator = np.random.default_rng(seed)
    for annotation in content["annotations"]:
        annotation["ignore"] = int(not annotation["iscrowd"] and generator.random() < 0.3)
    dataset = parse_coco(content, dataset.file, None, ReadOptions())
    assert dataset.num_ignored > 3
    first, second = (
        evaluate_results(dataset, results, iou_type=iou_type, backend=backend) for backend in BACKENDS
    )
    ours = resample(
        match_outcomes(eval_inputs(dataset, results, iou_type)),
        np.ones((len(dataset), 1), dtype=np.float32),
    ).of(None)
    for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        expected = np.nan if first.metrics[key] is None else first.metrics[key]
        assert (second.metrics[key] is None) == (first.metrics[key] is None)
        assert second.metrics[key] is None or second.metrics[key] == pytest.approx(expected, abs=1e-9)
        assert ours[key][0] == pytest.approx(expected, abs=1e-6, nan_ok=True)

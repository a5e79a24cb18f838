"""More objects of one class than predictions are counted: told, and the number can be set."""

from __future__ import annotations

import pytest

from scantling.combine.tune import TuneConfig, tune_suppression
from scantling.data.detections import detections_of
from scantling.data.health.check import check_data
from scantling.errors import UsageError
from scantling.evaluate.breakdown import break_down
from scantling.evaluate.coco_eval import evaluate_results, limits_up_to
from scantling.evaluate.compare import compare_results
from scantling.models.suppression import SuppressConfig

NUM = 120


@pytest.fixture
def crowded(make_dataset):
    """120 bolts in an image, and results that have them all."""
    boxes = [[16.0 * (n % 20), 20.0 * (n // 20), 12.0, 16.0] for n in range(NUM)]
    dataset = make_dataset([{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes], image_ids=(1,))
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes]
    return dataset, results


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize(("limit", "expected"), [(100, 84 / 101), (110, 92 / 101), (120, 1.0), (500, 1.0)])
def test_exact_results_reach_what_the_limit_allows(crowded, backend, limit, expected):
    dataset, results = crowded
    evaluation = evaluate_results(
        dataset, results, backend=backend, max_detections=limits_up_to(limit), bootstrap=10
    )
    assert evaluation.metrics["AP"] == pytest.approx(expected)
    assert evaluation.metrics[f"AR{limit}"] == pytest.approx(min(1.0, limit / NUM))
    assert f"maxDets={limit}" in evaluation.table.splitlines()[0]
    told = [finding for finding in evaluation.findings if finding.code == "objects-over-limit"]
    assert bool(told) == (limit < NUM)
    if told:
        assert f"1.png: 120 of 'bolt', recall there is at most {limit / NUM:.3f}" in told[0].message
        assert "--max-dets 120" in (told[0].hint or "")


def test_comparison_breakdown_and_tuning_take_the_same_limit(crowded):
    dataset, results = crowded
    for limit, expected in ((100, 84 / 101), (120, 1.0)):
        comparison = compare_results(dataset, results, results, bootstrap=5, max_detections=limit)
        assert comparison.overall[0].first == pytest.approx(expected)
        assert ("maxDets=120" in comparison.to_text()) == (limit == 120)
        assert break_down(dataset, results, max_detections=limit).points[0].misses == NUM - limit
        tuned = tune_suppression(
            detections_of(results, dataset),
            dataset,
            SuppressConfig(score_threshold=0.0, max_per_image=limit),
            TuneConfig(methods=("hard",), iou_thresholds=(0.5,)),
            max_detections=limit,
        )
        assert tuned.before == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("limit", [0, 1, 10])
def test_a_limit_must_leave_room_for_the_table(limit):
    with pytest.raises(UsageError, match="above 10"):
        limits_up_to(limit)


def test_check_tells_before_anything_is_trained(crowded):
    health = check_data(str(crowded[0].file), pixels=False)
    (told,) = [finding for finding in health.findings if finding.code == "objects-over-limit"]
    assert "120 of 'bolt'" in told.message

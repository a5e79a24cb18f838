"""Threshold curves, confusion and calibration, on predictions whose outcome is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.evaluate.breakdown import break_down
from scantling.evaluate.calibration import calibration_of
from scantling.evaluate.confusion import confusion_of
from scantling.evaluate.curves import at_threshold, threshold_curve, threshold_curves

BOLT, NUT = [10, 10, 40, 40], [100, 100, 40, 40]


@pytest.fixture
def breakdown(make_dataset):
    """Image 1: a bolt found, a nut taken for a bolt, a box on nothing. Image 2: a nut missed, a duplicate, crowd."""
    dataset = make_dataset(
        [
            {"image_id": 1, "category_id": 1, "bbox": BOLT},
            {"image_id": 1, "category_id": 2, "bbox": NUT},
            {"image_id": 2, "category_id": 2, "bbox": NUT},
            {"image_id": 2, "category_id": 1, "bbox": BOLT},
            {"image_id": 2, "category_id": 1, "bbox": [200, 100, 100, 100], "iscrowd": 1},
        ],
        categories=((1, "bolt"), (2, "nut")),
    )
    found = [(1, 1, BOLT, 0.95), (1, 1, NUT, 0.85), (2, 1, BOLT, 0.75), (2, 1, [12, 10, 40, 40], 0.72)]
    found += [(1, 2, [200, 10, 30, 30], 0.65), (2, 1, [210, 110, 40, 40], 0.99)]
    results = [
        {"image_id": i, "category_id": k, "bbox": [float(v) for v in box], "score": score}
        for i, k, box, score in found
    ]
    return break_down(dataset, results)


def test_a_curve_by_hand():
    curve = threshold_curve("x", np.array([0.9, 0.5, 0.5, 0.2]), np.array([True, False, True, True]), 4)
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.2]  # equal scores are accepted together
    assert curve.precision == pytest.approx([1, 2 / 3, 3 / 4])
    assert curve.recall == pytest.approx([1 / 4, 2 / 4, 3 / 4])
    assert curve.f1 == pytest.approx([2 / 5, 4 / 7, 6 / 8])
    assert (curve.suggested, curve.best_f1) == (0.2, pytest.approx(0.75))
    values = at_threshold(curve, [0.95, 0.9, 0.6, 0.0])
    assert np.isnan(values[0]).all()
    assert values[1:, 1] == pytest.approx([1 / 4, 1 / 4, 3 / 4])


def test_curves_without_points():
    for scores, hits, truths in (([], [], 3), ([0.5], [False], 0)):
        curve = threshold_curve(None, np.array(scores), np.array(hits, dtype=bool), truths)
        assert (len(curve.thresholds), curve.suggested, curve.best_f1) == (0, None, None)


def test_one_curve_for_all_and_one_for_each(breakdown):
    everything, bolt, nut = threshold_curves(breakdown)
    assert (everything.name, bolt.name, nut.name) == (None, "bolt", "nut")
    assert bolt.thresholds.tolist() == [0.95, 0.85, 0.75, 0.72]  # without the one on the crowd region
    assert everything.thresholds.tolist() == [0.95, 0.85, 0.75, 0.72, 0.65]
    assert everything.recall[-1] == pytest.approx(2 / 4)
    assert bolt.suggested == 0.75
    assert nut.suggested is None


def test_confusion_by_hand(breakdown):
    """Bolts from 0.75: two right, one on a nut. Nuts from 0.5: one on nothing. Crowd and duplicate do not appear."""
    confusion = confusion_of(breakdown)
    assert confusion.names == ("bolt", "nut")
    assert confusion.counts.tolist() == [[2, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_a_duplicate_is_a_prediction_of_background(make_dataset):
    dataset = make_dataset([{"image_id": 1, "category_id": 1, "bbox": BOLT}])
    results = [{"image_id": 1, "category_id": 1, "bbox": [10.0, 10.0, 40.0, 40.0], "score": 0.9}] * 2
    assert confusion_of(break_down(dataset, results)).counts.tolist() == [[1, 0], [1, 0]]


def test_every_truth_and_every_accepted_prediction_counts_once(random_case):
    dataset, results = random_case(2)
    breakdown = break_down(dataset, results)
    counts = confusion_of(breakdown).counts
    truths = sum(int((~match.truths.is_crowd).sum()) for match in breakdown.matches)
    accepted = sum(
        int((breakdown.accepted(image) & ~match.is_ignored).sum())
        for image, match in enumerate(breakdown.matches)
    )
    assert (counts[:-1].sum(), counts[:, :-1].sum(), counts[-1, -1]) == (truths, accepted, 0)
    assert np.diag(counts)[:-1].tolist() == [point.hits for point in breakdown.points]


def test_calibration_by_hand(breakdown):
    calibration = calibration_of(breakdown)
    assert calibration.num_predictions == 5  # the one on the crowd region counts neither way
    filled = {round(part.low, 1): part for part in calibration.bins if part.count}
    assert {low: (part.count, part.share_right) for low, part in filled.items()} == {
        0.9: (1, 1.0),
        0.8: (1, 0.0),
        0.7: (2, 0.5),
        0.6: (1, 0.0),
    }
    assert filled[0.7].mean_score == pytest.approx(0.735)
    assert calibration.error == pytest.approx((0.05 + 0.85 + 2 * 0.235 + 0.65) / 5)


def test_nothing_to_say_without_predictions(make_dataset):
    breakdown = break_down(make_dataset([{"image_id": 1, "category_id": 1, "bbox": BOLT}]), [])
    assert calibration_of(breakdown).error is None
    assert confusion_of(breakdown).counts.tolist() == [[0, 1], [0, 0]]
    assert threshold_curves(breakdown)[0].suggested is None

"""Resampled AP against images that are really copied, and intervals as they have to behave."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from scantling.data.coco import read_coco
from scantling.evaluate.backends import match_and_accumulate
from scantling.evaluate.bootstrap import METRICS, centre, draw_weights, interval, resample
from scantling.evaluate.coco_eval import evaluate_results, interval_table, mean_defined, metrics_json
from scantling.evaluate.inputs import EvalInputs, eval_inputs
from scantling.evaluate.outcomes import match_outcomes

SLICES = {
    "AP": (slice(None), 0),
    "AP50": (slice(0, 1), 0),
    "AP75": (slice(5, 6), 0),
    "APs": (slice(None), 1),
    "APm": (slice(None), 2),
    "APl": (slice(None), 3),
}


def pycocotools(inputs: EvalInputs) -> np.ndarray:
    """(K + 1, M) metrics of every category, then of all, with NaN for undefined."""
    curves = match_and_accumulate(inputs, (1, 10, 100), "pycocotools")
    precision, recall = curves.precision[..., -1], curves.recall[:, :, 0, -1]
    categories = [[k] for k in range(precision.shape[2])]
    rows = [
        [mean_defined(precision[ious][:, :, chosen, area]) for ious, area in SLICES.values()]
        + [mean_defined(recall[:, chosen])]
        for chosen in [*categories, list(range(precision.shape[2]))]
    ]
    return np.array(rows, dtype=float)


def copied(inputs: EvalInputs, weights: np.ndarray) -> EvalInputs:
    """The same with every image as often as its weight says, copies beside one another."""
    images = np.repeat(np.arange(inputs.num_images), weights.astype(int))
    truths, found = inputs.truths, inputs.detections
    own, rows = ([np.flatnonzero(of == image) for image in images] for of in (truths.images, found.images))
    numbers = [np.repeat(np.arange(len(images)), [len(r) for r in part]) for part in (own, rows)]
    nothing = np.zeros(0, dtype=np.int64)
    own, rows = (np.concatenate([nothing, *part]) for part in (own, rows))
    return replace(
        inputs[rows],
        truths=truths[own].replace(images=numbers[0]),
        detections=found[rows].replace(images=numbers[1]),
        sizes_hw=inputs.sizes_hw[images],
    )


def values(resampled, column: int) -> np.ndarray:
    rows = [*resampled.per_category, resampled.overall]
    return np.stack(rows)[..., column]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_weights_of_one_are_the_evaluation_itself(random_case, seed, masks):
    inputs = eval_inputs(*random_case(seed, masks=masks), "segm" if masks else "bbox")
    ours = values(resample(match_outcomes(inputs), np.ones((5, 1), np.float32)), 0)
    np.testing.assert_allclose(ours, pycocotools(inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_copies_of_images(random_case, seed):
    """Categories without a truth in a draw, images drawn never or often, crowd regions, a category of no truth."""
    dataset, results = random_case(seed)
    inputs = eval_inputs(dataset, results, "bbox")
    only_empty = np.zeros((5, 1), np.float32)
    only_empty[dataset.index_of[5]] = 3
    weights = np.concatenate([draw_weights(5, 6, seed), only_empty], axis=1)
    resampled = resample(match_outcomes(inputs), weights)
    for column in range(weights.shape[1]):
        truly = pycocotools(copied(inputs, weights[:, column]))
        np.testing.assert_allclose(values(resampled, column), truly, rtol=0, atol=1e-12)
    assert np.isnan(resampled.overall[:, -1]).all()


def test_recalls_of_whole_percents_are_reached_as_in_pycocotools(make_dataset):
    """100 truths: every hit reaches a recall i/100, some of which fall short of the float i * 0.01."""
    generator = np.random.default_rng(0)
    box = [10.0, 10.0, 50.0, 40.0]
    truths = [{"image_id": i, "category_id": 1, "bbox": box} for i in range(1, 101)]
    dataset = make_dataset(truths, image_ids=range(1, 101))
    results = [
        {"image_id": i, "category_id": 1, "bbox": [x, 10.0, 50.0, 40.0], "score": float(generator.random())}
        for i in range(1, 101)
        for x in (10.0, 150.0)
    ]
    inputs = eval_inputs(dataset, results, "bbox")
    weights = np.concatenate([np.ones((100, 1), np.float32), draw_weights(100, 3)], axis=1)
    resampled = resample(match_outcomes(inputs), weights)
    for column in range(4):
        truly = pycocotools(copied(inputs, weights[:, column]))
        np.testing.assert_allclose(values(resampled, column), truly, rtol=0, atol=1e-12)


def test_the_detection_limit_holds_per_image_and_category(make_dataset):
    dataset = make_dataset([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 40]}])
    false = [
        {"image_id": 1, "category_id": 1, "bbox": [200, 100, 20, 20], "score": 0.9 - n / 1000}
        for n in range(100)
    ]
    hit = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 40], "score": 0.1}
    outcomes = match_outcomes(eval_inputs(dataset, [*false, hit], "bbox"))
    assert (len(outcomes.scores), outcomes.is_hit.any()) == (100, False)
    wider = match_outcomes(eval_inputs(dataset, [*false, hit], "bbox"), max_detections=101)
    assert wider.is_hit[:, 0, 0].sum() == 1


def test_nothing_at_all(make_dataset):
    dataset = make_dataset([])
    evaluation = evaluate_results(dataset, [], bootstrap=10)
    assert evaluation.intervals == dict.fromkeys((*METRICS[:-1], "AR100"))
    truths = make_dataset([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 40]}], folder="truths")
    only_truths = evaluate_results(truths, [], bootstrap=200)
    assert only_truths.intervals["AP"] == (0.0, 0.0)
    assert only_truths.intervals["APs"] is None


def test_draws_depend_on_the_seed_and_hold_as_many_images():
    assert (draw_weights(30, 20, 1).sum(axis=0) == 30).all()
    assert (draw_weights(30, 20, 1) == draw_weights(30, 20, 1)).all()
    assert (draw_weights(30, 20, 1) != draw_weights(30, 20, 2)).any()
    assert (draw_weights(30, 20, 1) == draw_weights(30, 50, 1)[:, :20]).all()
    assert draw_weights(0, 3).shape == (0, 3)


def test_an_interval_by_hand():
    spread = np.linspace(0.30, 0.50, 201)
    assert interval(0.35, spread) == pytest.approx((0.255, 0.445))  # moved down by 0.05
    assert interval(0.05, spread) == pytest.approx((0.0, 0.145))  # within 0 and 1
    assert interval(-0.05, spread, bounds=(-1, 1)) == pytest.approx((-0.145, 0.045))
    assert interval(None, spread) is None
    half = np.where(np.arange(201) < 101, np.nan, spread)
    assert interval(0.4, half) is None
    assert interval(0.4, half[1:]) is not None
    assert centre(0.1, np.array([0.5, np.nan, 0.7, 0.6])) == pytest.approx([0.0, 0.2, 0.1])


def test_intervals_cover_what_other_images_give(make_dataset):
    """Of 40 sets of images the intervals of nearly all hold the mean AP over the sets."""
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        truths = [
            {"image_id": i, "category_id": 1, "bbox": [60 + 100 * n, 10, 50, 40]}
            for i in range(1, 41)
            for n in (0, 1)
        ]
        results = [
            {**truth, "bbox": [truth["bbox"][0] + float(shift), 10, 50, 40], "score": float(score)}
            for truth, shift, score in zip(
                truths, generator.normal(0, 8, 80), generator.random(80), strict=True
            )
        ]
        dataset = make_dataset(truths, image_ids=range(1, 41))
        found.append(evaluate_results(dataset, results, bootstrap=200, seed=seed))
    mean = np.mean([evaluation.metrics["AP"] for evaluation in found])
    inside = sum(low <= mean <= high for low, high in (evaluation.intervals["AP"] for evaluation in found))
    assert 34 <= inside <= 40
    assert all(e.intervals["AP"][0] < e.metrics["AP"] < e.intervals["AP"][1] for e in found)


def test_metrics_json_holds_intervals_only_after_a_bootstrap(random_case):
    dataset, results = random_case(3)
    plain = metrics_json([evaluate_results(dataset, results)])
    assert not [key for key in plain if key.endswith("_interval")]
    evaluation = evaluate_results(dataset, results, bootstrap=100)
    told = metrics_json([evaluation])
    low, high = told["bbox/AP_interval"]
    assert 0 <= low <= told["bbox/AP"] <= high <= 1
    assert told["categories"]["bolt"]["bbox/AP50_interval"] is not None
    assert told["categories"]["gap"]["bbox/AP_interval"] is None
    assert told["bbox/resamples"] == 100
    assert {key: value for key, value in told.items() if key in plain and key != "categories"} == {
        key: value for key, value in plain.items() if key != "categories"
    }
    assert f"AP    {told['bbox/AP']:.3f}  [{low:.3f}, {high:.3f}]" in interval_table(evaluation)
    assert interval_table(evaluate_results(dataset, results)) == ""


# ---------------------------------------------------------------- real data


def jittered(dataset, masks: bool):
    """Every truth, moved a little, and some false detections, as results of a detector."""
    generator = np.random.default_rng(0)
    results = []
    for image in dataset.images:
        truths = dataset.instances(dataset.index_of[image.id], masks=masks)
        for number, box in enumerate(truths.boxes.numpy().astype(float)):
            x1, y1, x2, y2 = box
            width, height = x2 - x1, y2 - y1
            shift = generator.normal(0, 0.06, 4)
            wanted = int(truths.labels[number]) if generator.random() < 0.9 else 0
            result = {
                "image_id": image.id,
                "category_id": dataset.categories[wanted].id,
                "bbox": [
                    float(x1 + shift[0] * width),
                    float(y1 + shift[1] * height),
                    float(width * np.exp(shift[2])),
                    float(height * np.exp(shift[3])),
                ],
                "score": float(generator.random()),
            }
            results.append(
                result | ({"segmentation": moved_mask(truths, number, generator)} if masks else {})
            )
    return results


def moved_mask(truths, number: int, generator):
    shift = generator.integers(-3, 4, 2)
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], dtype=np.float64)
    one = truths.masks[number : number + 1].warp(matrix, truths.size_hw)
    rle = one.to_rles()[0]
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


REAL = [
    ("bccd", "train", "bbox"),
    ("bccd", "val", "bbox"),
    ("bccd", "test", "bbox"),
    ("fruits_nuts", "test", "bbox"),
    ("fruits_nuts", "test", "segm"),
    ("magnetic_tile", "val", "bbox"),
    ("magnetic_tile", "val", "segm"),
]


@pytest.mark.parametrize(("name", "split", "iou_type"), REAL)
def test_real_splits_give_the_numbers_of_pycocotools(real_data, name, split, iou_type):
    """pycocotools on the files themselves, without our reader in between."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    file = real_data / name / "annotations" / f"{split}.json"
    dataset = read_coco(file, task="segmentation" if iou_type == "segm" else "detection")
    results = jittered(dataset, masks=iou_type == "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        plain = [
            {k: v for k, v in r.items() if iou_type == "bbox" or k != "bbox"} for r in copy.deepcopy(results)
        ]
        evaluator = COCOeval(truth, truth.loadRes(plain), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    theirs = [None if value == -1 else value for value in evaluator.stats]
    evaluation = evaluate_results(dataset, results, iou_type=iou_type, bootstrap=20)
    for value, expected in zip(evaluation.metrics.values(), theirs, strict=True):
        assert value == expected if expected is None else value == pytest.approx(expected, abs=1e-9)
    assert 0.2 < evaluation.metrics["AP"] < 0.95
    inputs = eval_inputs(dataset, results, iou_type)
    ours = resample(match_outcomes(inputs), np.ones((len(dataset), 1), np.float32)).overall[:, 0]
    expected = np.array([np.nan if value is None else value for value in [*theirs[:6], theirs[8]]])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)

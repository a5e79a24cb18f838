"""The COCO numbers: by hand on three images, and against pycocotools run on its own."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scantling.data.coco import check_results, read_coco
from scantling.data.coco.records import to_rle
from scantling.data.detections import detections_of
from scantling.errors import DataError, UsageError
from scantling.evaluate import backends
from scantling.evaluate.coco_eval import evaluate_results, metrics_json

BACKENDS = ("pycocotools", "hotcoco")
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def result(image_id, box, score, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def truth(image_id, box, category_id=1, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "iscrowd": 0, **more}


def official(dataset, results, iou_type="bbox"):
    """Numbers and printed lines of pycocotools, used as its own example shows."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(dataset.to_coco())
        for number, annotation in enumerate(coco.dataset["annotations"], start=1):
            annotation["id"] = number  # 0 would count as "not matched"
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        with contextlib.redirect_stdout(printed):
            evaluator.summarize()
    return dict(zip(KEYS, evaluator.stats.tolist(), strict=True)), printed.getvalue().rstrip("\n")


@pytest.fixture
def three_images(make_dataset):
    """Four truths on three images; hits of IoU 1, 0.64 and 1, one false positive, one miss."""
    dataset = make_dataset(
        [
            truth(1, (0, 0, 100, 100)),
            truth(1, (200, 0, 100, 100)),
            truth(2, (0, 0, 100, 100)),
            truth(3, (0, 0, 100, 100)),
        ]
    )
    results = [
        result(1, (200, 0, 100, 100), 0.6),
        result(1, (0, 0, 100, 100), 0.9),
        result(2, (200, 100, 100, 100), 0.8),
        result(2, (0, 0, 100, 64), 0.7),
    ]
    return dataset, results


@pytest.mark.parametrize("backend", BACKENDS)
def test_three_images_by_hand(three_images, backend):
    """By score: hit, false, (hit up to IoU 0.60), hit; recall steps 1/4.

    IoU 0.50-0.60 (3 thresholds): precision 1 for the 26 recall points to 0.25, 3/4 for the 50 to 0.75: 63.5 / 101.
    IoU 0.65-0.95 (7): hit, false, false, hit: 1 for 26 points, 1/2 for the 25 to 0.50: 38.5 / 101.
    Among large objects the box of IoU 0.64 (6400 pixels) is not counted from 0.65 on: 1, and 2/3 for 25 points.
    """
    metrics = evaluate_results(*three_images, backend=backend).metrics
    assert metrics["AP50"] == pytest.approx(63.5 / 101, abs=1e-12)
    assert metrics["AP75"] == pytest.approx(38.5 / 101, abs=1e-12)
    assert metrics["AP"] == pytest.approx((3 * 63.5 + 7 * 38.5) / 1010, abs=1e-12)
    assert metrics["APl"] == pytest.approx((3 * 63.5 + 7 * (26 + 25 * 2 / 3)) / 1010, abs=1e-12)
    assert metrics["AR1"] == pytest.approx(0.25)
    assert metrics["AR100"] == pytest.approx((3 * 0.75 + 7 * 0.5) / 10)
    assert metrics["APs"] is metrics["APm"] is metrics["ARs"] is metrics["ARm"] is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(random_case, backend, iou_type, seed):
    dataset, results = random_case(seed, masks=iou_type == "segm")
    evaluation = evaluate_results(dataset, results, iou_type=iou_type, backend=backend)
    expected, printed = official(dataset, results, iou_type)
    assert {
        key: -1 if value is None else value for key, value in evaluation.metrics.items()
    } == pytest.approx(expected, abs=1e-9)
    assert evaluation.table == printed


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_equals_pycocotools_on_real_data(real_data, split):
    dataset = read_coco(real_data / "bccd" / "annotations" / f"{split}.json", real_data / "bccd" / "images")
    generator = np.random.default_rng(0)
    results = [
        result(
            annotation["image_id"],
            np.asarray(annotation["bbox"]) + generator.normal(0, 6, 4).clip(-9, 9),
            float(generator.random()),
            int(generator.choice([annotation["category_id"]] * 9 + [1])),
        )
        for annotation in dataset.to_coco()["annotations"]
    ]
    results = [{**r, "bbox": [float(v) for v in np.maximum(r["bbox"], 0)]} for r in results]
    expected, printed = official(dataset, results)
    evaluation = evaluate_results(dataset, results)
    assert {k: -1 if v is None else v for k, v in evaluation.metrics.items()} == pytest.approx(
        expected, abs=1e-9
    )
    assert evaluation.table == printed


def test_backends_agree_on_every_curve(random_case):
    dataset, results = random_case(11)
    one, other = (evaluate_results(dataset, results, backend=backend).curves for backend in BACKENDS)
    np.testing.assert_allclose(one.precision, other.precision, atol=1e-9)
    np.testing.assert_allclose(one.recall, other.recall, atol=1e-9)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-9)
    assert one.precision.shape == (10, 101, 3, 4, 3)


def test_categories_average_to_the_whole(random_case):
    dataset, results = random_case(2)
    evaluation = evaluate_results(dataset, results)
    defined = [c for c in evaluation.per_category if c.AP is not None]
    assert [c.name for c in evaluation.per_category] == ["bolt", "nut", "gap"]
    assert evaluation.per_category[2].AP is None
    assert evaluation.per_category[2].num_predictions > 0
    for key in ("AP", "AP50", "AP75", "AR100"):
        assert np.mean([getattr(c, key) for c in defined]) == pytest.approx(
            evaluation.metrics[key], abs=1e-12
        )
    real = [a for a in dataset.to_coco()["annotations"] if not a["iscrowd"]]
    assert sum(c.num_truths for c in evaluation.per_category) == len(real)
    assert sum(c.num_predictions for c in evaluation.per_category) == len(results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_results_is_zero_and_a_warning(make_dataset, backend):
    dataset = make_dataset([truth(1, (0, 0, 10, 10))])
    evaluation = evaluate_results(dataset, [], backend=backend)
    assert evaluation.metrics["AP"] == evaluation.metrics["AR100"] == evaluation.metrics["APs"] == 0
    assert evaluation.metrics["APm"] is None
    assert [finding.code for finding in evaluation.findings] == ["results-empty"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crowd_only", [False, True])
def test_no_truth_is_undefined_not_nan(make_dataset, backend, crowd_only):
    annotations = [truth(1, (0, 0, 50, 50)) | {"iscrowd": 1}] if crowd_only else []
    evaluation = evaluate_results(
        make_dataset(annotations), [result(1, (0, 0, 50, 50), 0.9)], backend=backend
    )
    assert set(evaluation.metrics.values()) == {None}
    assert evaluation.table.count("-1.000") == 12
    assert json.dumps(metrics_json([evaluation]), allow_nan=False)


def test_a_crowd_region_is_no_target_and_no_error(make_dataset):
    """Ten boxes inside the crowd change nothing; the same ten elsewhere are false positives."""
    crowd = truth(1, (100, 100, 120, 120)) | {"iscrowd": 1}
    dataset = make_dataset([truth(1, (0, 0, 50, 50)), crowd])
    hit = result(1, (0, 0, 50, 50), 0.5)
    inside = [result(1, (100 + 8 * i, 110, 20, 20), 0.9) for i in range(10)]
    elsewhere = [result(2, (100 + 8 * i, 110, 20, 20), 0.9) for i in range(10)]
    assert evaluate_results(dataset, [hit, *inside]).metrics["AP"] == pytest.approx(1)
    assert evaluate_results(dataset, [hit, *elsewhere]).metrics["AP"] == pytest.approx(1 / 11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_detection_limits(make_dataset, backend):
    """Five objects of which the best k predictions find k; pycocotools' own summary says -1 for these limits."""
    boxes = [(60 * i, 0, 50, 50) for i in range(5)]
    dataset = make_dataset([truth(1, box) for box in boxes])
    results = [result(1, box, 0.9 - 0.1 * i) for i, box in enumerate(boxes)]
    evaluation = evaluate_results(dataset, results, backend=backend, max_detections=(1, 2, 3))
    shares = {f"AR{limit}": evaluation.metrics[f"AR{limit}"] for limit in (1, 2, 3)}
    assert shares == pytest.approx({"AR1": 0.2, "AR2": 0.4, "AR3": 0.6})
    assert evaluation.metrics["AP"] == pytest.approx(
        61 / 101
    )  # precision 1 at the 61 points up to recall 0.6
    assert evaluation.table.splitlines()[0].endswith("maxDets=  3 ] = 0.604")
    assert [line.split("maxDets=")[1][:3].strip() for line in evaluation.table.splitlines()[6:9]] == [
        "1",
        "2",
        "3",
    ]


def test_annotation_id_zero_counts(make_dataset):
    """pycocotools by itself takes a match with annotation 0 for none."""
    dataset = make_dataset([truth(1, (0, 0, 50, 50))])
    assert dataset.to_coco()["annotations"][0]["id"] == 0
    assert evaluate_results(dataset, [result(1, (0, 0, 50, 50), 0.9)]).metrics["AP"] == pytest.approx(1)


def test_string_and_mixed_image_ids(make_dataset):
    dataset = make_dataset([truth("b", (0, 0, 50, 50)), truth(5, (0, 0, 50, 50))], image_ids=["b", 5, "5"])
    results = [
        result("b", (0, 0, 50, 50), 0.9),
        result(5, (0, 0, 50, 50), 0.8),
        result("5", (0, 0, 9, 9), 0.1),
    ]
    assert evaluate_results(dataset, results, backend="pycocotools").metrics["AP"] == pytest.approx(1)


def test_nothing_is_changed(random_case):
    dataset, results = random_case(5, masks=True)
    before, truth_before = copy.deepcopy(results), copy.deepcopy(dataset.to_coco())
    for backend in BACKENDS:
        evaluate_results(dataset, results, iou_type="segm", backend=backend)
    assert results == before
    assert dataset.to_coco() == truth_before


def test_nothing_is_printed(random_case, capsys):
    for backend in BACKENDS:
        evaluate_results(*random_case(1), backend=backend)
    assert capsys.readouterr() == ("", "")


def test_order_of_results_does_not_matter(random_case):
    dataset, results = random_case(9)
    shuffled = [results[i] for i in np.random.default_rng(0).permutation(len(results))]
    assert evaluate_results(dataset, results).metrics == evaluate_results(dataset, shuffled).metrics


def test_mask_sizes_are_those_of_masks_even_beside_boxes(random_case):
    dataset, results = random_case(3, masks=True)
    boxed = [{**r, "bbox": [0.0, 0.0, 300.0, 200.0]} for r in results]
    plain = evaluate_results(dataset, results, iou_type="segm").metrics
    assert evaluate_results(dataset, boxed, iou_type="segm").metrics == plain


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_size_pycocotools_counts_as_we_do_once_the_boxes_beside_masks_are_gone(make_dataset, backend):
    """Its `loadRes` takes width times height of a `bbox` for the size: of triangles twice that of their masks.

    A mask of 800 of 1600 px is small, its box is medium: with the boxes, the false triangle is one among the medium.
    """
    corner = [[50.0, 50.0, 90.0, 50.0, 50.0, 90.0]]
    dataset = make_dataset(
        [
            truth(1, (50, 50, 40, 40), segmentation=corner),
            truth(2, (0, 0, 80, 80), segmentation=[_square(80)]),
        ]
    )
    sizes = {image.id: image.size_hw for image in dataset.images}
    found = [
        {**result(image_id, box, score), "segmentation": to_rle(mask, sizes[image_id])}
        for image_id, box, score, mask in (
            (1, (50.0, 50.0, 40.0, 40.0), 0.8, _polygons(corner)),
            (2, (0.0, 0.0, 80.0, 80.0), 0.7, _polygons([_square(80)])),
            (2, (150.0, 100.0, 40.0, 40.0), 0.9, _polygons([[150.0, 100.0, 190.0, 100.0, 150.0, 140.0]])),
        )
    ]
    masks = [{key: value for key, value in each.items() if key != "bbox"} for each in found]
    ours = evaluate_results(dataset, found, iou_type="segm", backend=backend).metrics
    without, beside = (official(dataset, results, "segm")[0] for results in (masks, found))
    assert {key: -1 if value is None else value for key, value in ours.items()} == pytest.approx(without)
    assert [key for key in KEYS if beside[key] != pytest.approx(without[key])] == ["APs", "APm"]
    assert (without["APs"], beside["APs"]) == pytest.approx((0.5, 1))
    assert (without["APm"], beside["APm"]) == pytest.approx((1, 0.5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("boxed", [True, False])
def test_polygons_without_area_count_as_pycocotools_counts_them(make_dataset, backend, boxed):
    dataset = make_dataset([truth(1, (0, 0, 80, 80), segmentation=[_square(80)])])
    line = result(1, (10.0, 20.0, 30.0, 0.0), 0.9) | {"segmentation": [[10.0, 20.0, 30.0, 20.0, 40.0, 20.0]]}
    hit = result(1, (0.0, 0.0, 80.0, 80.0), 0.8) | {"segmentation": [_square(80)]}
    results = [each if boxed else {k: v for k, v in each.items() if k != "bbox"} for each in (line, hit)]
    drawn = [each | {"segmentation": _drawn(each["segmentation"], dataset)} for each in results]
    expected, _ = official(dataset, drawn, "segm")
    ours = evaluate_results(dataset, results, iou_type="segm", backend=backend)
    assert ours.metrics["AP50"] == pytest.approx(expected["AP50"]) == pytest.approx(0.5)
    assert {f.code for f in ours.findings} >= {"results-mask-empty"}


def _drawn(polygons, dataset):
    height, width = dataset.images[0].size_hw
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _square(side):
    return [0.0, 0.0, side, 0.0, side, side, 0.0, side]


def _polygons(lists):
    return tuple(np.array(points, dtype=np.float64) for points in lists)


def test_a_mask_alone_has_the_box_around_it(make_dataset, random_case):
    dataset, results = random_case(3, masks=True)
    masks = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    boxed = [{**result, "bbox": coco_mask.toBbox(result["segmentation"]).tolist()} for result in masks]
    found = evaluate_results(dataset, masks)
    assert found.metrics == evaluate_results(dataset, boxed).metrics
    assert found.metrics["AP"] > 0


def test_results_of_both_kinds_count_where_they_can(make_dataset, random_case):
    dataset, results = random_case(3, masks=True)
    box_only = [{"image_id": 7, "category_id": 4, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}]
    mixed = evaluate_results(dataset, results + box_only, iou_type="segm")
    assert mixed.metrics == evaluate_results(dataset, results, iou_type="segm").metrics
    assert "results-mixed" in {finding.code for finding in mixed.findings}
    masks_on_boxes = evaluate_results(dataset, box_only, iou_type="segm")
    assert masks_on_boxes.metrics["AP"] == 0
    assert "results-empty" in {finding.code for finding in masks_on_boxes.findings}


def test_truths_without_masks_are_counted(make_dataset):
    square = [[10.0, 10.0, 60.0, 10.0, 60.0, 60.0, 10.0, 60.0]]
    masked = truth(1, (10, 10, 50, 50)) | {"segmentation": square}
    dataset = make_dataset([masked, truth(2, (0, 0, 20, 20))])
    results = [{"image_id": 1, "category_id": 1, "segmentation": _rle_of(dataset), "score": 0.9}]
    evaluation = evaluate_results(dataset, results, iou_type="segm")
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert next(f.value for f in evaluation.findings if f.code == "mask-missing") == 1


def test_truths_of_boxes_only_are_told_where_masks_are_compared(make_dataset):
    dataset = make_dataset([truth(1, (10, 10, 50, 50)), truth(2, (0, 0, 20, 20))])
    results = [{"image_id": 1, "category_id": 1, "segmentation": [_square(80)], "score": 0.9}]
    evaluation = evaluate_results(dataset, results, iou_type="segm")
    assert evaluation.metrics["AP"] is None
    (found,) = [f for f in evaluation.findings if f.code == "mask-missing"]
    assert found.message.startswith(
        "no object has a mask to compare with (3 images, 2 objects): every AP and AR"
    )
    assert found.value == 2
    assert "no-annotations" not in {f.code for f in evaluation.findings}


def _rle_of(dataset):
    return dict(dataset.subset([1]).instances(0, masks=True).masks.to_rles()[0])


@pytest.mark.parametrize("change", [{"score": math.nan}, {"bbox": [0, 0, math.inf, 1]}, {"image_id": 9}])
def test_what_cannot_be_evaluated_is_refused(make_dataset, change):
    dataset = make_dataset([truth(1, (0, 0, 50, 50))])
    with pytest.raises(DataError) as error:
        evaluate_results(dataset, [result(1, (0, 0, 50, 50), 0.9) | change])
    assert error.value.findings


@pytest.mark.parametrize("limits", [(1, 10), (10, 1, 100), (0, 1, 2), (5, 5, 5)])
def test_impossible_limits_are_refused(make_dataset, limits):
    with pytest.raises(UsageError, match="three increasing"):
        evaluate_results(make_dataset([]), [], max_detections=limits)


def test_backend_choice(monkeypatch):
    assert backends.resolve_backend("auto") == "hotcoco"
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert backends.resolve_backend("auto") == "pycocotools"
    with pytest.raises(UsageError, match=r"scantling\[fast\]"):
        backends.resolve_backend("hotcoco")
    with pytest.raises(UsageError, match="tidecv"):
        backends.resolve_backend("tidecv")


def test_metrics_json_is_flat_with_categories_apart(random_case, make_dataset):
    dataset, results = random_case(4, masks=True)
    boxes = [{**r, "bbox": [5.0, 5.0, 40.0, 40.0]} for r in results]
    both = [evaluate_results(dataset, boxes, iou_type=kind) for kind in ("bbox", "segm")]
    written = json.loads(json.dumps(metrics_json(both), allow_nan=False))
    assert written["bbox/AP"] == both[0].metrics["AP"]
    assert written["segm/ARl"] == both[1].metrics["ARl"]
    assert written["categories"]["gap"]["segm/AP"] is None
    assert written["categories"]["nut"]["bbox/AP50"] == both[0].per_category[1].AP50

    twins = make_dataset([truth(1, (0, 0, 9, 9))], categories=((1, "bolt"), (2, "bolt")), folder="twins")
    assert set(metrics_json([evaluate_results(twins, [])])["categories"]) == {"bolt (id 1)", "bolt (id 2)"}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_columns_give_the_numbers_of_their_results(random_case, iou_type):
    """Without being checked again; boxes and masks are those of the rows."""
    dataset, results = random_case(3, masks=True)
    results[0] = {"bbox": [10.25, 20, 30, 40], **results[0]}
    del results[0]["segmentation"]
    columns = detections_of(check_results(results, dataset).records, dataset)
    plain, ours = (
        evaluate_results(dataset, given, iou_type=iou_type, bootstrap=20) for given in (results, columns)
    )
    assert ours.metrics == pytest.approx(plain.metrics, abs=1e-9)
    assert ours.intervals.keys() == plain.intervals.keys()
    for key, interval in plain.intervals.items():
        assert ours.intervals[key] == pytest.approx(interval, abs=1e-6)
    assert [found.num_predictions for found in ours.per_category] == [
        found.num_predictions for found in plain.per_category
    ]
    bare = evaluate_results(dataset, columns.replace(masks=None), iou_type="segm")
    assert (bare.metrics["AP"], [f.code for f in bare.findings]) == (0, ["results-empty"])

"""Who found whom and what is wrong: against pycocotools' matches, by hand, and by brute force."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scantling.evaluate.breakdown import DEFAULT_THRESHOLD, best_threshold, break_down
from scantling.evaluate.inputs import eval_inputs
from scantling.evaluate.matching import ErrorKind, match_images
from scantling.evaluate.pairs import NONE


def result(image_id, box, score, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def truth(image_id, box, category_id=1, iscrowd=0):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "iscrowd": iscrowd}


def plain(dataset, results):
    """Truth and results in numbers that pycocotools can sort and tell from "not matched"."""
    content = dataset.to_coco()
    images = {image["id"]: n for n, image in enumerate(content["images"], 1)}
    categories = {category["id"]: n for n, category in enumerate(content["categories"], 1)}
    truths, found = (
        [
            {**r, "image_id": images[r["image_id"]], "category_id": categories[r["category_id"]]}
            for r in records
        ]
        for records in (content["annotations"], results)
    )
    return {
        "images": [{**image, "id": images[image["id"]]} for image in content["images"]],
        "annotations": [{**truth, "id": n} for n, truth in enumerate(truths, 1)],
        "categories": [{"id": n, "name": str(n)} for n in categories.values()],
    }, found


def official_matches(truth, found, iou_type):
    """(image, label, score) -> box of the truth pycocotools matched it with at IoU 0.5, None if it matched none."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        detections = coco.loadRes(copy.deepcopy(found))
        evaluator = COCOeval(coco, detections, iou_type)
        evaluator.evaluate()
    found = {}
    for entry in evaluator.evalImgs:
        if entry is None or entry["aRng"] != [0, 1e10]:
            continue
        rows = zip(entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True)
        for detection_id, truth_id, ignored in rows:
            detection = detections.anns[detection_id]
            key = (detection["image_id"] - 1, detection["category_id"] - 1, detection["score"])
            matched = tuple(coco.anns[truth_id]["bbox"]) if truth_id else None
            found[key] = (matched, bool(ignored))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_matches_are_those_of_pycocotools(random_case, seed, iou_type):
    dataset, results = random_case(seed, masks=iou_type == "segm")
    truth, found = plain(dataset, results)
    expected = official_matches(truth, found, iou_type)
    boxes_of = {i: [] for i in range(len(dataset))}
    for annotation in truth["annotations"]:
        boxes_of[annotation["image_id"] - 1].append(tuple(annotation["bbox"]))
    found = {}
    for image, match in enumerate(match_images(eval_inputs(dataset, results, iou_type))):
        for index, label in enumerate(match.predictions.labels):
            matched = match.truth_of[index]
            key = (image, int(label), float(match.predictions.scores[index]))
            found[key] = (
                None if matched == NONE else boxes_of[image][matched],
                bool(match.is_ignored[index]),
            )
    assert found == expected


@pytest.fixture
def one_of_each(make_dataset):
    """On image 1 one error of each kind, on image 2 none, on image 3 only a crowd region with a box on it."""
    dataset = make_dataset(
        [
            truth(1, (0, 0, 60, 60)),  # found, and found again
            truth(1, (100, 0, 60, 60)),  # badly placed
            truth(1, (200, 0, 60, 60)),  # taken for a nut
            truth(1, (0, 120, 60, 60)),  # a nut badly placed on it
            truth(2, (0, 0, 60, 60), category_id=2),
            truth(3, (0, 0, 100, 100), iscrowd=1),
        ],
        categories=((1, "bolt"), (2, "nut")),
    )
    results = [
        result(1, (0, 0, 60, 60), 0.99),
        result(1, (5, 0, 60, 60), 0.95),
        result(1, (130, 0, 60, 60), 0.94),
        result(1, (200, 5, 60, 60), 0.93, category_id=2),
        result(1, (30, 120, 60, 60), 0.92, category_id=2),
        result(1, (200, 150, 40, 40), 0.91),
        result(2, (0, 0, 60, 60), 0.9, category_id=2),
        result(3, (10, 10, 30, 30), 0.9),
    ]
    return break_down(dataset, results)


def test_one_error_of_each_kind(one_of_each):
    match = one_of_each.matches[0]
    by_score = dict(zip(match.predictions.scores.tolist(), match.kinds, strict=True))
    assert by_score == {
        0.99: None,
        0.95: ErrorKind.DUPLICATE,
        0.94: ErrorKind.LOCALISATION,
        0.93: ErrorKind.CLASS,
        0.92: ErrorKind.BOTH,
        0.91: ErrorKind.BACKGROUND,
    }
    assert match.nearest.tolist() == [0, 0, 1, 2, 3, NONE]
    assert match.overlap[2] == pytest.approx(30 * 60 / (2 * 60 * 60 - 30 * 60))


def test_a_prediction_on_a_crowd_region_counts_neither_way(one_of_each):
    match = one_of_each.matches[2]
    assert match.is_ignored.tolist() == [True]
    assert match.kinds == (None,)
    assert not match.is_hit.any()
    assert 2 not in {summary.image for summary in one_of_each.worst_images()}


def test_a_crowd_region_explains_no_error(make_dataset):
    """A nut on a crowd of bolts is not a bolt taken for a nut."""
    dataset = make_dataset([truth(1, (0, 0, 60, 60), iscrowd=1)], categories=((1, "bolt"), (2, "nut")))
    match = break_down(dataset, [result(1, (0, 0, 60, 60), 0.9, category_id=2)]).matches[0]
    assert match.kinds == (ErrorKind.BACKGROUND,)
    assert match.nearest.tolist() == [NONE]


def test_counts_at_the_operating_point(one_of_each):
    """The best F1 of bolts is at the single hit, 2 * 1 / (1 + 4); that of nuts takes both wrong ones: 2 / (3 + 1)."""
    bolt, nut = one_of_each.points
    assert (bolt.threshold, bolt.f1) == (0.99, pytest.approx(0.4))
    assert (bolt.hits, bolt.false_positives, bolt.misses) == (1, 0, 3)
    assert (bolt.precision, bolt.recall) == (1, 0.25)
    assert (nut.threshold, nut.f1) == (0.9, pytest.approx(0.5))
    assert (nut.hits, nut.false_positives, nut.misses) == (1, 2, 0)
    assert {kind: number for kind, number in nut.errors.items() if number} == {
        ErrorKind.CLASS: 1,
        ErrorKind.BOTH: 1,
    }
    assert bolt.errors[ErrorKind.MISSED] == 3


def test_errors_are_listed_surest_first_and_say_what_they_concern(one_of_each):
    wrong = [case for case in one_of_each.errors() if case.kind is not ErrorKind.MISSED]
    assert [(case.kind, case.score, case.truth) for case in wrong] == [
        (ErrorKind.CLASS, 0.93, 2),
        (ErrorKind.BOTH, 0.92, 3),
    ]
    misses = one_of_each.errors(ErrorKind.MISSED)
    assert {(case.truth, case.label, case.box) for case in misses} == {
        (1, 0, (100, 0, 160, 60)),
        (2, 0, (200, 0, 260, 60)),
        (3, 0, (0, 120, 60, 180)),
    }
    taken_for_nut = next(case for case in misses if case.truth == 2)
    assert one_of_each.matches[0].predictions.scores[taken_for_nut.prediction] == 0.93


def test_worst_images_come_first(one_of_each):
    worst = one_of_each.worst_images()
    assert [(image.image, image.num_errors, image.hits, image.num_truths) for image in worst] == [
        (0, 5, 1, 4)
    ]
    assert one_of_each.worst_images(0) == []


def test_a_miss_knows_the_prediction_below_the_threshold(make_dataset):
    dataset = make_dataset([truth(1, (0, 0, 50, 50)), truth(2, (0, 0, 50, 50))])
    doubtful = [result(3, (i * 20, 0, 15, 15), 0.5) for i in range(9)]
    breakdown = break_down(
        dataset, [result(1, (0, 0, 50, 50), 0.9), result(2, (0, 0, 50, 50), 0.3), *doubtful]
    )
    (miss,) = breakdown.errors(ErrorKind.MISSED)
    assert (miss.image, miss.score, miss.prediction) == (1, 0.3, None)


def test_without_results_everything_is_missed(make_dataset):
    breakdown = break_down(make_dataset([truth(1, (0, 0, 50, 50)), truth(2, (0, 0, 20, 20))]), [])
    (point,) = breakdown.points
    assert (point.threshold, point.f1, point.recall, point.precision) == (DEFAULT_THRESHOLD, 0.0, 0.0, None)
    assert [case.box for case in breakdown.errors()] == [(0, 0, 50, 50), (0, 0, 20, 20)]


def test_without_truths_everything_is_background(make_dataset):
    breakdown = break_down(make_dataset([]), [result(1, (0, 0, 50, 50), 0.9), result(1, (0, 0, 9, 9), 0.2)])
    (point,) = breakdown.points
    assert (point.f1, point.recall, point.precision, point.false_positives) == (None, None, 0.0, 1)
    assert [case.kind for case in breakdown.errors()] == [ErrorKind.BACKGROUND]


def test_only_the_best_predictions_of_a_category_are_kept(make_dataset):
    dataset = make_dataset([truth(1, (0, 0, 50, 50))])
    results = [result(1, (100, 100, 10 + i, 10), 0.5 + 0.01 * i) for i in range(8)]
    (kept,) = match_images(eval_inputs(dataset, results, "bbox"), max_detections=3)[:1]
    assert kept.predictions.scores.tolist() == pytest.approx([0.57, 0.56, 0.55])


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_add_up(random_case, seed):
    dataset, results = random_case(seed)
    breakdown = break_down(dataset, results)
    truths = [annotation for annotation in dataset.to_coco()["annotations"] if not annotation["iscrowd"]]
    assert sum(point.hits + point.misses for point in breakdown.points) == len(truths)
    assert len(breakdown.errors()) == sum(sum(point.errors.values()) for point in breakdown.points)
    images = breakdown.worst_images()
    assert sum(image.false_positives for image in images) == sum(p.false_positives for p in breakdown.points)
    assert sum(image.misses for image in images) == sum(point.misses for point in breakdown.points)


outcomes = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.35, 0.5, 0.9]), st.booleans()), max_size=12)


@given(outcomes, st.integers(0, 4))
@example([(0.5, True), (0.5, False), (0.2, False)], 0)  # a threshold cannot part equal scores
def test_best_threshold_equals_trying_all(pairs, missed):
    scores = np.asarray([score for score, _ in pairs], dtype=np.float64)
    is_hit = np.asarray([hit for _, hit in pairs], dtype=bool)
    num_truths = int(is_hit.sum()) + missed
    tried = {
        threshold: 2
        * int(is_hit[scores >= threshold].sum())
        / (int((scores >= threshold).sum()) + num_truths)
        for threshold in set(scores.tolist())
    }
    found = best_threshold(scores, is_hit, num_truths)
    if not is_hit.any():
        assert found is None
        return
    assert found is not None
    best = max(tried.values())
    assert found[1] == pytest.approx(best)
    assert found[0] == max(threshold for threshold, f1 in tried.items() if f1 >= best - 1e-12)

"""The DeepSportRadar challenge's files through the verbs: category id 0, names in folders, and what is handed in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reference.deepsport_layout import (
    CATEGORIES,
    SPLITS,
    faults_of_submission,
    players,
    rle_of,
    write_deepsport,
)
from scantling import api
from scantling.data.coco import check_results, joined, read_coco
from scantling.data.coco.image_lists import to_image_lists
from scantling.errors import DataError, UsageError


@pytest.fixture
def basket(tmp_path):
    return write_deepsport(tmp_path / "basket").parent


def predictions(ids, *, shifted=0):
    """Both people of every image, the second with the better score, as COCO results with category id 0."""
    found = []
    for image_id in ids:
        for number, mask in enumerate(players(image_id)):
            moved = np.roll(mask, shifted, axis=1)
            rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
            x, y = int(columns[0]), int(rows[0])
            box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
            score = 0.5 + 0.25 * number
            shape = {"bbox": box, "segmentation": rle_of(moved)}
            found.append({"image_id": image_id, "category_id": 0, "score": score, **shape})
    return found


@pytest.fixture
def results(tmp_path):
    """Writes results of images to a file and returns it."""

    def write(content, name="found.json"):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / name

    return write


def images_of(basket, split):
    return json.loads((basket / "annotations" / f"{split}.json").read_text(encoding="utf-8"))["images"]


def test_images_are_found_beside_the_annotations_and_in_the_folder_of_the_repository(tmp_path):
    """The JSON files lie in a folder of the data set, or in the challenge's repository beside it."""
    inside = read_coco(write_deepsport(tmp_path / "one") / "val.json")
    beside = read_coco(
        write_deepsport(
            tmp_path / "two" / "basketball-instants-dataset", annotations=tmp_path / "two" / "annotations"
        )
        / "val.json"
    )
    for dataset in (inside, beside):
        assert all(image.path.is_file() for image in dataset.images)
        assert [image.id for image in dataset.images] == [3, 4]
        assert [image.position for image in dataset.images] == [1, 0]
        assert dataset.category_ids == (0,)


def test_what_is_handed_in_is_accepted_and_in_the_order_of_the_file(basket, results, tmp_path):
    out = tmp_path / "challenge-output.json"
    written = api.submission(results(predictions([8, 9])), f"{basket}:challenge", "deepsport", out)
    content = json.loads(out.read_text(encoding="utf-8"))
    images = images_of(basket, "challenge")
    assert [image["id"] for image in images] == [9, 7, 8]
    assert faults_of_submission(content, images) == []
    assert written.to_dict() == {"out": str(out), "challenge": "deepsport", "images": 3, "predictions": 4}
    assert [len(entry["labels"]) for entry in content] == [2, 0, 2]
    first, second = players(9)
    assert content[0]["masks"] == [rle_of(second), rle_of(first)]  # best first
    assert content[0]["scores"] == [0.75, 0.5]
    assert content[0]["labels"] == [0, 0]
    assert content[0]["bboxes"][1] == [15.0, 10.0, 25.0, 34.0]  # x1, y1, x2, y2


def test_the_validator_of_these_tests_finds_faults(basket, results, tmp_path):
    images = images_of(basket, "test")
    out = tmp_path / "out.json"
    api.submission(results(predictions([5, 6])), f"{basket}:test", "deepsport", out)
    sound = out.read_text(encoding="utf-8")
    assert faults_of_submission(json.loads(sound), images) == []
    for key, value, fault in [
        ("labels", [1, 0], "label 1"),
        ("scores", [2.0, 0.5], "score 2.0"),
        ("bboxes", [[0, 0, 90, 9], [0, 0, 9, 9]], "box"),
        ("masks", [rle_of(np.ones((4, 4)))] * 2, "mask of"),
        ("labels", [0], "several lengths"),
    ]:
        content = json.loads(sound)
        content[0][key] = value
        assert any(fault in found for found in faults_of_submission(content, images))
    assert faults_of_submission(json.loads(sound)[:1], images)


def test_what_is_handed_in_comes_back_as_the_same_results(basket, results, tmp_path):
    """Every verb that takes results takes this layout too: it is also what MMDetection's tools write."""
    given, out = predictions([5, 6], shifted=1), tmp_path / "out.json"
    api.submission(results(given), f"{basket}:test", "deepsport", out)
    dataset = read_coco(basket / "annotations" / "test.json")
    back = check_results(json.loads(out.read_text(encoding="utf-8")), dataset).records
    order = {(each["image_id"], each["score"]): each for each in given}
    assert len(back) == 4
    assert all(each == order[each["image_id"], each["score"]] for each in back)
    ours, theirs = (api.evaluate(file, f"{basket}:test", iou_type="segm") for file in (results(given), out))
    assert ours.metrics == theirs.metrics


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (lambda entries: entries[:1], "results-lists-count", "1 entries, and 2 images"),
        (lambda entries: [entries[0] | {"labels": [0]}, entries[1]], "results-lists-entry", "1 labels"),
        (
            lambda entries: [entries[0] | {"labels": [1, 0]}, entries[1]],
            "results-lists-entry",
            "none of 0 to 0",
        ),
        (lambda entries: [entries[0] | {"scores": 3}, entries[1]], "results-lists-entry", "not all lists"),
        (lambda entries: [entries[0] | {"bboxes": [[1, 2], 3]}, entries[1]], "results-lists-entry", "[1, 2]"),
    ],
)
def test_faulty_lists_are_refused_with_their_place(basket, change, code, told):
    dataset = read_coco(basket / "annotations" / "test.json")
    entries = to_image_lists(predictions([5, 6]), dataset)
    with pytest.raises(DataError) as error:
        check_results(change(entries), dataset)
    assert [finding.code for finding in error.value.findings] == [code]
    assert told in error.value.findings[0].message


def test_a_part_of_the_images_cannot_be_handed_in(basket):
    """The place says which image it is: a list of some images would be read as that of others."""
    dataset = read_coco(basket / "annotations" / "train.json")
    with pytest.raises(UsageError, match="only 2 of its images"):
        to_image_lists([], dataset.subset([0, 1]))
    lists = [{"labels": [], "scores": [], "bboxes": []}] * 2
    with pytest.raises(DataError):
        check_results(lists, dataset.subset([0, 1]))


def test_trainval_is_no_leak_and_a_copied_split_is_one(basket):
    annotations = basket / "annotations"
    health = api.check(basket, pixels=False)
    codes = [finding.code for finding in health.findings]
    assert "split-same-file" not in codes
    (union,) = (finding for finding in health.findings if finding.code == "split-union")
    assert "trainval: its images are those of train, val" in union.message

    (annotations / "trainval.json").unlink()
    content = json.loads((annotations / "train.json").read_text(encoding="utf-8"))
    kept = [each for each in content["annotations"] if each["image_id"] == 0]
    images = [image for image in content["images"] if image["id"] == 0]
    part = content | {"images": images, "annotations": kept}
    (annotations / "val.json").write_text(json.dumps(part), encoding="utf-8")
    codes = [finding.code for finding in api.check(basket, pixels=False).findings]
    assert codes.count("split-same-file") == 1
    assert "split-union" not in codes


def test_a_prediction_without_a_mask_cannot_be_handed_in(basket, results, tmp_path):
    boxes = [{k: v for k, v in each.items() if k != "segmentation"} for each in predictions([5])]
    with pytest.raises(UsageError, match="has no mask"):
        api.submission(results(boxes), f"{basket}:test", "deepsport", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_positions_of_joined_splits_follow_each_other(basket):
    train, val = (read_coco(basket / "annotations" / f"{split}.json") for split in ("train", "val"))
    both = joined([train, val])
    assert {image.id: image.position for image in both.images} == {2: 0, 0: 1, 1: 2, 4: 3, 3: 4}
    lists = to_image_lists(predictions([3]), both)
    assert [len(entry["labels"]) for entry in lists] == [0, 0, 0, 0, 2]


def test_category_0_goes_through_the_verbs(basket, results, tmp_path):
    data = f"{basket}:val"
    found = results(predictions(SPLITS["val"], shifted=1))
    exact = results(predictions(SPLITS["val"]), "exact.json")

    evaluation = api.evaluate(exact, data, iou_type="segm")
    assert (evaluation.metrics["AP"], evaluation.metrics["OM"]) == (1, 1)
    assert evaluation.per_category[0].category_id == 0
    assert api.evaluate(exact, data).metrics["AP"] == 1

    outs = [tmp_path / f"{name}.json" for name in ("fused", "kept", "left")]
    api.ensemble([found, exact], data, outs[0])
    api.suppress(exact, data, outs[1], overrides=["method=hard"])
    api.eliminate(exact, f"{basket}:train", data, out=outs[2])
    for out in outs:
        records = json.loads(out.read_text(encoding="utf-8"))
        assert {record["category_id"] for record in records} == {0}, out.name
    assert api.evaluate(outs[1], data, iou_type="segm").metrics["AP"] == 1

    assert not api.check(basket, pixels=False).failed
    for target in ("coco", "yolo", "voc"):
        api.convert(data, target, tmp_path / target)
    assert json.loads((tmp_path / "coco/annotations/val.json").read_text())["categories"] == CATEGORIES
    again = api.convert(f"{tmp_path / 'yolo'}:val", "coco", tmp_path / "again")
    assert again.counts["val"].objects == 4
    content = json.loads((tmp_path / "again/annotations/val.json").read_text())
    assert [category["id"] for category in content["categories"]] == [0]

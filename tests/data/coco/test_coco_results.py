"""Predictions read from any tool and written in the data set's own ids (RELIABILITY rows 58-65)."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from scantling.data.coco import (
    check_results,
    read_coco,
    read_results,
    to_results,
    write_results,
)
from scantling.data.detections import detections_of
from scantling.errors import DataError, Severity
from scantling.evaluate.coco_eval import evaluate_results
from scantling.ops.rle import rle_area
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def dataset(content, write):
    return read_coco(write(content))


@pytest.fixture
def results():
    """Three sound predictions on both images."""
    return [
        {"image_id": 7, "category_id": 90, "bbox": [10.5, 20, 30, 40], "score": 0.9},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 80], "score": 1, "source": "other tool"},
        {"image_id": 4, "category_id": 3, "bbox": [50, 30, 0, 0], "score": 0},
    ]


@pytest.fixture
def rle():
    dense = np.zeros((80, 100), np.uint8)
    dense[20:60, 10:40] = 1
    return {"size": [80, 100], "counts": coco_mask.encode(np.asfortranarray(dense))["counts"].decode()}


def codes(findings, severity=None):
    return [f.code for f in findings if severity in (None, f.severity)]


def test_sound_results_pass_unchanged(dataset, results, tmp_path):
    write_results(results, tmp_path / "r.json", dataset)
    names, classes = {7: "a.png", 4: "sub/b.png"}, {3: "scratch", 90: "dent"}
    written = [
        {**result, "file_name": names[result["image_id"]], "category_name": classes[result["category_id"]]}
        for result in results
    ]
    assert read_results(tmp_path / "r.json", dataset) == written
    assert check_results(results, dataset).findings == ()


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "file-empty"),
        (b"[{", "json-syntax"),
        (pickle.dumps([{"image_id": 1}]), "json-foreign"),
        (b'{"images": [], "annotations": [], "categories": []}', "results-is-coco"),
        (b'{"predictions": []}', "results-not-list"),
        (b'"text"', "results-not-list"),
        (b"[[1, 2]]", "record-not-object"),
        (b"[null]", "record-not-object"),
    ],
)
def test_row_58_no_result_list(dataset, tmp_path, data, code):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(DataError) as error:
        read_results(tmp_path / "r.json", dataset, skip_invalid=True)
    assert codes(error.value.findings, Severity.ERROR) == [code]
    assert str(tmp_path / "r.json") in str(error.value)


def test_row_58_a_missing_file(dataset, tmp_path):
    with pytest.raises(DataError) as error:
        read_results(tmp_path / "no.json", dataset)
    assert codes(error.value.findings) == ["file-missing"]


def test_row_59_an_empty_list(dataset):
    records, findings = check_results([], dataset)
    assert records == []
    assert [(f.code, f.severity) for f in findings] == [("results-empty", Severity.WARNING)]
    assert len(detections_of([], dataset)) == 0


# ---------------------------------------------------------------- records


@pytest.mark.parametrize(
    ("key", "value", "code", "words"),
    [
        ("image_id", 5, "results-image-unknown", "5 (integer); it has 4, 7"),
        ("image_id", "7", "results-image-unknown", "'7' (text)"),
        ("image_id", None, "results-image-missing", "2 of 4 predictions have no image_id"),
        ("image_id", [7], "results-image-unknown", "list"),
        ("image_id", True, "results-image-unknown", "bool"),
        ("category_id", 1, "results-category-unknown", "1 (integer); it has 3, 90"),
        ("category_id", "90", "results-category-unknown", "'90' (text)"),
        ("category_id", {}, "results-category-unknown", "dict"),
        ("bbox", [NAN, 1, 2, 3], "results-box", ""),
        ("bbox", [1, 1, -2, 3], "results-box", ""),
        ("bbox", [1, 1, 2], "results-box", ""),
        ("bbox", "1 1 2 3", "results-box", ""),
    ],
)
def test_rows_60_62_unusable_results(dataset, results, key, value, code, words):
    results[0][key] = value
    results.append(results[0] | {"score": 0.1})
    with pytest.raises(DataError) as error:
        check_results(results, dataset, file="r.json")
    assert set(codes(error.value.findings, Severity.ERROR)) == {code}
    assert words in str(error.value)
    records, findings = check_results(results, dataset, skip_invalid=True)
    assert records == results[1:3]
    assert set(codes(findings, Severity.WARNING)) >= {code, "results-dropped"}
    assert "2 of 4 predictions are not used" in [f.message for f in findings]
    if "unknown" in code:
        (finding,) = [f for f in findings if f.code == code]
        assert finding.message.startswith("2 of 4 predictions are for 1 ")


@pytest.mark.parametrize("score", [NAN, INFINITY, "0.5", None, True, [0.5]], ids=repr)
def test_row_61_unusable_score(dataset, results, score):
    results[1]["score"] = score
    for skip_invalid in (False, True):
        with pytest.raises(DataError) as error:
            check_results(results, dataset, skip_invalid=skip_invalid)
        assert codes(error.value.findings, Severity.ERROR) == ["results-score"]
        assert error.value.findings[0].path == "[1].score"
    del results[1]["score"]
    with pytest.raises(DataError):
        check_results(results, dataset)


def test_row_61_scores_outside_0_to_1(dataset, results):
    results[0]["score"], results[1]["score"] = 98.5, -0.1
    records, findings = check_results(results, dataset)
    assert len(records) == 3
    (warning,) = findings
    assert (warning.code, warning.severity, warning.value) == ("results-score-range", Severity.WARNING, 98.5)
    assert "2 of 3 scores" in warning.message


def test_row_62_boxes_that_look_like_xyxy(dataset):
    results = [
        {"image_id": 7, "category_id": 3, "bbox": box, "score": 0.5}
        for box in ([60, 50, 90, 70], [5, 5, 20, 30], [40, 40, 99, 80])
    ]
    findings = check_results(results, dataset).findings
    assert codes(findings, Severity.WARNING)[0] == "results-boxes-xyxy"


@pytest.mark.parametrize("name", ["sub/b.png", "b.png", "sub/b", "b"])
def test_images_may_be_named_by_their_files(dataset, results, name):
    """As Ultralytics writes `image_id`: the file's name without its ending, where that is no number."""
    named = [{**result, "image_id": name if result["image_id"] == 4 else 7} for result in results]
    records, findings = check_results(named, dataset)
    assert records == results
    assert codes(findings) == ["results-image-named"]


def test_a_name_of_two_images_names_none(content, write, results):
    content["images"][0]["file_name"] = "other/b.png"
    dataset = read_coco(write(content))
    for name, is_known in (("sub/b.png", True), ("b.png", False), ("b", False)):
        named = [{**results[0], "image_id": name}]
        if is_known:
            assert check_results(named, dataset).records[0]["image_id"] == 4
        else:
            with pytest.raises(DataError, match="results-image-unknown"):
                check_results(named, dataset)


def test_other_keys_stay_when_a_shape_is_null(dataset, results, rle):
    kept = {"track": None, "note": "x"}
    (record,), _ = check_results([{**results[0], "segmentation": None, **kept}], dataset)
    assert record == {**results[0], **kept}


def test_a_number_too_large_for_a_float_is_no_score(dataset, results):
    with pytest.raises(DataError, match="results-score"):
        check_results([{**results[0], "score": 10**400}], dataset)


def test_row_63_mixed_boxes_and_masks(dataset, results, rle):
    results[0]["segmentation"] = rle
    results.append({"image_id": 4, "category_id": 90, "score": 0.5, "segmentation": rle, "bbox": None})
    records, findings = check_results(results, dataset)
    assert codes(findings) == ["results-mixed", "results-mixed"]
    assert [f.message for f in findings] == [
        "3 of 4 predictions have a bbox",
        "2 of 4 predictions have a segmentation",
    ]
    assert "bbox" not in records[3]
    found = detections_of(records, dataset)
    assert [mask is not None for mask in found.masks] == [True, False, False, True]
    assert found.boxes[3].tolist() == [10, 20, 40, 60]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"size": [100, 80], "counts": [8000]}, "swapped"),
        ({"size": [80, 100], "counts": "ooooo0oooo1"}, "RLE"),
        ({"size": [80, 100], "counts": [9000]}, "8000"),
        ({"size": [80, 100], "counts": "b'PPYo1'"}, "printed form of bytes"),
        ({"size": [80, 100]}, "counts"),
        ("PPYo1", "found str"),
    ],
)
def test_row_63_unsound_masks(dataset, results, mask, words):
    results[2]["segmentation"] = mask
    for skip_invalid in (False, True):
        with pytest.raises(DataError, match=r"results-rle") as error:
            check_results(results, dataset, skip_invalid=skip_invalid)
        assert codes(error.value.findings, Severity.ERROR) == ["results-rle"]
        assert words in error.value.findings[0].message
        assert error.value.findings[0].id == 4


def test_row_63_neither_box_nor_mask(dataset, results):
    del results[0]["bbox"]
    with pytest.raises(DataError) as error:
        check_results(results, dataset)
    assert codes(error.value.findings, Severity.ERROR) == ["results-shapeless"]


def test_row_63_listed_counts_are_compressed(dataset, rle):
    listed = {"size": [80, 100], "counts": [820, *[40, 40] * 29, 40, 4820]}
    results = [{"image_id": i, "category_id": 3, "score": 0.5, "segmentation": listed} for i in (4, 7)]
    records, findings = check_results(results, dataset)
    assert findings == ()
    assert records[0]["segmentation"] == rle
    assert results[0]["segmentation"] is listed


def test_row_64_many_results_equal_scores_and_uncovered_images(dataset, results):
    many = [results[0] | {"score": 0.5} for _ in range(2000)]
    records, findings = check_results(many, dataset)
    assert len(records) == 2000
    (warning,) = findings
    assert (warning.code, warning.severity) == ("results-uncovered", Severity.WARNING)
    assert "1 of 2 images have no prediction: sub/b.png" in warning.message


def test_row_64_the_order_of_the_file_only_orders_the_output(dataset, results):
    forward, backward = check_results(results, dataset), check_results(results[::-1], dataset)
    assert forward.findings == backward.findings
    assert forward.records == backward.records[::-1]


def test_strict_turns_warnings_into_errors_and_warnings_are_logged(dataset, results, tmp_path, caplog):
    write_results(results[:2], tmp_path / "r.json", dataset)
    with caplog.at_level(logging.WARNING):
        read_results(tmp_path / "r.json", dataset)
    assert "results-uncovered" in caplog.text
    with pytest.raises(DataError):
        read_results(tmp_path / "r.json", dataset, strict=True)


def test_every_fault_in_one_pass(dataset, results):
    results[0]["score"] = NAN
    results[1]["bbox"] = [1, 2, 3]
    results[2]["image_id"] = 99
    results.append({"image_id": 4, "category_id": 1, "score": "high"})
    with pytest.raises(DataError) as error:
        check_results(results, dataset)
    found = sorted(codes(error.value.findings, Severity.ERROR))
    assert found == [
        "results-box",
        "results-category-unknown",
        "results-image-unknown",
        "results-score",
        "results-score",
        "results-shapeless",
    ]


# ---------------------------------------------------------------- to and from Instances


def of_image(results, dataset, image_id):
    """The rows of an image that has all of them, as instances."""
    size_hw = dataset.images[dataset.index_of[image_id]].size_hw
    return Instances.from_detections(detections_of(results, dataset), size_hw)


def detections(n=3, masks=None):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(n, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 1 + torch.rand(n, 2, generator=generator) * 30], dim=1)
    labels = torch.tensor([1, 0, 1])[:n]
    return Instances(
        size_hw=(80, 100), boxes=boxes, labels=labels, scores=torch.rand(n, generator=generator), masks=masks
    )


def test_results_carry_the_files_own_ids_and_exact_numbers(dataset):
    instances = detections()
    results = to_results(7, instances, dataset.categories)
    assert [r["category_id"] for r in results] == [90, 3, 90]
    assert {type(v) for r in results for v in (*r["bbox"], r["score"])} == {float}
    again = of_image(json.loads(json.dumps(results)), dataset, 7)
    assert torch.equal(again.boxes, instances.boxes)
    assert torch.equal(again.labels, instances.labels)
    assert torch.equal(again.scores, instances.scores)


def test_masks_travel_as_rle_that_pycocotools_reads(dataset, tmp_path):
    dense = np.zeros((3, 80, 100), bool)
    dense[0, 3:9, 4:50] = dense[1, 70:80, 90:100] = dense[2, ::2, ::3] = True
    results = to_results(7, detections(masks=ImageMasks.from_dense(dense)), dataset.categories)
    write_results(results, tmp_path / "r.json", dataset)
    records = read_results(tmp_path / "r.json", dataset)
    assert np.array_equal(np.stack([coco_mask.decode(r["segmentation"]) for r in records]), dense)
    assert np.array_equal(of_image(records, dataset, 7).masks.to_dense(), dense)
    assert len(of_image([], dataset, 4)) == 0


def test_box_frame_masks_are_pasted(dataset):
    boxes = torch.tensor([[10.0, 20, 40, 60]])
    instances = Instances(
        size_hw=(80, 100),
        boxes=boxes,
        labels=torch.tensor([0]),
        scores=torch.tensor([0.5]),
        masks=RoiMasks(probabilities=torch.ones(1, 28, 28)),
    )
    (result,) = to_results(7, instances, dataset.categories)
    assert coco_mask.toBbox(result["segmentation"]).tolist() == [10, 20, 30, 40]


def test_no_detections_and_no_scores(dataset):
    assert to_results(7, Instances.empty((80, 100), scored=True, with_masks=True), dataset.categories) == []
    with pytest.raises(ValueError, match="without scores"):
        to_results(7, Instances.empty((80, 100), scored=False), dataset.categories)


def test_pycocotools_accepts_the_written_file(dataset, results, content, write, tmp_path):
    write_results(results, tmp_path / "r.json", dataset)
    loaded = COCO(str(write(content))).loadRes(str(tmp_path / "r.json"))
    assert len(loaded.anns) == 3


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
    max_leaves=8,
)
keys = st.sampled_from(
    ["image_id", "category_id", "bbox", "score", "segmentation", "file_name", "category_name"]
)


@given(changes=st.lists(st.tuples(st.integers(0, 1), keys, anything), max_size=3))
def test_no_value_whatever_gets_past_or_crashes(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "set.json"
    if not path.exists():
        images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}]
        path.write_text(
            json.dumps({"images": images, "annotations": [], "categories": [{"id": 0, "name": "a"}]})
        )
    dataset = read_coco(path)
    results = [{"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5} for _ in range(2)]
    for index, key, value in changes:
        results[index][key] = value
    try:
        records, _ = check_results(results, dataset, skip_invalid=True)
    except DataError:
        return
    found = detections_of(records, dataset)
    assert len(found) == len(records)
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()


# ---------------------------------------------------------------- as other tools write them


@pytest.mark.parametrize("empty", [[], [[]], None])
def test_a_box_with_an_empty_segmentation_is_a_box(dataset, results, empty):
    """As SAHI writes every box, and pycocotools takes it."""
    given = [{**result, "segmentation": empty} for result in results]
    assert check_results(given, dataset) == (results, ())


def test_an_empty_segmentation_alone_is_no_shape(dataset, results):
    del results[0]["bbox"]
    with pytest.raises(DataError, match="results-shapeless"):
        check_results([{**results[0], "segmentation": []}], dataset)


def test_polygons_are_the_masks_that_pycocotools_makes_of_them(dataset, results, content, write):
    polygons = [[10, 20, 40, 20, 40, 60, 10, 60], [50.5, 30.25, 61, 30.25, 61, 50.25]]
    record = {**results[0], "segmentation": polygons}
    (found,), findings = check_results([record], dataset)
    assert [finding.code for finding in findings] == ["results-uncovered"]
    expected = COCO(str(write(content))).annToMask(record)
    assert np.array_equal(coco_mask.decode(found["segmentation"]), expected)
    assert record["segmentation"] is polygons


@pytest.mark.parametrize(
    ("polygons", "code"),
    [
        ([10, 20, 40, 20, 40, 60], "polygon-shape"),
        ([[10, 20]], "polygon-shape"),
        ([[1, 2, 3, 4, NAN, 6]], "polygon-number"),
    ],
)
def test_polygons_that_are_none_are_refused(dataset, results, polygons, code):
    with pytest.raises(DataError, match=code):
        check_results([{**results[0], "segmentation": polygons}], dataset)


def test_polygons_without_area_are_an_empty_mask(dataset, results):
    """As an RLE of zeros is: one more that is found and is not there."""
    results[0]["segmentation"] = [[10, 20, 30, 20, 40, 20]]
    records, findings = check_results(results, dataset)
    assert "results-mask-empty" in codes(findings)
    empty = records[0]["segmentation"]
    assert (rle_area(empty), empty["size"]) == (0, list(dataset.images[dataset.index_of[7]].size_hw))
    assert records[0]["bbox"] == results[0]["bbox"]


def test_results_of_sahi_and_labels_with_a_score_have_the_ap_of_pycocotools(write):
    """Boxes off by 2 to 6 px, as SAHI 0.12 writes them; the numbers are pycocotools' on the same files."""
    sizes = [(320, 240), (320, 240), (240, 320)]
    boxes = [
        [30, 40, 60, 50],
        [180, 90, 40, 80],
        [100, 20, 80, 60],
        [10, 150, 50, 40],
        [60, 100, 70, 120],
    ]
    images = [
        {"id": 11 + n, "file_name": f"{'abc'[n]}.jpg", "width": w, "height": h}
        for n, (w, h) in enumerate(sizes)
    ]
    where, classes, shifts = [11, 11, 12, 12, 13], [1, 2, 1, 1, 2], [2, -3, 1, 6, 4]

    def outline(x, y, width, height):
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]

    truths = [
        {
            "id": n,
            "image_id": i,
            "category_id": c,
            "bbox": b,
            "area": b[2] * b[3],
            "segmentation": outline(*b),
        }
        for n, (i, c, b) in enumerate(zip(where, classes, boxes, strict=True), start=1)
    ]
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    dataset = read_coco(write({"images": images, "annotations": truths, "categories": categories}))
    moved = [[x + s, y + s, w, h] for (x, y, w, h), s in zip(boxes, shifts, strict=True)]
    sahi = [
        {"image_id": i, "bbox": b, "score": 0.9 - 0.05 * n, "category_id": c, "category_name": ["bolt", "nut"][c - 1],
         "segmentation": [], "iscrowd": 0, "area": b[2] * b[3]}
        for n, (i, c, b) in enumerate(zip(where, classes, moved, strict=True))
    ]  # fmt: skip
    masks = [{**result, "segmentation": outline(*result["bbox"])} for result in sahi]
    labels = [{**truth, "score": 0.8} for truth in truths]
    for file, iou_type, expected in (
        (sahi, "bbox", 0.657),
        (masks, "segm", 0.657),
        (labels, "bbox", 1.0),
        (labels, "segm", 1.0),
    ):
        records, findings = check_results(file, dataset)
        assert findings == ()
        evaluation = evaluate_results(dataset, records, iou_type=iou_type, backend="pycocotools")
        assert evaluation.metrics["AP"] == pytest.approx(expected, abs=5e-4)

"""COCO files: boxes, masks and image records (RELIABILITY rows 22-38)."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from scantling.data.coco import read_coco
from scantling.errors import DataError, Severity

NAN, INFINITY = float("nan"), float("inf")
SQUARE = [10, 20, 40, 20, 40, 60, 10, 60]


class Fault(NamedTuple):
    """A value in place of a sound one, and the code it must be reported with."""

    row: int
    name: str
    value: object
    code: str
    words: str = ""


def named(fault: Fault) -> str:
    return f"row {fault.row}: {fault.name}"


def errors_of(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    return [f.code for f in error.value.findings if f.severity is Severity.ERROR]


def read_box(content, write, box, **policy):
    """Read a file whose annotation 31 (image 100 wide, 80 high) has this box and no mask."""
    content["annotations"][0]["bbox"] = box
    del content["annotations"][0]["segmentation"]
    return read_coco(write(content), **policy)


def read_mask(content, write, segmentation, **policy):
    """Read a file whose annotation 31 has this segmentation."""
    content["annotations"][0]["segmentation"] = segmentation
    return read_coco(write(content), **policy)


def assert_dropped_if_allowed(content, write, fault, task="detection"):
    """E/W: an error; with skip_invalid a warning, the annotation dropped and counted; strict wins over that."""
    with pytest.raises(DataError) as error:
        read_coco(write(content), task=task)
    assert errors_of(error) == [fault.code]
    (finding,) = [f for f in error.value.findings if f.code == fault.code]
    assert finding.id == 31
    assert fault.words in finding.message
    assert finding.hint
    dataset = read_coco(write(content), skip_invalid=True, task=task)
    assert {f.code for f in dataset.findings if f.severity is Severity.WARNING} >= {
        fault.code,
        "annotations-dropped",
    }
    assert [a.id for objects in dataset.annotations for a in objects] == [50, 12]
    with pytest.raises(DataError):
        read_coco(write(content), skip_invalid=True, strict=True)


def assert_refused(content, write, fault):
    """E: an error whatever the policy."""
    for skip_invalid in (False, True):
        with pytest.raises(DataError) as error:
            read_coco(write(content), skip_invalid=skip_invalid)
        assert errors_of(error) == [fault.code], str(error.value)
        (finding,) = [f for f in error.value.findings if f.code == fault.code]
        assert finding.id == 31
        assert fault.words in finding.message
        assert finding.hint


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize(
    "fault",
    [
        Fault(22, "negative width", [10, 10, -5, 5], "box-size", "width -5"),
        Fault(22, "zero height", [10, 10, 5, 0], "box-size", "height 0"),
        Fault(22, "all zero", [0, 0, 0, 0], "box-size"),
        Fault(22, "thinner than float32 can tell", [10, 10, 1e-9, 5], "box-size"),
        Fault(24, "right of the image", [100, 10, 5, 5], "box-outside", "width 100 and height 80"),
        Fault(24, "above the image", [10, -6, 5, 5], "box-outside"),
        Fault(24, "a million pixels away", [1e6, 1e6, 5, 5], "box-outside"),
        Fault(24, "as far as floats go", [1e308, 1e308, 1e308, 1e308], "box-outside"),
    ],
    ids=named,
)
def test_unusable_box(content, write, fault):
    content["annotations"][0]["bbox"] = fault.value
    del content["annotations"][0]["segmentation"]
    assert_dropped_if_allowed(content, write, fault)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(23, "NaN", [10, NAN, 5, 5], "box-type"),
        Fault(23, "infinity", [10, 10, INFINITY, 5], "box-type"),
        Fault(23, "null", None, "box-type"),
        Fault(23, "null inside", [10, None, 5, 5], "box-type"),
        Fault(23, "text", "10 10 5 5", "box-type"),
        Fault(23, "text inside", ["10", 10, 5, 5], "box-type"),
        Fault(23, "boolean inside", [True, 10, 5, 5], "box-type"),
        Fault(23, "three values", [10, 10, 5], "box-type"),
        Fault(23, "five values", [10, 10, 5, 5, 5], "box-type"),
        Fault(23, "object", {"x": 1, "y": 2, "w": 3, "h": 4}, "box-type"),
        Fault(23, "nested", [[10, 10, 5, 5]], "box-type"),
        Fault(23, "integer of 400 digits", [10, 10, 10**400, 5], "box-type"),
    ],
    ids=named,
)
def test_something_else_than_a_box(content, write, fault):
    content["annotations"][0]["bbox"] = fault.value
    del content["annotations"][0]["segmentation"]
    assert_refused(content, write, fault)


def test_row_23_1e999(content, write):
    text = json.dumps(content).replace("[10, 20, 30, 40]", "[10, 20, 1e999, 40]")
    with pytest.raises(DataError) as error:
        read_coco(write(text))
    assert errors_of(error) == ["box-type"]


def test_row_24_partly_outside_is_clipped_and_told(content, write):
    dataset = read_box(content, write, [-5, 70, 20, 20])
    (warning,) = dataset.findings
    assert (warning.code, warning.id, warning.severity) == ("box-clipped", 31, Severity.WARNING)
    assert "by 10 px" in warning.message
    assert dataset.instances(1).boxes[1].tolist() == [0, 70, 15, 80]
    assert dataset.to_coco()["annotations"][2]["bbox"] == [-5, 70, 20, 20]


def test_row_24_less_than_a_pixel_over_is_clipped_silently(content, write):
    dataset = read_box(content, write, [-0.9, 10, 101.5, 20])
    assert dataset.findings == ()
    assert dataset.instances(1).boxes[1].tolist() == [0, 10, 100, 30]


def boxes_of(content, boxes):
    content["annotations"] = [
        {
            "id": number,
            "image_id": 7 if number % 2 else 4,
            "category_id": (3, 90)[number % 2],
            "bbox": list(box),
        }
        for number, box in enumerate(boxes)
    ]


def test_row_25_boxes_that_look_like_xyxy(content, write):
    boxes_of(content, [(60, 50, 90, 70), (5, 5, 20, 30), (40, 40, 99, 80), (10, 60, 95, 79)])
    with pytest.raises(DataError, match=r"look like \[x1, y1, x2, y2\]") as error:
        read_coco(write(content))
    assert errors_of(error) == ["boxes-xyxy"]
    boxes_of(content, [(60, 50, 90, 70), (5, 5, 20, 30)])
    assert "boxes-xyxy" in {f.code for f in read_coco(write(content)).findings}


def test_row_25_sound_boxes_are_not_taken_for_xyxy(content, write):
    boxes_of(content, [(60, 50, 40, 30), (5, 5, 20, 30), (0, 0, 100, 80), (10, 60, 60, 20), (3, 3, 97, 78)])
    assert "boxes-xyxy" not in {f.code for f in read_coco(write(content)).findings}


def test_row_25_normalised_boxes(content, write):
    boxes_of(content, [(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.5, 0.25)])
    with pytest.raises(DataError, match=r"lie within 0\.\.1") as error:
        read_coco(write(content), skip_invalid=True)
    assert errors_of(error) == ["boxes-normalised"]


def test_row_26_smallest_and_largest_objects(content, write):
    boxes_of(content, [(0, 0, 1, 1), (0, 0, 100, 80)])
    dataset = read_coco(write(content))
    assert dataset.findings == ()
    assert dataset.instances(0).boxes.tolist() == [[0, 0, 1, 1]]
    assert dataset.instances(1).boxes.tolist() == [[0, 0, 100, 80]]


@pytest.mark.parametrize(
    ("box", "differs"),
    [([10, 20, 30, 40], False), ([11, 21, 28, 38], False), ([10, 20, 60, 40], True), ([70, 60, 9, 9], True)],
)
def test_row_27_a_box_that_is_not_around_its_mask(content, write, box, differs):
    content["annotations"][0]["bbox"] = box
    warnings = [f for f in read_coco(write(content)).findings if f.code == "box-mask-differ"]
    assert [w.id for w in warnings] == ([31] if differs else [])
    if differs:
        assert "the box around the mask is [10, 20, 30, 40]" in warnings[0].message


def test_a_repeated_box_is_a_warning(content, write):
    boxes_of(content, [(5, 5, 20, 20), (5, 5, 20, 20), (5, 5, 20, 20)])
    content["annotations"][1]["category_id"] = 3
    (warning,) = [f for f in read_coco(write(content)).findings if f.code == "box-twice"]
    assert warning.id == 2
    assert "annotation 0" in warning.message


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("empty", [[], [[]], [[], []], [[10, 20, 30, 40, 50, 60]], [[5, 5] * 4]], ids=repr)
def test_row_28_an_empty_mask(content, write, empty):
    dataset = read_mask(content, write, empty)
    (warning,) = dataset.findings
    assert (warning.code, warning.id) == ("mask-empty", 31)
    assert dataset.annotations[1][1].segmentation is None
    assert len(dataset.instances(1)) == 2
    kept = read_mask(content, write, empty, task="segmentation")
    assert [a.id for a in kept.annotations[1]] == [12]
    assert {"mask-empty", "annotations-dropped"} <= {f.code for f in kept.findings}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(29, "two points", [[10, 20, 30, 40]], "polygon-shape", "4 numbers"),
        Fault(29, "odd count", [SQUARE + [3]], "polygon-shape", "9 numbers"),
        Fault(29, "flat list", SQUARE, "polygon-shape"),
        Fault(29, "one sound part, one not", [SQUARE, [1, 2]], "polygon-shape"),
        Fault(29, "pairs in lists", [[[10, 20], [40, 20], [40, 60]]], "polygon-shape"),
        Fault(29, "text", "10 20 40 20 40 60", "mask-type"),
        Fault(29, "number", 5, "mask-type"),
        Fault(31, "outside", [[110, 20, 140, 20, 140, 60]], "polygon-outside", "width 100 and height 80"),
        Fault(31, "left of the image", [[-40, 20, -1, 20, -1, 60]], "polygon-outside"),
    ],
    ids=named,
)
def test_unusable_polygon(content, write, fault):
    content["annotations"][0]["segmentation"] = fault.value
    assert_dropped_if_allowed(content, write, fault, task="segmentation")


@pytest.mark.parametrize("segmentation", [[[10, 20, 30, 40]], "text", [[110, 20, 140, 20, 140, 60]]])
def test_a_sound_box_outlives_its_mask_where_boxes_are_enough(content, write, segmentation):
    content["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(DataError):
        read_coco(write(content))
    dataset = read_coco(write(content), skip_invalid=True)
    kept = {a.id: a for objects in dataset.annotations for a in objects}
    assert (kept[31].box_xywh, kept[31].segmentation) == ((10, 20, 30, 40), None)
    (counted,) = [f for f in dataset.findings if f.code == "masks-dropped"]
    assert counted.message == "1 masks are not used, their boxes are: 31"
    assert "annotations-dropped" not in {f.code for f in dataset.findings}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(30, "NaN", [[10, 20, NAN, 20, 40, 60]], "polygon-number"),
        Fault(30, "infinity", [[10, 20, INFINITY, 20, 40, 60]], "polygon-number"),
        Fault(30, "1e9", [[10, 20, 1e9, 20, 40, 60]], "polygon-number"),
        Fault(30, "-1e308", [[10, 20, 40, -1e308, 40, 60]], "polygon-number"),
        Fault(30, "integer of 400 digits", [[10, 20, 10**400, 20, 40, 60]], "polygon-number"),
        Fault(30, "null", [[10, 20, None, 20, 40, 60]], "polygon-number"),
        Fault(30, "text", [[10, 20, "40", 20, 40, 60]], "polygon-number"),
        Fault(30, "boolean", [[10, 20, True, 20, 40, 60]], "polygon-number"),
        Fault(30, "a long zigzag", [[x for i in range(400) for x in (9e4 * (i % 2), i)]], "polygon-number"),
    ],
    ids=named,
)
def test_dangerous_polygon(content, write, fault):
    content["annotations"][0]["segmentation"] = fault.value
    assert_refused(content, write, fault)


@pytest.mark.parametrize(
    ("polygons", "area"),
    [
        ([[10, 20, 40, 60, 40, 20, 10, 60]], 600),  # bow-tie
        ([[10, 20, 20, 20, 20, 60, 10, 60], [30, 20, 40, 20, 40, 60, 30, 60]], 800),  # two parts
        ([[10, 20, 400, 20, 400, 60, 10, 60]], 90 * 40),  # partly outside
    ],
    ids=["bow-tie", "two parts", "partly outside"],
)
def test_row_31_unusual_but_sound_polygons(content, write, polygons, area):
    dataset = read_mask(content, write, polygons)
    assert {f.code for f in dataset.findings} <= {"box-mask-differ"}
    found = int(dataset.instances(1, masks=True).masks.areas()[1])
    assert abs(found - area) <= 0.05 * area


def compressed(mask):
    return {"size": list(mask.shape), "counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode()}


@pytest.fixture
def mask():
    dense = np.zeros((80, 100), np.uint8)
    dense[20:60, 10:40] = 1
    return dense


@pytest.mark.parametrize(
    "fault",
    [
        Fault(32, "size swapped", {"size": [100, 80], "counts": [8000]}, "rle-size", "swapped"),
        Fault(32, "another size", {"size": [40, 50], "counts": [2000]}, "rle-size", "[80, 100]"),
        Fault(32, "size missing", {"counts": [8000]}, "rle-size", "None"),
        Fault(32, "size as floats", {"size": [80.0, 100.0], "counts": [8000]}, "rle-size"),
        Fault(32, "too long", {"size": [80, 100], "counts": [10, 9000]}, "rle-counts", "8000"),
        Fault(32, "too short", {"size": [80, 100], "counts": [10, 20]}, "rle-counts", "8000"),
        Fault(32, "negative", {"size": [80, 100], "counts": [-10, 8010]}, "rle-counts"),
        Fault(32, "floats", {"size": [80, 100], "counts": [10.0, 7990.0]}, "rle-counts"),
        Fault(32, "null counts", {"size": [80, 100], "counts": None}, "rle-counts"),
        Fault(32, "no counts", {"size": [80, 100]}, "rle-counts"),
        Fault(32, "garbage text", {"size": [80, 100], "counts": "~~~ not a mask \u00e9"}, "rle-counts"),
        Fault(32, "text that overruns", {"size": [80, 100], "counts": "ooooo0oooo1"}, "rle-counts"),
        Fault(32, "text cut off", {"size": [80, 100], "counts": "P"}, "rle-counts"),
        Fault(32, "empty text", {"size": [80, 100], "counts": ""}, "rle-counts"),
        Fault(32, "printed bytes", {"size": [80, 100], "counts": "b'abc'"}, "rle-counts", "decode('ascii')"),
        Fault(32, "huge count", {"size": [80, 100], "counts": [10**30]}, "rle-counts"),
        Fault(33, "10 gigapixels", {"size": [100000, 100000], "counts": [10**10]}, "rle-size"),
        Fault(32, "an empty object", {}, "rle-size"),
    ],
    ids=named,
)
def test_damaged_rle(content, write, fault):
    content["annotations"][0]["segmentation"] = fault.value
    assert_refused(content, write, fault)


@pytest.mark.parametrize("crowd", [0, 1])
def test_row_34_every_form_of_mask(content, write, mask, crowd):
    forms = [[SQUARE], compressed(mask), {"size": [80, 100], "counts": [820, *[40, 40] * 29, 40, 4820]}]
    content["annotations"][0]["iscrowd"] = crowd
    for segmentation in forms:
        dataset = read_mask(content, write, segmentation, task="segmentation")
        told = {"category-crowd-only", "images-crowd-only"} if crowd else set()
        assert {f.code for f in dataset.findings} == told
        instances = dataset.instances(1, masks=True)
        assert np.array_equal(instances.masks.to_dense()[1], mask)
        assert instances.is_crowd.tolist() == [True, bool(crowd)]


def test_row_34_an_image_with_nothing_but_a_crowd(content, write):
    del content["annotations"][0]
    dataset = read_coco(write(content), task="segmentation", strict=False)
    assert dataset.instances(1).is_crowd.tolist() == [True]
    assert {f.code for f in dataset.findings} >= {"category-unused"}


# ---------------------------------------------------------------- image records


def image_fault(content, write, code, **policy):
    with pytest.raises(DataError) as error:
        read_coco(write(content), **policy)
    assert errors_of(error) == [code]
    (finding,) = [f for f in error.value.findings if f.code == code]
    assert finding.id == 7
    dataset = read_coco(write(content), skip_invalid=True)
    assert [image.id for image in dataset.images] == [4]
    assert [a.id for a in dataset.annotations[0]] == [50]
    codes = [f.code for f in dataset.findings]
    assert codes.count(code) == 1
    assert codes.count("annotations-dropped") == 1
    return finding


@pytest.mark.parametrize("height", ["80", 0, -80, 80.5, True, None, [80], 1e12], ids=repr)
def test_row_35_unusable_size(content, write, height):
    content["images"][0]["height"] = height
    finding = image_fault(content, write, "image-size")
    assert "100" in finding.message


def test_row_35_whole_floats_are_sizes(content, write):
    content["images"][0]["height"] = 80.0
    assert read_coco(write(content)).images[1].size_hw == (80, 100)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "sub/../../a.png", "sub/../..", "."])
def test_row_37_names_that_leave_the_folder(content, write, pictures, name):
    content["images"][0]["file_name"] = name
    assert str(pictures) in image_fault(content, write, "image-name-outside").message


def test_row_37_names_that_stay_inside(content, write, pictures):
    for name in ("sub/../a.png", str(pictures / "a.png"), "./a.png"):
        content["images"][0]["file_name"] = name
        (image,) = [image for image in read_coco(write(content)).images if image.id == 7]
        assert image.path.resolve() == (pictures / "a.png").resolve()


def test_row_38_backslash(content, write):
    content["images"][1]["file_name"] = "sub\\b.png"
    with pytest.raises(DataError, match=r"Did you mean 'sub/b\.png'\?") as error:
        read_coco(write(content))
    assert errors_of(error) == ["image-name-backslash"]


# ---------------------------------------------------------------- anything at all

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, 1e9]),
    lambda inner: (
        st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner)
    ),
    max_leaves=20,
)
numbers = st.lists(st.floats(-200, 300) | st.integers(-200, 300), min_size=4, max_size=12)


@given(
    box=anything | st.lists(st.floats(-200, 300), min_size=4, max_size=4), mask=anything | st.lists(numbers)
)
def test_no_value_whatever_gets_past_or_crashes(tmp_path_factory, box, mask):
    path = tmp_path_factory.getbasetemp() / "anything.json"
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": mask}],
        "categories": [{"id": 1, "name": "a"}],
    }
    path.write_text(json.dumps(content))
    try:
        dataset = read_coco(path, skip_invalid=True)
    except DataError:
        return  # told in words, which other tests look at
    for annotation in dataset.annotations[0]:
        (x1, y1, x2, y2) = dataset.instances(0).boxes[0].tolist()
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 80
        if annotation.segmentation is not None:
            dense = dataset.instances(0, masks=True).masks.to_dense()[0]
            merged = coco_mask.merge(
                coco_mask.frPyObjects([list(map(float, part)) for part in mask], 80, 100)
            )
            assert np.array_equal(dense, coco_mask.decode(merged))

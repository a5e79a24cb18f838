"""COCO files: structure, ids and references (RELIABILITY rows 4-21), all faults in one pass."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from PIL import Image

from scantling.data.coco import read_coco
from scantling.data.findings import CODES
from scantling.errors import DataError, Severity

Content = dict[str, Any]


class Fault(NamedTuple):
    """One way to break the sound file, and what must be said about it."""

    row: int
    name: str
    breaks: Callable[[Content], object]
    code: str
    path: str | None = None
    id: object = None
    words: str = ""


def put(*keys, value):
    """Set a value deep in the content."""

    def breaks(content):
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return breaks


def drop(*keys):
    """Remove a key deep in the content."""

    def breaks(content):
        place = content
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return breaks


A = ("annotations", 0)
I = ("images", 0)  # noqa: E741
C = ("categories", 1)

FAULTS = [
    *(
        Fault(5, f"{key} {name}", breaks, code, key, words=words)
        for key in ("images", "annotations", "categories")
        for name, breaks, code, words in (
            ("missing", drop(key), "key-missing", f"{key!r} is missing"),
            ("null", put(key, value=None), "key-missing", "is null"),
            ("object", put(key, value={"1": 2}), "key-not-list", "found dict"),
            ("text", put(key, value="x"), "key-not-list", "found str"),
        )
    ),
    *(
        Fault(9, f"{key} holds {value!r}", put(key, 1, value=value), "record-not-object", f"{key}[1]")
        for key in ("images", "annotations", "categories")
        for value in (None, 3, [1], "text")
    ),
    Fault(10, "annotation without id", drop(*A, "id"), "id-missing", "annotations[0].id"),
    Fault(10, "image without id", drop(*I, "id"), "id-missing", "images[0].id"),
    Fault(10, "category without id", drop(*C, "id"), "id-missing", "categories[1].id"),
    Fault(10, "no image_id", drop(*A, "image_id"), "reference-missing", "annotations[0].image_id", 31),
    Fault(
        10, "no category_id", drop(*A, "category_id"), "reference-missing", "annotations[0].category_id", 31
    ),
    Fault(
        12,
        "annotation id twice",
        put(*A, "id", value=12),
        "id-duplicate",
        "annotations[1].id",
        12,
        "annotations[0]",
    ),
    Fault(12, "image id twice", put(*I, "id", value=4), "id-duplicate", "images[1].id", 4, "images[0]"),
    Fault(12, "image ids 4 and 4.0", put(*I, "id", value=4.0), "id-duplicate", "images[1].id", 4),
    Fault(
        12,
        "category id twice",
        put(*C, "id", value=90),
        "id-duplicate",
        "categories[1].id",
        90,
        "categories[0]",
    ),
    Fault(
        14,
        "unknown category",
        put(*A, "category_id", value=1),
        "category-unknown",
        "annotations[0].category_id",
        31,
        "known ids: 3, 90",
    ),
    Fault(
        14,
        "unknown image",
        put(*A, "image_id", value=5),
        "image-unknown",
        "annotations[0].image_id",
        31,
        "known ids: 4, 7",
    ),
    Fault(
        16,
        "image id as text",
        put(*A, "image_id", value="7"),
        "image-unknown",
        "annotations[0].image_id",
        31,
        "this id is of type text, those are integer",
    ),
    Fault(
        16,
        "category id as text",
        put(*A, "category_id", value="90"),
        "category-unknown",
        "annotations[0].category_id",
        31,
        "type text",
    ),
    Fault(
        16,
        "boolean reference",
        put(*A, "category_id", value=True),
        "category-unknown",
        "annotations[0].category_id",
        31,
        "type bool",
    ),
    Fault(
        16,
        "list as reference",
        put(*A, "image_id", value=[7]),
        "image-unknown",
        "annotations[0].image_id",
        31,
        "type list",
    ),
    Fault(16, "null id", put(*A, "id", value=None), "id-missing", "annotations[0].id"),
    Fault(
        16,
        "null image_id",
        put(*A, "image_id", value=None),
        "reference-missing",
        "annotations[0].image_id",
        31,
    ),
    Fault(16, "category with a text id", put(*C, "id", value="3"), "id-type", "categories[1].id", "3"),
    Fault(17, "list as id", put(*A, "id", value=[1]), "id-type", "annotations[0].id"),
    Fault(17, "boolean id", put(*I, "id", value=True), "id-type", "images[0].id"),
    Fault(17, "NaN id", put(*I, "id", value=float("nan")), "id-type", "images[0].id"),
    Fault(17, "empty id", put(*I, "id", value=""), "id-type", "images[0].id"),
    Fault(34, "iscrowd 2", put(*A, "iscrowd", value=2), "crowd-value", "annotations[0].iscrowd", 31),
    Fault(34, "iscrowd text", put(*A, "iscrowd", value="1"), "crowd-value", "annotations[0].iscrowd", 31),
    Fault(10, "category without name", drop(*C, "name"), "category-name", "categories[1].name", 3),
    Fault(10, "name in two lines", put(*C, "name", value="a\nb"), "category-name", "categories[1].name", 3),
    Fault(10, "half a character", put(*C, "name", value="a\ud800"), "category-name", "categories[1].name", 3),
    Fault(
        10, "category name is a number", put(*C, "name", value=5), "category-name", "categories[1].name", 3
    ),
    Fault(36, "no file_name", drop(*I, "file_name"), "image-name-missing", "images[0].file_name", 7),
    Fault(
        36, "null file_name", put(*I, "file_name", value=None), "image-name-missing", "images[0].file_name", 7
    ),
    Fault(
        36,
        "empty file_name",
        put(*I, "file_name", value="  "),
        "image-name-missing",
        "images[0].file_name",
        7,
    ),
    Fault(
        11,
        "no size and no file",
        put(*I, value={"id": 7, "file_name": "no.png"}),
        "image-size-missing",
        "images[0]",
        7,
        "no such image file",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"row {fault.row}: {fault.name}")
@pytest.mark.parametrize("skip_invalid", [False, True])
def test_structural_fault_is_an_error_with_place_and_remedy(content, write, fault, skip_invalid):
    fault.breaks(content)
    with pytest.raises(DataError) as error:
        read_coco(write(content), skip_invalid=skip_invalid)
    found = [f for f in error.value.findings if f.severity is Severity.ERROR and f.code == fault.code]
    assert found, str(error.value)
    assert fault.path is None or found[0].path == fault.path
    assert fault.id is None or found[0].id == fault.id
    assert fault.words in found[0].message
    assert found[0].file.endswith("annotations/train.json")
    assert found[0].hint
    others = {f.code for f in error.value.findings if f.severity is Severity.ERROR} - {fault.code}
    consequences = (
        {"image-unknown", "category-unknown"} if "id" in fault.name or fault.row in (5, 9, 17) else set()
    )
    assert others <= consequences, f"one fault, but also {others}"


def test_one_pass_finds_the_faults_of_every_list(content, write):
    content["images"].append({"id": 7, "file_name": None, "width": 10, "height": 10})
    content["categories"].append({"id": "x"})
    content["annotations"] += [
        {"id": 31, "image_id": 99, "category_id": 98, "bbox": [1, 1, 2, 2]},
        {"image_id": 7, "category_id": 3, "bbox": [1, 1, -2, float("nan")], "iscrowd": 5},
        17,
    ]
    with pytest.raises(DataError) as error:
        read_coco(write(content))
    codes = Counter(f.code for f in error.value.findings if f.severity is Severity.ERROR)
    assert codes == {
        "id-duplicate": 2,
        "image-name-missing": 1,
        "category-name": 1,
        "image-unknown": 1,
        "category-unknown": 1,
        "id-missing": 1,
        "box-type": 1,
        "crowd-value": 1,
        "record-not-object": 1,
    }
    assert "10 errors" in str(error.value)


def test_row_4_a_results_file(write):
    path = write([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}])
    with pytest.raises(DataError, match="looks like a predictions file") as error:
        read_coco(path)
    assert error.value.findings[0].code == "coco-is-results"
    assert "images/annotations/categories" in str(error.value)


@pytest.mark.parametrize("top", ["text", 5, None, True])
def test_row_4_something_else_at_the_top(write, top):
    with pytest.raises(DataError) as error:
        read_coco(write(json.dumps(top)))
    assert error.value.findings[0].code == "coco-not-object"


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_row_8_empty_lists(content, write, key):
    emptied = {"images": ["images", "annotations"], "categories": ["categories", "annotations"]}.get(
        key, [key]
    )
    for name in emptied:
        content[name] = []
    with pytest.raises(DataError) as error:
        read_coco(write(content), require_instances=True)
    assert f"no-{key}" in {f.code for f in error.value.findings if f.severity is Severity.ERROR}
    dataset = read_coco(write(content))
    assert f"no-{key}" in {f.code for f in dataset.findings if f.severity is Severity.WARNING}
    assert dataset.num_annotations == 0


def test_images_alone_are_enough_for_prediction(content, write):
    del content["annotations"], content["categories"]
    dataset = read_coco(write(content), require_labels=False)
    assert [image.id for image in dataset.images] == [4, 7]
    assert dataset.findings == ()
    assert len(dataset.instances(0)) == 0


def test_row_10_a_missing_box_comes_from_the_mask(content, write):
    del content["annotations"][0]["bbox"]
    dataset = read_coco(write(content))
    derived = dataset.annotations[1][1]
    assert derived.id == 31
    assert derived.box_xywh == (10, 20, 30, 40)
    (warning,) = [f for f in dataset.findings if f.severity is Severity.WARNING]
    assert (warning.code, warning.id) == ("box-derived", 31)
    content["annotations"][0]["segmentation"] = []
    with pytest.raises(DataError) as error:
        read_coco(write(content))
    assert {"box-missing"} == {f.code for f in error.value.findings if f.severity is Severity.ERROR}


def test_row_11_optional_keys_may_be_missing(content, write, pictures):
    for annotation in content["annotations"]:
        for key in ("iscrowd", "area", "segmentation"):
            annotation.pop(key, None)
    for image in content["images"]:
        del image["width"], image["height"]
    dataset = read_coco(write(content))
    assert dataset.findings == ()
    assert dataset.image_root == pictures
    assert [image.size_hw for image in dataset.images] == [(80, 100), (80, 100)]
    assert [a["area"] for a in dataset.to_coco()["annotations"]] == [210.0, 160, 1200]
    with pytest.raises(DataError) as error:
        read_coco(write(content), task="segmentation")
    assert [f.code for f in error.value.findings if f.severity is Severity.ERROR] == ["mask-missing"] * 3


def test_row_11_a_missing_area_is_that_of_the_mask(content, write):
    del content["annotations"][1]["area"]
    content["annotations"][1]["segmentation"]["counts"] = [0, 100, 7900]
    areas = {a["id"]: a["area"] for a in read_coco(write(content)).to_coco()["annotations"]}
    assert areas[12] == 100


@pytest.mark.parametrize("area", [-1, float("nan"), float("inf"), "12", True, [3]])
def test_row_11_an_unusable_area_is_computed(content, write, area):
    content["annotations"][0]["area"] = area
    del content["annotations"][0]["segmentation"]
    dataset = read_coco(write(content))
    assert "area-value" in {f.code for f in dataset.findings}
    assert {a["id"]: a["area"] for a in dataset.to_coco()["annotations"]}[31] == 1200


def test_row_13_shared_names_are_warnings(content, write):
    content["categories"][1]["name"] = "dent"
    content["images"][1]["file_name"] = "./a.png"
    dataset = read_coco(write(content))
    found = {f.code: f for f in dataset.findings if f.severity is Severity.WARNING}
    assert set(found) == {"category-name-twice", "image-name-twice"}
    assert found["category-name-twice"].value == "dent"
    assert found["image-name-twice"].value == "a.png"
    with pytest.raises(DataError):
        read_coco(write(content), strict=True)


@pytest.mark.parametrize("ids", [(1, 3), (0, 1), (90, 2), (-1, 10**15)])
def test_row_15_any_category_ids(content, write, ids):
    for annotation in content["annotations"]:
        annotation["category_id"] = {90: ids[0], 3: ids[1]}[annotation["category_id"]]
    content["categories"] = [{"id": ids[0], "name": "dent"}, {"id": ids[1], "name": "scratch"}]
    dataset = read_coco(write(content))
    assert dataset.category_ids == tuple(sorted(ids))
    written = {a["id"]: a["category_id"] for a in dataset.to_coco()["annotations"]}
    assert written == {a["id"]: a["category_id"] for a in content["annotations"]}
    names = {a.id: dataset.class_names[a.label] for objects in dataset.annotations for a in objects}
    assert names == {31: "dent", 12: "scratch", 50: "scratch"}


@pytest.mark.parametrize(
    "image_id",
    ["7", "scan 7/é", 1.0, 0.5, 1699999999999, 2**63, 2**64 + 1, -3, 0],
    ids=repr,
)
def test_row_17_image_ids_keep_value_and_type(content, write, image_id):
    content["images"][0]["id"] = image_id
    for annotation in content["annotations"][:2]:
        annotation["image_id"] = image_id
    dataset = read_coco(write(content))
    written = dataset.to_coco()
    (record,) = [image["id"] for image in written["images"] if image["file_name"] == "a.png"]
    assert (record, type(record)) == (image_id, type(image_id))
    assert [a["image_id"] for a in written["annotations"] if a["id"] in (31, 12)] == [image_id] * 2
    assert len(dataset.instances(dataset.index_of[image_id])) == 2


def test_row_17_ids_of_different_types_do_not_collide(content, write):
    content["images"] = [
        {"id": i, "file_name": f"{n}.png", "width": 9, "height": 9} for n, i in enumerate([1, "1", 2])
    ]
    content["annotations"] = [
        {"id": 1, "image_id": "1", "category_id": 3, "bbox": [1, 1, 2, 2]},
        {"id": 2, "image_id": 1, "category_id": 90, "bbox": [1, 1, 2, 2]},
    ]
    dataset = read_coco(write(content))
    assert [image.id for image in dataset.images] == [1, 2, "1"]
    assert [[a.id for a in objects] for objects in dataset.annotations] == [[2], [], [1]]


def test_row_17_annotation_ids_that_are_no_64_bit_numbers(content, write):
    content["annotations"][0]["id"] = "hand-made"
    content["annotations"][1]["id"] = 2**70
    dataset = read_coco(write(content))
    assert [f.code for f in dataset.findings] == ["annotation-ids-renumbered"]
    assert dataset.instance_ids == ((1,), (2, 3))
    assert dataset.instances(1).ids.tolist() == [2, 3]
    assert {a["id"] for a in dataset.to_coco()["annotations"]} == {"hand-made", 2**70, 50}


def test_row_18_images_without_annotations_are_counted(content, write):
    del content["annotations"][2]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    dataset = read_coco(write(content))
    (note,) = [f for f in dataset.findings if f.code == "images-without-annotations"]
    assert note.severity is Severity.INFO
    assert note.message == "1 of 2 images have no annotation (background): 4"
    assert len(dataset.instances(0, masks=True)) == 0
    assert read_coco(write(content), strict=True).findings == dataset.findings


def test_row_19_an_unused_class_is_a_warning(content, write):
    content["categories"].append({"id": 5, "name": "hole"})
    (warning,) = read_coco(write(content), require_instances=True).findings
    assert (warning.code, warning.severity, warning.id) == ("category-unused", Severity.WARNING, 5)


def test_row_19_one_image_with_one_annotation(content, write):
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:1]
    content["categories"] = content["categories"][:1]
    dataset = read_coco(write(content), require_instances=True)
    assert (len(dataset), dataset.num_annotations, dataset.findings) == (1, 1, ())


def test_row_7_many_annotations(content, write):
    # the full 60k are measured by hand; here only that nothing is quadratic enough to be noticed
    template = {"image_id": 7, "category_id": 90}
    content["annotations"] = [
        template | {"id": number, "bbox": [number % 50, number // 200, 9, 9]} for number in range(8000)
    ]
    dataset = read_coco(write(content))
    assert dataset.num_annotations == 8000
    assert len(dataset.instances(1)) == 8000


def test_the_order_of_the_records_changes_nothing(content, write):
    forward = read_coco(write(content))
    shuffled = copy.deepcopy(content)
    for key in ("images", "annotations", "categories"):
        shuffled[key].reverse()
    assert read_coco(write(shuffled)).to_coco() == forward.to_coco()


def test_sizes_are_read_in_the_upright_frame(content, write, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(pictures / "a.jpg", exif=exif)
    content["images"][0] = {"id": 7, "file_name": "a.jpg"}
    del content["annotations"][1]
    dataset = read_coco(write(content))
    assert dataset.images[1].size_hw == (100, 80)


def test_further_keys_survive_unless_json_cannot_hold_them(content, write):
    content["info"] = {"year": 2026}
    content["licenses"] = [float("nan")]
    content["annotations"][0]["attributes"] = {"occluded": True}
    content["annotations"][2]["quality"] = float("inf")
    content["images"][0]["date_captured"] = "2026-01-01"
    dataset = read_coco(write(content))
    written = dataset.to_coco()
    assert written["info"] == {"year": 2026}
    assert "licenses" not in written
    annotations = {a["id"]: a for a in written["annotations"]}
    assert annotations[31]["attributes"] == {"occluded": True}
    assert "quality" not in annotations[50]
    assert {i["id"]: i for i in written["images"]}[7]["date_captured"] == "2026-01-01"
    assert [f.path for f in dataset.findings] == ["licenses", "annotations[2].quality"]


def test_every_code_used_here_is_documented():
    assert {fault.code for fault in FAULTS} <= set(CODES)

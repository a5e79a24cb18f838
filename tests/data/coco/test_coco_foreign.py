"""COCO files as other tools write them: CVAT's rotated boxes, empty masks, phone pictures, the official folder."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from scantling.combine.relations import relations_of
from scantling.data.coco import ReadOptions, read_coco
from scantling.data.coco.geometry import upright_box
from scantling.data.coco.records import labels_by_name
from scantling.data.convert import convert_data
from scantling.data.formats.layouts import detect_format
from scantling.data.formats.locations import read_location, read_splits
from scantling.data.health.check import check_data
from scantling.errors import DataError


def codes(dataset):
    return {finding.code for finding in dataset.findings}


def rotated_extent(x, y, width, height, degrees):
    """The upright box around the four corners, each turned about the centre."""
    angle, centre = math.radians(degrees), np.array([x + width / 2, y + height / 2])
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]) - centre
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    around = corners @ rotation.T + centre
    return (*around.min(0), *(around.max(0) - around.min(0)))


@pytest.mark.parametrize("degrees", [0.1, 45, 60, 90, 135, 270, 320.5, -30])
def test_the_box_around_a_turned_box_is_that_of_its_corners(degrees):
    assert upright_box((60, 90, 140, 20), degrees) == pytest.approx(rotated_extent(60, 90, 140, 20, degrees))


def test_rotated_boxes_of_cvat_are_read_as_what_is_seen_and_told(content, write):
    rotated, still, half = content["annotations"]
    rotated |= {
        "bbox": [60, 20, 20, 40],
        "segmentation": [],
        "attributes": {"rotation": 90.0, "occluded": False},
    }
    half |= {"segmentation": [], "attributes": {"rotation": 180.0}}
    content["annotations"] = [rotated, still, half]
    dataset = read_coco(write(content))
    by_id = {a.id: a for many in dataset.annotations for a in many}
    assert by_id[31].box_xywh == pytest.approx((50, 30, 40, 20))
    assert by_id[50].box_xywh == tuple(half["bbox"])
    (told,) = (finding for finding in dataset.findings if finding.code == "box-rotated")
    assert told.message.startswith("1 boxes")
    again = read_coco(write(json.loads(json.dumps(dataset.to_coco()))))
    assert {a.id: a.box_xywh for many in again.annotations for a in many}[31] == pytest.approx(
        (50, 30, 40, 20)
    )


def test_a_mask_is_where_it_is_whatever_its_rotation(content, write):
    content["annotations"][0]["attributes"] = {"rotation": 30}
    dataset = read_coco(write(content))
    assert next(a for many in dataset.annotations for a in many if a.id == 31).box_xywh == (10, 20, 30, 40)
    assert "box-rotated" not in codes(dataset)


def test_empty_segmentations_are_no_fault_of_a_set_of_boxes(content, write):
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [], "iscrowd": 0}
    dataset = read_coco(write(content), strict=True)
    assert (dataset.num_annotations, codes(dataset)) == (3, set())
    with pytest.raises(DataError) as error:
        read_coco(write(content), task="segmentation", strict=True)
    assert sum(finding.code == "mask-empty" for finding in error.value.findings) == 3
    content["annotations"][0]["segmentation"] = [[10, 20, 40, 20, 40, 60, 10, 60]]
    assert "mask-empty" in codes(read_coco(write(content)))


def test_labels_of_phone_pictures_name_the_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (320, 240), "gray").save(tmp_path / "images" / "a.jpg", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "images/a.jpg", "width": 320, "height": 240}],
        "categories": [{"id": 0, "name": "dial"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 0, "bbox": box}
            for i, box in enumerate(([70, 250, 90, 60], [30, 200, 100, 100], [5, 5, 50, 50]))
        ],
    }
    file = tmp_path / "result.json"
    file.write_text(json.dumps(content))
    health = check_data(str(file))
    assert [f.id for f in health.findings if f.code == "labels-upright"] == [0, 1]
    assert [f.severity for f in health.findings if f.code == "image-orientation-kept"] == ["info"]
    content["annotations"] = content["annotations"][2:]
    file.write_text(json.dumps(content))
    assert {f.code for f in check_data(str(file)).findings} == {"image-orientation-kept"}


def test_the_official_folder_has_two_splits(tmp_path):
    record = {"images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10]}
    objects = record | {"annotations": [box], "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "annotations").mkdir()
    for split, shift in (("train2017", 0), ("val2017", 1)):
        objects["annotations"][0] = box | {"bbox": [1 + shift, 2, 10, 10]}
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 30), (shift, 0, 0)).save(tmp_path / split / "1.jpg")
        files = {
            "instances": objects,
            "person_keypoints": objects | {"annotations": []},
            "captions": record | {"annotations": [{"id": 1, "image_id": 1, "caption": "a man"}]},
        }
        for name, content in files.items():
            (tmp_path / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))
    (tmp_path / "annotations" / "image_info_test2017.json").write_text(
        json.dumps(record | {"categories": []})
    )
    layout = detect_format(tmp_path)
    assert layout.splits == ("train2017", "val2017")
    assert "captions_train2017.json" in layout.notes[0]
    assert [
        dataset.num_annotations for dataset in (read_location(f"{tmp_path}:{s}") for s in layout.splits)
    ] == [1, 1]
    written = convert_data(tmp_path, "yolo", tmp_path / "yolo")
    counts = {split: (found.images, found.objects) for split, found in written.counts.items()}
    assert counts == {"train2017": (1, 1), "val2017": (1, 1)}
    assert set(read_splits(tmp_path / "yolo", ReadOptions())) == {"train", "val"}
    for file in (tmp_path / "annotations").glob("instances_*"):
        file.unlink()
    assert detect_format(tmp_path).splits == ("train2017", "val2017")
    assert read_location(f"{tmp_path}:val").num_annotations == 0


def test_check_lists_keys_of_annotations_that_nothing_reads(content, write, pictures):
    for annotation in content["annotations"]:
        annotation |= {"keypoints": [1, 2, 2], "difficult": 1, "attributes": {"occluded": False}}
    (told,) = (f for f in check_data(str(write(content))).findings if f.code == "keys-not-used")
    assert "keypoints (3)" in told.message
    assert "attributes.occluded (3)" in told.message
    assert "difficult" not in told.message


def test_categories_of_one_name_stay_apart(content, write):
    """Roboflow's root category has the name of a class: each is judged and counted as its own."""
    content["categories"] = [{"id": 3, "name": "bolt"}, {"id": 90, "name": "bolt"}, {"id": 4, "name": "nut"}]
    dataset = read_coco(write(content))
    assert labels_by_name(dataset.class_names) == {"bolt": 0, "nut": 1, "bolt (2)": 2}
    relations = relations_of(dataset)
    assert relations.ordered(dataset.class_names).seen.tolist() == relations.seen.tolist()
    counts = check_data(str(dataset.file), pixels=False).class_counts()
    assert {name: sum(each.values()) for name, each in counts.items()} == {"bolt": 1, "nut": 0, "bolt (2)": 1}


def test_names_with_white_space_come_back_through_voc(tmp_path, content, write, pictures):
    content["categories"] = [{"id": 90, "name": "bolt "}, {"id": 3, "name": " nut"}]
    content["annotations"][1]["iscrowd"] = 0
    write(content)
    convert_data(tmp_path, "voc", tmp_path / "voc")
    dataset = read_location(tmp_path / "voc")
    assert dataset.class_names == (" nut", "bolt ")
    assert sorted(a.label for many in dataset.annotations for a in many) == [0, 0, 1]
    (tmp_path / "voc" / "categories.json").unlink()
    assert read_location(tmp_path / "voc").class_names == ("bolt", "nut")

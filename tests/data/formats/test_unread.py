"""What label files say and no format is given: kept where COCO has a place for it, else counted where it is written."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from scantling.audit.repair import repair_labels
from scantling.data.coco.records import ROTATION
from scantling.data.convert import convert_data
from scantling.data.formats.locations import read_location
from scantling.data.formats.yolo_rows import KEY_POINTS

TURNED, UPRIGHT = "0 0.5 0.2 0.6 0.4 0.5 0.6 0.4 0.4", "0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5"
POINTS_3, POINTS_2 = "0 0.5 0.5 0.2 0.4 0.45 0.4 2 0 0 0 0.5 0.6 1", "0 0.5 0.5 0.2 0.4 0.45 0.4 0 0 0.5 0.6"


def yolo(root, settings, *rows):
    """One image of 100 x 50 with these rows."""
    for folder in ("images", "labels"):
        (root / folder / "train").mkdir(parents=True)
    Image.new("RGB", (100, 50)).save(root / "images" / "train" / "a.png")
    (root / "labels" / "train" / "a.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text(f"train: images/train\nnames: [nut]\n{settings}\n")
    return root


@pytest.mark.parametrize(
    ("shape", "row", "visibility"), [("[3, 3]", POINTS_3, (2, 1)), ("[3, 2]", POINTS_2, (2, 2))]
)
def test_key_points_go_into_coco_and_are_counted_by_the_others(tmp_path, shape, row, visibility):
    root = yolo(tmp_path / "pose", f"kpt_shape: {shape}", row, "0 0.5 0.5 0.2 0.4")
    assert convert_data(root, "coco", tmp_path / "coco").losses == {}
    first, second = json.loads((tmp_path / "coco" / "annotations" / "train.json").read_text())["annotations"]
    assert first["keypoints"] == pytest.approx([45, 20, visibility[0], 0, 0, 0, 50, 30, visibility[1]])
    assert first["num_keypoints"] == 2
    assert "keypoints" not in second
    for target in ("yolo", "voc"):
        counted = convert_data(root, target, tmp_path / target).losses
        assert counted == {"keypoints of annotations": 1, "num_keypoints of annotations": 1}


@pytest.mark.parametrize("target", ["coco", "yolo", "voc"])
def test_rotations_and_key_points_that_are_not_read_are_counted_in_every_format(tmp_path, target):
    rotated = yolo(tmp_path / "obb", "task: obb", TURNED, UPRIGHT, TURNED.replace("0.2", "0.3"))
    pose = yolo(tmp_path / "pose", "task: pose", POINTS_3)
    written = convert_data(rotated, target, tmp_path / "out")
    assert written.losses == {ROTATION: 2}
    assert f"not kept: 2 {ROTATION}" in written.to_text()
    assert convert_data(pose, target, tmp_path / "out2").losses == {KEY_POINTS: 1}


def test_rotations_of_cvat_are_counted_like_those_of_yolo(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    record = {"image_id": 1, "category_id": 1, "bbox": [40, 20, 20, 10], "iscrowd": 0}
    rotations = ({"attributes": {"rotation": 30.0}}, {"attributes": {"rotation": 0.0}}, {})
    shifted = [{**record, "bbox": [40 + i, 20, 20, 10], "id": i, **r} for i, r in enumerate(rotations)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}],
        "annotations": shifted,
        "categories": [{"id": 1, "name": "nut"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    assert convert_data(tmp_path / "all.json", "coco", tmp_path / "out").losses == {ROTATION: 1}
    kept = repair_labels(read_location(tmp_path / "all.json"), [], tmp_path / "repaired.json")
    assert kept.losses == {}, "a COCO file is copied record by record"
    assert json.loads((tmp_path / "repaired.json").read_text()) == content


def test_repair_counts_what_its_coco_file_does_not_keep_of_other_labels(tmp_path):
    root = yolo(tmp_path / "obb", "task: obb", TURNED, UPRIGHT)
    done = repair_labels(read_location(root), [], tmp_path / "repaired.json")
    assert done.losses == done.to_dict()["not_kept"] == {ROTATION: 1}
    assert done.to_text().endswith(f"not kept: 1 {ROTATION}")


def test_what_else_vocs_objects_say_is_counted_by_its_element(tmp_path):
    (tmp_path / "voc" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "voc" / "Annotations").mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "voc" / "JPEGImages" / "a.png")
    objects = "".join(
        f"<object><name>dog</name>{rest}<truncated>1</truncated><bndbox><xmin>{left}</xmin><ymin>2</ymin>"
        "<xmax>40</xmax><ymax>30</ymax></bndbox></object>"
        for left, rest in (
            (1, "<pose>Left</pose><part><name>head</name></part><part><name>paw</name></part>"),
            (2, "<pose>Unspecified</pose><occluded>0</occluded><attributes></attributes>"),
        )
    )
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text(f"<annotation>{objects}</annotation>")
    for target in ("coco", "voc"):
        counted = convert_data(tmp_path / "voc", target, tmp_path / f"to-{target}").losses
        assert counted == {"<part> of objects": 1, "<pose> of objects": 1}

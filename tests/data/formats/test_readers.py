"""Readers of YOLO, VOC and DelftBikes: hand-written files, and findings with file and line."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from scantling.data.coco import ReadOptions, check_results
from scantling.data.formats.document import image_numbers
from scantling.data.formats.layouts import detect_format
from scantling.data.formats.locations import Location, read_location, write_split_file
from scantling.data.formats.safe_xml import read_xml
from scantling.data.health.check import check_data
from scantling.errors import DataError, Severity
from scantling.synth.synth import SynthConfig, write_synth

VOC = """<annotation>
  <filename>a.jpg</filename><size><width>100</width><height>50</height><depth>3</depth></size>
  <object><name>big dog</name><difficult>1</difficult>
    <bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>
</annotation>
"""


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50), (9, 99, 200)).save(path)


@pytest.fixture
def voc(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(VOC)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (tmp_path / "ImageSets" / "Main" / "dog_train.txt").write_text("a -1\n")
    return tmp_path


@pytest.fixture
def yolo(tmp_path):
    picture(tmp_path / "images" / "train" / "a.jpg")
    picture(tmp_path / "images" / "train" / "b.jpg")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    label = tmp_path / "labels" / "train" / "a.txt"
    label.write_text("1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.5 0.2 0.5 0.8\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames:\n  0: nut\n  1: big bolt\n")
    return tmp_path


def codes(error):
    return [(finding.code, finding.path) for finding in errors_in(error)]


def errors_in(error):
    return [finding for finding in error.value.findings if finding.severity is Severity.ERROR]


def test_voc_counts_pixels_from_one_and_includes_both_edges(voc):
    dataset = read_location(voc)
    ((annotation,),) = dataset.annotations
    assert annotation.box_xywh == (10, 20, 20, 20)
    assert dataset.class_names == ("big dog",)
    assert annotation.extra == {"difficult": 1}
    assert dataset.images[0].size_hw == (50, 100)


def test_voc_findings_name_file_and_line(voc):
    file = voc / "Annotations" / "a.xml"
    file.write_text(VOC.replace("<xmax>30<", "<xmax>5<"))
    with pytest.raises(DataError) as error:
        read_location(voc)
    (finding,) = errors_in(error)
    assert (finding.code, finding.file, finding.path) == ("box-size", str(file), "line 3")
    file.write_text(VOC.replace("<xmax>30</xmax>", ""))
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\nmissing\n")
    with pytest.raises(DataError) as error:
        read_location(voc)
    assert sorted(codes(error)) == [("label-file-missing", "line 2"), ("voc-object", "line 3")]


def test_a_listed_image_without_xml_is_told_once_with_the_file_that_an_empty_one_needs(voc):
    """Datumaro writes no XML for images without objects; whether one is empty or unlabelled nothing tells."""
    picture(voc / "JPEGImages" / "bare.jpg")
    picture(voc / "JPEGImages" / "elsewhere.jpg")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\nbare\n")
    found = [(f.code, f.path or f.message, f.hint) for f in check_data(str(voc)).findings]
    needed = voc / "Annotations" / "bare.xml"
    (hint,) = [hint for code, place, hint in found if (code, place) == ("label-file-missing", "line 2")]
    assert hint.startswith(f"If there is no object on it, write {needed} with `<annotation/>`; else")
    (unlisted,) = [place for code, place, _ in found if code == "image-unlisted"]
    assert unlisted == f"1 pictures are in no split: {voc / 'JPEGImages' / 'elsewhere.jpg'}"
    needed.write_text("<annotation/>")
    assert len(read_location(voc)) == 2


def test_an_image_that_is_told_as_unusable_is_not_told_as_being_in_no_split(voc, tmp_path):
    (voc / "ImageSets" / "Main" / "train.txt").unlink()
    (voc / "ImageSets" / "Main" / "dog_train.txt").unlink()
    for name in ("bare", "broken"):
        picture(voc / "JPEGImages" / f"{name}.jpg")
    (voc / "Annotations" / "broken.xml").write_text("<annotation>")
    found = {f.code: f.message for f in check_data(str(voc)).findings}
    assert found["image-unlabelled"] == "1 images have no XML file and are not used: bare.jpg"
    assert "xml-syntax" in found
    assert "image-unlisted" not in found

    root = tmp_path / "coco"
    picture(root / "images" / "a.jpg")
    (root / "annotations").mkdir()
    image = {"id": 1, "file_name": "a.jpg", "width": 0, "height": 50}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
    (root / "annotations" / "train.json").write_text(json.dumps(content))
    found = {f.code for f in check_data(str(root)).findings}
    assert "image-size" in found
    assert "image-unlisted" not in found


def test_a_damaged_image_of_yolo_is_told_once(yolo):
    (yolo / "images" / "train" / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    found = {f.code for f in check_data(str(yolo)).findings}
    assert found & {"image-damaged", "image-unreadable", "image-format"}
    assert "image-unlisted" not in found


def test_voc_edges_of_zero_are_a_warning(voc):
    (voc / "Annotations" / "a.xml").write_text(VOC.replace("<xmin>11<", "<xmin>0<"))
    dataset = read_location(voc)
    assert dataset.annotations[0][0].box_xywh == (0, 20, 30, 20)
    assert [f.code for f in dataset.findings if f.code.startswith("voc-")] == ["voc-counts-from-zero"]


def test_xml_cannot_expand_entities(tmp_path):
    bomb = tmp_path / "a.xml"
    bomb.write_text('<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<annotation>&b;</annotation>')
    with pytest.raises(DataError) as error:
        read_xml(bomb)
    assert codes(error) == [("xml-doctype", "line 1")]
    bomb.write_text("<a>" * 100 + "</a>" * 100)
    with pytest.raises(DataError, match="nested deeper"):
        read_xml(bomb)
    bomb.write_text("<a>\n<b></a>")
    with pytest.raises(DataError) as error:
        read_xml(bomb)
    assert codes(error) == [("xml-syntax", "line 2 column 6")]


def test_yolo_boxes_polygons_and_background(yolo):
    dataset = read_location(yolo)
    box, polygon = dataset.annotations[0]
    assert box.box_xywh == pytest.approx((40, 15, 20, 20))
    assert polygon.box_xywh == pytest.approx((10, 10, 40, 30))
    assert polygon.segmentation[0].tolist() == pytest.approx([10, 10, 50, 10, 50, 40])
    assert [dataset.class_names[a.label] for a in (box, polygon)] == ["big bolt", "nut"]
    assert dataset.annotations[1] == ()
    assert [image.file_name for image in dataset.images] == ["train/a.jpg", "train/b.jpg"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("0 0.5 0.5 0.2", "yolo-line"),
        ("0 0.5 0.5 0.2 x", "yolo-line"),
        ("0 0.5 nan 0.2 0.1", "yolo-line"),
        ("2 0.5 0.5 0.2 0.2", "yolo-class"),
        ("-1 0.5 0.5 0.2 0.2", "yolo-class"),
        ("0 50 25 20 20", "yolo-range"),
        ("0 0.5 0.5 0 0.2", "box-size"),
    ],
)
def test_yolo_findings_name_file_and_line(yolo, line, code):
    label = yolo / "labels" / "train" / "a.txt"
    label.write_text(f"\n0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(DataError) as error:
        read_location(yolo)
    (finding,) = errors_in(error)
    assert (finding.code, finding.file, finding.path) == (code, str(label), "line 3")


def test_images_called_by_numbers_have_these_as_ids():
    """As Ultralytics writes them into its results; where one is called otherwise, all are counted."""
    assert image_numbers({"a/10.jpg": "10", "a/000002.jpg": "000002"}) == {"a/10.jpg": 10, "a/000002.jpg": 2}
    assert image_numbers({"b/10.jpg": "10", "a/9.jpg": "9x"}) == {"a/9.jpg": 1, "b/10.jpg": 2}
    assert image_numbers({"b/7.jpg": "7", "a/07.jpg": "07"}) == {"a/07.jpg": 1, "b/7.jpg": 2}
    assert image_numbers({"b": "9" * 16, "a": "1"}) == {"a": 1, "b": 2}
    assert image_numbers({}) == {}


def test_results_of_ultralytics_belong_to_the_images_they_were_made_on(tmp_path):
    for number in (1, 2, 10):
        picture(tmp_path / f"images/val/{number}.png")
        (tmp_path / f"labels/val/{number}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"labels/val/{number}.txt").write_text(f"0 0.5 0.5 0.{number} 0.{number}\n")
    (tmp_path / "data.yaml").write_text("path: .\nval: images/val\nnames: [bolt]\n")
    dataset = read_location(f"{tmp_path}:val")
    assert {image.id: image.file_name for image in dataset.images} == {
        number: f"{'val/' if 'val/' in dataset.images[0].file_name else ''}{number}.png"
        for number in (1, 2, 10)
    }


def test_yolo_skips_what_is_invalid_when_asked(yolo):
    (yolo / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n0 50 25 20 20\n")
    (yolo / "images" / "train" / "b.jpg").write_bytes(b"")
    dataset = read_location(yolo, ReadOptions(skip_invalid=True))
    assert (len(dataset), dataset.num_annotations) == (1, 1)
    assert {"yolo-range", "image-unreadable"} <= {f.code for f in dataset.findings}


def test_yolo_paths_of_another_machine_and_lists(yolo):
    settings = "path: /somewhere/else\ntrain: ../train/images\nval: val.txt\nnames: [nut, big bolt]\nnc: 2\n"
    (yolo / "train" / "images").mkdir(parents=True)
    picture(yolo / "train" / "images" / "c.png")
    (yolo / "train" / "labels").mkdir()
    (yolo / "train" / "labels" / "c.txt").write_text("1 0.5 0.5 0.2 0.2")
    (yolo / "val.txt").write_text("./images/train/a.jpg\n")
    (yolo / "data.yaml").write_text(settings)
    assert detect_format(yolo).splits == ("train", "val")
    train, val = (read_location(f"{yolo}:{split}") for split in ("train", "val"))
    assert (train.num_annotations, val.num_annotations) == (1, 2)
    assert {i.id for i in train.images}.isdisjoint({i.id for i in val.images})


def test_delftbikes_absent_parts_are_readable_but_no_targets(tmp_path):
    write_synth(
        tmp_path / "b", SynthConfig(size_hw=(96, 128)), splits={"val": 2}, seed=0, layout="delftbikes"
    )
    content = json.loads((tmp_path / "b" / "val_annotations.json").read_text())
    states = [part["object_state"] for image in content.values() for part in image["parts"].values()]
    assert 0 < states.count("absent") < len(states)
    dataset = read_location(tmp_path / "b")
    assert dataset.num_annotations == len(states) - states.count("absent")
    assert any(
        f.code == "parts-not-targets" and str(states.count("absent")) in f.message for f in dataset.findings
    )
    result = {"image_id": dataset.images[0].id, "category_id": 1, "score": 0.5, "bbox": [1, 1, 9, 9]}
    (counted,) = [
        f for f in check_results([result], dataset).findings if f.code == "results-category-counted"
    ]
    assert (
        f"category_id is taken for 1 {dataset.class_names[0]}, 2 {dataset.class_names[1]}" in counted.message
    )
    absent = read_location(tmp_path / "b", states=("absent",))
    assert absent.num_annotations == states.count("absent")
    assert {a.extra["state"] for many in absent.annotations for a in many} == {"absent"}
    assert absent.categories == dataset.categories


def test_delftbikes_boxes_are_judged_at_their_place(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    box = {"left": 1, "top": 2, "width": 0, "height": 4}
    parts = {
        "saddle": {"object_state": "intact", "absolute_bounding_box": box},
        "bell": {"object_state": "rusty", "absolute_bounding_box": box},
    }
    (tmp_path / "train_annotations.json").write_text(json.dumps({"a.jpg": {"parts": parts}}))
    with pytest.raises(DataError) as error:
        read_location(tmp_path)
    assert sorted(codes(error)) == [("box-size", "a.jpg.parts.saddle"), ("part-state", "a.jpg.parts.bell")]


def test_roboflow_and_instances_files_and_category_zero(tmp_path):
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 100, "height": 50}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 0, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 0, "name": "ball"}],
    }
    for name in ("valid/_annotations.coco.json", "x/annotations/instances_val2017.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps(content))
    picture(tmp_path / "valid" / "a.jpg")
    picture(tmp_path / "x" / "val2017" / "a.jpg")
    assert detect_format(tmp_path).format == "Roboflow"
    for folder in (tmp_path, tmp_path / "x"):
        dataset = read_location(f"{folder}:val")
        assert dataset.images[0].path.is_file()
        assert (dataset.category_ids, dataset.annotations[0][0].label) == ((0,), 0)


def background(dataset):
    return [(f.file, f.message) for f in dataset.findings if f.code == "images-without-annotations"]


def test_split_files_choose_images_wherever_they_lie(yolo, tmp_path):
    lists = tmp_path / "lists" / "b.json"
    write_split_file(lists, "b", Location(yolo, "train"), [2])
    dataset = read_location(lists)
    assert [image.file_name for image in dataset.images] == ["train/b.jpg"]
    assert background(dataset) == [(str(lists), "1 of 1 images have no annotation (background): 2")]
    write_split_file(lists, "a", Location(yolo, "train"), [1])
    assert background(read_location(lists)) == []
    (whole,) = background(read_location(f"{yolo}:train"))
    assert whole[1].startswith("1 of 2 images")
    write_split_file(lists, "b", Location(yolo, "train"), [2])
    lists.write_text(json.dumps({"name": "b", "image_ids": [2]}))
    with pytest.raises(DataError, match="data"):
        read_location(lists)

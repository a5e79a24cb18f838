"""Masks in VOC's XML, as Roboflow and supervision write them: corners are pixels, counted from 1 like the boxes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import ReadOptions
from scantling.data.coco.records import to_rle
from scantling.data.convert import convert_data
from scantling.data.formats.layouts import detect_format
from scantling.data.formats.locations import read_location
from scantling.errors import DataError, Severity
from scantling.ops.rle import rle_decode

SIZE = "<size><width>20</width><height>10</height></size>"
BOX = "<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>6</xmax><ymax>4</ymax></bndbox>"
CORNERS = (3, 2, 6, 2, 6, 4, 3, 4)


def polygon(*numbers):
    tags = [f"{'xy'[index % 2]}{index // 2 + 1}" for index in range(len(numbers))]
    corners = (f"<{tag}>{number}</{tag}>" for tag, number in zip(tags, numbers, strict=True))
    return f"<polygon>{''.join(corners)}</polygon>"


def data_set(root, *objects, size=SIZE):
    """One image of 20 x 10 with an object per text, each in a line of its own from line 2 on."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "Annotations").mkdir()
    Image.new("RGB", (20, 10)).save(root / "JPEGImages" / "a.png")
    lines = [f"<object><name>nut{i}</name>{BOX}{text}</object>" for i, text in enumerate(objects)]
    text = "\n".join([f"<annotation>{size}", *lines, "</annotation>"])
    (root / "Annotations" / "a.xml").write_text(text)
    return root


def masks(dataset):
    return [a.segmentation and rle_decode(to_rle(a.segmentation, (10, 20))) for a in dataset.annotations[0]]


@pytest.mark.parametrize("size", [SIZE, ""])
def test_the_pixels_of_the_outline_belong_to_the_mask_whose_extent_is_then_the_box(tmp_path, size):
    dataset = read_location(data_set(tmp_path, polygon(*CORNERS), "", "<polygon/>", size=size))
    first, second, third = masks(dataset)
    expected = np.zeros((10, 20), bool)
    expected[1:4, 2:6] = True
    assert np.array_equal(first, expected)
    assert second is third is None
    assert dataset.annotations[0][0].box_xywh == (2, 1, 4, 3)
    assert not [finding for finding in dataset.findings if finding.code.startswith(("box", "mask", "voc"))]


def test_a_line_is_a_mask_parts_are_joined_and_what_leaves_the_image_is_cut_off(tmp_path):
    line, parts = polygon(3, 2, 6, 2, 6, 2), polygon(1, 1, 2, 1, 1, 2) + polygon(19, 9, 24, 9, 24, 14, 19, 14)
    scratch, joined = masks(read_location(data_set(tmp_path, line, parts)))
    assert np.argwhere(scratch).tolist() == [[1, 2], [1, 3], [1, 4], [1, 5]]
    assert np.argwhere(joined).tolist() == [[0, 0], [0, 1], [1, 0], [8, 18], [8, 19], [9, 18], [9, 19]]


@pytest.mark.parametrize(
    ("text", "fault", "value"),
    [
        (polygon(3, 2, 6, 2), "not x1, y1, x2, y2, x3, y3", "x1=3 y1=2 x2=6 y2=2"),
        (polygon(3, 2, 6, 2, 6, 4, 3), "not x1, y1, x2, y2, x3, y3", "x1=3 y1=2 x2=6 y2=2 x3=6 y3=4 x4=3"),
        (polygon(3, 2, 6, "nan", 6, 4), "not finite", "x1=3 y1=2 x2=6 y2=nan x3=6 y3=4"),
        (polygon(3, 2, 6, "far", 6, 4), "not finite", "x1=3 y1=2 x2=6 y2=far x3=6 y3=4"),
        (polygon(3, 2, 6, 1e9, 6, 4), "not finite", "x1=3 y1=2 x2=6 y2=1000000000.0 x3=6 y3=4"),
        (polygon(33, 2, 36, 2, 36, 4), "outside the image of 20 x 10", "x1=33 y1=2 x2=36 y2=2 x3=36 y3=4"),
        ("<polygon><pt><x>3</x><y>2</y></pt></polygon>", "not x1, y1, x2, y2, x3, y3", "pt="),
    ],
)
def test_a_polygon_that_is_none_is_told_with_its_line_and_left_out_alone(tmp_path, text, fault, value):
    root = data_set(tmp_path, polygon(*CORNERS), text)
    with pytest.raises(DataError) as error:
        read_location(root)
    (finding,) = error.value.findings
    file = str(root / "Annotations" / "a.xml")
    assert (finding.code, finding.file, finding.path) == ("voc-polygon", file, "line 3")
    assert fault in finding.message
    assert finding.value == value
    assert finding.hint == "Correct or remove it."
    dataset = read_location(root, ReadOptions(skip_invalid=True))
    assert [mask is None for mask in masks(dataset)] == [False, True]
    (finding,) = [finding for finding in dataset.findings if finding.code == "voc-polygon"]
    assert finding.severity is Severity.WARNING
    assert "the box remains" in finding.message


def test_masks_go_on_into_other_formats(tmp_path):
    root = data_set(tmp_path / "voc", polygon(*CORNERS))
    assert convert_data(root, "coco", tmp_path / "coco").losses == {}
    assert masks(read_location(tmp_path / "coco"))[0].sum() == 12
    assert convert_data(root, "yolo", tmp_path / "yolo").losses == {}
    assert masks(read_location(tmp_path / "yolo"))[0].sum() == 12
    assert convert_data(root, "voc", tmp_path / "again").losses == {"masks (VOC's XML has none)": 1}


def test_that_masks_in_pictures_are_not_read_is_told(tmp_path):
    root = data_set(tmp_path, "")
    assert detect_format(root).notes == ()
    (root / "SegmentationObject").mkdir()
    assert detect_format(root).notes == ("masks in pictures are not read: SegmentationObject",)

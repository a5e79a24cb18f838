"""Pictures of errors: which are chosen, what part of the image they show, what is drawn where."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scantling.evaluate.breakdown import ErrorCase, break_down
from scantling.evaluate.matching import ErrorKind
from scantling.ops.masks import rle_encode
from scantling.report.gallery import (
    GalleryLimits,
    choose,
    encode_jpeg,
    error_galleries,
    sample_pictures,
    window_around,
)
from scantling.report.overlays import Excerpt, outline


def test_what_is_accepted_is_shown_however_low_it_scores(dataset):
    """Some detectors score so low that even the best threshold is below what is drawn otherwise."""
    low = [
        {"image_id": 1, "category_id": 3, "bbox": [10.0, 10.0, 40.0, 30.0], "score": 0.003},
        {"image_id": 1, "category_id": 7, "bbox": [10.0, 80.0, 40.0, 30.0], "score": 0.002},
    ]
    gallery = next(g for g in error_galleries(dataset, break_down(dataset, low)) if g.key == "images")
    drawn = {(overlay.caption, overlay.is_accepted) for overlay in gallery.items[1].picture.overlays}
    assert drawn == {("bolt", True), ("bolt <0.01", True)}


@pytest.fixture
def galleries(dataset, results):
    return {gallery.key: gallery for gallery in error_galleries(dataset, break_down(dataset, results))}


def test_one_gallery_for_each_kind_that_occurs(galleries):
    assert {key: gallery.total for key, gallery in galleries.items()} == {
        "missed": 2,
        "class": 1,
        "images": 2,
    }


def test_a_picture_shows_its_part_of_the_image(galleries):
    """The missed bolt at (70, 20, 24, 24): 96 x 72 pixels around its centre (82, 32), pushed down to the top edge."""
    item = next(item for item in galleries["missed"].items if item.file_name == "first.png")
    assert item.picture.size_wh == (96, 72)
    pixels = cv2.imdecode(np.frombuffer(item.picture.jpeg, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (72, 96, 3)
    assert pixels[36, 30, 2] > 200  # red up to column 80 of the image, 46 of the picture
    assert pixels[36, 60].max() < 50
    subject = next(overlay for overlay in item.picture.overlays if overlay.is_subject)
    assert (subject.role, subject.box_xywh) == ("missed", (70 - 34, 20, 24, 24))


def test_roles_and_acceptance(galleries):
    image = next(item for item in galleries["images"].items if item.file_name == "first.png")
    drawn = {(overlay.role, overlay.caption, overlay.is_accepted) for overlay in image.picture.overlays}
    assert drawn == {
        ("truth", "bolt", True),
        ("missed", "bolt", True),
        ("prediction", "bolt 0.95", True),
        ("false", "bolt 0.90", False),
    }


def test_crowds_and_predictions_on_them_are_no_errors(galleries):
    image = next(item for item in galleries["images"].items if item.file_name != "first.png")
    roles = {overlay.caption: overlay.role for overlay in image.picture.overlays if overlay.score != 0.8}
    assert roles["bolt 0.10"] == "prediction"
    assert sorted(overlay.role for overlay in image.picture.overlays if overlay.score is None) == [
        "crowd",
        "missed",
    ]


def test_an_image_that_is_gone_leaves_its_picture_blank(galleries):
    (item,) = galleries["class"].items
    assert item.picture.jpeg is None
    assert item.note == "labelled bolt; overlap 1.00"


def test_subjects_are_drawn_last(galleries):
    for gallery in galleries.values():
        for item in gallery.items:
            order = [overlay.is_subject for overlay in item.picture.overlays]
            assert order == sorted(order)


def test_no_errors_no_galleries(dataset):
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": 0.9}
        for a in dataset.to_coco()["annotations"]
        if not a["iscrowd"]
    ]
    assert error_galleries(dataset, break_down(dataset, perfect)) == ()


def test_samples_show_labels_not_errors(dataset):
    first, second = sample_pictures(dataset)
    assert {overlay.role for overlay in (*first.picture.overlays, *second.picture.overlays)} == {
        "truth",
        "crowd",
    }
    assert first.note == "2 bolt"
    assert sample_pictures(dataset.subset([])) == ()


def case(label, image):
    box = (0.0, 0.0, 9.0, 9.0)
    return ErrorCase(
        kind=ErrorKind.MISSED,
        image=image,
        label=label,
        box=box,
        score=None,
        prediction=None,
        truth=0,
        overlap=0.0,
    )


def test_categories_take_turns_and_no_image_fills_the_gallery():
    cases = [case(0, 0), case(0, 0), case(0, 0), case(0, 1), case(1, 0), case(1, 2)]
    chosen = choose(cases, GalleryLimits(cases=4, per_image=2))
    assert [(c.label, c.image) for c in chosen] == [(0, 0), (1, 0), (1, 2), (0, 1)]


sides = st.tuples(st.integers(1, 900), st.integers(1, 900))


@given(sides, st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_window_lies_inside_the_image_and_holds_the_box(size_hw, left, top, width, height):
    x1, y1 = left * size_hw[1] * 0.99, top * size_hw[0] * 0.99
    box = (x1, y1, min(x1 + width * size_hw[1], size_hw[1]), min(y1 + height * size_hw[0], size_hw[0]))
    window = window_around(box, size_hw)
    assert 0 <= window.left <= window.left + window.width <= size_hw[1]
    assert 0 <= window.top <= window.top + window.height <= size_hw[0]
    assert window.left <= box[0] + 1
    assert window.top <= box[1] + 1
    assert window.left + window.width >= box[2] - 1
    assert window.top + window.height >= box[3] - 1


def test_jpegs_are_shrunk_never_enlarged():
    def size(pixels, side):
        return cv2.imdecode(np.frombuffer(encode_jpeg(pixels, side), dtype=np.uint8), cv2.IMREAD_COLOR).shape[
            :2
        ]

    assert size(np.zeros((300, 1200, 3), dtype=np.uint8), 480) == (120, 480)
    assert size(np.zeros((30, 20, 3), dtype=np.uint8), 480) == (30, 20)
    assert size(np.zeros((3, 6000, 3), dtype=np.uint8), 480) == (1, 480)


def test_the_outline_of_a_mask_is_relative_to_the_window():
    mask = np.zeros((50, 60), dtype=bool)
    mask[10:20, 30:41] = True
    path = outline(rle_encode(mask), Excerpt(left=25, top=5, width=30, height=30))
    corners = {tuple(map(float, point.split())) for point in path.strip("MZ").split("L")}
    assert corners == {(5.5, 5.5), (5.5, 14.5), (15.5, 14.5), (15.5, 5.5)}
    assert (
        outline(rle_encode(np.zeros((5, 5), dtype=bool)), Excerpt(left=0, top=0, width=5, height=5)) is None
    )

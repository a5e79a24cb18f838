"""Two splits compared (RELIABILITY rows 19-21)."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import read_coco
from scantling.data.health.leaks import compare_splits
from scantling.errors import Severity


def flat(level, kind) -> bytes:
    """An image of one gray level."""
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 10, 3), level, np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def make(tmp_path):
    """Write a split: image name -> pixels level (or bytes), and classes of one object per image."""

    def make(split, images, categories=((1, "dent"), (2, "scratch")), labels=(1, 2)):
        folder = tmp_path / split
        folder.mkdir()
        for name, level in images.items():
            (folder / name).write_bytes(level if isinstance(level, bytes) else flat(level, "PNG"))
        content = {
            "images": [
                {"id": n, "file_name": name, "width": 10, "height": 8} for n, name in enumerate(images)
            ],
            "annotations": [
                {"id": n, "image_id": 0, "category_id": category, "bbox": [n, n, 3, 3]}
                for n, category in enumerate(labels)
            ],
            "categories": [{"id": identifier, "name": name} for identifier, name in categories],
        }
        (folder / "a.json").write_text(json.dumps(content))
        return read_coco(folder / "a.json", folder)

    return make


def test_row_20_equal_ids_and_names_in_both_splits_mean_nothing(make):
    assert compare_splits(make("train", {"a.png": 1}), make("val", {"a.png": 2}), pixels=True) == ()


def test_row_20_one_file_in_both(make, tmp_path):
    train = make("train", {"a.png": 1, "b.png": 2})
    val = make("val", {"c.png": 3, "d.png": 2})
    (tmp_path / "val" / "c.png").unlink()
    (tmp_path / "val" / "c.png").symlink_to(tmp_path / "train" / "a.png")
    findings = compare_splits(train, val, pixels=True)
    assert [(f.code, f.id, f.severity) for f in findings] == [
        ("split-same-file", n, Severity.WARNING) for n in (0, 1)
    ]
    assert "c.png is also in" in findings[0].message
    assert "as a.png" in findings[0].message
    assert compare_splits(train, val, strict=True)[0].severity is Severity.ERROR


def test_row_20_one_picture_stored_anew(make):
    train = make("train", {"a.png": 1})
    val = make("val", {"b.bmp": flat(1, "BMP"), "c.png": 2})
    assert compare_splits(train, val) == ()
    (finding,) = compare_splits(train, val, pixels=True)
    assert (finding.code, finding.id) == ("split-same-pixels", 0)


def test_damaged_images_do_not_stop_the_comparison(make):
    train = make("train", {"a.png": b"no image", "b.png": 1})
    val = make("val", {"c.png": b"broken, too", "d.png": 2})
    assert compare_splits(train, val, pixels=True) == ()


def test_row_19_a_class_only_in_validation(make):
    train, val = make("train", {"a.png": 1}, labels=(1,)), make("val", {"b.png": 2})
    (finding,) = compare_splits(train, val)
    assert (finding.code, finding.severity, finding.value) == (
        "split-class-unseen",
        Severity.WARNING,
        "scratch",
    )
    assert compare_splits(val, train) == ()


@pytest.mark.parametrize(
    "categories",
    [
        ((1, "scratch"), (2, "dent")),
        ((1, "dent"), (2, "gouge")),
        ((1, "dent"),),
        ((1, "dent"), (2, "scratch"), (3, "x")),
    ],
    ids=["swapped", "renamed", "fewer", "more"],
)
def test_row_21_other_categories_are_an_error(make, categories):
    train = make("train", {"a.png": 1})
    val = make("val", {"b.png": 2}, categories=categories, labels=(1,))
    (finding,) = compare_splits(train, val)
    assert (finding.code, finding.severity) == ("split-categories-differ", Severity.ERROR)
    assert "1: dent, 2: scratch" in finding.message
    assert finding.hint


def test_row_21_names_count_not_ids(make):
    train = make("train", {"a.png": 1})
    val = make("val", {"b.png": 2}, categories=((0, "dent"), (90, "scratch")), labels=(0, 90))
    assert compare_splits(train, val) == ()

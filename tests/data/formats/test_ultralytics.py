"""What is written for Ultralytics, tried with it; skipped where it is not installed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from scantling.data.convert import convert_data
from scantling.data.formats.locations import read_location
from scantling.data.formats.write_yolo import settings_text


def test_settings_have_no_path_and_the_names_of_splits_that_ultralytics_wants():
    text = settings_text(("train2017", "valid", "night"), ["nut"], polygons=True)
    assert text == (
        'train: images/train2017\nval: images/valid\nnight: images/night\ntask: segment\nnames:\n  0: "nut"\n'
    ).replace("train:", '"train":').replace("val:", '"val":').replace("night:", '"night":')


@pytest.fixture
def parts(tmp_path):
    """Two splits; one object per image, in train a turned four-cornered mask."""
    rng = np.random.default_rng(0)
    root = tmp_path / "parts"
    for split, points in (("train", [30, 10, 50, 30, 30, 50, 10, 30]), ("valid", None)):
        folder = root / "images" / split
        folder.mkdir(parents=True)
        images = [
            {"id": i, "file_name": f"{split}/{split}{i}.png", "width": 80, "height": 60} for i in (1, 2)
        ]
        for image in images:
            pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / image["file_name"])
        shape = {"segmentation": [points]} if points else {}
        annotations = [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [10, 10, 40, 40], "iscrowd": 0, **shape}
            for i in (1, 2)
        ]
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 7, "name": "nut: 1.10"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def test_what_is_written_is_read_back_without_a_question(parts, tmp_path):
    convert_data(parts, "yolo", tmp_path / "yolo")
    train = read_location(f"{tmp_path / 'yolo'}:train")
    assert [a.segmentation is not None for many in train.annotations for a in many] == [True, True]
    assert read_location(f"{tmp_path / 'yolo'}:val").num_annotations == 2


@pytest.mark.parametrize("boxes_only", [True, False])
def test_ultralytics_finds_every_image_and_label_wherever_it_is_started(
    parts, tmp_path, monkeypatch, boxes_only
):
    data = pytest.importorskip("ultralytics.data")
    utils = pytest.importorskip("ultralytics.data.utils")
    convert_data(parts, "yolo", tmp_path / "yolo", boxes_only=boxes_only)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = utils.check_det_dataset(str(tmp_path / "yolo" / "data.yaml"))
    assert settings["names"] == {0: "nut: 1.10"}
    for split, name in (("train", "train"), ("val", "valid")):
        assert settings[split] == str(tmp_path / "yolo" / "images" / name)
        task = "detect" if boxes_only else "segment"  # one polygon in the set: every row is one
        found = data.YOLODataset(img_path=settings[split], data=settings, task=task)
        assert len(found.labels) == 2
        for label in found.labels:
            assert label["cls"].tolist() == [[0]]
            assert label["bboxes"][0] == pytest.approx([30 / 80, 0.5, 0.5, 40 / 60], abs=1e-6)
            assert len(label["segments"]) == (task == "segment")

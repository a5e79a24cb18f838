"""Damaged pixels: found before training where that is cheap, and left out and counted where the user says so."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import read_coco
from scantling.data.health import images as image_health
from scantling.data.health.images import look_before_training
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import LoaderConfig, TrainLoader
from scantling.data.splits import DataConfig, read_run_data
from scantling.errors import DataError
from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.source import read_crops

COUNT = 6


@pytest.fixture
def data(tmp_path):
    """Six noisy JPEGs in train and one in val, each with an object."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("val", 1)):
        images = [
            {"id": n, "file_name": f"{split}{n}.jpg", "width": 64, "height": 48} for n in range(1, count + 1)
        ]
        for image in images:
            pixels = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / image["file_name"])
        labels = [
            {"id": image["id"], "image_id": image["id"], "category_id": 1, "bbox": [5, 5, 30, 20]}
            for image in images
        ]
        content = {"images": images, "annotations": labels, "categories": [{"id": 1, "name": "dent"}]}
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def cut_off(path):
    """Its header stays whole."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def codes(error):
    return [finding.code for finding in error.value.findings if finding.severity == "error"]


def test_they_are_an_error_before_anything_starts(data):
    cut_off(data / "images" / "train3.jpg")
    cut_off(data / "images" / "val1.jpg")
    with pytest.raises(DataError) as error:
        read_run_data(DataConfig(root=str(data)), "val")
    assert codes(error) == ["image-damaged", "image-damaged"]
    with pytest.raises(DataError) as error:
        read_crops(data, PretrainConfig())
    assert codes(error) == ["image-damaged"]
    assert len(read_run_data(DataConfig(root=str(data), decode=False), "val").train) == COUNT


def test_they_are_left_out_and_counted_where_the_user_says_so(data):
    cut_off(data / "images" / "train3.jpg")
    train = read_run_data(DataConfig(root=str(data), skip_invalid=True), "val").train
    assert [image.id for image in train.images] == [1, 2, 4, 5, 6]
    (dropped,) = (finding for finding in train.findings if finding.code == "images-dropped")
    assert "1 of 6 images" in dropped.message
    cut = read_crops(data, PretrainConfig(skip_invalid=True)).images
    assert {image.name for image in cut} == {"val1.jpg", *(f"train{n}.jpg" for n in (1, 2, 4, 5, 6))}
    assert len(read_crops(data / "images", PretrainConfig()).images) == COUNT  # a folder without labels


def test_a_large_set_is_decoded_when_asked_or_when_images_are_to_be_left_out(data, monkeypatch):
    dataset = read_coco(data / "annotations" / "train.json")
    decoded = {
        (limit, decode, skip): look_before_training(dataset, decode=decode, skip_invalid=skip).decode
        for limit in (0, 1 << 40)
        for decode in (None, True, False)
        for skip in (False, True)
        if monkeypatch.setattr(image_health, "CHEAP_PIXELS", limit) is None
    }
    assert {case for case, looked in decoded.items() if not looked} == {
        (0, None, False), (0, False, False), (0, False, True), (1 << 40, False, False), (1 << 40, False, True)
    }  # fmt: skip


def test_a_file_is_decoded_once_until_it_changes(data, monkeypatch):
    decoded = []
    original = image_health.decode_image
    monkeypatch.setattr(
        image_health, "decode_image", lambda *given: decoded.append(given[2]) or original(*given)
    )
    for _ in range(2):
        read_run_data(DataConfig(root=str(data)), "val")
    assert len(decoded) == COUNT + 1
    cut_off(data / "images" / "train3.jpg")
    with pytest.raises(DataError):
        read_run_data(DataConfig(root=str(data)), "val")
    assert len(decoded) == COUNT + 2


def _as_it_is(sample, *_):
    return sample


def loader_of(data, *, skip_invalid, workers=0):
    dataset = DetectionDataset(
        read_coco(data / "annotations" / "train.json"), _as_it_is, seed=1, skip_invalid=skip_invalid
    )
    return TrainLoader(dataset, LoaderConfig(batch_size=2, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_become_unreadable_during_training_are_replaced_and_counted(data, caplog, workers):
    loader = loader_of(data, skip_invalid=True, workers=workers)
    whole = [batch.image_ids for batch in loader.epoch(0)]
    assert loader.left_out == {}
    cut_off(data / "images" / "train3.jpg")
    (data / "images" / "train5.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        epochs = [[batch.image_ids for batch in loader.epoch(0)] for _ in range(2)]
    replaced = {3: 4, 5: 6}
    assert epochs == 2 * [[[replaced.get(image, image) for image in batch] for batch in whole]]
    assert set(loader.left_out) == {"train3.jpg", "train5.jpg"}
    assert "image-damaged" in loader.left_out["train3.jpg"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "2 of 6 images so far" in told[-1]
    loader.close()


def test_without_the_user_s_word_training_stops(data):
    cut_off(data / "images" / "train3.jpg")
    with pytest.raises(DataError, match="image-damaged"):
        list(loader_of(data, skip_invalid=False).epoch(0))


def test_a_set_without_a_readable_image_is_an_error(data):
    for file in (data / "images").glob("train*"):
        cut_off(file)
    with pytest.raises(DataError, match="none of its 6 images"):
        list(loader_of(data, skip_invalid=True).epoch(0))

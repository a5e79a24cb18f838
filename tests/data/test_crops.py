"""What is cut out, and what the store keeps of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import read_coco
from scantling.data.formats.delftbikes import STATES
from scantling.data.formats.locations import read_location
from scantling.data.images.open import open_image
from scantling.errors import DataError
from scantling.pretrain.crop_store import DATA_NAME, INDEX_NAME, open_store
from scantling.pretrain.crops import (
    NO_LABEL,
    CropFileConfig,
    cut,
    image_crops,
    object_crops,
    padded_box,
    stored_pixels,
)
from scantling.synth.synth import SynthConfig, write_synth

LARGE = 10**9


@pytest.fixture
def pictures(tmp_path, content):
    """The folder of the sound COCO file, with smooth pictures in it."""
    rng = np.random.default_rng(0)
    for record in content["images"]:
        path = tmp_path / "images" / record["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((record["width"], record["height"]), Image.Resampling.BICUBIC).save(
            path
        )
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def dataset(pictures):
    return read_coco(pictures / "train.json", pictures / "images")


def built(pictures) -> float:
    """When the store was last built."""
    return (pictures / "store" / DATA_NAME).stat().st_mtime_ns


def opened(pictures, plan, config=None, max_pixels=LARGE, workers=0):
    return open_store(
        pictures / "store", plan, config or CropFileConfig(), max_pixels=max_pixels, workers=workers
    )


def test_a_box_gets_its_margin_inside_the_image():
    assert padded_box((10, 20, 40, 60), 0.1, (80, 100)) == (7, 16, 43, 64)
    assert padded_box((10.4, 20.6, 40, 60), 0.0, (80, 100)) == (10, 20, 40, 60)  # rounded outwards
    assert padded_box((0, 0, 2, 80), 0.5, (80, 100)) == (0, 0, 3, 80)


def test_a_crop_is_reduced_to_the_pixels_that_training_can_use():
    assert stored_pixels(224, 0.2) == 250_880
    pixels = np.zeros((300, 400, 3), np.uint8)
    assert cut(pixels, (0, 0, 400, 300), 250_880).shape == (300, 400, 3)  # never enlarged
    assert cut(pixels, (0, 0, 400, 300), 30_000).shape == (150, 200, 3)  # aspect kept
    assert cut(pixels, (0, 0, 400, 1), 100).shape == (1, 200, 3)  # no side vanishes


def test_every_object_of_sufficient_size_is_one_crop(dataset):
    """Of three objects one is a crowd, and one has a box of some 10 x 20."""
    plan = object_crops({"train": dataset}, CropFileConfig(context=0.0, min_side=1))
    windows = [window for image in plan.images for window in image.windows]
    crowds = sum(annotation.is_crowd for annotations in dataset.annotations for annotation in annotations)
    assert (len(plan), plan.left_out, crowds) == (2, 1, 1)
    assert len({window.crop_id for window in windows}) == 2
    assert plan.class_names == dataset.class_names
    smaller = object_crops({"train": dataset}, CropFileConfig(min_side=15))
    assert (len(smaller), smaller.left_out) == (1, 2)


def test_categories_of_several_splits_are_one_by_name(dataset):
    other = replace(dataset, categories=tuple(replace(c, id=50 - c.id) for c in dataset.categories))
    plan = object_crops({"train": dataset, "val": other}, CropFileConfig(min_side=1))
    assert plan.class_names == dataset.class_names
    assert len({window.crop_id for image in plan.images for window in image.windows}) == len(plan)


def test_the_store_gives_back_what_was_cut(pictures, dataset):
    plan = object_crops({"train": dataset}, CropFileConfig(min_side=3))
    store = opened(pictures, plan, CropFileConfig(min_side=3, quality=100))
    flat = [(image, window) for image in plan.images for window in image.windows]
    assert len(store) == len(flat)
    for index, (image, window) in enumerate(flat):
        expected = cut(open_image(image.path, size_hw=image.size_hw), window.box, LARGE).astype(int)
        assert np.abs(store.read(index).astype(int) - expected).mean() < 1.5  # what JPEG loses
        assert (store.ids[index], store.labels[index]) == (window.crop_id, window.label)
        assert store.images[index] == image.name


def test_a_store_is_kept_while_nothing_changed_and_is_the_same_with_workers(pictures, dataset):
    plan = object_crops({"train": dataset}, CropFileConfig())
    first = opened(pictures, plan)
    made = built(pictures)
    again = opened(pictures, plan)
    assert built(pictures) == made
    assert again.sha256 == first.sha256
    (pictures / "store" / INDEX_NAME).unlink()
    assert opened(pictures, plan, workers=2).sha256 == first.sha256


@pytest.mark.parametrize("change", ["label", "image", "settings", "size"])
def test_a_store_is_made_anew_when_something_changed(pictures, dataset, change):
    plan, config, max_pixels = object_crops({"train": dataset}, CropFileConfig()), CropFileConfig(), LARGE
    before = opened(pictures, plan).sha256
    made = built(pictures)
    if change == "label":
        moved = replace(dataset.annotations[0][0], box_xywh=(30.0, 20.0, 30.0, 40.0))
        objects = ((moved, *dataset.annotations[0][1:]), *dataset.annotations[1:])
        plan = object_crops({"train": replace(dataset, annotations=objects)}, config)
    elif change == "image":
        path = dataset.images[0].path
        Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
        os.utime(path, ns=(1, 1))
    elif change == "settings":
        config = CropFileConfig(quality=50)
    else:
        max_pixels = 64
    store = opened(pictures, plan, config, max_pixels)
    assert built(pictures) != made
    assert store.sha256 != before


@pytest.mark.parametrize("fault", ["cut off", "one bit", "index", "gone", "version"])
def test_a_damaged_store_is_made_anew(pictures, dataset, fault):
    plan = object_crops({"train": dataset}, CropFileConfig())
    whole = opened(pictures, plan).sha256
    data, index = (pictures / "store" / name for name in (DATA_NAME, INDEX_NAME))
    content = bytearray(data.read_bytes())
    if fault == "cut off":
        data.write_bytes(content[:-7])
    elif fault == "one bit":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif fault == "index":
        index.write_bytes(index.read_bytes()[:40])
    elif fault == "gone":
        data.unlink()
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "format_version": 0}))
    store = opened(pictures, plan)
    assert store.sha256 == whole
    assert store.read(len(store) - 1).size > 0


def test_an_image_that_cannot_be_read_leaves_no_store(pictures, dataset):
    dataset.images[-1].path.write_bytes(b"no image")
    with pytest.raises(DataError, match="b.png|a.png"):
        opened(pictures, object_crops({"train": dataset}, CropFileConfig()))
    assert not (pictures / "store" / INDEX_NAME).exists()


def test_nothing_to_cut_out_is_said(pictures, dataset):
    plan = object_crops({"train": dataset}, CropFileConfig(min_side=1000))
    with pytest.raises(DataError, match=f"{dataset.num_annotations} were left out"):
        opened(pictures, plan)


def test_images_without_labels_are_crops_too(pictures, dataset):
    whole = image_crops({"photos": dataset.images})
    assert [image.windows[0].box for image in whole.images] == [(0, 0, 100, 80)] * 2
    parts = image_crops({"photos": dataset.images}, random_per_image=5, seed=1)
    windows = [window for image in parts.images for window in image.windows]
    assert len(windows) == 10
    assert {window.label for window in windows} == {NO_LABEL}
    for left, top, right, bottom in (window.box for window in windows):
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 80
        assert 0.09 < (right - left) * (bottom - top) / 8000 < 0.52
    assert parts == image_crops({"photos": dataset.images[::-1]}, random_per_image=5, seed=1)
    assert parts != image_crops({"photos": dataset.images}, random_per_image=5, seed=2)
    assert set(opened(pictures, parts).labels.tolist()) == {NO_LABEL}


def test_parts_in_other_states_are_cut_out_when_asked_for(tmp_path):
    config = SynthConfig(size_hw=(96, 128), absent_rate=0.5)
    write_synth(tmp_path / "bikes", config, splits={"train": 2}, seed=0, layout="delftbikes")
    targets, everything = (
        object_crops({"train": read_location(tmp_path / "bikes", **states)}, CropFileConfig(min_side=1))
        for states in ({}, {"states": STATES})
    )
    assert len(everything) > len(targets) > 0

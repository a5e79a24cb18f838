"""From settings to transforms: what is on is done, in its order, and what cannot work is refused."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from data.samples.scenes import is_sound, same
from scantling.data.coco import read_coco
from scantling.data.io import write_json
from scantling.data.samples.augmentation import AugmentConfig, build_transforms, closing_of, uses_masks
from scantling.data.samples.copy_paste import Occurrences
from scantling.data.samples.dataset import DetectionDataset
from scantling.errors import ConfigError

EVERYTHING = {
    "instaboost": {"probability": 1.0},
    "copy_paste": {"probability": 1.0},
    "mosaic": {"probability": 1.0, "min_scale": 1.0, "max_scale": 1.0},
    "mixup": {"probability": 1.0},
}
OFF = {name: {**section, "probability": 0.0} for name, section in EVERYTHING.items()}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Four images 48 x 64 with two objects each, one of which is a crowd region in the last."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / f"{i}.png"), pixels)
        images.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
        for j, (x, y, w, h) in enumerate(((8, 8, 16, 12), (36, 20, 16, 24))):
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            crowd = i == 3 and j == 1
            mask = {"size": [48, 64], "counts": [0, 48 * 64]} if crowd else outline
            annotations.append(
                {
                    "id": 2 * i + j,
                    "image_id": i,
                    "category_id": j,
                    "bbox": [0, 0, 64, 48] if crowd else [x, y, w, h],
                    "segmentation": mask,
                    "iscrowd": int(crowd),
                }
            )
    names = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    write_json(root / "all.json", {"images": images, "annotations": annotations, "categories": names})
    return read_coco(root / "all.json")


def config_of(**settings):
    return AugmentConfig.model_validate({"short_side": 48, "long_side": 64, "flip": 0.0, **settings})


def dataset_of(coco, **settings):
    return DetectionDataset(coco, build_transforms(config_of(**settings), coco), seed=5, masks=True)


def test_at_probability_zero_every_image_stays_as_it_is_on_disk(coco):
    dataset = dataset_of(coco, **OFF)
    for index in range(4):
        assert same(dataset.get(index, 1), dataset.sample(index))


@pytest.mark.parametrize("name", ["instaboost", "copy_paste", "mosaic", "mixup"])
def test_each_option_alone_changes_the_image_and_can_be_closed(coco, name):
    settings = {name: EVERYTHING[name]}
    dataset = dataset_of(coco, **settings)
    changed, raw = dataset.get(0, 1), dataset.sample(0)
    assert not same(changed, raw)
    if name != "mixup":  # through which objects are seen that lie behind others
        assert is_sound(changed.instances)
    closing = closing_of(config_of(**settings, close_epochs=1, closed=[name]), 2, coco)
    closed = replace(dataset, closing=closing)
    assert same(closed.get(0, 0), dataset.get(0, 0))
    assert same(closed.get(0, 1), raw)


def test_mosaics_are_of_pasted_images_and_shine_through_each_other(coco):
    pasted, mosaics = dataset_of(coco, copy_paste=EVERYTHING["copy_paste"]), dataset_of(coco, **EVERYTHING)
    assert len(mosaics.get(0, 0).instances) > len(pasted.get(0, 0).instances)
    assert same(mosaics.get(2, 3), mosaics.get(2, 3))
    assert not same(mosaics.get(2, 3), mosaics.get(2, 4))


def test_closed_by_default_are_mosaic_and_mixup(coco):
    config = config_of(**EVERYTHING, close_epochs=1)
    end = config.at_the_end()
    assert (end.mosaic, end.mixup) == (None, None)
    assert (end.instaboost, end.copy_paste) == (config.instaboost, config.copy_paste)


def test_instaboost_needs_masks_and_copy_paste_takes_them_where_all_have_one(coco):
    first, *rest = coco.annotations
    bare = replace(coco, annotations=((replace(first[0], segmentation=None), first[1]), *rest))
    with pytest.raises(
        ConfigError, match=r"augment.instaboost: 1 of 8 annotations of .*all.json have no mask"
    ) as error:
        uses_masks(config_of(instaboost={}), bare)
    assert "copy_paste, which can do with boxes" in str(error.value.hint)
    assert uses_masks(config_of(instaboost={}), coco)
    assert uses_masks(config_of(copy_paste={}), coco)
    assert not uses_masks(config_of(copy_paste={}), bare)
    assert not uses_masks(config_of(mosaic={}), coco)


def test_occurrences_are_shares_of_the_image_without_crowd_regions(coco):
    found = Occurrences.of(coco)
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert found.images.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert found.sites[1] == pytest.approx([44 / 64, 32 / 48, np.sqrt(16 * 24 / (48 * 64))])


def test_copy_paste_without_a_data_set_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="needs the training set"):
        build_transforms(config_of(copy_paste={}))
    with pytest.raises(ValidationError, match="closed"):
        config_of(closed=["flips"])

"""Samples as read and as augmented, and where their randomness comes from."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from scantling.data.coco import read_coco
from scantling.data.io import write_json
from scantling.data.samples.augmentation import AugmentConfig, build_transforms, closing_of
from scantling.data.samples.dataset import DetectionDataset, draw_key, rng_for
from scantling.data.samples.transforms import Compose
from scantling.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Three images 40 x 60 of one colour each, with one box; the second with a mask in polygon form."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    images, annotations = [], []
    for i in range(3):
        pixels = np.full((40, 60, 3), 40 * i + 20, dtype=np.uint8)
        pixels[10:30, 15:45] = (0, 0, 255)  # BGR: red
        cv2.imwrite(str(root / "images" / f"{i}.png"), pixels)
        images.append({"id": i + 5, "file_name": f"{i}.png", "height": 40, "width": 60})
        polygon = [[15, 10, 45, 10, 45, 30, 15, 30]]
        annotations.append(
            {
                "id": i + 70,
                "image_id": i + 5,
                "category_id": 3,
                "bbox": [15, 10, 30, 20],
                "segmentation": polygon,
            }
        )
    document = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "part"}]}
    write_json(root / "all.json", document)
    return read_coco(root / "all.json")


def test_the_raw_sample_is_what_is_on_disk(coco):
    sample = DetectionDataset(coco, Compose(()), masks=True).sample(1)
    assert sample.image_id == 6
    assert sample.image[:, 0, 0].tolist() == [60, 60, 60]
    assert sample.image[:, 20, 30].tolist() == [255, 0, 0]  # RGB
    assert sample.instances.boxes.tolist() == [[15, 10, 45, 30]]
    assert sample.instances.labels.tolist() == [0]
    assert sample.instances.ids.tolist() == [71]
    assert sample.instances.masks.areas().tolist() == [600]
    assert DetectionDataset(coco, Compose(())).sample(1).instances.masks is None


def test_get_depends_on_seed_epoch_image_and_repeat_only(coco):
    transforms = build_transforms(AugmentConfig(short_side=(32, 40, 48, 64), brightness=0.5, turn=0.5))
    dataset = DetectionDataset(coco, transforms, seed=3)

    def picture(data, *args):
        image = data.get(*args).image
        return image.shape, image.tobytes()

    reference = picture(dataset, 0, 2)
    picture(dataset, 1, 2)
    assert picture(dataset, 0, 2) == reference
    others = [
        picture(dataset, 0, 3),
        picture(dataset, 0, 2, 1),
        picture(replace(dataset, seed=4), 0, 2),
    ]
    assert reference not in others
    alone = replace(dataset, coco=coco.subset([6]))  # now at position 0
    assert picture(alone, 0, 2) == picture(dataset, 1, 2)


def test_the_last_epochs_go_without_what_is_closed(coco):
    settings = {"short_side": (32, 48), "brightness": 0.5, "turn": 0.5}
    config = AugmentConfig(**settings, close_epochs=2, closed=("photometric", "turn"))
    plain = AugmentConfig(**{**settings, "photometric": 0.0, "turn": 0.0})
    whole, without = build_transforms(config), build_transforms(plain)
    dataset = DetectionDataset(coco, whole, seed=3, closing=closing_of(config, epochs=5))
    before, after = DetectionDataset(coco, whole, seed=3), DetectionDataset(coco, without, seed=3)
    for index, epoch in ((0, 0), (1, 2), (0, 3), (2, 4)):
        expected = (before if epoch < 3 else after).get(index, epoch)
        assert dataset.get(index, epoch).image.tobytes() == expected.image.tobytes()
    assert before.get(0, 3).image.tobytes() != after.get(0, 3).image.tobytes()


def test_nothing_is_closed_unless_it_was_open_and_epochs_are_left_for_it():
    assert closing_of(AugmentConfig(close_epochs=2), epochs=5) is None
    assert closing_of(AugmentConfig(turn=0.5, closed=("turn",)), epochs=5) is None
    assert closing_of(AugmentConfig(close_epochs=2, closed=("turn",)), epochs=1) is None  # it is off anyway
    with pytest.raises(ConfigError, match="5 epochs at the end are to go without turn, and training has 5"):
        closing_of(AugmentConfig(turn=0.5, close_epochs=5, closed=("turn",)), epochs=5)


def test_ids_of_different_type_are_different_images():
    draws = {image_id: rng_for(0, 0, image_id, "augment 0").random() for image_id in (1, "1", "01", 11)}
    assert len(set(draws.values())) == 4
    assert rng_for(0, 0, 1, "augment 0").random() == draws[1]


def test_neighbouring_arguments_give_unrelated_draws():
    """No two of several thousand keys are equal, and first draws fill the unit interval evenly."""
    arguments = [
        (s, e, i, p) for s in range(4) for e in range(10) for i in range(50) for p in ("order 0", "x")
    ]
    assert len({draw_key(*argument) for argument in arguments}) == len(arguments)
    counts = np.histogram([rng_for(*argument).random() for argument in arguments], bins=10, range=(0, 1))[0]
    assert np.abs(counts - 400).max() < 80  # 4 standard deviations


def test_the_streams_are_fixed_for_good():
    """A change here would silently change every run that is resumed or repeated."""
    assert draw_key(7, 1, "ä", "order 0").hex() == "958cc67fa76fc4fa9e9c524d305956f5"  # as by b2sum -l 128
    assert rng_for(7, 1, 42, "augment 0").integers(1000, size=4).tolist() == [474, 562, 749, 815]


def test_an_image_that_cannot_be_read_is_named(coco, tmp_path):
    record = replace(coco.images[0], path=tmp_path / "gone.png")
    dataset = DetectionDataset(replace(coco, images=(record, *coco.images[1:])), Compose(()))
    with pytest.raises(DataError) as caught:
        dataset.sample(0)
    assert "gone.png" in str(caught.value)
    torch.testing.assert_close(dataset.sample(1).instances.boxes, torch.tensor([[15.0, 10.0, 45.0, 30.0]]))

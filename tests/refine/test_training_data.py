"""Crops of training: targets exact, randomness only from seed, epoch and image, nothing lost uncounted."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from refine.conftest import SIZE_HW
from scantling.data.coco import read_coco
from scantling.data.images.open import open_image
from scantling.data.samples.dataset import rng_for
from scantling.data.samples.loader import EpochImage, LoaderConfig
from scantling.errors import DataError
from scantling.refine import training_data
from scantling.refine.training_data import (
    CropConfig,
    CropLoader,
    CropMaker,
    DecodedImages,
    LabelledBoxes,
    change_hsv,
    show_box,
)

PLAIN = CropConfig(flip=0, hsv=0, hsv_gamma=0, clahe=0)
SIDE = 64


def maker(dataset, config=PLAIN, seed=0) -> CropMaker:
    return CropMaker(LabelledBoxes(dataset, 4), config, SIDE, seed)


def white_on_black(box: tuple[int, int, int, int]) -> np.ndarray:
    pixels = np.zeros((90, 120, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels


@pytest.mark.parametrize("number", range(6))
def test_the_target_is_where_the_object_is_seen(number):
    """The object's half-grey edges in the crop, whatever padding and flips were drawn."""
    box, side = (40, 30, 70, 54), 96  # always enlarged, so that edges are not resampled away
    config = CropConfig(flip=0.5, vertical_flip=0.5, hsv=0, hsv_gamma=0, clahe=0, padding=(0.1, 0.6))
    crop, _, target = show_box(
        white_on_black(box), np.array(box, dtype=float), config, side, rng_for(number, 0, 1, "x")
    )
    level = crop[..., 0].astype(float) / 255
    seen = [
        *(edge_of(level.max(axis=axis)) for axis in (0, 1)),
        *(side - edge_of(level.max(axis=axis)[::-1]) for axis in (0, 1)),
    ]
    np.testing.assert_allclose(np.array(seen) / side, target, atol=0.25 / side)


def edge_of(profile: np.ndarray) -> float:
    """Where a rising profile crosses one half, in pixels with continuous edges."""
    right = int(np.argmax(profile > 0.5))
    below, above = profile[right - 1], profile[right]
    return right - 0.5 + (0.5 - below) / (above - below)


@pytest.mark.parametrize(
    ("side", "growth"), [(64, 0), (32, 1)]
)  # 32: a window of over 64 pixels gets even sides
def test_margins_and_the_wrong_centre_stay_within_their_limits(side, growth):
    box = np.array([30.0, 20.0, 80.0, 60.0])
    config = replaced(PLAIN, padding=(0.1, 0.3), centre_shift=0.2)
    margins, shifts = [], []
    for number in range(200):
        _, centre, target = show_box(
            white_on_black((30, 20, 80, 60)), box, config, side, rng_for(0, 0, number, "x")
        )
        sides = target[2:] - target[:2]
        margins += [*(target[:2] / sides), *((1 - target[2:]) / sides)]
        shifts += [*((centre - (target[:2] + target[2:]) / 2) / sides)]
    pixel = 1 / 40  # windows are rounded outwards to whole pixels
    assert 0.1 - 1e-9 <= min(margins) < 0.13
    assert 0.27 < max(margins) <= 0.3 + (1 + growth) * pixel
    assert -0.2 <= min(shifts) < -0.18
    assert 0.18 < max(shifts) <= 0.2


def replaced(config: CropConfig, **changes: object) -> CropConfig:
    return CropConfig.model_validate(config.model_dump() | changes)


def test_a_crop_that_cuts_the_object_has_a_target_that_ends_at_its_border():
    box = np.array([30.0, 20.0, 70.0, 60.0])
    _, _, target = show_box(
        white_on_black((30, 20, 70, 60)),
        box,
        replaced(PLAIN, padding=(-0.2, -0.2)),
        32,
        rng_for(0, 0, 0, "x"),
    )
    assert target.tolist() == [0, 0, 1, 1]


def test_crowds_and_tiny_boxes_are_left_out_and_counted(slabs):
    first, *others = slabs.annotations
    odd = (
        replace(first[0], is_crowd=True),
        replace(first[1], box_xywh=(10, 10, 30, 3.5)),
        replace(first[1], box_xywh=(-20, 10, 23, 30)),  # 3 px of it are in the image
        first[1],
    )
    labelled = LabelledBoxes(replace(slabs, annotations=(odd, *others)), 4)
    x, y, width, height = first[1].box_xywh
    assert labelled.usable[0].boxes.tolist() == [[x, y, x + width, y + height]]
    assert labelled.left_out == {"crowd": 1, "tiny": 2}
    assert labelled.num_boxes == 11


def test_one_random_box_of_each_image_or_all_of_them(slabs):
    one, all_boxes = maker(slabs), maker(slabs, replaced(PLAIN, all_boxes=True))
    assert (len(one.places), len(all_boxes.places)) == (6, 12)
    drawn = {tuple(one.show(EpochImage(0, repeat), 0).target.round(6)) for repeat in range(8)}
    assert len(drawn) == 8  # margins are drawn anew
    labels = {one.show(EpochImage(2, repeat), epoch).label for repeat in range(4) for epoch in range(4)}
    assert labels == {int(label) for label in one.labelled.usable[2].labels}
    batches = list(CropLoader(all_boxes, LoaderConfig(batch_size=4)).epoch(0))
    shown = sorted(image for batch in batches for image in batch.image_ids)
    assert shown == sorted([1, 2, 3, 4, 5, 6] * 2)


def test_equal_seeds_give_equal_crops_and_nothing_else_matters(slabs):
    config = CropConfig()
    loader = CropLoader(maker(slabs, config), LoaderConfig(batch_size=4, repeats=2))
    again = CropLoader(maker(slabs, config), LoaderConfig(batch_size=4, repeats=2, workers=1))
    plain = list(loader.epoch(1))
    assert len(plain) == loader.steps_per_epoch == 3
    try:
        for ours, theirs in zip(plain, again.epoch(1), strict=True):
            assert ours.image_ids == theirs.image_ids
            for name in ("crops", "labels", "centres", "targets"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
    finally:
        again.close()
    (late,) = loader.epoch(1, start_step=2)
    assert torch.equal(late.crops, plain[2].crops)
    assert not torch.equal(next(loader.epoch(2)).crops, plain[0].crops)
    other = CropLoader(maker(slabs, config, seed=1), LoaderConfig(batch_size=4, repeats=2))
    assert not torch.equal(next(other.epoch(1)).crops, plain[0].crops)


def test_the_order_of_records_changes_nothing(slabs):
    content = json.loads(slabs.file.read_text())
    for key in ("images", "annotations"):
        content[key].reverse()
    path = slabs.file.with_name("reversed.json")
    path.write_text(json.dumps(content))
    ours, theirs = (
        list(CropLoader(maker(dataset, CropConfig()), LoaderConfig(batch_size=3)).epoch(0))
        for dataset in (slabs, read_coco(path, slabs.image_root))
    )
    assert [batch.image_ids for batch in ours] == [batch.image_ids for batch in theirs]
    assert all(torch.equal(a.crops, b.crops) for a, b in zip(ours, theirs, strict=True))


def test_a_set_smaller_than_a_batch_is_one_batch_and_one_without_boxes_is_refused(slabs):
    assert CropLoader(maker(slabs), LoaderConfig(batch_size=50)).steps_per_epoch == 1
    assert len(next(CropLoader(maker(slabs), LoaderConfig(batch_size=50)).epoch(0))) == 6
    crowds = tuple(tuple(replace(a, is_crowd=True) for a in image) for image in slabs.annotations)
    with pytest.raises(DataError, match=r"no box to learn from.*'crowd': 12"):
        CropLoader(maker(replace(slabs, annotations=crowds)), LoaderConfig())


def test_images_are_decoded_once_as_far_as_they_fit(slabs, monkeypatch):
    asked = []

    def opened(path, **options):
        asked.append(path)
        return open_image(path, **options)

    monkeypatch.setattr(training_data, "open_image", opened)
    one = SIZE_HW[0] * SIZE_HW[1] * 3
    images = DecodedImages(slabs.images, budget=2 * one)
    for index in (0, 1, 2, 0, 1, 2, 2):
        record = slabs.images[index]
        assert np.array_equal(images[index], open_image(record.path, size_hw=record.size_hw))
    assert asked == [slabs.images[index].path for index in (0, 1, 2, 2, 2)]


def test_the_crops_of_kept_pixels_are_those_of_a_fresh_start(slabs):
    used, order = maker(slabs, CropConfig()), [EpochImage(p, 0) for p in range(6)]
    for epoch in range(2):
        for entry in order:
            again, fresh = used.show(entry, epoch), maker(slabs, CropConfig()).show(entry, epoch)
            assert np.array_equal(again.pixels, fresh.pixels)
            assert np.array_equal(again.target, fresh.target)


def colours(**probabilities: float) -> CropConfig:
    return CropConfig.model_validate({"hsv": 0, "hsv_gamma": 0, "clahe": 0} | probabilities)


def test_linear_colours_scale_saturation_and_value_and_turn_the_hue(picture):
    draws = np.array(
        [0, 1, 1, 1.0, 0.5, 0.0, 0.5, 0.5]
    )  # hue as far as it goes, saturation kept, value least
    changed = change_hsv(picture, colours(hsv=1, hue=0.1, value=0.4), draws)
    before, after = (cv2.cvtColor(p, cv2.COLOR_RGB2HSV).astype(int) for p in (picture, changed))
    np.testing.assert_allclose(after[..., 2], before[..., 2] * 0.6, atol=0.51)
    vivid = (before[..., 1] > 60) & (before[..., 2] > 100)
    turned = (after[..., 0] - before[..., 0])[vivid] % 180
    assert vivid.sum() > 100
    assert abs(np.median(turned) - 18) <= 1
    unchanged = change_hsv(picture, colours(hsv=1), np.full(8, 0.5)).astype(int)  # through HSV and back
    assert np.abs(unchanged - picture).mean() < 1


def test_power_curves_keep_black_and_full_and_clahe_raises_local_contrast(picture):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    bent = change_hsv(ramp, colours(hsv_gamma=1, value=0.5), np.array([1, 0, 1, 0.5, 0.5, 0.5, 0.5, 1.0]))
    assert bent[0, [0, 255], 0].tolist() == [0, 255]
    np.testing.assert_allclose(bent[0, :, 0], 255 * (np.arange(256) / 255) ** 1.5, atol=0.51)
    flat = (picture // 4 + 90).astype(np.uint8)
    equalised = change_hsv(flat, colours(clahe=1, clahe_limit=8), np.array([1, 1, 0.9, 0, 0, 0, 0, 0]))
    assert equalised.max(axis=2).std() > 1.5 * flat.max(axis=2).std()
    assert change_hsv(picture, colours(), np.zeros(8)) is picture

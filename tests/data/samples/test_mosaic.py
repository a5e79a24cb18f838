"""Mosaic and mixup: whose pixels are where, and whose objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.samples.scenes import Scenes, is_sound, same, scene
from scantling.data.samples.mosaic import GREY, MixUp, MixUpConfig, Mosaic, MosaicConfig, shifted
from scantling.data.samples.transforms import Compose, HorizontalFlip, ResizeShortSide

AS_IT_IS = Compose(())


def plain(level, boxes, image_id, size_hw=(60, 80), **more):
    """A scene on one grey."""
    sample = scene(boxes, size_hw, image_id=image_id, labels=[image_id] * len(boxes), **more)
    image = np.full((*size_hw, 3), level, dtype=np.uint8)
    return sample.replace(image=image.transpose(2, 0, 1))


FIRST = plain(10, [(2, 2, 78, 58)], 1)
OTHERS = Scenes(*(plain(10 * level, [(2, 2, 78, 58)], level) for level in (2, 3, 4)))


def mosaic(sample, bank, seed=0, each=AS_IT_IS, visible=0.0, **config):
    step = Mosaic(MosaicConfig(**{"probability": 1.0, **config}), each, visible)
    return step(sample, bank, np.random.default_rng(seed))


def test_four_images_meet_at_a_point_and_each_object_lies_on_its_own_pixels():
    centres = set()
    for seed in range(12):
        done = mosaic(FIRST, OTHERS, seed, min_scale=1.0, max_scale=1.0)
        assert done.size_hw == (60, 80)
        assert len(done.instances) == 4
        assert not (done.hwc == GREY).any()  # all images are larger than their quarters
        for label, (patch, (x, y)) in zip(done.instances.labels.tolist(), done.instances.masks, strict=True):
            shown = done.hwc[y : y + patch.shape[0], x : x + patch.shape[1]]
            assert (shown[patch > 0] == 10 * label).all()
        assert is_sound(done.instances)
        change = np.flatnonzero((done.hwc[0, 1:] != done.hwc[0, :-1]).any(axis=1))
        centres.update(change.tolist())
    assert len(centres) > 5
    assert min(centres) >= 19
    assert max(centres) <= 60


def test_small_images_touch_at_the_meeting_point_and_grey_is_around_them():
    done = mosaic(FIRST, OTHERS, 3, min_scale=0.25, max_scale=0.25)
    shown = (done.hwc != GREY).any(axis=2)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert (len(rows), len(columns)) == (30, 40)  # two quarters of 60 and of 80
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert sorted(np.unique(done.hwc)) == sorted(
        {10, GREY, *(10 * s.image_id for s in map(OTHERS.sample, OTHERS.asked[-3:]))}
    )


def test_each_image_goes_through_its_own_transforms_first():
    each = Compose((ResizeShortSide(short_side=(30,), long_side=40),))
    done = mosaic(FIRST, OTHERS, 0, each, min_scale=1.0, max_scale=1.0)
    assert done.size_hw == (30, 40)
    assert (done.image_id, done.frame.original_hw, done.frame.size_hw) == (1, (60, 80), (30, 40))
    half = Compose((ResizeShortSide(short_side=(30,), long_side=40), HorizontalFlip(probability=1.0)))
    assert same(
        mosaic(FIRST, OTHERS, probability=0.0, each=half), half(FIRST, OTHERS, np.random.default_rng(0))
    )


def test_the_frame_leads_the_first_image_to_its_quarter():
    for seed in range(4):
        done = mosaic(FIRST, OTHERS, seed, min_scale=0.5, max_scale=0.5)
        box = done.frame.apply_boxes(FIRST.instances.boxes)[0]
        found = done.instances.boxes[done.instances.labels == 1][0]
        visible = torch.cat([torch.maximum(box[:2], found[:2]), torch.minimum(box[2:], found[2:])])
        assert torch.allclose(visible, found, atol=1)


def test_an_object_that_a_quarter_cuts_too_much_is_dropped():
    tall = plain(10, [(2, 2, 78, 58), (2, 2, 6, 6)], 1)
    kept = [
        len(mosaic(tall, Scenes(plain(20, [], 2)), seed, visible=0.6, min_scale=2.0, max_scale=2.0).instances)
        for seed in range(20)
    ]
    assert set(kept) <= {0, 1}
    assert 0 in kept


def test_at_probability_zero_nothing_is_mixed():
    bank = Scenes(FIRST)
    assert mosaic(FIRST, bank, probability=0.0) is FIRST
    assert MixUp(MixUpConfig(probability=0.0), AS_IT_IS, 0.1)(FIRST, bank, np.random.default_rng(0)) is FIRST
    assert bank.asked == []


def test_blended_pixels_are_a_weighted_mean_and_both_keep_their_objects():
    first, second = plain(0, [(2, 2, 40, 40)], 1), plain(200, [(10, 25, 60, 55)], 2, (80, 60))
    weights = []
    for seed in range(20):
        done = MixUp(MixUpConfig(probability=1.0), AS_IT_IS, 0.0)(
            first, Scenes(second), np.random.default_rng(seed)
        )
        assert done.size_hw == (60, 80)
        assert (done.hwc[:, 60:] == 0).all()  # the second is 60 wide
        (level,) = np.unique(done.hwc[:, :60])
        weights.append(1 - level / 200)
        assert done.instances.labels.tolist() == [1, 2]
        assert done.instances.boxes[0].tolist() == [2, 2, 40, 40]
        x1, y1, x2, y2 = done.instances.boxes[1].tolist()
        assert (x1, x2, y2 - y1) == (10, 60, 30)
        assert 5 <= y1 <= 25
    assert 0.3 < min(weights) < 0.5 < max(weights) < 0.7


def test_parts_keep_their_masks_and_boxes_together_when_they_shift():
    instances = scene([(3, 4, 13, 24), (20, 5, 30, 9)], (30, 40)).instances
    moved = shifted(instances, (17, 8), (60, 80))
    assert moved.boxes.tolist() == [[20, 12, 30, 32], [37, 13, 47, 17]]
    assert is_sound(moved)
    assert len(shifted(scene([], (30, 40)).instances, (1, 1), (60, 80))) == 0


def test_boxes_alone_are_mixed_too():
    bank = Scenes(plain(20, [(2, 2, 78, 58)], 2, masks=False))
    done = mosaic(plain(10, [(2, 2, 78, 58)], 1, masks=False), bank, 1, min_scale=1.0, max_scale=1.0)
    assert done.instances.masks is None
    assert len(done.instances) == 4
    with pytest.raises(ValidationError, match=r"min_scale 2\.0 is larger than max_scale 1\.0"):
        MosaicConfig(min_scale=2.0, max_scale=1.0)

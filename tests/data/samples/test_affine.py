"""Random affine maps: pixels, masks, boxes and Frame agree; by hand and by colour."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scantling.data.samples.affine import (
    AffineConfig,
    RandomAffine,
    affine_about_middle,
    ellipse_hull,
    move_by_affine,
    warp_pixels,
)
from scantling.data.samples.augmentation import AugmentConfig, build_transforms
from scantling.data.samples.geometry import View
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Frame, Sample

NOTHING = {"rotate": 0.0, "scale": (1.0, 1.0), "shear": 0.0, "translate": 0.0}


def scene(size_hw=(60, 80), *, with_masks=True, crowd=(False, False)) -> Sample:
    """Two shapes in colours of their own on black, red a triangle and green a ring's quarter, with masks of them."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    triangle = (columns >= 10) & (rows >= 12) & (columns + rows <= 50)
    quarter = (
        (np.hypot(columns - 72, rows - 52) < 26) & (np.hypot(columns - 72, rows - 52) > 14) & (columns <= 72)
    )
    dense = np.stack([triangle, quarter])
    pixels = np.zeros((*size_hw, 3), dtype=np.uint8)
    pixels[triangle], pixels[quarter] = (255, 0, 0), (0, 255, 0)
    masks = ImageMasks.from_dense(dense)
    instances = Instances(
        size_hw=size_hw,
        boxes=masks.boxes(),
        labels=torch.tensor([0, 1]),
        masks=masks if with_masks else None,
        is_crowd=torch.tensor(crowd),
        ids=torch.tensor([5, 6]),
    )
    return Sample(
        image=pixels.transpose(2, 0, 1), instances=instances, frame=Frame.identity(size_hw), image_id=1
    )


def test_the_map_is_the_one_worked_out_by_hand():
    """A canvas of 40 x 20 (width x height): its middle is (20, 10)."""
    turned = affine_about_middle((20, 40), rotate=90)
    assert turned @ [21, 10, 1] == pytest.approx([20, 11])  # what is right goes down: clockwise
    assert affine_about_middle((20, 40), scale=2) @ [21, 13, 1] == pytest.approx([22, 16])
    assert affine_about_middle((20, 40), shear=45) @ [20, 13, 1] == pytest.approx([17, 13])
    assert affine_about_middle((20, 40), shift_xy=(3, -1)) @ [0, 0, 1] == pytest.approx([3, -1])
    whole = affine_about_middle((20, 40), rotate=90, scale=2, shear=45, shift_xy=(1, 0))
    assert whole @ [20, 13, 1] == pytest.approx(
        [20 + 1 - 6, 10 - 6]
    )  # scaled (0, 6), sheared (-6, 6), turned (-6, -6)


def test_the_hull_of_an_ellipse_is_the_one_worked_out_by_hand():
    box = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    turned = affine_about_middle((2, 4), rotate=90)
    assert ellipse_hull(box, turned)[0].tolist() == pytest.approx([1, -1, 3, 3])
    circle = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    assert ellipse_hull(circle, affine_about_middle((4, 4), rotate=30))[0].tolist() == pytest.approx(
        [1, 1, 3, 3]
    )
    half = math.sqrt((2**2 + 1**2) / 2)  # half axes 2 and 1 at 45 degrees
    turned = affine_about_middle((2, 4), rotate=45)
    assert ellipse_hull(box, turned)[0].tolist() == pytest.approx([2 - half, 1 - half, 2 + half, 1 + half])
    assert ellipse_hull(torch.zeros(0, 4), turned).shape == (0, 4)


@pytest.mark.parametrize(
    ("seed", "scale"), [(0, (0.6, 1.4)), (1, (0.6, 1.4)), (2, (0.6, 1.4)), (3, (0.35, 0.45))]
)
def test_masks_and_boxes_lie_on_the_pixels_that_are_seen(seed, scale):
    """Colours tell where objects really are: a mask is on where a colour is half on, or more.

    A strong reduction averages squares of pixels first, a mask from its own corner on and the image from its: a few
    pixels of the border differ.
    """
    before = scene()
    config = AffineConfig(probability=1.0, rotate=40.0, scale=scale, shear=15.0, translate=0.15)
    after = RandomAffine(config=config)(before, None, np.random.default_rng(seed))
    assert not np.array_equal(after.image, before.image)
    dense = after.instances.masks.to_dense().numpy()
    assert len(dense)
    for label, mask, box in zip(after.instances.labels.tolist(), dense, after.instances.boxes, strict=True):
        seen = after.image[label] >= 128
        assert (mask != seen).sum() <= (0.01 if scale[0] > 0.5 else 0.05) * seen.sum()
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == tight


def test_the_frame_leads_back_to_the_original_pixels():
    """A single bright pixel is where the Frame says, also after a resize in the same pass."""
    sample = scene((64, 96))
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[36:40, 60:64] = 255
    sample = sample.replace(image=pixels.transpose(2, 0, 1))
    config = AugmentConfig(
        short_side=48, long_side=72, flip=1.0, affine=AffineConfig(probability=1.0, rotate=30.0)
    )
    after = build_transforms(config.model_copy(update={"flip": 0.0}))(sample, None, np.random.default_rng(3))
    weight = after.image[0].astype(float)
    rows, columns = np.mgrid[:48, :72] + 0.5
    centre = np.array([(columns * weight).sum(), (rows * weight).sum(), weight.sum()]) / weight.sum()
    assert after.frame.inverse() @ centre == pytest.approx([62, 38], abs=0.15)


def test_resize_and_map_are_one_pass_over_the_pixels():
    """The result is that of the joined map, not of two resamplings."""
    sample = scene((64, 96))
    transform = RandomAffine(config=AffineConfig(probability=1.0))
    view = View.of(sample).resized((96, 144))
    after = transform.move(sample, view, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.random()
    own = transform.config.draw((96, 144), rng)
    joined = np.column_stack([own[:, :2] @ view.matrix[:, :2], own[:, 2]])
    assert np.array_equal(after.hwc, warp_pixels(sample.hwc, joined, (96, 144)))
    assert after.frame.matrix == pytest.approx(joined)


def test_without_masks_boxes_are_around_the_ellipse_and_clipped():
    sample = scene(with_masks=False)
    matrix = affine_about_middle((60, 80), rotate=20, shift_xy=(20, 0))
    moved = move_by_affine(sample.instances, matrix, (60, 80))
    expected = ellipse_hull(sample.instances.boxes, matrix)
    assert expected[1, 2] > 80
    expected[:, 0::2] = expected[:, 0::2].clamp(0, 80)
    expected[:, 1::2] = expected[:, 1::2].clamp(0, 60)
    assert torch.equal(moved.boxes, expected)


def test_what_is_left_too_little_of_goes_and_crowd_regions_stay():
    """Shifted so that a third of the triangle's pixels is left."""
    triangle = scene().instances.masks.to_dense()[0].numpy()
    shift = next(s for s in range(60) if triangle[:, s:].sum() < triangle.sum() / 3)
    matrix = affine_about_middle((60, 80), shift_xy=(-float(shift), 0))
    kept = triangle[:, shift:].sum() / triangle.sum()
    for crowd, rule, ids in [
        ((False, False), kept - 1e-6, [5, 6]),
        ((False, False), kept + 1e-6, [6]),
        ((True, False), kept + 1e-6, [5, 6]),
    ]:
        moved = move_by_affine(scene(crowd=crowd).instances, matrix, (60, 80), min_visibility=rule)
        assert moved.ids.tolist() == ids
    gone = affine_about_middle((60, 80), shift_xy=(-90.0, 0))
    assert len(move_by_affine(scene(crowd=(True, True)).instances, gone, (60, 80))) == 0


def test_an_image_with_objects_keeps_one():
    """A map that can push everything out is drawn again, and at last given up."""
    sample = scene()
    only = sample.replace(instances=sample.instances[torch.tensor([0])])
    wild = RandomAffine(config=AffineConfig(probability=1.0, scale=(1.0, 1.0), translate=1.0))
    for seed in range(30):
        assert len(wild(only, None, np.random.default_rng(seed)).instances) == 1
    hopeless = RandomAffine(
        config=AffineConfig(probability=1.0, scale=(20.0, 20.0), rotate=0.0, translate=0.0)
    )
    after = hopeless(only, None, np.random.default_rng(0))
    assert np.array_equal(after.image, sample.image)
    empty = sample.replace(instances=sample.instances[torch.zeros(2, dtype=torch.bool)])
    assert not np.array_equal(hopeless(empty, None, np.random.default_rng(0)).image, sample.image)


def test_nothing_to_draw_changes_nothing_and_a_shift_is_exact():
    sample = scene()
    still = RandomAffine(config=AffineConfig(probability=1.0, **NOTHING))(
        sample, None, np.random.default_rng(0)
    )
    assert np.array_equal(still.image, sample.image)
    assert torch.equal(still.instances.boxes, sample.instances.boxes)
    shifted = warp_pixels(sample.hwc, np.array([[1.0, 0, 3], [0, 1, 2]]), (60, 80))
    assert np.array_equal(shifted[2:, 3:], sample.hwc[:-2, :-3])
    assert not shifted[:2].any()
    assert not shifted[:, :3].any()
    never = RandomAffine(config=AffineConfig(probability=0.0))(sample, None, np.random.default_rng(0))
    assert never.image is sample.image


def test_a_strong_reduction_counts_every_pixel():
    """Stripes of one pixel become an even grey, no pattern."""
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    matrix = affine_about_middle((256, 256), scale=0.2)
    small = warp_pixels(stripes, matrix, (256, 256))[115:141, 115:141]
    assert small.min() >= 97
    assert small.max() <= 103


def test_equal_generators_give_equal_pictures():
    pictures = [
        RandomAffine(config=AffineConfig(probability=1.0))(scene(), None, np.random.default_rng(seed)).image
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match=r"first limit 2\.0 is above"):
        AffineConfig(scale=(2.0, 1.0))

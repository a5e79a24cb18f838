"""Blur, noise, JPEG artefacts and cut-out: values worked out by hand, and what must not change."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from scantling.data.samples.augmentation import AugmentConfig, build_transforms, closing_of
from scantling.data.samples.degrade import (
    Blur,
    CutOut,
    Jpeg,
    Noise,
    add_noise,
    as_jpeg,
    blur_gaussian,
    blur_motion,
    hidden_shares,
    motion_kernel,
)
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Frame, Sample


def impulse(side=15, value=240):
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[side // 2, side // 2] = value
    return pixels


def sample_of(pixels, boxes=((2, 2, 8, 8),), dense=None, crowd=None) -> Sample:
    size_hw = pixels.shape[:2]
    instances = Instances(
        size_hw=size_hw,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        masks=None if dense is None else ImageMasks.from_dense(np.asarray(dense)),
        is_crowd=torch.tensor(crowd if crowd is not None else [False] * len(boxes), dtype=torch.bool),
    )
    return Sample(
        image=pixels.transpose(2, 0, 1), instances=instances, frame=Frame.identity(size_hw), image_id=1
    )


def textured(size_hw=(40, 50), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def test_gaussian_blur_has_the_weights_of_the_normal_distribution():
    weights = np.exp(-0.5 * np.arange(-7, 8) ** 2 / 1.5**2)
    weights /= weights.sum()
    blurred = blur_gaussian(impulse(), 1.5)[..., 0]
    assert np.abs(blurred - 240 * np.outer(weights, weights)).max() <= 1
    even = np.full((9, 9, 3), 77, dtype=np.uint8)
    assert np.array_equal(blur_gaussian(even, 3.0), even)


def test_motion_blur_is_the_share_of_the_line_in_each_pixel():
    assert motion_kernel(3, 0)[2] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=0.01)
    assert motion_kernel(2, 0)[1] == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    assert motion_kernel(5, 90)[:, 3] == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0], abs=0.01)
    assert motion_kernel(1, 0)[1] == pytest.approx([0, 1, 0], abs=0.01)
    diagonal = motion_kernel(3 * math.sqrt(2), 45)  # three pixels corner to corner
    assert np.diag(diagonal)[1:-1] == pytest.approx([1 / 3] * 3, abs=0.02)
    assert all(
        motion_kernel(length, angle).sum() == pytest.approx(1)
        for length in (1, 4.3, 9)
        for angle in (0, 33, 120)
    )
    blurred = blur_motion(impulse(), 3, 0)
    assert blurred[7, 5:10, 0].tolist() == pytest.approx([0, 80, 80, 80, 0], abs=2)
    assert not blurred[6].any()


def test_noise_has_the_strength_asked_for_and_no_colour_of_its_own():
    grey = np.full((100, 100, 3), 128, dtype=np.uint8)
    noisy = add_noise(grey, 10.0, np.random.default_rng(0)).astype(float) - 128
    assert noisy.std() == pytest.approx(10, rel=0.02)
    assert np.abs(noisy.mean(axis=(0, 1))).max() < 0.3
    assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.04
    black = add_noise(np.zeros_like(grey), 20.0, np.random.default_rng(0))
    assert (black == 0).mean() == pytest.approx(0.5, abs=0.02)  # clipped, not wrapped round


def test_jpeg_is_what_another_library_makes_of_it():
    """Smooth colours, so that both decoders' interpolation of colours hardly matters."""
    rows, columns = np.mgrid[:48, :64]
    pixels = np.stack([rows * 5, columns * 4, 255 - rows * 3], axis=-1).astype(np.uint8)
    for quality, slack in ((95, 4), (20, 8)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2)
        theirs = np.asarray(Image.open(buffer)).astype(int)
        assert np.abs(as_jpeg(pixels, quality) - theirs).max() <= slack
    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[..., 0] = 250
    assert np.abs(as_jpeg(red, 90).astype(int) - red).max() <= 3  # red stays red
    errors = [
        np.abs(as_jpeg(textured(), quality).astype(int) - textured()).mean() for quality in (90, 50, 10)
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("step", [Blur(probability=1.0), Noise(probability=1.0), Jpeg(probability=1.0)])
def test_pixels_change_and_nothing_else_does(step):
    sample = sample_of(textured())
    after = step(sample, None, np.random.default_rng(0))
    assert not np.array_equal(after.image, sample.image)
    assert after.instances is sample.instances
    assert after.frame is sample.frame
    again = step(sample, None, np.random.default_rng(0))
    assert np.array_equal(after.image, again.image)
    assert not np.array_equal(after.image, step(sample, None, np.random.default_rng(1)).image)


@pytest.mark.parametrize("kind", [Blur, Noise, Jpeg, CutOut])
def test_it_happens_as_often_as_is_said(kind):
    sample = sample_of(textured((12, 12)), boxes=[])
    step, rng = kind(probability=0.3), np.random.default_rng(0)
    changed = sum(step(sample, None, rng).image is not sample.image for _ in range(1000))
    assert 250 <= changed <= 350
    assert kind(probability=0.0)(sample, None, rng) is sample


def test_the_share_of_motion_is_kept():
    """A motion along the rows leaves columns' sums; here told by which function is reached: length 1 does nothing."""
    sample = sample_of(textured())
    still = Blur(probability=1.0, motion=1.0, length=(1.0, 1.0))
    assert np.array_equal(still(sample, None, np.random.default_rng(0)).image, sample.image)
    gaussian = Blur(probability=1.0, motion=0.0, sigma=(2.0, 2.0), length=(1.0, 1.0))
    expected = blur_gaussian(sample.hwc, 2.0).transpose(2, 0, 1)
    assert np.array_equal(gaussian(sample, None, np.random.default_rng(0)).image, expected)


def test_hidden_shares_are_those_of_the_mask_else_of_the_box():
    dense = np.zeros((2, 20, 20), dtype=bool)
    dense[0, 0:10, 0:2] = True  # 20 pixels in a box of 10 x 10
    boxes = [(0, 0, 10, 10), (10, 10, 20, 20)]
    pixels = textured((20, 20))
    window = (0, 0, 12, 5)
    assert hidden_shares(sample_of(pixels, boxes, dense).instances, window).tolist() == [0.5, 0]
    window = (1, 0, 15, 15)
    assert hidden_shares(sample_of(pixels, boxes, dense).instances, window).tolist() == [0.5, 0.25]
    assert hidden_shares(sample_of(pixels, boxes).instances, window).tolist() == [0.9, 0.25]
    assert hidden_shares(sample_of(pixels, []).instances, window).shape == (0,)


def test_rectangles_have_the_area_and_aspect_asked_for():
    step = CutOut(probability=1.0, number=1, area=(0.04, 0.09), aspect=2.0)
    empty = sample_of(textured((100, 120)), boxes=[]).instances
    rng = np.random.default_rng(0)
    drawn = [window for _ in range(300) for window in step.place(empty, rng)]
    assert len(drawn) == 300
    sides = np.array([(x2 - x1, y2 - y1) for x1, y1, x2, y2 in drawn])
    areas, aspects = sides.prod(axis=1) / 12000, sides[:, 1] / sides[:, 0]
    assert areas.min() >= 0.037
    assert areas.max() <= 0.093
    assert 0.47 <= aspects.min() < 0.6
    assert 1.7 < aspects.max() <= 2.13
    corners = np.array(drawn)
    assert corners.min() == 0
    assert (corners[:, 2].max(), corners[:, 3].max()) == (120, 100)


@pytest.mark.parametrize("with_mask", [True, False])
def test_no_object_is_hidden_by_more_than_its_share_and_all_stay(with_mask):
    dense = np.zeros((3, 40, 50), dtype=bool)
    dense[0, 2:12, 3:13], dense[1, 20:38, 10:18], dense[2, 10:30, 30:48] = True, True, True
    boxes = [(3, 2, 13, 12), (10, 20, 18, 38), (30, 10, 48, 30)]
    step = CutOut(probability=1.0, number=8, area=(0.05, 0.3), max_hidden=0.4, fill="black")
    for seed in range(20):
        white = np.full((40, 50, 3), 255, dtype=np.uint8)
        sample = sample_of(white, boxes, dense if with_mask else None)
        after = step(sample, None, np.random.default_rng(seed))
        assert after.instances is sample.instances
        black = after.image[0] == 0
        assert all((black & mask).sum() <= 0.4 * mask.sum() for mask in dense)
    assert black.any()


def test_crowd_regions_may_be_hidden_whole():
    step = CutOut(probability=1.0, number=1, area=(0.9, 0.95), aspect=1.0, max_hidden=0.0, fill="black")
    pixels = np.full((20, 20, 3), 255, dtype=np.uint8)
    hidden = step(sample_of(pixels, [(5, 5, 15, 15)], crowd=[True]), None, np.random.default_rng(0))
    assert (hidden.image == 0).mean() > 0.85
    kept = step(sample_of(pixels, [(5, 5, 15, 15)]), None, np.random.default_rng(0))
    assert np.array_equal(kept.image, pixels.transpose(2, 0, 1))


def test_what_is_filled_in():
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, :20] = (200, 100, 50)
    one = {"probability": 1.0, "number": 1, "area": (0.1, 0.1), "aspect": 1.0}
    sample = sample_of(pixels, [])
    filled = CutOut(**one)(sample, None, np.random.default_rng(0)).hwc
    changed = (filled != pixels).any(axis=-1)
    assert changed.sum() == 13 * 13
    assert (filled[changed] == (100, 50, 25)).all()  # the mean of both halves
    noise = CutOut(**one, fill="noise")(sample, None, np.random.default_rng(0)).hwc[changed]
    assert len(np.unique(noise)) > 100
    assert pixels[0, 0].tolist() == [200, 100, 50]  # the given picture stays


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Blur, {"sigma": (2.0, 1.0)}),
        (Noise, {"sigma": (9.0, 1.0)}),
        (Jpeg, {"quality": (50, 20)}),
        (CutOut, {"area": (0.2, 0.1)}),
    ],
)
def test_limits_in_the_wrong_order_are_refused(kind, given):
    with pytest.raises(ValidationError, match="first limit"):
        kind(**given)


def test_a_quality_is_drawn_from_all_between_the_limits(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "scantling.data.samples.degrade.as_jpeg", lambda pixels, quality: drawn.append(quality) or pixels
    )
    step, rng = Jpeg(probability=1.0, quality=(10, 13)), np.random.default_rng(0)
    for _ in range(200):
        step(sample_of(textured((8, 8)), []), None, rng)
    assert set(drawn) == {10, 11, 12, 13}


def test_they_are_options_of_training_and_end_before_it_does():
    """Each changes the picture of an early epoch, and is gone in the last ones where `closed` names it."""
    sample = sample_of(textured((64, 64)))
    plain = {"short_side": 64, "long_side": 64, "flip": 0.0}
    sections = {
        "affine": {"probability": 1.0},
        "blur": {"probability": 1.0},
        "noise": {"probability": 1.0},
        "jpeg": {"probability": 1.0},
        "cut_out": {"probability": 1.0},
    }
    for name, section in sections.items():
        config = AugmentConfig.model_validate({**plain, name: section, "close_epochs": 2, "closed": (name,)})
        early = build_transforms(config)(sample, None, np.random.default_rng(0))
        closing = closing_of(config, 10)
        late = closing.transforms(sample, None, np.random.default_rng(0))
        assert closing.first_epoch == 8
        assert not np.array_equal(early.image, sample.image), name
        assert np.array_equal(late.image, sample.image), name
    assert AugmentConfig(blur=Blur()) == AugmentConfig.model_validate({"blur": {}})

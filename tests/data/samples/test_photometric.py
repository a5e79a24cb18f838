"""Colours: each factor does what its name says, and geometry stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as oracle

from scantling.data.samples.photometric import LUMA, ColourChange, Photometric, change_colours, gamma_table
from scantling.structures.instances import Instances
from scantling.structures.sample import Frame, Sample


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def flat(colour):
    return np.full((8, 8, 3), colour, dtype=np.uint8)


def test_no_change_is_the_same_array(pixels):
    assert change_colours(pixels, ColourChange()) is pixels


@pytest.mark.parametrize(
    ("change", "adjust"),
    [
        (ColourChange(brightness=1.3), lambda image: oracle.adjust_brightness(image, 1.3)),
        (ColourChange(brightness=0.6), lambda image: oracle.adjust_brightness(image, 0.6)),
        (ColourChange(saturation=1.7), lambda image: oracle.adjust_saturation(image, 1.7)),
        (ColourChange(saturation=0.2), lambda image: oracle.adjust_saturation(image, 0.2)),
        (ColourChange(contrast=1.5), lambda image: oracle.adjust_contrast(image, 1.5)),
        (ColourChange(contrast=0.4), lambda image: oracle.adjust_contrast(image, 0.4)),
        (ColourChange(gamma=1.8), lambda image: oracle.adjust_gamma(image, 1.8)),
    ],
)
def test_each_factor_agrees_with_torchvision(change, adjust):
    even = np.repeat(np.random.default_rng(1).integers(0, 256, (16, 48, 3), dtype=np.uint8), 4, axis=0)
    theirs = adjust(torch.from_numpy(even).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    ours = change_colours(even, change)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_hand_derived_values():
    assert change_colours(flat((100, 50, 200)), ColourChange(brightness=0.5))[0, 0].tolist() == [50, 25, 100]
    assert change_colours(flat((200, 200, 200)), ColourChange(brightness=2.0))[0, 0].tolist() == [
        255,
        255,
        255,
    ]
    grey = round(0.299 * 100 + 0.587 * 50 + 0.114 * 200)  # 82
    assert np.abs(change_colours(flat((100, 50, 200)), ColourChange(saturation=0.0)) - grey).max() <= 1
    table = gamma_table(2.0)
    assert (table[0], table[128], table[255]) == (0, 64, 255)  # 255 * (128 / 255)² = 64.25


def test_hue_keeps_brightness_and_grey_and_comes_round_after_one_turn(pixels):
    soft = (96 + pixels / 4).astype(np.uint8)  # no clipping
    rotated = change_colours(soft, ColourChange(hue=0.2))
    np.testing.assert_allclose(rotated @ LUMA, soft @ LUMA, atol=1.5)
    assert np.abs(rotated.astype(int) - soft).max() > 20
    assert np.abs(change_colours(flat((90, 90, 90)), ColourChange(hue=0.3)).astype(int) - 90).max() <= 1
    full = change_colours(soft, ColourChange(hue=1.0))
    assert np.abs(full.astype(int) - soft).max() <= 1


def test_contrast_keeps_the_mean():
    ramp = np.repeat(np.repeat(np.arange(64, 192, dtype=np.uint8)[None, :, None], 64, axis=0), 3, axis=2)
    for contrast in (0.5, 1.4):
        changed = change_colours(ramp, ColourChange(contrast=contrast))
        assert changed.mean() == pytest.approx(ramp.mean(), abs=0.5)
        assert changed.std() == pytest.approx(ramp.std() * contrast, rel=0.02)


def test_draws_cover_their_ranges():
    photometric = Photometric(brightness=0.3, contrast=0.2, saturation=0.5, hue=0.1, gamma=1.0)
    rng = np.random.default_rng(0)
    drawn = [photometric.draw(rng) for _ in range(500)]
    for name, low, high in (
        ("brightness", 0.7, 1.3),
        ("contrast", 0.8, 1.2),
        ("saturation", 0.5, 1.5),
        ("hue", -0.1, 0.1),
        ("gamma", 0.5, 2.0),
    ):
        values = [getattr(change, name) for change in drawn]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high


def test_probability_and_equal_consumption_of_randomness():
    rng = np.random.default_rng(0)
    photometric = Photometric(probability=0.25, brightness=0.3)
    happened = sum(photometric.draw(rng) is not None for _ in range(2000))
    assert 400 < happened < 600
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    Photometric(probability=0.0).draw(first)
    Photometric(probability=1.0, hue=0.2).draw(second)
    assert first.random() == second.random()


def test_geometry_and_source_stay(pixels):
    sample = Sample(
        image=pixels.transpose(2, 0, 1),
        instances=Instances.empty((64, 48), scored=False),
        frame=Frame.identity((64, 48)),
        image_id="a",
    )
    before = pixels.copy()
    after = Photometric(brightness=0.5, gamma=0.5)(sample, None, np.random.default_rng(1))
    assert after.instances is sample.instances
    assert after.frame is sample.frame
    assert (after.image != sample.image).any()
    np.testing.assert_array_equal(pixels, before)

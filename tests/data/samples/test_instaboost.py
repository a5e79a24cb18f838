"""InstaBoost: the heat map against a plain reference, and what may happen to an image."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.samples.scenes import Scenes, is_sound, same, scene
from scantling.data.samples.heat_map import BAND_WEIGHTS, BAND_WIDTH, REACH, bands, distances, heat_map
from scantling.data.samples.instaboost import (
    InstaBoost,
    InstaBoostConfig,
    about,
    allowed_shifts,
    inpainted,
    touching_groups,
    without,
)
from scantling.data.samples.paste import solid_masks

NONE = Scenes()


def plain_bands(mask):
    """Weight of every pixel by its chessboard distance from the mask, one by one."""
    on = np.argwhere(mask)
    weights = np.zeros(mask.shape)
    for place in np.ndindex(mask.shape):
        away = np.abs(on - place).max(axis=1).min()
        if 0 < away <= REACH:
            weights[place] = BAND_WEIGHTS[(away - 1) // BAND_WIDTH]
    return weights


def plain_distances(image, background, mask, reach_xy):
    """The published sum, place by place and pixel by pixel, as a mean over the pixels that both places have."""
    height, width = mask.shape
    grown = np.pad(mask, REACH + max(reach_xy))
    weights = plain_bands(grown)[REACH + max(reach_xy) :, REACH + max(reach_xy) :][:height, :width]
    result = np.full((2 * reach_xy[1] + 1, 2 * reach_xy[0] + 1), np.inf)
    for row, column in np.ndindex(result.shape):
        total = shared = 0.0
        for y, x in np.argwhere(weights > 0):
            far_y, far_x = y + row - reach_xy[1], x + column - reach_xy[0]
            if 0 <= far_y < height and 0 <= far_x < width:
                change = image[y, x].astype(float) - background[far_y, far_x]
                total += weights[y, x] * (change**2).sum()
                shared += weights[y, x]
        if shared > 0:
            result[row, column] = total / shared
    return result


@pytest.mark.parametrize(
    "corner", [(9, 8), (0, 3), (15, 13)]
)  # in the middle, at the left, at the far corner
def test_the_heat_map_is_that_of_a_plain_reference(corner):
    rng = np.random.default_rng(3)
    image, background = rng.integers(0, 256, (2, 18, 20, 3)).astype(np.uint8)
    mask = np.zeros((18, 20), dtype=np.uint8)
    x, y = corner
    mask[y : y + 5, x : x + 4] = 1
    mask[y, x + 1] = 0
    patch = np.ascontiguousarray(mask[y : y + 5, x : x + 4])
    expected = plain_distances(image, background, mask, (3, 2))
    found = distances(image, background, patch, corner, (3, 2))
    assert found == pytest.approx(expected, rel=1e-9)
    share = (expected - expected.min()) / (expected.max() - expected.min())
    heat = -np.log((share + 1e-3) / 1.001)
    assert heat_map(found) == pytest.approx(heat / heat.sum(), rel=1e-6, abs=1e-12)


def test_the_bands_are_four_pixels_each_and_weigh_less_outwards():
    weights = bands(np.ones((3, 3), dtype=np.uint8))
    assert weights.shape == (27, 27)
    assert weights[13].tolist() == [
        *[0.25] * 4,
        *[0.35] * 4,
        *[0.4] * 4,
        0,
        0,
        0,
        *[0.4] * 4,
        *[0.35] * 4,
        *[0.25] * 4,
    ]


def test_the_likeliest_place_is_where_the_surroundings_are_the_same():
    rng = np.random.default_rng(0)
    image = np.full((80, 80, 3), 90, dtype=np.uint8)
    ring = rng.integers(0, 256, (34, 34, 3)).astype(
        np.uint8
    )  # the surroundings of a 10 x 10 object, 12 around it
    image[3:37, 3:37] = ring
    background = image.copy()
    background[3:37, 3:37] = 90
    background[9:43, 8:42] = ring  # the same, six further down and five to the right
    found = heat_map(distances(image, background, np.ones((10, 10), dtype=np.uint8), (15, 15), (8, 8)))
    assert np.unravel_index(found.argmax(), found.shape) == (8 + 6, 8 + 5)
    assert found.sum() == pytest.approx(1)


def test_places_equally_far_are_equally_likely_and_impossible_ones_are_not():
    assert heat_map(np.array([[2.0, np.inf, 2.0]])).tolist() == [[0.5, 0, 0.5]]
    assert heat_map(np.full((2, 2), np.inf)).tolist() == [[0, 0], [0, 0]]


def test_whole_objects_stay_whole_and_cut_ones_at_their_border():
    def shifts(*args):
        return np.flatnonzero(allowed_shifts(3, *args)) - 3

    assert shifts((2, 10), (False, False), 12).tolist() == [-2, -1, 0, 1, 2]
    assert shifts((0, 10), (True, False), 40).tolist() == [-3, -2, -1, 0]
    assert shifts((0, 40), (True, True), 40).tolist() == [0]


def test_a_map_about_a_centre_leaves_the_centre_and_scales_the_rest():
    matrix = about(np.array([10.0, 20.0]), 2.0, math.pi / 2, (3, -1))
    assert matrix[:, :2] @ [10, 20] + matrix[:, 2] == pytest.approx([13, 19])
    assert matrix[:, :2] @ [11, 20] + matrix[:, 2] == pytest.approx([13, 21])  # x turns into y


def test_objects_that_touch_are_one_group_also_by_way_of_a_third():
    sample = scene([(0, 0, 10, 10), (40, 40, 50, 50), (20, 0, 30, 10), (10, 9, 20, 12), (30, 30, 40, 39)])
    groups = touching_groups(solid_masks(sample.instances), torch.arange(5))
    assert [group.tolist() for group in groups] == [[0, 2, 3], [1], [4]]
    alone = touching_groups(solid_masks(sample.instances), torch.tensor([0, 2]))
    assert [group.tolist() for group in alone] == [[0], [2]]


def test_a_hole_is_filled_from_around_it_and_from_nothing_else():
    for side in (6, 130):  # the second is filled at half the resolution
        image = np.full((side + 40, side + 40, 3), 77, dtype=np.uint8)
        image[20 : side + 20, 20 : side + 20] = 200
        hole = np.zeros(image.shape[:2], dtype=np.uint8)
        hole[20 : side + 20, 20 : side + 20] = 1
        assert (inpainted(image, hole) == 77).all()
    sample = scene([(20, 20, 40, 40), (41, 20, 60, 40)])
    kept = solid_masks(sample.instances)[slice(1, 2)].to_dense()[0].numpy()
    done = without(sample.hwc, solid_masks(sample.instances), [torch.tensor([0])], kept.astype(np.uint8))
    assert (done[20:40, 41:60] == 110).all()  # the neighbour is no hole
    assert not (done[20:40, 20:40] == 100).all(axis=2).any()
    assert (done[:17] == sample.hwc[:17]).all()


def boost(sample, seed=0, **config):
    step = InstaBoost(InstaBoostConfig(probability=1.0, colour_probability=0.0, **config), 0.1)
    return step(sample, NONE, np.random.default_rng(seed))


def test_objects_move_by_a_share_of_their_size_and_keep_who_they_are():
    sample = scene([(20, 15, 50, 45)], (60, 80), labels=[4])
    starts = set()
    for seed in range(12):
        done = boost(sample, seed, min_scale=1.0, max_scale=1.0, angle=0.0, consistent=False)
        assert (done.instances.labels.tolist(), done.instances.ids.tolist()) == ([4], [100])
        x1, y1, x2, y2 = done.instances.boxes[0].tolist()
        assert (x2 - x1, y2 - y1) == (30, 30)
        assert max(abs(x1 - 20), abs(y1 - 15)) <= 2  # a fifteenth of 30
        assert (done.hwc[int(y1) + 1 : int(y2) - 1, int(x1) + 1 : int(x2) - 1] == 100).all()
        starts.add((x1, y1))
    assert len(starts) > 5


def test_sizes_stay_in_their_range_and_are_drawn_from_all_of_it():
    sample = scene([(20, 10, 60, 50)], (60, 80))
    areas = [float(boost(sample, seed).instances.masks.areas()) / 1600 for seed in range(25)]
    assert 0.6 < min(areas) < 0.85
    assert 1.15 < max(areas) < 1.48


def test_what_the_border_cuts_stays_at_the_border_and_does_not_shrink():
    sample = scene([(0, 20, 20, 50)])
    for seed in range(8):
        box = boost(sample, seed, shift=0.3).instances.boxes[0].tolist()
        assert box[0] == 0
        assert box[3] - box[1] >= 30 or box[3] == 60


def test_crowd_regions_do_not_move_and_give_way():
    sample = scene([(30, 20, 50, 40), (0, 0, 80, 60)], crowd=[False, True])
    done = boost(sample, 1, shift=0.2)
    assert done.instances.is_crowd.tolist() == [True, False]
    crowd, thing = (mask for mask in done.instances.masks.to_dense().numpy())
    assert not (crowd & thing).any()
    assert not (
        crowd & sample.instances.masks.to_dense().numpy()[0]
    ).any()  # where the object was is no crowd


def test_an_image_without_anything_to_move_keeps_its_pixels():
    for sample in (scene([]), scene([(10, 10, 20, 20)], crowd=[True]), replace(scene([]), image_id="x")):
        assert same(boost(sample), sample)


def test_at_probability_zero_nothing_happens():
    sample = scene([(20, 15, 50, 45)])
    step = InstaBoost(InstaBoostConfig(probability=0.0), 0.1)
    assert step(sample, NONE, np.random.default_rng(0)) is sample


def test_boxes_alone_are_refused_and_so_is_standing_still():
    with pytest.raises(ValueError, match="found boxes alone"):
        boost(scene([(20, 15, 50, 45)], masks=False))
    with pytest.raises(ValidationError, match="leave instaboost out"):
        InstaBoostConfig(shift=0.0, min_scale=1.0, max_scale=1.0, angle=0.0)


rectangles = st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(1, 30), st.integers(1, 25)).map(
    lambda b: (b[0], b[1], min(b[0] + b[2], 80), min(b[1] + b[3], 60))
)


@settings(max_examples=25, deadline=None)
@given(boxes=st.lists(rectangles, max_size=6), seed=st.integers(0, 10_000), crowd=st.integers(0, 5))
def test_masks_stay_disjoint_and_boxes_tight(boxes, seed, crowd):
    sample = scene(boxes, crowd=[row == crowd for row in range(len(boxes))])
    done = boost(sample, seed, shift=0.2, angle=20.0)
    assert is_sound(done.instances)
    assert same(boost(sample, seed, shift=0.2, angle=20.0), done)

"""Geometry: after every transform the pixels, the boxes, the masks and the Frame tell the same story."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scantling.data.samples.augmentation import AugmentConfig, SideRange, build_transforms
from scantling.data.samples.geometry import View, render, resize_pixels
from scantling.data.samples.transforms import (
    Compose,
    Geometric,
    HorizontalFlip,
    PadTo,
    RandomCrop,
    RandomRotate90,
    RandomTile,
    ResizeShortSide,
    VerticalFlip,
    fit_size,
)
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Frame, Sample

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)


def painted(size_hw, boxes, *, crowd=None, with_masks=True) -> Sample:
    """A black image with one rectangle of pure colour per box (whole pixels), and the boxes as its truth."""
    height, width = size_hw
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    dense = np.zeros((len(boxes), height, width), dtype=bool)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = COLOURS[i]
        dense[i, y1:y2, x1:x2] = True
    instances = Instances(
        size_hw=size_hw,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)),
        masks=ImageMasks.from_dense(dense) if with_masks else None,
        is_crowd=torch.tensor(crowd if crowd is not None else [False] * len(boxes), dtype=torch.bool),
        ids=torch.arange(len(boxes)) + 100,
    )
    return Sample(
        image=pixels.transpose(2, 0, 1), instances=instances, frame=Frame.identity(size_hw), image_id=7
    )


def seen_box(sample: Sample, label: int) -> list[float]:
    """Extent of the pixels in which a colour is at least half on."""
    rows, columns = np.nonzero(sample.image[label] >= 128)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def apply(transform, sample: Sample, seed: int = 0) -> Sample:
    return transform(sample, None, np.random.default_rng(seed))


def assert_consistent(sample: Sample) -> None:
    """Colours, boxes and masks agree to within a pixel."""
    assert sample.instances.size_hw == sample.frame.size_hw == sample.size_hw
    dense = sample.instances.masks.to_dense().numpy()
    for i, label in enumerate(sample.instances.labels.tolist()):
        box = sample.instances.boxes[i].numpy()
        if (box[2:] - box[:2]).min() < 2:
            continue  # less than two pixels wide: half-on pixels may not exist
        np.testing.assert_allclose(seen_box(sample, label), box, atol=1.0)
        differing = dense[i] != (sample.image[label] >= 128)
        inside = cv2.erode(dense[i].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        outside = cv2.dilate(dense[i].astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
        assert not differing[inside | outside].any()


TRANSFORMS: dict[str, Geometric] = {
    "enlarge": ResizeShortSide(short_side=(150,), long_side=400),
    "reduce": ResizeShortSide(short_side=(37,), long_side=400),
    "square": ResizeShortSide(short_side=(90,)),
    "horizontal": HorizontalFlip(probability=1.0),
    "vertical": VerticalFlip(probability=1.0),
    "turn": RandomRotate90(probability=1.0),
    "crop": RandomCrop(size_hw=(60, 80)),
    "tile": RandomTile(side=70),
    "pad": PadTo(size_hw=(220, 230)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_transform_moves_pixels_boxes_masks_and_frame_together(name, seed):
    before = painted((100, 140), [(20, 30, 61, 70), (80, 12, 101, 33), (100, 60, 130, 95)])
    after = apply(TRANSFORMS[name], before, seed)
    assert_consistent(after)
    original = before.instances.boxes[after.instances.labels]
    mapped = after.frame.apply_boxes(original)
    limit = torch.tensor([*after.size_hw[::-1]] * 2)
    torch.testing.assert_close(mapped.clamp(min=0).minimum(limit), after.instances.boxes, atol=1.01, rtol=0)
    torch.testing.assert_close(after.frame.invert_boxes(mapped), original, atol=1e-3, rtol=0)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(TRANSFORMS)), max_size=5), seed=st.integers(0, 10**6))
def test_any_chain_of_transforms_stays_consistent(names, seed):
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(0, 70), rng.integers(0, 50)
    box = (x1, y1, x1 + int(rng.integers(12, 70)), y1 + int(rng.integers(12, 50)))
    after = apply(Compose(tuple(TRANSFORMS[name] for name in names)), painted((100, 140), [box]), seed)
    assert_consistent(after)


def test_edges_are_continuous_when_resizing():
    """A quarter-size resize keeps the centre of mass at x * scale; pixel-centre arithmetic would be 1.5 px off."""
    sample = painted((80, 120), [(8, 16, 48, 64)])
    for short, scale in ((20, 0.25), (320, 4.0)):
        after = apply(ResizeShortSide(short_side=(short,), long_side=9999), sample)
        weight = after.image[0].astype(float) / 255
        columns = np.arange(weight.shape[1]) + 0.5
        assert (weight.sum(0) * columns).sum() / weight.sum() == pytest.approx(28 * scale, abs=0.02)
        assert weight.sum() == pytest.approx(40 * 48 * scale**2, rel=1e-2)
        np.testing.assert_allclose(after.instances.boxes[0], np.array([8, 16, 48, 64]) * scale, atol=1e-4)


def test_odd_sizes_scale_each_axis_by_its_own_rounded_ratio():
    sample = painted((99, 333), [(0, 0, 333, 99)])
    after = apply(ResizeShortSide(short_side=(50,), long_side=9999), sample)
    assert after.size_hw == (50, 168)  # 333 * 50 / 99 = 168.18
    assert after.instances.boxes.tolist() == [[0, 0, 168, 50]]


def test_flips_and_turns_are_exact():
    sample = painted((30, 50), [(5, 4, 20, 11)])
    hwc = sample.hwc
    for view, pixels, box in (
        (View.of(sample).flipped(horizontally=True), hwc[:, ::-1], [30, 4, 45, 11]),
        (View.of(sample).flipped(horizontally=False), hwc[::-1], [5, 19, 20, 26]),
        (View.of(sample).rotated(1), np.rot90(hwc, -1), [19, 5, 26, 20]),
        (View.of(sample).rotated(2), np.rot90(hwc, 2), [30, 19, 45, 26]),
        (View.of(sample).rotated(3), np.rot90(hwc, 1), [4, 30, 11, 45]),
    ):
        after = render(sample, view)
        np.testing.assert_array_equal(after.hwc, pixels)
        assert after.instances.boxes.tolist() == [box]
    assert View.of(sample).rotated(4) == View.of(sample)


def test_a_run_of_exact_steps_gives_the_same_pixels_merged_or_one_by_one():
    steps = (
        RandomRotate90(probability=1.0),
        HorizontalFlip(),
        RandomCrop(size_hw=(40, 31), attempts=1),
        VerticalFlip(),
    )
    noise = np.random.default_rng(3).integers(0, 256, (3, 90, 70), dtype=np.uint8)
    sample = painted((90, 70), [(10, 10, 60, 80)]).replace(image=noise)
    for seed in range(8):
        merged = apply(Compose(steps), sample, seed)
        rng, single = np.random.default_rng(seed), sample
        for step in steps:
            single = step(single, None, rng)
        np.testing.assert_array_equal(merged.image, single.image)
        torch.testing.assert_close(merged.instances.boxes, single.instances.boxes)
        np.testing.assert_allclose(merged.frame.matrix, single.frame.matrix)


def test_resize_then_crop_touches_only_the_pixels_kept():
    sample = painted((1000, 1000), [(100, 100, 900, 900)])
    view = View.of(sample).resized((4000, 4000)).cropped((1001, 1003), (2048, 2048))
    assert view.window == (250, 251, 762, 763)  # source pixels under the crop, to the nearest whole one
    after = render(sample, view)
    assert after.size_hw == (2048, 2048)
    np.testing.assert_allclose(after.frame.matrix, [[4, 0, -1000], [0, 4, -1004]])


def test_a_crop_outside_the_view_is_refused():
    view = View.of(painted((40, 40), []))
    with pytest.raises(ValueError, match="leaves the view"):
        view.cropped((20, 0), (10, 21))


def test_nothing_is_written_to_the_source():
    sample = painted((60, 80), [(10, 10, 50, 40)])
    before = sample.image.copy()
    after = apply(RandomCrop(size_hw=(30, 30)), sample)
    assert not np.shares_memory(after.image, sample.image)
    after.image[:] = 1
    np.testing.assert_array_equal(sample.image, before)


def test_strong_reduction_averages_instead_of_skipping_pixels():
    checkerboard = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    stripes = np.repeat(checkerboard[..., None], 3, axis=2)
    small = resize_pixels(stripes, (50, 50))
    assert abs(small.astype(float) - 127.5).max() < 8


@pytest.mark.parametrize(
    ("size_hw", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((1000, 4000), 800, 2666, (667, 2666)),  # long side decides: 0.6665
        ((4000, 1000), 1600, 2666, (2666, 667)),
        ((262, 192), 1024, 1024, (1024, 750)),  # a square of 1024: 192 * 1024 / 262 = 750.4
        ((10, 20000), 800, 2666, (1, 2666)),
        ((1, 1), 800, 1333, (800, 800)),
    ],
)
def test_fit_size(size_hw, short, long, expected):
    assert fit_size(size_hw, short, long) == expected


def test_short_side_is_drawn_from_the_whole_range():
    transform = build_transforms(AugmentConfig(short_side=SideRange(min=16, max=24), long_side=99, flip=0.0))
    sample = painted((40, 60), [(5, 5, 30, 30)])
    sizes = [apply(transform, sample, seed).size_hw for seed in range(200)]
    assert {size[0] for size in sizes} == set(range(16, 25))
    assert all(abs(w / h - 1.5) < 0.05 for h, w in sizes)


def test_a_list_without_limit_fits_the_image_into_one_of_the_squares():
    transform = build_transforms(AugmentConfig(short_side=(64, 96), long_side=None, flip=0.0))
    sizes = {apply(transform, painted((40, 60), [(5, 5, 30, 30)]), seed).size_hw for seed in range(30)}
    assert sizes == {(43, 64), (64, 96)}


def test_crop_drops_what_is_hardly_visible_and_clips_the_rest():
    sample = painted((100, 100), [(0, 0, 40, 40), (30, 50, 70, 90), (90, 90, 100, 100)], with_masks=False)
    crop = View.of(sample).cropped((36, 36), (50, 50), min_visibility=0.1)
    after = render(sample, crop)
    # the first keeps 4 x 4 of 40 x 40 = 1 %, the second 34 x 36 of 40 x 40, the third nothing
    assert after.instances.ids.tolist() == [101]
    assert after.instances.boxes.tolist() == [[0, 14, 34, 50]]
    lenient = render(sample, View.of(sample).cropped((36, 36), (50, 50)))
    assert lenient.instances.ids.tolist() == [100, 101]


def test_crowd_regions_stay_while_anything_of_them_is_visible():
    sample = painted((100, 100), [(0, 0, 40, 40), (90, 90, 100, 100)], crowd=[True, True])
    after = render(sample, View.of(sample).cropped((36, 36), (50, 50), min_visibility=0.5))
    assert after.instances.ids.tolist() == [100]


def test_a_cut_instance_gets_the_box_of_what_is_left_of_its_mask():
    """An L: the crop sees only the thin upright part, so the box must not span the foot's width."""
    sample = painted((100, 100), [(10, 10, 80, 90)])
    dense = np.zeros((1, 100, 100), dtype=bool)
    dense[0, 10:90, 10:20] = True
    dense[0, 80:90, 10:80] = True
    sample = sample.replace(instances=sample.instances.replace(masks=ImageMasks.from_dense(dense)))
    after = render(sample, View.of(sample).cropped((0, 0), (60, 90)))
    assert after.instances.boxes.tolist() == [[10, 10, 20, 60]]
    gone = render(sample, View.of(sample).cropped((40, 0), (60, 60)))
    assert len(gone.instances) == 0  # the box overlaps the crop, the object does not
    whole = render(sample, View.of(sample).flipped(horizontally=True))
    assert whole.instances.boxes.tolist() == [[20, 10, 90, 90]]


def test_an_instance_without_mask_pixels_follows_its_box():
    sample = painted((100, 100), [(10, 10, 80, 90)])
    no_mask = ImageMasks.from_dense(np.zeros((1, 100, 100), dtype=bool))
    sample = sample.replace(instances=sample.instances.replace(masks=no_mask))
    after = render(sample, View.of(sample).cropped((40, 40), (60, 60)))
    assert after.instances.boxes.tolist() == [[0, 0, 40, 50]]


def test_random_crop_keeps_an_instance_in_sight():
    sample = painted((600, 600), [(500, 20, 512, 32)], with_masks=False)
    corners = set()
    for seed in range(60):
        after = apply(RandomCrop(size_hw=(64, 64)), sample, seed)
        assert after.size_hw == (64, 64)
        assert len(after.instances) == 1
        corners.add(tuple(after.frame.matrix[:, 2]))
    assert len(corners) > 1
    anywhere = [apply(RandomCrop(size_hw=(64, 64), attempts=1), sample, seed) for seed in range(30)]
    assert sum(len(after.instances) for after in anywhere) < 5


def corner_piece() -> Sample:
    """An L of two thin arms, 64 long: along the left and the bottom edge of its box."""
    sample = painted((64, 64), [[0, 0, 64, 64]])
    dense = np.zeros((1, 64, 64), dtype=bool)
    dense[0, :, :4] = dense[0, 60:] = True
    return sample.replace(instances=sample.instances.replace(masks=ImageMasks.from_dense(dense)))


def test_an_instance_is_visible_by_its_mask_and_not_by_its_box():
    sample = corner_piece()  # 64 * 4 + 60 * 4 = 496 pixels
    upper_right = View.of(sample).cropped(
        (20, 0), (44, 44), min_visibility=0.05
    )  # half of the box, nothing of it
    assert len(render(sample, upper_right).instances) == 0
    left = View.of(sample).cropped(
        (0, 0), (32, 32), min_visibility=0.25
    )  # 128 of 496 pixels, a quarter of the box
    assert len(render(sample, left).instances) == 1
    assert len(render(sample, replace(left, min_visibility=0.26)).instances) == 0
    ignored = replace(left, min_visibility=0.0, ignored_below=0.26)
    assert render(sample, ignored).instances.is_crowd.tolist() == [True]


def test_a_random_crop_never_shows_only_slivers_of_masks():
    sample = corner_piece()
    crop = RandomCrop(size_hw=(32, 32), min_visibility=0.2, attempts=100)
    corners = [apply(crop, sample, seed).frame.matrix[:, 2] for seed in range(40)]
    assert all(-x < 12 or -y > 20 for x, y in corners)
    assert len({tuple(corner) for corner in corners}) > 10


@pytest.mark.parametrize("min_visibility", [0.1, 0.6])
def test_no_random_crop_loses_every_object_of_its_image(min_visibility):
    """A frame of two pixels: nothing at its centre, and no crop shows more than a quarter of it."""
    sample = painted((200, 240), [[4, 4, 236, 196]])
    dense = np.zeros((1, 200, 240), dtype=bool)
    dense[0, 4:196, 4:236] = True
    dense[0, 6:194, 6:234] = False
    sample = sample.replace(instances=sample.instances.replace(masks=ImageMasks.from_dense(dense)))
    crop = RandomCrop(size_hw=(100, 100), min_visibility=min_visibility)
    for seed in range(20):
        after = apply(crop, sample, seed)
        assert after.size_hw == (100, 100)
        assert len(after.instances) == 1
        share = float(after.instances.masks.areas()[0]) / dense.sum()
        assert share >= min(min_visibility, 1 / 6)  # of six crops that cover the image one shows a sixth


def test_published_sizes_keep_the_aspect_and_are_cropped():
    """Sides drawn from a list of squares, then a square crop: VISION'23 (Aoi-overfitting-Team), an eighth as large."""
    config = AugmentConfig(short_side=(128, 192, 256, 320, 384, 448, 512), long_side=None, crop=256, flip=0.0)
    sample = painted((80, 120), [(10, 10, 60, 70), (70, 20, 110, 60)])
    scales = set()
    for seed in range(60):
        after = apply(build_transforms(config), sample, seed)
        (scale_x, _, _), (_, scale_y, _) = after.frame.matrix
        assert scale_x == pytest.approx(scale_y, rel=0.02)
        long_side = min(config.short_sides, key=lambda side: abs(side - 120 * scale_x))
        scales.add(long_side)
        assert after.size_hw == (min(round(long_side * 2 / 3), 256), min(long_side, 256))
        assert len(after.instances) >= 1
    assert scales == set(config.short_sides)


def test_random_crop_of_background_small_and_exact_images():
    background = painted((50, 90), [])
    after = apply(RandomCrop(size_hw=(40, 40)), background)
    assert (after.size_hw, len(after.instances)) == ((40, 40), 0)
    assert apply(RandomCrop(size_hw=(200, 200)), background).size_hw == (50, 90)
    assert apply(RandomCrop(size_hw=(200, 30)), background).size_hw == (50, 30)
    assert apply(RandomCrop(size_hw=(50, 90)), background) is background


def test_a_tile_shows_a_chosen_object_whole_and_any_other_place_else():
    sample = painted((400, 600), [(290, 180, 320, 215)], with_masks=False)
    shown = [apply(RandomTile(side=64, object_share=1.0), sample, seed) for seed in range(60)]
    assert all(tile.size_hw == (64, 64) for tile in shown)
    assert all(tile.instances.boxes[0].tolist() == seen_box(tile, 0) for tile in shown)
    assert all((b[2:] - b[:2]).tolist() == [30, 35] for b in (tile.instances.boxes[0] for tile in shown))
    assert len({tuple(tile.frame.matrix[:, 2]) for tile in shown}) > 30
    anywhere = [apply(RandomTile(side=64, object_share=0.0), sample, seed) for seed in range(60)]
    assert sum(len(tile.instances) == 0 for tile in anywhere) > 40
    corners = np.array([-tile.frame.matrix[:, 2] for tile in anywhere])
    assert (corners.min(axis=0) >= 0).all()
    assert (corners.max(axis=0) <= [536, 336]).all()
    assert (np.ptp(corners, axis=0) > [400, 250]).all()


def test_a_tile_of_an_object_larger_than_itself_lies_inside_of_it():
    sample = painted((400, 600), [(100, 50, 500, 350)], with_masks=False)
    for seed in range(20):
        tile = apply(RandomTile(side=64, object_share=1.0, min_visibility=0.0), sample, seed)
        assert tile.instances.boxes.tolist() == [[0, 0, 64, 64]]


def test_what_a_tile_hardly_shows_is_ignored_and_not_background():
    sample = painted((64, 164), [(40, 0, 140, 64)], with_masks=False)
    flags = {}
    for seed in range(60):
        tile = apply(RandomTile(side=64, object_share=0.0, min_visibility=0.5), sample, seed)
        share = float((tile.instances.boxes[0, 2] - tile.instances.boxes[0, 0]) / 100)
        flags[share] = bool(tile.instances.is_crowd[0])
        assert len(tile.instances) == 1
    assert flags == {share: share < 0.5 for share in flags}
    assert set(flags.values()) == {True, False}


def test_an_image_smaller_than_a_tile_is_taken_whole():
    sample = painted((40, 100), [(10, 5, 20, 30)], with_masks=False)
    tile = apply(RandomTile(side=64), sample)
    assert tile.size_hw == (40, 64)
    assert apply(RandomTile(side=100), sample).size_hw == (40, 100)


def test_tiles_are_cut_before_resizing():
    sample = painted((400, 600), [(290, 180, 320, 215)], with_masks=False)
    config = AugmentConfig(tile=64, tile_objects=1.0, short_side=128, long_side=128, flip=0.0)
    shown = apply(build_transforms(config), sample)
    assert shown.size_hw == (128, 128)
    assert (shown.instances.boxes[0, 2:] - shown.instances.boxes[0, :2]).tolist() == [60, 70]


def test_padding_is_black_at_the_right_and_bottom_and_masks_do_not_enter_it():
    sample = painted((100, 100), [(10, 10, 100, 100)])
    steps = Compose((RandomCrop(size_hw=(60, 60)), PadTo(size_hw=(80, 96)), VerticalFlip(probability=0.0)))
    after = apply(steps, sample)
    assert after.size_hw == (80, 96)
    assert not after.image[:, 60:].any()
    assert not after.image[:, :, 60:].any()
    dense = after.instances.masks.to_dense()[0]
    assert dense[:60, :60].any()
    assert not dense[60:].any()
    assert not dense[:, 60:].any()
    assert_consistent(after)


def test_flip_after_padding_mirrors_the_whole_canvas():
    sample = painted((40, 40), [(0, 0, 10, 10)])
    after = apply(Compose((PadTo(size_hw=(40, 60)), HorizontalFlip(probability=1.0))), sample)
    assert after.instances.boxes.tolist() == [[50, 0, 60, 10]]
    assert_consistent(after)


def test_transforms_of_an_image_without_instances():
    sample = painted((48, 64), [])
    config = AugmentConfig(short_side=32, long_side=64, crop=24, crop_pad=True, turn=0.5, brightness=0.3)
    after = apply(build_transforms(config), sample)
    assert after.size_hw == (24, 24)
    assert after.instances.boxes.shape == (0, 4)
    assert len(after.instances.masks) == 0


def test_one_size_leaves_no_randomness():
    sample = painted((48, 64), [(3, 3, 20, 30)])
    transform = ResizeShortSide(short_side=(96,), long_side=120)
    results = [apply(transform, sample, seed) for seed in range(4)]
    assert {after.size_hw for after in results} == {(90, 120)}
    assert all((after.image == results[0].image).all() for after in results)


def test_build_transforms_leaves_out_what_is_off():
    names = [type(step).__name__ for step in build_transforms(AugmentConfig(flip=0.0)).transforms]
    assert names == ["ResizeShortSide"]
    full = AugmentConfig(crop=[64, 96], crop_pad=True, vertical_flip=0.5, turn=0.5, hue=0.1)
    names = [type(step).__name__ for step in build_transforms(full).transforms]
    assert names == [
        "ResizeShortSide",
        "RandomCrop",
        "HorizontalFlip",
        "VerticalFlip",
        "RandomRotate90",
        "Photometric",
        "PadTo",
    ]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"flips": 0.5}, "flips"),
        ({"short_side": True}, "short_side"),
        ({"short_side": 0}, "short_side"),
        ({"short_side": 10_000_000}, "short_side"),
        ({"short_side": []}, "short_side"),
        ({"short_side": {"min": 800, "max": 600}}, "min 800"),
        ({"short_side": 1600, "long_side": 1333}, "larger than long_side"),
        ({"flip": 1.5}, "flip"),
        ({"flip": True}, "flip"),
        ({"flip": float("nan")}, "flip"),
        ({"hue": 0.6}, "hue"),
        ({"crop": [64]}, "crop"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given, part):
    with pytest.raises(ValidationError, match=part):
        AugmentConfig.model_validate(given)


def test_settings_survive_a_round_trip_through_plain_data():
    config = AugmentConfig(short_side=SideRange(min=800, max=1600), long_side=2666, crop=(64, 96), hue=0.1)
    assert AugmentConfig.model_validate(config.model_dump(mode="json")) == config
    config = AugmentConfig(short_side=[1024, 1536], long_side=None)
    assert AugmentConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError):
        config.flip = 1.0

"""Copy-paste between images: what is taken, where it goes, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.samples.scenes import Scenes, is_sound, same, scene
from scantling.data.samples.copy_paste import CopyPaste, CopyPasteConfig, Occurrences


def occurrences(*rows):
    """Rows of label, image, centre x and y, size."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Occurrences(labels=table[:, 0].astype(int), images=table[:, 1].astype(int), sites=table[:, 2:])


def paste(sample, bank, seed=0, found=None, visible=0.1, **config):
    found = occurrences([0, 0, 0.5, 0.5, 0.2]) if found is None else found
    step = CopyPaste(CopyPasteConfig(**{"probability": 1.0, **config}), found, visible)
    return step(sample, bank, np.random.default_rng(seed))


EMPTY = scene([], image_id=9)


def test_at_scale_one_the_scene_stays_where_it_is():
    other = scene([(10, 20, 30, 30), (40, 5, 50, 45)], labels=[2, 5])
    plain = {"min_scale": 1.0, "max_scale": 1.0, "flip": 0.0}
    seen = set()
    for seed in range(10):
        done = paste(EMPTY, Scenes(other), seed, **plain)
        for box, label in zip(done.instances.boxes.tolist(), done.instances.labels.tolist(), strict=True):
            assert (label, box) in [(2, [10, 20, 30, 30]), (5, [40, 5, 50, 45])]
        seen.add(tuple(done.instances.labels.tolist()))
    assert {tuple(sorted(each)) for each in seen} == {(2,), (5,), (2, 5)}
    assert same(done.replace(image_id=1), done)
    flipped = paste(EMPTY, Scenes(other), 1, **{**plain, "flip": 1.0}, max_objects=1)
    assert flipped.instances.boxes.tolist() in [[[50, 20, 70, 30]], [[30, 5, 40, 45]]]


def test_half_the_size_halves_boxes_and_pixels_wherever_they_land():
    other = scene([(10, 20, 30, 40)])
    spread = set()
    for seed in range(8):
        done = paste(EMPTY, Scenes(other), seed, min_scale=0.5, max_scale=0.5, flip=0.0)
        x1, y1, x2, y2 = done.instances.boxes[0].tolist()
        assert 10 <= x2 - x1 <= 11
        assert (done.hwc[int(y1) + 1 : int(y2) - 1, int(x1) + 1 : int(x2) - 1] == 100).all()
        assert 5 <= x1 <= 45
        assert 10 <= y1 <= 40
        spread.add((x1, y1))
    assert len(spread) == 8


def test_an_image_of_another_size_is_first_brought_to_the_same_length():
    other = scene([(20, 40, 60, 80)], (120, 160))
    done = paste(EMPTY, Scenes(other), min_scale=1.0, max_scale=1.0, flip=0.0)
    assert done.instances.boxes.tolist() == [[10, 20, 30, 40]]


def test_crowds_cut_objects_and_what_is_too_small_are_not_taken():
    other = scene(
        [(0, 10, 20, 30), (30, 30, 60, 60), (30, 5, 50, 20), (60, 10, 63, 12)],
        crowd=[False, False, True, False],
    )
    assert same(paste(EMPTY, Scenes(other), min_scale=1.0, max_scale=1.0), EMPTY)


def test_a_flipped_asymmetric_object_is_mirrored():
    other = scene([(10, 10, 20, 30), (10, 10, 30, 20)])  # the second is what the first leaves of it: x 20..30
    done = paste(EMPTY, Scenes(other), min_scale=1.0, max_scale=1.0, flip=1.0)
    assert sorted(done.instances.boxes.tolist()) in [
        [[50, 10, 60, 20], [60, 10, 70, 30]],
        [[50, 10, 60, 20]],
        [[60, 10, 70, 30]],
    ]


def test_learned_places_are_those_of_the_category_in_place_and_size():
    other = scene([(10, 10, 26, 26), (40, 30, 70, 50)], labels=[0, 1])
    found = occurrences([0, 0, 0.25, 0.75, 0.2], [1, 0, 0.75, 0.25, 0.3])
    sizes = []
    for seed in range(12):
        done = paste(EMPTY, Scenes(other), seed, found, place="learned", spread=0.05)
        for label, box in zip(done.instances.labels.tolist(), done.instances.boxes.tolist(), strict=True):
            x, y = (box[0] + box[2]) / 160, (box[1] + box[3]) / 120
            goal = (0.25, 0.75) if label == 0 else (0.75, 0.25)
            assert abs(x - goal[0]) <= 0.05 + 1 / 80
            assert abs(y - goal[1]) <= 0.05 + 1 / 60
            root = np.sqrt((box[2] - box[0]) * (box[3] - box[1]) / 4800)
            sizes.append(root / (0.2 if label == 0 else 0.3))
    assert 0.75 < min(sizes) < 1 < max(sizes) < 1.32


def test_anywhere_is_all_over_the_image_and_whole():
    other = scene([(10, 10, 22, 22)])
    boxes = [
        paste(EMPTY, Scenes(other), seed, place="anywhere", min_scale=1.0, max_scale=1.0)
        .instances.boxes[0]
        .tolist()
        for seed in range(30)
    ]
    assert all(x1 >= 0 and x2 <= 80 and y1 >= 0 and y2 <= 60 and x2 - x1 <= 13 for x1, y1, x2, y2 in boxes)
    assert min(box[0] for box in boxes) < 10
    assert max(box[2] for box in boxes) > 70


def test_picked_by_class_rare_ones_come_as_often():
    rare, common = scene([(10, 10, 22, 22)], labels=[1]), scene([(30, 30, 42, 42)], labels=[0])
    found = occurrences([1, 0, 0.5, 0.5, 0.2], *[[0, image, 0.5, 0.5, 0.2] for image in range(1, 10)])
    bank = Scenes(rare, *[common] * 9)
    labels = [
        paste(
            EMPTY, bank, seed, found, pick="classes", min_scale=1.0, max_scale=1.0
        ).instances.labels.tolist()
        for seed in range(40)
    ]
    assert 12 <= sum(each == [1] for each in labels) <= 28
    assert sum(index == 0 for index in bank.asked) == sum(each == [1] for each in labels)


def test_images_without_objects_are_not_looked_at():
    bank = Scenes(EMPTY, scene([(10, 10, 30, 30)]), EMPTY)
    for seed in range(6):
        paste(EMPTY, bank, seed, occurrences([0, 1, 0.5, 0.5, 0.2]))
    assert set(bank.asked) == {1}
    assert paste(EMPTY, bank, found=occurrences()) is EMPTY


def test_boxes_alone_are_pasted_as_boxes():
    below, other = scene([(20, 20, 40, 40)], masks=False), scene([(10, 10, 30, 30)], labels=[1], masks=False)
    done = paste(below, Scenes(other), min_scale=1.0, max_scale=1.0, flip=0.0)
    assert done.instances.masks is None
    assert done.instances.boxes.tolist() == [[20, 20, 40, 40], [10, 10, 30, 30]]
    assert done.instances.labels.tolist() == [0, 1]
    assert (done.hwc[14:26, 14:26] == 100).all()
    hidden = paste(
        scene([(11, 11, 29, 29)], masks=False), Scenes(other), min_scale=1.0, max_scale=1.0, flip=0.0
    )
    assert hidden.instances.labels.tolist() == [1]


def test_at_probability_zero_nothing_happens():
    bank = Scenes(scene([(10, 10, 30, 30)]))
    assert paste(EMPTY, bank, probability=0.0) is EMPTY
    assert bank.asked == []


def test_scales_are_ordered():
    with pytest.raises(ValidationError, match=r"min_scale 2\.0 is larger than max_scale 1\.0"):
        CopyPasteConfig(min_scale=2.0, max_scale=1.0)


rectangles = st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(1, 30), st.integers(1, 25)).map(
    lambda b: (b[0], b[1], min(b[0] + b[2], 80), min(b[1] + b[3], 60))
)


@settings(max_examples=40, deadline=None)
@given(
    below=st.lists(rectangles, max_size=5),
    other=st.lists(rectangles, max_size=5),
    seed=st.integers(0, 10_000),
    place=st.sampled_from(["scene", "anywhere", "learned"]),
    crowd=st.integers(0, 4),
)
def test_masks_stay_disjoint_and_boxes_tight(below, other, seed, place, crowd):
    image = scene(below, crowd=[row == crowd for row in range(len(below))])
    bank = Scenes(scene(other, seed=1))
    done = paste(image, bank, seed, place=place, max_scale=1.5)
    assert is_sound(done.instances)
    assert done.size_hw == image.size_hw
    assert same(paste(image, bank, seed, place=place, max_scale=1.5), done)

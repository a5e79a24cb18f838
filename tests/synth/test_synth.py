from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from scantling.synth.kit import kit_for
from scantling.synth.layout import DEFECTS, DRAW, SLOT_NAMES
from scantling.synth.synth import CATEGORY_IDS, LabelNoise, Scene, SynthConfig, generate_scene

CONFIG = SynthConfig(size_hw=(120, 160))
SEED = 3


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    config = SynthConfig(size_hw=(120, 160), occluders=2.0, absent_rate=0.1, defects=3.0)
    return [generate_scene(config, index, SEED) for index in range(30)]


def test_scene_is_a_picture_of_the_configured_size() -> None:
    scene = generate_scene(CONFIG, 0, SEED)
    assert scene.image.shape == (120, 160, 3)
    assert scene.image.dtype == np.uint8
    assert scene.image.std() > 20  # neither black nor burnt out


def test_pixels_do_not_depend_on_what_was_made_before() -> None:
    first = generate_scene(CONFIG, 5, SEED)
    kit_for.cache_clear()
    for index in (9, 2, 7):
        generate_scene(CONFIG, index, SEED)
    again = generate_scene(CONFIG, 5, SEED)
    assert np.array_equal(first.image, again.image)
    assert [part.box for part in first.targets] == [part.box for part in again.targets]
    assert [part.state for part in first.parts] == [part.state for part in again.parts]


def test_index_seed_and_nothing_else_choose_the_scene() -> None:
    scene = generate_scene(CONFIG, 0, SEED)
    assert not np.array_equal(scene.image, generate_scene(CONFIG, 1, SEED).image)
    assert not np.array_equal(scene.image, generate_scene(CONFIG, 0, SEED + 1).image)
    noisy = CONFIG.model_copy(update={"noise": LabelNoise(missing=0.5)})
    assert np.array_equal(scene.image, generate_scene(noisy, 0, SEED).image)


def test_more_occluders_leave_the_rest_of_the_scene_as_it_was() -> None:
    bare = generate_scene(CONFIG.model_copy(update={"occluders": 0.0}), 4, SEED)
    laden = generate_scene(CONFIG.model_copy(update={"occluders": 6.0}), 4, SEED)
    assert not np.array_equal(bare.image, laden.image)
    assert {part.name: part.full_box for part in bare.parts} == {
        part.name: part.full_box for part in laden.parts
    }
    whole = {part.name: part.visible for part in bare.parts}
    assert all(part.visible <= whole[part.name] for part in laden.parts)
    assert any(part.visible < whole[part.name] for part in laden.parts)


def test_what_lies_on_a_defect_hides_it() -> None:
    config = CONFIG.model_copy(update={"occluders": 0.0, "defects": 20.0})
    bare = generate_scene(config, 4, SEED)
    laden = generate_scene(config.model_copy(update={"occluders": 6.0}), 4, SEED)
    before, after = (np.any([part.mask for part in scene.defects], axis=0) for scene in (bare, laden))
    assert not (after & ~before).any()
    assert after.sum() < 0.95 * before.sum()


def test_boxes_are_the_hulls_of_the_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        for part in scene.targets:
            rows, columns = np.nonzero(part.mask)
            assert part.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert part.patch().sum() == len(rows)


def test_masks_of_parts_do_not_overlap(scenes: list[Scene]) -> None:
    for scene in scenes:
        shown = [part.mask for part in scene.parts]
        assert np.sum(shown, axis=0).max() == 1


def test_full_box_holds_the_visible_box(scenes: list[Scene]) -> None:
    for scene in scenes:
        for part in scene.targets:
            assert part.full_box[0] <= part.box[0]
            assert part.full_box[1] <= part.box[1]
            assert part.full_box[2] >= part.box[2]
            assert part.full_box[3] >= part.box[3]


def test_states_follow_from_what_shows(scenes: list[Scene]) -> None:
    states = Counter(part.state for scene in scenes for part in scene.parts)
    assert set(states) == {"intact", "damaged", "occluded", "absent"}
    for scene in scenes:
        for part in scene.parts:
            if part.state == "absent":
                assert not part.mask.any()
                assert part not in scene.targets
                assert part.full_box[2] > part.full_box[0]
            elif part.state == "occluded":
                assert part.visible < 0.85
            else:
                assert part.visible >= 0.85
                assert part in scene.targets


def test_rates_of_absence_and_damage() -> None:
    config = SynthConfig(size_hw=(64, 96), absent_rate=0.2, damaged_rate=0.3, occluders=0.0)
    parts = [part for index in range(60) for part in generate_scene(config, index, 0).parts]
    bolts = [part.state for part in parts if part.category == "bolt"]
    count = len(bolts)
    for state, rate in (("absent", 0.2), ("damaged", 0.8 * 0.3)):
        deviation = (count * rate * (1 - rate)) ** 0.5
        assert abs(bolts.count(state) - count * rate) < 4 * deviation
    assert "occluded" not in bolts


def test_every_part_absent_leaves_nothing_to_find() -> None:
    config = SynthConfig(size_hw=(64, 96), absent_rate=0.0, defects=0.0, occluders=0.0)
    full = generate_scene(config, 0, 0)
    assert {part.name for part in full.targets} == set(SLOT_NAMES)
    bare = generate_scene(config.model_copy(update={"absent_rate": 1.0}), 0, 0)
    assert not bare.targets
    assert {part.state for part in bare.parts} == {"absent"}
    assert {part.name for part in bare.parts} == set(SLOT_NAMES)


def test_min_visible_keeps_hidden_parts_out_of_the_targets(scenes: list[Scene]) -> None:
    hidden = [
        part for scene in scenes for part in scene.parts if part.state == "occluded" and part.visible < 0.1
    ]
    assert hidden
    assert not any(part in scene.targets for scene in scenes for part in hidden)


def test_categories_are_unevenly_frequent_and_of_unlike_size() -> None:
    scenes = [generate_scene(SynthConfig(), index, SEED) for index in range(25)]
    targets = [part for scene in scenes for part in scene.targets]
    counts = Counter(part.category for part in targets)
    assert set(counts) <= set(CATEGORY_IDS)
    assert set(DRAW) <= set(counts)
    assert counts["bolt"] > 8 * min(counts[name] for name in CATEGORY_IDS)
    sides = {
        name: np.median([(part.box[2] - part.box[0]) for part in targets if part.category == name])
        for name in counts
    }
    assert sides["screw"] < 12
    assert sides["bolt"] < 16
    assert sides["hose"] > 90


def test_defects_have_masks_on_the_picture(scenes: list[Scene]) -> None:
    defects = [part for scene in scenes for part in scene.defects]
    assert {part.category for part in defects} == set(DEFECTS)
    assert all(part.state is None for part in defects)
    assert all(part.mask.sum() >= 4 for part in defects)
    scratches = [part for part in defects if part.category == "scratch"]
    filled = [part.patch().mean() for part in scratches]
    assert np.median(filled) < 0.5  # a line does not fill its box


def test_defects_change_the_pixels_of_their_mask_most() -> None:
    config = SynthConfig(occluders=0.0, defects=6.0)
    clean = generate_scene(config.model_copy(update={"defects": 0.0}), 2, SEED)
    marred = generate_scene(config, 2, SEED)
    change = np.abs(marred.image.astype(int) - clean.image).mean(axis=2)
    marked = np.any([part.mask for part in marred.defects], axis=0)
    assert change[marked].mean() > 4 * change[~marked].mean()


@pytest.mark.parametrize("size_hw", [(240, 320), (480, 640), (200, 400)])
def test_layout_scales_with_the_picture(size_hw: tuple[int, int]) -> None:
    config = SynthConfig(size_hw=size_hw, absent_rate=0.0, occluders=0.0, damaged_rate=0.0)
    scene = generate_scene(config, 1, SEED)
    assert scene.image.shape[:2] == size_hw
    unit = min(size_hw[0] / 240, size_hw[1] / 320)
    large = next(part for part in scene.parts if part.name == "gear_large")
    width = large.box[2] - large.box[0]
    assert 0.88 * 62 * unit < width < 1.12 * 62 * unit


def test_same_scene_at_twice_the_size_has_its_parts_at_twice_the_place() -> None:
    small = generate_scene(SynthConfig(occluders=0.0), 2, SEED)
    large = generate_scene(SynthConfig(occluders=0.0, size_hw=(480, 640)), 2, SEED)
    assert [part.state for part in small.parts] == [part.state for part in large.parts]
    assert [part.category for part in small.defects] == [part.category for part in large.defects]
    halved = np.array([part.full_box for part in large.parts]) / 2
    assert np.abs(halved - [part.full_box for part in small.parts]).max() <= 3


@pytest.mark.parametrize(
    "bad",
    [
        {"absent_rate": 1.5},
        {"occluders": -1},
        {"size_hw": (10, 320)},
        {"jpeg_quality": 0},
        {"noise": {"missing": 0.6, "box_jitter": 0.6}},
        {"brightness": 2},
    ],
)
def test_impossible_configurations_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SynthConfig.model_validate(bad)


def test_contact_sheet_shows_one_scene_with_truth_and_eight_more(tmp_path: Path) -> None:
    from scantling.synth.sheet import contact_sheet, draw_truth  # noqa: PLC0415

    sheet = contact_sheet(CONFIG, SEED)
    assert sheet.shape == (480, 640, 3)
    plain, drawn = sheet[:240, :320], sheet[:240, 320:]
    assert 0.02 < (plain != drawn).any(axis=2).mean() < 0.6
    scene = generate_scene(CONFIG, 0, SEED)
    before = scene.image.copy()
    draw_truth(scene)
    assert np.array_equal(before, scene.image)

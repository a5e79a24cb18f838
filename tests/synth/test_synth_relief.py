"""Drawing, compositing and lighting: values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scantling.synth.assembly import Canvas
from scantling.synth.kit import Kit
from scantling.synth.relief import (
    CHANNELS,
    Material,
    Relief,
    bevel,
    box,
    disc,
    dome,
    fractal,
    polygon,
    rust,
    segment,
    write_text,
)
from scantling.synth.shading import PROBE, Lighting, shade

RED = Material((0.8, 0.1, 0.1), 0.0, 0.3)


def at(*places: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    points = np.array(places, np.float32)
    return points[:, 0], points[:, 1]


def test_distances_to_simple_shapes() -> None:
    places = at((0, 0), (3, 4), (6, 0), (0, 10))
    assert disc(*places, 5) == pytest.approx([-5, 0, 1, 5])
    assert box(*places, (8, 8)) == pytest.approx([-4, 0, 2, 6])
    assert box(*at((6, 7)), (6, 6)) == pytest.approx([5])  # 3, 4, 5 from the corner at (3, 3)
    assert polygon(*at((0, 0), (3, 0), (0, 3)), 4, 2) == pytest.approx([-2, 1, 1])
    assert segment(*at((0, 2), (-3, 4), (5, 0)), (0, 0), (2, 0)) == pytest.approx([2, 5, 3])


def test_edges_rise_from_the_border_inwards() -> None:
    distance = np.array([0.5, 0, -1, -2, -9], np.float32)
    assert bevel(distance, 2, 3) == pytest.approx([0, 0, 1.5, 3, 3])
    assert dome(distance, 2) == pytest.approx([0, 0, 3**0.5, 2, 2])


def test_lay_covers_area_and_colours_it() -> None:
    relief = Relief.blank((12, 12), 4)
    relief.lay(relief.cover(disc(relief.x, relief.y, 4)), RED, 2.0)
    assert relief.alpha.sum() / 16 == pytest.approx(np.pi * 16, rel=0.01)
    middle = tuple(side // 2 for side in relief.shape)
    assert relief.albedo[:, *middle] == pytest.approx(RED.rgb)
    assert relief.height[middle] == 2
    assert relief.alpha[0, 0] == relief.height[0, 0] == 0


def test_drawing_in_a_window_draws_in_the_relief() -> None:
    whole, parts = Relief.blank((24, 12), 3), Relief.blank((24, 12), 3)
    whole.lay(whole.cover(disc(whole.x - 6, whole.y, 2)), RED, 1.0)
    window = parts.near((6, 0), (5, 5), seat=0.5)
    window.lay(window.cover(disc(window.x, window.y, 2)), RED, 0.5)
    assert np.allclose(whole.albedo, parts.albedo, atol=1e-5)
    assert np.allclose(whole.height, parts.height, atol=1e-5)


def test_normals_lean_down_the_slope() -> None:
    relief = Relief.blank((12, 12), 4)
    relief.height += 0.75 * relief.x  # 3 up in 4 across
    right, down = relief.normals()
    assert right[10:-10, 10:-10] == pytest.approx(-0.6, abs=1e-3)
    assert down[10:-10, 10:-10] == pytest.approx(0, abs=1e-6)


def test_a_turned_drawing_is_turned_clockwise() -> None:
    relief = Relief.blank((20, 20), 2, angle=np.pi / 2)
    relief.lay(relief.cover(box(relief.x - 5, relief.y, (4, 2))), RED, 1)
    rows, columns = np.nonzero(relief.alpha > 0.5)
    assert rows.mean() / 2 - 10 == pytest.approx(5, abs=0.3)  # x points down now
    assert columns.mean() / 2 - 10 == pytest.approx(0, abs=0.3)


def test_sprite_is_the_relief_weighed_by_its_coverage() -> None:
    relief = Relief.blank((12, 12), 6)
    relief.lay(relief.cover(box(relief.x - 1, relief.y, (4, 2))), RED, 1.0)
    sprite = relief.sprite(3)
    assert sprite.layers.shape[0] == CHANNELS
    assert sprite.solid.shape == (4, 8)  # 2 pixels per unit
    assert sprite.corner_xy == (-2, -2)
    assert sprite.rest == pytest.approx(0, abs=1e-6)
    assert sprite.layers[0] == pytest.approx(0.8, abs=1e-5)


def test_rust_takes_about_the_share_asked_for() -> None:
    relief = Relief.blank((60, 60), 3)
    relief.lay(np.ones(relief.shape, np.float32), Material((0.5, 0.5, 0.5), 1.0, 0.5), 0)
    rust(np.random.default_rng(0), relief, 0.3)
    assert (relief.metal < 0.6).mean() == pytest.approx(0.23, abs=0.1)


def test_noise_has_the_promised_size() -> None:
    noise = fractal(np.random.default_rng(1), (400, 500), 20, 4)
    assert noise.shape == (400, 500)
    assert abs(noise.mean()) < 0.15
    assert noise.std() == pytest.approx(1, abs=0.25)


def test_text_stands_on_its_base_line() -> None:
    relief = Relief.blank((60, 20), 4)
    rows, columns = np.nonzero(write_text(relief, "HAH", (-10, 3), 6) > 0.5)
    top, bottom = rows.min() / 4 - 10, rows.max() / 4 - 10
    assert bottom == pytest.approx(3, abs=0.8)
    assert bottom - top == pytest.approx(6, abs=1.5)
    assert columns.min() / 4 - 30 == pytest.approx(-10, abs=1.5)


def test_sprites_hanging_over_the_canvas_are_cut_off() -> None:
    kit = Kit((72, 96), 0)
    layers = np.zeros((CHANNELS, 40, 50), np.float32)
    stage = Canvas(kit, layers, *np.zeros((3, 40, 50), np.uint8))
    sprite = kit.occluder(0, 0)
    for place in ((-900.0, 120.0), (160.0, 900.0), (160.0, 120.0)):
        stage.visible[:] = 1
        stage.cover(place, sprite)
        assert (stage.visible == 0).any() == (place == (160.0, 120.0))


def lamp_from_the_right() -> Lighting:
    probe = np.ones((PROBE, PROBE, 3), np.float32)
    probe *= np.linspace(0.2, 1.8, PROBE, dtype=np.float32)[
        None, :, None
    ]  # brighter for normals to the right
    return Lighting(probe, probe, (1.0, 0.0), 1.0, 0.8)


def flat_gray(height: np.ndarray) -> np.ndarray:
    layers = np.zeros((CHANNELS, *height.shape), np.float32)
    layers[:3] = 0.5
    layers[3] = height
    return layers


def test_shadow_falls_away_from_the_lamp() -> None:
    height = np.zeros((40, 80), np.float32)
    height[15:25, 38:42] = 6.0
    light = shade(flat_gray(height), lamp_from_the_right(), 1.0)[..., 1]
    assert light[20, 35] < 0.4 * light[20, 46]
    assert light[20, 20] == pytest.approx(light[5, 20], rel=0.05)  # the shadow of 6 units is 6 units long
    assert light[20, 29] > 0.9 * light[5, 29]


def test_slopes_towards_the_lamp_are_brighter() -> None:
    layers = flat_gray(np.zeros((20, 20), np.float32))
    layers[4, :, :10], layers[4, :, 10:] = -0.5, 0.5
    light = shade(layers, lamp_from_the_right(), 1.0)[..., 1]
    assert light[10, 5] == pytest.approx(0.5 * 0.6, rel=0.05)
    assert light[10, 15] == pytest.approx(0.5 * 1.4, rel=0.05)

"""Things left lying about: cables, spanners, screwdrivers, rags, tags. They hide parts and are never targets."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from scantling.synth.relief import (
    CHROME,
    STEEL,
    Array,
    Material,
    Relief,
    bevel,
    box,
    disc,
    dome,
    fractal,
    grime,
    polygon,
    segment,
    speckle,
    write_text,
)

LEVEL = 13.0  # they lie on the parts

JACKETS = (
    Material((0.02, 0.02, 0.022), 0.0, 0.45),
    Material((0.50, 0.03, 0.02), 0.0, 0.45),
    Material((0.02, 0.08, 0.35), 0.0, 0.45),
    Material((0.62, 0.42, 0.03), 0.0, 0.4),
    Material((0.42, 0.42, 0.41), 0.0, 0.4),
)
CLOTHS = ((0.10, 0.17, 0.33), (0.42, 0.09, 0.07), (0.50, 0.48, 0.44), (0.17, 0.18, 0.18))


def cable(rng: np.random.Generator, scale: float) -> Relief:
    """A length of cable in a random bend, with a plug on one end now and then."""
    relief = Relief.blank((132, 132), scale, seat=LEVEL)
    places = np.stack([np.linspace(-58, 58, 5), rng.uniform(-30, 30, 5)], axis=1)
    turn = rng.uniform(-np.pi, np.pi)
    spun = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    line = _spline(places @ spun, 80)
    radius = float(rng.uniform(2.4, 3.6))
    away = _distance_to(relief, line) - np.float32(radius)
    relief.lay(relief.cover(away), JACKETS[int(rng.integers(len(JACKETS)))], dome(away, radius))
    for start, end in ((line[0], line[8]), (line[-1], line[-6])):
        plug = segment(relief.x, relief.y, tuple(start), tuple(end)) - np.float32(radius + 1.6)
        relief.lay(
            relief.cover(plug), Material((0.03, 0.03, 0.032), 0.0, 0.35), 0.5 + dome(plug, radius + 1.6)
        )
    speckle(rng, relief, 0.1)
    return relief


def _spline(places: Array, samples: int) -> Array:
    """(samples, 2) points on a smooth curve through `places` (Catmull-Rom)."""
    padded = np.concatenate([2 * places[:1] - places[1:2], places, 2 * places[-1:] - places[-2:-1]])
    at = np.linspace(0, len(places) - 1 - 1e-6, samples)
    piece, t = at.astype(int), (at % 1)[:, None]
    before, start, end, after = (padded[piece + k] for k in range(4))
    bend = 2 * before - 5 * start + 4 * end - after
    curve: Array = 0.5 * (
        2 * start + (end - before) * t + bend * t**2 + (3 * start - before - 3 * end + after) * t**3
    )
    return curve


def _distance_to(relief: Relief, line: Array) -> Array:
    """Distance in units to an open curve given in units."""
    rows, columns = relief.shape
    pixels = line * relief.scale + (columns / 2, rows / 2)
    canvas = np.full((rows, columns), 255, np.uint8)
    cv2.polylines(canvas, [np.round(pixels * 16).astype(np.int32)], False, 0, 1, cv2.LINE_8, shift=4)
    distance: Array = cv2.distanceTransform(canvas, cv2.DIST_L2, 5) / np.float32(relief.scale)
    return distance


def spanner(rng: np.random.Generator, scale: float) -> Relief:
    """Combination spanner, polished."""
    relief = Relief.blank((120, 120), scale, angle=float(rng.uniform(-np.pi, np.pi)), seat=LEVEL)
    x, y = relief.x, relief.y
    shank = box(x, y, (78, 9), 3.5)
    jaw = disc(x - 42, y, 11.5)
    mouth = box(x - 50, y - 0.26 * (x - 42), (20, 10), 1.0)
    ring = disc(x + 42, y, 9.0)
    body = np.minimum(
        np.minimum(shank, np.maximum(jaw, -mouth)), np.maximum(ring, -polygon(x + 42, y, 12, 5.4))
    )
    metal = CHROME if rng.random() < 0.7 else STEEL
    relief.lay(relief.cover(body), metal._replace(gloss=0.8), 1.2 + bevel(body, 1.4, 1.8))
    panel = box(x, y, (56, 4.6), 2.0)
    relief.lift(-0.7 * np.clip(-panel, 0, 1))
    relief.lift(0.5 * write_text(relief, f"{rng.integers(8, 19)} CR-V", (-17, 1.6), 3.4))
    speckle(rng, relief, 0.08)
    return relief


def screwdriver(rng: np.random.Generator, scale: float) -> Relief:
    """Screwdriver with a fluted plastic handle."""
    relief = Relief.blank((118, 118), scale, angle=float(rng.uniform(-np.pi, np.pi)), seat=LEVEL)
    x, y = relief.x, relief.y
    shaft = box(x - 26, y, (56, 4.0), 1.0)
    relief.lay(relief.cover(shaft), STEEL, 2.5 + dome(shaft, 2.0))
    belly = 6.6 + 1.0 * np.sin((x + 28) * 0.14)
    handle = np.maximum(np.abs(y) - belly, np.abs(x + 28) - 25)
    handle = np.maximum(handle, np.hypot(x + 28, y * 1.2) - 26)
    color = ((0.55, 0.04, 0.02), (0.7, 0.45, 0.02), (0.03, 0.10, 0.35), (0.03, 0.03, 0.03))[
        int(rng.integers(4))
    ]
    relief.lay(relief.cover(handle), Material(color, 0.0, 0.8), dome(handle, 6.0))
    flutes = np.cos(y * 2.1) * relief.cover(np.abs(x + 28) - 19) * relief.cover(handle)
    relief.lift(0.55 * flutes)
    collar = box(x + 5, y, (5, 9), 1.0)
    relief.lay(relief.cover(collar), Material((0.04, 0.04, 0.045), 0.0, 0.5), 3.5 + dome(collar, 2.0))
    return relief


def rag(rng: np.random.Generator, scale: float) -> Relief:
    """Crumpled cleaning cloth, oily in places."""
    relief = Relief.blank((66, 58), scale, angle=float(rng.uniform(-np.pi, np.pi)), seat=LEVEL)
    ragged = fractal(rng, relief.shape, 24 * scale, 2)
    away = box(relief.x + 2 * ragged, relief.y - 2 * ragged, (48, 40), 7) + 1.5 * ragged
    folds = fractal(rng, relief.shape, 24 * scale, 2) + 0.06 * relief.x
    ridges = 3.6 * np.exp(-np.abs(folds) * 1.6) + 0.5 * fractal(rng, relief.shape, 7 * scale, 2)
    color = CLOTHS[int(rng.integers(len(CLOTHS)))]
    relief.lay(relief.cover(away), Material(color, 0.0, 0.03), 0.6 + ridges + dome(away, 2.0))
    weave = np.cos(relief.x * 4.4) * np.cos(relief.y * 4.4)
    relief.tint(1 + 0.12 * weave)
    oil = np.clip(fractal(rng, relief.shape, 14 * scale) - 0.4, 0, 1)
    relief.tint(1 - 0.6 * oil)
    grime(relief, 1.5, 0.25)
    return relief


def tag(rng: np.random.Generator, scale: float) -> Relief:
    """Paper inspection tag with an eyelet."""
    relief = Relief.blank((62, 62), scale, angle=float(rng.uniform(-np.pi, np.pi)), seat=LEVEL)
    outline = box(relief.x, relief.y, (46, 22), 1.5)
    color = ((0.72, 0.62, 0.30), (0.74, 0.72, 0.66), (0.70, 0.20, 0.14))[int(rng.integers(3))]
    curl = 1.2 * np.sin(relief.x * 0.09 + rng.uniform(0, 6.3))
    relief.lay(relief.cover(outline), Material(color, 0.0, 0.08), 1.8 + curl)
    ink = Material((0.03, 0.03, 0.05), 0.0, 0.1)
    relief.paint(write_text(relief, ("HOLD", "CHECK", "PASS")[int(rng.integers(3))], (-12, 0.5), 5.5, 2), ink)
    relief.paint(write_text(relief, f"{rng.integers(1, 29)}.{rng.integers(1, 13)}.", (-12, 8), 4.0), ink)
    eyelet = disc(relief.x + 18.5, relief.y, 2.4)
    relief.lay(relief.cover(eyelet), STEEL, 2.2 + curl)
    relief.cut(relief.cover(eyelet + 1.1))
    speckle(rng, relief, 0.06)
    return relief


OCCLUDERS: tuple[Callable[[np.random.Generator, float], Relief], ...] = (
    cable,
    cable,
    spanner,
    screwdriver,
    rag,
    tag,
)

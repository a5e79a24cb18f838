"""Surface defects: scratches, pits and stains, drawn into a scene wherever the housing or its parts are hit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.synth.relief import Array, fractal

STAINS = (  # albedo, gloss, how opaque inside and at the shore
    ((0.030, 0.022, 0.013), 0.95, 0.75, 0.10),  # oil
    ((0.60, 0.60, 0.57), 0.10, 0.32, 0.40),  # dried coolant
    ((0.22, 0.090, 0.03), 0.15, 0.50, 0.30),  # rusty water
)


class DefectPatch(NamedTuple):
    """One defect on a square patch of the canvas; arrays have the patch's shape.

    Attributes:
        coverage: Share of every pixel that is changed, 0..1.
        solid: Pixels that belong to the defect's mask.
        rgb: Albedo it changes to; None: bare metal on dark ground, a dark line on bright ground.
        metal: Metalness there.
        gloss: Gloss there.
        relief: Height added, in units.
    """

    coverage: Array
    solid: NDArray[np.bool_]
    rgb: tuple[float, float, float] | None
    metal: float
    gloss: float
    relief: Array


def _grid(half: float, scale: float) -> tuple[Array, Array]:
    side = 2 * int(np.ceil(half * scale)) + 1
    axis = (np.arange(side, dtype=np.float32) - side // 2) / np.float32(scale)
    return axis[None, :], axis[:, None]


def scratch(rng: np.random.Generator, scale: float) -> DefectPatch:
    """A slightly bent line, down to the metal, tapering off."""
    half = float(rng.uniform(6, 30))
    x, y = _grid(half, scale)
    turn, bow = rng.uniform(-np.pi, np.pi), rng.uniform(-0.25, 0.25) * half
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    across = across - np.float32(bow) * (along / half) ** 2
    taper = np.clip(1.15 - (along / half) ** 2, 0, 1) * (np.abs(along) < half)
    width = np.float32(rng.uniform(0.55, 0.95)) * taper
    coverage = np.clip(0.5 + (width - np.abs(across)) * scale, 0, 1) * (taper > 0.1)
    return DefectPatch(
        coverage.astype(np.float32), coverage > 0.4, None, 0.8, 0.6, -0.5 * coverage.astype(np.float32)
    )


def pit(rng: np.random.Generator, scale: float) -> DefectPatch:
    """A corroded crater with a raised rim."""
    radius = float(rng.uniform(2.2, 5.0))
    x, y = _grid(radius * 1.9, scale)
    stretch, turn = rng.uniform(0.75, 1.3), rng.uniform(-np.pi, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    away = np.hypot(along * stretch, across / stretch) / radius
    away = away + 0.16 * fractal(rng, away.shape, radius * scale, 3)
    coverage = np.clip(0.5 + (1 - away) * radius * scale * 0.6, 0, 1)
    depth = -1.6 * np.clip(1 - away**2, 0, 1) + 0.45 * np.exp(-(((away - 1.15) / 0.22) ** 2))
    return DefectPatch(
        coverage.astype(np.float32), coverage > 0.5, (0.055, 0.032, 0.02), 0.1, 0.12, depth.astype(np.float32)
    )


def stain(rng: np.random.Generator, scale: float) -> DefectPatch:
    """Oil, dried coolant or rusty water with a ragged shore."""
    radius = float(rng.uniform(6, 15))
    x, y = _grid(radius * 1.7, scale)
    stretch = rng.uniform(0.75, 1.33)
    away = np.hypot(x * stretch, y / stretch) / radius
    away = away + 0.22 * fractal(rng, away.shape, radius * scale * 0.7, 4)
    inside = np.clip(0.5 + (1 - away) * radius * scale * 0.4, 0, 1)
    shore = np.exp(-(((away - 0.93) / 0.10) ** 2))
    color, gloss, body, edge = STAINS[int(rng.integers(len(STAINS)))]
    patchy = 1 + 0.25 * fractal(rng, away.shape, radius * scale * 0.5, 3)
    coverage = inside * np.clip(rng.uniform(0.85, 1.15) * body * patchy + edge * shore, 0, 0.95)
    return DefectPatch(
        coverage.astype(np.float32), inside > 0.5, color, 0.0, gloss, 0.12 * inside.astype(np.float32)
    )


DRAW_DEFECT: dict[str, Callable[[np.random.Generator, float], DefectPatch]] = {
    "scratch": scratch,
    "pit": pit,
    "stain": stain,
}


def apply(mark: DefectPatch, layers: Array, scale: float) -> None:
    """Change `layers` (CHANNELS, h, w), a view of the canvas under the patch, in place."""
    bright = float(layers[:3].mean()) >= 0.3
    rgb = mark.rgb or ((0.12, 0.11, 0.10) if bright else (0.6, 0.59, 0.57))
    for channel, value in zip((0, 1, 2, 6, 7), (*rgb, mark.metal, mark.gloss), strict=True):
        layers[channel] += mark.coverage * (np.float32(value) - layers[channel])
    layers[3] += mark.relief
    layers[4] -= cv2.Sobel(mark.relief, cv2.CV_32F, 1, 0, ksize=3, scale=scale / 8)
    layers[5] -= cv2.Sobel(mark.relief, cv2.CV_32F, 0, 1, ksize=3, scale=scale / 8)

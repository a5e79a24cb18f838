"""Reliefs: height fields with a material at every pixel, and the tools to carve them.

A component is drawn once, seen from straight above, as a height field with albedo, metalness and gloss. Light
comes later (`shading.py`), so the same relief looks different under every lamp, as a real part does.

Lengths are in *units*: one pixel of a 320x240 picture. Arrays of a relief are finer than that by `scale`.
Coverages are float arrays in [0, 1] of the relief's shape; distances are in units, negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 in layers and sprites
RGB = tuple[float, float, float]

MAX_SLOPE = 2.2  # steeper walls are drawn as slopes of about 65 degrees, so that edges catch the light
CHANNELS = 8  # r, g, b, height, normal x, normal y, metal, gloss


class Material(NamedTuple):
    """What a surface is made of.

    Attributes:
        rgb: Linear albedo, or reflectance for metals; above 1 it glows.
        metal: 0 for paint, rubber and plastic, 1 for bare metal.
        gloss: 0 matt to 1 mirror.
    """

    rgb: RGB
    metal: float
    gloss: float


STEEL = Material((0.41, 0.40, 0.39), 1.0, 0.75)
ZINC = Material((0.46, 0.465, 0.47), 1.0, 0.55)
YELLOW_ZINC = Material((0.50, 0.38, 0.14), 1.0, 0.6)
BLACK_OXIDE = Material((0.07, 0.068, 0.07), 0.7, 0.55)
BRASS = Material((0.58, 0.39, 0.12), 1.0, 0.7)
GOLD = Material((0.95, 0.68, 0.25), 1.0, 0.85)
CHROME = Material((0.60, 0.61, 0.63), 1.0, 1.0)
ALUMINIUM = Material((0.50, 0.505, 0.51), 1.0, 0.5)
RUBBER = Material((0.022, 0.022, 0.024), 0.0, 0.25)
BLACK_PLASTIC = Material((0.028, 0.029, 0.032), 0.0, 0.5)
HOLE = Material((0.008, 0.008, 0.009), 0.0, 0.1)
RUST = Material((0.15, 0.055, 0.022), 0.05, 0.08)


class Sprite(NamedTuple):
    """A relief at canvas resolution, cut to what is covered, ready to be laid on others.

    Attributes:
        layers: (CHANNELS, h, w) float32, multiplied by the coverage already.
        rest: (h, w) float32, 1 - coverage.
        solid: (h, w) bool, the pixels that belong to the part.
        corner_xy: Upper left pixel relative to the drawing's origin.
    """

    layers: Array
    rest: Array
    solid: NDArray[np.bool_]
    corner_xy: tuple[int, int]


@dataclass(slots=True, eq=False)
class Relief:
    """A patch of surface under construction.

    Attributes:
        x: Position right of the origin in units, in the drawing's own (turned) frame.
        y: Position below the origin.
        scale: Array pixels per unit.
        seat: Height in units of the ground the part stands on; heights of `lay` count from here.
        albedo: (3, h, w) linear reflectance.
        height: (h, w) in units above the bench.
        metal: (h, w) 0..1.
        gloss: (h, w) 0..1.
        alpha: (h, w) coverage by the part, 0 where nothing has been laid yet.
    """

    x: Array
    y: Array
    scale: float
    seat: float
    albedo: Array
    height: Array
    metal: Array
    gloss: Array
    alpha: Array

    @classmethod
    def blank(
        cls, size_wh: tuple[float, float], scale: float, *, angle: float = 0.0, seat: float = 0.0
    ) -> Relief:
        """An empty patch of `size_wh` units with the origin in its middle, turned clockwise by `angle` radians."""
        width, height = (max(6, round(side * scale / 6) * 6) for side in size_wh)
        right = ((np.arange(width) + 0.5 - width / 2) / scale).astype(np.float32)[None, :]
        down = ((np.arange(height) + 0.5 - height / 2) / scale).astype(np.float32)[:, None]
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        ground = np.full((height, width), seat, np.float32)
        clear = np.zeros((6, height, width), np.float32)
        x, y = cos * right + sin * down, cos * down - sin * right
        return cls(x, y, scale, seat, clear[:3], ground, clear[3], clear[4], clear[5])

    def near(self, at: tuple[float, float], size_wh: tuple[float, float], seat: float) -> Relief:
        """A window of this relief about `at`, which becomes the origin; drawing in it draws here.

        The relief must not be turned. What reaches beyond the relief is cut off.
        """
        half_w, half_h = size_wh[0] / 2, size_wh[1] / 2
        rows = slice(*np.searchsorted(self.y[:, 0], (at[1] - half_h, at[1] + half_h)))
        columns = slice(*np.searchsorted(self.x[0], (at[0] - half_w, at[0] + half_w)))
        here = rows, columns
        x, y = self.x[here] - np.float32(at[0]), self.y[here] - np.float32(at[1])
        planes = self.height[here], self.metal[here], self.gloss[here], self.alpha[here]
        return Relief(x, y, self.scale, seat, self.albedo[:, rows, columns], *planes)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the arrays."""
        return self.height.shape[0], self.height.shape[1]

    def cover(self, distance: Array) -> Array:
        """Coverage of the region of negative `distance`, anti-aliased over one array pixel."""
        coverage: Array = np.clip(0.5 - distance * self.scale, 0.0, 1.0)
        return coverage

    def lay(self, coverage: Array, material: Material, height: Array | float) -> None:
        """Put `material` with its top at `height` above the seat where `coverage` says so."""
        self.paint(coverage, material)
        here = _bounds(coverage)
        share, ground = coverage[here], self.height[here]
        top = height[here] if isinstance(height, np.ndarray) else height
        ground += share * (self.seat + top - ground)
        np.maximum(self.alpha[here], share, out=self.alpha[here])

    def paint(self, coverage: Array, material: Material) -> None:
        """Change the material, leaving shape and extent."""
        here = _bounds(coverage)
        share = coverage[here]
        planes = (*self.albedo, self.metal, self.gloss)
        for plane, value in zip(planes, (*material.rgb, material.metal, material.gloss), strict=True):
            region = plane[here]
            region += share * (np.float32(value) - region)

    def lift(self, amount: Array) -> None:
        """Add to the height: grain, ribs, dents."""
        self.height += amount

    def tint(self, factor: Array) -> None:
        """Multiply the albedo."""
        self.albedo *= factor

    def cut(self, coverage: Array) -> None:
        """Take material away altogether: what is below shows."""
        self.alpha *= 1.0 - coverage

    def normals(self) -> tuple[Array, Array]:
        """Return x and y of the unit normals, from the gradient of the height."""
        slope_x = cv2.Sobel(self.height, cv2.CV_32F, 1, 0, ksize=3, scale=-self.scale / 8)
        slope_y = cv2.Sobel(self.height, cv2.CV_32F, 0, 1, ksize=3, scale=-self.scale / 8)
        steep = np.sqrt(slope_x**2 + slope_y**2) + 1e-6
        shrink = np.minimum(steep, MAX_SLOPE) / steep / np.sqrt(1 + np.minimum(steep, MAX_SLOPE) ** 2)
        return slope_x * shrink, slope_y * shrink

    def planes(self, finesse: int) -> Array:
        """(CHANNELS, h, w) everything times the coverage, averaged over `finesse` x `finesse` pixels."""
        size = (self.shape[1] // finesse, self.shape[0] // finesse)
        planes = (*self.albedo, self.height, *self.normals(), self.metal, self.gloss)
        return np.stack(
            [cv2.resize(plane * self.alpha, size, interpolation=cv2.INTER_AREA) for plane in planes]
        )

    def sprite(self, finesse: int) -> Sprite:
        """The relief shrunk by the integer factor `finesse`, with what compositing needs."""
        size = (self.shape[1] // finesse, self.shape[0] // finesse)
        alpha = cv2.resize(self.alpha, size, interpolation=cv2.INTER_AREA)
        left, top, width, height = cv2.boundingRect((alpha > 0.01).astype(np.uint8))
        here = slice(top, top + height), slice(left, left + width)
        layers = np.ascontiguousarray(self.planes(finesse)[:, *here])
        return Sprite(layers, 1 - alpha[here], alpha[here] > 0.5, (left - size[0] // 2, top - size[1] // 2))


def _bounds(coverage: Array) -> tuple[slice, slice]:
    """Rows and columns outside of which nothing is covered."""
    left, top, width, height = cv2.boundingRect((coverage > 0).view(np.uint8))
    return slice(top, top + height), slice(left, left + width)


# ---------------------------------------------------------------------------------------------------------------
# Distance functions (units; negative inside)
# ---------------------------------------------------------------------------------------------------------------


def disc(x: Array, y: Array, radius: float) -> Array:
    """Distance to a disc about the origin."""
    return np.sqrt(x * x + y * y) - np.float32(radius)


def box(x: Array, y: Array, size_wh: tuple[float, float], corner: float = 0.0) -> Array:
    """Distance to a box about the origin with rounded corners."""
    over_x = np.abs(x) - np.float32(size_wh[0] / 2 - corner)
    over_y = np.abs(y) - np.float32(size_wh[1] / 2 - corner)
    beyond_x, beyond_y = np.maximum(over_x, 0), np.maximum(over_y, 0)
    outside = np.sqrt(beyond_x * beyond_x + beyond_y * beyond_y)
    distance: Array = outside + np.minimum(np.maximum(over_x, over_y), 0) - np.float32(corner)
    return distance


def polygon(x: Array, y: Array, sides: int, inner_radius: float) -> Array:
    """Distance (exact on the flats) to a regular polygon about the origin."""
    sector = np.float32(2 * np.pi / sides)
    angle = np.arctan2(y, x)
    return np.hypot(x, y) * np.cos(np.mod(angle + sector / 2, sector) - sector / 2) - np.float32(inner_radius)


def segment(x: Array, y: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
    """Distance to a line segment (zero on it, never negative)."""
    run, rise = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * run + (y - start[1]) * rise) / max(run * run + rise * rise, 1e-9)
    along = np.clip(along, 0, 1)
    return np.hypot(x - start[0] - along * run, y - start[1] - along * rise).astype(np.float32)


def dome(distance: Array, radius: float) -> Array:
    """Height of a rounded edge: 0 at the border, rising like a quarter circle over `radius` units inwards."""
    inwards = np.clip(-distance / radius, 0, 1)
    height: Array = np.float32(radius) * np.sqrt(np.maximum(1 - (1 - inwards) ** 2, 0))
    return height


def bevel(distance: Array, width: float, height: float) -> Array:
    """Height of a chamfered edge: 0 at the border, `height` from `width` units inwards."""
    rise: Array = np.float32(height) * np.clip(-distance / width, 0, 1)
    return rise


# ---------------------------------------------------------------------------------------------------------------
# Surfaces
# ---------------------------------------------------------------------------------------------------------------


def fractal(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 4) -> Array:
    """Smooth noise of mean about 0 and deviation about 1 whose largest blotches are `cell` pixels wide."""
    total: Array = np.zeros((2, 2), np.float32)
    weight, power = 1.0, 0.0
    for _ in range(octaves):
        grid = (int(shape[0] / cell) + 2, int(shape[1] / cell) + 2)
        total = cv2.resize(total, grid[::-1], interpolation=cv2.INTER_CUBIC)
        total += np.float32(weight) * rng.standard_normal(grid, np.float32)
        power, weight, cell = power + weight**2, weight * 0.55, max(cell / 2, 1.0)
    full: Array = cv2.resize(total, shape[::-1], interpolation=cv2.INTER_CUBIC)
    full /= np.float32(0.75 * np.sqrt(power))
    return full


def streaks(rng: np.random.Generator, shape: tuple[int, int], length: float) -> Array:
    """Noise of deviation about 1 smeared along x over `length` pixels: brushed metal."""
    coarse = rng.standard_normal((shape[0], int(shape[1] / length) + 3), np.float32)
    fine = rng.standard_normal((shape[0], int(shape[1] / (length / 3)) + 3), np.float32)
    size = (shape[1], shape[0])
    blend: Array = cv2.resize(coarse, size) + cv2.resize(fine, size)
    return blend


def rings(rng: np.random.Generator, radius: Array, pitch: float) -> Array:
    """Noise that depends on the radius alone: a surface turned on a lathe. `pitch` in units."""
    table = rng.standard_normal(int(radius.max() / pitch) + 3, np.float32)
    noise: Array = np.interp(radius / pitch, np.arange(len(table)), table).astype(np.float32)
    return noise


def speckle(rng: np.random.Generator, relief: Relief, strength: float) -> None:
    """Break up a clean surface: blotchy albedo and uneven gloss."""
    blotch = fractal(rng, relief.shape, 4 * relief.scale)
    relief.tint(np.clip(1 + np.float32(strength) * blotch, 0.4, 1.6))
    relief.gloss *= np.clip(1 - np.float32(strength) * np.abs(blotch), 0, 1)


def rust(rng: np.random.Generator, relief: Relief, amount: float) -> None:
    """Let rust eat about the share `amount` of the surface: brown, matt, crumbly."""
    pattern = fractal(rng, relief.shape, 7 * relief.scale, 5)
    level = np.float32(np.quantile(pattern[::3, ::3], 1 - amount))
    coverage = np.clip((pattern - level) * 2.5, 0, 1)
    grain = fractal(rng, relief.shape, 1.5 * relief.scale, 3)
    relief.paint(coverage * 0.9, RUST)
    relief.tint(np.clip(1 + coverage * 0.5 * grain, 0.2, 2.2))
    relief.lift(coverage * np.float32(0.18) * grain)


def grime(relief: Relief, reach: float, strength: float) -> None:
    """Darken what lies lower than its neighbourhood: dirt and shade gather in corners."""
    around = cv2.GaussianBlur(relief.height, (0, 0), max(reach * relief.scale, 0.5))
    depth = np.clip(around - relief.height, 0, 3)
    relief.tint(np.exp(-np.float32(strength) * depth))


def write_text(relief: Relief, text: str, at: tuple[float, float], size: float, bold: int = 1) -> Array:
    """Coverage of `text` whose left end of the base line is at `at`, with capitals `size` units high.

    The drawing turns with the relief's angle.
    """
    face, unit = cv2.FONT_HERSHEY_SIMPLEX, 21.0
    (width, height), base = cv2.getTextSize(text, face, 1.0, 2 * bold)
    stamp = np.zeros((height + base + 8, width + 8), np.uint8)
    cv2.putText(stamp, text, (4, height + 4), face, 1.0, 255, 2 * bold, cv2.LINE_AA)
    zoom = np.float32(unit / size)
    column = (relief.x - np.float32(at[0])) * zoom + 4
    row = (relief.y - np.float32(at[1])) * zoom + height + 4
    blurred = cv2.GaussianBlur(stamp, (0, 0), max(float(zoom) / relief.scale / 2, 0.01))
    coverage: Array = cv2.remap(blurred, column, row, cv2.INTER_LINEAR).astype(np.float32) / 255
    return coverage

"""Small parts that hold or show: hexagon bolts, socket screws, indicator lamps. Look-alikes at ten pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scantling.synth.relief import (
    BLACK_OXIDE,
    BRASS,
    CHROME,
    HOLE,
    STEEL,
    YELLOW_ZINC,
    ZINC,
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
    rings,
    rust,
    segment,
    speckle,
)


@dataclass(frozen=True, slots=True)
class Job:
    """One component to draw.

    Attributes:
        rng: Where this specimen differs from the next.
        scale: Array pixels per unit.
        size: Nominal radius or length in units; each component says which.
        seat: Height of the ground below, in units.
        damaged: Whether this specimen is broken, bent, torn or rusted through.
        turn: Radians of the slot's own orientation.
    """

    rng: np.random.Generator
    scale: float
    size: float
    seat: float
    damaged: bool
    turn: float = 0.0

    def relief(self, size_wh: tuple[float, float], slack: float) -> Relief:
        """An empty relief at the slot's orientation, give or take `slack` radians."""
        angle = self.turn + float(self.rng.uniform(-slack, slack))
        reach = np.hypot(*size_wh) if slack > 1 else 0.0
        extent = _rotated_extent(size_wh, angle, float(reach))
        return Relief.blank(extent, self.scale, angle=angle, seat=self.seat)

    def pick(self, *choices: Material) -> Material:
        """One of the materials, a little lighter or darker."""
        material = choices[int(self.rng.integers(len(choices)))]
        gain = float(self.rng.uniform(0.85, 1.12))
        red, green, blue = material.rgb
        return material._replace(rgb=(red * gain, green * gain, blue * gain))


def _rotated_extent(size_wh: tuple[float, float], angle: float, reach: float) -> tuple[float, float]:
    """Extent of a box of `size_wh` turned by `angle`, plus a margin for anti-aliasing; at most `reach`."""
    cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
    width, height = size_wh[0] * cos + size_wh[1] * sin, size_wh[0] * sin + size_wh[1] * cos
    limit = reach or np.inf
    return min(width, limit) + 2.0, min(height, limit) + 2.0


def bolt(job: Job) -> Relief:
    """Hexagon bolt on a washer; `size` is the washer's radius. Damaged: sheared off, or rounded by rust."""
    relief = job.relief((2 * job.size, 2 * job.size), np.pi)
    finish = job.pick(ZINC, ZINC, YELLOW_ZINC, BLACK_OXIDE, STEEL)
    radius = np.hypot(relief.x, relief.y)
    washer = radius - job.size
    relief.lay(relief.cover(washer), job.pick(ZINC, STEEL), 0.5 + bevel(washer, 0.5, 0.5))
    relief.lift(0.05 * rings(job.rng, radius, 0.4))
    sheared = job.damaged and job.rng.random() < 0.5
    if sheared:
        _broken_shank(job, relief, radius)
    else:
        _hex_head(job, relief, radius, finish)
    speckle(job.rng, relief, 0.12)
    if job.damaged:
        rust(job.rng, relief, 0.75)
    elif job.rng.random() < 0.2:
        rust(job.rng, relief, 0.12)
    grime(relief, 0.7, 0.8)
    return relief


def _hex_head(job: Job, relief: Relief, radius: Array, finish: Material) -> None:
    flat, top = 0.74 * job.size, 0.62 * job.size
    head = polygon(relief.x, relief.y, 6, flat)
    if job.damaged:  # a worn spanner rounds the corners
        head = np.maximum(head, radius - 1.0 * flat) + 0.2 * fractal(job.rng, relief.shape, 2 * relief.scale)
    chamfer = np.maximum(radius - 0.86 * flat, 0) * 1.1
    relief.lay(relief.cover(head), finish, 1 + top - chamfer)
    dish = relief.cover(radius - 0.62 * flat)
    relief.lift(-0.22 * dish)
    count = int(job.rng.choice([0, 3, 6]))
    for angle in np.arange(count) * 2 * np.pi / max(count, 1):
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        mark = segment(
            relief.x, relief.y, (0.4 * flat * cos, 0.4 * flat * sin), (0.72 * flat * cos, 0.72 * flat * sin)
        )
        relief.lift(0.3 * relief.cover(mark - 0.28))


def _broken_shank(job: Job, relief: Relief, radius: Array) -> None:
    stump = radius - 0.45 * job.size + 0.25 * fractal(job.rng, relief.shape, 3 * relief.scale)
    relief.lay(relief.cover(radius - 0.55 * job.size), HOLE, -1.0)
    rough = fractal(job.rng, relief.shape, 2 * relief.scale)
    relief.lay(relief.cover(stump), Material((0.45, 0.43, 0.42), 0.9, 0.35), 0.6 + 0.45 * rough)


def screw(job: Job) -> Relief:
    """Cap screw with a hexagon socket or a cross; `size` is the head's radius. Damaged: stripped and rusty."""
    relief = job.relief((2 * job.size, 2 * job.size), np.pi)
    radius = np.hypot(relief.x, relief.y)
    head = radius - job.size
    finish = job.pick(BLACK_OXIDE, BLACK_OXIDE, STEEL, ZINC)
    relief.lay(relief.cover(head), finish, 0.6 * job.size + np.minimum(dome(head, 0.3 * job.size), 1.5))
    recess = _recess(job, relief)
    coverage = relief.cover(recess)
    relief.paint(coverage * 0.85, HOLE)
    relief.lift(-0.5 * job.size * coverage)
    speckle(job.rng, relief, 0.1)
    if job.damaged:
        rust(job.rng, relief, 0.65)
    grime(relief, 0.7, 0.6)
    return relief


def _recess(job: Job, relief: Relief) -> Array:
    if job.damaged:
        ragged = 0.12 * job.size * fractal(job.rng, relief.shape, 2.5 * relief.scale)
        return disc(relief.x, relief.y, 0.58 * job.size) + ragged
    if job.rng.random() < 0.7:
        return polygon(relief.x, relief.y, 6, 0.47 * job.size)
    arm = (1.25 * job.size, 0.3 * job.size)
    return np.minimum(box(relief.x, relief.y, arm), box(relief.x, relief.y, (arm[1], arm[0])))


LENS_COLORS = ((0.55, 0.02, 0.015), (0.02, 0.42, 0.05), (0.75, 0.33, 0.01), (0.02, 0.09, 0.5))


def led(job: Job) -> Relief:
    """Indicator lamp: a bezel ring and a glossy dome, lit or dark; `size` is the bezel's radius. Damaged: smashed."""
    relief = job.relief((2 * job.size, 2 * job.size), np.pi)
    radius = np.hypot(relief.x, relief.y)
    bezel = radius - job.size
    width = 0.3 * job.size
    ring = np.abs(radius - job.size + width / 2) - width / 2
    relief.lay(relief.cover(bezel), job.pick(CHROME, BRASS, CHROME), 0.8 + dome(ring, width / 2))
    lens = radius - (job.size - width)
    red, green, blue = LENS_COLORS[int(job.rng.integers(len(LENS_COLORS)))]
    lit = float(job.rng.uniform(1.6, 3.2)) if job.rng.random() < 0.45 and not job.damaged else 0.55
    glass = Material((red * lit, green * lit, blue * lit), 0.0, 1.0)
    relief.lay(relief.cover(lens), glass, 0.9 + 0.75 * dome(lens, job.size - width))
    if lit > 1:
        core = np.exp(-((radius / (0.42 * job.size)) ** 2))
        for channel, value in enumerate(glass.rgb):
            relief.albedo[channel] += core * np.float32(0.9 * value + 0.22)
    if job.damaged:
        _smash(job, relief, lens)
    return relief


def _smash(job: Job, relief: Relief, lens: Array) -> None:
    jagged = lens + 0.25 * job.size + 0.2 * job.size * fractal(job.rng, relief.shape, 2.5 * relief.scale)
    coverage = relief.cover(jagged)
    relief.paint(coverage * 0.95, HOLE)
    relief.lift(-2.0 * coverage)
    die = relief.cover(box(relief.x - 0.4, relief.y, (1.6, 1.2)))
    relief.paint(die * coverage, BRASS)

"""Parts that connect, show or tell: plug connectors, gauges, name plates."""

from __future__ import annotations

import numpy as np

from scantling.synth.fasteners import Job
from scantling.synth.relief import (
    BLACK_PLASTIC,
    BRASS,
    CHROME,
    GOLD,
    HOLE,
    STEEL,
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
    segment,
    speckle,
    streaks,
    write_text,
)

PAPER = Material((0.78, 0.77, 0.72), 0.0, 0.25)
INK = Material((0.02, 0.02, 0.025), 0.0, 0.2)
RED_INK = Material((0.55, 0.03, 0.02), 0.0, 0.2)
SHELLS = (
    BLACK_PLASTIC,
    BLACK_PLASTIC,
    Material((0.30, 0.31, 0.31), 0.0, 0.4),
    Material((0.02, 0.11, 0.05), 0.0, 0.45),
    Material((0.60, 0.58, 0.50), 0.0, 0.4),
)


def connector(job: Job) -> Relief:
    """Multi-pin socket in a plastic shell with two ears; `size` is the length. Damaged: broken shell, bent pins."""
    size, width = job.size, 0.44 * job.size
    relief = job.relief((size, width), 0.025)
    ears = box(relief.x, relief.y, (size, 0.66 * width), 2.0)
    shell = box(relief.x, relief.y, (0.76 * size, width), 2.0)
    if job.damaged:
        shell = np.maximum(shell, _breakage(job, relief, 0.38 * size, width / 2))
    relief.lay(relief.cover(ears), job.pick(ZINC, BLACK_PLASTIC), 1.4 + bevel(ears, 0.5, 0.6))
    relief.lay(relief.cover(shell), job.pick(*SHELLS), 4.6 + bevel(shell, 0.7, 1.0))
    for side in (-1, 1):
        x = relief.x - side * 0.44 * size
        head = disc(x, relief.y, 0.05 * size)
        relief.lay(relief.cover(head), STEEL, 2.2 + dome(head, 0.05 * size))
        relief.paint(relief.cover(box(x, relief.y, (0.08 * size, 0.6))) * 0.9, HOLE)
    cavity = box(relief.x, relief.y, (0.66 * size, 0.70 * width), 1.5)
    shielded = job.rng.random() < 0.5
    rim = np.abs(cavity) - 0.5
    relief.lay(relief.cover(cavity), Material((0.015, 0.015, 0.017), 0.0, 0.3), 1.6)
    if shielded:
        relief.lay(relief.cover(rim), job.pick(ZINC), 5.2)
    _pins(job, relief)
    speckle(job.rng, relief, 0.12)
    grime(relief, 0.8, 0.3)
    return relief


def _pins(job: Job, relief: Relief) -> None:
    size, rows = job.size, int(job.rng.integers(2, 4))
    columns = int(job.rng.integers(6, 9))
    for row in range(rows):
        for column in range(columns):
            if job.damaged and job.rng.random() < 0.3:
                continue
            wobble = job.rng.normal(0, 0.9, 2) if job.damaged else (0.0, 0.0)
            at_x = (column - (columns - 1) / 2) * 0.56 * size / (columns - 1) + wobble[0]
            at_y = (row - (rows - 1) / 2) * 0.36 * 0.44 * size / (rows - 1) + wobble[1]
            pin = disc(relief.x - np.float32(at_x), relief.y - np.float32(at_y), 0.023 * size)
            relief.lay(relief.cover(pin), GOLD, 2.6 + dome(pin, 0.025 * size))


def _breakage(job: Job, relief: Relief, half_width: float, half_height: float) -> Array:
    corner = (float(job.rng.choice([-1, 1])) * half_width, float(job.rng.choice([-1, 1])) * half_height)
    ragged = 1.2 * fractal(job.rng, relief.shape, 4 * relief.scale)
    distance: Array = ragged + 0.75 * half_height - np.hypot(relief.x - corner[0], relief.y - corner[1])
    return distance


def gauge(job: Job) -> Relief:
    """Pressure gauge behind glass; `size` is the bezel's radius. Damaged: glass cracked, needle gone."""
    size = job.size
    relief = job.relief((2 * size, 2 * size), 0.15)
    radius = np.hypot(relief.x, relief.y)
    bezel = radius - size
    ring = np.abs(radius - 0.9 * size) - 0.1 * size
    relief.lay(relief.cover(bezel), job.pick(CHROME, BRASS, BLACK_PLASTIC), 4.0 + dome(ring, 0.1 * size))
    dial = radius - 0.8 * size
    relief.lay(relief.cover(dial), PAPER._replace(gloss=0.9), 3.6)
    _scale_marks(job, relief, radius)
    if not job.damaged or job.rng.random() < 0.4:
        _needle(job, relief)
    if job.damaged:
        _cracks(job, relief, dial)
    stain = np.clip(fractal(job.rng, relief.shape, 8 * relief.scale) - 0.6, 0, 1)
    relief.tint(1 - 0.3 * stain * relief.cover(dial))
    return relief


def _scale_marks(job: Job, relief: Relief, radius: Array) -> None:
    size = job.size
    angle = np.mod(np.arctan2(relief.y, relief.x) - 0.75 * np.pi, 2 * np.pi)
    sweep = 1.5 * np.pi
    on_scale = (angle < sweep + 0.03).astype(np.float32)
    red = relief.cover(np.abs(radius - 0.7 * size) - 0.035 * size) * (angle > 0.78 * sweep) * on_scale
    relief.paint(red.astype(np.float32), RED_INK)
    step = sweep / 30
    for every, inner, thick in ((1, 0.66, 0.20), (5, 0.56, 0.42)):
        away = np.abs(np.mod(angle + every * step / 2, every * step) - every * step / 2) * radius
        tick = relief.cover(
            np.maximum(away - thick, np.abs(radius - (inner + 0.72) / 2 * size) - (0.72 - inner) / 2 * size)
        )
        relief.paint(tick * on_scale, INK)
    relief.paint(write_text(relief, "bar", (-0.2 * size, 0.5 * size), 0.14 * size) * 0.9, INK)


def _needle(job: Job, relief: Relief) -> None:
    size = job.size
    turn = 0.75 * np.pi + float(job.rng.uniform(0.05, 0.95)) * 1.5 * np.pi
    tip = (0.62 * size * float(np.cos(turn)), 0.62 * size * float(np.sin(turn)))
    away = segment(relief.x, relief.y, (-0.25 * tip[0], -0.25 * tip[1]), tip)
    width = 0.07 * size * np.clip(1 - np.hypot(relief.x, relief.y) / (0.8 * size), 0.2, 1)
    relief.lay(relief.cover(away - width), job.pick(INK, RED_INK), 4.2)
    hub = disc(relief.x, relief.y, 0.1 * size)
    relief.lay(relief.cover(hub), BRASS, 4.4 + dome(hub, 0.1 * size))


def _cracks(job: Job, relief: Relief, dial: Array) -> None:
    at = job.rng.uniform(-0.35, 0.35, 2) * job.size
    glass = relief.cover(dial)
    for angle in np.cumsum(job.rng.uniform(0.5, 1.2, 7)):
        length = float(job.rng.uniform(0.5, 1.4)) * job.size
        kink = at + 0.45 * length * np.array([np.cos(angle), np.sin(angle)])
        end = at + length * np.array([np.cos(angle + 0.25), np.sin(angle + 0.25)])
        for start, stop in ((at, kink), (kink, end)):
            away = segment(
                relief.x, relief.y, (float(start[0]), float(start[1])), (float(stop[0]), float(stop[1]))
            )
            relief.paint(relief.cover(away - 0.25) * glass, Material((0.9, 0.95, 0.95), 0.3, 1.0))
            relief.lift(0.35 * relief.cover(away - 0.5) * glass)
    hole = disc(relief.x - at[0], relief.y - at[1], 0.16 * job.size) + 0.4 * fractal(
        job.rng, relief.shape, 2 * relief.scale
    )
    relief.paint(relief.cover(hole), HOLE)


PLATE_INKS = (
    (Material((0.60, 0.61, 0.62), 1.0, 0.5), INK),
    (Material((0.03, 0.03, 0.033), 0.0, 0.5), Material((0.6, 0.6, 0.58), 0.6, 0.4)),
    (Material((0.70, 0.52, 0.03), 0.0, 0.4), INK),
    (Material((0.76, 0.76, 0.74), 0.0, 0.4), Material((0.03, 0.06, 0.25), 0.0, 0.3)),
)


def nameplate(job: Job) -> Relief:
    """Riveted type plate with lettering and a bar code; `size` is the length. Damaged: torn, rubbed off."""
    size, width = job.size, 0.46 * job.size
    relief = job.relief((size, width), 0.02)
    plate, ink = PLATE_INKS[int(job.rng.integers(len(PLATE_INKS)))]
    outline = box(relief.x, relief.y, (size, width), 2.5)
    if job.damaged:
        outline = np.maximum(outline, _breakage(job, relief, size / 2, width / 2) + 0.1 * size - 2)
    relief.lay(relief.cover(outline), plate, 0.6 + bevel(outline, 0.5, 0.5))
    relief.lift(0.035 * streaks(job.rng, relief.shape, 12 * relief.scale) * plate.metal)
    relief.paint(_lettering(job, relief, size, width) * 0.92, ink)
    for at_x in (-0.46, 0.46):
        for at_y in (-0.4, 0.4):
            rivet = disc(relief.x - at_x * size, relief.y - at_y * width, 1.3)
            relief.lay(relief.cover(rivet) * relief.alpha, ZINC, 0.9 + dome(rivet, 1.3))
    if job.damaged:
        _rub_off(job, relief, plate)
    speckle(job.rng, relief, 0.12)
    return relief


def _lettering(job: Job, relief: Relief, size: float, width: float) -> Array:
    border = relief.cover(np.abs(box(relief.x, relief.y, (0.85 * size, 0.86 * width), 1.5)) - 0.3)
    maker = ("HARKER", "NORDAN", "VELMO", "TRISKA")[int(job.rng.integers(4))]
    lines = [
        write_text(relief, maker, (-0.39 * size, -0.16 * width), 0.2 * width, 2),
        write_text(
            relief, f"TYPE GX-{job.rng.integers(20, 99)}", (-0.39 * size, 0.08 * width), 0.115 * width
        ),
        write_text(
            relief, f"No {job.rng.integers(10**5, 10**6)}", (-0.39 * size, 0.27 * width), 0.115 * width
        ),
    ]
    stripes = job.rng.random(26) < 0.5
    column = (relief.x - 0.08 * size) / (0.30 * size) * len(stripes)
    inside = relief.cover(box(relief.x - 0.23 * size, relief.y - 0.12 * width, (0.30 * size, 0.38 * width)))
    bars = inside * np.interp(column, np.arange(len(stripes)), stripes.astype(np.float32)).round()
    ink: Array = np.maximum.reduce([border, *lines, bars.astype(np.float32)])
    return ink


def _rub_off(job: Job, relief: Relief, plate: Material) -> None:
    worn = np.clip(fractal(job.rng, relief.shape, 9 * relief.scale) * 2 + 0.4, 0, 1)
    relief.paint(worn * relief.alpha, plate._replace(gloss=0.2))
    for _ in range(9):
        ends = job.rng.uniform(-0.5, 0.5, (2, 2)) * (job.size, 0.46 * job.size)
        away = segment(
            relief.x, relief.y, (float(ends[0, 0]), float(ends[0, 1])), (float(ends[1, 0]), float(ends[1, 1]))
        )
        relief.paint(relief.cover(away - 0.3) * relief.alpha * 0.8, STEEL)
        relief.lift(-0.25 * relief.cover(away - 0.3))

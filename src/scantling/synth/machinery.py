"""Parts that turn, seal, spring or carry: bearings, gears, springs, seals, brackets, hoses."""

from __future__ import annotations

import numpy as np

from scantling.synth.fasteners import Job
from scantling.synth.relief import (
    ALUMINIUM,
    BLACK_OXIDE,
    BRASS,
    HOLE,
    RUBBER,
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
    rings,
    rust,
    segment,
    speckle,
    streaks,
)

CAGES = (BRASS, Material((0.08, 0.06, 0.03), 0.0, 0.4), Material((0.3, 0.29, 0.28), 0.8, 0.4))
PAINTED = Material((0.62, 0.36, 0.02), 0.0, 0.45)
SEALS = (
    RUBBER,
    RUBBER,
    Material((0.32, 0.035, 0.02), 0.0, 0.35),
    Material((0.03, 0.14, 0.06), 0.0, 0.35),
    Material((0.36, 0.16, 0.03), 0.0, 0.35),
)


def bearing(job: Job) -> Relief:
    """Ball bearing, open or shielded, on its shaft; `size` is the outer radius. Damaged: balls lost, rust."""
    relief = job.relief((2 * job.size, 2 * job.size), np.pi)
    radius = np.hypot(relief.x, relief.y)
    size, steel = job.size, job.pick(STEEL)
    outer = np.abs(radius - 0.84 * size) - 0.10 * size
    inner = np.abs(radius - 0.47 * size) - 0.11 * size
    relief.lay(relief.cover(radius - size), HOLE, 0.5)
    if job.damaged or job.rng.random() < 0.65:
        _balls(job, relief)
    else:
        _shield(job, relief, radius)
    lathe_marks = 0.02 * rings(job.rng, radius, 0.35)
    relief.lay(relief.cover(outer), steel, 3.2 + bevel(outer, 0.6, 0.6) + lathe_marks)
    relief.lay(relief.cover(inner), steel, 3.2 + bevel(inner, 0.6, 0.6) + lathe_marks)
    shaft = radius - 0.34 * size
    relief.lay(
        relief.cover(shaft), job.pick(STEEL, BLACK_OXIDE), 2.6 + bevel(shaft, 1.0, 0.8) + 1.5 * lathe_marks
    )
    relief.paint(relief.cover(radius - 0.09 * size) * 0.9, HOLE)
    speckle(job.rng, relief, 0.08)
    if job.damaged:
        rust(job.rng, relief, 0.45)
    grime(relief, 1.2, 0.7)
    return relief


def _balls(job: Job, relief: Relief) -> None:
    track, ball = 0.665 * job.size, 0.125 * job.size
    count = int(job.rng.integers(8, 12))
    band = np.abs(np.hypot(relief.x, relief.y) - track) - 0.07 * job.size
    cage = CAGES[int(job.rng.integers(len(CAGES)))]
    relief.lay(relief.cover(band), cage, 1.3 + dome(band, 0.07 * job.size))
    lost = set(job.rng.choice(count, 3, replace=False).tolist()) if job.damaged else set()
    for number in range(count):
        angle = 2 * np.pi * number / count
        at = disc(relief.x - track * np.cos(angle), relief.y - track * np.sin(angle), ball)
        if number in lost:
            relief.lay(relief.cover(at), HOLE, 0.3)
        else:
            relief.lay(relief.cover(at), STEEL._replace(gloss=1.0), 1.2 + dome(at, ball))


def _shield(job: Job, relief: Relief, radius: Array) -> None:
    band = np.abs(radius - 0.665 * job.size) - 0.13 * job.size
    material = job.pick(
        Material((0.22, 0.22, 0.23), 1.0, 0.5), RUBBER, Material((0.20, 0.05, 0.03), 0.0, 0.4)
    )
    relief.lay(relief.cover(band), material, 2.4 + bevel(band, 0.8, 0.5))
    relief.lift(0.25 * relief.cover(np.abs(radius - 0.665 * job.size) - 0.3))


def gear(job: Job) -> Relief:
    """Spur gear with a hub; `size` is the tip radius. Damaged: teeth broken out."""
    relief = job.relief((2 * job.size, 2 * job.size), np.pi)
    size = job.size
    radius, angle = np.hypot(relief.x, relief.y), np.arctan2(relief.y, relief.x)
    body = _toothed(job, radius, angle)
    material = job.pick(STEEL, ALUMINIUM, BRASS, Material((0.30, 0.29, 0.28), 1.0, 0.45))
    relief.lay(relief.cover(body), material, 4.0 + bevel(body, 0.7, 0.7) + 0.03 * rings(job.rng, radius, 0.4))
    web = np.abs(radius - 0.56 * size) - 0.20 * size
    relief.lift(-bevel(web, 1.0, 1.5))
    if size > 20:
        _lighten(job, relief)
    _hub(job, relief, radius)
    speckle(job.rng, relief, 0.1)
    if job.damaged:
        rust(job.rng, relief, 0.35)
    oil = np.clip(0.6 + 0.5 * fractal(job.rng, relief.shape, 10 * relief.scale), 0, 1)
    relief.tint(1 - 0.35 * oil * relief.cover(0.78 * size - radius))
    grime(relief, 1.0, 0.5)
    return relief


def _toothed(job: Job, radius: Array, angle: Array) -> Array:
    count = max(12, round(job.size * 0.8))
    depth = 2.2 * job.size / count
    tooth = np.clip(1.7 * np.cos(count * angle) + 0.1, -1, 1) * 0.5 + 0.5
    outline = (radius - (job.size - depth) - depth * tooth) * np.float32(0.8)
    if not job.damaged:
        return outline
    start = float(job.rng.uniform(-np.pi, np.pi))
    for sweep, bite in ((0.0, 2.4), (float(job.rng.uniform(1.0, 5.0)), 1.5)):
        away = np.abs(np.mod(angle - start - sweep + np.pi, 2 * np.pi) - np.pi) * job.size
        ragged = 0.25 * depth * np.cos(9 * away / depth) + radius - job.size + 1.25 * depth
        outline = np.maximum(outline, np.minimum(ragged, bite * depth - away))
    return outline


def _lighten(job: Job, relief: Relief) -> None:
    count, track = int(job.rng.integers(4, 7)), 0.56 * job.size
    for number in range(count):
        turn = 2 * np.pi * number / count
        hole = disc(relief.x - track * np.cos(turn), relief.y - track * np.sin(turn), 0.135 * job.size)
        relief.lift(-0.5 * relief.cover(hole - 0.5))
        relief.cut(relief.cover(hole))


def _hub(job: Job, relief: Relief, radius: Array) -> None:
    size = job.size
    hub, shaft = radius - 0.34 * size, radius - 0.2 * size
    relief.lift(bevel(hub, 0.8, 1.4) * relief.alpha)
    relief.lay(relief.cover(shaft - 0.4), HOLE, 4.6)
    relief.lay(
        relief.cover(shaft),
        job.pick(STEEL),
        5.2 + bevel(shaft, 0.8, 0.8) + 0.03 * rings(job.rng, radius, 0.4),
    )
    key = box(relief.x - 0.21 * size, relief.y, (0.12 * size, 0.11 * size))
    relief.paint(relief.cover(key) * 0.9, BLACK_OXIDE)
    centre = relief.cover(radius - 0.05 * size)
    relief.paint(centre, HOLE)


def spring(job: Job) -> Relief:
    """Compression spring over a guide rod; `size` is the length. Damaged: broken in the middle, coils collapsed."""
    size, coil = job.size, 0.135 * job.size
    relief = job.relief((size, 2 * coil), 0.03)
    wire = 0.17 * coil + 0.55
    relief.lay(relief.cover(box(relief.x, relief.y, (size, 0.8 * coil))), BLACK_OXIDE, 1.0 + 0.3 * coil)
    for end in (-1, 1):
        cap = box(relief.x - end * (size / 2 - 1.4), relief.y, (2.8, 2 * coil), 0.6)
        relief.lay(relief.cover(cap), job.pick(STEEL, BRASS), 2.5 + bevel(cap, 0.8, 1.0))
    finish = job.pick(STEEL, ZINC, YELLOW_ZINC, Material((0.40, 0.02, 0.015), 0.0, 0.6))
    for start in _turns(job):
        lean = (start - coil * 0.22, -coil + wire), (start + coil * 0.22, coil - wire)
        away = segment(relief.x, relief.y, *lean) - np.float32(wire)
        arch = np.sqrt(np.clip(1 - (relief.y / coil) ** 2, 0, 1)) * 0.75 * coil
        relief.lay(relief.cover(away), finish, 0.5 + arch + 0.8 * dome(away, wire))
    speckle(job.rng, relief, 0.1)
    if job.damaged:
        rust(job.rng, relief, 0.5)
    grime(relief, 1.0, 1.0)
    return relief


def _turns(job: Job) -> list[float]:
    """Positions of the coils along the axis."""
    count = int(job.rng.integers(8, 11))
    span = job.size - 9
    places = np.linspace(-span / 2, span / 2, count)
    if job.damaged:
        gap = float(job.rng.uniform(-0.2, 0.2)) * span
        places = np.where(places < gap, gap - 4 - (gap - places) * 0.62, gap + 4 + (places - gap) * 0.62)
    return [float(place) for place in places]


def seal(job: Job) -> Relief:
    """O-ring lying in its groove; `size` is the outer radius. Damaged: cut through, ends apart."""
    tube = 0.085 * job.size + 1.0
    relief = job.relief((2 * job.size + 2, 2 * job.size + 2), np.pi)
    stretch = 1 + float(job.rng.uniform(-0.03, 0.03))
    x, y = relief.x * stretch, relief.y / stretch
    angle = np.arctan2(y, x)
    slip = 0.10 * job.size * np.clip(1 - np.abs(angle) / 0.9, 0, 1) * np.sign(angle) if job.damaged else 0
    away = np.abs(np.hypot(x, y) - (job.size - tube - slip)) - tube
    if job.damaged:
        away = np.maximum(
            away,
            (0.10 + 0.03 * fractal(job.rng, relief.shape, 3 * relief.scale)) * job.size
            - job.size * np.abs(angle),
        )
    relief.lay(relief.cover(away), job.pick(*SEALS), 0.4 + dome(away, tube))
    speckle(job.rng, relief, 0.18)
    relief.lift(0.04 * fractal(job.rng, relief.shape, relief.scale, 2))
    return relief


def bracket(job: Job) -> Relief:
    """Sheet-metal bracket with a slot, two holes and a bend; `size` is the length. Damaged: torn and bent."""
    size, width = job.size, 0.36 * job.size
    relief = job.relief((size, width), 0.03)
    outline = box(relief.x, relief.y, (size, width), 3.0)
    if job.damaged:
        outline = np.maximum(outline, _tear(job, relief, size, width))
    material = job.pick(ZINC, PAINTED, YELLOW_ZINC, Material((0.025, 0.09, 0.22), 0.0, 0.45))
    bend = 1.6 * np.tanh((relief.x - 0.18 * size) / 1.2)
    crease = np.clip(np.abs(relief.x + 0.5 * relief.y) - 1, 0, 9) * 0.22 if job.damaged else np.float32(0)
    relief.lay(relief.cover(outline), material, 2.4 + bevel(outline, 0.6, 0.6) + bend + crease)
    relief.lift(0.05 * streaks(job.rng, relief.shape, 14 * relief.scale) * material.metal)
    for at in (-0.38, 0.38):
        hole = disc(relief.x - at * size, relief.y, 0.075 * size)
        relief.lift(-0.5 * relief.cover(hole - 0.6))
        relief.cut(relief.cover(hole))
    slot = box(relief.x + 0.08 * size, relief.y, (0.3 * size, 0.13 * size), 0.06 * size)
    relief.cut(relief.cover(slot))
    for side in (-1, 1):
        rib = np.abs(relief.y - side * 0.3 * width) - 0.5
        relief.lift(0.5 * relief.cover(np.maximum(rib, np.abs(relief.x + 0.08 * size) - 0.2 * size)))
    speckle(job.rng, relief, 0.1)
    if job.damaged or job.rng.random() < 0.25:
        rust(job.rng, relief, 0.4 if job.damaged else 0.08)
    grime(relief, 1.0, 0.6)
    return relief


def _tear(job: Job, relief: Relief, size: float, width: float) -> Array:
    corner = (float(job.rng.choice([-1, 1])) * size / 2, float(job.rng.choice([-1, 1])) * width / 2)
    ragged = 1.5 * fractal(job.rng, relief.shape, 4 * relief.scale)
    distance: Array = ragged + 0.34 * size - np.hypot(relief.x - corner[0], relief.y - corner[1])
    return distance


def hose(job: Job) -> Relief:
    """Flexible hose between two fittings, in a lazy S; `size` is the length. Damaged: split, with the braid out."""
    size, tube = job.size, 0.052 * job.size
    bow = 0.11 * size * float(job.rng.uniform(0.8, 1.2))
    relief = job.relief((size, 2 * bow + 2 * tube + 5), 0.02)
    phase = np.clip(relief.x / (0.36 * size), -1, 1) * np.float32(np.pi)
    middle = 1.3 * bow * np.sin(phase) * np.cos(phase / 2)
    slope = np.cos(phase) * np.cos(phase / 2) - 0.5 * np.sin(phase) * np.sin(phase / 2)
    lean = 1 / np.sqrt(1 + (1.3 * bow * np.pi / (0.36 * size) * slope) ** 2)
    across, along = (relief.y - middle) * lean, relief.x / lean
    _tube(job, relief, across, along)
    for end in (-1, 1):
        _fitting(job, relief, across, relief.x * end - size / 2)
    grime(relief, 1.2, 0.8)
    return relief


def _tube(job: Job, relief: Relief, across: Array, along: Array) -> None:
    tube = 0.052 * job.size
    wall = np.maximum(np.abs(across) - np.float32(tube), np.abs(relief.x) - np.float32(0.43 * job.size))
    style = int(job.rng.integers(3))
    if style == 0:  # corrugated
        wall += 0.5 * np.cos(along * 2.0)
    material = job.pick(
        RUBBER, Material((0.05, 0.05, 0.055), 0.0, 0.5), Material((0.03, 0.06, 0.16), 0.0, 0.45)
    )
    if style == 1:
        material = job.pick(STEEL._replace(gloss=0.5))
    relief.lay(relief.cover(wall), material, 1.5 + dome(wall, tube))
    if style == 0:
        relief.lift(0.9 * np.cos(along * 2.0) * relief.alpha)
    elif style == 1:
        relief.lift(
            0.35 * np.cos(1.6 * (along + 2 * across)) * np.cos(1.6 * (along - 2 * across)) * relief.alpha
        )
    else:
        stripe = relief.cover(np.abs(across + 0.3 * tube) - 0.35)
        relief.paint(stripe * 0.8, Material((0.6, 0.58, 0.5), 0.0, 0.3))
    if job.damaged:
        _split(job, relief, across, along)
    speckle(job.rng, relief, 0.15)


def _split(job: Job, relief: Relief, across: Array, along: Array) -> None:
    at = float(job.rng.uniform(-0.25, 0.25)) * job.size
    ragged = 0.7 * fractal(job.rng, relief.shape, 3 * relief.scale)
    gash = np.abs(along - at + 0.5 * across) / 3 + np.abs(across) / 8 - 1 + 0.35 * ragged
    inside = relief.cover(gash * 3)
    relief.paint(inside, Material((0.55, 0.50, 0.40), 0.0, 0.1))
    relief.lift(-2.2 * inside + inside * 0.8 * np.cos(5 * across) * np.cos(5 * along))
    relief.paint(relief.cover(np.abs(gash * 3) - 0.6) * 0.7, HOLE)


def _fitting(job: Job, relief: Relief, across: Array, inwards: Array) -> None:
    """Hexagon nut and clamp at the end where `inwards` is 0 (negative towards the middle)."""
    tube = 0.052 * job.size
    nut = box(inwards + 0.03 * job.size, across, (0.06 * job.size, 2.5 * tube), 0.8)
    facets = 1.3 * tube * np.clip(1.25 - np.abs(across) / (1.25 * tube), 0.3, 0.8)
    relief.lay(relief.cover(nut), BRASS, 1.5 + facets)
    clamp = box(inwards + 0.105 * job.size, across, (0.04 * job.size, 2.25 * tube), 0.5)
    arch = np.sqrt(np.clip(1 - (across / (1.15 * tube)) ** 2, 0, 1)) * tube
    relief.lay(relief.cover(clamp), ZINC, 2.2 + arch)
    screw = box(inwards + 0.105 * job.size, across - 0.6 * tube, (0.055 * job.size, 0.7 * tube), 0.5)
    relief.lay(relief.cover(screw), STEEL, 3.0 + tube)

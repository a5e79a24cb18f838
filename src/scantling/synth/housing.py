"""The empty housing on its bench: what is left when every part is absent."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from scantling.synth.layout import BODY, BODY_WH, CHAMBER, MACHINED, SLOTS, Slot, centred
from scantling.synth.relief import (
    ALUMINIUM,
    BLACK_PLASTIC,
    BRASS,
    HOLE,
    RUBBER,
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
    polygon,
    rings,
    rust,
    segment,
    streaks,
    write_text,
)

PAINTS = (
    Material((0.085, 0.19, 0.155), 0.0, 0.42),  # machine green
    Material((0.24, 0.26, 0.27), 0.0, 0.40),  # gray
    Material((0.035, 0.095, 0.22), 0.0, 0.45),  # blue
    Material((0.40, 0.40, 0.385), 0.55, 0.30),  # bare casting
    Material((0.045, 0.047, 0.05), 0.0, 0.38),  # black
    Material((0.40, 0.37, 0.28), 0.0, 0.40),  # ivory
)


def draw_housing(
    rng: np.random.Generator, size_wh: tuple[float, float], scale: float, variant: int
) -> Relief:
    """Bench, casting, machined faces and every slot's empty seat.

    Args:
        rng: Where this housing differs from the next.
        size_wh: Canvas extent in units; the housing sits in its middle.
        scale: Array pixels per unit.
        variant: Picks paint and bench, so that a few variants show them all.
    """
    relief = Relief.blank(size_wh, scale)
    benches = (_wood, _studded_rubber, _steel_table, _cutting_mat, _concrete)
    benches[variant % len(benches)](relief, rng)
    case = relief.near((0, 0), (BODY_WH[0] + 26, BODY_WH[1] + 8), 0)
    _casting(case, rng, PAINTS[variant % len(PAINTS)])
    _machined_faces(case, rng, variant)
    _small_fittings(case, rng)
    for slot in SLOTS:
        reach = 2.4 * slot.size if slot.category in ROUND else 1.2 * slot.size
        SEATS[slot.category](case.near(centred(slot.at), (reach, reach), slot.seat), rng, slot)
    _wear(relief.near((0, 0), BODY_WH, 0), rng)
    return relief


# ---------------------------------------------------------------------------------------------------------------
# Benches
# ---------------------------------------------------------------------------------------------------------------


def _everywhere(relief: Relief) -> Array:
    return np.ones(relief.shape, np.float32)


def _wood(relief: Relief, rng: np.random.Generator) -> None:
    relief.lay(_everywhere(relief), Material((0.36, 0.205, 0.10), 0.0, 0.22), 0)
    grain = streaks(rng, relief.shape, 60 * relief.scale) * 0.5 + fractal(
        rng, relief.shape, 60 * relief.scale, 3
    )
    relief.tint(np.clip(1 + 0.22 * grain, 0.4, 1.6))
    plank = np.mod(relief.y + 200, 47) - 1
    relief.tint(1 - 0.8 * relief.cover(np.abs(plank) - 0.6))
    relief.lift(0.05 * grain)


def _studded_rubber(relief: Relief, rng: np.random.Generator) -> None:
    relief.lay(_everywhere(relief), Material((0.035, 0.036, 0.04), 0.0, 0.28), 0)
    pitch = 9.0
    x = np.mod(relief.x + 500, pitch) - pitch / 2
    y = np.mod(relief.y + 500, pitch) - pitch / 2
    relief.lift(
        0.7 * np.clip(-disc(x, y, 2.6) / 1.2, 0, 1) + 0.08 * fractal(rng, relief.shape, 2 * relief.scale, 2)
    )
    dust = np.clip(fractal(rng, relief.shape, 40 * relief.scale), 0, 2)
    relief.paint(dust * 0.10, Material((0.3, 0.28, 0.25), 0.0, 0.1))


def _steel_table(relief: Relief, rng: np.random.Generator) -> None:
    relief.lay(_everywhere(relief), Material((0.40, 0.41, 0.42), 1.0, 0.42), 0)
    relief.lift(0.03 * streaks(rng, relief.shape, 30 * relief.scale))
    relief.tint(np.clip(1 + 0.15 * fractal(rng, relief.shape, 50 * relief.scale), 0.5, 1.5))


def _cutting_mat(relief: Relief, rng: np.random.Generator) -> None:
    relief.lay(_everywhere(relief), Material((0.02, 0.11, 0.085), 0.0, 0.3), 0)
    for axis in (relief.x, relief.y):
        line = relief.cover(np.abs(np.mod(axis + 500, 16) - 8) - 0.25)
        relief.paint(line * 0.6, Material((0.45, 0.5, 0.35), 0.0, 0.3))
    relief.lift(0.04 * fractal(rng, relief.shape, 1.5 * relief.scale, 2))


def _concrete(relief: Relief, rng: np.random.Generator) -> None:
    relief.lay(_everywhere(relief), Material((0.27, 0.265, 0.25), 0.0, 0.12), 0)
    relief.tint(np.clip(1 + 0.16 * fractal(rng, relief.shape, 30 * relief.scale, 6), 0.4, 1.6))
    relief.lift(0.14 * fractal(rng, relief.shape, 3 * relief.scale, 3))


# ---------------------------------------------------------------------------------------------------------------
# Casting
# ---------------------------------------------------------------------------------------------------------------


def _patch(relief: Relief, at: tuple[float, float], size_wh: tuple[float, float]) -> Relief:
    """Window of a few units more than `size_wh` about a place of the drawing, with heights above the bench."""
    return relief.near(centred(at), (size_wh[0] + 6, size_wh[1] + 6), 0)


def _casting(relief: Relief, rng: np.random.Generator, paint: Material) -> None:
    for corner_x in (-1, 1):
        for corner_y in (-0.62, 0.66):
            lug = relief.near((corner_x * (BODY_WH[0] / 2 + 1), corner_y * BODY_WH[1] / 2), (26, 26), 0)
            away = disc(lug.x, lug.y, 10.5)
            lug.lay(lug.cover(away), paint, 2.5 + bevel(away, 1.5, 1.5))
            lug.lay(lug.cover(away + 5.5), HOLE, -1.0)
    outline = box(relief.x, relief.y, BODY_WH, 16)
    relief.lay(relief.cover(outline), paint, BODY - 5 + bevel(outline, 5, 5))
    _pockets_and_ribs(relief)
    inside = relief.cover(outline)
    relief.lift(inside * (0.055 * fractal(rng, relief.shape, 1.3 * relief.scale, 2)))
    relief.tint(1 + inside * 0.07 * fractal(rng, relief.shape, 40 * relief.scale, 4))
    letters = relief.near(centred((196, 222)), (60, 14), 0)
    letters.lift(0.9 * write_text(letters, "GX-40/B", (-26, 2), 6.0, 2))


POCKETS = (((92, 187), (136, 66), 12), ((193, 164), (58, 42), 6), ((268, 191), (60, 66), 5))
RIBS = (
    ((164, 68), (176, 83)),
    ((218, 83), (234, 66)),
    ((218, 126), (234, 142)),
    ((164, 142), (176, 126)),
    ((163, 150), (163, 222)),
    ((231, 150), (231, 222)),
    ((160, 104), (168, 104)),
    ((227, 104), (233, 104)),
)


def _pockets_and_ribs(relief: Relief) -> None:
    for at, size_wh, corner in POCKETS:
        pocket = _patch(relief, at, size_wh)
        pocket.lift(-bevel(box(pocket.x, pocket.y, size_wh, corner), 2.5, 2.2))
    for start, end in RIBS:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        span = (end[0] - start[0]) / 2, (end[1] - start[1]) / 2
        rib = _patch(relief, middle, (2 * abs(span[0]) + 4, 2 * abs(span[1]) + 4))
        away = segment(rib.x, rib.y, (-span[0], -span[1]), span) - np.float32(2.0)
        rib.lift(bevel(away, 1.6, 2.0))


FLANGE_BOLTS = tuple(slot.at for slot in SLOTS if slot.category == "bolt")
EARS = tuple(slot.at for slot in SLOTS if slot.category == "screw")[:4]
PADS = (((253, 99), 23.5), ((291, 120), 14.5), ((240, 74), 7.5), ((30, 214), 7.5), ((282, 54), 24.0))


def _machined_faces(relief: Relief, rng: np.random.Generator, variant: int) -> None:
    paint = PAINTS[variant % len(PAINTS)]
    metal = (STEEL, ALUMINIUM, paint)[int(rng.integers(3))]
    case = _patch(relief, (91, 84), (152, 140))
    flange = np.minimum(box(case.x, case.y, (124, 110), 10), _lobes(case, (91, 84), FLANGE_BOLTS, 9.5))
    case.paint(case.cover(flange - 1.0), RUBBER)  # the gasket looks out
    brushed = 0.022 * streaks(rng, case.shape, 20 * case.scale)
    case.lay(case.cover(flange), metal, MACHINED - 1.4 + bevel(flange, 1.2, 1.4) + brushed)
    chamber = box(case.x, case.y, (108, 94), 12)
    case.lift(-bevel(chamber - 1.2, 1.2, 0.8))
    floor = Material((0.12, 0.115, 0.105), 0.5, 0.4)
    case.lay(case.cover(chamber), floor, CHAMBER + 0.05 * fractal(rng, case.shape, 1.4 * case.scale, 2))
    boss = _patch(relief, (197, 104), (66, 66))
    face = np.minimum(disc(boss.x, boss.y, 28.5), _lobes(boss, (197, 104), EARS, 8.0))
    lathe_marks = 0.025 * rings(rng, disc(boss.x, boss.y, 0), 0.5)
    boss.lay(boss.cover(face), paint, MACHINED - 1.4 + bevel(face, 1.2, 1.4) + 0.4 * lathe_marks)
    rim = np.abs(disc(boss.x, boss.y, 22.6)) - 1.6
    boss.paint(boss.cover(rim), ALUMINIUM)
    for at, radius in PADS:
        pad = _patch(relief, at, (2 * radius, 2 * radius))
        away = disc(pad.x, pad.y, radius)
        lathe_marks = 0.025 * rings(rng, away + radius, 0.45)
        pad.lay(
            pad.cover(away),
            paint if radius > 23.6 else ALUMINIUM,
            MACHINED - 1.2 + bevel(away, 1, 1.2) + lathe_marks,
        )
    panel = _patch(relief, (266, 148), (56, 14))
    away = box(panel.x, panel.y, (56, 14), 2)
    panel.lay(panel.cover(away), BLACK_PLASTIC, BODY + bevel(away, 0.8, 0.8))


def _lobes(
    relief: Relief, origin: tuple[float, float], places: tuple[tuple[float, float], ...], radius: float
) -> Array:
    """Distance to the union of discs at places of the drawing, in a window about `origin`."""
    lobes = [
        disc(relief.x - np.float32(x - origin[0]), relief.y - np.float32(y - origin[1]), radius)
        for x, y in places
    ]
    distance: Array = np.minimum.reduce(lobes)
    return distance


RIVETS = (
    (172, 68),
    (238, 128),
    (168, 146),
    (302, 90),
    (228, 146),
    (304, 216),
    (18, 156),
    (304, 28),
    (172, 22),
    (18, 60),
)


def _small_fittings(relief: Relief, rng: np.random.Generator) -> None:
    """Clutter nobody labels: rivets, plugs, a drain, warning marks."""
    for at in RIVETS:
        rivet = relief.near(centred(at), (8, 8), 0)
        head = disc(rivet.x, rivet.y, 2.0)
        rivet.lay(rivet.cover(head), BRASS if rng.random() < 0.3 else ZINC, BODY + dome(head, 2.0))
    drain = relief.near(centred((304, 160)), (12, 12), 0)
    plug = polygon(drain.x, drain.y, 4, 3.0)
    drain.lay(drain.cover(plug), BRASS, BODY + bevel(plug, 0.8, 1.6))
    sign = relief.near(centred((20, 196)), (16, 16), 0)
    arrow = np.maximum(np.abs(sign.x) - (sign.y + 4) * 0.6, np.abs(sign.y) - 4)
    sign.paint(sign.cover(arrow) * 0.85, Material((0.62, 0.5, 0.04), 0.0, 0.3))


# ---------------------------------------------------------------------------------------------------------------
# Empty seats, one function per category; each draws in a window about its slot
# ---------------------------------------------------------------------------------------------------------------

ROUND = ("bolt", "screw", "led", "bearing", "gear", "gauge", "seal")  # their slot's size is a radius


def _threaded_hole(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    radius = disc(relief.x, relief.y, 0)
    relief.lay(relief.cover(radius - 0.9 * slot.size), Material((0.42, 0.41, 0.40), 1.0, 0.45), -0.2)
    hole = radius - 0.45 * slot.size
    relief.lift(-0.6 * relief.cover(hole - 0.5))
    relief.lay(relief.cover(hole), HOLE, -4)


def _lamp_hole(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    relief.lay(relief.cover(disc(relief.x, relief.y, 0.7 * slot.size)), HOLE, -3)


def _bore(relief: Relief, rng: np.random.Generator, slot: Slot) -> None:
    radius = disc(relief.x, relief.y, 0)
    lathe_marks = 0.05 * rings(rng, radius, 0.5)
    relief.lay(relief.cover(radius - slot.size), Material((0.36, 0.35, 0.34), 1.0, 0.45), -1.5 + lathe_marks)
    relief.lay(relief.cover(radius - 0.62 * slot.size), HOLE, -4)


def _shaft_stub(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    radius = disc(relief.x, relief.y, 0)
    shoulder, shaft = radius - 0.3 * slot.size, radius - 0.17 * slot.size
    relief.lay(relief.cover(shoulder), Material((0.3, 0.29, 0.28), 1.0, 0.4), bevel(shoulder, 0.8, 0.8))
    relief.lay(relief.cover(shaft), STEEL, 2.2 + bevel(shaft, 0.8, 0.8))
    relief.paint(relief.cover(radius - 0.04 * slot.size), HOLE)


def _pegs(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    trough = relief.cover(box(relief.x, relief.y, (slot.size + 4, 0.36 * slot.size), 3))
    relief.tint(1 - 0.35 * trough)
    for end in (-1, 1):
        peg = disc(relief.x - np.float32(end * (slot.size / 2 - 1)), relief.y, 2.4)
        relief.lay(relief.cover(peg), STEEL, dome(peg, 2.0))


def _ports(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    for end in (-1, 1):
        radius = disc(relief.x - np.float32(end * 0.46 * slot.size), relief.y, 0)
        relief.lay(
            relief.cover(radius - 7), Material((0.34, 0.33, 0.32), 1.0, 0.4), bevel(radius - 7, 1, 0.6)
        )
        relief.lay(relief.cover(radius - 4), HOLE, -4)


WIRES = ((0.5, 0.03, 0.02), (0.55, 0.45, 0.03), (0.02, 0.1, 0.4))


def _cutout(relief: Relief, rng: np.random.Generator, slot: Slot) -> None:
    window = box(relief.x, relief.y, (0.68 * slot.size, 0.34 * slot.size), 2)
    relief.lay(relief.cover(window), HOLE, -4)
    phase = rng.uniform(0, 6.3)
    for number, color in enumerate(WIRES):
        lane = relief.y - (number - 1) * 3.2 - 1.2 * np.sin(relief.x * 0.3 + number + phase)
        wire = np.maximum(np.abs(lane) - 1, np.abs(relief.x) - 0.32 * slot.size)
        relief.lay(relief.cover(wire), Material(color, 0.0, 0.5), -3 + dome(wire, 1))
    for end in (-1, 1):
        hole = disc(relief.x - np.float32(end * 0.44 * slot.size), relief.y, 1.6)
        relief.lay(relief.cover(hole), HOLE, -2)


def _gauge_port(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    radius = disc(relief.x, relief.y, 0)
    nut = polygon(relief.x, relief.y, 6, 0.42 * slot.size)
    relief.lay(relief.cover(nut), BRASS, bevel(nut, 1.2, 1.8))
    relief.lay(relief.cover(radius - 0.22 * slot.size), HOLE, -3)
    relief.tint(1 - 0.35 * relief.cover(np.abs(radius - 0.92 * slot.size) - 1.2))


def _glue_patch(relief: Relief, rng: np.random.Generator, slot: Slot) -> None:
    size_wh = (slot.size, 0.46 * slot.size)
    patch = relief.cover(box(relief.x, relief.y, size_wh, 2.5))
    relief.tint(1 + 0.45 * patch)
    glue = np.clip(fractal(rng, relief.shape, 8 * relief.scale) - 0.3, 0, 1)
    relief.paint(glue * patch * 0.5, Material((0.5, 0.44, 0.28), 0.0, 0.15))
    for at_x in (-0.46, 0.46):
        for at_y in (-0.4, 0.4):
            hole = disc(
                relief.x - np.float32(at_x * size_wh[0]), relief.y - np.float32(at_y * size_wh[1]), 1.1
            )
            relief.lay(relief.cover(hole), HOLE, -2)


def _two_holes(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    relief.tint(1 - 0.2 * relief.cover(box(relief.x, relief.y, (slot.size, 0.36 * slot.size), 3)))
    for end in (-0.38, 0.38):
        radius = disc(relief.x - np.float32(end * slot.size), relief.y, 0)
        pad = radius - 5.2
        relief.lay(relief.cover(pad), Material((0.5, 0.49, 0.48), 1.0, 0.45), bevel(pad, 0.5, 0.5))
        relief.lay(relief.cover(radius - 2.4), HOLE, -3)


def _groove(relief: Relief, _rng: np.random.Generator, slot: Slot) -> None:
    radius = disc(relief.x, relief.y, 0)
    tube = 0.085 * slot.size + 1.4
    groove = np.abs(radius - (slot.size - tube + 0.4)) - tube
    relief.lift(-1.2 * np.clip(-groove * 1.5, 0, 1))
    relief.tint(1 - 0.45 * relief.cover(groove))
    relief.lay(relief.cover(radius - 0.38 * slot.size), HOLE, -4)


SEATS: dict[str, Callable[[Relief, np.random.Generator, Slot], None]] = {
    "bolt": _threaded_hole,
    "screw": _threaded_hole,
    "led": _lamp_hole,
    "bearing": _bore,
    "gear": _shaft_stub,
    "spring": _pegs,
    "seal": _groove,
    "bracket": _two_holes,
    "hose": _ports,
    "connector": _cutout,
    "gauge": _gauge_port,
    "nameplate": _glue_patch,
}


def _wear(relief: Relief, rng: np.random.Generator) -> None:
    """Bare metal on edges, dirt in corners, a little rust, smeared grease."""
    around = cv2.GaussianBlur(relief.height, (0, 0), 1.6 * relief.scale)
    exposed = np.clip(relief.height - around - 0.3, 0, 1)
    chipped = np.clip(fractal(rng, relief.shape, 6 * relief.scale, 4) * 2 - 1.7, 0, 1) * exposed
    relief.paint(np.clip(chipped * 2.5, 0, 0.9), Material((0.5, 0.49, 0.47), 1.0, 0.45))
    grime(relief, 2.0, 0.22)
    grease = np.clip(fractal(rng, relief.shape, 24 * relief.scale, 5) * 1.2 - 2.0, 0, 1)
    relief.tint(1 - 0.4 * grease)
    relief.gloss += (0.75 - relief.gloss) * grease * 0.6
    rust(rng, relief, 0.004)

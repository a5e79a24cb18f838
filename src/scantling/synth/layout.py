"""Where each component sits: the one drawing all scenes are assembled from.

Positions and sizes are units (pixels of a 320x240 picture), origin in the top left corner of that picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scantling.synth.electrics import connector, gauge, nameplate
from scantling.synth.fasteners import Job, bolt, led, screw
from scantling.synth.machinery import bearing, bracket, gear, hose, seal, spring
from scantling.synth.relief import Relief

FRAME_WH = (320.0, 240.0)
BODY_WH = (298.0, 220.0)  # the housing, centred in the frame

BODY, MACHINED, CHAMBER = 7.0, 9.5, 2.5  # heights of the grounds parts stand on

DRAW: dict[str, Callable[[Job], Relief]] = {
    "bolt": bolt,
    "screw": screw,
    "led": led,
    "bearing": bearing,
    "gear": gear,
    "spring": spring,
    "seal": seal,
    "bracket": bracket,
    "hose": hose,
    "connector": connector,
    "gauge": gauge,
    "nameplate": nameplate,
}
DEFECTS = ("scratch", "pit", "stain")

CATEGORY_IDS: dict[str, int] = {
    **{name: number for number, name in enumerate(DRAW, start=1)},
    **{name: number for number, name in enumerate(DEFECTS, start=21)},  # with a gap, as in grown catalogues
}


class Slot(NamedTuple):
    """A place on the housing and the component that belongs there.

    Attributes:
        name: Unique; the part's name in DelftBikes' layout.
        category: Key of `DRAW`.
        at: Centre in units.
        size: Nominal radius or length in units, as the category's function defines it.
        seat: Height of the ground in units.
        turn: Orientation in radians.
        often_absent: Factor on the configured rate of absence: above 1 for optional equipment.
    """

    name: str
    category: str
    at: tuple[float, float]
    size: float
    seat: float
    turn: float = 0.0
    often_absent: float = 1.0


def _row(category: str, size: float, seat: float, *places: tuple[float, float]) -> list[Slot]:
    return [
        Slot(f"{category}_{number}", category, place, size, seat)
        for number, place in enumerate(places, start=1)
    ]


SLOTS: tuple[Slot, ...] = (
    # in the order they are mounted: later ones lie on top
    Slot("gear_large", "gear", (77, 86), 31, CHAMBER),
    Slot("gear_small", "gear", (124, 101), 16.5, CHAMBER),
    Slot("bearing_large", "bearing", (197, 104), 21, BODY - 1),
    Slot("bearing_small", "bearing", (125, 57), 13, CHAMBER),
    Slot("seal_large", "seal", (253, 99), 19, MACHINED - 1),
    Slot("seal_small", "seal", (291, 120), 11, MACHINED - 1),
    Slot("nameplate", "nameplate", (214, 41), 74, BODY),
    Slot("gauge", "gauge", (282, 54), 21, MACHINED, often_absent=12),
    Slot("bracket", "bracket", (196, 204), 62, BODY, often_absent=4),
    Slot("hose", "hose", (92, 187), 128, BODY - 2),
    Slot("spring_1", "spring", (193, 154), 50, BODY - 2),
    Slot("spring_2", "spring", (193, 174), 42, BODY - 2, often_absent=2),
    Slot("connector_1", "connector", (268, 176), 48, BODY - 2),
    Slot("connector_2", "connector", (268, 206), 42, BODY - 2, often_absent=3),
    *_row("led", 4.6, BODY + 0.8, (248, 148), (266, 148), (284, 148)),
    *_row(
        "bolt",
        6.4,
        MACHINED,
        *((31, 31), (91, 27), (151, 31), (27, 84), (155, 84), (31, 137), (91, 141), (151, 137)),
    ),
    *_row("screw", 4.7, MACHINED, (175, 82), (219, 82), (175, 126), (219, 126), (240, 74), (30, 214)),
)
SLOT_NAMES = tuple(slot.name for slot in SLOTS)


def centred(at: tuple[float, float]) -> tuple[float, float]:
    """A place of the drawing relative to the middle of the frame."""
    return at[0] - FRAME_WH[0] / 2, at[1] - FRAME_WH[1] / 2

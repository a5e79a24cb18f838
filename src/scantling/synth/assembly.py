"""Put parts into a housing, damage it, cover it, point a camera at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.synth.defects import DRAW_DEFECT, DefectPatch, apply
from scantling.synth.kit import DIRTS, HOUSINGS, OCCLUDER_VARIANTS, Kit
from scantling.synth.layout import BODY_WH, DEFECTS, FRAME_WH, SLOTS, Slot, centred
from scantling.synth.occluders import OCCLUDERS
from scantling.synth.relief import CHANNELS, Array, Sprite

Ids = NDArray[np.uint8]
Slices = tuple[slice, slice]
DEFECT_ODDS = (0.5, 0.15, 0.35)  # scratch, pit, stain
MAX_OCCLUDERS, MAX_DEFECTS = 8, 60


class Fit(NamedTuple):
    """What is done to one slot: nothing there, or a specimen, whole or damaged."""

    slot: Slot
    absent: bool
    damaged: bool
    specimen: int
    nudge: tuple[float, float]


@dataclass(slots=True, eq=False)
class Canvas:
    """A scene on the canvas, before the camera.

    Attributes:
        kit: Where the pieces come from.
        layers: (CHANNELS, h, w) albedo, height, normals, metalness and gloss.
        places: (h, w) 1 + index of the slot whose part belongs here, whether it is there, hidden, or absent; 0: none.
        visible: (h, w) 1 + index of the slot whose part shows here; 0: none.
        marks: (h, w) 1 + index of the surface defect that shows here; 0: none.
        defects: Category of each surface defect.
    """

    kit: Kit
    layers: Array
    places: Ids
    visible: Ids
    marks: Ids
    defects: list[str] = field(default_factory=list)

    def mount(self, number: int, fit: Fit) -> None:
        """Put a part into its slot, or note where it is missing."""
        at = fit.slot.at if fit.absent else (fit.slot.at[0] + fit.nudge[0], fit.slot.at[1] + fit.nudge[1])
        sprite = self.kit.component(fit.slot, fit.specimen, damaged=fit.damaged and not fit.absent)
        here, inner = self._window(at, sprite.corner_xy, sprite.solid.shape)
        solid = sprite.solid[inner]
        self.places[here][solid] = number
        if not fit.absent:
            _composite(self.layers[:, *here], sprite.layers[:, *inner], sprite.rest[inner])
            self.visible[here][solid] = number

    def cover(self, at: tuple[float, float], sprite: Sprite) -> None:
        """Drop an occluder so that its origin comes to lie at a place of the drawing."""
        here, inner = self._window(at, sprite.corner_xy, sprite.solid.shape)
        _composite(self.layers[:, *here], sprite.layers[:, *inner], sprite.rest[inner])
        self.visible[here][sprite.solid[inner]] = 0
        self.marks[here][sprite.solid[inner]] = 0

    def scar(self, category: str, at: tuple[float, float], mark: DefectPatch) -> None:
        """Draw a surface defect about a place of the drawing."""
        rows, columns = mark.coverage.shape
        here, inner = self._window(at, (-(columns // 2), -(rows // 2)), (rows, columns))
        shown = mark._replace(coverage=mark.coverage[inner], relief=mark.relief[inner])
        apply(shown, self.layers[:, *here], self.kit.scale)
        self.defects.append(category)
        self.marks[here][mark.solid[inner]] = len(self.defects)

    def _window(
        self, at: tuple[float, float], corner_xy: tuple[int, int], patch_hw: tuple[int, ...]
    ) -> tuple[Slices, Slices]:
        """Canvas pixels under a patch whose origin lies at a place of the drawing, and the patch's part of them.

        Args:
            at: Place in units.
            corner_xy: Upper left pixel of the patch relative to its origin.
            patch_hw: Size of the patch; what hangs over the canvas is cut off.
        """
        outer, inner = [], []
        for axis in (0, 1):
            limit = self.places.shape[axis]
            start = round(centred(at)[1 - axis] * self.kit.scale + limit / 2) + corner_xy[1 - axis]
            low = min(max(start, 0), limit)
            high = max(min(start + patch_hw[axis], limit), low)
            outer.append(slice(low, high))
            inner.append(slice(low - start, high - start))
        return (outer[0], outer[1]), (inner[0], inner[1])


def _composite(region: Array, layers: Array, rest: Array) -> None:
    region *= rest
    region += layers


def fit_slots(rng: np.random.Generator, absent_rate: float, damaged_rate: float) -> list[Fit]:
    """Decide every slot's fate; how much is drawn does not depend on the rates."""
    fits = []
    for slot in SLOTS:
        absent, damaged, right, down = rng.random(4)
        is_absent = bool(absent < min(absent_rate * slot.often_absent, max(absent_rate, 0.8)))
        nudge = (float(right - 0.5) * 1.4, float(down - 0.5) * 1.4)
        fits.append(Fit(slot, is_absent, bool(damaged < damaged_rate), int(rng.integers(10**6)), nudge))
    return fits


def assemble(kit: Kit, fits: list[Fit], rng: np.random.Generator) -> Canvas:
    """A housing, in one of its colours or between, with its parts."""
    layers = kit.housing(int(rng.integers(HOUSINGS))).copy()
    layers[:3] *= rng.uniform(0.9, 1.12, (3, 1, 1)).astype(np.float32)
    stage = Canvas(kit, layers, *np.zeros((3, *layers.shape[1:]), np.uint8))
    for number, fit in enumerate(fits, start=1):
        stage.mount(number, fit)
    return stage


def soil(stage: Canvas, rng: np.random.Generator) -> None:
    """Let parts and housing alike have been handled with oily hands."""
    dirt = stage.kit.dirt(int(rng.integers(DIRTS)))[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    dirt = dirt[: stage.places.shape[0], : stage.places.shape[1]]
    strength = np.float32(rng.uniform(0.2, 1.0))
    stage.layers[:3] *= 1 + strength * (dirt - 1)


def add_defects(stage: Canvas, rng: np.random.Generator, mean_count: float) -> None:
    """Scratch, pit and stain the housing and whatever is mounted; pits come in groups."""
    for _ in range(int(rng.poisson(mean_count))):
        category = DEFECTS[int(rng.choice(len(DEFECTS), p=DEFECT_ODDS))]
        reach = rng.uniform(-0.47, 0.47, 2) * BODY_WH
        at = FRAME_WH[0] / 2 + float(reach[0]), FRAME_WH[1] / 2 + float(reach[1])
        for _ in range(int(rng.integers(1, 4)) if category == "pit" else 1):
            if len(stage.defects) < MAX_DEFECTS:
                own = np.random.default_rng(
                    int(rng.integers(2**62))
                )  # how much is drawn depends on the resolution
                stage.scar(category, at, DRAW_DEFECT[category](own, stage.kit.scale))
            at = at[0] + float(rng.uniform(-14, 14)), at[1] + float(rng.uniform(-14, 14))


def cover_parts(stage: Canvas, rng: np.random.Generator, mean_count: float) -> None:
    """Lay cables, tools and rags so that each hides at least some of a randomly chosen slot."""
    for _ in range(min(int(rng.poisson(mean_count)), MAX_OCCLUDERS)):
        slot = SLOTS[int(rng.integers(len(SLOTS)))]
        sprite = stage.kit.occluder(int(rng.integers(len(OCCLUDERS))), int(rng.integers(OCCLUDER_VARIANTS)))
        rows, columns = np.nonzero(sprite.solid)
        pick = int(rng.random() * len(rows))
        shift = rng.normal(0, 3, 2)
        right = (sprite.corner_xy[0] + int(columns[pick])) / stage.kit.scale
        down = (sprite.corner_xy[1] + int(rows[pick])) / stage.kit.scale
        stage.cover((slot.at[0] + float(shift[0]) - right, slot.at[1] + float(shift[1]) - down), sprite)


class CameraView(NamedTuple):
    """A stage as the camera sees it, in picture pixels; see `Canvas` for the meaning of the id maps."""

    layers: Array
    places: Ids
    visible: Ids
    marks: Ids


def look_at(stage: Canvas, rng: np.random.Generator) -> CameraView:
    """See the stage through a camera of random pose."""
    rows, columns = stage.kit.size_hw
    inverse = np.linalg.inv(_camera(rng, stage))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    layers = np.empty((CHANNELS, rows, columns), np.float32)
    for half in (slice(0, 4), slice(4, 8)):
        packed = cv2.merge(list(stage.layers[half]))
        seen = cv2.warpPerspective(
            packed, inverse, (columns, rows), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )
        layers[half] = np.moveaxis(seen, -1, 0)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    maps = (stage.places, stage.visible, stage.marks)
    return CameraView(
        layers, *(cv2.warpPerspective(ids, inverse, (columns, rows), flags=flags) for ids in maps)
    )


def _camera(rng: np.random.Generator, stage: Canvas) -> NDArray[np.float64]:
    """3x3 map from canvas to picture pixels: turn, zoom, shift and a slight tilt."""
    rows, columns = stage.kit.size_hw
    canvas_rows, canvas_columns = stage.places.shape
    turn, zoom = (
        np.deg2rad(rng.normal(0, 2.5)),
        rng.uniform(0.91, 1.06) * stage.kit.pixels_per_unit / stage.kit.scale,
    )
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    shift_x, shift_y = rng.uniform(-0.02, 0.02, 2) * (columns, rows)
    tilt_x, tilt_y = rng.uniform(-0.05, 0.05, 2) * 2 / (canvas_columns, canvas_rows)
    centre = np.array([[1, 0, -canvas_columns / 2], [0, 1, -canvas_rows / 2], [0, 0, 1]])
    pose = np.array([[cos, -sin, 0], [sin, cos, 0], [tilt_x, tilt_y, 1]])
    place = np.array([[1, 0, columns / 2 + shift_x], [0, 1, rows / 2 + shift_y], [0, 0, 1]])
    matrix: NDArray[np.float64] = place @ pose @ centre
    return matrix

"""One generated picture with its exact truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from scantling.data.samples.dataset import rng_for
from scantling.settings.fields import Fraction
from scantling.synth.assembly import (
    CameraView,
    Fit,
    add_defects,
    assemble,
    cover_parts,
    fit_slots,
    look_at,
    soil,
)
from scantling.synth.kit import Kit, kit_for
from scantling.synth.layout import SLOTS
from scantling.synth.shading import develop, random_lighting, shade

State = Literal["intact", "damaged", "occluded", "absent"]
Box = tuple[float, float, float, float]

OCCLUDED_BELOW = 0.85  # share of a part that must show for it not to count as occluded
NOWHERE: Box = (0.0, 0.0, 0.0, 0.0)


class LabelNoise(BaseModel):
    """How often an annotator errs, per kind; a label is hit by one kind at most.

    Attributes:
        box_jitter: Share of labels whose box (and mask) is moved and resized.
        box_jitter_scale: Deviation of each edge of such a box, as a share of the box's side.
        wrong_class: Share of labels given another category.
        missing: Share of labels left out.
        spurious: Labels of things that are not there, as a share of the true labels.
        splits: Splits that are labelled badly; the others are exact.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    box_jitter: Fraction = 0.0
    box_jitter_scale: Annotated[float, Field(gt=0, le=0.5)] = 0.12
    wrong_class: Fraction = 0.0
    missing: Fraction = 0.0
    spurious: Fraction = 0.0
    splits: tuple[str, ...] = ("train",)

    @model_validator(mode="after")
    def _shares_of_one_whole(self) -> LabelNoise:
        if self.box_jitter + self.wrong_class + self.missing > 1:
            raise ValueError("box_jitter + wrong_class + missing must not exceed 1: they exclude each other")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is ever wrong."""
        return max(self.box_jitter, self.wrong_class, self.missing, self.spurious) > 0


class SynthConfig(BaseModel):
    """What generated scenes are like.

    Attributes:
        size_hw: Picture height and width in pixels; the layout scales with the smaller ratio to 240x320.
        absent_rate: Probability that a part is missing; optional equipment is missing several times as often.
        damaged_rate: Probability that a part is broken, bent, torn or rusted through.
        occluders: Mean number of cables, tools, rags and tags lying over the parts.
        defects: Mean number of scratches, stains and groups of pits.
        min_visible: Parts of which less than this share shows are not targets.
        image_format: Format of written pictures.
        jpeg_quality: 1..100.
        noise: Label errors of written annotations; pictures and truth never depend on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_hw: tuple[int, int] = (240, 320)
    absent_rate: Annotated[float, Field(ge=0, le=1)] = 0.06
    damaged_rate: Annotated[float, Field(ge=0, le=1)] = 0.08
    occluders: Annotated[float, Field(ge=0, le=8)] = 0.8
    defects: Annotated[float, Field(ge=0, le=20)] = 1.5
    min_visible: Annotated[float, Field(ge=0, le=1)] = 0.1
    image_format: Literal["jpg", "png"] = "jpg"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 93
    noise: LabelNoise = LabelNoise()

    @model_validator(mode="after")
    def _picture_is_possible(self) -> SynthConfig:
        if not all(64 <= side <= 4096 for side in self.size_hw):
            raise ValueError(f"size_hw: expected sides of 64 to 4096 pixels, found {self.size_hw}")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A component in its slot, or a surface defect.

    Attributes:
        name: Unique in its scene: the slot's name, or the defect's category with a number.
        category: Category name.
        state: `absent` before `occluded` (less than 85 % shows) before `damaged` before `intact`; None for defects.
        box: xyxy pixels, continuous edges: tight around `mask`, so visible extent only; zeros if nothing shows.
        full_box: The same for the whole part as if nothing lay over it, and for the place of an absent part.
        visible: Share of the part that shows, 0..1.
    """

    name: str
    category: str
    state: State | None
    box: Box
    full_box: Box
    visible: float
    _ids: NDArray[np.uint8] = field(repr=False)
    _id: int = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) the pixels of the part that show; all false for an absent part."""
        return np.equal(self._ids, self._id)

    def patch(self) -> NDArray[np.bool_]:
        """The mask inside `box` only."""
        x1, y1, x2, y2 = (int(edge) for edge in self.box)
        return np.equal(self._ids[y1:y2, x1:x2], self._id)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture and everything that is true about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        parts: One per slot whose place is in the picture, absent ones included, in the order of the layout.
        defects: Surface defects that show.
        targets: What a detector has to find: parts that are there and show, then defects.
    """

    image: NDArray[np.uint8]
    parts: tuple[Part, ...]
    defects: tuple[Part, ...]
    targets: tuple[Part, ...]


def generate_scene(config: SynthConfig, index: int, seed: int) -> Scene:
    """Make scene number `index`; the same arguments give the same pixels, whatever was made before.

    Pictures of one seed show the same workshop: specimens, housings and tools are drawn from a common stock.
    `config.noise` changes nothing here.
    """
    kit = kit_for(config.size_hw, seed)
    draw = partial(rng_for, seed, 0, index)
    fits = fit_slots(draw("synth fit"), config.absent_rate, config.damaged_rate)
    stage = assemble(kit, fits, draw("synth housing pick"))
    soil(stage, draw("synth dirt"))
    add_defects(stage, draw("synth defects"), config.defects)
    cover_parts(stage, draw("synth occluders"), config.occluders)
    view = look_at(stage, draw("synth camera"))
    image = _photograph(view, kit, draw("synth light"))
    parts = _read_parts(view, fits)
    defects = _read_defects(view, stage.defects, kit)
    return Scene(image, parts, defects, (*(part for part in parts if _shows(part, config)), *defects))


def _photograph(view: CameraView, kit: Kit, rng: np.random.Generator) -> NDArray[np.uint8]:
    light = shade(view.layers, random_lighting(rng), kit.pixels_per_unit)
    return develop(light, kit.noise, rng)


class _Extent(NamedTuple):
    """Where one id shows in an id map."""

    box: Box
    area: int


def _extents(ids: NDArray[np.uint8], count: int) -> list[_Extent]:
    """Extent of the ids 1..count, in order."""
    areas = np.bincount(ids.ravel(), minlength=count + 1).tolist()
    found = ndimage.find_objects(ids, max_label=count)
    boxes = [
        (float(place[1].start), float(place[0].start), float(place[1].stop), float(place[0].stop))
        if place
        else NOWHERE
        for place in found
    ]
    return [_Extent(box, area) for box, area in zip(boxes, areas[1 : count + 1], strict=True)]


def _read_parts(view: CameraView, fits: list[Fit]) -> tuple[Part, ...]:
    shown, whole = _extents(view.visible, len(SLOTS)), _extents(view.places, len(SLOTS))
    parts = []
    for number, (fit, seen, place) in enumerate(zip(fits, shown, whole, strict=True), start=1):
        if not place.area:
            continue
        share = min(seen.area / place.area, 1.0)
        state = _state(fit, share)
        parts.append(
            Part(fit.slot.name, fit.slot.category, state, seen.box, place.box, share, view.visible, number)
        )
    return tuple(parts)


def _state(fit: Fit, share: float) -> State:
    if fit.absent:
        return "absent"
    if share < OCCLUDED_BELOW:
        return "occluded"
    return "damaged" if fit.damaged else "intact"


def _read_defects(view: CameraView, categories: list[str], kit: Kit) -> tuple[Part, ...]:
    smallest = max(4.0, 5 * kit.pixels_per_unit**2)
    defects = []
    for number, (category, extent) in enumerate(
        zip(categories, _extents(view.marks, len(categories)), strict=True), start=1
    ):
        if extent.area >= smallest:
            name = f"{category}_{number}"
            defects.append(Part(name, category, None, extent.box, extent.box, 1.0, view.marks, number))
    return tuple(defects)


def _shows(part: Part, config: SynthConfig) -> bool:
    return part.box != NOWHERE and part.visible >= config.min_visible

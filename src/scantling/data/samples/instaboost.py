"""InstaBoost: the objects of an image moved a little within it, the holes they leave filled from around them.

Fang et al., "InstaBoost: Boosting Instance Segmentation via Probability Map Guided Copy-Pasting", ICCV 2019.

    Sample ── groups of touching objects ── holes inpainted ──► background
                     │ for each: scale, angle, and a shift drawn from its heat map (see `heat_map.py`)
                     └── lay ──► Layer ── pasted on the background ──► Sample ── colours ──► Sample

Published settings: scale 0.8 to 1.2, one degree, shifts up to a fifteenth of the object, colours of every other image.
An object that the border of the image cuts must not come apart from it: it is not turned, not made smaller, and moves
along the border or beyond it only. Deviations from the authors' program (`instaboostfast`):

* Objects move together where their masks touch, so that what covers another still does; there, where their boxes
  overlap, which in a full image ties all of them together.
* Holes are two pixels wider than the masks, whose edges are never exact, and large ones are filled at a lower
  resolution, as only a rim of them stays in sight. What is not moved is no hole.
* Shifts are drawn from the heat map; there, a place is taken where the map is high, anywhere in the image.
* Colours change both ways and moderately; there, images only become brighter, up to twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from scantling.data.samples.geometry import Matrix, Pixels
from scantling.data.samples.heat_map import distances, heat_map
from scantling.data.samples.paste import Layer, Plane, cover_of, cut_sides, lay, pasted, solid_masks
from scantling.data.samples.photometric import Photometric
from scantling.data.samples.transforms import Bank
from scantling.settings.fields import Fraction, Positive
from scantling.settings.section import Section
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Sample

_HALO = 2
_RADIUS = 3
_FINE = (
    64 * 64
)  # pixels of a hole from which on it is filled at a lower resolution, which is faster by its square
_COARSEST = 4


class InstaBoostConfig(Section):
    """Objects moved a little within their image; needs masks.

    Attributes:
        probability: Of an image to be changed at all.
        shift: Longest shift, as a share of the object's width and height; 0 leaves objects where they are.
        min_scale: Smallest factor by which an object changes its size.
        max_scale: Largest such factor.
        angle: Largest turn either way, degrees.
        consistent: Shifts are drawn from the heat map; false draws all alike.
        colour_probability: Of a changed image to change its colours too.
        colour: Largest relative change of brightness, contrast and saturation then.
    """

    probability: Fraction = 0.5
    shift: Fraction = 1 / 15
    min_scale: Annotated[Positive, Field(le=1)] = 0.8
    max_scale: Annotated[Positive, Field(ge=1, le=4)] = 1.2
    angle: Annotated[float, Field(strict=True, ge=0, le=180)] = 1.0
    consistent: bool = True
    colour_probability: Fraction = 0.5
    colour: Fraction = 0.2

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if (self.shift, self.min_scale, self.max_scale, self.angle) == (0, 1, 1, 0):
            raise ValueError("objects neither shift, turn nor change their size; leave instaboost out")
        return self


@dataclass(frozen=True, slots=True)
class InstaBoost:
    """See the module; crowd regions and objects without pixels stay as they are.

    Attributes:
        config: How often, and how far.
        min_visibility: An object of which others leave a smaller share of its area than this is dropped.
    """

    config: InstaBoostConfig
    min_visibility: float

    def __call__(self, sample: Sample, bank: Bank, rng: np.random.Generator, /) -> Sample:
        """The sample with its objects moved.

        Raises:
            ValueError: It has objects without masks.
        """
        config = self.config
        if rng.random() >= config.probability:
            return sample
        movable = movable_of(sample.instances)
        if movable.any():
            sample = self._moved(sample, movable, rng)
        amounts = {name: config.colour for name in ("brightness", "contrast", "saturation")}
        return Photometric(probability=config.colour_probability, **amounts)(sample, bank, rng)

    def _moved(self, sample: Sample, movable: NDArray[np.bool_], rng: np.random.Generator) -> Sample:
        masks = solid_masks(sample.instances)
        chosen, others = torch.from_numpy(np.flatnonzero(movable)), torch.from_numpy(~movable)
        groups = touching_groups(masks, chosen)
        height, width = sample.size_hw
        stays = cover_of(masks[others], (0, 0, width, height))
        background = without(sample.hwc, masks, groups, stays)
        layers = [self._layer(sample, background, rows, rng) for rows in groups]
        below = sample.replace(image=background.transpose(2, 0, 1), instances=sample.instances[others])
        found = [layer for layer in layers if layer is not None]
        return pasted(below, found, min_visibility=self.min_visibility)

    def _layer(
        self, sample: Sample, background: Pixels, rows: Tensor, rng: np.random.Generator
    ) -> Layer | None:
        """One group where it goes; the number of draws is always the same."""
        config = self.config
        size, turn, place = rng.random(3)
        group = solid_masks(sample.instances)[rows]
        corners = group.boxes()
        box = torch.cat([corners[:, :2].amin(dim=0), corners[:, 2:].amax(dim=0)])
        cut = cut_sides(box[None], sample.size_hw)[0]
        scale = config.min_scale + size * (config.max_scale - config.min_scale)
        angle = math.radians(config.angle) * (2 * turn - 1)
        if cut.any():
            scale, angle = max(scale, 1.0), 0.0
        shift = self._shift(sample, background, group, box, cut, place)
        centre = ((box[:2] + box[2:]) / 2).double().numpy()
        return lay(sample, rows, about(centre, scale, angle, shift), sample.size_hw)

    def _shift(
        self,
        sample: Sample,
        background: Pixels,
        group: ImageMasks,
        box: Tensor,
        cut: NDArray[np.bool_],
        place: float,
    ) -> tuple[int, int]:
        """Where a group goes, in whole pixels."""
        x1, y1, x2, y2 = (int(value) for value in box.tolist())
        reach_x, reach_y = (round(self.config.shift * extent) for extent in (x2 - x1, y2 - y1))
        if self.config.consistent:
            patch = cover_of(group, (x1, y1, x2, y2))
            away = distances(sample.hwc, background, patch, (x1, y1), (reach_x, reach_y))
        else:
            away = np.zeros((2 * reach_y + 1, 2 * reach_x + 1))
        allowed_x = allowed_shifts(reach_x, (x1, x2), (bool(cut[0]), bool(cut[2])), sample.size_hw[1])
        allowed_y = allowed_shifts(reach_y, (y1, y2), (bool(cut[1]), bool(cut[3])), sample.size_hw[0])
        away[~(allowed_y[:, None] & allowed_x)] = np.inf
        likely = np.cumsum(heat_map(away))
        if not likely[-1] > 0:
            return 0, 0
        index = min(int(np.searchsorted(likely, place * likely[-1], side="right")), likely.size - 1)
        row, column = divmod(index, away.shape[1])
        return column - reach_x, row - reach_y


def movable_of(instances: Instances) -> NDArray[np.bool_]:
    """(N,) which objects can be moved: no crowd regions, and nothing without pixels.

    Raises:
        ValueError: There are objects without masks.
    """
    if len(instances) and not isinstance(instances.masks, ImageMasks):
        raise ValueError("InstaBoost: expected instances with masks, found boxes alone")
    found = solid_masks(instances).areas() > 0
    return (found if instances.is_crowd is None else found & ~instances.is_crowd).numpy()


def allowed_shifts(
    reach: int, extent: tuple[int, int], cut: tuple[bool, bool], limit: int
) -> NDArray[np.bool_]:
    """(2 reach + 1,) which shifts along one axis keep a whole object whole and a cut one at its border.

    Args:
        reach: Longest shift, pixels.
        extent: First pixel of the object, and the one after its last.
        cut: Whether the border at the low and at the high end cuts it.
        limit: Pixels of the image.
    """
    shifts = np.arange(-reach, reach + 1)
    from_low = shifts <= 0 if cut[0] else extent[0] + shifts >= 0
    from_high = shifts >= 0 if cut[1] else extent[1] + shifts <= limit
    return from_low & from_high


def about(centre_xy: NDArray[np.float64], scale: float, angle: float, shift_xy: tuple[int, int]) -> Matrix:
    """(2, 3) map that scales and turns (radians, from x towards y) about a centre and then shifts."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, centre_xy + shift_xy - linear @ centre_xy])


def touching_groups(masks: ImageMasks, rows: Tensor) -> list[Tensor]:
    """The rows in groups whose masks touch or overlap, also by way of others; in the order of their first rows.

    Args:
        masks: Of an image.
        rows: (N,) indices of those to be grouped, ascending.
    """
    height, width = masks.size_hw
    cover = cover_of(masks[rows], (0, 0, width, height))
    count, parts = cv2.connectedComponents(cover, connectivity=8)
    group_of = np.arange(count)  # of every connected part
    parts_of = []
    for patch, (x, y) in masks[rows]:
        inside = parts[y : y + patch.shape[0], x : x + patch.shape[1]][patch > 0]
        own = np.flatnonzero(np.bincount(inside, minlength=count))
        group_of[np.isin(group_of, group_of[own])] = group_of[own].min()
        parts_of.append(own[0])
    groups: dict[int, list[int]] = {}
    for row, part in zip(rows.tolist(), parts_of, strict=True):
        groups.setdefault(int(group_of[part]), []).append(row)
    return [torch.tensor(group) for group in groups.values()]


def without(image: Pixels, holes: ImageMasks, groups: Sequence[Tensor], stays: Plane) -> Pixels:
    """An image (H, W, 3) without objects: what they and a narrow rim around them show is made up from around them.

    Args:
        image: With the objects.
        holes: Masks, those of the objects among them.
        groups: Rows of the objects that touch, at least one group; each is filled in one go.
        stays: (H, W) 1 where something lies that is not to be filled.
    """
    height, width = holes.size_hw
    filled = image.copy()
    kernel = np.ones((2 * _HALO + 1, 2 * _HALO + 1), dtype=np.uint8)
    moved = holes[torch.cat(list(groups))]
    hole = cv2.dilate(cover_of(moved, (0, 0, width, height)), kernel) & (stays ^ 1)
    for rows in groups:
        boxes, margin = holes[rows].boxes(), _HALO + 2 * _RADIUS
        x1, y1 = (max(0, int(value) - margin) for value in boxes[:, :2].amin(dim=0).tolist())
        x2 = min(width, int(boxes[:, 2].max()) + margin)
        y2 = min(height, int(boxes[:, 3].max()) + margin)
        own = cv2.dilate(cover_of(holes[rows], (x1, y1, x2, y2)), kernel) & hole[y1:y2, x1:x2]
        made = inpainted(image[y1:y2, x1:x2], hole[y1:y2, x1:x2])
        np.copyto(filled[y1:y2, x1:x2], made, where=own[..., None] > 0)
    return filled


def inpainted(pixels: Pixels, hole: Plane) -> Pixels:
    """Pixels (h, w, 3) with a hole (h, w) filled from around it; a large one coarsely, as it has no detail."""
    factor = min(math.ceil(math.sqrt(np.count_nonzero(hole) / _FINE)), _COARSEST)
    if factor <= 1:
        return np.asarray(cv2.inpaint(np.ascontiguousarray(pixels), hole, _RADIUS, cv2.INPAINT_NS))
    size_wh = -(-hole.shape[1] // factor), -(-hole.shape[0] // factor)
    small = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
    touched = (cv2.resize(hole * np.uint8(255), size_wh, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    made = cv2.inpaint(small, touched, _RADIUS, cv2.INPAINT_NS)
    return np.asarray(cv2.resize(made, hole.shape[::-1], interpolation=cv2.INTER_LINEAR))

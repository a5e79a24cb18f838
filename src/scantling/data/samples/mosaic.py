"""Mosaic and mixup: one training image out of several.

    four images ── each through `each` ── scaled ── cut to its quadrant ──► one canvas        Mosaic
    two images ── each through `each` ── blended, objects of both ──────► one image           MixUp

Mosaic: Bochkovskiy et al., "YOLOv4", 2020, section 3.4: four images meet at a random point. Mixup: Zhang et al.,
"mixup: Beyond Empirical Risk Minimization", ICLR 2018; for detectors, with all objects of both images, Zhang et al.,
"Bag of Freebies for Training Object Detection Neural Networks", 2019; both as YOLOX (Ge et al. 2021) uses them.
`close_epochs` ends training without them, the `close_mosaic` of Ultralytics. Deviations of Mosaic:

* The canvas is as large as the first image alone would be, and one factor scales all four, where Ultralytics takes
  twice the size and an affine map afterwards: pixels are resampled once.
* Of an image larger than its quadrant a random part is shown, and not always the corner that lies at the meeting point.
* Edges of the quadrants cut objects as a crop does: those that keep less than `min_visibility` are dropped.

Of mixup: the blended part is what both images cover; the weight of the first is drawn from a symmetrical beta
distribution, and objects of both count alike, as is usual for detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from scantling.data.samples.geometry import View, render
from scantling.data.samples.transforms import Bank, Compose
from scantling.settings.fields import Fraction, Positive
from scantling.settings.section import Section
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Sample

GREY = 114
"""What shows where no image lies: the grey of YOLO's mosaics."""

_CENTRE = (0.25, 0.75)


class MosaicConfig(Section):
    """Four training images in one.

    Attributes:
        probability: Of an image to become a quarter of a mosaic.
        min_scale: Smallest factor by which the four change their size.
        max_scale: Largest such factor.
    """

    probability: Fraction = 0.5
    min_scale: Annotated[Positive, Field(le=4)] = 0.5
    max_scale: Annotated[Positive, Field(le=4)] = 1.5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is larger than max_scale {self.max_scale}")
        return self


class MixUpConfig(Section):
    """Two training images, one shining through the other.

    Attributes:
        probability: Of an image to be blended with another.
        alpha: Of the beta distribution that the weight of the first comes from: 1 for any weight alike, the larger
            the nearer to one half.
    """

    probability: Fraction = 0.15
    alpha: Positive = 32.0


@dataclass(frozen=True, slots=True)
class Mosaic:
    """See the module.

    Attributes:
        config: How often, and how large.
        each: What every image goes through before it is scaled and cut.
        min_visibility: Share of its area that an object must keep to stay.
    """

    config: MosaicConfig
    each: Compose
    min_visibility: float

    def __call__(self, sample: Sample, bank: Bank, rng: np.random.Generator, /) -> Sample:
        """The mosaic that begins with the sample, or the sample through `each` alone.

        Id and Frame are those of the sample; the Frame is that of its own quarter.
        """
        config = self.config
        if rng.random() >= config.probability:
            return self.each(sample, bank, rng)
        others = [bank.sample(int(index)) for index in rng.integers(len(bank), size=3)]
        views = [self.each.placed(other, bank, rng) for other in (sample, *others)]
        order = rng.permutation(4)
        (x, y), chance = rng.uniform(*_CENTRE, size=2), rng.random()
        height, width = views[0][1].size_hw
        scale = config.min_scale + chance * (config.max_scale - config.min_scale)
        centre = min(max(round(x * width), 1), width - 1), min(max(round(y * height), 1), height - 1)
        canvas = np.full((height, width, 3), GREY, dtype=np.uint8)
        parts: list[Instances] = []
        frame = sample.frame
        for (source, view), quarter in zip(views, order.tolist(), strict=True):
            part = self._part(source, view, scale, _room(quarter, centre, (height, width)), rng)
            corner_xy = _corner(quarter, centre, part.size_hw)
            canvas[
                corner_xy[1] : corner_xy[1] + part.size_hw[0], corner_xy[0] : corner_xy[0] + part.size_hw[1]
            ] = part.hwc
            if not parts:
                shift = np.array([[1.0, 0.0, corner_xy[0]], [0.0, 1.0, corner_xy[1]]])
                frame = part.frame.then(shift, (height, width))
            parts.append(shifted(part.instances, corner_xy, (height, width)))
        return sample.replace(image=canvas.transpose(2, 0, 1), instances=Instances.cat(parts), frame=frame)

    def _part(
        self, source: Sample, view: View, scale: float, room_hw: tuple[int, int], rng: np.random.Generator
    ) -> Sample:
        """What is shown of one image: all of it if there is room, else a random part."""
        scaled = view.resized(
            (max(1, round(view.size_hw[0] * scale)), max(1, round(view.size_hw[1] * scale)))
        )
        shown_hw = min(scaled.size_hw[0], room_hw[0]), min(scaled.size_hw[1], room_hw[1])
        left, top = (int(rng.integers(scaled.size_hw[axis] - shown_hw[axis] + 1)) for axis in (1, 0))
        return render(source, scaled.cropped((left, top), shown_hw, min_visibility=self.min_visibility))


@dataclass(frozen=True, slots=True)
class MixUp:
    """See the module.

    Attributes:
        config: How often, and how evenly.
        each: What both images go through before they are blended.
        min_visibility: Share of its area that an object of the second image must keep where that is larger.
    """

    config: MixUpConfig
    each: Compose
    min_visibility: float

    def __call__(self, sample: Sample, bank: Bank, rng: np.random.Generator, /) -> Sample:
        """The sample through `each`, and another one shining through it; size, id and Frame are the sample's."""
        chance = rng.random()
        first = self.each(sample, bank, rng)
        if chance >= self.config.probability:
            return first
        other = bank.sample(int(rng.integers(len(bank))))
        weight = float(rng.beta(self.config.alpha, self.config.alpha))
        source, view = self.each.placed(other, bank, rng)
        shown_hw = (min(view.size_hw[0], first.size_hw[0]), min(view.size_hw[1], first.size_hw[1]))
        left, top = (int(rng.integers(view.size_hw[axis] - shown_hw[axis] + 1)) for axis in (1, 0))
        second = render(source, view.cropped((left, top), shown_hw, min_visibility=self.min_visibility))
        image = first.hwc.copy()
        part = image[: shown_hw[0], : shown_hw[1]]
        part[...] = np.rint(weight * part + (1 - weight) * second.hwc).astype(np.uint8)
        both = Instances.cat([first.instances, shifted(second.instances, (0, 0), first.size_hw)])
        return first.replace(image=image.transpose(2, 0, 1), instances=both)


def shifted(instances: Instances, offset_xy: tuple[int, int], size_hw: tuple[int, int]) -> Instances:
    """Objects of a part of a larger image, in the frame of that image.

    Args:
        instances: With image masks or none; may be empty.
        offset_xy: Column and row where the part begins.
        size_hw: Height and width of the larger image.
    """
    boxes = instances.boxes + torch.tensor([*offset_xy, *offset_xy], dtype=torch.float32)
    masks = instances.masks
    if isinstance(masks, ImageMasks):
        pairs = list(masks)
        corners = np.array([corner for _, corner in pairs], dtype=np.int64).reshape(-1, 2) + offset_xy
        masks = ImageMasks.from_patches([patch for patch, _ in pairs], corners, size_hw)
    return instances.replace(size_hw=size_hw, boxes=boxes, masks=masks)


def _room(quarter: int, centre: tuple[int, int], size_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a quarter: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    (x, y), (height, width) = centre, size_hw
    return (y if quarter < 2 else height - y), (x if quarter % 2 == 0 else width - x)  # noqa: PLR2004


def _corner(quarter: int, centre: tuple[int, int], size_hw: tuple[int, int]) -> tuple[int, int]:
    """Where an image of this size begins that lies in a quarter with its corner at the meeting point."""
    (x, y), (height, width) = centre, size_hw
    return (x - width if quarter % 2 == 0 else x), (y - height if quarter < 2 else y)  # noqa: PLR2004

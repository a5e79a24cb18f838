"""What a refiner is trained on: labelled boxes, shown as a detector's boxes will be shown to it.

    image ── one usable box at random (or every box) ── padding of each side at random ──► window ── cut ──► crop
                                            crop ── flip, colours, CLAHE        centre ── shift at random
    target: the labelled box in crop coordinates

Crowd regions and boxes with a side below `RefinerConfig.min_side` are left out and counted. All randomness comes from
(seed, epoch, image id, purpose), so neither workers nor a resumed run change anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, NamedTuple, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scantling.data.coco import CocoDataset, ImageId, ImageRecord
from scantling.data.images.open import open_image
from scantling.data.samples.dataset import rng_for
from scantling.data.samples.geometry import Pixels
from scantling.data.samples.loader import EpochImage, LoaderConfig, PlannedBatches, epoch_order, shard
from scantling.data.truths import Truths, truths_of
from scantling.data.workers import TaskStream
from scantling.errors import DataError
from scantling.refine.bbrefinement import CropBatch
from scantling.refine.crops import crop_windows, cut, to_crop
from scantling.settings.fields import Fraction

Margin = Annotated[float, Field(gt=-0.5, le=2)]

_CLAHE_TILES = (8, 8)
_KEPT_BYTES = 256 << 20  # decoded pixels that a process keeps
_HALF_TURN = 180  # OpenCV's hue of 8-bit images runs over 0..179


class CropConfig(BaseModel):
    """How labelled boxes are shown in training.

    Attributes:
        all_boxes: Show every box in each pass over the images, instead of a random one of each image.
        padding: Margin of each side, drawn uniformly between these, relative to the box's width and height. Its mean
            should be the refiner's `padding`, its spread what detectors are wrong by. Below 0, the crop cuts
            the box as a detection that is too small does; the target then ends at the crop's border. What is shown
            exceeds these by the rounding of the window (`crops.crop_windows`).
        centre_shift: Largest error of the centre that is told, relative to the box's width and height.
        flip: Probability of exchanging left and right.
        vertical_flip: Probability of exchanging top and bottom.
        hsv: Probability of a linear change of hue, saturation and value.
        hsv_gamma: Probability of a change of saturation and value along a power curve.
        hue: Largest turn of the hue, in whole turns.
        saturation: Largest relative change of the saturation; of its exponent for the power curve.
        value: Largest relative change of the value; of its exponent for the power curve.
        clahe: Probability of contrast-limited adaptive histogram equalisation of the value, in 8 x 8 tiles.
        clahe_limit: Largest contrast limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    all_boxes: bool = False
    padding: Annotated[tuple[Margin, Margin], Field(strict=False)] = (0.0, 0.4)
    centre_shift: Annotated[float, Field(ge=0, le=1)] = 0.1
    flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    hsv: Fraction = 0.5
    hsv_gamma: Fraction = 0.25
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.4
    value: Annotated[float, Field(ge=0, lt=1)] = 0.4
    clahe: Fraction = 0.1
    clahe_limit: Annotated[float, Field(ge=1, le=40)] = 4.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.padding[0] > self.padding[1]:
            raise ValueError(f"padding: the first margin {self.padding[0]} is larger than the second")
        return self


@dataclass(frozen=True)
class LabelledBoxes:
    """A data set as boxes to be cut out.

    Attributes:
        coco: Records and annotations.
        min_side: Boxes with a shorter side are left out.
    """

    coco: CocoDataset
    min_side: float

    @cached_property
    def usable(self) -> tuple[Truths, ...]:
        """For each image its objects whose box, clipped to the image, has no side below `min_side`."""
        truths = truths_of(self.coco)
        large = (truths.boxes[:, 2:] - truths.boxes[:, :2] >= self.min_side).all(axis=1)
        kept = truths[truths.is_object & large]
        ends = np.searchsorted(kept.images, np.arange(len(self.coco) + 1)).tolist()
        return tuple(kept[start:end] for start, end in pairwise(ends))

    @cached_property
    def left_out(self) -> dict[str, int]:
        """How many annotations are not used: `crowd` regions, `ignored` objects, and boxes that are `tiny`."""
        used = sum(len(usable.boxes) for usable in self.usable)
        ignored = {"ignored": self.coco.num_ignored} if self.coco.num_ignored else {}
        return {"crowd": self.coco.num_crowd, **ignored, "tiny": self.coco.num_objects - used}

    @property
    def num_boxes(self) -> int:
        """Usable boxes."""
        return sum(len(usable.boxes) for usable in self.usable)

    def __len__(self) -> int:
        return len(self.coco)


class CropSample(NamedTuple):
    """One crop of training.

    Attributes:
        pixels: (S, S, 3) uint8 RGB.
        label: 0..K-1.
        centre: (2,) in crop coordinates, with its error.
        target: (4,) xyxy in crop coordinates.
        image_id: Of the image it comes from.
    """

    pixels: Pixels
    label: int
    centre: NDArray[np.float64]
    target: NDArray[np.float64]
    image_id: ImageId


class CropStep(NamedTuple):
    """What a worker needs to know to build one batch: epoch (from 0), entries, and whether they only fill up."""

    epoch: int
    entries: tuple[EpochImage, ...]
    is_padding: bool = False


class DecodedImages:
    """Images of a data set as pixels; the first that are asked for stay decoded, as many as fit into 256 MiB.

    A crop costs little beside decoding its image, and every image is shown many times.
    """

    def __init__(self, records: Sequence[ImageRecord], budget: int = _KEPT_BYTES) -> None:
        self._records = records
        self._left = budget
        self._kept: dict[int, Pixels] = {}

    def __getitem__(self, index: int) -> Pixels:
        """(H, W, 3) uint8 RGB of an image, not to be changed.

        Raises:
            DataError: The image cannot be read.
        """
        if (kept := self._kept.get(index)) is not None:
            return kept
        record = self._records[index]
        pixels = open_image(record.path, size_hw=record.size_hw, white=record.white)
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[index] = pixels
        return pixels


@dataclass(frozen=True)
class CropMaker:
    """Entries of an epoch -> batches of crops, in whatever process.

    An entry's position counts images that have a usable box, or usable boxes where every one is shown.

    Attributes:
        labelled: Where the boxes come from.
        config: How they are shown.
        side: Of the crops.
        seed: Of the run.
    """

    labelled: LabelledBoxes
    config: CropConfig
    side: int
    seed: int

    @cached_property
    def places(self) -> list[tuple[int, int | None]]:
        """For each position the image, and the box where it is not drawn."""
        counts = [len(usable.boxes) for usable in self.labelled.usable]
        if self.config.all_boxes:
            return [(image, box) for image, count in enumerate(counts) for box in range(count)]
        return [(image, None) for image, count in enumerate(counts) if count]

    @cached_property
    def keys(self) -> list[ImageId]:
        """For each position what its place in the order of an epoch is drawn from: the image's id, with the box."""
        ids = [record.id for record in self.labelled.coco.images]
        return [ids[image] if box is None else f"{ids[image]!r} {box}" for image, box in self.places]

    @cached_property
    def decoded(self) -> DecodedImages:
        """The images, of which each process keeps its own."""
        return DecodedImages(self.labelled.coco.images)

    def __call__(self, step: CropStep) -> CropBatch:
        """The batch of a step.

        Raises:
            DataError: An image cannot be read.
        """
        shown = [self.show(entry, step.epoch) for entry in step.entries]
        return collate(shown, is_padding=step.is_padding)

    def show(self, entry: EpochImage, epoch: int) -> CropSample:
        """One crop; equal arguments give equal pixels."""
        image, box = self.places[entry.position]
        record, usable = self.labelled.coco.images[image], self.labelled.usable[image]
        purpose = f"refine crop {entry.repeat}" if box is None else f"refine crop {entry.repeat} {box}"
        rng = rng_for(self.seed, epoch, record.id, purpose)
        drawn = int(rng.integers(len(usable.boxes)))
        chosen = drawn if box is None else box
        shown = show_box(self.decoded[image], usable.boxes[chosen], self.config, self.side, rng)
        return CropSample(shown[0], int(usable.labels[chosen]), shown[1], shown[2], record.id)


def show_box(
    pixels: Pixels, box: NDArray[np.float64], config: CropConfig, side: int, rng: np.random.Generator
) -> tuple[Pixels, NDArray[np.float64], NDArray[np.float64]]:
    """Cut one box out with random margins, flips, colours and a wrong centre.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        box: (4,) xyxy in image pixels.
        config: How much of everything.
        side: S.
        rng: All the randomness; the number of draws is always the same.

    Returns:
        The crop (S, S, 3), the centre (2,) that is told and the target (4,), both in crop coordinates.
    """
    margins, shifts, chances = rng.uniform(*config.padding, 4), rng.uniform(-1, 1, 2), rng.random(2)
    colours = rng.random(8)
    windows = crop_windows(box[None], margins[None], side)
    crop = cut(pixels, windows, side)[0].permute(1, 2, 0).numpy()
    told = (box[:2] + box[2:]) / 2 + shifts * config.centre_shift * (box[2:] - box[:2])
    target = to_crop(box[None], windows)[0].clip(0, 1)
    centre = to_crop(told[None], windows)[0]
    for axis, probability in enumerate((config.flip, config.vertical_flip)):
        if chances[axis] < probability:
            crop = cv2.flip(crop, 1 - axis)
            centre[axis] = 1 - centre[axis]
            target[[axis, axis + 2]] = 1 - target[[axis + 2, axis]]
    return change_hsv(crop, config, colours), centre, target


def change_hsv(pixels: Pixels, config: CropConfig, draws: NDArray[np.float64]) -> Pixels:
    """Change hue, saturation and value linearly and along power curves, and equalise the value locally.

    Args:
        pixels: (S, S, 3) uint8 RGB.
        config: Probabilities and strengths.
        draws: (8,) uniform in 0..1: three chances (linear, power, CLAHE), hue, saturation, value, two for the curves
            and, scaled anew from its chance, CLAHE's limit.

    Returns:
        A new image, or the given one where nothing is to be done.
    """
    linear, power, clahe = draws[:3] < (config.hsv, config.hsv_gamma, config.clahe)
    if not (linear or power or clahe):
        return pixels
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    levels = np.arange(256)
    saturations = values = levels / 255
    if linear:
        turn = round(config.hue * _HALF_TURN * (2 * draws[3] - 1))
        hue = cv2.LUT(hue, ((levels + turn) % _HALF_TURN).astype(np.uint8))
        saturations = saturations * (1 + config.saturation * (2 * draws[4] - 1))
        values = values * (1 + config.value * (2 * draws[5] - 1))
    if power:
        saturations = np.minimum(saturations, 1) ** _exponent(config.saturation, draws[6])
        values = np.minimum(values, 1) ** _exponent(config.value, draws[7])
    saturation, value = cv2.LUT(saturation, _table(saturations)), cv2.LUT(value, _table(values))
    if clahe:
        limit = 1 + (config.clahe_limit - 1) * draws[2] / config.clahe
        value = cv2.createCLAHE(limit, _CLAHE_TILES).apply(value)
    changed: Pixels = cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)
    return changed


def _exponent(strength: float, draw: float) -> float:
    """Between 1 / (1 + strength) and 1 + strength, evenly on a logarithmic scale."""
    return math.exp(math.log1p(strength) * (2 * draw - 1))


def _table(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """256 levels from shares of the full level."""
    levels: NDArray[np.float64] = np.rint(255 * shares.clip(0, 1))
    return levels.astype(np.uint8)


def collate(shown: Sequence[CropSample], *, is_padding: bool = False) -> CropBatch:
    """Crops side by side, in channels-last memory."""
    pixels = torch.from_numpy(np.stack([one.pixels for one in shown]))
    return CropBatch(
        crops=pixels.permute(0, 3, 1, 2),
        labels=torch.tensor([one.label for one in shown], dtype=torch.int64),
        centres=torch.from_numpy(np.stack([one.centre for one in shown]).astype(np.float32)),
        targets=torch.from_numpy(np.stack([one.target for one in shown]).astype(np.float32)),
        image_ids=[one.image_id for one in shown],
        is_padding=is_padding,
    )


class CropLoader(PlannedBatches[CropStep, CropBatch]):
    """Batches of crops, epoch by epoch.

    An incomplete last batch is left out, unless it is the only one: other boxes are left out in every epoch.

    Args:
        maker: Where crops come from; with at least one usable box.
        config: Batch size, passes over the images, workers, processes.

    Raises:
        DataError: There is no usable box.
    """

    def __init__(self, maker: CropMaker, config: LoaderConfig) -> None:
        self.maker = maker
        self.config = config
        super().__init__(TaskStream(maker, config.workers))
        if not maker.places:
            raise DataError(
                f"{maker.labelled.coco.file}: no box to learn from "
                f"({maker.labelled.coco.num_annotations} annotations, {maker.labelled.left_out})",
                hint=f"Boxes with a side below min_side ({maker.labelled.min_side:g} px) are left out.",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that each process gets per epoch."""
        return max(1, len(self.maker.places) * self.config.repeats // self._global_size)

    def plan(self, epoch: int) -> list[CropStep]:
        """The batches of this process in an epoch, as entries."""
        config, size = self.config, self._global_size
        order = epoch_order(self.maker.keys, seed=self.maker.seed, epoch=epoch, repeats=config.repeats)
        batches = [order[step * size : (step + 1) * size] for step in range(self.steps_per_epoch)]
        return [
            CropStep(
                epoch,
                tuple(shard(batch, order, rank=config.rank, world=config.world)),
                is_padding=config.rank >= len(batch),
            )
            for batch in batches
        ]

    @property
    def _global_size(self) -> int:
        return self.config.batch_size * self.config.world

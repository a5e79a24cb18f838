"""Two random views of a crop: the augmentations of MoCo v2, and the batches made of them.

    crop (H, W, 3) ─► random resized part ─► [colour jitter + gray: one matrix] ─► blur ─► flip ─► (S, S, 3) uint8

Everything random comes from (seed, epoch, crop id, view), so neither workers nor a resumed run change a view.
B: crops of a batch. S: side of the views.

Source: Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning"; values as published there. The
jitter applies its four changes in a fixed order and clips once (see `data.photometric`), and the blur is scaled with
the side, so that it is as strong in views smaller than the published 224.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scantling.data.samples.dataset import rng_for
from scantling.data.samples.loader import PlannedBatches, epoch_order
from scantling.data.samples.photometric import LUMA, Photometric, colour_matrix
from scantling.data.workers import TaskStream
from scantling.pretrain.crop_store import CropStore
from scantling.pretrain.crops import Pixels
from scantling.settings.fields import Fraction

Sigma = Annotated[float, Field(gt=0, le=20)]

PUBLISHED_SIDE = 224
_TRIES = 10
_GRAY = np.tile(LUMA, (3, 1))


class ViewConfig(BaseModel):
    """How a view differs from its crop.

    Attributes:
        min_scale: Smallest share of the crop's area that a view shows; up to all of it.
        max_aspect: Width over height of that part, before it is made square: from 1 / max_aspect to max_aspect.
        jitter: Probability that the colours of a view change.
        brightness: The brightness is multiplied by 1 - brightness to 1 + brightness.
        contrast: The contrast is multiplied by 1 - contrast to 1 + contrast.
        saturation: The saturation is multiplied by 1 - saturation to 1 + saturation.
        hue: The hue turns by up to this much either way, in whole turns of the colour circle.
        gray: Probability that a view loses its colour.
        blur: Probability that a view is blurred.
        min_sigma: Standard deviation of the weakest blur, in pixels of a view of side 224.
        max_sigma: Standard deviation of the strongest blur, in the same unit.
        horizontal_flip: Probability that left and right of a view are exchanged.
        vertical_flip: Probability that top and bottom are exchanged; not in the published set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    max_aspect: Annotated[float, Field(ge=1, le=10)] = 4 / 3
    jitter: Fraction = 0.8
    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    gray: Fraction = 0.2
    blur: Fraction = 0.5
    min_sigma: Sigma = 0.1
    max_sigma: Sigma = 2.0
    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPairBatch:
    """Two views of each of some crops.

    Attributes:
        queries: (B, S, S, 3) uint8 RGB.
        keys: (B, S, S, 3) uint8 RGB, other views of the same crops.
        crops: (B,) int64 positions in the store.
        image_ids: Ids of the crops, for messages.
        is_padding: Always False, since every process gets as many crops; the training loop asks every kind of batch.
    """

    queries: Tensor
    keys: Tensor
    crops: Tensor
    image_ids: tuple[str, ...]
    is_padding: bool = False

    def to(self, device: torch.device) -> Self:
        """The batch with its tensors on `device`."""
        queries, keys, crops = (t.to(device) for t in (self.queries, self.keys, self.crops))
        return replace(self, queries=queries, keys=keys, crops=crops)


def part_of(
    size_hw: tuple[int, int], config: ViewConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random part of a crop: left, top, right, bottom in whole pixels.

    Area share and the logarithm of the aspect are uniform. The first of ten draws that fits is taken; if none does
    (the crop is elongated), the middle of the crop at the nearest allowed aspect. The number of draws is fixed.
    """
    height, width = size_hw
    draws = rng.random((_TRIES, 4))
    areas = height * width * (config.min_scale + draws[:, 0] * (1 - config.min_scale))
    aspects = config.max_aspect ** (2 * draws[:, 1] - 1)
    across, down = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (across >= 1) & (across <= width) & (down >= 1) & (down <= height)
    if fits.any():
        first = int(fits.argmax())
        wide, high = int(across[first]), int(down[first])
        left = math.floor(draws[first, 2] * (width - wide + 1))
        top = math.floor(draws[first, 3] * (height - high + 1))
        return left, top, left + wide, top + high
    wide = min(width, max(1, round(height * config.max_aspect)))
    high = min(height, max(1, round(width * config.max_aspect)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def make_view(crop: Pixels, side: int, config: ViewConfig, rng: np.random.Generator) -> Pixels:
    """One random view (S, S, 3) of a crop (H, W, 3)."""
    left, top, right, bottom = part_of((crop.shape[0], crop.shape[1]), config, rng)
    shown = resized(crop[top:bottom, left:right], side)
    colours = Photometric(
        probability=config.jitter, brightness=config.brightness, contrast=config.contrast,
        saturation=config.saturation, hue=config.hue,
    ).draw(rng)  # fmt: skip
    gray, blur, sigma, horizontal, vertical = rng.random(5)
    matrix = None
    if colours is not None:
        matrix = colour_matrix(colours, float(LUMA @ np.array(cv2.mean(shown)[:3])))
    if gray < config.gray:
        matrix = _GRAY if matrix is None else _GRAY @ matrix
    if matrix is not None:
        shown = cv2.transform(shown, matrix)
    if blur < config.blur:
        strength = config.min_sigma + sigma * (config.max_sigma - config.min_sigma)
        shown = cv2.GaussianBlur(shown, (0, 0), max(0.05, strength * side / PUBLISHED_SIDE))
    steps = slice(None, None, -1 if vertical < config.vertical_flip else 1)
    across = slice(None, None, -1 if horizontal < config.horizontal_flip else 1)
    return shown[steps, across]


def resized(crop: Pixels, side: int) -> Pixels:
    """The whole crop as a square of `side` pixels."""
    shrinks = crop.shape[0] * crop.shape[1] > side * side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    square: Pixels = cv2.resize(crop, (side, side), interpolation=method)
    return square


class ViewTask(NamedTuple):
    """What a worker needs to know to build one batch: the epoch, and the positions of the crops."""

    epoch: int
    crops: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildViews:
    """ViewTask -> CropBatch, in whatever process."""

    store: CropStore
    side: int
    config: ViewConfig
    seed: int

    def __call__(self, task: ViewTask) -> ViewPairBatch:
        """The two views of each of a task's crops."""
        shape = (len(task.crops), self.side, self.side, 3)
        queries, keys = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.uint8)
        for place, index in enumerate(task.crops):
            crop = self.store.read(index)
            queries[place], keys[place] = (self.view(crop, index, task.epoch, which) for which in (0, 1))
        return ViewPairBatch(
            queries=torch.from_numpy(queries),
            keys=torch.from_numpy(keys),
            crops=torch.tensor(task.crops),
            image_ids=tuple(self.store.ids[index] for index in task.crops),
        )

    def view(self, crop: Pixels, index: int, epoch: int, which: int) -> Pixels:
        """One of a crop's views in an epoch."""
        rng = rng_for(self.seed, epoch, self.store.ids[index], f"view {which}")
        return make_view(crop, self.side, self.config, rng)


class ViewPairLoader(PlannedBatches[ViewTask, ViewPairBatch]):
    """Batches of two views, epoch by epoch; the last crops of an epoch that fill no batch are left out.

    Args:
        build: Function that makes the two views of some crops.
        crops: Positions of the crops to train on, at least one batch of them.
        batch_size: Number of crops per step and process.
        workers: Number of processes that make views; 0 makes them in the training process.
        rank: Number of this process.
        world: Number of training processes.
    """

    def __init__(
        self,
        build: BuildViews,
        crops: NDArray[np.int64],
        batch_size: int,
        *,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._build = build
        self._crops = [int(index) for index in crops]
        self._batch_size, self._rank, self._world = batch_size, rank, world
        super().__init__(TaskStream(build, workers))

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that each process gets per epoch."""
        return len(self._crops) // (self._batch_size * self._world)

    def plan(self, epoch: int) -> list[ViewTask]:
        """The batches of this process in an epoch, as positions."""
        ids = [self._build.store.ids[index] for index in self._crops]
        order = [self._crops[e.position] for e in epoch_order(ids, seed=self._build.seed, epoch=epoch)]
        size = self._batch_size
        starts = ((step * self._world + self._rank) * size for step in range(self.steps_per_epoch))
        return [ViewTask(epoch, tuple(order[start : start + size])) for start in starts]

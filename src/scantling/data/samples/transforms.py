"""Augmentation: every transform takes (sample, bank, rng) and returns a sample.

`bank` gives other samples to transforms that mix images; `rng` is all the randomness there is. Neighbouring geometric
transforms are merged by `Compose` into one `View`, so the pixels are resampled once (see `geometry.py`). No transform
knows the epoch: which ones are at work in it is the data set's business (`Closing`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from scantling.data.samples.geometry import View, move_instances, render, seen_of, visible
from scantling.structures.instances import Instances
from scantling.structures.sample import Sample

_ROUNDING = 1e-6


class Bank(Protocol):
    """Source of further raw samples for transforms that mix several images."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """The raw sample at an index."""
        ...


class Transform(Protocol):
    """What every augmentation is."""

    def __call__(self, sample: Sample, bank: Bank, rng: np.random.Generator, /) -> Sample:
        """The changed sample; the given one stays as it is."""
        ...


class Geometric(ABC):
    """A transform that only says where things go; several in a row cost one pass over the pixels."""

    @abstractmethod
    def place(self, view: View, rng: np.random.Generator, /) -> View:
        """The next view, given what is shown now and a source of randomness."""

    def __call__(self, sample: Sample, _bank: Bank, rng: np.random.Generator, /) -> Sample:
        """Apply this transform alone."""
        return render(sample, self.place(View.of(sample), rng))


class Moving(ABC):
    """A transform whose map no view can hold; it is joined to that of the geometric ones before it."""

    @abstractmethod
    def move(self, sample: Sample, view: View, rng: np.random.Generator, /) -> Sample:
        """The moved sample, given a sample, what is shown of it now, and a source of randomness."""

    def __call__(self, sample: Sample, _bank: Bank, rng: np.random.Generator, /) -> Sample:
        """Apply this transform alone."""
        return self.move(sample, View.of(sample), rng)


@dataclass(frozen=True, slots=True)
class Compose:
    """Transforms one after another; a run of geometric ones is done in one go."""

    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample, bank: Bank, rng: np.random.Generator, /) -> Sample:
        """The sample after all transforms."""
        return render(*self.placed(sample, bank, rng))

    def placed(self, sample: Sample, bank: Bank, rng: np.random.Generator, /) -> tuple[Sample, View]:
        """The sample after all but the last geometric transforms, and the view of it that these ask for.

        For what goes on to move the image: it changes the view, and pixels are still resampled once.
        """
        view = View.of(sample)
        for transform in self.transforms:
            if isinstance(transform, Moving):
                sample = transform.move(sample, view, rng)
                view = View.of(sample)
                continue
            if not isinstance(transform, Geometric) or view.finished:
                sample = render(sample, view)
                view = View.of(sample)
            if isinstance(transform, Geometric):
                view = transform.place(view, rng)
            else:
                sample = transform(sample, bank, rng)
                view = View.of(sample)
        return sample, view


@dataclass(frozen=True, slots=True)
class Closing:
    """What the transforms of a data set give way to in the last epochs of training.

    Attributes:
        first_epoch: The first epoch in which they do, counted from 0.
        transforms: What is applied from then on.
    """

    first_epoch: int
    transforms: Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeShortSide(Geometric):
    """Resize so that the short side has a drawn length, unless the long side would exceed its limit.

    Attributes:
        short_side: Lengths to choose from with equal chances.
        long_side: Limit of the long side; None for the drawn length itself, so that the image fits into a square.
    """

    short_side: Sequence[int]
    long_side: int | None = None

    def place(self, view: View, rng: np.random.Generator, /) -> View:
        """See `Geometric`."""
        short = self.short_side[int(rng.integers(len(self.short_side)))]
        return view.resized(
            fit_size(view.size_hw, short, short if self.long_side is None else self.long_side)
        )


def fit_size(size_hw: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """The largest size of the same aspect whose short and long side do not exceed the limits.

    Args:
        size_hw: Size of the image, pixels.
        short_side: Limit of the shorter side.
        long_side: Limit of the longer side.

    Returns:
        Height and width, at least 1 each, rounded half up (as MMDetection does, so that sizes are the same).
    """
    scale = min(short_side / min(size_hw), long_side / max(size_hw))
    return max(1, int(size_hw[0] * scale + 0.5)), max(1, int(size_hw[1] * scale + 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrop(Geometric):
    """A rectangle of fixed size at a random place; a smaller image is taken whole.

    Attributes:
        size_hw: Size of the rectangle.
        min_visibility: An instance that keeps a smaller share of its mask (of its box, without one) is dropped.
        attempts: The place is drawn again up to so many times until an instance stays; then the rectangle is put
            around a random instance's centre, and if that shows too little of any, see `_fullest`. 1 accepts any place.
    """

    size_hw: tuple[int, int]
    min_visibility: float = 0.1
    attempts: int = 10

    def place(self, view: View, rng: np.random.Generator, /) -> View:
        """See `Geometric`."""
        size_hw = (min(self.size_hw[0], view.size_hw[0]), min(self.size_hw[1], view.size_hw[1]))
        return view if size_hw == view.size_hw else self._draw(view, size_hw, rng)

    def _draw(self, view: View, size_hw: tuple[int, int], rng: np.random.Generator) -> View:
        room_xy = (view.size_hw[1] - size_hw[1], view.size_hw[0] - size_hw[0])
        centres = _centres(view.instances.replace(masks=None), view)
        for _ in range(self.attempts):
            corner_xy = (int(rng.integers(room_xy[0] + 1)), int(rng.integers(room_xy[1] + 1)))
            cropped = view.cropped(corner_xy, size_hw, min_visibility=self.min_visibility)
            if self.attempts == 1 or not len(centres) or _shows_a_target(cropped):
                return cropped
        centre = centres[int(rng.integers(len(centres)))].tolist()
        x, y = (round(min(max(centre[a] - size_hw[1 - a] / 2, 0), room_xy[a])) for a in (0, 1))
        around = view.cropped((x, y), size_hw, min_visibility=self.min_visibility)
        return around if _shows_a_target(around) else self._fullest(view, size_hw)

    def _fullest(self, view: View, size_hw: tuple[int, int]) -> View:
        """The one of the fewest rectangles that together cover the view which shows most of any instance.

        Of n rectangles one shows at least 1/n of an instance; if that is less than `min_visibility`, as of a ring with
        nothing at its centre, the instance stays all the same: no view is without a target whose image has one.
        """
        columns, rows = (
            np.linspace(0, extent - side, math.ceil(extent / side)).round().astype(int).tolist()
            for extent, side in zip(view.size_hw[::-1], size_hw[::-1], strict=True)
        )
        places = [view.cropped((x, y), size_hw) for y in rows for x in columns]
        shares = [_largest_share(place) for place in places]
        share, best = max(shares), int(np.argmax(shares))
        rule = min(max(self.min_visibility, view.min_visibility), share * (1 - _ROUNDING))
        return replace(places[best], min_visibility=rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTile(Geometric):
    """A square of the original image, as prediction in tiles will show it; a smaller image is taken whole.

    What is shown of an object that the square cuts is to be found if it is enough, and ignored (a crowd region) if
    not: it must not be learnt as background, nor as an object.

    Attributes:
        side: Of the square, pixels.
        object_share: Probability that the square is put so that it shows a random object, whole if it fits;
            otherwise it lies anywhere, so that background is learnt too.
        min_visibility: Share of its area that an object must keep to be found.
    """

    side: int
    object_share: float = 0.75
    min_visibility: float = 0.1

    def place(self, view: View, rng: np.random.Generator, /) -> View:
        """See `Geometric`."""
        height, width = (min(self.side, side) for side in view.size_hw)
        chance, pick = rng.random(), rng.random()
        boxes = _targets(move_instances(view.instances.replace(masks=None), view)).boxes
        box = boxes[int(pick * len(boxes))].tolist() if len(boxes) and chance < self.object_share else None
        corner = [
            _start(extent, length, None if box is None else (box[axis], box[axis + 2]), rng)
            for axis, (extent, length) in enumerate(zip(view.size_hw[::-1], (width, height), strict=True))
        ]
        cropped = view.cropped((corner[0], corner[1]), (height, width))
        return replace(cropped, ignored_below=self.min_visibility)


def _start(extent: int, length: int, shown: tuple[float, float] | None, rng: np.random.Generator) -> int:
    """A random place for an interval inside 0..extent; around `shown` if that fits, else inside of it."""
    first, last = 0, extent - length
    if shown is not None:
        low, high = sorted((shown[1] - length, shown[0]))
        first = min(max(math.ceil(low), 0), last)
        last = max(min(math.floor(high), last), first)
    return first + int(rng.integers(last - first + 1))


def _targets(instances: Instances) -> Instances:
    """The instances to be found: all but crowd regions."""
    return instances if instances.is_crowd is None else instances[~instances.is_crowd]


def _shows_a_target(view: View) -> bool:
    """Whether a view shows enough of an instance that is no crowd region."""
    stays, _ = visible(view.instances, view)
    crowd = view.instances.is_crowd
    return bool((stays if crowd is None else stays & ~crowd).any())


def _largest_share(view: View) -> float:
    """Largest share of an instance that is no crowd region which a view shows; 0 where it shows none."""
    seen, whole = seen_of(view.instances, view)
    crowd = view.instances.is_crowd
    share = seen / whole.clamp(min=1e-9)
    return float((share if crowd is None else share[~crowd]).max())


def _centres(instances: Instances, view: View) -> Tensor:
    """Centres (N, 2) of the visible instances that are no crowd, in the view."""
    boxes = _targets(move_instances(instances, view)).boxes
    return (boxes[:, :2] + boxes[:, 2:]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizontalFlip(Geometric):
    """Left and right exchanged, with a probability."""

    probability: float = 0.5

    def place(self, view: View, rng: np.random.Generator, /) -> View:
        """See `Geometric`."""
        return view.flipped(horizontally=True) if rng.random() < self.probability else view


@dataclass(frozen=True, slots=True, kw_only=True)
class VerticalFlip(Geometric):
    """Top and bottom exchanged, with a probability."""

    probability: float = 0.5

    def place(self, view: View, rng: np.random.Generator, /) -> View:
        """See `Geometric`."""
        return view.flipped(horizontally=False) if rng.random() < self.probability else view


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRotate90(Geometric):
    """Rotated by one, two or three right angles with equal chances, with a probability."""

    probability: float = 0.5

    def place(self, view: View, rng: np.random.Generator, /) -> View:
        """See `Geometric`."""
        chance, quarters = rng.random(), int(rng.integers(1, 4))
        return view.rotated(quarters) if chance < self.probability else view


@dataclass(frozen=True, slots=True, kw_only=True)
class PadTo(Geometric):
    """A black margin at the right and bottom up to a size; larger images stay as they are."""

    size_hw: tuple[int, int]

    def place(self, view: View, _rng: np.random.Generator, /) -> View:
        """See `Geometric`."""
        return view.padded(self.size_hw)

"""Worse pictures of the same scene: blur, noise, JPEG artefacts, and parts that something hides.

    colours ► Blur (the optics) ► Noise (the sensor) ► Jpeg (the file) ► CutOut (what stands in front)

Each is a section of settings and the transform that it asks for; strengths are drawn evenly between two limits, and
lengths are in pixels of the training image, which is the resized one. Nothing is moved: boxes, masks and Frame stay.
H, W: image; N: instances.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from scantling.data.samples.geometry import Pixels, PixelWindow
from scantling.ops.boxes import box_area, clip_boxes
from scantling.settings.fields import Count, Fraction
from scantling.settings.section import Section
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks
from scantling.structures.sample import Sample

_ATTEMPTS = 10
_POINTS = 64  # of a line, for each pixel of its length
_S = TypeVar("_S", bound=Section)

Sigma = Annotated[float, Field(strict=True, gt=0, le=255)]
Length = Annotated[float, Field(strict=True, ge=1, le=200)]
Quality = Annotated[int, Field(strict=True, ge=1, le=100)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1)]


class Blur(Section):
    """Blur, of a lens out of focus or of a camera or object that moves.

    Attributes:
        probability: How often an image is blurred.
        sigma: Standard deviation of the Gaussian blur, pixels.
        motion: Share of the blurs that are of motion: along a straight line of any direction.
        length: Of the line, pixels.
    """

    probability: Fraction = 0.2
    sigma: tuple[Sigma, Sigma] = (0.5, 2.0)
    motion: Fraction = 0.5
    length: tuple[Length, Length] = (3.0, 9.0)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        return _with_rising(self, "sigma", "length")

    def __call__(self, sample: Sample, _bank: object, rng: np.random.Generator, /) -> Sample:
        """The sample, perhaps blurred; the number of draws is always the same."""
        chance, kind, strength, direction = rng.random(4)
        if chance >= self.probability:
            return sample
        if kind < self.motion:
            blurred = blur_motion(sample.hwc, _between(self.length, strength), 180 * direction)
        else:
            blurred = blur_gaussian(sample.hwc, _between(self.sigma, strength))
        return sample.replace(image=blurred.transpose(2, 0, 1))


class Noise(Section):
    """Independent normal noise on every pixel and channel, as of a sensor in poor light.

    Attributes:
        probability: How often an image becomes noisy.
        sigma: Standard deviation, grey levels of 255.
    """

    probability: Fraction = 0.2
    sigma: tuple[Sigma, Sigma] = (2.0, 12.0)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        return _with_rising(self, "sigma")

    def __call__(self, sample: Sample, _bank: object, rng: np.random.Generator, /) -> Sample:
        """The sample, perhaps with noise."""
        chance, strength = rng.random(2)
        if chance >= self.probability:
            return sample
        return sample.replace(
            image=add_noise(sample.hwc, _between(self.sigma, strength), rng).transpose(2, 0, 1)
        )


class Jpeg(Section):
    """The blocks and halos of a picture that was stored as JPEG.

    Attributes:
        probability: How often an image gets them.
        quality: Of the JPEG, 1 (worst) to 100, as cameras and libjpeg count it.
    """

    probability: Fraction = 0.2
    quality: tuple[Quality, Quality] = (30, 90)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        return _with_rising(self, "quality")

    def __call__(self, sample: Sample, _bank: object, rng: np.random.Generator, /) -> Sample:
        """The sample, perhaps as a JPEG shows it; the number of draws is always the same."""
        chance, strength = rng.random(2)
        if chance >= self.probability:
            return sample
        low, high = self.quality
        return sample.replace(
            image=as_jpeg(sample.hwc, low + int(strength * (high + 1 - low))).transpose(2, 0, 1)
        )


class CutOut(Section):
    """Rectangles of which nothing is seen, so that an object has to be known by what is left of it.

    Objects behind them stay what they are: to be found, with their whole box and mask. So that nothing is to be found
    where nothing is seen, a rectangle that would hide too much of an object is drawn again, ten times at most, and then
    left out.

    Attributes:
        probability: How often an image gets any.
        number: Largest number of rectangles; at least one.
        area: Area of each, as shares of the image.
        aspect: Height over width of each at most, and width over height.
        max_hidden: Share of an object (of its mask, or its box without one) that all of them together may hide.
        fill: `mean` colour of the image, `black`, or `noise` of even strength.

    Source: Zhong et al., Random Erasing, AAAI 2020 (area, aspect and fill); DeVries and Taylor, Cutout,
        2017. Deviation: `max_hidden`, which image classification has no need of.
    """

    probability: Fraction = 0.5
    number: Count = 3
    area: tuple[Share, Share] = (0.01, 0.1)
    aspect: Annotated[float, Field(strict=True, ge=1, le=100)] = 3.0
    max_hidden: Fraction = 0.5
    fill: Literal["mean", "black", "noise"] = "mean"

    @model_validator(mode="after")
    def _rising(self) -> Self:
        return _with_rising(self, "area")

    def __call__(self, sample: Sample, _bank: object, rng: np.random.Generator, /) -> Sample:
        """The sample, perhaps with rectangles hidden."""
        if rng.random() >= self.probability:
            return sample
        windows = self.place(sample.instances, rng)
        if not windows:
            return sample
        pixels = sample.hwc.copy()
        mean = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
        for x1, y1, x2, y2 in windows:
            if self.fill == "noise":
                pixels[y1:y2, x1:x2] = rng.integers(0, 256, (y2 - y1, x2 - x1, 3), dtype=np.uint8)
            else:
                pixels[y1:y2, x1:x2] = mean if self.fill == "mean" else 0
        return sample.replace(image=pixels.transpose(2, 0, 1))

    def place(self, instances: Instances, rng: np.random.Generator) -> list[PixelWindow]:
        """Where the rectangles lie; fewer than drawn where objects leave no room.

        Args:
            instances: Of the image; crowd regions may be hidden.
            rng: Source of randomness.
        """
        found = instances if instances.is_crowd is None else instances[~instances.is_crowd]
        windows: list[PixelWindow] = []
        hidden = np.zeros(len(found))
        for _ in range(int(rng.integers(1, self.number + 1))):
            for _ in range(_ATTEMPTS):
                window = self._draw(instances.size_hw, rng)
                more = hidden + hidden_shares(found, window)
                if (more <= self.max_hidden).all():
                    windows.append(window)
                    hidden = more
                    break
        return windows

    def _draw(self, size_hw: tuple[int, int], rng: np.random.Generator) -> PixelWindow:
        height, width = size_hw
        strength, shape, left, top = rng.random(4)
        area = _between(self.area, strength) * height * width
        aspect = math.exp(math.log(self.aspect) * (2 * shape - 1))
        h = min(height, max(1, round(math.sqrt(area * aspect))))
        w = min(width, max(1, round(math.sqrt(area / aspect))))
        x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
        return x, y, x + w, y + h


def hidden_shares(instances: Instances, window: PixelWindow) -> NDArray[np.float64]:
    """(N,) share of each instance that lies in a rectangle: of its mask, of its box where it has none.

    Args:
        instances: N, in the frame of the image; none give (0,).
        window: Whole pixels x1, y1, x2, y2.
    """
    x1, y1, x2, y2 = window
    shift = instances.boxes.new_tensor([x1, y1, x1, y1])
    hidden = box_area(clip_boxes(instances.boxes - shift, (y2 - y1, x2 - x1))).double().numpy()
    whole = box_area(instances.boxes).double().numpy()
    if isinstance(instances.masks, ImageMasks):
        pixels = instances.masks.areas().double().numpy()
        hidden = np.where(pixels > 0, instances.masks.areas_within(window).double().numpy(), hidden)
        whole = np.where(pixels > 0, pixels, whole)
    shares: NDArray[np.float64] = np.divide(hidden, whole, out=np.zeros_like(whole), where=whole > 0)
    return shares


def blur_gaussian(pixels: Pixels, sigma: float) -> Pixels:
    """Blur (H, W, 3) with a Gaussian of this standard deviation in pixels; what lies beyond the border is mirrored."""
    blurred: Pixels = cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def blur_motion(pixels: Pixels, length: float, degrees: float) -> Pixels:
    """Blur (H, W, 3) along a straight line, as it moves during the exposure; what lies beyond the border is mirrored.

    Args:
        pixels: uint8.
        length: Of the line, pixels; 1 is no blur along the axes.
        degrees: Direction of the line, from the x axis towards the y axis.
    """
    blurred: Pixels = cv2.filter2D(
        pixels, -1, motion_kernel(length, degrees), borderType=cv2.BORDER_REFLECT_101
    )
    return blurred


def motion_kernel(length: float, degrees: float) -> NDArray[np.float64]:
    """(M, M) share of a line through the middle that lies in each pixel, M odd; they sum to 1.

    Args:
        length: Of the line, pixels, at least 1.
        degrees: Its direction, from the x axis towards the y axis.
    """
    reach = math.floor(length / 2 + 0.5)
    count = _POINTS * math.ceil(length)
    places = length * ((np.arange(count) + 0.5) / count - 0.5)
    turn = math.radians(degrees)
    columns, rows = (np.rint(places * part).astype(int) + reach for part in (math.cos(turn), math.sin(turn)))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (rows, columns), 1 / count)
    return kernel


def add_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add normal noise of a standard deviation in grey levels to (H, W, 3), rounded and clipped to 0..255."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    noise *= sigma
    noise += pixels
    noisy: Pixels = np.rint(noise, out=noise).clip(0, 255).astype(np.uint8)
    return noisy


def as_jpeg(pixels: Pixels, quality: int) -> Pixels:
    """(H, W, 3) RGB as it comes back from a JPEG of this quality, with colours at half resolution."""
    coded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(cast("Pixels", cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1])


def _between(limits: tuple[float, float], share: float) -> float:
    low, high = limits
    return low + share * (high - low)


def _with_rising(section: _S, *names: str) -> _S:
    """The section, once the two limits of each of these settings are known to be in order.

    Raises:
        ValueError: The first is above the second.
    """
    for name in names:
        low, high = getattr(section, name)
        if low > high:
            raise ValueError(f"{name}: the first limit {low} is above the second, {high}")
    return section

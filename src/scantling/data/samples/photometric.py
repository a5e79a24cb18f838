"""Photometric augmentation in one pass over the pixels.

Brightness, contrast, saturation and hue are linear in RGB, so any combination of them is one 3 x 4 matrix, applied in
fixed point by `cv2.transform` and clipped once at the end. Gamma is a table of 256 entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.samples.geometry import Matrix, Pixels
from scantling.structures.sample import Sample

LUMA = np.array([0.299, 0.587, 0.114])
"""Share of R, G, B in brightness (ITU-R BT.601)."""

_RGB_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourChange:
    """One change of colours; the defaults change nothing.

    Attributes:
        brightness: Factor on every pixel.
        contrast: Factor on the distance from the image's mean grey.
        saturation: Factor on the distance from grey; 0 makes a gray image.
        hue: Turn of the colour circle, in whole turns.
        gamma: Exponent on values scaled to 0..1.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    gamma: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Photometric:
    """Random change of colours; geometry stays.

    Attributes:
        probability: How often it happens at all.
        brightness: Factor drawn uniformly from 1 - brightness .. 1 + brightness; likewise contrast and saturation.
        contrast: See brightness.
        saturation: See brightness.
        hue: Turn drawn from -hue .. hue, in whole turns of the colour circle.
        gamma: Exponent drawn from 1 / (1 + gamma) .. 1 + gamma, evenly on a logarithmic scale.
    """

    probability: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 0.0

    def draw(self, rng: np.random.Generator) -> ColourChange | None:
        """What to do to the next image; None for nothing. The number of draws is always the same."""
        chance, brightness, contrast, saturation, hue, gamma = rng.random(6)
        if chance >= self.probability:
            return None
        return ColourChange(
            brightness=1 + self.brightness * (2 * brightness - 1),
            contrast=1 + self.contrast * (2 * contrast - 1),
            saturation=1 + self.saturation * (2 * saturation - 1),
            hue=self.hue * (2 * hue - 1),
            gamma=math.exp(math.log1p(self.gamma) * (2 * gamma - 1)),
        )

    def __call__(self, sample: Sample, _bank: object, rng: np.random.Generator, /) -> Sample:
        """The sample with changed colours."""
        change = self.draw(rng)
        if change is None or change == ColourChange():
            return sample
        return sample.replace(image=change_colours(sample.hwc, change).transpose(2, 0, 1))


def change_colours(pixels: Pixels, change: ColourChange) -> Pixels:
    """Apply a change of colours to an RGB image.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        change: What to do; gamma first, then brightness, contrast, saturation, hue.

    Returns:
        A new (H, W, 3) uint8 image, values rounded (to within 1) and clipped to 0..255.

    Source: Brightness, contrast and saturation as in torchvision's `ColorJitter`, in this fixed order and clipped once
        instead of after each. Hue turns the chroma plane of YIQ, which keeps brightness, instead of HSV's hue.
    """
    if change.gamma != 1:
        pixels = cv2.LUT(pixels, gamma_table(change.gamma))
    if (change.brightness, change.contrast, change.saturation, change.hue) == (1, 1, 1, 0):
        return pixels
    mean = LUMA @ np.array(cv2.mean(pixels[::4])[:3]) if change.contrast != 1 else 0.0
    changed: Pixels = cv2.transform(pixels, colour_matrix(change, float(mean)))
    return changed


def gamma_table(gamma: float) -> NDArray[np.uint8]:
    """The 256 values 255 * (v / 255) ** gamma, rounded."""
    return np.rint(255 * np.linspace(0, 1, 256) ** gamma).astype(np.uint8)


def colour_matrix(change: ColourChange, mean_grey: float) -> Matrix:
    """The (3, 4) matrix on (R, G, B, 1) that does brightness, contrast, saturation and hue.

    Args:
        change: The factors; gamma is not looked at.
        mean_grey: Mean brightness of the image before the change, the fixed point of contrast.
    """
    grey = np.tile(LUMA, (3, 1))
    saturate = change.saturation * np.eye(3) + (1 - change.saturation) * grey
    cos, sin = math.cos(2 * math.pi * change.hue), math.sin(2 * math.pi * change.hue)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    linear = change.brightness * change.contrast * (_YIQ_TO_RGB @ turn @ _RGB_TO_YIQ @ saturate)
    offset = (1 - change.contrast) * change.brightness * mean_grey
    return np.column_stack([linear, np.full(3, offset)])

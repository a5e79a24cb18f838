"""Where an object may be moved so that it looks at home: InstaBoost's appearance-consistency heat map.

Source: Fang et al., "InstaBoost: Boosting Instance Segmentation via Probability Map Guided Copy-Pasting", ICCV 2019,
section 3.3. An object at c is described by the colours in three bands around it, C_1 (innermost) to C_3. Moved to c',
it is as far from where it was as

    d(c, c') = sum_i w_i sum_{x in C_i} |I(x) - B(x + c' - c)|^2          B: the image without the object

and the map is h(c') = -log((d - m) / (M - m)), m and M being the least and the greatest distance. Deviations:

* The distance of two colours is the squared Euclidean one. The paper leaves it open ("any distance metric") and took
  the Euclidean one; squared, the map is a handful of correlations and costs as much for all places as for a few.
* The paper says neither how wide the bands are nor how they weigh. Four pixels each, and 0.40, 0.35, 0.25 from the
  inside out, are the numbers of the authors' own program.
* 0.001 is added to numerator and denominator, so that where an object was is likely, and not certain.
* The paper lets no band leave the image, and so never moves what lies near its border. Here that part of the bands is
  compared that lies in the image at both places, and the mean over it stands for the sum, which is the same elsewhere.

h, w: the object with its bands; 2 r_y + 1, 2 r_x + 1: the map.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.samples.geometry import Pixels
from scantling.ops.masks import Patch

Map = NDArray[np.float64]

BAND_WIDTH = 4
BAND_WEIGHTS = (0.40, 0.35, 0.25)
REACH = BAND_WIDTH * len(BAND_WEIGHTS)
"""How far the bands reach around an object, pixels."""

_CERTAINTY = 1e-3


def bands(patch: Patch) -> Map:
    """(h + 2 REACH, w + 2 REACH) the weight of every pixel around an object (h, w); 0 in it and far from it."""
    grown = np.pad(patch, REACH)
    kernel = np.ones((3, 3), dtype=np.uint8)
    weights = np.zeros(grown.shape)
    for weight in BAND_WEIGHTS:
        wider = cv2.dilate(grown, kernel, iterations=BAND_WIDTH)
        weights[wider > grown] = weight
        grown = wider
    return weights


def distances(
    image: Pixels, background: Pixels, patch: Patch, offset_xy: tuple[int, int], reach_xy: tuple[int, int]
) -> Map:
    """How far an object's surroundings would be from what they are, for every move of so many pixels.

    Args:
        image: (H, W, 3) uint8 with the object.
        background: (H, W, 3) uint8 without it.
        patch: Its mask.
        offset_xy: Where the mask begins.
        reach_xy: r_x and r_y, the longest moves.

    Returns:
        (2 r_y + 1, 2 r_x + 1): the mean over the weights of the bands; infinite where nothing of the bands is in the
        image at both places.
    """
    from scipy import fft  # a quarter of a second, which only this augmentation needs

    weights = bands(patch)
    corner_xy = offset_xy[0] - REACH, offset_xy[1] - REACH
    here, inside = _window(image, corner_xy, weights.shape)
    weights = weights * inside
    far = (weights.shape[0] + 2 * reach_xy[1], weights.shape[1] + 2 * reach_xy[0])
    there, known = _window(background, (corner_xy[0] - reach_xy[0], corner_xy[1] - reach_xy[1]), far)
    shape = [fft.next_fast_len(side, real=True) for side in far]
    squares, far_squares = (here**2).sum(axis=0), (there**2).sum(axis=0)
    near = fft.rfft2(np.stack([weights, weights * squares, *(weights * here)]), shape)
    wide = fft.rfft2(np.stack([known, far_squares, *there]), shape)
    near = near.conj()
    total = near[0] * wide[1] + near[1] * wide[0] - 2 * (near[2:] * wide[2:]).sum(axis=0)
    sums, shared = fft.irfft2(np.stack([total, near[0] * wide[0]]), shape)[
        :, : 2 * reach_xy[1] + 1, : 2 * reach_xy[0] + 1
    ]
    least = min(BAND_WEIGHTS) / 2
    mean: Map = np.maximum(sums, 0) / np.maximum(shared, least)
    mean[shared <= least] = np.inf
    return mean


def heat_map(distance: Map) -> Map:
    """Likelihood of every place out of its distance, with sum 1; 0 where that is infinite.

    All finite places are equally likely if they are equally far; all are 0 if there is none.
    """
    finite = np.isfinite(distance)
    if not finite.any():
        return np.zeros(distance.shape)
    least, greatest = distance[finite].min(), distance[finite].max()
    if greatest - least <= 1e-9 * (1 + greatest):
        return np.asarray(finite / finite.sum())
    share = np.where(finite, (np.where(finite, distance, greatest) - least) / (greatest - least), 1.0)
    heat = -np.log((share + _CERTAINTY) / (1 + _CERTAINTY))
    return np.asarray(heat / heat.sum())


def _window(pixels: Pixels, corner_xy: tuple[int, int], size_hw: tuple[int, ...]) -> tuple[Map, Map]:
    """Colours (3, h, w) about the middle grey, and (h, w) 1 where the window lies in the image; 0 elsewhere."""
    (x, y), (height, width) = corner_xy, size_hw
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, pixels.shape[1]), min(y + height, pixels.shape[0])
    colours, inside = np.zeros((3, height, width)), np.zeros((height, width))
    rows, columns = slice(top - y, max(bottom - y, top - y)), slice(left - x, max(right - x, left - x))
    shown = pixels[top : max(bottom, top), left : max(right, left)]
    colours[:, rows, columns] = shown.transpose(2, 0, 1).astype(np.float64) - 128
    inside[rows, columns] = 1
    return colours, inside

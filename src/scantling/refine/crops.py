"""Crops of objects: which window of the image is shown, and the square of pixels the network sees.

    boxes (N, 4) ── crop_windows ──► windows (N, 4), whole pixels ── cut ──► crops (N, 3, S, S) uint8
                                          └── to_crop, from_crop: boxes and points between image and crop, exactly

Windows lie on whole pixels, so that cutting is a plain resize (six times faster than resampling at sub-pixel places,
`bench/refine.py`); boxes do not: where they lie in a window is computed in double precision from the window really
cut. Crop coordinates run from 0 to 1 over the window in x and in y, whatever its aspect. What lies outside the image
has the mean colour, which the network's normalisation turns into 0.
N: boxes, S: side of the crops, H, W: height and width of the image.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

from scantling.data.samples.geometry import Pixels, resize_pixels
from scantling.models.normalise import PIXEL_MEAN

Boxes = NDArray[np.float64]
Windows = NDArray[np.int64]

OUTSIDE = tuple(round(level) for level in PIXEL_MEAN)
"""Colour of what lies outside the image."""


def crop_windows(boxes: Boxes, padding: float | NDArray[np.float64], side: int | None = None) -> Windows:
    """The whole-pixel windows that show boxes with some margin.

    Args:
        boxes: (N, 4) xyxy in image pixels; sides >= 0.
        padding: Margin relative to the box's width (left, right) and height (top, bottom): one number, or (N, 4) for
            left, top, right, bottom of each. Negative values cut into the box.
        side: S of the crops. A window so large that `cut` halves it grows to the right and downwards, by less than a
            pixel of the crop, until each side halves exactly as often as it can be halved without falling below S: an
            exact halving takes half the time.

    Returns:
        (N, 4) xyxy, rounded outwards, at least one pixel wide and high; they may leave the image.
    """
    margins = np.broadcast_to(padding, boxes.shape)
    sides = boxes[:, 2:] - boxes[:, :2]
    windows = np.empty(boxes.shape, dtype=np.int64)
    windows[:, :2] = np.floor(boxes[:, :2] - sides * margins[:, :2])
    windows[:, 2:] = np.ceil(boxes[:, 2:] + sides * margins[:, 2:])
    np.maximum(windows[:, 2:], windows[:, :2] + 1, out=windows[:, 2:])
    if side is not None:
        sizes = windows[:, 2:] - windows[:, :2]
        halvings = np.ceil(np.log2(sizes.max(axis=1, keepdims=True) / (2 * side)))
        exact = np.clip(np.floor(np.log2(sizes / side)), 0, np.maximum(0, halvings))
        units = np.left_shift(1, exact.astype(np.int64))
        windows[:, 2:] = windows[:, :2] - (-sizes // units) * units
    return windows


def to_crop(points: NDArray[np.float64], windows: Windows) -> NDArray[np.float64]:
    """Points or boxes in crop coordinates 0..1 of their windows; not clipped.

    Args:
        points: (N, 2) xy or (N, 4) xyxy in image pixels.
        windows: (N, 4) xyxy.
    """
    low, high = _corners(windows, points.shape[1] // 2)
    moved: NDArray[np.float64] = (points - low) / (high - low)
    return moved


def from_crop(points: NDArray[np.float64], windows: Windows) -> NDArray[np.float64]:
    """The inverse of `to_crop`: (N, 2) or (N, 4) of crop coordinates in image pixels."""
    low, high = _corners(windows, points.shape[1] // 2)
    moved: NDArray[np.float64] = low + points * (high - low)
    return moved


def _corners(windows: Windows, times: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Upper left and lower right corners (N, 2 * times), repeated."""
    corners = windows.astype(np.float64)
    return np.tile(corners[:, :2], times), np.tile(corners[:, 2:], times)


def cut(pixels: Pixels, windows: Windows, side: int) -> Tensor:
    """The square crops of some windows, each resized as training images are (`geometry.resize_pixels`).

    Args:
        pixels: (H, W, 3) uint8 RGB, as decoded.
        windows: (N, 4) xyxy, whole pixels.
        side: S.

    Returns:
        (N, 3, S, S) uint8 in channels-last memory, ready for a network on the CPU; (0, 3, S, S) for none.
    """
    crops = np.empty((len(windows), side, side, 3), dtype=np.uint8)
    pixels, windows = _framed(pixels, windows)
    for crop, window in zip(crops, windows.tolist(), strict=True):
        shown = _halved(_shown(pixels, window), side)
        cv2.resize(shown, (side, side), dst=crop, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def _framed(pixels: Pixels, windows: Windows) -> tuple[Pixels, Windows]:
    """The image in a frame of `OUTSIDE` and the windows moved with it, if windows that leave it are larger together."""
    height, width = pixels.shape[:2]
    low, high = windows[:, :2], windows[:, 2:]
    leaves = (low < 0).any(axis=1) | (high > (width, height)).any(axis=1)
    if np.count_nonzero(leaves) < 2:
        return pixels, windows
    left, top = np.maximum(0, -low.min(axis=0)).tolist()
    right, bottom = np.maximum(0, high.max(axis=0) - (width, height)).tolist()
    if (left + width + right) * (top + height + bottom) > (high - low)[leaves].prod(axis=1).sum():
        return pixels, windows
    framed = cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=[*OUTSIDE, 0])
    return framed, windows + (left, top, left, top)


def _halved(pixels: Pixels, side: int) -> Pixels:
    """Halved until a last bilinear step to the side does not skip pixels, as `geometry.resize_pixels` does."""
    height, width = pixels.shape[:2]
    while max(height, width) > 2 * side:
        height, width = max(side, (height + 1) // 2), max(side, (width + 1) // 2)
        pixels = resize_pixels(pixels, (height, width))
    return pixels


def _shown(pixels: Pixels, window: list[int]) -> Pixels:
    """The pixels of a window; a view wherever it lies inside the image."""
    x1, y1, x2, y2 = window
    height, width = pixels.shape[:2]
    inside = pixels[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
        return inside
    if not inside.size:
        return np.full((1, 1, 3), OUTSIDE, dtype=np.uint8)
    top, bottom = max(-y1, 0), max(y2 - height, 0)
    left, right = max(-x1, 0), max(x2 - width, 0)
    padded: Pixels = cv2.copyMakeBorder(
        inside, top, bottom, left, right, cv2.BORDER_CONSTANT, value=[*OUTSIDE, 0]
    )
    return padded


def cut_on_device(image: Tensor, windows: Windows, side: int) -> Tensor:
    """The same crops by one batched resampling call on the image's device.

    Agrees with `cut` to one grey level where a window is enlarged, except in the outermost half source pixel (this one
    looks across the window's border, `cut` repeats the pixel at it); where it is shrunk, both average over what a
    crop's pixel covers, here by RoIAlign's samples, there by halving.

    Args:
        image: (3, H, W) uint8 on any device.
        windows: (N, 4) xyxy, whole pixels.
        side: S.

    Returns:
        (N, 3, S, S) uint8 on the same device; (0, 3, S, S) for none.
    """
    outside = torch.tensor(OUTSIDE, dtype=torch.float32, device=image.device).view(1, 3, 1, 1)
    boxes = torch.from_numpy(windows).to(image.device, torch.float32)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    sampled = roi_align(image[None].float() - outside, rois, side, sampling_ratio=0, aligned=True)
    levels: Tensor = (sampled + outside).round_().clamp_(0, 255)
    return levels.to(torch.uint8)

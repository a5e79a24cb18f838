"""Masks of single objects: run-length codes, polygons, overlap, and crossing between box and image frame.

The run-length functions live in `ops.rle`, those of polygons and overlaps in `ops.polygons`: what only reads or
compares files takes them from there, because this module loads torch. Crossing between a network's square box-frame
masks and the image is bilinear and exact to half a pixel: pixel centres lie at half-integers, as in RoIAlign with
`aligned=True`. Only the region of each box is computed, a bounded number of pixels at a time, so memory does not
grow with instances x pixels. N: instances; M: side of box-frame masks; h, w: patch; H, W: image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.ops.polygons import MAX_OUTLINE, check_polygons, polygons_to_rle
from scantling.ops.rle import (
    MAX_MASK_PIXELS,
    RLE,
    Patch,
    check_rle,
    check_size,
    patch_to_rle,
    rle_area,
    rle_counts,
    rle_decode,
    rle_encode,
    rle_from_uncompressed,
    rle_to_box,
    rle_to_patch,
)

__all__ = [
    "MAX_MASK_PIXELS",
    "MAX_OUTLINE",
    "RLE",
    "Patch",
    "check_polygons",
    "check_rle",
    "check_size",
    "crop_masks",
    "paste_masks",
    "paste_patches",
    "patch_to_rle",
    "pixels_in",
    "polygons_to_rle",
    "rle_area",
    "rle_counts",
    "rle_decode",
    "rle_encode",
    "rle_from_uncompressed",
    "rle_to_box",
    "rle_to_patch",
    "seen_through",
    "warp_patch",
]

_MAX_CHUNK_PIXELS = 1 << 22


def crop_masks(
    patches: Sequence[Patch],
    offsets_xy: NDArray[np.int64],
    boxes: Tensor,
    side: int,
    size_hw: tuple[int, int],
) -> Tensor:
    """Cut mask i out of the image with box i and resize it to a square: the training target of a mask head.

    Args:
        patches: N object patches of 0 and 1; the same array may occur many times and is then read once.
        offsets_xy: (N, 2) image column and row of each patch's upper left pixel.
        boxes: (N, 4) xyxy, image frame.
        side: M, in cells.
        size_hw: Height and width of the image.

    Returns:
        (N, M, M) float32 in [0, 1], the covered share of each cell, on the device of `boxes`: equal to
        `torchvision.ops.roi_align` of the dense mask with `aligned=True` and adaptive sampling. (0, M, M) for none.
    """
    from torchvision.ops import roi_align  # here: half of a start-up, and only training comes this way

    targets = torch.zeros(len(patches), side, side)
    rows_of: dict[int, list[int]] = {}
    for row, patch in enumerate(patches):
        rows_of.setdefault(id(patch), []).append(row)
    cpu_boxes = boxes.detach().float().cpu()
    for rows in rows_of.values():
        patch, (x, y) = patches[rows[0]], offsets_xy[rows[0]].tolist()
        if patch.size:
            ringed, (x, y) = _ring(patch, (x, y), size_hw)
            shifted = cpu_boxes[rows] - cpu_boxes.new_tensor([x, y, x, y])
            targets[rows] = roi_align(ringed[None, None], [shifted], side, aligned=True)[:, 0]
    return targets.to(boxes.device)


def _ring(
    patch: Patch, offset_xy: tuple[int, int], size_hw: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """Patch as float with one row of background on each side that is not the image's own border.

    RoIAlign repeats the outermost pixel of what it reads; that is right at the border of the image only.
    """
    (x, y), (h, w), (height, width) = offset_xy, patch.shape, size_hw
    left, top = int(x > 0), int(y > 0)
    ringed = torch.zeros(top + h + int(y + h < height), left + w + int(x + w < width))
    ringed[top : top + h, left : left + w] = torch.from_numpy(patch)
    return ringed, (x - left, y - top)


def paste_masks(
    probabilities: Tensor,
    boxes: Tensor,
    size_hw: tuple[int, int],
    threshold: float = 0.5,
    max_pixels: int = _MAX_CHUNK_PIXELS,
) -> list[RLE]:
    """Resize each square mask onto its box in the image, threshold and encode it.

    Args:
        probabilities: (N, M, M) in [0, 1], box frame.
        boxes: (N, 4) xyxy, image frame; may leave the image.
        size_hw: Height and width of the image.
        threshold: A pixel belongs to the object from this probability on; above 0.
        max_pixels: Most pixels held as floats at any time.

    Returns:
        N RLEs of the image; a box without area gives an empty mask. [] for no boxes.

    Raises:
        ValueError: Shapes do not fit, a box is not finite, or the threshold is not above 0.
    """
    patches, offsets = paste_patches(probabilities, boxes, size_hw, threshold, max_pixels)
    return [
        patch_to_rle(patch, (x, y), size_hw) for patch, (x, y) in zip(patches, offsets.tolist(), strict=True)
    ]


def paste_patches(
    probabilities: Tensor,
    boxes: Tensor,
    size_hw: tuple[int, int],
    threshold: float = 0.5,
    max_pixels: int = _MAX_CHUNK_PIXELS,
) -> tuple[list[Patch], NDArray[np.int64]]:
    """`paste_masks` as patches: per instance the pixels around its box, and (N, 2) where they lie (x, y)."""
    count = len(boxes)
    if probabilities.ndim != 3 or probabilities.shape[0] != count or boxes.shape != (count, 4):
        raise ValueError(
            f"paste_masks: expected probabilities (N, M, M) and boxes (N, 4), "
            f"found {tuple(probabilities.shape)} and {tuple(boxes.shape)}"
        )
    corners = boxes.detach().double().cpu().numpy()
    if not threshold > 0 or not np.isfinite(corners).all():
        raise ValueError(f"paste_masks: expected a threshold above 0 ({threshold}) and finite boxes")
    squares = probabilities.detach().float().cpu().numpy()
    pairs = zip(squares, corners, strict=True)
    pasted = [_paste_one(square, box, size_hw, threshold, max_pixels) for square, box in pairs]
    offsets = np.array([offset for _, offset in pasted], dtype=np.int64).reshape(count, 2)
    return [patch for patch, _ in pasted], offsets


def _paste_one(
    square: NDArray[np.float32],
    box: NDArray[np.float64],
    size_hw: tuple[int, int],
    threshold: float,
    max_pixels: int,
) -> tuple[Patch, tuple[int, int]]:
    """Paste one mask: bilinear interpolation is a product of one weight matrix per axis, rows in chunks."""
    rows, across = square.shape
    x, weights_x = _axis_weights(box[0], box[2], across, size_hw[1])
    y, weights_y = _axis_weights(box[1], box[3], rows, size_hw[0])
    spread = square @ weights_x.T  # (M, w)
    patch = np.zeros((len(weights_y), len(weights_x)), dtype=np.uint8)
    step = max(1, max_pixels // max(1, len(weights_x)))
    for start in range(0, len(weights_y), step):
        patch[start : start + step] = weights_y[start : start + step] @ spread >= threshold
    return patch, (x, y)


def _axis_weights(low: float, high: float, cells: int, limit: int) -> tuple[int, NDArray[np.float32]]:
    """First pixel and (pixels, cells) interpolation weights along one axis of a box.

    Half a cell around the box is included: there the mask fades linearly to zero, as grid sampling with zero padding
    has it. Pixels outside [0, limit) are left out; a box without extent has none.
    """
    cell = (high - low) / cells
    if not cell > 0:
        return 0, np.zeros((0, cells), dtype=np.float32)
    first = max(0, math.floor(max(low - cell / 2, -1.0)))
    last = min(limit, math.ceil(min(high + cell / 2, limit + 1.0)))
    centres = (np.arange(first, last) + 0.5 - low) / cell - 0.5
    weights = 1 - np.abs(centres[:, None] - np.arange(cells))
    return min(first, limit), np.maximum(weights, 0).astype(np.float32)


def warp_patch(
    patch: Patch, offset_xy: tuple[int, int], matrix: NDArray[np.float64], size_hw: tuple[int, int]
) -> tuple[Patch, tuple[int, int]]:
    """Move a mask by an affine map into another frame, cut off at its borders.

    Args:
        patch: (h, w) of 0 and 1.
        offset_xy: Column and row of its upper left pixel.
        matrix: (2, 3) affine map of continuous coordinates, old frame to new.
        size_hw: Height and width of the new frame.

    Returns:
        The moved patch (0 x 0 if nothing of it is left) and its column and row in the new frame. Shrinking averages
        first, so that thin parts do not fall between samples; a pixel is on from half coverage on.
    """
    patch, matrix = _shrink(patch.astype(np.uint8) * 255, _shift_origin(matrix, offset_xy))
    h, w = patch.shape
    reach = matrix[:, :2] * [w, h]  # what the far corner adds along each axis; the near corner is the origin
    x1, y1 = (max(0, math.floor(value)) for value in np.minimum(reach, 0).sum(axis=1) + matrix[:, 2])
    right, bottom = np.maximum(reach, 0).sum(axis=1) + matrix[:, 2]
    x2, y2 = min(size_hw[1], math.ceil(right)), min(size_hw[0], math.ceil(bottom))
    if not patch.size or x2 <= x1 or y2 <= y1:
        return np.zeros((0, 0), dtype=np.uint8), (0, 0)
    centred = matrix.copy()  # OpenCV counts from pixel centres, we from pixel edges
    centred[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5 - np.array([x1, y1])
    moved = cv2.warpAffine(patch, centred, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR)
    return (moved >= 128).astype(np.uint8), (x1, y1)


def _shift_origin(matrix: NDArray[np.float64], offset_xy: tuple[int, int]) -> NDArray[np.float64]:
    """The map for coordinates counted from `offset_xy`."""
    shifted = np.array(matrix, dtype=np.float64)
    shifted[:, 2] += shifted[:, :2] @ np.asarray(offset_xy, dtype=np.float64)
    return shifted


def _shrink(patch: Patch, matrix: NDArray[np.float64]) -> tuple[Patch, NDArray[np.float64]]:
    """Halve the patch by averaging until the map shrinks what is left by less than half; returns both adapted."""
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    factor = 1 << max(0, math.floor(-math.log2(max(scale, 1e-3)) + 1e-9))
    if factor == 1 or not patch.size:
        return patch, matrix
    h, w = (-(-side // factor) for side in patch.shape)
    padded = np.zeros((h * factor, w * factor), dtype=np.uint8)
    padded[: patch.shape[0], : patch.shape[1]] = patch
    small = cv2.resize(padded, (w, h), interpolation=cv2.INTER_AREA)
    return small, np.hstack([matrix[:, :2] * factor, matrix[:, 2:]])


def seen_through(
    plane: NDArray[Any], matrix: NDArray[np.float64], window: tuple[int, int, int, int]
) -> NDArray[Any]:
    """A map of numbers as it lies under a window of another frame: bilinear, its outermost cells repeated beyond it.

    Args:
        plane: (h, w) uint8 or float32.
        matrix: (2, 3) affine map of continuous coordinates, the window's frame to the plane's.
        window: Whole pixels x1, y1, x2, y2 of the other frame; may be empty.

    Returns:
        (y2 - y1, x2 - x1) of the plane's type.
    """
    x1, y1, x2, y2 = window
    if x2 <= x1 or y2 <= y1:
        return np.zeros((max(0, y2 - y1), max(0, x2 - x1)), dtype=plane.dtype)
    centred = np.array(matrix, dtype=np.float64)  # OpenCV counts from pixel centres, we from pixel edges
    centred[:, 2] += centred[:, :2] @ [x1 + 0.5, y1 + 0.5] - 0.5
    flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (x2 - x1, y2 - y1)
    seen: NDArray[Any] = cv2.warpAffine(plane, centred, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return seen


def pixels_in(box: tuple[float, float, float, float], size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """The window x1, y1, x2, y2 of whole pixels of an image whose centre lies in a box xyxy; x2 <= x1 where none is."""
    x1, y1, x2, y2 = (math.ceil(round(edge - 0.5, 6)) for edge in box)
    return max(0, x1), max(0, y1), min(size_hw[1], x2), min(size_hw[0], y2)

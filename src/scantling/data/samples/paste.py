"""Objects cut out of images and laid onto others: what InstaBoost and copy-paste have in common.

    Sample, rows, map ── lay ──► Layer (pixels, opacity, instances) ─┐
    Sample or background ────────────────────────────────────────────┴─ pasted ──► Sample

What is laid later lies on top. An object loses the pixels that another covers, its box is drawn around what is left,
and where too little is left it goes. Objects without masks are rectangles, whose pasted copies fade in at their edges.
Every pixel belongs to one pasted object at most. h, w: layer; H, W: image; N: instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.data.samples.geometry import Matrix, Pixels
from scantling.ops.boxes import clip_boxes, transform_boxes
from scantling.ops.masks import Patch
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Sample

Plane = NDArray[np.uint8]

BORDER = 1.5
"""Pixels from the border of its image within which an object counts as cut by it."""

_RIM = 1  # pixels around a cut-out, into which its edge softens when it is moved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """Objects ready to be laid onto an image.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, multiplied by the opacity, so that no colour from outside comes along.
        opacity: (h, w) uint8: 255 hides what lies below, 0 shows it.
        offset_xy: Column and row of the upper left pixel in the image below.
        instances: The objects, in the frame of the image below, with masks; rectangles where they have none.
    """

    pixels: Pixels
    opacity: Plane
    offset_xy: tuple[int, int]
    instances: Instances


def lay(
    sample: Sample, rows: Tensor, matrix: Matrix, size_hw: tuple[int, int], feather: float = 0.0
) -> Layer | None:
    """Cut objects out of an image and move them into the frame of another.

    Args:
        sample: Where they are.
        rows: (N,) indices of the objects, which move together.
        matrix: (2, 3) affine map of continuous coordinates from this frame to the other.
        size_hw: Height and width of the other.
        feather: Width of the soft edge of an object without a mask, as a share of its shorter side.

    Returns:
        The objects, those that leave the frame cut off; None if nothing is left of any. Boxes of objects with masks are
        tight.
    """
    instances = sample.instances[rows]
    solid = solid_masks(instances)
    x1, y1, x2, y2 = _around(solid, sample.size_hw)
    if x2 <= x1 or y2 <= y1:
        return None
    crop, local = np.ascontiguousarray(sample.hwc[y1:y2, x1:x2]), _from(matrix, (x1, y1))
    if instances.masks is None:
        opacity = _feathered((y2 - y1, x2 - x1), feather)
    else:
        opacity = cover_of(solid, (x1, y1, x2, y2)) * np.uint8(255)
    moved = _warped(crop, opacity, local, size_hw)
    if moved is None:
        return None
    masks = solid.warp(matrix, size_hw)
    boxes = masks.boxes()
    if instances.masks is None:
        boxes = clip_boxes(transform_boxes(instances.boxes, matrix), size_hw)
    laid = instances.replace(size_hw=size_hw, boxes=boxes, masks=masks)[masks.areas() > 0]
    pixels, opacity, offset_xy = moved
    return Layer(pixels=pixels, opacity=opacity, offset_xy=offset_xy, instances=laid) if len(laid) else None


def pasted(sample: Sample, layers: Sequence[Layer], *, min_visibility: float) -> Sample:
    """An image with objects laid onto it.

    Args:
        sample: The image below; its objects may be covered.
        layers: From the lowest to the topmost; none give back the sample.
        min_visibility: An object of which the others leave a smaller share than this is dropped; a crowd region is when
            nothing is left.

    Returns:
        The image, with its own objects first. Boxes change where a mask, or without masks the box itself, loses pixels.
    """
    if not layers:
        return sample
    image = sample.hwc.copy()
    for layer in layers:
        blend(image, layer)
    cover = np.zeros(sample.size_hw, dtype=np.uint8)
    above: list[Instances] = []
    for layer in reversed(layers):
        left = [_uncovered(layer.instances[slice(i, i + 1)], cover, 0.0) for i in range(len(layer.instances))]
        above[:0] = left  # each has hidden those that were laid before it, and those after it in its layer
    below = sample.instances.replace(masks=solid_masks(sample.instances))
    own = _uncovered(below, cover, min_visibility, hides=False)
    laid = Instances.cat(above)
    whole = torch.cat([_areas(layer.instances) for layer in layers])
    visible = _areas(laid) >= min_visibility * whole
    joined = Instances.cat([own, laid[visible & (_areas(laid) > 0)]])
    if sample.instances.masks is None:
        joined = joined.replace(masks=None)
    return sample.replace(image=image.transpose(2, 0, 1), instances=joined)


def blend(image: Pixels, layer: Layer) -> None:
    """Lay the pixels of a layer onto an image (H, W, 3), in place."""
    (x, y), (height, width) = layer.offset_xy, layer.opacity.shape
    below = image[y : y + height, x : x + width]
    through = below.astype(np.uint16) * (255 - layer.opacity.astype(np.uint16))[..., None]
    below[...] = np.minimum(layer.pixels + (through + 127) // 255, 255)


def solid_masks(instances: Instances) -> ImageMasks:
    """The masks of objects, in whose place rectangles stand where there are none."""
    if isinstance(instances.masks, ImageMasks):
        return instances.masks
    height, width = instances.size_hw
    patches: list[Patch] = []
    offsets: list[tuple[int, int]] = []
    for x1, y1, x2, y2 in instances.boxes.round().long().tolist():
        left, top = min(max(x1, 0), width), min(max(y1, 0), height)
        right, bottom = min(max(x2, left), width), min(max(y2, top), height)
        patches.append(np.ones((bottom - top, right - left), dtype=np.uint8))
        offsets.append((left, top))
    corners = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    return ImageMasks.from_patches(patches, corners, instances.size_hw)


def cover_of(masks: ImageMasks, window: tuple[int, int, int, int]) -> Plane:
    """(h, w) 1 where any of the masks is on, inside a window x1, y1, x2, y2 that contains all of them."""
    x1, y1, x2, y2 = window
    cover = np.zeros((y2 - y1, x2 - x1), dtype=np.uint8)
    for patch, (x, y) in masks:
        cover[y - y1 : y - y1 + patch.shape[0], x - x1 : x - x1 + patch.shape[1]] |= patch
    return cover


def cut_sides(boxes: Tensor, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(N, 4) whether a box xyxy touches the left, top, right and bottom border of its image."""
    limits = boxes.new_tensor([BORDER, BORDER, size_hw[1] - BORDER, size_hw[0] - BORDER])
    touching: NDArray[np.bool_] = torch.cat([boxes[:, :2] < limits[:2], boxes[:, 2:] > limits[2:]], 1).numpy()
    return touching


def _areas(instances: Instances) -> Tensor:
    return solid_masks(instances).areas()


def _uncovered(instances: Instances, cover: Plane, min_visibility: float, *, hides: bool = True) -> Instances:
    """Objects without the pixels that are covered; with `hides` these then cover what comes after.

    Those of which less than `min_visibility` is left go, unless they hide others: then the caller decides.
    """
    masks = solid_masks(instances)
    before = masks.areas()
    patches: list[Patch] = []
    offsets: list[tuple[int, int]] = []
    for patch, (x, y) in masks:
        below = cover[y : y + patch.shape[0], x : x + patch.shape[1]]
        patches.append(np.where(below, np.uint8(0), patch))
        if hides:
            below |= patch
        offsets.append((x, y))
    corners = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    masks = ImageMasks.from_patches(patches, corners, instances.size_hw)
    after, tight = masks.areas(), masks.boxes()
    fitted = torch.cat(
        [
            torch.maximum(instances.boxes[:, :2], tight[:, :2]),
            torch.minimum(instances.boxes[:, 2:], tight[:, 2:]),
        ],
        1,
    )
    boxes = torch.where((after < before)[:, None], fitted, instances.boxes)
    changed = instances.replace(boxes=boxes, masks=masks)
    if hides:
        return changed
    enough = after >= min_visibility * before
    if instances.is_crowd is not None:
        enough = enough | instances.is_crowd
    return changed[enough & ((after > 0) | (before == 0))]


def _around(masks: ImageMasks, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """The window of all the masks, with a rim, inside the image; empty for no pixels."""
    boxes = masks.boxes()[masks.areas() > 0]
    if not len(boxes):
        return 0, 0, 0, 0
    x1, y1 = (int(value) - _RIM for value in boxes[:, :2].amin(dim=0).tolist())
    x2, y2 = (int(value) + _RIM for value in boxes[:, 2:].amax(dim=0).tolist())
    return max(x1, 0), max(y1, 0), min(x2, size_hw[1]), min(y2, size_hw[0])


def _feathered(size_hw: tuple[int, int], feather: float) -> Plane:
    """Opacity (h, w) of a rectangle with a rim: it rises from its edges along half a cosine."""
    height, width = (side - 2 * _RIM for side in size_hw)
    ramp = max(feather * min(height, width), 0.5)
    rows, columns = (
        np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / ramp for side in (height, width)
    )
    rise = 0.5 - 0.5 * np.cos(np.pi * np.clip(np.minimum(rows[:, None], columns), 0, 1))
    return np.pad((255 * rise).round().astype(np.uint8), _RIM)


def _from(matrix: Matrix, offset_xy: tuple[int, int]) -> Matrix:
    """The map for coordinates counted from a corner."""
    shifted = np.array(matrix, dtype=np.float64)
    shifted[:, 2] += shifted[:, :2] @ np.asarray(offset_xy, dtype=np.float64)
    return shifted


def _warped(
    crop: Pixels, opacity: Plane, matrix: Matrix, size_hw: tuple[int, int]
) -> tuple[Pixels, Plane, tuple[int, int]] | None:
    """Pixels times opacity, and opacity, moved into a frame and cut off at its borders; and where they begin there."""
    crop = ((crop.astype(np.uint16) * opacity[..., None] + 127) // 255).astype(np.uint8)
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    height, width = opacity.shape
    small_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    if scale < 0.5:  # noqa: PLR2004 - bilinear sampling would skip pixels
        crop = cv2.resize(crop, small_hw[::-1], interpolation=cv2.INTER_AREA)
        opacity = cv2.resize(opacity, small_hw[::-1], interpolation=cv2.INTER_AREA)
        ratio = np.array([width / small_hw[1], height / small_hw[0]])
        matrix = np.hstack([matrix[:, :2] * ratio, matrix[:, 2:]])
        height, width = small_hw
    reach = matrix[:, :2] * [width, height]
    x1, y1 = (max(0, math.floor(value)) for value in np.minimum(reach, 0).sum(axis=1) + matrix[:, 2])
    right, bottom = np.maximum(reach, 0).sum(axis=1) + matrix[:, 2]
    x2, y2 = min(size_hw[1], math.ceil(right)), min(size_hw[0], math.ceil(bottom))
    if x2 <= x1 or y2 <= y1:
        return None
    centred = matrix.copy()  # OpenCV counts from pixel centres, we from pixel edges
    centred[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5 - np.array([x1, y1])
    shape = (x2 - x1, y2 - y1)
    pixels = cv2.warpAffine(crop, centred, shape, flags=cv2.INTER_LINEAR)
    return pixels, cv2.warpAffine(opacity, centred, shape, flags=cv2.INTER_LINEAR), (x1, y1)

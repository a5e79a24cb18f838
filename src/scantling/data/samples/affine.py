"""Random rotation, scale, shear and shift: an affine map that no `View` can hold, done to the pixels in one pass.

    whole image, perhaps resized and flipped (a View) ─┐
                                                       ├─► one map, source to canvas ─► pixels, masks, boxes, Frame
    rotate ∘ shear ∘ scale about the middle, shift ────┘

The canvas keeps its size; where nothing of the image lies it is black, as margins are. Edges are continuous, see
`geometry`. H, W: canvas; N: instances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from scantling.data.samples.geometry import Matrix, Pixels, View, render, resize_pixels
from scantling.data.samples.transforms import Moving
from scantling.ops.boxes import box_area, clip_boxes
from scantling.settings.fields import Fraction
from scantling.settings.section import Section
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks
from scantling.structures.sample import Sample

_ATTEMPTS = 10

Scale = Annotated[float, Field(strict=True, ge=0.05, le=20)]
Degrees = Annotated[float, Field(strict=True, ge=0, le=180)]


class AffineConfig(Section):
    """Random rotation by any angle, scale, shear and shift of the whole image.

    A map after which no object is left is drawn again, ten times at most; then the image stays as it is.

    Attributes:
        probability: How often an image is moved.
        rotate: Largest angle either way, degrees.
        scale: Factors between which the size is drawn, evenly on a logarithmic scale.
        shear: Largest angle by which upright lines lean either way, degrees.
        translate: Largest shift either way along each axis, as a share of the side.
    """

    probability: Fraction = 0.5
    rotate: Degrees = 10.0
    scale: tuple[Scale, Scale] = (0.8, 1.25)
    shear: Annotated[float, Field(strict=True, ge=0, le=60)] = 2.0
    translate: Fraction = 0.1

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: the first limit {self.scale[0]} is above the second, {self.scale[1]}")
        return self

    def draw(self, size_hw: tuple[int, int], rng: np.random.Generator) -> Matrix:
        """The next map of a canvas of this size onto itself, (2, 3); the number of draws is always the same."""
        rotate, scale, shear, x, y = 2 * rng.random(5) - 1
        low, high = (math.log(factor) for factor in self.scale)
        return affine_about_middle(
            size_hw,
            rotate=self.rotate * rotate,
            scale=math.exp((low + high + scale * (high - low)) / 2),
            shear=self.shear * shear,
            shift_xy=(self.translate * x * size_hw[1], self.translate * y * size_hw[0]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomAffine(Moving):
    """Moves an image as `AffineConfig` says.

    Attributes:
        config: What is drawn.
        min_visibility: Share of an object that has to stay in the picture; with less it is no target.
    """

    config: AffineConfig
    min_visibility: float = 0.1

    def move(self, sample: Sample, view: View, rng: np.random.Generator, /) -> Sample:
        """See `Moving`."""
        if rng.random() >= self.config.probability:
            return render(sample, view)
        if not _is_whole(sample, view):
            sample = render(sample, view)
            view = View.of(sample)
        for _ in range(_ATTEMPTS):
            matrix = _joined(view.matrix, self.config.draw(view.size_hw, rng))
            moved = move_by_affine(
                sample.instances,
                matrix,
                view.size_hw,
                min_visibility=max(self.min_visibility, view.min_visibility),
            )
            if _num_targets(moved) or not _num_targets(sample.instances):
                pixels = warp_pixels(sample.hwc, matrix, view.size_hw)
                return sample.replace(
                    image=pixels.transpose(2, 0, 1),
                    instances=moved,
                    frame=sample.frame.then(matrix, view.size_hw),
                )
        return render(sample, view)


def affine_about_middle(
    size_hw: tuple[int, int],
    *,
    rotate: float = 0.0,
    scale: float = 1.0,
    shear: float = 0.0,
    shift_xy: tuple[float, float] = (0.0, 0.0),
) -> Matrix:
    """(2, 3) map that scales, then shears, then rotates about the middle of a canvas, then shifts.

    Args:
        size_hw: Of the canvas, pixels.
        rotate: Degrees, clockwise as seen (from the x axis towards the y axis).
        scale: Factor of both axes.
        shear: Degrees by which upright lines lean towards smaller x at larger y.
        shift_xy: Pixels.
    """
    turn, lean = math.radians(rotate), math.tan(math.radians(shear))
    linear = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = linear @ np.array([[1.0, -lean], [0.0, 1.0]])
    middle = np.array([size_hw[1] / 2, size_hw[0] / 2])
    return np.column_stack([linear, middle - linear @ middle + np.asarray(shift_xy)])


def move_by_affine(
    instances: Instances, matrix: Matrix, size_hw: tuple[int, int], *, min_visibility: float = 0.0
) -> Instances:
    """Instances under an affine map onto a canvas.

    The box of an instance with a mask is drawn around what is seen of the moved mask. Without one it is drawn around
    the ellipse that fills the box, moved: the hull of the box's corners is too large, the more the image is rotated (by
    41 % in each direction at 45 degrees). Where upright boxes stay upright, both are the moved box.

    Args:
        instances: N, in the source frame; may be empty.
        matrix: (2, 3) source to canvas.
        size_hw: Of the canvas.
        min_visibility: Instances that keep a smaller share of their area on the canvas are dropped; of crowd regions
            anything stays.

    Returns:
        What is left, in the old order.
    """
    whole = ellipse_hull(instances.boxes, matrix)
    boxes = clip_boxes(whole, size_hw)
    seen, area = box_area(boxes), box_area(whole)
    masks = instances.masks
    if isinstance(masks, ImageMasks):
        pixels = masks.areas()
        masks = masks.warp(matrix, size_hw)
        masked = pixels > 0
        boxes = torch.where(masked[:, None], masks.boxes().to(boxes.dtype), boxes)
        seen = torch.where(masked, masks.areas(), seen)
        area = torch.where(masked, pixels * abs(float(np.linalg.det(matrix[:, :2]))), area)
    enough = seen >= min_visibility * area
    if instances.is_crowd is not None:
        enough = enough | instances.is_crowd
    return instances.replace(size_hw=size_hw, boxes=boxes, masks=masks)[enough & (box_area(boxes) > 0)]


def ellipse_hull(boxes: Tensor, matrix: Matrix) -> Tensor:
    """(N, 4) xyxy around the ellipses that fill the boxes, after an affine map; not clipped.

    Source: The support of an ellipse with half axes a, b under a linear map M along x is sqrt((m00 a)^2 + (m01 b)^2).
    """
    linear = torch.as_tensor(matrix[:, :2], dtype=torch.float64)
    middle = (boxes[:, :2] + boxes[:, 2:]).double() / 2
    half = (boxes[:, 2:] - boxes[:, :2]).double() / 2
    centres = middle @ linear.T + torch.as_tensor(matrix[:, 2], dtype=torch.float64)  # (N, 2)
    reach = ((linear[None] * half[:, None]) ** 2).sum(dim=-1).sqrt()  # (N, 2 outputs, 2 inputs) -> (N, 2)
    return torch.cat([centres - reach, centres + reach], dim=1).to(boxes.dtype)


def warp_pixels(pixels: Pixels, matrix: Matrix, size_hw: tuple[int, int]) -> Pixels:
    """(H, W, 3) of an image under an affine map, bilinear, black beyond it; strong reductions go by halves first.

    Args:
        pixels: uint8 source.
        matrix: (2, 3) of continuous coordinates, source to canvas.
        size_hw: Of the canvas.
    """
    smallest = float(np.linalg.svd(matrix[:, :2], compute_uv=False)[-1])
    halvings = max(0, math.floor(-math.log2(max(smallest, 1e-3)) + 1e-9))
    height, width = pixels.shape[:2]
    small_hw = (-(-height >> halvings) or 1, -(-width >> halvings) or 1)
    pixels = resize_pixels(pixels, small_hw)
    centred = matrix.copy()  # OpenCV counts from pixel centres, we from pixel edges
    centred[:, :2] *= [width / small_hw[1], height / small_hw[0]]
    centred[:, 2] += centred[:, :2].sum(axis=1) / 2 - 0.5
    warped: Pixels = cv2.warpAffine(pixels, centred, size_hw[::-1], flags=cv2.INTER_LINEAR)
    return warped


def _is_whole(sample: Sample, view: View) -> bool:
    """Whether a view shows all of the sample, so that its map and another one can be one."""
    height, width = sample.size_hw
    return view.window == (0, 0, width, height) and not view.finished and not view.ignored_below


def _joined(first: Matrix, then: Matrix) -> NDArray[np.float64]:
    """One map for two."""
    return np.column_stack([then[:, :2] @ first[:, :2], then[:, :2] @ first[:, 2] + then[:, 2]])


def _num_targets(instances: Instances) -> int:
    crowd = instances.is_crowd
    return len(instances) if crowd is None else int((~crowd).sum())

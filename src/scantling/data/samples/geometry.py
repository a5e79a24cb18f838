"""Geometric augmentation: what is decided (`View`) and what is then done to the pixels once (`render`).

    Sample ── View.of ──► View ── resized ── flipped ── cropped ── … ──► View ── render ──► Sample
              whole image       each step only rewrites a dozen numbers         one pass over the pixels

A crop that follows a resize is cut from the source image first, on whole source pixels, so the resize touches only
what is kept. The map recorded is that of the pixels really resampled, so boxes, masks and Frame stay exact.
Edges are continuous: an image W wide covers 0..W, and resizing maps x to x * W' / W (pixel centres lie at + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.ops.boxes import box_area, clip_boxes, transform_boxes
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Sample

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float64]
PixelWindow = tuple[int, int, int, int]

_FLIP_CODES = {(True, False): 1, (False, True): 0, (True, True): -1}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A window of a source image, resized, rotated and flipped, perhaps with a margin; no pixels yet.

    Attributes:
        window: Whole source pixels shown, (x1, y1, x2, y2).
        size_hw: Size at which the window is shown, after turning, without the margin.
        transposed: x and y are swapped after resizing.
        flipped_xy: Whether (x, y) are then reversed.
        margin_hw: Rows added at the bottom and columns at the right. Nothing can follow a margin.
        min_visibility: Share of its area an instance must keep to stay.
        ignored_below: An instance that keeps a smaller share of its area becomes a region to ignore (a crowd).
        instances: Those of the source, in its frame, for transforms that decide by them.
    """

    window: PixelWindow
    size_hw: tuple[int, int]
    transposed: bool = False
    flipped_xy: tuple[bool, bool] = (False, False)
    margin_hw: tuple[int, int] = (0, 0)
    min_visibility: float = 0.0
    ignored_below: float = 0.0
    instances: Instances = field(compare=False)

    @classmethod
    def of(cls, sample: Sample) -> View:
        """The whole of a sample, as it is."""
        height, width = sample.size_hw
        return cls(window=(0, 0, width, height), size_hw=sample.size_hw, instances=sample.instances)

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Size of the picture that `render` makes: content and margin."""
        return self.size_hw[0] + self.margin_hw[0], self.size_hw[1] + self.margin_hw[1]

    @property
    def finished(self) -> bool:
        """Whether there is a margin, which only `render` can make room behind."""
        return self.margin_hw != (0, 0)

    @property
    def matrix(self) -> Matrix:
        """Affine map (2, 3) from source to shown coordinates, continuous edges."""
        x1, y1, x2, y2 = self.window
        height, width = self.size_hw
        shown_width, shown_height = (height, width) if self.transposed else (width, height)
        scale_x, scale_y = shown_width / (x2 - x1), shown_height / (y2 - y1)
        rows = np.array([[scale_x, 0.0, -x1 * scale_x], [0.0, scale_y, -y1 * scale_y]])
        if self.transposed:
            rows = rows[::-1].copy()
        for axis, extent in enumerate((width, height)):
            if self.flipped_xy[axis]:
                rows[axis] = np.array([0.0, 0.0, extent]) - rows[axis]
        return rows

    def resized(self, size_hw: tuple[int, int]) -> View:
        """The same content at another size."""
        return replace(self, size_hw=size_hw)

    def flipped(self, *, horizontally: bool) -> View:
        """Mirrored left-right, or top-bottom."""
        flip_x, flip_y = self.flipped_xy
        return replace(self, flipped_xy=(not flip_x, flip_y) if horizontally else (flip_x, not flip_y))

    def rotated(self, quarters: int) -> View:
        """Rotated clockwise by so many right angles."""
        view = self
        for _ in range(quarters % 4):
            view = view._swapped().flipped(horizontally=True)
        return view

    def cropped(
        self, corner_xy: tuple[int, int], size_hw: tuple[int, int], *, min_visibility: float = 0.0
    ) -> View:
        """The rectangle at `corner_xy`, inside the present view, moved to whole source pixels.

        Args:
            corner_xy: Left and top edge in present coordinates.
            size_hw: Size of the rectangle; what is shown has exactly this size.
            min_visibility: Instances that keep a smaller share of their area than this are dropped.

        Raises:
            ValueError: The rectangle leaves the view.
        """
        left, top = corner_xy
        if left < 0 or top < 0 or left + size_hw[1] > self.size_hw[1] or top + size_hw[0] > self.size_hw[0]:
            raise ValueError(f"a crop of {size_hw} at {corner_xy} leaves the view of {self.size_hw}")
        corners = np.array([[left, top], [left + size_hw[1], top + size_hw[0]]], dtype=np.float64)
        inverse = cv2.invertAffineTransform(self.matrix)
        source = corners @ inverse[:, :2].T + inverse[:, 2]
        x1, x2 = _whole_pixels(source[:, 0], self.window[0], self.window[2])
        y1, y2 = _whole_pixels(source[:, 1], self.window[1], self.window[3])
        rule = max(min_visibility, self.min_visibility)
        return replace(self, window=(x1, y1, x2, y2), size_hw=size_hw, min_visibility=rule)

    def padded(self, size_hw: tuple[int, int]) -> View:
        """With a black margin at the right and bottom, up to at least this size."""
        margin = (max(0, size_hw[0] - self.size_hw[0]), max(0, size_hw[1] - self.size_hw[1]))
        return replace(self, margin_hw=margin)

    def _swapped(self) -> View:
        flip_x, flip_y = self.flipped_xy
        rotated_hw = (self.size_hw[1], self.size_hw[0])
        return replace(self, transposed=not self.transposed, flipped_xy=(flip_y, flip_x), size_hw=rotated_hw)


def _whole_pixels(edges: NDArray[np.float64], low: int, high: int) -> tuple[int, int]:
    """The whole-pixel interval nearest to two edges: at least one pixel, inside low..high."""
    first = min(max(round(float(edges.min())), low), high - 1)
    last = min(max(round(float(edges.max())), first + 1), high)
    return first, last


def render(sample: Sample, view: View) -> Sample:
    """Make the picture a view describes; image, instances and Frame move together.

    Args:
        sample: Source; its image has the size that the view was begun with.
        view: What to show.

    Returns:
        The sample as seen through the view. Instances outside it, or of which too little is left, are gone;
        crowd regions stay as long as anything of them is visible.
    """
    if view == View.of(sample):
        return sample
    return sample.replace(
        image=render_pixels(sample.hwc, view).transpose(2, 0, 1),
        instances=move_instances(sample.instances, view),
        frame=sample.frame.then(view.matrix, view.canvas_hw),
    )


def render_pixels(pixels: Pixels, view: View) -> Pixels:
    """The pixels (H, W, 3) of a view as a new contiguous array; each step runs where there are fewest pixels."""
    x1, y1, x2, y2 = view.window
    shown = pixels[y1:y2, x1:x2]
    size_hw = view.size_hw[::-1] if view.transposed else view.size_hw
    if size_hw[0] * size_hw[1] < shown.shape[0] * shown.shape[1]:
        shown = _oriented(resize_pixels(shown, size_hw), view)
    else:
        shown = resize_pixels(_oriented(shown, view), view.size_hw)
    if view.finished:
        shown = cv2.copyMakeBorder(shown, 0, view.margin_hw[0], 0, view.margin_hw[1], cv2.BORDER_CONSTANT)
    return shown.copy() if np.may_share_memory(shown, pixels) else shown


def resize_pixels(pixels: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """Bilinear resize; strong reductions go by halves, so that every source pixel counts (no aliasing)."""
    height, width = pixels.shape[:2]
    while (height, width) != size_hw:
        height, width = max(size_hw[0], (height + 1) // 2), max(size_hw[1], (width + 1) // 2)
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


def _oriented(pixels: Pixels, view: View) -> Pixels:
    if view.transposed:
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, _FLIP_CODES[view.flipped_xy]) if any(view.flipped_xy) else pixels


def move_instances(instances: Instances, view: View) -> Instances:
    """Instances as a view shows them, in the frame of its canvas.

    A box that the view cuts is clipped; if the instance has a mask, the box is drawn around what is left of it.

    Args:
        instances: In the source frame; may be empty.
        view: What is shown.

    Returns:
        The instances of which enough is visible, in their old order.
    """
    boxes = transform_boxes(instances.boxes, view.matrix)
    clipped = clip_boxes(boxes, view.size_hw)
    keep, ignored = visible(instances, view)
    masks = instances.masks
    if isinstance(masks, ImageMasks):
        cut = (boxes != clipped).any(dim=1) & (masks.areas() > 0)
        masks = masks.warp(view.matrix, view.size_hw)
        clipped, keep = _fit_to_masks(clipped, keep, cut, masks)
        masks = masks.warp(np.eye(2, 3), view.canvas_hw) if view.finished else masks
    is_crowd = instances.is_crowd
    if view.ignored_below:
        is_crowd = ignored if is_crowd is None else ignored | is_crowd
    return instances.replace(size_hw=view.canvas_hw, boxes=clipped, masks=masks, is_crowd=is_crowd)[keep]


def seen_of(instances: Instances, view: View) -> tuple[Tensor, Tensor]:
    """How much of each instance a view shows, and how much there is; without touching a pixel.

    That is of its mask, or of its box where it has no mask: a long thin object can keep half of its box and none of
    itself.

    Args:
        instances: In the source frame; may be empty.
        view: What is shown.

    Returns:
        (N,) area seen and (N,) whole area, in the same unit for each instance: pixels of its mask, or of its shown box.
    """
    boxes = transform_boxes(instances.boxes, view.matrix)
    whole, seen = box_area(boxes), box_area(clip_boxes(boxes, view.size_hw))
    in_view = seen > 0
    if isinstance(instances.masks, ImageMasks):
        pixels = instances.masks.areas()
        whole = torch.where(pixels > 0, pixels, whole)
        seen = torch.where(pixels > 0, instances.masks.areas_within(view.window), seen)
    return torch.where(in_view, seen, 0), whole


def visible(instances: Instances, view: View) -> tuple[Tensor, Tensor]:
    """Which instances a view shows enough of, and which too little; see `seen_of`.

    Args:
        instances: In the source frame; may be empty.
        view: What is shown.

    Returns:
        (N,) whether it stays: at least `min_visibility` of it is seen (of a crowd region, anything); and (N,) whether
        less than `ignored_below` of it is.
    """
    seen, whole = seen_of(instances, view)
    enough = seen >= view.min_visibility * whole
    if instances.is_crowd is not None:
        enough = enough | instances.is_crowd
    return enough & (seen > 0), seen < view.ignored_below * whole


def _fit_to_masks(clipped: Tensor, keep: Tensor, cut: Tensor, masks: ImageMasks) -> tuple[Tensor, Tensor]:
    """Boxes of cut instances drawn around their remaining mask; without a remainder the instance goes."""
    around = masks.boxes().to(clipped.dtype)
    inside = torch.cat(
        [torch.maximum(clipped[:, :2], around[:, :2]), torch.minimum(clipped[:, 2:], around[:, 2:])], 1
    )
    left = (inside[:, 2:] > inside[:, :2]).all(dim=1)
    return torch.where((cut & left)[:, None], inside, clipped), keep & (left | ~cut)

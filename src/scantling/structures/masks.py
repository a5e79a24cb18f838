"""Masks of the objects of one image, in one of two frames: `ImageMasks` and `RoiMasks`.

Both are immutable: every operation returns a new object. N: instances; M: side of box-frame masks; H, W: image;
h, w: the part of a mask that is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.ops import masks as mask_ops
from scantling.ops.masks import RLE, Patch

Index = Tensor | slice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ImageMasks:
    """Binary masks of N objects in the frame of their image.

    Stored per object as the part of the mask that is not empty, so memory follows the objects' area and not
    instances x pixels. Make them with `from_rles`, `from_polygons`, `from_dense`, `from_patches` or `empty`.

    Attributes:
        size_hw: Height and width of the image.
    """

    size_hw: tuple[int, int]
    _patches: tuple[Patch, ...]
    _offsets: NDArray[np.int64]  # (N, 2) column and row of each patch's upper left pixel

    def __post_init__(self) -> None:
        if self._offsets.shape != (len(self._patches), 2):
            raise ValueError(
                f"ImageMasks: expected {len(self._patches)} offsets (x, y), found {self._offsets.shape}"
            )

    @classmethod
    def empty(cls, size_hw: tuple[int, int]) -> Self:
        """No masks, in an image of this size."""
        return cls.from_patches([], np.zeros((0, 2), dtype=np.int64), size_hw)

    @classmethod
    def from_patches(
        cls, patches: Sequence[Patch], offsets_xy: NDArray[np.int64], size_hw: tuple[int, int]
    ) -> Self:
        """From uint8 (h, w) patches of 0 and 1 that lie at column and row `offsets_xy` (N, 2) inside the image."""
        return cls(size_hw=size_hw, _patches=tuple(patches), _offsets=offsets_xy)

    @classmethod
    def from_rles(cls, rles: Sequence[RLE], size_hw: tuple[int, int] | None = None) -> Self:
        """From run-length encodings of one image.

        Args:
            rles: N encodings.
            size_hw: Height and width of the image; may be left out when there is at least one encoding.

        Raises:
            DataError: An encoding is damaged or has another size than the image.
            ValueError: No encodings and no size.
        """
        if size_hw is None:
            if not rles:
                raise ValueError("ImageMasks.from_rles: expected size_hw for an empty list, found None")
            size_hw = mask_ops.check_size(rles[0].get("size"))
        for rle in rles:
            mask_ops.check_rle(rle, size_hw)
        return cls._from_pairs([mask_ops.rle_to_patch(rle) for rle in rles], size_hw)

    @classmethod
    def from_polygons(cls, polygons: Sequence[Sequence[Sequence[float]]], size_hw: tuple[int, int]) -> Self:
        """From the outlines [x1, y1, x2, y2, ...] of N objects, each with any number of parts.

        Raises:
            DataError: A polygon is not a list of at least three finite points.
        """
        return cls.from_rles([mask_ops.polygons_to_rle(parts, size_hw) for parts in polygons], size_hw)

    @classmethod
    def from_dense(cls, dense: Tensor | NDArray[Any]) -> Self:
        """From (N, H, W), non-zero where the object is.

        Raises:
            ValueError: Not three-dimensional.
        """
        array = np.asarray(dense.cpu() if isinstance(dense, Tensor) else dense)
        if array.ndim != 3:
            raise ValueError(f"ImageMasks.from_dense: expected (N, H, W), found shape {array.shape}")
        size_hw = (array.shape[1], array.shape[2])
        return cls._from_pairs([_tight(mask != 0) for mask in array], size_hw)

    @classmethod
    def cat(cls, parts: Sequence[ImageMasks]) -> Self:
        """All masks of several sets of one image, in order.

        Raises:
            ValueError: No sets, or of different image sizes.
        """
        if not parts or any(part.size_hw != parts[0].size_hw for part in parts):
            raise ValueError(
                f"ImageMasks.cat: expected one size_hw, found {[part.size_hw for part in parts]}"
            )
        patches = [patch for part in parts for patch in part._patches]
        return cls.from_patches(patches, np.concatenate([part._offsets for part in parts]), parts[0].size_hw)

    @classmethod
    def united(
        cls, parts: Sequence[tuple[Sequence[int], ImageMasks]], count: int, size_hw: tuple[int, int]
    ) -> Self:
        """Masks put together from parts of one image, such as what several tiles show of an object.

        Args:
            parts: For each part the objects (rows) it shows, and their masks in the frame of the image.
            count: N objects; one that no part shows has an empty mask.
            size_hw: Height and width of the image.
        """
        shown: list[list[tuple[Patch, tuple[int, int]]]] = [[] for _ in range(count)]
        for rows, masks in parts:
            for row, pair in zip(rows, masks, strict=True):
                if pair[0].size:
                    shown[row].append(pair)
        return cls._from_pairs([_union(pairs) for pairs in shown], size_hw)

    @classmethod
    def _from_pairs(cls, pairs: Sequence[tuple[Patch, tuple[int, int]]], size_hw: tuple[int, int]) -> Self:
        offsets = np.array([offset for _, offset in pairs], dtype=np.int64).reshape(len(pairs), 2)
        return cls.from_patches([patch for patch, _ in pairs], offsets, size_hw)

    def __len__(self) -> int:
        return len(self._patches)

    def __iter__(self) -> Iterator[tuple[Patch, tuple[int, int]]]:
        """Each mask as a uint8 (h, w) patch of 0 and 1 and the (x, y) of its upper left pixel; do not write to it."""
        corners = [(x, y) for x, y in self._offsets.tolist()]
        yield from zip(self._patches, corners, strict=True)

    def __getitem__(self, index: Index) -> Self:
        """The masks an index tensor, boolean tensor or slice selects; the pixels are shared, not copied."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else index.cpu().numpy()]
        return self.from_patches([self._patches[row] for row in rows], self._offsets[rows], self.size_hw)

    def __repr__(self) -> str:
        return f"ImageMasks(n={len(self)}, size_hw={self.size_hw})"

    def to_rles(self) -> list[RLE]:
        """N run-length encodings of the image, `counts` as text."""
        return [mask_ops.patch_to_rle(patch, offset, self.size_hw) for patch, offset in self]

    def to_dense(self) -> Tensor:
        """(N, H, W) bool; memory grows with instances x pixels, so not for many masks of large images."""
        dense = torch.zeros(len(self), *self.size_hw, dtype=torch.bool)
        for row, (patch, (x, y)) in enumerate(self):
            dense[row, y : y + patch.shape[0], x : x + patch.shape[1]] = torch.from_numpy(patch != 0)
        return dense

    def areas(self) -> Tensor:
        """(N,) float32 number of pixels that are on."""
        return torch.tensor([float(np.count_nonzero(patch)) for patch in self._patches])

    def areas_within(self, window: tuple[int, int, int, int]) -> Tensor:
        """(N,) float32 number of pixels that are on inside a rectangle.

        Args:
            window: Whole pixels x1, y1, x2, y2 of the image.
        """
        x1, y1, x2, y2 = window
        parts = [
            patch[max(0, y1 - y) : max(0, y2 - y), max(0, x1 - x) : max(0, x2 - x)] for patch, (x, y) in self
        ]
        return torch.tensor([float(np.count_nonzero(part)) for part in parts])

    def boxes(self) -> Tensor:
        """(N, 4) float32 tight xyxy; zeros for an empty mask."""
        boxes = [_tight_box(patch, offset) for patch, offset in self]
        return torch.tensor(boxes, dtype=torch.float32).reshape(len(self), 4)

    def warp(self, matrix: NDArray[np.float64], size_hw: tuple[int, int]) -> Self:
        """Move the masks into another frame.

        Args:
            matrix: (2, 3) affine map of continuous coordinates, this frame to the new one.
            size_hw: Height and width of the new frame; what leaves it is cut off.
        """
        moved = [mask_ops.warp_patch(patch, offset, matrix, size_hw) for patch, offset in self]
        return self._from_pairs(moved, size_hw)

    def crop_and_resize(self, boxes: Tensor, side: int) -> Tensor:
        """Targets of a mask head: mask i cut out with box i.

        Args:
            boxes: (N, 4) xyxy, image frame.
            side: Cells per side of the square result.

        Returns:
            (N, side, side) float32 in [0, 1] on the device of `boxes`; consistent with RoIAlign, `aligned=True`.

        Raises:
            ValueError: Not one box per mask.
        """
        if boxes.shape != (len(self), 4):
            raise ValueError(f"crop_and_resize: expected boxes ({len(self)}, 4), found {tuple(boxes.shape)}")
        return mask_ops.crop_masks(self._patches, self._offsets, boxes, side, self.size_hw)

    def to(self, device: torch.device | str) -> Self:  # noqa: ARG002 - same call as RoiMasks; these live in memory
        """Itself: image masks stay in main memory, whatever the device of the boxes."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RoiMasks:
    """Soft masks of N objects, each a square stretched over its box; pasted into the image once, at the end.

    Attributes:
        probabilities: (N, M, M) float32 in [0, 1].
    """

    probabilities: Tensor

    def __post_init__(self) -> None:
        found = self.probabilities
        if found.ndim != 3 or found.shape[1] != found.shape[2] or found.dtype != torch.float32:
            raise ValueError(
                f"RoiMasks.probabilities: expected float32 (N, M, M), found {found.dtype} {tuple(found.shape)}"
            )

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getitem__(self, index: Index) -> Self:
        """The masks an index tensor, boolean tensor or slice selects."""
        return replace(self, probabilities=self.probabilities[index])

    def __repr__(self) -> str:
        return f"RoiMasks(n={len(self)}, side={self.probabilities.shape[-1]})"

    @classmethod
    def cat(cls, parts: Sequence[RoiMasks]) -> Self:
        """All masks of several sets of one side M, in order.

        Raises:
            ValueError: No sets, or of different sides.
        """
        sides = [part.probabilities.shape[-1] for part in parts]
        if len(set(sides)) != 1:
            raise ValueError(f"RoiMasks.cat: expected sets of one side, found sides {sides}")
        return cls(probabilities=torch.cat([part.probabilities for part in parts]))

    def to(self, device: torch.device | str) -> Self:
        """The same masks on another device."""
        return replace(self, probabilities=self.probabilities.to(device))

    def to_image(self, boxes: Tensor, size_hw: tuple[int, int], threshold: float = 0.5) -> ImageMasks:
        """Paste each mask over its box: the single crossing from box frame to image frame, memory bounded.

        Args:
            boxes: (N, 4) xyxy, image frame.
            size_hw: Height and width of the image.
            threshold: A pixel belongs to the object from this probability on.
        """
        patches, offsets = mask_ops.paste_patches(self.probabilities, boxes, size_hw, threshold)
        return ImageMasks.from_patches(patches, offsets, size_hw)


Masks = ImageMasks | RoiMasks


def _union(pairs: Sequence[tuple[Patch, tuple[int, int]]]) -> tuple[Patch, tuple[int, int]]:
    """One patch that is on where any of several is, and where it begins; none give an empty one."""
    if len(pairs) < 2:
        return pairs[0] if pairs else (np.zeros((0, 0), dtype=np.uint8), (0, 0))
    starts = np.array([offset for _, offset in pairs])
    ends = starts + [patch.shape[::-1] for patch, _ in pairs]
    (x, y), (right, bottom) = starts.min(axis=0).tolist(), ends.max(axis=0).tolist()
    union = np.zeros((bottom - y, right - x), dtype=np.uint8)
    for patch, (left, top) in pairs:
        union[top - y : top - y + patch.shape[0], left - x : left - x + patch.shape[1]] |= patch
    return union, (x, y)


def _tight(mask: NDArray[np.bool_]) -> tuple[Patch, tuple[int, int]]:
    """The non-empty part of a dense mask and where it begins."""
    x1, y1, x2, y2 = (int(value) for value in _tight_box(mask, (0, 0)))
    return mask[y1:y2, x1:x2].astype(np.uint8), (x1, y1)


def _tight_box(patch: NDArray[Any], offset_xy: tuple[int, int]) -> tuple[float, float, float, float]:
    """Tight xyxy of what is on; zeros when nothing is."""
    columns, rows = np.flatnonzero(patch.any(axis=0)), np.flatnonzero(patch.any(axis=1))
    if not len(columns):
        return 0.0, 0.0, 0.0, 0.0
    x, y = offset_xy
    return float(x + columns[0]), float(y + rows[0]), float(x + columns[-1] + 1), float(y + rows[-1] + 1)

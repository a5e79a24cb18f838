"""What is in an image: `Instances`, with masks in one of two frames, `ImageMasks` or `RoiMasks`.

All are immutable: every operation returns a new object. N: instances; M: side of box-frame masks; H, W: frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
    def _from_pairs(cls, pairs: Sequence[tuple[Patch, tuple[int, int]]], size_hw: tuple[int, int]) -> Self:
        offsets = np.array([offset for _, offset in pairs], dtype=np.int64).reshape(len(pairs), 2)
        return cls.from_patches([patch for patch, _ in pairs], offsets, size_hw)

    def __len__(self) -> int:
        return len(self._patches)

    def __iter__(self) -> Iterator[tuple[Patch, tuple[int, int]]]:
        """Each mask as a uint8 (h, w) patch of 0 and 1 and the (x, y) of its upper left pixel; do not write to it."""
        for patch, (x, y) in zip(self._patches, self._offsets.tolist(), strict=True):
            yield patch, (x, y)

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
            raise ValueError(f"RoiMasks.probabilities: expected float32 (N, M, M), found {_describe(found)}")

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Instances:
    """The objects of one image: ground truth (no scores) or detections.

    Attributes:
        size_hw: Height and width of the frame the boxes live in.
        boxes: (N, 4) float32, absolute xyxy, continuous edges.
        labels: (N,) int64, 0..K-1.
        scores: (N,) float32 in [0, 1]; None means ground truth.
        masks: N masks in the image's or the boxes' frame, or None.
        is_crowd: (N,) bool, ground truth only: a region of many objects, never a target.
        ids: (N,) int64, ground truth only: ids of the annotations.
    """

    size_hw: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Masks | None = None
    is_crowd: Tensor | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        _check_size_hw(self.size_hw)
        count = self.boxes.shape[0] if self.boxes.ndim else 0
        _check_field("boxes", self.boxes, torch.float32, (count, 4))
        _check_field("labels", self.labels, torch.int64, (count,))
        for name, dtype in (("scores", torch.float32), ("is_crowd", torch.bool), ("ids", torch.int64)):
            if (value := getattr(self, name)) is not None:
                _check_field(name, value, dtype, (count,))
        if self.masks is not None and len(self.masks) != count:
            raise ValueError(
                f"Instances.masks: expected {count} masks (one per box), found {len(self.masks)}"
            )
        if isinstance(self.masks, ImageMasks) and self.masks.size_hw != self.size_hw:
            raise ValueError(f"Instances.masks: expected size_hw {self.size_hw}, found {self.masks.size_hw}")

    @classmethod
    def empty(cls, size_hw: tuple[int, int], *, scored: bool, with_masks: bool = False) -> Self:
        """No objects, in a frame of this size.

        Args:
            size_hw: Height and width of the frame.
            scored: Whether these are detections (with scores) or ground truth (without).
            with_masks: Whether they carry (image-frame) masks.
        """
        return cls(
            size_hw=size_hw,
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            scores=torch.zeros(0) if scored else None,
            masks=ImageMasks.empty(size_hw) if with_masks else None,
        )

    @classmethod
    def cat(cls, parts: Sequence[Instances]) -> Self:
        """All objects of several sets in one frame, in order.

        Raises:
            ValueError: No sets, different frames, or a field that only some of the sets have.
        """
        if not parts or any(part.size_hw != parts[0].size_hw for part in parts):
            raise ValueError(
                f"Instances.cat: expected one frame, found size_hw {[part.size_hw for part in parts]}"
            )
        joined = {name: _cat_field(name, [getattr(part, name) for part in parts]) for name in _per_instance()}
        return cls(size_hw=parts[0].size_hw, **joined)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Index) -> Self:
        """The objects an index tensor, boolean tensor (N,) or slice selects, with all their fields."""
        chosen = {name: _select(getattr(self, name), index) for name in _per_instance()}
        return replace(self, **chosen)

    def __repr__(self) -> str:
        given = [name for name in _per_instance() if getattr(self, name) is not None]
        return f"Instances(n={len(self)}, size_hw={self.size_hw}, fields={given})"

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed; unknown names and wrong shapes fail here."""
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Self:
        """The same objects with their tensors on another device."""
        moved = {name: value.to(device) for name, value in self._given().items()}
        return replace(self, **moved)

    def _given(self) -> Mapping[str, Any]:
        """The per-instance fields that are not None."""
        return {name: value for name in _per_instance() if (value := getattr(self, name)) is not None}


def _per_instance() -> list[str]:
    """Names of the fields with one entry per object."""
    return [field.name for field in fields(Instances) if field.name != "size_hw"]


def _select(value: Tensor | Masks | None, index: Index) -> Tensor | Masks | None:
    return None if value is None else value[index]


def _cat_field(name: str, values: Sequence[Any]) -> Tensor | Masks | None:
    """Join one field of several sets; sets without objects do not decide the kind of mask."""
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if missing:
        raise ValueError(
            f"Instances.cat: expected {name} in all {len(values)} sets or in none, missing in {missing}"
        )
    if name != "masks":
        return torch.cat(list(values))
    filled = [value for value in values if len(value)] or [values[0]]
    kinds = {type(value) for value in filled}
    if len(kinds) > 1:
        raise ValueError("Instances.cat: expected masks of one kind, found ImageMasks and RoiMasks")
    joined: Masks = kinds.pop().cat(filled)
    return joined


def _check_size_hw(size_hw: tuple[int, int]) -> None:
    if len(size_hw) != 2 or not all(isinstance(side, int) and side > 0 for side in size_hw):
        raise ValueError(
            f"Instances.size_hw: expected (height, width), two positive integers, found {size_hw!r}"
        )


def _check_field(name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a field of the wrong dtype or shape with both sides of the disagreement."""
    if value.dtype != dtype or tuple(value.shape) != shape:
        expected = f"{str(dtype).removeprefix('torch.')} {shape}"
        raise ValueError(f"Instances.{name}: expected {expected}, found {_describe(value)}")


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


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

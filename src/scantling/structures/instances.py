"""What is in an image: `Instances`, ground truth or detections. Immutable: every operation returns a new object.

N: instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from scantling.structures.detections import Detections, object_column
from scantling.structures.masks import ImageMasks, Index, Masks, RoiMasks

__all__ = ["ImageMasks", "Instances", "Masks", "RoiMasks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Instances:
    """The objects of one image: ground truth (no scores) or detections.

    Attributes:
        size_hw: Height and width of the frame the boxes live in.
        boxes: (N, 4) float32, absolute xyxy, continuous edges.
        labels: (N,) int64, 0..K-1.
        scores: (N,) float32 in [0, 1]; None means ground truth.
        masks: N masks in the image's or the boxes' frame, or None.
        mask_ious: (N,) float32 in [0, 1], IoU with their objects that a detector predicts of the masks; None where it
            predicts none, or the scores have been multiplied by it.
        is_crowd: (N,) bool, ground truth only: a region of many objects, never a target.
        ids: (N,) int64, ground truth only: ids of the annotations.
    """

    size_hw: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Masks | None = None
    mask_ious: Tensor | None = None
    is_crowd: Tensor | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        _check_size_hw(self.size_hw)
        count = self.boxes.shape[0] if self.boxes.ndim else 0
        _check_field("boxes", self.boxes, torch.float32, (count, 4))
        _check_field("labels", self.labels, torch.int64, (count,))
        for name, dtype in _OPTIONAL:
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
        joined = {name: _cat_field(name, [getattr(part, name) for part in parts]) for name in _PER_INSTANCE}
        return replace(cls.empty(parts[0].size_hw, scored=False), **joined)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Index) -> Self:
        """The objects an index tensor, boolean tensor (N,) or slice selects, with all their fields."""
        return replace(self, **{name: value[index] for name, value in self._given().items()})

    def __repr__(self) -> str:
        return f"Instances(n={len(self)}, size_hw={self.size_hw}, fields={list(self._given())})"

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed; unknown names and wrong shapes fail here."""
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Self:
        """The same objects with their tensors on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._given().items()})

    def ranked_by_masks(self) -> Self:
        """Scores times the predicted IoU of the masks, best first; the same objects where none is predicted.

        Raises:
            TypeError: Ground truth, which has no scores.
        """
        if self.mask_ious is None:
            return self
        if self.scores is None:
            raise TypeError("expected scored predictions, found ground truth (scores is None)")
        scores = self.scores * self.mask_ious
        order = scores.argsort(descending=True, stable=True)
        return self.replace(scores=scores, mask_ious=None)[order]

    def to_detections(self, position: int) -> Detections:
        """The objects as rows of a data set; soft masks in 255 steps, image masks as run lengths.

        Args:
            position: Of the image in the data set.

        Raises:
            TypeError: Ground truth, which has no scores.
        """
        if self.scores is None:
            raise TypeError("expected scored predictions, found ground truth (scores is None)")
        masks, soft = None, None
        if isinstance(self.masks, ImageMasks):
            masks = object_column(self.masks.to_rles())
        elif self.masks is not None:
            soft = (self.masks.probabilities.detach().cpu() * 255).round().to(torch.uint8).numpy()
        return Detections(
            images=np.full(len(self), position, dtype=np.int64),
            labels=self.labels.cpu().numpy(),
            scores=self.scores.detach().cpu().double().numpy(),
            boxes=self.boxes.detach().cpu().double().numpy(),
            masks=masks,
            soft_masks=soft,
            mask_ious=None if self.mask_ious is None else self.mask_ious.cpu().double().numpy(),
        )

    @classmethod
    def from_detections(cls, rows: Detections, size_hw: tuple[int, int]) -> Self:
        """Rows of one image as its objects, with their masks where every row has one.

        Args:
            rows: Of one image; may be none.
            size_hw: Height and width of the image.
        """
        masks: Masks | None = None
        if rows.soft_masks is not None:
            masks = RoiMasks(probabilities=torch.from_numpy(rows.soft_masks).float() / 255)
        elif rows.masks is not None and all(mask is not None for mask in rows.masks):
            masks = ImageMasks.from_rles(rows.masks.tolist(), size_hw)
        return cls(
            size_hw=size_hw,
            boxes=torch.from_numpy(rows.boxes).float().reshape(-1, 4),
            labels=torch.from_numpy(rows.labels),
            scores=torch.from_numpy(rows.scores).float(),
            masks=masks,
            mask_ious=None if rows.mask_ious is None else torch.from_numpy(rows.mask_ious).float(),
        )

    def _given(self) -> dict[str, Any]:
        """The per-instance fields that are not None."""
        return {name: value for name in _PER_INSTANCE if (value := getattr(self, name)) is not None}


_OPTIONAL = (
    ("scores", torch.float32),
    ("mask_ious", torch.float32),
    ("is_crowd", torch.bool),
    ("ids", torch.int64),
)
_PER_INSTANCE = tuple(field.name for field in fields(Instances) if field.name != "size_hw")


def _cat_field(name: str, values: Sequence[Any]) -> Any:
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
        found = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        raise ValueError(f"Instances.{name}: expected {expected}, found {found}")

"""Scored objects of a whole data set as columns: what is tuned, fused, eliminated and refined many images at a time.

Rows are selected with `[]`, put together with `cat` and changed with `replace`, and with nothing else: each carries
every column along, so that a mask or a key of another tool is never lost on the way. N: rows; M: side of a soft mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

MaskColumn = NDArray[np.object_]
"""(N,) run lengths (`ops.rle.RLE`) of the whole image each, None for a row without a mask."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """Scored objects of many images.

    Masks are kept as COCO's compressed run lengths of the whole image: the code stores differences, so they are as
    short as run lengths counted from the object's own box, and files, evaluation and pycocotools take them as they are.

    Attributes:
        images: (N,) int64, position of the image in the data set.
        labels: (N,) int64, 0..K-1.
        scores: (N,) float64.
        boxes: (N, 4) float64, absolute xyxy in original pixels.
        masks: (N,) masks in the frame of their image; None where no row has one.
        soft_masks: (N, M, M) uint8, share of 255 that each cell of the box belongs to the object, before it is pasted
            into the image; None where there are none.
        mask_ious: (N,) float64 in [0, 1], IoU with their objects that a detector predicts of the masks; None where it
            predicts none, or the scores have been multiplied by it.
        extra: (N,) further keys of another tool's results as a mapping, None for a row without any; None where no row
            has some.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    masks: MaskColumn | None = None
    soft_masks: NDArray[np.uint8] | None = None
    mask_ious: NDArray[np.float64] | None = None
    extra: NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        shapes = [self.images.shape, self.labels.shape, self.scores.shape, self.boxes.shape]
        if shapes != [(count,), (count,), (count,), (count, 4)]:
            raise ValueError(f"Detections: expected (N,) three times and (N, 4), found {shapes}")
        for name in ("masks", "mask_ious", "extra"):
            if (column := getattr(self, name)) is not None and column.shape != (count,):
                raise ValueError(f"Detections.{name}: expected ({count},), found {column.shape}")
        soft = self.soft_masks
        if soft is not None and (soft.ndim != 3 or len(soft) != count or soft.dtype != np.uint8):
            raise ValueError(
                f"Detections.soft_masks: expected uint8 ({count}, M, M), found {soft.dtype} {soft.shape}"
            )

    @classmethod
    def empty(cls) -> Self:
        """No detections."""
        none = np.zeros(0, dtype=np.int64)
        return cls(images=none, labels=none, scores=np.zeros(0), boxes=np.zeros((0, 4)))

    @classmethod
    def cat(cls, parts: Sequence[Detections]) -> Self:
        """The rows of several sets, one after the other; no sets give no rows.

        A set without masks or further keys leaves its rows without them.

        Raises:
            ValueError: Soft masks of different sides, or rows without beside rows with them.
        """
        filled = [part for part in parts if len(part)] or list(parts[:1])
        if not filled:
            return cls.empty()
        columns: dict[str, Any] = {field.name: _joined(field.name, filled) for field in fields(cls)}
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Self:
        """The rows that an index array, boolean mask (N,) or slice selects."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return self.replace(**{name: c[rows] for name, c in columns.items() if c is not None})

    def replace(self, **changes: Any) -> Self:
        """The same rows with these columns changed; unknown names and wrong shapes fail here."""
        return replace(self, **changes)

    @property
    def mask_column(self) -> MaskColumn:
        """(N,) masks in the frame of their image, None for each row without one, also where no row has one."""
        return object_column([None] * len(self)) if self.masks is None else self.masks

    @property
    def has_mask(self) -> NDArray[np.bool_]:
        """(N,) whether a row has a mask in the frame of its image."""
        return np.array([mask is not None for mask in self.mask_column], dtype=bool)

    def ranked_by_masks(self) -> Self:
        """Scores times the predicted IoU of the masks, best first in each image; without a prediction the same rows."""
        if self.mask_ious is None:
            return self
        return self.replace(scores=mask_scores(self.scores, self.mask_ious), mask_ious=None).by_score()

    def by_score(self) -> Self:
        """The same rows image by image, best first; equal scores keep their order."""
        return self[np.lexsort((-self.scores, self.images))]


def mask_scores(scores: NDArray[np.float64], mask_ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (N,) times the predicted IoU of the masks (N,), in single precision as a detector multiplies them."""
    product = scores.astype(np.float32) * mask_ious.astype(np.float32)
    return product.astype(np.float64)


def object_column(values: Sequence[object]) -> NDArray[np.object_]:
    """(N,) array that holds each value as it is, lists and mappings too."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _joined(name: str, parts: Sequence[Detections]) -> NDArray[Any] | None:
    """One column of several sets."""
    columns = [getattr(part, name) for part in parts]
    if all(column is None for column in columns):
        return None
    if name == "mask_ious" and any(column is None for column in columns):
        raise ValueError("Detections.cat: expected predicted IoUs of masks in all sets or in none")
    if name == "soft_masks":
        sides = {None if column is None else column.shape[1:] for column in columns}
        if len(sides) > 1:
            raise ValueError(f"Detections.cat: expected soft masks of one side in all sets, found {sides}")
    return np.concatenate(
        [np.full(len(p), None) if c is None else c for p, c in zip(parts, columns, strict=True)]
    )

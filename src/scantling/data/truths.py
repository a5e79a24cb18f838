"""Ground truth of a whole data set as columns: what evaluation, tuning, elimination, refiner and audit look at.

    CocoDataset ── truths_of ──► Truths: one row per annotation, image by image, those of an image by id

N: annotations: objects, crowd regions and ignored objects.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import Annotation, area_of, to_rle
from scantling.ops.overlaps import Flags, Floats, Ints, xywh_to_xyxy
from scantling.structures.detections import MaskColumn, object_column

_AT_BORDER = 1.5  # pixels: formats differ by one in where an image ends


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truths:
    """The annotations of a data set; rows are selected with `[]` and changed with `replace`.

    Attributes:
        images: (N,) int64, position of the image in the data set, ascending.
        labels: (N,) int64, 0..K-1.
        boxes: (N, 4) float64, absolute xyxy clipped to the image.
        boxes_xywh: (N, 4) float64, left, top, width, height as in the file, not clipped.
        areas: (N,) float64, square pixels: the file's own, else that of the mask, else that of the box.
        is_crowd: (N,) bool, regions of uncounted objects.
        is_ignored: (N,) bool, single objects that count neither way: VOC's `difficult`, COCO's `ignore`.
        is_cut: (N,) bool, whether the box touches the border of its image, so that the object may go on beyond it.
        ids: (N,) the file's own ids, numbers or text.
        masks: (N,) run lengths of the image, None for an annotation without a mask; None unless asked for.
    """

    images: Ints
    labels: Ints
    boxes: Floats
    boxes_xywh: Floats
    areas: Floats
    is_crowd: Flags
    is_ignored: Flags
    is_cut: Flags
    ids: NDArray[np.object_]
    masks: MaskColumn | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Self:
        """The rows that an index array, boolean mask (N,) or slice selects."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return self.replace(**{name: c[rows] for name, c in columns.items() if c is not None})

    def replace(self, **changes: Any) -> Self:
        """The same rows with these columns changed."""
        return replace(self, **changes)

    @property
    def is_object(self) -> Flags:
        """(N,) whether it is an object to be learned and found: no crowd region, and not ignored."""
        return ~(self.is_crowd | self.is_ignored)


def truths_of(dataset: CocoDataset, *, masks: bool = False) -> Truths:
    """The annotations of a data set as columns; a data set without any gives N = 0.

    Args:
        dataset: Checked records.
        masks: Rasterise the masks too.
    """
    flat = [annotation for per_image in dataset.annotations for annotation in per_image]
    counts = [len(per_image) for per_image in dataset.annotations]
    images = np.repeat(np.arange(len(dataset), dtype=np.int64), counts)
    sizes_hw = [image.size_hw for image in dataset.images]
    of_image = [size_hw for size_hw, count in zip(sizes_hw, counts, strict=True) for _ in range(count)]
    boxes_xywh = np.array([annotation.box_xywh for annotation in flat], dtype=np.float64).reshape(-1, 4)
    whole_wh = np.array(of_image, dtype=np.float64).reshape(-1, 2)[:, ::-1]
    boxes = np.clip(xywh_to_xyxy(boxes_xywh), 0, np.tile(whole_wh, 2))
    is_cut = (boxes[:, :2] < _AT_BORDER) | (boxes[:, 2:] > whole_wh - _AT_BORDER)
    areas = [area_of(annotation, size_hw) for annotation, size_hw in zip(flat, of_image, strict=True)]
    rles = [
        _mask_of(annotation, size_hw) for annotation, size_hw in zip(flat, of_image, strict=True) if masks
    ]
    return Truths(
        images=images,
        labels=np.array([annotation.label for annotation in flat], dtype=np.int64),
        boxes=boxes,
        boxes_xywh=boxes_xywh,
        areas=np.array(areas, dtype=np.float64),
        is_crowd=np.array([annotation.is_crowd for annotation in flat], dtype=bool),
        is_ignored=np.array([annotation.is_ignored for annotation in flat], dtype=bool),
        is_cut=np.asarray(is_cut.any(axis=1), dtype=bool),
        ids=object_column([annotation.id for annotation in flat]),
        masks=object_column(rles) if masks else None,
    )


def _mask_of(annotation: Annotation, size_hw: tuple[int, int]) -> object:
    return None if annotation.segmentation is None else to_rle(annotation.segmentation, size_hw)

"""The records of a COCO file after checking: what later code may rely on.

Ids are kept exactly as the file has them, type included; inside the tool a class is a label 0..K-1, the position of
its category when sorted by id.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scantling.ops.overlaps import xywh_to_xyxy
from scantling.ops.polygons import polygons_to_rle
from scantling.ops.rle import RLE, rle_area, rle_from_uncompressed

ImageId = int | float | str
AnnotationId = int | float | str
Polygons = tuple[NDArray[np.float64], ...]
Segmentation = Polygons | RLE
Extra = Mapping[str, object]

NO_EXTRA: Extra = {}
ROTATION = "rotations of boxes (the upright boxes around them are kept)"
"""What is unread of a rotated box, whatever its format."""

_INT64 = range(-(1 << 63), 1 << 63)


def _no_extra() -> Extra:
    return NO_EXTRA


def id_order(identifier: int | float | str) -> tuple[bool, float | int, str]:
    """Sort key of ids: numbers first, then text; the order of the records in the file does not matter."""
    return (True, 0, identifier) if isinstance(identifier, str) else (False, identifier, "")


def fits_int64(identifier: int | float | str) -> bool:
    """Whether an annotation id can be the id of an instance as it is."""
    return isinstance(identifier, int) and identifier in _INT64


@dataclass(frozen=True, slots=True)
class Category:
    """A class as the file declares it.

    Attributes:
        id: The file's own id, written back unchanged.
        name: The file's own name; by it classes of different files are matched.
        supercategory: Group of classes, or "".
        extra: Further keys of the record, such as `keypoints` and `skeleton`, written back unchanged.
    """

    id: int
    name: str
    supercategory: str = ""
    extra: Extra = field(default_factory=_no_extra, compare=False)

    def to_coco(self) -> dict[str, object]:
        """The record of a COCO file."""
        return {"id": self.id, "name": self.name, "supercategory": self.supercategory, **self.extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """An image as the file declares it.

    Attributes:
        id: The file's own id, type unchanged.
        file_name: As in the file, relative to the image root.
        path: Where the image is expected.
        size_hw: Height and width of the frame in which the labels live.
        extra: Further keys of the record, written back unchanged.
        position: Place in the file's list, from 0; only what tells images by their places looks at it.
        white: Value that is white in pictures of 16 bits that do not say it themselves; None: 65535.
    """

    id: ImageId
    file_name: str
    path: Path
    size_hw: tuple[int, int]
    extra: Extra = field(default_factory=_no_extra, compare=False)
    position: int = field(default=0, compare=False)
    white: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A labelled object.

    Attributes:
        id: The file's own id.
        label: 0..K-1.
        box_xywh: As in the file: left, top, width, height in pixels, not clipped.
        is_crowd: A region of uncounted objects: never a target, ignored in AP.
        is_ignored: One object that is never a target and counts neither way in AP: VOC's `difficult`, COCO's `ignore`.
        area: As in the file; None if it has none.
        segmentation: Polygons, RLE, or None.
        extra: Further keys of the record, written back unchanged.
        unread: What its file says of it that is not read, such as `rotations of boxes`; lost where it is written anew.
    """

    id: AnnotationId
    label: int
    box_xywh: tuple[float, float, float, float]
    is_crowd: bool = False
    is_ignored: bool = False
    area: float | None = None
    segmentation: Segmentation | None = field(default=None, compare=False)
    extra: Extra = field(default_factory=_no_extra, compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_object(self) -> bool:
        """Whether it is an object to be learned and found: no crowd region, and not ignored."""
        return not (self.is_crowd or self.is_ignored)


def told_apart(names: Sequence[str]) -> list[str]:
    """Names of categories in which none repeats: the second `bolt` is `bolt (2)`."""
    given, found = set(names), dict[str, None]()
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        free = (text for text in numbered if text not in found and text not in given)
        found[name if name not in found else next(free)] = None
    return list(found)


def labels_by_name(names: Sequence[str]) -> dict[str, int]:
    """Label of every class; of several of one name, the second is called `bolt (2)` as in `told_apart`."""
    return {name: label for label, name in enumerate(told_apart(names))}


def to_rle(segmentation: Segmentation, size_hw: tuple[int, int]) -> RLE:
    """Rasterise polygons, or compress an RLE whose counts are listed; a compressed RLE comes back as it is."""
    if isinstance(segmentation, tuple):
        return polygons_to_rle([polygon.tolist() for polygon in segmentation], size_hw)
    counts: object = segmentation["counts"]
    return rle_from_uncompressed(counts, size_hw) if isinstance(counts, list) else segmentation


def segmentation_json(segmentation: Segmentation) -> object:
    """The segmentation as plain lists and dicts."""
    if isinstance(segmentation, tuple):
        return [polygon.tolist() for polygon in segmentation]
    return dict(segmentation)


def area_of(annotation: Annotation, size_hw: tuple[int, int]) -> float:
    """Area in pixels: the file's own, else that of the mask, else that of the box."""
    if annotation.area is not None:
        return annotation.area
    if annotation.segmentation is not None:
        return float(rle_area(to_rle(annotation.segmentation, size_hw)))
    return annotation.box_xywh[2] * annotation.box_xywh[3]


def clipped_xyxy(boxes_xywh: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (N, 4) as xyxy, clipped to the image; (0, 4) for none."""
    boxes = np.asarray(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    corners = xywh_to_xyxy(boxes)
    height, width = size_hw
    clipped: NDArray[np.float64] = np.clip(corners, 0, [width, height, width, height])
    return clipped.astype(np.float32)

"""Rows and settings of YOLO; ten digits, so that a coordinate comes back to a millionth of a pixel.

Ultralytics drops an image whose label file holds boxes beside polygons, and trains a segmenter with a set only if each
row of it is a polygon. In a data set that has one polygon, all boxes are therefore written as their four corners.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scantling.data.coco.layout import alias_of
from scantling.data.coco.records import Annotation, ImageRecord
from scantling.data.formats.outline import outline_of
from scantling.data.images.open import image_header
from scantling.errors import DataError, UsageError

_SAME = 0.01  # pixels


class YoloRow(NamedTuple):
    """One object before it is written.

    Attributes:
        label: 0..K-1.
        outline: Left, top, right and bottom of a box, or x1, y1, x2, y2, x3, y3, ... of a polygon; relative to the
            image's size.
    """

    label: int
    outline: tuple[float, ...]

    @property
    def is_polygon(self) -> bool:
        """Whether it has a mask that fits one polygon."""
        return len(self.outline) > 4


def yolo_rows(
    record: ImageRecord, annotations: Sequence[Annotation], losses: Counter[str], *, boxes_only: bool
) -> list[YoloRow]:
    """The rows of an image.

    Args:
        record: The image.
        annotations: Its objects.
        losses: Counts what could not be kept.
        boxes_only: Write boxes even where there are masks.

    Raises:
        UsageError: The labels live in the stored frame of an image with an EXIF rotation.
    """
    if annotations:
        _require_upright(record)
    rows = []
    for annotation in annotations:
        if annotation.is_crowd:
            losses["crowd regions (YOLO has none)"] += 1
            continue
        if annotation.is_ignored:
            losses[
                "difficult or ignored objects (YOLO has none; --count-difficult keeps them as objects)"
            ] += 1
            continue
        polygon = None if boxes_only else _polygon(annotation, record, losses)
        losses["masks"] += annotation.segmentation is not None and polygon is None
        rows.append(YoloRow(annotation.label, polygon or _edges(annotation, record, losses)))
    return rows


def label_text(rows: Iterable[YoloRow], *, polygons: bool) -> str:
    """The label file of an image.

    Args:
        rows: Of its objects.
        polygons: The data set has polygons, so that boxes are written as their four corners.
    """
    return "".join(_line(row, polygons=polygons) for row in rows)


def settings_text(splits: Sequence[str], class_names: Sequence[str], *, polygons: bool = False) -> str:
    """`data.yaml`, as Ultralytics resolves it.

    It has no `path:`, because Ultralytics takes a relative one from where it is started, and without one the file's own
    folder. `train` and `val` are called so whatever the folders' names are; names are quoted as in JSON, which YAML
    reads alike.

    Args:
        splits: Folders in `images`.
        class_names: Names in label order.
        polygons: Rows with four corners are masks, not rotated boxes.
    """
    keys = {split: _key_of(split, splits) for split in splits}
    paths = [f"{json.dumps(keys[split], ensure_ascii=False)}: images/{split}" for split in splits]
    task = ["task: segment"] if polygons else []
    names = [f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(class_names)]
    return "\n".join([*paths, *task, "names:", *names]) + "\n"


def _key_of(split: str, splits: Sequence[str]) -> str:
    """`train`, `val` or `test` for the one split that means it (`valid`, `val2017`), else its own name."""
    meant = (key for key in ("train", "val", "test") if key not in splits and alias_of(key, splits) == split)
    return next(meant, split)


def _polygon(annotation: Annotation, record: ImageRecord, losses: Counter[str]) -> tuple[float, ...] | None:
    """Corners relative to the image's size; None if the mask is no single polygon within the image."""
    if annotation.segmentation is None:
        return None
    outline = outline_of(annotation.segmentation, record.size_hw)
    if outline is None:
        return None
    height, width = record.size_hw
    xs = [min(max(x, 0.0), width) for x in outline.points[0::2]]
    ys = [min(max(y, 0.0), height) for y in outline.points[1::2]]
    if max(xs) <= min(xs) or max(ys) <= min(ys):
        return None
    losses["mask pixels in small holes and specks (masks that are no single polygon)"] += not outline.exact
    x, y, box_width, box_height = annotation.box_xywh
    edges = zip((min(xs), min(ys), max(xs), max(ys)), (x, y, x + box_width, y + box_height), strict=True)
    losses["boxes that are not those around their masks"] += any(abs(a - b) > _SAME for a, b in edges)
    return tuple(value for x, y in zip(xs, ys, strict=True) for value in (x / width, y / height))


def _line(row: YoloRow, *, polygons: bool) -> str:
    values = row.outline
    if not row.is_polygon:
        left, top, right, bottom = row.outline
        corners = (left, top, right, top, right, bottom, left, bottom)
        values = corners if polygons else ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return " ".join([str(row.label), *(f"{value:.10g}" for value in values)]) + "\n"


def _edges(
    annotation: Annotation, record: ImageRecord, losses: Counter[str]
) -> tuple[float, float, float, float]:
    """Edges of the box relative to the image's size, within the image."""
    height, width = record.size_hw
    x, y, box_width, box_height = annotation.box_xywh
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + box_width, width), min(y + box_height, height)
    moved = max(x1 - x, y1 - y, x + box_width - x2, y + box_height - y2)
    losses["parts of boxes outside their image"] += moved > _SAME
    return x1 / width, y1 / height, x2 / width, y2 / height


def _require_upright(record: ImageRecord) -> None:
    """YOLO's readers apply EXIF rotations, so the labels must live in the upright frame."""
    try:
        upright = image_header(record.path).upright_hw
    except DataError:
        return  # a missing image is told where it is copied
    if upright != record.size_hw:
        message = f"{record.path}: its labels are in the frame before its EXIF rotation, which YOLO applies"
        raise UsageError(message, hint="Rotate the pixels and remove the EXIF entry.")

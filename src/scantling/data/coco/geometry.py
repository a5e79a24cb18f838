"""Boxes and masks of a COCO file, checked before any native code sees them.

Every function takes a value as JSON gave it and a `RecordLog`; it returns what the record can use, or None after
saying what is wrong. N: boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.records import Polygons, Segmentation, to_rle
from scantling.data.findings import FindingLog, Kind, RecordLog
from scantling.errors import DataError
from scantling.ops.overlaps import Box, corners, from_corners, paired_iou
from scantling.ops.polygons import MAX_OUTLINE
from scantling.ops.rle import RLE, check_rle, rle_to_box

SizeHw = tuple[int, int]

_NUMBERS = {int, float}
_TOLERANCE = 1.0  # pixels a box may leave its image without remark
_MIN_SIDE = 0.01  # pixels of a box that must be inside; less is lost in float32
_MIN_AGREEMENT = 0.7  # IoU of a box with the extent of its mask
_NO_AREA = 1e-9  # square pixels
_FAR = 1e9  # larger numbers only overflow
_MANY = 3  # boxes from which on "they look like xyxy" is an error


def check_box(value: object, size_hw: SizeHw, log: RecordLog) -> Box | None:
    """A box that overlaps its image.

    Args:
        value: Should be [x, y, width, height], absolute pixels.
        size_hw: Height and width of the image.
        log: Takes the findings.

    Returns:
        The four numbers as found, not clipped; None if the annotation is unusable.
    """
    box = numbers_of_box(value)
    if box is None:
        log.add("box-type", "bbox is not four finite numbers", field="bbox", value=value)
        return None
    x, y, width, height = box
    if width <= 0 or height <= 0:
        log.add("box-size", f"bbox has width {width:g} and height {height:g}", field="bbox", value=value)
        return None
    return box if _inside(box, size_hw, log) else None


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether a value from a file is a number that a float can hold."""
    try:
        return type(value) in _NUMBERS and math.isfinite(cast(float, value))
    except OverflowError:  # an integer of hundreds of digits
        return False


def numbers_of_box(value: object) -> Box | None:
    """Four finite numbers, or None."""
    if not isinstance(value, list) or len(value) != 4 or not set(map(type, value)) <= _NUMBERS:
        return None
    try:
        finite = all(map(math.isfinite, value))
    except OverflowError:
        return None
    return (value[0], value[1], value[2], value[3]) if finite else None


def leaves(box: Box, size_hw: SizeHw) -> float:
    """By how many pixels a box leaves its image; negative for one inside."""
    x, y, width, height = box
    return max(-x, -y, x + width - size_hw[1], y + height - size_hw[0])


def _inside(box: Box, size_hw: SizeHw, log: RecordLog) -> bool:
    x, y, box_width, box_height = box
    height, width = size_hw
    seen_width = min(x + box_width, width) - max(x, 0)
    seen_height = min(y + box_height, height) - max(y, 0)
    if seen_width <= 0 or seen_height <= 0:
        message = f"bbox lies outside the image of width {width} and height {height}"
        log.add("box-outside", message, field="bbox", value=list(box))
        return False
    if min(seen_width, seen_height) < _MIN_SIDE:
        log.add(
            "box-size",
            f"less than {_MIN_SIDE} px of the bbox are in the image",
            field="bbox",
            value=list(box),
        )
        return False
    over = leaves(box, size_hw)
    if over >= _TOLERANCE:
        message = f"bbox leaves the image of width {width} and height {height} by {over:g} px"
        log.add("box-clipped", message, field="bbox", value=list(box))
    return True


def check_segmentation(
    value: object, size_hw: SizeHw, log: RecordLog, *, empty: str = "mask-empty"
) -> Segmentation | None:
    """A mask that is safe to rasterise.

    Args:
        value: Should be a list of polygons or an RLE; None where the key is missing.
        size_hw: Height and width of the image.
        log: Takes the findings; an unusable mask makes the record faulty, an empty one does not.
        empty: Code of the finding that polygons enclose no area.

    Returns:
        Polygons, the RLE, or None if there is no mask; a list without polygons is judged by the caller.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        return _checked_rle(value, size_hw, log)
    if isinstance(value, list):
        return _checked_polygons(value, size_hw, log, empty)
    log.add("mask-type", "segmentation is neither polygons nor RLE", field="segmentation", value=value)
    return None


def holds_no_polygon(value: object) -> bool:
    """Whether a segmentation is `[]` or `[[]]`, which exports of boxes write where there is no mask."""
    return isinstance(value, list) and all(part == [] for part in value)


def upright_box(box: Box, degrees: float) -> Box:
    """The upright box around a box that is turned about its centre.

    Args:
        box: Left, top, width, height before turning, in pixels.
        degrees: Clockwise, as CVAT writes `attributes.rotation`.
    """
    x, y, width, height = box
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    outer_width, outer_height = width * cosine + height * sine, width * sine + height * cosine
    return (
        x + (width - outer_width) / 2,
        y + (height - outer_height) / 2,
        outer_width,
        outer_height,
    )


def _checked_rle(value: dict[str, object], size_hw: SizeHw, log: RecordLog) -> RLE | None:
    fault = rle_fault(value, size_hw)
    if fault:
        log.add(fault[0], fault[1], field="segmentation", value=value.get("counts"))
        return None
    return RLE(size=list(size_hw), counts=value["counts"])  # type: ignore[typeddict-item] # checked above


def rle_fault(value: dict[str, object], size_hw: SizeHw) -> tuple[str, str] | None:
    """Code and message of what is wrong with an RLE, or None; nothing is allocated by its numbers."""
    size, counts = value.get("size"), value.get("counts")
    if size != list(size_hw) or not isinstance(size, list) or any(type(side) is not int for side in size):
        swapped = ", height and width are swapped" if size == [size_hw[1], size_hw[0]] else ""
        return "rle-size", f"RLE size {size!r:.60} is not [height, width] {list(size_hw)}{swapped}"
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        return "rle-counts", "RLE counts is Python's printed form of bytes; write counts.decode('ascii')"
    try:
        check_rle(value, size_hw)
    except DataError as error:
        return "rle-counts", str(error)
    return None


def _checked_polygons(value: list[object], size_hw: SizeHw, log: RecordLog, empty: str) -> Polygons | None:
    if holds_no_polygon(value):
        return None
    if any(type(part) in _NUMBERS for part in value):
        hint = "Put the list of numbers into a list: [[x1, y1, ...]]."
        message = "the segmentation is one flat list, not a list of polygons"
        log.add("polygon-shape", message, field="segmentation", value=value, hint=hint)
        return None
    polygons = tuple(_checked_polygon(part, index, log) for index, part in enumerate(value))
    if any(polygon is None for polygon in polygons):
        return None
    sound = tuple(polygon for polygon in polygons if polygon is not None)
    left, top, right, bottom = polygons_extent(sound)
    height, width = size_hw
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        message = f"the polygons lie outside the image of width {width} and height {height}"
        log.add("polygon-outside", message, field="segmentation", value=[left, top, right, bottom])
        return None
    if not any(_encloses_area(polygon) for polygon in sound):
        log.add(empty, "the polygons enclose no area", field="segmentation", value=value)
        return None
    return sound


def _checked_polygon(part: object, index: int, log: RecordLog) -> NDArray[np.float64] | None:
    field = f"segmentation[{index}]"
    if not isinstance(part, list):
        log.add("polygon-shape", "a polygon is not a list", field=field, value=part)
        return None
    if len(part) < 6 or len(part) % 2:
        message = f"a polygon has {len(part)} numbers, not at least 3 pairs x, y"
        log.add("polygon-shape", message, field=field, value=part)
        return None
    points = _points(part)
    if points is None:
        log.add("polygon-number", "a polygon holds something other than numbers", field=field, value=part)
        return None
    if not _rasterises_cheaply(points):
        message = "a polygon holds NaN, infinity or coordinates far from any image"
        log.add("polygon-number", message, field=field, value=part)
        return None
    return points


def _points(part: list[object]) -> NDArray[np.float64] | None:
    if not set(map(type, part)) <= _NUMBERS:
        return None
    try:
        return np.array(part, dtype=np.float64)
    except OverflowError:  # an integer of hundreds of digits
        return None


def _rasterises_cheaply(points: NDArray[np.float64]) -> bool:
    """Whether the outline is short and near enough to be drawn; false for NaN and infinity."""
    farthest = float(np.abs(points).max())
    if (points.size + 1) * farthest <= MAX_OUTLINE:
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        corners = points.reshape(-1, 2)
        steps = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
        return bool(steps.sum() + farthest <= MAX_OUTLINE)


def _encloses_area(polygon: NDArray[np.float64]) -> bool:
    """Whether the corners do not all lie on one line (a bow-tie has area although its signed area may be 0)."""
    x, y = polygon[0::2] - polygon[0], polygon[1::2] - polygon[1]
    if (
        abs(x[:-1] @ y[1:] - y[:-1] @ x[1:]) > _NO_AREA
    ):  # the shoelace formula; the first corner is the origin
        return True
    far = np.maximum(np.abs(x), np.abs(y)).argmax()
    return bool(np.abs(x * y[far] - y * x[far]).max() > _NO_AREA)


def polygons_extent(polygons: Polygons) -> Box:
    """Left, top, right, bottom of all corners."""
    corners = (polygons[0] if len(polygons) == 1 else np.concatenate(polygons)).reshape(-1, 2)
    left, top = corners.min(axis=0).tolist()
    right, bottom = corners.max(axis=0).tolist()
    return left, top, right, bottom


def mask_extent(segmentation: Segmentation, size_hw: SizeHw) -> Box | None:
    """Box (xyxy) around a mask, clipped to the image; None for an empty one."""
    if isinstance(segmentation, tuple):
        left, top, right, bottom = polygons_extent(segmentation)
    else:
        left, top, right, bottom = rle_to_box(to_rle(segmentation, size_hw))
    height, width = size_hw
    box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    return box if box[2] > box[0] and box[3] > box[1] else None


def compare_box_with_mask(box: Box, extent: Box, log: RecordLog) -> None:
    """Warn when a box is plainly not the one around its mask: IoU below 0.7 and an edge off by over 2 px.

    Args:
        box: Left, top, width, height, as in the file.
        extent: xyxy around the mask.
        log: Takes the finding.
    """
    edges = corners(box)
    if max(abs(mine - theirs) for mine, theirs in zip(edges, extent, strict=True)) <= 2:
        return
    iou = paired_iou(np.array([edges]), np.array([extent]))[0]
    if iou < _MIN_AGREEMENT:
        around = ", ".join(f"{side:g}" for side in from_corners(extent))
        message = f"bbox and mask disagree (IoU {iou:.2f}); the box around the mask is [{around}]"
        log.add("box-mask-differ", message, field="bbox", value=list(box))


def diagnose_boxes(boxes: Sequence[Box], sizes_hw: Sequence[SizeHw], log: FindingLog, path: str) -> None:
    """Recognise a whole file of boxes in another convention: xyxy, or normalised to 0..1.

    Args:
        boxes: (N) boxes of finite numbers as in the file.
        sizes_hw: (N) sizes of their images.
        log: Takes the finding.
        path: Place in the file that holds the boxes.
    """
    if not boxes:
        return
    values = np.array(boxes, dtype=np.float64).clip(-_FAR, _FAR)
    limits = np.array(sizes_hw, dtype=np.float64)[:, ::-1]
    if _look_normalised(values, limits):
        message = f"all {len(boxes)} boxes lie within 0..1: they look normalised by the image size"
        log.add("boxes-normalised", message, path=path, value=list(boxes[0]))
    elif looks_xyxy(values, limits):
        message = f"all {len(boxes)} boxes look like [x1, y1, x2, y2]; read so, every one fits its image"
        kind = Kind.GEOMETRY if len(boxes) >= _MANY else Kind.SUSPICIOUS
        log.add("boxes-xyxy", message, path=path, value=list(boxes[0]), kind=kind)


def _look_normalised(values: NDArray[np.float64], limits_wh: NDArray[np.float64]) -> bool:
    within = values.min() >= 0 and values.max() <= 1
    return bool(within and (values % 1 != 0).any() and limits_wh.min() > 2)


def looks_xyxy(values: NDArray[np.float64], limits_wh: NDArray[np.float64]) -> bool:
    """Whether boxes (N, 4) fit their images (N, 2) as xyxy, and a quarter of them or more do not as xywh."""
    corner, last = values[:, :2], values[:, 2:]
    fits = (last > corner) & (last <= limits_wh + _TOLERANCE) & (corner >= -_TOLERANCE)
    leaves = (corner + last >= limits_wh + _TOLERANCE).any(axis=1)
    return bool(fits.all() and leaves.mean() >= 0.25)

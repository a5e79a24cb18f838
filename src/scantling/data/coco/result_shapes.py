"""The box and the mask of a result: checked before anything computes with them, and changed together with its area."""

from __future__ import annotations

from typing import Any

from scantling.data.coco.geometry import check_segmentation, holds_no_polygon, numbers_of_box, rle_fault
from scantling.data.coco.records import to_rle
from scantling.data.findings import RecordLog
from scantling.ops.polygons import polygons_to_rle
from scantling.ops.rle import rle_area

_NO_MASK = "expected a mask as RLE, an object with size and counts, or as polygons, found {}"


def checked_shapes(record: dict[str, Any], size_hw: tuple[int, int], log: RecordLog) -> dict[str, Any]:
    """The result with a sound box and a compressed mask; what is null or empty is left out.

    Args:
        record: Of any tool.
        size_hw: Height and width of its image.
        log: Takes what makes a shape unusable.
    """
    shapes = {
        key: value
        for key in ("bbox", "segmentation")
        if (value := record.get(key)) is not None and not holds_no_polygon(value)
    }
    if empty := (record.keys() & {"bbox", "segmentation"}) - shapes.keys():
        record = {key: value for key, value in record.items() if key not in empty}
    if "bbox" in shapes:
        box = numbers_of_box(shapes["bbox"])
        if box is None or box[2] < 0 or box[3] < 0:
            message = "bbox is not four finite numbers with width and height >= 0"
            log.add("results-box", message, field="bbox", value=shapes["bbox"])
    if "segmentation" in shapes:
        record = _with_checked_mask(record, size_hw, log)
    return record


def _with_checked_mask(record: dict[str, Any], size_hw: tuple[int, int], log: RecordLog) -> dict[str, Any]:
    """The result with its mask as compressed RLE; polygons that enclose nothing are an empty mask, as an RLE can be."""
    mask = record["segmentation"]
    if isinstance(mask, list):
        polygons = check_segmentation(mask, size_hw, log, empty="results-mask-empty")
        if log.faulty:
            return record
        drawn = polygons_to_rle(mask, size_hw) if polygons is None else to_rle(polygons, size_hw)
        return record | {"segmentation": drawn}
    fault = rle_fault(mask, size_hw) if isinstance(mask, dict) else ("", _NO_MASK.format(type(mask).__name__))
    if fault:
        log.add("results-rle", fault[1], field="segmentation", value=mask)
    elif isinstance(mask["counts"], list):
        return record | {"segmentation": to_rle(mask, size_hw)}
    return record


def with_shapes(record: dict[str, Any], **shapes: object) -> dict[str, Any]:
    """A checked result with another box, mask or both; an `area` that it has becomes that of the mask, else of the box.

    Args:
        record: Not changed.
        **shapes: `bbox` [x, y, width, height], `segmentation` as compressed RLE.
    """
    moved = {**record, **shapes}
    if "area" in record and shapes:
        mask = moved.get("segmentation")
        moved["area"] = float(rle_area(mask)) if mask else moved["bbox"][2] * moved["bbox"][3]
    return moved

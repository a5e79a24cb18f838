"""The masks in VOC's XML: `<polygon><x1>..</x1><y1>..</y1><x2>..` of an object, as supervision writes them.

A corner is a pixel counted from 1, like the edges of `bndbox`, and the pixels that the outline runs through belong to
the mask: its extent is then that of the box. Drawn so, a mask is the one that supervision wrote; taken for a polygon of
continuous coordinates, it would lose a column and a row, which of a thin scratch is half of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scantling.data.formats.safe_xml import Element
from scantling.errors import DataError
from scantling.ops.polygons import check_polygons
from scantling.ops.rle import RLE, check_size, patch_to_rle


def mask_of(element: Element, size_hw: tuple[int, int]) -> RLE | None:
    """The mask of an object: all pixels within its polygons and on their outlines.

    Args:
        element: `<object>`; several polygons are parts of one mask, an empty one is none.
        size_hw: Height and width of the image; what lies outside is cut off.

    Returns:
        None if there is no polygon.

    Raises:
        ValueError: Its arguments are what is wrong with a polygon, its line, and the value found.
    """
    written = [polygon for polygon in element.all("polygon") if polygon.children]
    return _drawn([_corners(polygon, size_hw) for polygon in written], size_hw) if written else None


def _corners(polygon: Element, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Corners (N, 2) as pixels x, y counted from 0."""
    texts = {child.tag: child.text.strip() for child in polygon.children}
    count = len(texts) // 2
    order = [f"{axis}{number}" for number in range(1, count + 1) for axis in "xy"]
    shown = " ".join(f"{tag}={text}" for tag, text in texts.items())[:80]
    if len(polygon.children) != 2 * count or count < 3 or texts.keys() != set(order):
        raise ValueError("its corners are not x1, y1, x2, y2, x3, y3, ...", polygon.line, shown)
    try:
        (outline,) = check_polygons([[float(texts[tag]) for tag in order]])
    except (DataError, ValueError):
        raise ValueError("its corners are not finite numbers near the image", polygon.line, shown) from None
    corners: NDArray[np.int32] = np.rint(np.array(outline).reshape(-1, 2) - 1).astype(np.int32)
    height, width = size_hw
    if (corners.max(0) < 0).any() or (corners.min(0) >= (width, height)).any():
        raise ValueError(f"it lies outside the image of {width} x {height} px", polygon.line, shown)
    return corners


def _drawn(outlines: list[NDArray[np.int32]], size_hw: tuple[int, int]) -> RLE:
    import cv2  # here, because what reads boxes only shall start without it

    height, width = check_size(list(size_hw))
    everything = np.concatenate(outlines)
    left, top = np.maximum(everything.min(0), 0)
    right, bottom = np.minimum(everything.max(0) + 1, (width, height))
    patch = np.zeros((bottom - top, right - left), np.uint8)
    for corners in outlines:
        cv2.fillPoly(patch, [corners - (left, top)], 1)
    return patch_to_rle(patch, (int(left), int(top)), size_hw)

"""Polygons drawn as run-length masks by COCO's own native code; without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from scantling.errors import DataError
from scantling.ops.rle import RLE, check_size, rle_from_uncompressed

MAX_OUTLINE = 4_000_000.0
"""Longest outline, in pixels, that is rasterised: the native code allocates in proportion to it."""


def check_polygons(polygons: object) -> list[list[float]]:
    """Polygons of one object, once they are known to be safe to rasterise.

    Args:
        polygons: List of outlines [x1, y1, x2, y2, ...], absolute pixels, continuous edges.

    Returns:
        The same as floats.

    Raises:
        DataError: Not lists of at least three finite points with a bearable outline; says what was found.
    """
    if not isinstance(polygons, Sequence) or isinstance(polygons, str | bytes):
        raise DataError(f"polygons: expected a list of outlines, found {polygons!r:.80}")
    return [_check_outline(outline) for outline in polygons]


def _check_outline(outline: object) -> list[float]:
    """One polygon as floats; raises `DataError`."""
    if not isinstance(outline, Sequence) or isinstance(outline, str | bytes):
        raise DataError(f"polygon: expected a list [x1, y1, x2, y2, ...], found {outline!r:.80}")
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in outline):
        raise DataError(f"polygon: expected numbers only, found {outline!r:.80}")
    if len(outline) < 6 or len(outline) % 2:
        raise DataError(f"polygon: expected at least 3 points as x, y pairs, found {len(outline)} numbers")
    limited = [
        min(max(value, -1e12), 1e12) for value in outline
    ]  # integers too large for a float stay "too large"
    points = np.asarray(limited, dtype=np.float64).reshape(-1, 2)
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum() + np.abs(points[0]).max()
    if not length <= MAX_OUTLINE:
        raise DataError(f"polygon: expected finite coordinates near the image, found {outline!r:.80}")
    return [float(value) for value in limited]


def polygons_to_rle(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> RLE:
    """Rasterise the outlines of one object with COCO's own rule; several parts are joined.

    Args:
        polygons: Outlines [x1, y1, x2, y2, ...] in absolute pixels; what leaves the image is cut off. No outline
            gives an empty mask.
        size_hw: Height and width of the image.

    Raises:
        DataError: A polygon is not a list of at least three finite points, or reaches absurdly far.
    """
    height, width = check_size(list(size_hw))
    outlines = check_polygons(polygons)
    if not outlines:
        return rle_from_uncompressed([height * width], size_hw)
    merged = coco_mask.merge(coco_mask.frPyObjects(outlines, height, width))
    return RLE(size=[height, width], counts=merged["counts"].decode("ascii"))

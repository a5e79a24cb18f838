"""Polygons drawn as run-length masks, and the overlap of such masks, by COCO's own native code; without torch.

N, M: masks of two sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from scantling.errors import DataError
from scantling.ops.rle import RLE, check_rle, check_size, rle_from_uncompressed

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


def pairwise_mask_iou(
    rles_a: Sequence[RLE], rles_b: Sequence[RLE], is_crowd: Sequence[bool] | NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Mask overlap of every mask of `a` (predictions) with every mask of `b` (ground truth).

    Args:
        rles_a: N masks.
        rles_b: M masks of the same image size.
        is_crowd: (M,) regions of `b` for which the overlap is intersection over the area of `a`; None: none.

    Returns:
        (N, M) in [0, 1]; empty when a side is.

    Raises:
        DataError: An RLE is damaged or of another size than the first.
        ValueError: `is_crowd` has not M entries.
    """
    crowd = (
        np.zeros(len(rles_b), dtype=np.uint8) if is_crowd is None else np.asarray(is_crowd, dtype=np.uint8)
    )
    if crowd.shape != (len(rles_b),):
        raise ValueError(f"pairwise_mask_iou: expected {len(rles_b)} crowd flags, found shape {crowd.shape}")
    if not rles_a or not rles_b:
        return np.zeros((len(rles_a), len(rles_b)))
    size_hw = check_size(rles_a[0].get("size"))
    for rle in (*rles_a, *rles_b):
        check_rle(rle, size_hw)
    overlap: NDArray[np.float64] = np.asarray(
        coco_mask.iou(list(rles_a), list(rles_b), crowd), dtype=np.float64
    )
    return overlap

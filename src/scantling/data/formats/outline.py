"""Masks as polygons: the outline of an RLE along its pixels' edges, from which the same mask is drawn again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.records import Segmentation, to_rle
from scantling.ops.polygons import polygons_to_rle
from scantling.ops.rle import rle_decode, rle_to_patch

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up: the mask is on the right hand
MAX_RATIO = 0.02
"""Share of a mask's pixels that its polygon may change before the mask is called lost."""


class Outline(NamedTuple):
    """One polygon x1, y1, x2, y2, ... in pixels, and whether it draws exactly the mask it came from."""

    points: tuple[float, ...]
    exact: bool


def outline_of(segmentation: Segmentation, size_hw: tuple[int, int]) -> Outline | None:
    """A mask as one polygon.

    Args:
        segmentation: Polygons, one of which is passed on as it is, or an RLE.
        size_hw: Height and width of the image.

    Returns:
        None if one polygon cannot hold it: several parts, or holes, that are more than a fiftieth of the mask.
    """
    if isinstance(segmentation, tuple) and len(segmentation) == 1:
        return Outline(tuple(map(float, segmentation[0])), exact=True)
    rle = to_rle(segmentation, size_hw)
    patch, (left, top) = rle_to_patch(rle)
    rings = trace(patch > 0)
    if not rings:
        return None
    longest = max(rings, key=lambda ring: abs(_area(ring)))
    points = (longest + np.array([left, top])).reshape(-1).astype(float)
    drawn = rle_decode(polygons_to_rle([points.tolist()], size_hw))
    wrong = int((drawn != rle_decode(rle)).sum())
    if wrong > MAX_RATIO * patch.astype(bool).sum():
        return None
    return Outline(tuple(points.tolist()), exact=wrong == 0)


def trace(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Closed outlines (corners (N, 2) as x, y) along the edges of the pixels of a mask (H, W).

    Outer outlines turn clockwise and have positive area, holes the other way round. Pixels that touch at a corner
    belong together.
    """
    edges = _edges(mask)
    rings = []
    while edges:
        start = next(iter(edges))
        rings.append(_follow(start, edges))
    return rings


def _edges(mask: NDArray[np.bool_]) -> dict[tuple[int, int], list[int]]:
    """Directions of the edges that leave each corner, the mask to the right."""
    padded = np.pad(mask, 1)
    edges: dict[tuple[int, int], list[int]] = {}
    inside, shifts = (
        padded[1:-1, 1:-1],
        (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2]),
    )
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the top, right, bottom and left edge of a pixel begin
    for direction, (beyond, (dx, dy)) in enumerate(zip(shifts, corners, strict=True)):
        for y, x in np.argwhere(inside & ~beyond).tolist():
            edges.setdefault((x + dx, y + dy), []).append(direction)
    return edges


def _follow(start: tuple[int, int], edges: dict[tuple[int, int], list[int]]) -> NDArray[np.int64]:
    """One outline from a corner back to it; its edges are taken out. Only turns are kept."""
    ring: list[tuple[int, int]] = []
    (x, y), direction, first = start, edges[start][0], edges[start][0]
    while True:
        leaving = edges[x, y]
        left_turn = (direction - 1) % 4  # stays with the pixel across the corner
        chosen = left_turn if ring and left_turn in leaving else leaving[0]
        if not ring or chosen != direction:
            ring.append((x, y))
        direction = chosen
        leaving.remove(chosen)
        if not leaving:
            del edges[x, y]
        dx, dy = _STEPS[direction]
        x, y = x + dx, y + dy
        if (x, y) == start and ((x, y) not in edges or (direction - 1) % 4 not in edges[x, y]):
            break
    return np.array(ring[1:] if direction == first and len(ring) > 4 else ring, dtype=np.int64)


def _area(ring: NDArray[np.int64]) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2

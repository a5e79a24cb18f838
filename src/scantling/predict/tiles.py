"""Large images in overlapping tiles: where the tiles lie, and how what they saw becomes one set of detections.

    image ── TileGrid ──► windows ── detector ──► candidates of each tile ── sort_out ──► whole ones, pieces
    pieces of all tiles ── merge ──► one box per object ── with the whole ones: one suppress (by the caller)

A tile sees the part of an object that lies in its window. So two rules decide everything:

* A detection that touches an inner border of its tile is a piece. It is dropped if it lies, without touching, in
  another tile: that tile sees at least as much of the object, and what it says counts.
* The pieces left belong to objects longer than the overlap, which no tile sees whole. Two tiles speak of one object
  if they agree on the part that both can see: clipped to the common window, their boxes overlap by more than half.
  Such pieces become the box around them.

What is then still cut and lies inside a detection that shows more of it goes too. Dims: N boxes, P pieces, T tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from scantling.errors import ConfigError
from scantling.models.suppression import scores_of
from scantling.ops.boxes import box_area, pairwise_intersection, pairwise_iou
from scantling.ops.nms import batched_nms
from scantling.structures.instances import Instances

TileWindow = tuple[int, int, int, int]
Span = tuple[int, int]

AGREEMENT = 0.5  # overlap from which two boxes are taken for the same thing
CONTAINED = 0.7  # share of a piece that lies in what explains it
RELATIVE_SCORE = 0.5  # what explains a piece is at least half as sure
TOUCH_SHARE, TOUCH_PIXELS = (
    0.01,
    2.0,
)  # how near to a border a box touches it: share of the tile, at least pixels
CHUNK = 1 << 22  # elements of the largest table of overlaps


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one size over an image: every combination of an interval of columns and one of rows.

    Attributes:
        size_hw: Of the image.
        columns: Intervals (x1, x2), left to right.
        rows: Intervals (y1, y2), top to bottom.
    """

    size_hw: tuple[int, int]
    columns: tuple[Span, ...]
    rows: tuple[Span, ...]

    @classmethod
    def over(cls, size_hw: tuple[int, int], tile: int, overlap: float) -> TileGrid:
        """Tiles that cover an image, evenly spread, with at least the wanted overlap.

        Args:
            size_hw: Of the image, pixels.
            tile: Side of the tiles; a shorter side of the image is taken whole.
            overlap: Share of its side that a tile has in common with the next, 0 to below 1.
        """
        height, width = size_hw
        return cls(size_hw, _intervals(width, tile, overlap), _intervals(height, tile, overlap))

    def __len__(self) -> int:
        return len(self.columns) * len(self.rows)

    @property
    def windows(self) -> list[TileWindow]:
        """(x1, y1, x2, y2) of each tile, row by row."""
        return [(x1, y1, x2, y2) for y1, y2 in self.rows for x1, x2 in self.columns]

    @property
    def overlap_xy(self) -> tuple[float, float]:
        """Shortest side, across and down, that an object must have to be cut in every tile; inf for one tile."""
        return _shared(self.columns), _shared(self.rows)

    def touches(self, boxes: Tensor, index: int) -> Tensor:
        """Whether each side (x1, y1, x2, y2) of boxes (N, 4) lies at an inner border of tile `index`: (N, 4) bool."""
        row, column = divmod(index, len(self.columns))
        low = torch.stack([self._inside[0][column, 0], self._inside[1][row, 0]])
        high = torch.stack([self._inside[0][column, 1], self._inside[1][row, 1]])
        return torch.cat([boxes[:, :2] < low, boxes[:, 2:] > high], dim=1)

    def holds(self, boxes: Tensor) -> Tensor:
        """Whether some tile shows each of the boxes (N, 4) without its touching an inner border: (N,) bool."""
        fits = [
            ((boxes[:, axis, None] >= inside[:, 0]) & (boxes[:, axis + 2, None] <= inside[:, 1])).any(dim=1)
            for axis, inside in enumerate(self._inside)
        ]
        return fits[0] & fits[1]

    def neighbours(self, index: int) -> Iterator[int]:
        """Later tiles whose windows share pixels with that of tile `index`."""
        row, column = divmod(index, len(self.columns))
        rows = [r for r in range(len(self.rows)) if _meet(self.rows[row], self.rows[r])]
        columns = [c for c in range(len(self.columns)) if _meet(self.columns[column], self.columns[c])]
        yield from (n for r in rows for c in columns if (n := r * len(self.columns) + c) > index)

    @cached_property
    def _inside(self) -> tuple[Tensor, Tensor]:
        """Columns (T_x, 2) and rows (T_y, 2) without the strip that touches an inner border."""
        return _without_borders(self.columns), _without_borders(self.rows)


def _intervals(length: int, tile: int, overlap: float) -> tuple[Span, ...]:
    if tile >= length:
        return ((0, length),)
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / step) + 1
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return tuple((start, start + tile) for start in starts)


def _shared(intervals: Sequence[Span]) -> float:
    ends = zip(intervals, intervals[1:], strict=False)
    return min((float(before[1] - after[0]) for before, after in ends), default=math.inf)


def _meet(a: Span, b: Span) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


def _without_borders(intervals: Sequence[Span]) -> Tensor:
    edges = torch.tensor(intervals, dtype=torch.float32)
    touch = max(TOUCH_PIXELS, TOUCH_SHARE * (intervals[0][1] - intervals[0][0]))
    edges[1:, 0] += touch
    edges[:-1, 1] -= touch
    edges[0, 0], edges[-1, 1] = -math.inf, math.inf
    return edges


class TileFindings(NamedTuple):
    """What one tile saw, in original pixels.

    Attributes:
        tile: Its number.
        whole: Candidates of objects that the tile shows whole.
        pieces: One detection per object that the tile cuts and no tile shows whole.
        cut: (P, 4) bool: sides of the pieces that lie at an inner border.
    """

    tile: int
    whole: Instances
    pieces: Instances
    cut: Tensor


def sort_out(grid: TileGrid, index: int, found: Instances) -> TileFindings:
    """Tell whole objects from pieces in what one tile saw, and drop pieces that another tile shows whole.

    Several candidates describe one object, and some of a cut object's stop short of the border. So a candidate is
    judged by the best one of its category that it overlaps by more than half.

    Args:
        grid: All tiles.
        index: Of this tile.
        found: Its scored candidates in original pixels, in main memory; may be empty.

    Raises:
        ConfigError: The candidates have masks, which cannot be joined across tiles.
    """
    if found.masks is not None:
        raise ConfigError("tiles work for boxes only, and this detector makes masks", hint="Leave out tile.")
    leads, leader = _leaders(found)
    cut = grid.touches(found.boxes[leads], index)
    is_piece = cut.any(dim=1)
    pieces = is_piece & ~grid.holds(found.boxes[leads])
    return TileFindings(index, found[~is_piece[leader]], found[leads[pieces]], cut[pieces])


def _leaders(found: Instances) -> tuple[Tensor, Tensor]:
    """Indices of the candidates that no better one overlaps, and for each candidate its position among them."""
    leads = batched_nms(found.boxes, scores_of(found), found.labels, AGREEMENT)
    if len(found) == 0:
        return leads, leads
    overlap = pairwise_iou(found.boxes, found.boxes[leads])
    overlap = overlap.masked_fill(found.labels[:, None] != found.labels[leads], -1)
    overlap[leads, torch.arange(len(leads))] = math.inf
    return leads, overlap.argmax(dim=1)


def merge(grid: TileGrid, tiles: Sequence[TileFindings], overview: Instances | None = None) -> Instances:
    """The candidates of an image from those of its tiles.

    Args:
        grid: All tiles.
        tiles: What `sort_out` gave for each of them.
        overview: Candidates from a view of the whole image, in original pixels. Those of objects that fit into the
            overlap are left out: some tile shows these whole, and larger.

    Returns:
        Candidates in original pixels: of each object none is a fragment, unless no tile sees more of it and no
        neighbour continues it. Duplicates are left to `suppress`.
    """
    empty = Instances.empty(grid.size_hw, scored=True)
    large = [] if overview is None else [overview[_exceeds(overview.boxes, grid.overlap_xy)]]
    whole = Instances.cat([empty, *(tile.whole for tile in tiles), *large])
    joined, cut = _joined(grid, [tile for tile in tiles if len(tile.pieces)], empty)
    return Instances.cat([whole, joined[~_explained(joined, cut, Instances.cat([whole, joined]))]])


def _exceeds(boxes: Tensor, overlap_xy: tuple[float, float]) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] > overlap_xy[0]) | (boxes[:, 3] - boxes[:, 1] > overlap_xy[1])


def _joined(grid: TileGrid, tiles: Sequence[TileFindings], empty: Instances) -> tuple[Instances, Tensor]:
    """The box around all pieces of each object, with its best score, and its sides that are still cut (P, 4)."""
    pieces = Instances.cat([empty, *(tile.pieces for tile in tiles)])
    object_of = _components(len(pieces), _agreements(grid, tiles))
    objects, object_of = torch.unique(object_of, return_inverse=True)
    cut = torch.cat([torch.zeros(0, 4, dtype=torch.bool), *(tile.cut for tile in tiles)])
    signed = pieces.boxes * torch.tensor([-1.0, -1.0, 1.0, 1.0])  # the outermost side is the largest
    target = object_of[:, None].expand(-1, 4)
    hull = torch.full((len(objects), 4), -math.inf).scatter_reduce(0, target, signed, "amax")
    outermost = cut & (signed >= hull[object_of])
    still_cut = torch.zeros(len(objects), 4, dtype=torch.int64).index_add(0, object_of, outermost.long()) > 0
    scores = torch.zeros(len(objects)).scatter_reduce(0, object_of, scores_of(pieces), "amax")
    boxes = hull * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    return empty.replace(boxes=boxes, labels=pieces.labels[objects], scores=scores), still_cut


def _agreements(grid: TileGrid, tiles: Sequence[TileFindings]) -> Iterator[tuple[int, int]]:
    """Pairs of pieces, by position over all tiles, that are each other's best match on the common window."""
    starts, count = {}, 0
    for position, seen in enumerate(tiles):
        starts[seen.tile] = position, count
        count += len(seen.pieces)
    windows = torch.tensor(grid.windows, dtype=torch.float32)
    for seen in tiles:
        for other in grid.neighbours(seen.tile):
            if other not in starts:
                continue
            position, start = starts[other]
            common = _common(windows[seen.tile], windows[other])
            for mine, theirs in _mutual_best(seen.pieces, tiles[position].pieces, common):
                yield starts[seen.tile][1] + mine, start + theirs


def _common(a: Tensor, b: Tensor) -> Tensor:
    """The rectangle (4,) that two windows share."""
    return torch.cat([torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])])


def _mutual_best(mine: Instances, theirs: Instances, common: Tensor) -> list[tuple[int, int]]:
    """Pairs of one category whose parts in the common window overlap by more than half, and no other ones more."""
    overlap = pairwise_iou(_within(mine.boxes, common), _within(theirs.boxes, common))
    overlap = overlap.masked_fill(mine.labels[:, None] != theirs.labels, 0)
    best, match = overlap.max(dim=1)
    mutual = (best > AGREEMENT) & (overlap.argmax(dim=0)[match] == torch.arange(len(mine)))
    return [(int(i), int(match[i])) for i in mutual.nonzero()[:, 0]]


def _within(boxes: Tensor, window: Tensor) -> Tensor:
    """Boxes (N, 4) clipped to a window; without area where they lie outside."""
    low, high = window[:2].repeat(2), window[2:].repeat(2)
    return torch.minimum(torch.maximum(boxes, low), high)


def _components(count: int, pairs: Iterator[tuple[int, int]]) -> Tensor:
    """For each of `count` things the smallest one it is linked with, directly or through others: (count,)."""
    parent = list(range(count))

    def root(thing: int) -> int:
        while parent[thing] != thing:
            parent[thing] = parent[parent[thing]]
            thing = parent[thing]
        return thing

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return torch.tensor([root(thing) for thing in range(count)], dtype=torch.int64)


def _explained(pieces: Instances, cut: Tensor, everything: Instances) -> Tensor:
    """Which pieces (P,) lie in a detection of their category that goes on where they are cut.

    It must hold most of the piece, be larger, and be at least half as sure, so that a stray box does not remove a
    good one.
    """
    explained = torch.zeros(len(pieces), dtype=torch.bool)
    open_ones = cut.any(dim=1).nonzero()[:, 0]
    if len(open_ones) == 0:
        return explained
    outward = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    step = max(1, CHUNK // len(everything))
    for start in range(0, len(open_ones), step):
        chunk = open_ones[start : start + step]
        some = pieces[chunk]
        inside = (
            pairwise_intersection(some.boxes, everything.boxes) > CONTAINED * box_area(some.boxes)[:, None]
        )
        further = (everything.boxes * outward)[None] > (some.boxes * outward)[:, None] + TOUCH_PIXELS
        sure = scores_of(everything) >= RELATIVE_SCORE * scores_of(some)[:, None]
        same = everything.labels == some.labels[:, None]
        explained[chunk] = (inside & (further & cut[chunk][:, None]).any(dim=2) & sure & same).any(dim=1)
    return explained

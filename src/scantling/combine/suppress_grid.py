"""The same candidates suppressed in many ways at once, for a search over the settings.

    candidates ── by image and category ──► lanes of equal length ──► IoU of each lane with itself, once
                                        every option: take the best box of each lane, decay by a row of that IoU, again

What an option keeps, and with which scores, is what `suppress_detections` gives, of one category as if it had the
image for itself: how many boxes all categories together may keep is not looked at here.

Dims: N candidates, O options, G lanes (images x categories), M candidates of the longest lane.
Source: Bodla et al., Soft-NMS, ICCV 2017; per-category settings: Algorithm 1 of the DelftBikes report of team CS21.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scantling.data.detections import Detections
from scantling.ops.boxes import MIN_UNION
from scantling.ops.suppress_options import SuppressMethod

_USED = np.float32(-1)  # below any score: taken, or a place that holds no box
_TINY = np.float32(np.finfo(np.float32).tiny)
_CELLS = 4_000_000  # numbers per array at once

Singles = NDArray[np.float32]
Ints = NDArray[np.int64]


class Option(NamedTuple):
    """One way to suppress.

    Attributes:
        method: As in `SuppressConfig`.
        value: The IoU threshold; for `soft_gaussian` sigma; for `none` nothing.
    """

    method: SuppressMethod
    value: float = 0.0

    def __str__(self) -> str:
        return self.method if self.method == "none" else f"{self.method} {self.value:g}"


class Kept(NamedTuple):
    """What one option keeps: rows of the candidates, ascending, and their scores."""

    rows: Ints
    scores: NDArray[np.float64]


def suppress_in_every_way(
    candidates: Detections, options: Sequence[Option], *, min_score: float = 1e-3, limit: int = 100
) -> list[Kept]:
    """Suppress within each image and category by each option.

    Args:
        candidates: N scored boxes, finite; N = 0 gives nothing for every option.
        options: O ways.
        min_score: Soft-NMS drops what falls below, and so it does what falls to 0.
        limit: Boxes kept per image and category, best first.

    Returns:
        For each option what it keeps; of equal scores the lower row was taken first.
    """
    kept: list[list[tuple[Ints, Singles]]] = [[] for _ in options]
    fields = _fields(candidates)
    scores = np.append(candidates.scores, 0).astype(np.float32)
    kinds = _kinds(options, np.maximum(np.float32(min_score), _TINY))
    for lanes in _lanes(candidates, len(options)):
        iou = _pairwise_iou(fields[:, lanes])
        start = np.where(lanes < 0, _USED, scores[lanes])
        for kind in kinds:
            picks, values = kind.suppress(iou, start, limit)
            for option, place in enumerate(kind.places):
                taken = values[:, option] >= kind.floor
                lane = np.nonzero(taken)[1]
                kept[place].append((lanes[lane, picks[:, option][taken]], values[:, option][taken]))
    return [_joined(parts, candidates.scores) for parts in kept]


def _joined(parts: Sequence[tuple[Ints, Singles]], before: NDArray[np.float64]) -> Kept:
    """In the order of the rows; a score that nothing lowered comes back as it was."""
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *(rows for rows, _ in parts)])
    scores = np.concatenate([np.zeros(0, dtype=np.float32), *(scores for _, scores in parts)])
    order = np.argsort(rows)
    rows, scores = rows[order], scores[order]
    return Kept(rows, np.where(scores == before[rows].astype(np.float32), before[rows], scores))


def _fields(candidates: Detections) -> Singles:
    """(5, N + 1): x1, y1, x2, y2 and area of each box; the last column, without area, is for padding."""
    boxes = np.append(candidates.boxes, np.zeros((1, 4)), axis=0).astype(np.float32)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(0))
    return np.ascontiguousarray(np.concatenate([boxes, sides[:, :1] * sides[:, 1:]], axis=1).T)


def _lanes(candidates: Detections, num_options: int) -> Iterator[Ints]:
    """(G, M) rows of images and categories of similar size, ascending within each, -1 where one has fewer."""
    num_labels = int(candidates.labels.max(initial=0)) + 1
    keys = candidates.images * num_labels + candidates.labels
    rows = np.argsort(keys, kind="stable")
    _, first, sizes = np.unique(keys[rows], return_index=True, return_counts=True)
    by_size = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(by_size):
        longest = int(sizes[by_size[start]])
        group = by_size[start : start + max(1, _CELLS // (longest * max(longest, num_options)))]
        places = np.arange(longest)
        index = np.minimum(first[group][:, None] + places, len(rows) - 1)
        yield np.where(places < sizes[group][:, None], rows[index], -1)
        start += len(group)


def _pairwise_iou(fields: Singles) -> Singles:
    """(G, M, M) overlap within each lane, from (5, G, M); with the arithmetic of `ops.nms`, bit for bit."""
    low, high, area = fields[:2], fields[2:4], fields[4]
    sides = np.minimum(high[..., None], high[:, :, None]) - np.maximum(low[..., None], low[:, :, None])
    np.maximum(sides, np.float32(0), out=sides)
    common: Singles = sides[0] * sides[1]
    union = area[..., None] + area[:, None] - common
    np.maximum(union, np.float32(MIN_UNION), out=union)
    common /= union
    return common


# ---------------------------------------------------------------- options of one kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kind:
    """Options of one method.

    Attributes:
        method: Theirs; `none` is `hard` with a threshold that nothing exceeds.
        places: Their positions among all options.
        values: (O, 1, 1) threshold or sigma of each.
        floor: Lowest score that is kept.
    """

    method: str
    places: Sequence[int]
    values: NDArray[np.floating]
    floor: np.float32

    def suppress(self, iou: Singles, start: Singles, limit: int) -> tuple[Ints, Singles]:
        """Take the best of each lane, lower what it overlaps, and again.

        Args:
            iou: (G, M, M) overlaps within each lane.
            start: (G, M) scores, `_USED` where there is no box.
            limit: Steps at most.

        Returns:
            (steps, O, G) twice: which place of the lane was taken, and its score; below the floor: nothing was.
        """
        left = np.repeat(start[None], len(self.places), axis=0)
        lane = np.arange(len(start))
        picks, values = [], []
        for _ in range(min(limit, start.shape[1])):
            pick = left.argmax(axis=2)
            value = np.take_along_axis(left, pick[..., None], axis=2)
            if not (value >= self.floor).any():
                break
            picks.append(pick)
            values.append(value[..., 0])
            self.lower(left, iou[lane, pick])
            np.put_along_axis(left, pick[..., None], _USED, axis=2)
        none = np.zeros((0, *left.shape[:2]))
        return np.array(picks or none, dtype=np.int64), np.array(values or none, dtype=np.float32)

    def lower(self, left: Singles, iou: Singles) -> None:
        """Lower scores (O, G, M), in place, for their overlap with what was taken."""
        if self.method == "soft_gaussian":
            left *= np.exp(iou * iou / -self.values)
        elif self.method == "soft_linear":
            np.multiply(left, 1 - iou, out=left, where=iou > self.values)
        else:
            np.copyto(left, _USED, where=iou > self.values)


def _kinds(options: Sequence[Option], min_score: np.float32) -> list[_Kind]:
    """The options by method; hard thresholds stay in double precision, as torchvision compares them."""
    kinds = []
    for method in sorted({option.method for option in options}):
        places = [place for place, option in enumerate(options) if option.method == method]
        soft = method in ("soft_linear", "soft_gaussian")
        values = [np.inf if method == "none" else options[place].value for place in places]
        kinds.append(
            _Kind(
                method=method,
                places=places,
                values=np.reshape(values, (-1, 1, 1)).astype(np.float32 if soft else np.float64),
                floor=min_score if soft else np.float32(0),
            )
        )
    return kinds

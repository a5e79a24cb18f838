"""Soft suppression of many groups of boxes at once (Bodla et al. 2017; Algorithm 1 of team CS21's report).

    boxes ── one lane per group ──► step t: the best box of every lane is taken, and the others of its lane fall
                  ▲                                           │
                  └── now and then packed again without what is taken or too low

A group is a category of an image. All lanes advance together, so the number of steps is that of the longest lane,
and each step is a few array operations whatever the number of groups.
N: boxes; G: lanes; n: boxes of the longest lane.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.ops.boxes import MIN_UNION, box_area
from scantling.ops.suppress_options import METHODS, SuppressOptions, methods_of, values_of

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_USED = np.float32(-1)  # below any score: taken, or a place that holds no box
_TINY = np.finfo(np.float32).tiny
_MIN_STEPS = 16
_GAUSSIAN = METHODS.index("soft_gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor,
    **options: Unpack[SuppressOptions],
) -> tuple[Tensor, Tensor]:
    """Lower the score of a box for every better box of its image and category that it overlaps.

    Runs in main memory whatever the device: the steps depend on each other, and each is shorter than starting it on
    an accelerator would take.

    Args:
        boxes: (N, 4) xyxy, finite.
        scores: (N,) in [0, 1].
        labels: (N,) int64 category of each box.
        images: (N,) int64 image of each box.
        **options: `method` is `soft_linear` or `soft_gaussian`.

    Returns:
        Indices of what stays, int64, in no particular order; and their new scores, float32. (0,) twice for no boxes.

    Raises:
        ValueError: Unknown method, or sigma not above 0.

    Source:
        Bodla et al. 2017; per-category thresholds: Algorithm 1 of the DelftBikes report of team CS21.
    """
    fields, rules = _fields(boxes), _rules(labels, options)
    group_of = (images * (labels.max() + 1 if len(labels) else 1) + labels).cpu().numpy()
    left = np.append(scores.detach().float().cpu().numpy(), _USED)
    rows = np.lexsort((group_of, rules.gaussian))
    kept_rows, kept_scores = [rows[:0]], [left[:0]]
    while len(rows := rows[left[rows] >= rules.floor[rows]]):
        lanes = _lanes(rows, group_of)
        current = left[lanes]
        picks, values = _advance(fields[:, lanes], current, rules.of(lanes[:, :1]))
        left[lanes], left[-1] = current, _USED
        kept_rows.append(lanes.ravel()[picks])
        kept_scores.append(values)
    keep, found = np.concatenate(kept_rows), np.concatenate(kept_scores)
    return torch.from_numpy(keep).to(labels.device), torch.from_numpy(found).to(boxes.device)


class _Rules(NamedTuple):
    """Settings of each box, or of each lane: the columns of `SuppressOptions` as the steps need them.

    limit: Overlap beyond which the linear method acts.
    sigma: Width of the gaussian.
    floor: Lowest score that is kept.
    gaussian: Whether the method is the gaussian one; lanes of it come last.
    """

    limit: Floats
    sigma: Floats
    floor: Floats
    gaussian: NDArray[np.bool_]

    def of(self, rows: Indices) -> _Rules:
        """The settings of these boxes."""
        return _Rules(self.limit[rows], self.sigma[rows], self.floor[rows], self.gaussian[rows])


def _rules(labels: Tensor, options: SuppressOptions) -> _Rules:
    sigma = values_of(labels, options.get("sigma", 0.5))
    method = methods_of(labels, options.get("method", "soft_linear"))
    if not (sigma > 0).all():
        raise ValueError(f"suppress: expected sigma > 0, found {sigma.min().item()}")
    return _Rules(
        values_of(labels, options.get("iou_threshold", 0.5)).cpu().numpy(),
        sigma.cpu().numpy(),
        values_of(labels, options.get("min_score", 1e-3)).cpu().numpy().clip(_TINY),
        (method == _GAUSSIAN).cpu().numpy(),
    )


def _fields(boxes: Tensor) -> Floats:
    """(5, N + 1): x1, y1, x2, y2 and area of each box; the last column is a box without area, for padding."""
    flat = boxes.detach().float().cpu()
    table = torch.cat([flat, box_area(flat)[:, None]], dim=1)
    return np.ascontiguousarray(torch.cat([table, table.new_zeros(1, 5)]).T.numpy())


def _lanes(rows: Indices, group_of: Indices) -> Indices:
    """(G, n) the rows of one group per lane, in order; -1, the padding's row, where a group has fewer than n."""
    group = group_of[rows]
    first = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    counts = np.diff(first, append=len(rows))
    lanes = np.full((len(counts), counts.max()), -1, dtype=np.int64)
    lanes[np.arange(counts.max()) < counts[:, None]] = rows
    return lanes


def _advance(fields: Floats, left: Floats, rules: _Rules) -> tuple[Indices, Floats]:
    """Take the next boxes of every lane, until enough are gone to make the lanes worth packing again.

    Args:
        fields: (5, G, n) of each lane's boxes.
        left: (G, n) scores as they stand; lowered in place, `_USED` for what is taken.
        rules: (G, 1) settings of each lane.

    Returns:
        What was taken, as indices into the flattened lanes, and the scores.
    """
    lanes, size = left.shape
    low, high, area = fields[:2].copy(), fields[2:4].copy(), fields[4]
    table, current, floor = fields.reshape(5, -1), left.reshape(-1), rules.floor[:, 0]
    linear = int(np.count_nonzero(~rules.gaussian))
    limit, sigma = rules.limit[:linear], rules.sigma[linear:]
    picks, reached, taken = [], [], []
    for _ in range(max(_MIN_STEPS, size // 8)):
        pick = left.argmax(axis=1) + np.arange(0, lanes * size, size)
        value = current[pick]
        counts = value >= floor
        if not counts.any():
            break
        picks.append(pick)
        reached.append(value)
        taken.append(counts)
        iou = _iou_with(table[:, pick, None], low, high, area)
        np.multiply(left[:linear], 1 - iou[:linear], out=left[:linear], where=iou[:linear] > limit)
        if linear < lanes:
            left[linear:] *= np.exp(iou[linear:] * iou[linear:] / -sigma)
        current[pick] = _USED
    among = np.concatenate(taken)
    return np.concatenate(picks)[among], np.concatenate(reached)[among]


def _iou_with(best: Floats, low: Floats, high: Floats, area: Floats) -> Floats:
    """(G, n) overlap of each lane's boxes with its best one, (5, G, 1): `boxes.pairwise_iou`, bit for bit."""
    sides = np.minimum(high, best[2:4])
    sides -= np.maximum(low, best[:2])
    np.maximum(sides, np.float32(0), out=sides)
    inter: Floats = sides[0] * sides[1]
    union = area + best[4]
    union -= inter
    np.maximum(union, np.float32(MIN_UNION), out=union)
    inter /= union
    return inter

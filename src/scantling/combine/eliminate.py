"""Predictions that contradict what occurs in training data: the weaker of two that never lie so, and surplus ones.

    training annotations ─ learn_relations ─► Relations
    detections, Relations ─ eliminate ─► Elimination: what to keep, and for each removal why and because of which

Made to do no harm: a relation is judged only where many training images show both categories and none comes near it;
a box is removed only for one that scores well and several times as high; and one that a stronger box contradicts, if
ever so little stronger, removes nothing. So most predictions stay untouched and what goes is unlikely to be right. The
gain is small: +0.04 points of AP in the report of team CS21 on DelftBikes.

N: detections, P: pairs of them, K: categories, R: removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from scantling.combine.relations import Relations, relations_of
from scantling.data.coco.dataset import CocoDataset
from scantling.ops.overlaps import paired_overlaps
from scantling.settings.fields import Fraction
from scantling.structures.detections import Detections

_MAX_PAIRS = 1_000_000  # compared at once
_MAX_LINES = 20  # shown to people

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class EliminateConfig(BaseModel):
    """What counts as never occurring, and how sure a removal is.

    Attributes:
        overlaps: Remove the weaker of two boxes of different categories whose overlap never occurs.
        counts: Remove the surplus of a category of which there are never so many in one image.
        min_support: Training images that show both categories, or the category, below which nothing is judged. With
            30 images, what none of them shows is in less than one of ten others (95 % confidence).
        quantile: Share of these images that is looked at; see `relations_of`.
        iou_margin: An IoU larger than what occurs by at most this is still fine.
        inside_margin: The same of the share of a box that is inside the other.
        min_iou: An IoU up to this is always fine.
        min_inside: A share up to this is always fine.
        count_margin: So many objects more than what occurs are still fine.
        min_score: A box of a lower score removes nothing.
        min_ratio: A box removes only what scores at most its own score divided by this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlaps: bool = True
    counts: bool = True
    min_support: Annotated[int, Field(ge=1)] = 30
    quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    iou_margin: Fraction = 0.2
    inside_margin: Fraction = 0.2
    min_iou: Fraction = 0.5
    min_inside: Fraction = 0.95
    count_margin: Annotated[int, Field(ge=0)] = 1
    min_score: Fraction = 0.3
    min_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0


class Reason(StrEnum):
    """Why a prediction is removed.

    `overlap`: it and a stronger one of another category overlap (IoU) more than these do. `inside`: more of it is
    inside the stronger one than occurs. `around`: more of the stronger one is inside it than occurs. `surplus`: there
    are more of its category in the image than occur.
    """

    OVERLAP = "overlap"
    INSIDE = "inside"
    AROUND = "around"
    SURPLUS = "surplus"


_REASONS = tuple(Reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One removed prediction.

    Attributes:
        row: Of the detections.
        by: Row of the stronger one; for a surplus the last that is not too many.
        reason: Why.
        weaker: Its category.
        stronger: The category of the other.
    """

    row: int
    by: int
    reason: Reason
    weaker: str
    stronger: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Elimination:
    """What to keep.

    Attributes:
        keep: (N,) whether a detection stays.
        removed: R removals, by row.
    """

    keep: Flags
    removed: tuple[Removal, ...]

    @property
    def counts(self) -> dict[tuple[str, str, Reason], int]:
        """Number of removals by category removed, category it gave way to, and reason; most frequent first."""
        found = Counter((each.weaker, each.stronger, each.reason) for each in self.removed)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def to_text(self) -> str:
        """Removals by pair, for people; the most frequent ones."""
        lines = [
            f"{count:>7}  {weaker} {_WORDS[reason].format(stronger)}"
            for (weaker, stronger, reason), count in self.counts.items()
        ]
        if len(lines) > _MAX_LINES:
            rest = sum(list(self.counts.values())[_MAX_LINES:])
            lines[_MAX_LINES:] = [f"{rest:>7}  of {len(lines) - _MAX_LINES} more kinds"]
        return "\n".join([*lines, f"{len(self.removed)} of {len(self.keep)} predictions contradict"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `row` is the position in the results."""
        return {
            "num_results": len(self.keep),
            "num_removed": len(self.removed),
            "pairs": [
                {"weaker": weaker, "stronger": stronger, "reason": str(reason), "count": count}
                for (weaker, stronger, reason), count in self.counts.items()
            ],
            "removed": [
                {"row": each.row, "by": each.by, "reason": str(each.reason)} for each in self.removed
            ],
        }


_WORDS = {
    Reason.OVERLAP: "overlaps a stronger {}",
    Reason.INSIDE: "is inside a stronger {}",
    Reason.AROUND: "is around a stronger {}",
    Reason.SURPLUS: "is one too many of {}",
}


def learn_relations(dataset: CocoDataset, config: EliminateConfig) -> Relations:
    """What occurs in training annotations.

    Args:
        dataset: Training data, not what was predicted.
        config: `quantile` is used.
    """
    return relations_of(dataset, quantile=config.quantile)


def eliminate(detections: Detections, relations: Relations, config: EliminateConfig) -> Elimination:
    """Find predictions that contradict what occurs.

    Boxes are taken by falling score: one that is removed, or contradicted by one that is not, removes nothing. Surplus
    is counted among what is left.

    Args:
        detections: N, in any order, after suppression; none gives nothing to remove.
        relations: With the categories in the order of the labels (`Relations.ordered`).
        config: What is judged.
    """
    order = np.lexsort((-detections.scores, detections.images))
    ranked = detections[order]
    by = np.full(len(ranked), -1, dtype=np.int64)
    reasons = np.zeros(len(ranked), dtype=np.int64)
    if config.overlaps:
        found = [_contradictions(ranked, pair, relations, config) for pair in _candidates(ranked, config)]
        stronger, weaker, reason = (np.concatenate(columns) for columns in zip(*found, strict=True))
        clear = _is_clear(ranked.scores[stronger], ranked.scores[weaker], config)
        _resolve((stronger, weaker, clear), reason, by, reasons)
    if config.counts:
        _mark_surplus(ranked, relations, config, by, reasons)
    keep = np.ones(len(ranked), dtype=bool)
    keep[order[by >= 0]] = False
    names = relations.class_names
    removed = [
        Removal(
            row=int(order[row]),
            by=int(order[by[row]]),
            reason=_REASONS[reasons[row]],
            weaker=names[ranked.labels[row]],
            stronger=names[ranked.labels[by[row]]],
        )
        for row in np.flatnonzero(by >= 0)
    ]
    return Elimination(keep=keep, removed=tuple(sorted(removed, key=lambda each: each.row)))


# ---------------------------------------------------------------- relations that never occur


def _candidates(ranked: Detections, config: EliminateConfig) -> Iterator[tuple[Ints, Ints]]:
    """Pairs (stronger, weaker) of one image and two categories, in portions: the one scores well, the other less."""
    strong = np.flatnonzero(ranked.scores >= config.min_score)
    last = np.searchsorted(ranked.images, ranked.images[strong], side="right")
    counts = last - strong - 1
    portion = np.cumsum(counts) // _MAX_PAIRS
    for some in np.split(np.arange(len(strong)), np.flatnonzero(np.diff(portion)) + 1):
        stronger = np.repeat(strong[some], counts[some])
        starts = np.cumsum(counts[some]) - counts[some]
        weaker = np.repeat(strong[some] + 1 - starts, counts[some]) + np.arange(len(stronger))
        wanted = ranked.scores[weaker] < ranked.scores[stronger]
        wanted &= ranked.labels[stronger] != ranked.labels[weaker]
        yield stronger[wanted], weaker[wanted]


def _is_clear(stronger: Floats, weaker: Floats, config: EliminateConfig) -> Flags:
    """Whether scores are so far apart that the one may remove the other."""
    return (weaker < stronger) & (weaker * config.min_ratio <= stronger)


def _contradictions(
    ranked: Detections, pair: tuple[Ints, Ints], relations: Relations, config: EliminateConfig
) -> tuple[Ints, Ints, Ints]:
    """Those of some pairs whose relation never occurs, and which: stronger, weaker, position of the reason."""
    stronger, weaker = pair
    one, other = ranked.labels[stronger], ranked.labels[weaker]
    iou, around, inside = paired_overlaps(ranked.boxes[stronger], ranked.boxes[weaker])
    iou_limit = np.maximum(relations.iou + config.iou_margin, config.min_iou)
    inside_limit = np.maximum(relations.inside + config.inside_margin, config.min_inside)
    broken = np.stack(
        [
            iou > iou_limit[one, other],
            inside > inside_limit[other, one],
            around > inside_limit[one, other],
        ]
    )
    broken &= relations.support[one, other] >= config.min_support
    found = broken.any(axis=0)
    return stronger[found], weaker[found], broken.argmax(axis=0)[found]


def _resolve(pairs: tuple[Ints, Ints, Flags], reason: Ints, by: Ints, reasons: Ints) -> None:
    """Let boxes remove what they contradict; the same as one after the other by falling score.

    In each round those act that no undecided box contradicts any more: what they contradict goes if the scores are
    far apart, and else is silent from then on. A box is always contradicted by a higher score, so there is one that
    acts in each round until no pair is left.

    Args:
        pairs: (P,) rows of the stronger and the weaker ones, and whether the scores are far apart.
        reason: (P,).
        by: (N,) written to: the row that removed each, -1 for none.
        reasons: (N,) written to.
    """
    stronger, weaker, clear = pairs
    is_silent = np.zeros(len(by), dtype=bool)
    while len(stronger):
        acts = ~np.isin(stronger, weaker)
        is_silent[weaker[acts]] = True
        removes = np.flatnonzero(acts & clear)
        order = removes[np.argsort(-stronger[removes], kind="stable")]  # the strongest is written last
        by[weaker[order]], reasons[weaker[order]] = stronger[order], reason[order]
        left = ~is_silent[stronger] & ~acts & (by[weaker] < 0)
        stronger, weaker, clear, reason = stronger[left], weaker[left], clear[left], reason[left]


# ---------------------------------------------------------------- surplus


def _mark_surplus(
    ranked: Detections, relations: Relations, config: EliminateConfig, by: Ints, reasons: Ints
) -> None:
    """Remove what is beyond the number that occurs, where so many others score well and clearly higher."""
    left = np.flatnonzero(by < 0)
    order = left[np.lexsort((left, ranked.labels[left], ranked.images[left]))]
    keys = ranked.images[order] * len(relations.class_names) + ranked.labels[order]
    first = np.searchsorted(keys, keys, side="left")
    most = np.maximum(relations.most + config.count_margin, 1)[ranked.labels[order]]
    place = np.arange(len(order)) - first
    beyond = (place >= most) & (relations.seen[ranked.labels[order]] >= config.min_support)
    row, last = order[beyond], order[(first + most - 1)[beyond]]
    clear = ranked.scores[last] >= config.min_score
    clear &= _is_clear(ranked.scores[last], ranked.scores[row], config)
    by[row[clear]] = last[clear]
    reasons[row[clear]] = _REASONS.index(Reason.SURPLUS)

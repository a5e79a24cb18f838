"""The confusion matrix as it is shown: whole for few categories, else its largest entries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scantling.evaluate.confusion import Confusion

MAX_CATEGORIES = 20
_MAX_PAIRS = 30
BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionCell:
    """A count, its share of the row, and whether it is on the diagonal."""

    count: int
    share: float
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionRow:
    """All cells of one labelled category."""

    name: str
    cells: tuple[ConfusionCell, ...]
    is_background: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionPair:
    """How often one category is taken for another."""

    truth: str
    prediction: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionTable:
    """What the page shows: `rows` if the matrix is small, the largest `pairs` if it is `cut`."""

    names: tuple[str, ...]
    rows: tuple[ConfusionRow, ...]
    pairs: tuple[ConfusionPair, ...]
    cut: bool


def confusion_table(confusion: Confusion) -> ConfusionTable:
    """Lay out a confusion matrix; background is the last name."""
    names = (*confusion.names, BACKGROUND)
    is_cut = len(confusion.names) > MAX_CATEGORIES
    return ConfusionTable(
        names=names,
        rows=() if is_cut else tuple(_row(confusion, index, name) for index, name in enumerate(names)),
        pairs=_largest(confusion, names) if is_cut else (),
        cut=is_cut,
    )


def _row(confusion: Confusion, index: int, name: str) -> ConfusionRow:
    counts, is_background = confusion.counts[index], index == len(confusion.names)
    total = max(int(counts.sum()), 1)
    cells = [
        ConfusionCell(
            count=int(count), share=float(count / total), is_right=column == index and not is_background
        )
        for column, count in enumerate(counts)
    ]
    return ConfusionRow(name=name, cells=tuple(cells), is_background=is_background)


def _largest(confusion: Confusion, names: tuple[str, ...]) -> tuple[ConfusionPair, ...]:
    """Entries beside the diagonal, the largest first; none that is 0."""
    wrong = confusion.counts * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    places = [divmod(int(place), len(names)) for place in order]
    return tuple(
        ConfusionPair(truth=names[row], prediction=names[column], count=int(wrong[row, column]))
        for row, column in places
        if wrong[row, column]
    )

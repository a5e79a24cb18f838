"""The same results on several data sets in one table: for each set and for their mean, with intervals.

    set: (1 + R) values of AP and AR by row (a member, or a member and steps) ──┐
    set: ...                                                                    ├─► rows x sets, and their mean
    set: ...                                                                    ┘

The half-sum (AP + AR) / 2 is what the VISION challenge ranks by. An interval of the mean over the sets says how far it
would lie with other images of the same sets, not with other sets: in every draw the images of each set are drawn anew,
within that set. The draws of one set are shuffled, the same way in all rows, before they meet those of another: sets
with equally many images have the same draws, which must not go together. A row that is undefined in a set, in all or in
one draw, leaves that set out of its mean, as COCO leaves out a category without objects.

Source: the tables of "The Second-place Solution for CVPR VISION 23 Challenge Track 1" (Tao et al., 2023), Tables 1-3.
R: resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from scantling.evaluate.bootstrap import Floats, Interval, interval, mean_over_categories

Part = Literal["members", "steps"]
MEAN = "mean"
METRICS = ("mAP", "mAR", "half-sum")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetRow:
    """What one row of a table reaches on one data set.

    Attributes:
        name: Of a member, or of a member and the steps after it.
        part: The table it belongs to: members alone, or step after step.
        average_precision: (1 + R,) AP of all images, then of each draw; NaN where undefined.
        average_recall: (1 + R,) AR of the same.
    """

    name: str
    part: Part
    average_precision: Floats
    average_recall: Floats

    def of(self, metric: str) -> Floats:
        """(1 + R,) values of one of METRICS."""
        own = {"mAP": self.average_precision, "mAR": self.average_recall}
        return own[metric] if metric in own else (self.average_precision + self.average_recall) / 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetResult:
    """What came of one data set.

    Attributes:
        name: Of the data set.
        iou_type: What it is judged by: `bbox` or `segm`; empty where it failed or no member finds objects.
        split: What was evaluated.
        num_images: In it.
        rows: Members, then step after step; none where it failed.
        mean_iou: Mean IoU of the score maps of each segmenter; None where undefined.
        failure: Why there is nothing, in a line; None where there is.
    """

    name: str
    iou_type: str = ""
    split: str = ""
    num_images: int = 0
    rows: tuple[SetRow, ...] = ()
    mean_iou: Mapping[str, float | None] = field(default_factory=dict)
    failure: str | None = None


class Measured(NamedTuple):
    """A number and its 95 % interval; None where undefined.

    Attributes:
        value: In [0, 1].
        interval: Over the images.
    """

    value: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row: by metric, the numbers of each set in which it is defined or not, and their mean.

    Attributes:
        name: Of the row.
        sets: Metric -> data set -> number; a set that failed, or lacks the row, is missing.
        mean: Metric -> mean over the sets in which it is defined.
        num_sets: How many sets the mean of each metric is over.
    """

    name: str
    sets: Mapping[str, Mapping[str, Measured]]
    mean: Mapping[str, Measured]
    num_sets: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetsTable:
    """Rows over the same sets.

    Attributes:
        metrics: What each row holds: METRICS, or `mIoU`.
        sets: Names of all data sets, failed ones too.
        rows: In the order in which they are met first.
    """

    metrics: tuple[str, ...]
    sets: tuple[str, ...]
    rows: tuple[TableRow, ...]

    def to_text(self) -> str:
        """Markdown, which also reads well as it is; intervals stand below their numbers."""
        head = ["", "", *self.sets, MEAN]
        table = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
        for row in self.rows:
            for number, metric in enumerate(self.metrics):
                cells = [*(row.sets[metric].get(name) for name in self.sets), row.mean[metric]]
                note = "" if row.num_sets[metric] == len(self.sets) else f" ({row.num_sets[metric]} sets)"
                values = [_number(cell) for cell in cells]
                table.append(["" if number else row.name, metric, *values[:-1], values[-1] + note])
                if any(cell is not None and cell.interval is not None for cell in cells):
                    table.append(["", "95 %", *map(_range, cells)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in table)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def table_over_sets(results: Sequence[SetResult], part: Part) -> SetsTable:
    """The members' table, or that of step after step.

    Args:
        results: Of every data set, failed ones too; may be empty.
        part: Which rows.
    """
    by_set = {result.name: {row.name: row for row in result.rows if row.part == part} for result in results}
    names = dict.fromkeys(name for rows in by_set.values() for name in rows)
    rows = [_row(name, {each: rows[name] for each, rows in by_set.items() if name in rows}) for name in names]
    return SetsTable(metrics=METRICS, sets=tuple(by_set), rows=tuple(rows))


def mean_iou_table(results: Sequence[SetResult]) -> SetsTable:
    """Mean IoU of each segmenter's score maps on every data set, and the mean over the sets (without intervals).

    Args:
        results: Of every data set, failed ones too; may be empty.
    """
    metric, rows = "mIoU", list[TableRow]()
    for name in dict.fromkeys(name for result in results for name in result.mean_iou):
        own = {each.name: Measured(each.mean_iou[name]) for each in results if name in each.mean_iou}
        defined = [one.value for one in own.values() if one.value is not None]
        mean = Measured(float(np.mean(defined)) if defined else None)
        rows.append(
            TableRow(name=name, sets={metric: own}, mean={metric: mean}, num_sets={metric: len(defined)})
        )
    return SetsTable(metrics=(metric,), sets=tuple(each.name for each in results), rows=tuple(rows))


def _row(name: str, rows: Mapping[str, SetRow]) -> TableRow:
    """One row out of the same row of each set."""
    sets, mean, counts = dict[str, Mapping[str, Measured]](), dict[str, Measured](), dict[str, int]()
    for metric in METRICS:
        values = {each: row.of(metric) for each, row in rows.items()}
        sets[metric] = {each: _measured(found) for each, found in values.items()}
        defined = {each: found for each, found in values.items() if not np.isnan(found[0])}
        mean[metric], counts[metric] = _measured(mean_over_sets(defined)), len(defined)
    return TableRow(name=name, sets=sets, mean=mean, num_sets=counts)


def mean_over_sets(values: Mapping[str, Floats]) -> Floats:
    """(1 + R,) mean over the data sets: of all images, then of draws that are independent from set to set.

    Args:
        values: (1 + R,) by name of the data set; where R differs, the least of them counts. None at all: NaN.
    """
    if not values:
        return np.full(1, np.nan)
    draws = min(map(len, values.values())) - 1
    shuffled = []
    for name, found in values.items():
        order = np.random.default_rng(list(name.encode())).permutation(draws)
        shuffled.append(np.concatenate([found[:1], found[1 : 1 + draws][order]]))
    mean: Floats = mean_over_categories(np.stack(shuffled)[:, None])[0]
    return mean


def _measured(values: Floats) -> Measured:
    value = None if np.isnan(values[0]) else float(values[0])
    return Measured(value, interval(value, values[1:]) if len(values) > 1 else None)


def _number(cell: Measured | None) -> str:
    return "-" if cell is None or cell.value is None else f"{cell.value:.3f}"


def _range(cell: Measured | None) -> str:
    return "" if cell is None or cell.interval is None else "{:.3f}-{:.3f}".format(*cell.interval)

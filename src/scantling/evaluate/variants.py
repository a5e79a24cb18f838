"""Several results on one data set, such as the stages of a run or the rows of an ablation, in one table.

Every variant is measured on the same draws of images, so a difference to its base comes with a paired interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.errors import UsageError
from scantling.evaluate.bootstrap import METRICS, Interval, Resampled, interval, weights_with_all
from scantling.evaluate.compare import Difference, difference_of, resampled_metrics
from scantling.evaluate.inputs import IouType, Result

_HEADER = ("AP", "95 % interval", "AP50", "AP75", "APs", "APm", "APl", "AR", "difference", "95 % interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One result.

    Attributes:
        name: Row of the table.
        results: COCO results in the data set's own ids.
        base: Name of the variant it is compared with; None for no comparison.
        group: Heading under which it stands.
        resampled: What an evaluation with the same bootstrap and limit has measured of these results; None measures
            them.
    """

    name: str
    results: Sequence[Result]
    base: str | None = None
    group: str = ""
    resampled: Resampled | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRow:
    """What a variant reaches.

    Attributes:
        name: Of the variant.
        group: Heading under which it stands.
        base: Name of the variant it is compared with.
        metrics: AP, AP50, AP75, APs, APm, APl, AR; None where undefined.
        interval: 95 % interval of AP over images.
        difference: AP minus the base's, with its paired interval.
    """

    name: str
    group: str
    base: str | None
    metrics: dict[str, float | None]
    interval: Interval | None
    difference: Difference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantTable:
    """Rows in the order of the variants.

    Attributes:
        rows: One for each variant.
        num_images: Images measured on.
        num_resamples: Draws of the bootstrap.
    """

    rows: tuple[VariantRow, ...]
    num_images: int
    num_resamples: int

    def to_text(self) -> str:
        """Markdown, which also reads well as it is."""
        lines: list[str] = []
        for group in dict.fromkeys(row.group for row in self.rows):
            rows = [row for row in self.rows if row.group == group]
            lines += [*([f"**{group}**", ""] if group else []), *_markdown(rows), ""]
        return "\n".join(lines).rstrip("\n")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare_variants(
    dataset: CocoDataset,
    variants: Sequence[Variant],
    *,
    iou_type: IouType = "bbox",
    bootstrap: int = 1000,
    seed: int = 0,
    max_detections: int = 100,
) -> VariantTable:
    """Measure all variants on the same draws of images.

    Args:
        dataset: The truth.
        variants: With names of their own; none gives no rows.
        iou_type: Overlap of boxes or of masks.
        bootstrap: Resamples; 0 for no intervals.
        seed: Of the resamples.
        max_detections: Predictions counted per image and category, best first.

    Raises:
        UsageError: Two variants share a name, or a base does not exist.
        DataError: Results that do not belong to the data set or are damaged; with all findings.
    """
    names = [variant.name for variant in variants]
    for name in (n for v in variants for n in (v.name, v.base) if n is not None):
        if names.count(name) != 1:
            raise UsageError(f"{names.count(name)} variants are called {name!r}")
    weights = weights_with_all(len(dataset), bootstrap, seed)
    measure = partial(resampled_metrics, weights=weights, max_detections=max_detections)
    found = {v.name: (v.resampled or measure(dataset, v.results, iou_type)).of(None) for v in variants}
    rows = tuple(_row(variant, found) for variant in variants)
    return VariantTable(rows=rows, num_images=len(dataset), num_resamples=bootstrap)


def _row(variant: Variant, found: dict[str, dict[str, NDArray[np.float64]]]) -> VariantRow:
    own = found[variant.name]
    metrics = {name: None if np.isnan(own[name][0]) else float(own[name][0]) for name in METRICS}
    base = variant.base
    return VariantRow(
        name=variant.name,
        group=variant.group,
        base=base,
        metrics=metrics,
        interval=interval(metrics["AP"], own["AP"][1:]) if own["AP"].size > 1 else None,
        difference=difference_of(None, "AP", found[base]["AP"], own["AP"]) if base is not None else None,
    )


def _markdown(rows: Sequence[VariantRow]) -> list[str]:
    table = [["", *_HEADER], ["---", *["---:"] * len(_HEADER)], *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in table]


def _cells(row: VariantRow) -> list[str]:
    ap, *others = (row.metrics[name] for name in METRICS)
    difference = row.difference
    return [
        row.name,
        _number(ap),
        _range(row.interval, ""),
        *map(_number, others),
        "" if difference is None else _number(difference.difference, "+"),
        "" if difference is None else _range(difference.interval, "+"),
    ]


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _range(found: Interval | None, sign: str) -> str:
    return "-" if found is None else f"{found[0]:{sign}.3f} to {found[1]:{sign}.3f}"

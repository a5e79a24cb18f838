"""Measuring a gate: where the refiner brings a detector's boxes nearer to the labels, and AP up with them.

What a cell is and which rules open it: `refine/gate.py`.

    refined results ─► gains of IoU by cell, AP of each category ─► what each rule opens, for all images (column 0) and
    without each fold (1..F) ─► results of every fold, gated by what its other images opened ─► gain of the rule

I: images, N: results, K: categories, F: folds, R: resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.data.coco.records import told_apart
from scantling.data.coco.results import Result
from scantling.data.detections import detections_of
from scantling.data.truths import truths_of
from scantling.evaluate.bootstrap import Resampled, draw_weights, interval
from scantling.evaluate.compare import difference_of, resampled_metrics
from scantling.ops.overlaps import paired_iou, pairwise_iou
from scantling.refine.apply import ApplyConfig, refine_results
from scantling.refine.bbrefinement import Refiner
from scantling.refine.gate import (
    RULES,
    SIZES,
    GateCell,
    GateConfig,
    Measured,
    RefineGate,
    Rule,
    RuleGain,
    size_of,
)
from scantling.refine.gate_pooling import expected_gains
from scantling.structures.detections import Detections

_SIZE_METRICS = {"small": "APs", "medium": "APm", "large": "APl"}
_EQUAL = 1e-9
"""AP that differs by less does not differ."""


class Gains(NamedTuple):
    """What refining did to each result.

    Attributes:
        images: (N,) position of its image in the data set.
        cells: (N,) number of its cell, or -1 where nothing was refined.
        gains: (N,) change of the IoU with the label it is meant for; NaN where there is none.
    """

    images: NDArray[np.int64]
    cells: NDArray[np.int64]
    gains: NDArray[np.float64]


def tune_gate(
    results: Sequence[Result],
    dataset: CocoDataset,
    refiner: Refiner,
    config: GateConfig,
    apply: ApplyConfig,
    *,
    refiner_sha: str,
) -> RefineGate:
    """Measure where refining helps.

    Args:
        results: Checked COCO results of a detector on images it was not trained on, nor the refiner.
        dataset: Their labels.
        refiner: In evaluation mode.
        config: How to measure.
        apply: How boxes are refined.
        refiner_sha: SHA-256 of the refiner's checkpoint, for the file.

    Raises:
        DataError: An image that has results cannot be read.
    """
    refined, _ = refine_results(results, dataset, refiner, apply)
    before, after = detections_of(results, dataset), detections_of(refined, dataset)
    touched = np.array([a is not b for a, b in zip(results, refined, strict=True)], dtype=bool)
    gains = measure_gains(before, after, touched, dataset, config)
    trial = _Trial.of(dataset, results, refined, gains, config)
    rules, used = _try_rules(trial)
    opened = trial.opened_by(used, 0) if used is not None else frozenset()
    everything = frozenset(gains.cells[gains.cells >= 0].tolist())
    ap = {name: trial.ap(of) for name, of in (("before", ()), ("refined", everything), ("gated", opened))}
    cells = tuple(_describe(trial, number, is_open=number in opened) for number in sorted(everything))
    return RefineGate(refiner=refiner_sha, apply=apply, ap=ap, rule=used, rules=rules, cells=cells)


def measure_gains(
    before: Detections,
    after: Detections,
    touched: NDArray[np.bool_],
    dataset: CocoDataset,
    config: GateConfig,
) -> Gains:
    """What refining did to each result; both lists have the same rows, `touched` (N,) says which were refined."""
    bands = np.searchsorted(config.bands, before.scores, side="right")
    count = len(config.bands) + 1
    cells = (before.labels * len(SIZES) + size_of(before.boxes)) * count + bands
    meant = meant_for(before, dataset, config.min_overlap)
    truth = truths_of(dataset).boxes
    gains = np.full(len(before), np.nan)
    rows = np.flatnonzero(touched & (meant >= 0))
    target = truth[meant[rows]]
    gains[rows] = paired_iou(after.boxes[rows], target) - paired_iou(before.boxes[rows], target)
    return Gains(before.images, np.where(touched, cells, -1), gains)


def meant_for(detections: Detections, dataset: CocoDataset, min_overlap: float) -> NDArray[np.int64]:
    """For each detection (N,) the label it overlaps most, of its category and no crowd; -1 below `min_overlap`.

    Labels are numbered image by image in the data set's order.
    """
    truth = truths_of(dataset)
    meant = np.full(len(detections), -1, dtype=np.int64)
    for image in np.unique(detections.images):
        rows = np.flatnonzero(detections.images == image)
        columns = np.flatnonzero((truth.images == image) & truth.is_object)
        if not len(columns):
            continue
        iou = pairwise_iou(detections.boxes[rows], truth.boxes[columns])
        iou[detections.labels[rows][:, None] != truth.labels[columns][None, :]] = 0
        best = iou.argmax(axis=1)
        found = iou[np.arange(len(rows)), best] >= max(min_overlap, 1e-9)
        meant[rows] = np.where(found, columns[best], -1)
    return meant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """Results before and after refining, and all that the rules look at.

    Attributes:
        dataset: The labels.
        results: Before.
        refined: After.
        gains: What became of each.
        config: How to measure.
        fold_of: (I,) fold of each image.
        weights: (I, 1 + F + R) the images themselves, without each fold, then the resamples.
        before: AP with nothing refined, for each column of the weights.
        after: With everything refined.
    """

    dataset: CocoDataset
    results: Sequence[Result]
    refined: Sequence[Result]
    gains: Gains
    config: GateConfig
    fold_of: NDArray[np.int64]
    weights: NDArray[np.float32]
    before: Resampled
    after: Resampled

    @classmethod
    def of(
        cls,
        dataset: CocoDataset,
        results: Sequence[Result],
        refined: Sequence[Result],
        gains: Gains,
        config: GateConfig,
    ) -> _Trial:
        """Divide the images and evaluate both lists."""
        fold_of = np.random.default_rng(config.seed).permutation(len(dataset)) % config.folds
        outside = np.arange(config.folds) != fold_of[:, None]
        ones = np.ones((len(dataset), 1), dtype=np.float32)
        draws = draw_weights(len(dataset), config.bootstrap, config.seed)
        weights = np.concatenate([ones, outside.astype(np.float32), draws], axis=1)
        before, after = (resampled_metrics(dataset, some, "bbox", weights) for some in (results, refined))
        return cls(
            dataset=dataset, results=results, refined=refined, gains=gains, config=config,
            fold_of=fold_of, weights=weights, before=before, after=after,
        )  # fmt: skip

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that are tried."""
        return RULES if self.config.pool else ("cell",)

    @property
    def cells_per_category(self) -> int:
        """Cell numbers from k times this on are category k's."""
        return len(SIZES) * (len(self.config.bands) + 1)

    @property
    def draws(self) -> NDArray[np.float32]:
        """(I, 1 + R) the images themselves, then the resamples."""
        return np.delete(self.weights, np.s_[1 : 1 + self.config.folds], axis=1)

    def difference(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> Measured | None:
        """Between two rows (1 + F + R,) of values; None where it is undefined."""
        pair = (np.delete(row, np.s_[1 : 1 + self.config.folds]) for row in (first, second))
        found = difference_of(None, "AP", *pair)
        if found.difference is None or found.interval is None:
            return None
        return (found.difference, *found.interval)

    def rows_with(self, refine: NDArray[np.bool_]) -> list[Result]:
        """The results, some of them (N,) refined."""
        triples = zip(self.results, self.refined, refine.tolist(), strict=True)
        return [after if chosen else before for before, after, chosen in triples]

    def ap(self, opened: Collection[int]) -> float | None:
        """Of all images with some cells refined; None where it is undefined."""
        some = self.rows_with(np.isin(self.gains.cells, list(opened)))
        value = float(resampled_metrics(self.dataset, some, "bbox", self.weights[:, :1]).of(None)["AP"][0])
        return None if np.isnan(value) else value

    def gain_of(self, rule: Rule) -> Measured | None:
        """Change of AP when each fold's results are gated by what the other images opened."""
        if rule == "all":
            after = self.after
        else:
            fold = self.fold_of[self.gains.images]
            opened = [list(self.opened_by(rule, 1 + number)) for number in range(self.config.folds)]
            refine = np.zeros(len(fold), dtype=bool)
            for number, cells in enumerate(opened):
                refine |= (fold == number) & np.isin(self.gains.cells, cells)
            after = resampled_metrics(self.dataset, self.rows_with(refine), "bbox", self.weights)
        return self.difference(self.before.of(None)["AP"], after.of(None)["AP"])

    def opened_by(self, rule: Rule, column: int) -> frozenset[int]:
        """Cells that a rule opens when it looks at the images of a column of the weights."""
        seen = self.weights[self.gains.images, column] > 0
        cells = self.gains.cells
        rows = np.flatnonzero(seen & (cells >= 0) & ~np.isnan(self.gains.gains))
        if not self.config.pool:
            return frozenset(
                number for number in np.unique(cells[rows]).tolist() if self.is_sure(rows, number)
            )
        if rule in ("category", "size"):
            return self._opened_together(rule, rows, column)
        if not self.is_enough(rows):
            return frozenset()
        if rule == "all":
            return frozenset(cells[seen & (cells >= 0)].tolist())
        expected = expected_gains(
            self.gains.gains[rows], self.gains.images[rows], cells[rows], self.cells_per_category
        )
        return frozenset(cell for cell, gain in expected.items() if gain > 0)

    def _opened_together(self, rule: Rule, rows: NDArray[np.int64], column: int) -> frozenset[int]:
        """Cells of the categories whose AP rises, or of the sizes and bands whose IoU does."""
        cells, gains = self.gains.cells[rows], self.gains.gains[rows]
        if rule == "category":
            groups = cells // self.cells_per_category
            rises = self.after.per_category[:, 0, column] - self.before.per_category[:, 0, column] > _EQUAL
        else:
            groups = cells % self.cells_per_category
            rises = np.bincount(groups, weights=gains, minlength=self.cells_per_category) > 0
        return frozenset(
            cell
            for group in np.flatnonzero(rises)
            if self.is_enough(rows[groups == group])
            for cell in cells[groups == group].tolist()
        )

    def is_enough(self, rows: NDArray[np.int64]) -> bool:
        """Whether some results are enough to judge by."""
        images = np.unique(self.gains.images[rows])
        return len(rows) >= self.config.min_matches and len(images) >= self.config.min_images

    def is_sure(self, rows: NDArray[np.int64], number: int) -> bool:
        """Whether a cell's own results, of these rows, got nearer to their labels beyond doubt."""
        own = rows[self.gains.cells[rows] == number]
        gain = _mean_with_interval(self.gains.gains[own], self.gains.images[own], self.draws)
        return gain is not None and gain[1] > 0 and self.is_enough(own)


def _try_rules(trial: _Trial) -> tuple[tuple[RuleGain, ...], Rule | None]:
    """What each rule gives, and the one to use: of those that surely help the best, of equal ones what opens less."""
    everything = len(np.unique(trial.gains.cells[trial.gains.cells >= 0]))
    opens: dict[Rule, int] = {rule: len(trial.opened_by(rule, 0)) for rule in trial.rules}
    found = {rule: trial.gain_of(rule) for rule in dict.fromkeys(("all", *trial.rules))}
    used: Rule | None = None
    best = 0.0
    for rule in sorted(opens, key=lambda rule: opens[rule]):
        gain = found[rule]
        if opens[rule] and gain is not None and gain[1] > 0 and gain[0] > best + _EQUAL:
            used, best = rule, gain[0]
    rules = (
        RuleGain(rule=rule, opened=everything if rule == "all" else opens[rule], gain=gain)
        for rule, gain in found.items()
    )
    return tuple(rules), used


def _describe(trial: _Trial, number: int, *, is_open: bool) -> GateCell:
    """A cell with what its own results say."""
    config, gains = trial.config, trial.gains
    edges = (0.0, *config.bands, 1.0)
    group, band = divmod(number, len(config.bands) + 1)
    label, size = divmod(group, len(SIZES))
    rows = np.flatnonzero((gains.cells == number) & ~np.isnan(gains.gains))
    metric = _SIZE_METRICS[SIZES[size]]
    return GateCell(
        category=told_apart(trial.dataset.class_names)[label],
        size=SIZES[size],
        band=(edges[band], edges[band + 1]),
        open=is_open,
        matches=len(rows),
        images=len(np.unique(gains.images[rows])),
        gain=_mean_with_interval(gains.gains[rows], gains.images[rows], trial.draws),
        ap_gain=trial.difference(trial.before.of(label)[metric], trial.after.of(label)[metric]),
        pooled=is_open and not trial.is_sure(rows, number),
    )


def _mean_with_interval(
    values: NDArray[np.float64], images: NDArray[np.int64], weights: NDArray[np.float32]
) -> Measured | None:
    """Mean of values (N,) and its interval when their images are drawn anew; None for no values."""
    if not len(values):
        return None
    length = len(weights)
    sums = np.bincount(images, weights=values, minlength=length) @ weights
    counts = np.bincount(images, minlength=length) @ weights
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    found = interval(float(means[0]), means[1:], bounds=(-1.0, 1.0))
    return None if found is None else (float(means[0]), *found)

"""Measuring a gate: where the refiner brings a detector's boxes nearer to the labels, and AP up with them.

What a cell is and when it is open: `refine/gate.py`. I: images, N: results, R: resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.data.coco.records import told_apart
from scantling.data.coco.results import Result
from scantling.data.detections import detections_of
from scantling.data.truths import labels_of, overlaps, row_overlaps
from scantling.evaluate.bootstrap import Resampled, draw_weights, interval
from scantling.evaluate.compare import difference_of, resampled_metrics
from scantling.refine.apply import ApplyConfig, refine_results
from scantling.refine.bbrefinement import Refiner
from scantling.refine.gate import SIZES, GateCell, GateConfig, Measured, RefineGate, Size, size_of
from scantling.structures.detections import Detections

_SIZE_METRICS = {"small": "APs", "medium": "APm", "large": "APl"}


class Gains(NamedTuple):
    """What refining did to each result.

    Attributes:
        cells: (N,) number of its cell, or -1 where nothing was refined.
        gains: (N,) change of the IoU with the label it is meant for; NaN where there is none.
    """

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
    weights = _weights(len(dataset), config)
    cells = _judge_overlap(gains, before, dataset, config, weights)
    trial = _Trial(dataset, results, refined, gains.cells, weights)
    decided = _judge_ap(cells, trial, pool=config.pool)
    opened = {number for number, cell in decided.items() if cell.open}
    everything = {number for number in gains.cells.tolist() if number >= 0}
    ap = {name: trial.ap(of) for name, of in (("before", set()), ("refined", everything), ("gated", opened))}
    return RefineGate(
        refiner=refiner_sha,
        apply=apply,
        ap=ap,
        cells=tuple(decided[number] for number in sorted(decided)),
    )


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
    truth = labels_of(dataset).boxes
    gains = np.full(len(before), np.nan)
    rows = np.flatnonzero(touched & (meant >= 0))
    target = truth[meant[rows]]
    gains[rows] = row_overlaps(after.boxes[rows], target) - row_overlaps(before.boxes[rows], target)
    return Gains(np.where(touched, cells, -1), gains)


def meant_for(detections: Detections, dataset: CocoDataset, min_overlap: float) -> NDArray[np.int64]:
    """For each detection (N,) the label it overlaps most, of its category and no crowd; -1 below `min_overlap`.

    Labels are numbered image by image in the data set's order.
    """
    truth = labels_of(dataset)
    meant = np.full(len(detections), -1, dtype=np.int64)
    for image in np.unique(detections.images):
        rows = np.flatnonzero(detections.images == image)
        columns = np.flatnonzero((truth.images == image) & ~truth.is_crowd)
        if not len(columns):
            continue
        iou = overlaps(detections.boxes[rows], truth.boxes[columns])
        iou[detections.labels[rows][:, None] != truth.labels[columns][None, :]] = 0
        best = iou.argmax(axis=1)
        found = iou[np.arange(len(rows)), best] >= max(min_overlap, 1e-9)
        meant[rows] = np.where(found, columns[best], -1)
    return meant


def _weights(num_images: int, config: GateConfig) -> NDArray[np.float32]:
    """(I, 1 + R): the images themselves, then each resample."""
    measured = np.ones((num_images, 1), dtype=np.float32)
    return np.concatenate([measured, draw_weights(num_images, config.bootstrap, config.seed)], axis=1)


class _Judged(NamedTuple):
    """A cell, and what overlaps say of it.

    Attributes:
        cell: Closed as yet.
        own: 1 refining helps, -1 it harms, 0 undecided.
        joins: It holds too little, and what the likes of it hold together says that refining helps.
    """

    cell: GateCell
    own: int
    joins: bool


def _judge_overlap(
    gains: Gains,
    before: Detections,
    dataset: CocoDataset,
    config: GateConfig,
    weights: NDArray[np.float32],
) -> dict[int, _Judged]:
    """Every cell that holds refined results, with the verdict of their IoU."""
    edges, places = (0.0, *config.bands, 1.0), len(SIZES) * (len(config.bands) + 1)
    meant, scarce = ~np.isnan(gains.gains), defaultdict[int, list[int]](list)
    names, found = told_apart(dataset.class_names), dict[int, tuple[GateCell, int]]()
    for number in np.unique(gains.cells[gains.cells >= 0]).tolist():
        group, band = divmod(number, len(config.bands) + 1)
        label, size = divmod(group, len(SIZES))
        rows = np.flatnonzero((gains.cells == number) & meant)
        gain, enough = _evidence(gains.gains[rows], before.images[rows], config, weights)
        cell = GateCell(
            category=names[label],
            size=SIZES[size],
            band=(edges[band], edges[band + 1]),
            open=False,
            matches=len(rows),
            images=len(np.unique(before.images[rows])),
            gain=gain,
        )
        found[number] = (cell, _verdict(gain, enough))
        if config.pool and not enough:
            scarce[number % places].append(number)
    helped = set()
    for numbers in scarce.values():
        rows = np.flatnonzero(np.isin(gains.cells, numbers) & meant)
        if _verdict(*_evidence(gains.gains[rows], before.images[rows], config, weights)) > 0:
            helped |= {number for number in numbers if _not_worse(found[number][0].gain)}
    return {number: _Judged(cell, own, number in helped) for number, (cell, own) in found.items()}


def _evidence(
    values: NDArray[np.float64],
    images: NDArray[np.int64],
    config: GateConfig,
    weights: NDArray[np.float32],
) -> tuple[Measured | None, bool]:
    """Mean of some results' gains with its interval, and whether they are enough to judge by."""
    enough = len(values) >= config.min_matches and len(np.unique(images)) >= config.min_images
    return _mean_with_interval(values, images, weights), enough


def _verdict(gain: Measured | None, enough: bool = True) -> int:  # noqa: FBT001, FBT002 - read as words
    """1 if a gain is above 0 beyond doubt, -1 if it is below, else 0."""
    if gain is None or not enough:
        return 0
    return int(gain[1] > 0) - int(gain[2] < 0)


def _not_worse(gain: Measured | None) -> bool:
    return gain is not None and gain[0] >= 0


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


@dataclass(frozen=True, slots=True)
class _Trial:
    """Results before and after refining, to be evaluated with some cells refined, once with the same ones."""

    dataset: CocoDataset
    results: Sequence[Result]
    refined: Sequence[Result]
    cells: NDArray[np.int64]
    weights: NDArray[np.float32]
    _known: dict[frozenset[int], Resampled] = field(default_factory=dict)

    def with_refined(self, numbers: Set[int]) -> list[Result]:
        """The results, those of some cells refined."""
        chosen = np.isin(self.cells, list(numbers)).tolist()
        triples = zip(self.results, self.refined, chosen, strict=True)
        return [after if refine else before for before, after, refine in triples]

    def metrics(self, numbers: Set[int]) -> Resampled:
        """Of the results with some cells refined, on every draw of the images."""
        key = frozenset(numbers)
        if key not in self._known:
            found = resampled_metrics(self.dataset, self.with_refined(numbers), "bbox", self.weights)
            self._known[key] = found
        return self._known[key]

    def ap(self, numbers: Set[int]) -> float | None:
        """Of all images, None where it is undefined."""
        found = self._known.get(frozenset(numbers))
        if found is None:
            images = self.weights[:, :1]
            found = resampled_metrics(self.dataset, self.with_refined(numbers), "bbox", images)
        value = float(found.of(None)["AP"][0])
        return None if np.isnan(value) else value


def _judge_ap(cells: Mapping[int, _Judged], trial: _Trial, *, pool: bool) -> dict[int, GateCell]:
    """The cells, open where AP rose too: first those whose IoU is sure on its own, then the others together."""
    sure = {number for number, judged in cells.items() if judged.own > 0}
    together = {number for number, judged in cells.items() if judged.joins}
    decided = {number: judged.cell for number, judged in cells.items()}
    if not sure and not together:
        return decided
    first = trial.metrics(set())
    alone = trial.metrics(sure) if sure else first
    label_of = {name: label for label, name in enumerate(told_apart(trial.dataset.class_names))}
    for number in sure:
        cell = decided[number]
        gain = _ap_gain(first, alone, label_of[cell.category], cell.size)
        decided[number] = cell.model_copy(update={"ap_gain": gain, "open": _verdict(gain) > 0})
        if _verdict(gain) == 0 and pool:
            together.add(number)
    if not together:
        return decided
    opened = {number for number, cell in decided.items() if cell.open}
    base = alone if opened == sure else trial.metrics(opened)
    joined = trial.metrics(opened | together)
    rose = {size for size in SIZES if _verdict(_ap_gain(base, joined, None, size)) > 0}
    for number in together:
        cell = decided[number]
        gain = _ap_gain(base, joined, label_of[cell.category], cell.size)
        helps = cell.size in rose and (gain is None or gain[0] >= 0)
        decided[number] = cell.model_copy(update={"ap_gain": gain, "open": helps, "pooled": helps})
    return decided


def _ap_gain(first: Resampled, second: Resampled, label: int | None, size: Size) -> Measured | None:
    """Change of the AP of a category (None for the mean of all) at a size; None where it is undefined."""
    metric = _SIZE_METRICS[size]
    found = difference_of(None, metric, first.of(label)[metric], second.of(label)[metric])
    if found.difference is None or found.interval is None:
        return None
    return (found.difference, *found.interval)

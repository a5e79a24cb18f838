"""Where refining helps: measured on validation (or out-of-fold) predictions, kept as a small file, obeyed later.

    results ── refine all ──► before and after ── IoU with the label each result is meant for ──► gain per cell
                                    └── AP with the cells that gained refined ──► gain per category and size
    cell = category x size (small, medium, large) x score band

A cell is open if both gains are above 0 beyond doubt: if the lower ends of their intervals over the images are; it is
closed if one is below 0 beyond doubt. A cell that holds too little to say either, as most do with few images or many
categories, goes with all categories of its size and score band together, unless its own boxes became worse on average.
Where they cannot say either, it stays closed: refining never happens where it was not shown to help. (The paper finds
that small objects and precise detectors can lose.) Sizes are COCO's, by the area of the box before refining.

C: categories, S: sizes, Q: score bands, I: images, N: results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from scantling import strict_yaml
from scantling.data.coco import CocoDataset
from scantling.data.coco_results import Result
from scantling.data.detections import Detections, detections_of
from scantling.evaluate.bootstrap import draw_weights, interval
from scantling.evaluate.compare import difference_of, resampled_metrics
from scantling.ops.boxes import pairwise_iou
from scantling.refine.apply import ApplyConfig, refine_results, truth_columns
from scantling.refine.bbrefinement import Refiner
from scantling.refine.crops import Boxes
from scantling.refine.validation import overlaps

Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = ("small", "medium", "large")
LIMITS = (32.0**2, 96.0**2)
_SIZE_METRICS = {"small": "APs", "medium": "APm", "large": "APl"}

Share = Annotated[float, Field(ge=0, le=1)]
Measured = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


class GateConfig(BaseModel):
    """How a gate is measured.

    Attributes:
        bands: Scores at which a new band begins, rising.
        min_overlap: A result is meant for the label of its category that it overlaps most, if by at least this IoU.
        min_matches: A cell with fewer results that are meant for a label says nothing on its own.
        min_images: The same for the number of images they come from.
        pool: Such cells, and undecided ones, go with all categories of their size and score band. False closes them.
        bootstrap: Resamples of the images.
        seed: Of the resamples.
        apply: How boxes are refined; null takes the settings in the refiner's checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] = (0.3, 0.6)
    min_overlap: Share = 0.3
    min_matches: Annotated[int, Field(ge=2)] = 20
    min_images: Annotated[int, Field(ge=2)] = 8
    pool: bool = True
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    apply: ApplyConfig | None = None

    @field_validator("bands")
    @classmethod
    def _rising(cls, bands: tuple[float, ...]) -> tuple[float, ...]:
        if list(bands) != sorted(set(bands)):
            raise ValueError(f"must rise, found {list(bands)}")
        return bands


class GateCell(BaseModel):
    """One cell and the evidence.

    Attributes:
        category: Name.
        size: Of the box before refining.
        band: Scores from (included) and to.
        open: Whether to refine here.
        matches: Results that are meant for a label.
        images: Number of images they come from.
        gain: Mean change of their IoU with it, and its 95 % interval over the images; null where undefined.
        ap_gain: Change of the category's AP at this size when all cells that gained IoU are refined, likewise.
        pooled: Open because of all categories of its size and band together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: str
    size: Size
    band: Annotated[tuple[float, float], Field(strict=False)]
    open: bool
    matches: int
    images: int
    gain: Annotated[tuple[float, float, float] | None, Field(strict=False)] = None
    ap_gain: Annotated[tuple[float, float, float] | None, Field(strict=False)] = None
    pooled: bool = False


class RefineGate(BaseModel):
    """Where to refine.

    Attributes:
        refiner: SHA-256 of the refiner's checkpoint.
        apply: How boxes were refined when it was measured.
        ap: On the results it was measured on: AP `before`, with all boxes `refined`, and `gated` with this gate.
        cells: Every cell that held results; what is not listed is closed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    refiner: str
    apply: ApplyConfig
    ap: dict[str, float | None] = Field(default_factory=dict)
    cells: tuple[GateCell, ...] = ()

    def allows(self, detections: Detections, class_names: Sequence[str]) -> NDArray[np.bool_]:
        """For each detection (N,) whether its cell is open.

        Args:
            detections: With the boxes before refining.
            class_names: Of the data set they belong to; matched by name.
        """
        allowed = np.zeros(len(detections), dtype=bool)
        sizes, labels = size_of(detections.boxes), {name: label for label, name in enumerate(class_names)}
        for cell in self.cells:
            if cell.open and cell.category in labels:
                low, high = cell.band
                inside = (detections.scores >= low) & ((detections.scores < high) | (high >= 1))
                inside &= (detections.labels == labels[cell.category]) & (sizes == SIZES.index(cell.size))
                allowed |= inside
        return allowed

    def to_yaml(self) -> str:
        """As a file."""
        return strict_yaml.dump(self.model_dump(mode="json"))

    def to_text(self) -> str:
        """A table for people, open cells first."""
        opened = sum(cell.open for cell in self.cells)
        lines = [f"{opened} of {len(self.cells)} cells are open"]
        if self.ap:
            values = ("undefined" if v is None else f"{v:.3f}" for v in self.ap.values())
            lines.append("AP " + ", ".join(f"{n} {v}" for n, v in zip(self.ap, values, strict=True)))
        lines += [_line(cell) for cell in sorted(self.cells, key=lambda cell: not cell.open)]
        return "\n".join(lines)


def size_of(boxes: Boxes) -> NDArray[np.int64]:
    """Position in SIZES of each box (N, 4) xyxy."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.searchsorted(LIMITS, areas, side="left").astype(np.int64)


class Gains(NamedTuple):
    """What refining did to each result.

    Attributes:
        cells: (N,) number of its cell, or -1 where nothing was refined.
        gains: (N,) change of the IoU with the label it is meant for; NaN where there is none.
    """

    cells: NDArray[np.int64]
    gains: NDArray[np.float64]


def tune_gate(
    results: Sequence[Result], dataset: CocoDataset, refiner: Refiner, config: GateConfig, *, refiner_sha: str
) -> RefineGate:
    """Measure where refining helps.

    Args:
        results: Checked COCO results of a detector on images it was not trained on, nor the refiner.
        dataset: Their labels.
        refiner: In evaluation mode.
        config: How to measure; with `apply`.
        refiner_sha: SHA-256 of the refiner's checkpoint, for the file.

    Raises:
        ValueError: `config.apply` is missing.
        DataError: An image that has results cannot be read.
    """
    if config.apply is None:
        raise ValueError("tune_gate: expected settings of refining in config.apply, found none")
    refined, _ = refine_results(results, dataset, refiner, config.apply)
    before, after = detections_of(results, dataset), detections_of(refined, dataset)
    touched = np.array([a is not b for a, b in zip(results, refined, strict=True)], dtype=bool)
    gains = measure_gains(before, after, touched, dataset, config)
    weights = _weights(len(dataset), config)
    cells = _judge_overlap(gains, before, dataset, config, weights)
    rows = _rows_in(gains, {number: judged.cell for number, judged in cells.items()})
    gained = [refined[i] if i in rows else result for i, result in enumerate(results)]
    decided = _judge_ap(cells, dataset, (results, gained), weights)
    opened = _rows_in(gains, decided)
    gated = [refined[i] if i in opened else result for i, result in enumerate(results)]
    lists = {"before": results, "refined": refined, "gated": gated}
    ap = {name: _ap(dataset, found) for name, found in lists.items()}
    return RefineGate(
        refiner=refiner_sha,
        apply=config.apply,
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
    truth = truth_columns(dataset)[0]
    gains = np.full(len(before), np.nan)
    rows = np.flatnonzero(touched & (meant >= 0))
    gains[rows] = overlaps(after.boxes[rows], truth[meant[rows]]) - overlaps(
        before.boxes[rows], truth[meant[rows]]
    )
    return Gains(np.where(touched, cells, -1), gains)


def meant_for(detections: Detections, dataset: CocoDataset, min_overlap: float) -> NDArray[np.int64]:
    """For each detection (N,) the label it overlaps most, of its category and no crowd; -1 below `min_overlap`.

    Labels are numbered image by image in the data set's order.
    """
    truth, images, labels, crowd = truth_columns(dataset)
    meant = np.full(len(detections), -1, dtype=np.int64)
    for image in np.unique(detections.images):
        rows, columns = np.flatnonzero(detections.images == image), np.flatnonzero((images == image) & ~crowd)
        if not len(columns):
            continue
        iou = pairwise_iou(torch.from_numpy(detections.boxes[rows]), torch.from_numpy(truth[columns])).numpy()
        iou[detections.labels[rows][:, None] != labels[columns][None, :]] = 0
        best = iou.argmax(axis=1)
        found = iou[np.arange(len(rows)), best] >= max(min_overlap, 1e-9)
        meant[rows] = np.where(found, columns[best], -1)
    return meant


def _weights(num_images: int, config: GateConfig) -> NDArray[np.float32]:
    """(I, 1 + R): the images themselves, then each resample."""
    measured = np.ones((num_images, 1), dtype=np.float32)
    return np.concatenate([measured, draw_weights(num_images, config.bootstrap, config.seed)], axis=1)


class _Judged(NamedTuple):
    """A cell, and what overlaps say of it: 1 refining helps, -1 it harms, 0 undecided."""

    cell: GateCell
    own: int
    pool: int


def _judge_overlap(
    gains: Gains,
    before: Detections,
    dataset: CocoDataset,
    config: GateConfig,
    weights: NDArray[np.float32],
) -> dict[int, _Judged]:
    """Every cell that holds refined results, open where their IoU rose or, if they are few, where that of all did."""
    edges = (0.0, *config.bands, 1.0)
    places = len(SIZES) * (len(config.bands) + 1)
    pools = np.where(gains.cells >= 0, gains.cells % places, -1)
    pooled: dict[int, int] = {}
    for number in np.unique(pools[pools >= 0]).tolist():
        rows = np.flatnonzero((pools == number) & ~np.isnan(gains.gains))
        pooled[number] = _verdict(*_evidence(gains.gains[rows], before.images[rows], config, weights))
    judged = {}
    for number in np.unique(gains.cells[gains.cells >= 0]).tolist():
        group, band = divmod(number, len(config.bands) + 1)
        label, size = divmod(group, len(SIZES))
        rows = np.flatnonzero((gains.cells == number) & ~np.isnan(gains.gains))
        images = before.images[rows]
        gain, enough = _evidence(gains.gains[rows], images, config, weights)
        own, pool = _verdict(gain, enough), pooled[number % places] if config.pool else 0
        cell = GateCell(
            category=dataset.class_names[label],
            size=SIZES[size],
            band=(edges[band], edges[band + 1]),
            open=own > 0 or (own == 0 and pool > 0 and (gain is None or gain[0] >= 0)),
            matches=len(rows),
            images=len(np.unique(images)),
            gain=gain,
        )
        judged[number] = _Judged(cell, own, pool)
    return judged


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


def _judge_ap(
    cells: Mapping[int, _Judged],
    dataset: CocoDataset,
    pair: tuple[Sequence[Result], Sequence[Result]],
    weights: NDArray[np.float32],
) -> dict[int, GateCell]:
    """The cells, closed where neither the AP of their category and size nor that of all at this size rose for sure."""
    if not any(judged.cell.open for judged in cells.values()):
        return {number: judged.cell for number, judged in cells.items()}
    first, second = (resampled_metrics(dataset, list(results), "bbox", weights) for results in pair)

    def gain_of(label: int | None, size: Size) -> Measured | None:
        metric = _SIZE_METRICS[size]
        found = difference_of(None, metric, first.of(label)[metric], second.of(label)[metric])
        if found.difference is None or found.interval is None:
            return None
        return (found.difference, *found.interval)

    of_all = {size: _verdict(gain_of(None, size)) for size in SIZES}
    decided = {}
    for number, (cell, own, pool) in cells.items():
        if not cell.open:
            decided[number] = cell
            continue
        gain = gain_of(dataset.class_names.index(cell.category), cell.size)
        ap = _verdict(gain)
        alone = own > 0 and ap > 0
        together = not alone and ap >= 0 and pool > 0 and of_all[cell.size] > 0
        changes = {"ap_gain": gain, "open": alone or together, "pooled": together}
        decided[number] = cell.model_copy(update=changes)
    return decided


def _rows_in(gains: Gains, cells: Mapping[int, GateCell]) -> frozenset[int]:
    """Rows of the results in open cells."""
    numbers = [number for number, cell in cells.items() if cell.open]
    return frozenset(np.flatnonzero(np.isin(gains.cells, numbers)).tolist())


def _ap(dataset: CocoDataset, results: Sequence[Result]) -> float | None:
    weights = np.ones((len(dataset), 1), dtype=np.float32)
    value = float(resampled_metrics(dataset, list(results), "bbox", weights).of(None)["AP"][0])
    return None if np.isnan(value) else value


def _line(cell: GateCell) -> str:
    state = "refine" if cell.open else "keep"
    place = f"{cell.category}, {cell.size}, score {cell.band[0]:g} to {cell.band[1]:g}"
    results = f"{cell.matches} results" + (", with all categories" if cell.pooled else "")
    return f"{state:<7} {place}: IoU {_shown(cell.gain)}, AP {_shown(cell.ap_gain)} ({results})"


def _shown(gain: tuple[float, float, float] | None) -> str:
    return "unknown" if gain is None else f"{gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]"

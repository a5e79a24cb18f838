"""How far AP depends on which images happened to be taken: resampled averages and their intervals.

    detections matched once ─► per category, size and IoU: hits in score order, false detections between them
    images drawn with replacement, R times ─► (I, R) weights ─► AP of each draw by weighted running sums

Drawing an image twice is giving its objects the weight 2: copies of a detection have the score of the original
and so stand beside it. Precision is highest, between two changes of recall, just after a hit, so false
detections matter only by their number between hits; a sparse product counts them for all draws at once.
A category that a draw has no truth of is undefined there and left out of that draw's mean, as COCO does.
(Detections of one image and category with equal scores keep together as one weighted detection each; real
copies would interleave.)

Interpolated precision is a running maximum, so AP of a draw is on average higher than AP of the images themselves,
with few objects per category by more than the width of the interval. Intervals are therefore the percentiles moved
so that their median is the measured value: they say how far AP on as many other images would lie.

Dims: I images, R resamples, K categories, A area ranges, T IoU thresholds, N hits over all thresholds, M metrics.
Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scantling.evaluate.backends import IOU_THRESHOLDS
from scantling.evaluate.outcomes import MatchedDetections

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
"""Averages that are resampled; AR is that of all sizes at the largest detection limit, COCO's AR100."""

LEVEL = 0.95
_RECALLS = np.linspace(0.0, 1.0, 101)
_UNREACHABLE = [i for i in range(101) if i / 100 < _RECALLS[i]]
_BLOCK = 1000  # resamples at once
_CELLS = 8_000_000  # numbers per array at once
_MIN_DEFINED = 0.5

Interval = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampled:
    """Metrics of every resample; NaN where one is undefined.

    Attributes:
        overall: (M, R) in the order of METRICS.
        per_category: (K, M, R).
    """

    overall: Floats
    per_category: Floats

    def of(self, label: int | None) -> dict[str, Floats]:
        """(R,) values of each metric, of one category or of the mean over categories."""
        rows = self.overall if label is None else self.per_category[label]
        return dict(zip(METRICS, rows, strict=True))


def draw_weights(num_images: int, resamples: int, seed: int = 0) -> NDArray[np.float32]:
    """(I, R) how often each draw of I images with replacement has each image.

    Args:
        num_images: I; 0 gives an empty array.
        resamples: R.
        seed: Same seed and number of images, same draws: two results are then compared on the same images.
    """
    weights = np.zeros((num_images, resamples), dtype=np.float32)
    generator = np.random.default_rng(seed)
    for column in range(resamples if num_images else 0):
        drawn = generator.integers(0, num_images, num_images)
        weights[:, column] = np.bincount(drawn, minlength=num_images)
    return weights


def weights_with_all(num_images: int, resamples: int, seed: int = 0) -> NDArray[np.float32]:
    """(I, 1 + R): every image once, which is the measurement itself, then the draws of `draw_weights`."""
    measured = np.ones((num_images, 1), dtype=np.float32)
    return np.concatenate([measured, draw_weights(num_images, resamples, seed)], axis=1)


def resample(outcomes: MatchedDetections, weights: NDArray[np.float32]) -> Resampled:
    """AP of weighted images, for every column of weights.

    Args:
        outcomes: Matched detections.
        weights: (I, R) whole numbers; a column of ones is the evaluation itself.
    """
    blocks = [weights[:, start : start + _BLOCK] for start in range(0, weights.shape[1], _BLOCK)]
    parts = [_resample_block(outcomes, np.ascontiguousarray(block)) for block in blocks]
    shape = (outcomes.num_classes, len(METRICS), 0)
    per_category = np.concatenate([np.zeros(shape), *parts], axis=-1)
    return Resampled(overall=mean_over_categories(per_category), per_category=per_category)


def mean_over_categories(values: Floats) -> Floats:
    """(M, R) mean over the first dimension without the NaN; NaN where nothing is defined."""
    counts = (~np.isnan(values)).sum(axis=0)
    return np.where(counts > 0, np.nansum(values, axis=0) / np.maximum(counts, 1), np.nan)


def interval(measured: float | None, values: Floats, bounds: Interval = (0.0, 1.0)) -> Interval | None:
    """95 % interval around a measured value; None where it, or more than half of the resamples, are undefined.

    Args:
        measured: The value of the images themselves.
        values: (R,) of the resamples, NaN where undefined.
        bounds: What the interval stays within.
    """
    moved = centre(measured, values)
    if moved is None:
        return None
    low, high = np.clip(np.quantile(moved, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), *bounds)
    return float(low), float(high)


def centre(measured: float | None, values: Floats) -> Floats | None:
    """The defined ones of resampled values, moved so that their median is the measured one; None as in `interval`."""
    defined = values[~np.isnan(values)]
    if measured is None or not len(defined) or len(defined) < _MIN_DEFINED * len(values):
        return None
    return defined - np.median(defined) + measured


# ---------------------------------------------------------------- one block of resamples


def _resample_block(outcomes: MatchedDetections, weights: NDArray[np.float32]) -> Floats:
    """(K, M, R) metrics of every category."""
    values = np.full((outcomes.num_classes, len(METRICS), weights.shape[1]), np.nan)
    num_truths = _weighted_truths(outcomes, weights)
    starts = np.searchsorted(outcomes.labels, np.arange(outcomes.num_classes + 1))
    for label in range(outcomes.num_classes):
        rows = slice(starts[label], starts[label + 1])
        for area in np.flatnonzero(num_truths[label].any(axis=-1)):
            ranking = _ranking(outcomes, rows, int(area))
            average = _average_precision(ranking, weights, num_truths[label, area])
            for metric, found in _metrics(average, int(area)).items():
                values[label, METRICS.index(metric)] = found
            if area == 0:
                values[label, METRICS.index("AR")] = _average_recall(
                    ranking, weights, num_truths[label, area]
                )
    return values


def _metrics(average: Floats, area: int) -> Mapping[str, Floats]:
    """Metrics out of the (T, R) average precision at one size."""
    whole = average.mean(axis=0)
    return {"AP": whole, "AP50": average[0], "AP75": average[5]} if area == 0 else {METRICS[2 + area]: whole}


def _weighted_truths(outcomes: MatchedDetections, weights: NDArray[np.float32]) -> Floats:
    """(K, A, R) number of truths of each category and size."""
    num_areas = outcomes.truth_counts.shape[1]
    truth, area = np.nonzero(outcomes.truth_counts)
    rows = outcomes.truth_labels[truth] * num_areas + area
    shape = (outcomes.num_classes * num_areas, outcomes.num_images)
    counts = _sparse_counts(rows, outcomes.truth_images[truth], shape)
    truths = np.asarray(counts @ weights, dtype=np.float64)
    return truths.reshape(outcomes.num_classes, num_areas, -1)


def _sparse_counts(
    rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]
) -> sparse.csr_array:
    ones = np.ones(len(rows), dtype=np.float32)
    return sparse.csr_array((ones, (rows, columns)), shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranking:
    """The hits of one category and size in score order, one IoU threshold after the other.

    Attributes:
        images: (N,) image of each hit.
        ends: (T,) where each threshold's hits end.
        false_since: (N, I) false detections of each image since the hit before.
    """

    images: NDArray[np.int64]
    ends: NDArray[np.int64]
    false_since: sparse.csr_array


def _ranking(outcomes: MatchedDetections, rows: slice, area: int) -> _Ranking:
    images = outcomes.images[rows]
    is_hit = outcomes.is_hit[rows, area].T
    is_false = outcomes.is_counted[rows, area].T & ~is_hit
    ends = np.cumsum(is_hit.sum(axis=1))
    next_hit = np.cumsum(is_hit, dtype=np.int64).reshape(is_hit.shape)
    threshold, position = np.nonzero(is_false & (next_hit < ends[:, None]))
    shape = (int(ends[-1]), outcomes.num_images)
    return _Ranking(
        images=images[np.nonzero(is_hit)[1]],
        ends=ends,
        false_since=_sparse_counts(next_hit[threshold, position], images[position], shape),
    )


def _average_precision(ranking: _Ranking, weights: NDArray[np.float32], num_truths: Floats) -> Floats:
    """(T, R) average precision; NaN where there is no truth, 0 where there is no hit."""
    average = np.zeros((len(IOU_THRESHOLDS), weights.shape[1]))
    step = max(1, _CELLS // max(1, len(ranking.images)))
    for start in range(0, weights.shape[1] if len(ranking.images) else 0, step):
        columns = slice(start, start + step)
        part = np.ascontiguousarray(weights[:, columns])
        ranked = np.stack([part[ranking.images], np.asarray(ranking.false_since @ part)], axis=1)
        for index, (low, high) in enumerate(zip([0, *ranking.ends], ranking.ends, strict=False)):
            if high > low:
                average[index, columns] = _area_under(ranked[low:high], num_truths[columns])
    average[:, num_truths == 0] = np.nan
    return average


def _average_recall(ranking: _Ranking, weights: NDArray[np.float32], num_truths: Floats) -> Floats:
    """(R,) recall over all detections, averaged over the IoU thresholds; NaN where there is no truth."""
    found = np.bincount(ranking.images, minlength=len(weights)) @ weights.astype(np.float64)
    recall: Floats = np.full(len(num_truths), np.nan)
    defined = num_truths > 0
    recall[defined] = found[defined] / num_truths[defined] / len(IOU_THRESHOLDS)
    return recall


def _area_under(ranked: NDArray[np.float32], num_truths: Floats) -> Floats:
    """(R,) mean of the 101 interpolated precisions.

    Args:
        ranked: (N, 2, R) weight of each hit and of the false detections since the one before. Written to.
        num_truths: (R,) truths to be found.
    """
    _accumulate(np.add, ranked)
    found = ranked[:, 0].astype(np.float64)
    precision = found / np.maximum(ranked[:, 0] + ranked[:, 1], 1)
    _accumulate(np.maximum, precision[::-1])
    reached = _recalls_reached(found, num_truths)
    area = reached[0] * precision[0]
    area += np.einsum("nr,nr->r", reached[1:] - reached[:-1], precision[1:])
    mean: Floats = area / len(_RECALLS)
    return mean


def _accumulate(function: np.ufunc, rows: NDArray[np.floating]) -> None:
    """Running sums or maxima down the rows, in place; row by row, as numpy's own is slow along columns."""
    for index in range(1, len(rows)):
        function(rows[index - 1], rows[index], out=rows[index])


def _recalls_reached(found: Floats, num_truths: Floats) -> Floats:
    """(N, R) how many of the 101 recalls 0, 0.01, ... are reached with so many truths found.

    A recall of exactly i/100 falls short of those i for which the float i * 0.01 is a little larger, as in COCO.
    """
    reached = found * (100 / np.maximum(num_truths, 1))
    reached += 1 + 1e-9
    np.floor(reached, out=reached)
    for recall in _UNREACHABLE:
        columns = np.flatnonzero(num_truths * recall % 100 == 0)
        if len(columns):
            reached[:, columns] -= found[:, columns] == num_truths[columns] * recall / 100
    return reached

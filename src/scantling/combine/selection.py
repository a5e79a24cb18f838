"""Which of several settings is best, for all categories and for each, as far as the images can tell.

A setting that looks best on some images owes part of that to these images. So the choice is cross-validated: the
images are split into folds; for each fold the best setting is chosen on the images outside it and applied to those
inside. The detections of all folds together give one AP, of images on which nothing was chosen, and its difference
to the AP of the setting it is compared with is the gain. The gain holds if its whole 95 % interval, from a paired
bootstrap over the images, is above 0.

    outcomes of every setting ─┬─► AP without each fold ─► choice for each fold ─► detections of all folds ─► gain
                               └─► AP of all images ─────► the choice that is used if the gain holds

First one setting for all categories is chosen so, by mean AP, against the one in use; then one for each category, by
its own AP, against that one. The common choice has then seen all images, which can only hide a category's gain.

Dims: S settings, K categories, F folds, I images, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from scantling.evaluate.bootstrap import (
    METRICS,
    Interval,
    Resampled,
    draw_weights,
    interval,
    mean_over_categories,
    resample,
)
from scantling.evaluate.outcomes import MatchedDetections

_AP = METRICS.index("AP")
_EQUAL = 1e-9  # AP that differs by less does not differ

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class SelectionConfig(BaseModel):
    """How sure a choice has to be.

    Attributes:
        per_category: Also choose for each category; else only for all together.
        folds: Parts the images are split into, at random.
        min_objects: A category with fewer truths keeps the common setting.
        bootstrap: Resamples of the images for the interval of a gain.
        seed: Of the folds and resamples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_category: bool = True
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    min_objects: Annotated[int, Field(ge=1)] = 20
    bootstrap: Annotated[int, Field(ge=20, le=100_000)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the best setting of one category, or of the best common one.

    Attributes:
        setting: Position of the best one on all images.
        num_objects: Truths.
        before: AP with the setting it is compared with; None where there is no truth.
        after: AP with the best one, on the very images that chose it.
        gain: Cross-validated difference.
        interval: 95 % interval of the gain; None where it is undefined.
        kept: Whether the best one is used.
        reason: Why, or why not.
    """

    setting: int
    num_objects: int
    before: float | None
    after: float | None
    gain: float | None
    interval: Interval | None
    kept: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The settings to use.

    Attributes:
        overall: About one setting for all categories, by mean AP.
        by_category: About each category's own, in label order; empty if none was looked for.
    """

    overall: Verdict
    by_category: tuple[Verdict, ...]

    @property
    def common(self) -> int:
        """The setting of categories that keep none of their own; 0 is the one in use before."""
        return self.overall.setting if self.overall.kept else 0

    def setting_of(self, label: int) -> int:
        """The setting of a category."""
        own = self.by_category[label] if self.by_category else None
        return own.setting if own is not None and own.kept else self.common


def select(settings: Sequence[MatchedDetections], config: SelectionConfig) -> Selection:
    """Choose among settings; see the module's head.

    Args:
        settings: What became of the detections with each of S settings, of the same images; the first is the one in
            use. The same settings in another order may only change which of several equally good ones is taken.
        config: Folds and what is asked of a gain.
    """
    trial = _Comparison.of(settings, config)
    counts = _count_truths(settings[0])
    mean = mean_over_categories(trial.averages.transpose(1, 0, 2))
    choice = _choose(mean, 0)
    before, after = (trial.resampled(found) for found in (settings[0], trial.stitched(choice[None, 1:])))
    overall = _verdict(
        (int(choice[0]), 0), mean[:, 0], after.overall[_AP] - before.overall[_AP], (counts.sum(), 1)
    )
    common = overall.setting if overall.kept else 0
    return Selection(
        overall=overall,
        by_category=_by_category(trial, common, counts, config) if config.per_category else (),
    )


def average_precisions(outcomes: MatchedDetections, weights: NDArray[np.float32] | None = None) -> Floats:
    """(K, R) AP of each category, NaN where undefined.

    Args:
        outcomes: Matched detections.
        weights: (I, R) how often each image counts; None: each once (R = 1).
    """
    ones = np.ones((outcomes.num_images, 1), dtype=np.float32)
    return resample(outcomes, ones if weights is None else weights).per_category[:, _AP]


def stitch(settings: Sequence[MatchedDetections], which: Ints, fold_of: Ints) -> MatchedDetections:
    """Detections of each category and fold from the setting that serves it.

    Args:
        settings: S of them.
        which: (K, F) setting of each category and fold.
        fold_of: (I,) fold of each image.
    """
    parts = []
    for position in np.unique(which):
        found = settings[position]
        parts.append((found, which[found.labels, fold_of[found.images]] == position))
    columns = {
        name: np.concatenate([getattr(found, name)[rows] for found, rows in parts])
        for name in ("labels", "images", "scores", "is_hit", "is_counted")
    }
    order = np.lexsort((columns["images"], -columns["scores"], columns["labels"]))
    first = settings[0]
    return MatchedDetections(
        num_images=first.num_images,
        num_classes=first.num_classes,
        truth_labels=first.truth_labels,
        truth_images=first.truth_images,
        truth_counts=first.truth_counts,
        **{name: column[order] for name, column in columns.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Comparison:
    """What is common to all comparisons.

    Attributes:
        settings: S of them.
        fold_of: (I,).
        averages: (S, K, 1 + F) AP of all images, then without each fold.
        weights: (I, 1 + R) all images, then the draws.
    """

    settings: Sequence[MatchedDetections]
    fold_of: Ints
    averages: Floats
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, settings: Sequence[MatchedDetections], config: SelectionConfig) -> _Comparison:
        num_images = settings[0].num_images
        places = np.random.default_rng(config.seed).permutation(num_images)
        fold_of = places % config.folds
        outside = np.arange(config.folds) != fold_of[:, None]
        ones = np.ones((num_images, 1), dtype=np.float32)
        used = np.concatenate([ones, outside.astype(np.float32)], axis=1)
        draws = draw_weights(num_images, config.bootstrap, config.seed)
        return cls(
            settings=settings,
            fold_of=fold_of,
            averages=np.stack([average_precisions(found, used) for found in settings]),
            weights=np.concatenate([ones, draws], axis=1),
        )

    def stitched(self, which: Ints) -> MatchedDetections:
        """Detections of each fold from the settings (K, F), or (1, F) for all categories, chosen without it."""
        num_classes = self.averages.shape[1]
        return stitch(self.settings, np.broadcast_to(which, (num_classes, which.shape[1])), self.fold_of)

    def resampled(self, outcomes: MatchedDetections) -> Resampled:
        return resample(outcomes, self.weights)


def _by_category(
    trial: _Comparison, common: int, counts: Ints, config: SelectionConfig
) -> tuple[Verdict, ...]:
    """Each category's own best setting against the common one."""
    choice = _choose(trial.averages, common)
    pair = (trial.settings[common], trial.stitched(choice[:, 1:]))
    before, after = (trial.resampled(found).per_category[:, _AP] for found in pair)
    return tuple(
        _verdict(
            (int(choice[label, 0]), common),
            trial.averages[:, label, 0],
            after[label] - before[label],
            (counts[label], config.min_objects),
        )
        for label in range(len(counts))
    )


def _choose(averages: Floats, common: int) -> Ints:
    """Position of the best of S settings (first dimension); the common one where no other is better."""
    best: Ints = np.where(np.isnan(averages), -1.0, averages).argmax(axis=0)
    gain = np.take_along_axis(averages, best[None], axis=0)[0] - averages[common]
    return np.where(gain > _EQUAL, best, common)


def _verdict(
    setting_common: tuple[int, int], averages: Floats, gains: Floats, count_needed: tuple[int, int]
) -> Verdict:
    """About one choice.

    Args:
        setting_common: The best setting, and the one it is compared with.
        averages: (S,) AP with each setting.
        gains: (1 + R,) cross-validated differences, the measured one first.
        count_needed: Number of truths, and how many there have to be.
    """
    (setting, common), (count, needed) = setting_common, count_needed
    gain = _defined(gains[0])
    found = interval(gain, gains[1:], bounds=(-1.0, 1.0))
    holds = found is not None and found[0] > 0
    if count == 0:
        reason = "no objects"
    elif setting == common:
        reason = "nothing better"
    elif count < needed:
        reason = f"too few objects (< {needed})"
    else:
        reason = "gain holds" if holds else "gain does not hold"
    return Verdict(
        setting=setting,
        num_objects=int(count),
        before=_defined(averages[common]),
        after=_defined(averages[setting]),
        gain=gain,
        interval=found,
        kept=holds and setting != common and bool(count >= needed),
        reason=reason,
    )


def _count_truths(outcomes: MatchedDetections) -> Ints:
    """(K,) truths to be found, of any size."""
    return np.bincount(
        outcomes.truth_labels[outcomes.truth_counts[:, 0]], minlength=outcomes.num_classes
    ).astype(np.int64)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

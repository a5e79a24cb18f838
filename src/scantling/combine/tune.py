"""Settings of suppression and weights of an ensemble, from predictions on images that were not trained on.

    candidates before suppression ─ every option of the grid ─► outcomes ─ select ─► SuppressConfig
    members' detections ─ weights changed one member at a time ─► outcomes ─ select ─► EnsembleConfig

A category has a setting of its own only where the gain holds on images that did not choose it; see `selection`.
K: categories, M: members, S: settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.selection import Selection, SelectionConfig, average_precisions, select, stitch
from scantling.combine.tuned import Tuned, rows_of
from scantling.data.coco.dataset import CocoDataset
from scantling.errors import UsageError
from scantling.evaluate.inputs import EvalInputs, IouType
from scantling.evaluate.outcomes import MatchedDetections, PairedInputs
from scantling.models.suppression import DEFAULT, SuppressConfig, by_category, suppress_detections
from scantling.ops.suppress_options import SuppressMethod
from scantling.settings.fields import Fraction, NonNegative, Positive
from scantling.structures.detections import Detections

_FIELDS = ("method", "iou_threshold", "sigma")

Floats = NDArray[np.float64]
T = TypeVar("T")


class Option(NamedTuple):
    """One way to suppress.

    Attributes:
        method: As in `SuppressConfig`.
        value: The IoU threshold; for `soft_gaussian` sigma; for `none` nothing.
    """

    method: SuppressMethod
    value: float = 0.0

    def __str__(self) -> str:
        return self.method if self.method == "none" else f"{self.method} {self.value:g}"


class TuneConfig(SelectionConfig):
    """What is tried, and how sure a choice has to be.

    Attributes:
        methods: Ways to suppress.
        iou_thresholds: Tried with `hard` and `soft_linear`.
        sigmas: Tried with `soft_gaussian`.
        weight_factors: By these the weight of one member at a time is multiplied; 0 leaves the member out.
        rounds: How often, each time from the weights that are best so far.
    """

    methods: tuple[SuppressMethod, ...] = ("hard", "soft_linear", "soft_gaussian")
    iou_thresholds: tuple[Fraction, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    sigmas: tuple[Positive, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
    weight_factors: tuple[NonNegative, ...] = (0.0, 0.25, 0.5, 2.0, 4.0)
    rounds: Annotated[int, Field(ge=1, le=10)] = 2

    def options(self) -> list[Option]:
        """The grid of suppression."""
        values = {"none": (0.0,), "soft_gaussian": self.sigmas}
        return [
            Option(method, value)
            for method in self.methods
            for value in values.get(method, self.iou_thresholds)
        ]


# ---------------------------------------------------------------- suppression


def tune_suppression(
    candidates: Detections,
    dataset: CocoDataset,
    base: SuppressConfig,
    config: TuneConfig,
    *,
    max_detections: int = 100,
    iou_type: IouType = "bbox",
) -> Tuned[SuppressConfig]:
    """Method and threshold of suppression for all categories, and for those for which another is surely better.

    The search looks at each category as if it had the image for itself, up to the detections per image and category
    that are evaluated (100 by COCO). `max_per_image` couples the categories: it is applied to the end result, and
    should the settings found be worse together than `base` on these very images, `base` is returned.

    Args:
        candidates: Before suppression, of all test-time scales.
        dataset: The truth.
        base: The settings in use. Its score threshold, `min_score` and `max_per_image` stay as they are.
        config: Grid and cross-validation.
        max_detections: Detections counted per image and category, best first.
        iou_type: Whether AP of boxes or of masks decides; for masks, each candidate has one. Boxes suppress either way.

    Returns:
        `base` with the settings found: one value for all categories, or a mapping with those that differ.

    Raises:
        UsageError: There is no object to tune on.
        ConfigError: `base` names a category that does not exist.
    """
    names = _require_objects(dataset)
    considered = candidates[_considered(candidates, base, names)]
    paired = PairedInputs.of(EvalInputs.over(considered, dataset, iou_type))
    in_use, grid = _options_of(base, names), config.options()
    limit = min(max_detections, base.max_per_image or max_detections)
    ways = list(dict.fromkeys([*in_use, *grid]))
    outcomes = {
        option: paired.outcomes(
            *suppress_detections(considered, _alone(base, option), names), max_detections=limit
        )
        for option in ways
    }
    selection = select([_by_label(outcomes, in_use), *(outcomes[option] for option in grid)], config)
    found = _suppression(base, selection, (in_use, grid), names)
    before, after = (
        _mean_ap(
            paired.outcomes(*suppress_detections(considered, settings, names), max_detections=max_detections)
        )
        for settings in (base, found)
    )
    words = [[str(option), *map(str, grid)] for option in in_use]
    rows = rows_of(selection, names, [*words, ["as it is", *map(str, grid)]])
    return Tuned(config=found, rows=rows, before=before, after=after).or_base(base)


def _require_objects(dataset: CocoDataset) -> tuple[str, ...]:
    """Category names of a data set with something to find in it."""
    if not dataset.num_objects:
        raise UsageError(
            f"{dataset.file}: no objects to tune on",
            hint="Give labelled images that the detector was not trained on.",
        )
    return dataset.class_names


def _considered(candidates: Detections, base: SuppressConfig, names: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) candidates above the score threshold of their category."""
    scores, labels = torch.from_numpy(candidates.scores), torch.from_numpy(candidates.labels)
    above: NDArray[np.bool_] = base.thresholds(names).considered(scores, labels).numpy()
    return above


def _options_of(base: SuppressConfig, names: Sequence[str]) -> list[Option]:
    """What each category has now."""
    columns = [_each(getattr(base, field), field, names) for field in _FIELDS]
    return [
        Option(method, {"none": 0.0, "soft_gaussian": sigma}.get(method, threshold))
        for method, threshold, sigma in zip(*columns, strict=True)
    ]


def _alone(base: SuppressConfig, option: Option) -> SuppressConfig:
    """An option for all categories, which do not compete for the places of an image."""
    given = {field: value for field in _FIELDS if (value := _value_of(option, field)) is not None}
    return base.model_copy(update={**given, "max_per_image": None})


def _each(value: T | dict[str, T], field: str, names: Sequence[str]) -> list[T]:
    found = by_category(field, value, names)
    return found if isinstance(found, list) else [found] * len(names)


def _by_label(outcomes: Mapping[Option, MatchedDetections], options: Sequence[Option]) -> MatchedDetections:
    """Detections of each category from the option that it has."""
    ways = list(dict.fromkeys(options))
    which = np.array([[ways.index(option)] for option in options])
    settings = [outcomes[option] for option in ways]
    return stitch(settings, which, np.zeros(settings[0].num_images, dtype=np.int64))


def _suppression(
    base: SuppressConfig,
    selection: Selection,
    in_use_and_grid: tuple[Sequence[Option], Sequence[Option]],
    names: Sequence[str],
) -> SuppressConfig:
    """The settings in use with what was selected."""
    in_use, grid = in_use_and_grid
    settings = [selection.setting_of(label) for label in range(len(names))]
    chosen = [grid[setting - 1] if setting else own for setting, own in zip(settings, in_use, strict=True)]
    common = grid[selection.common - 1] if selection.common else None
    return base.model_copy(
        update={
            field: _compressed(chosen, _common_value(base, common, field), field, names) for field in _FIELDS
        }
    )


def _common_value(base: SuppressConfig, common: Option | None, field: str) -> Any:
    """What a field is for categories without a setting of their own."""
    chosen = None if common is None else _value_of(common, field)
    given = getattr(base, field)
    if chosen is not None or not isinstance(given, dict):
        return given if chosen is None else chosen
    return given[DEFAULT] if DEFAULT in given else Counter(given.values()).most_common(1)[0][0]


def _value_of(option: Option, field: str) -> Any:
    """What an option says about a field; None if nothing."""
    if field == "method":
        return option.method
    used = {"hard": "iou_threshold", "soft_linear": "iou_threshold", "soft_gaussian": "sigma"}
    return option.value if used.get(option.method) == field else None


def _compressed(options: Sequence[Option], common: Any, field: str, names: Sequence[str]) -> Any:
    """One value, or a mapping with the categories that differ from it."""
    values = [_value_of(option, field) for option in options]
    own = {
        name: value
        for name, value in zip(names, values, strict=True)
        if value is not None and value != common
    }
    return {DEFAULT: common, **own} if own else common


def _mean_ap(outcomes: MatchedDetections) -> float | None:
    """Mean over the categories that have truths."""
    values = average_precisions(outcomes)[:, 0]
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


# ---------------------------------------------------------------- weights


def tune_weights(
    members: Mapping[str, Detections],
    dataset: CocoDataset,
    base: EnsembleConfig,
    config: TuneConfig,
    *,
    max_detections: int = 100,
) -> Tuned[EnsembleConfig]:
    """Weights of an ensemble's members for all categories, and for those for which others are surely better.

    Coordinate search: the weight of one member at a time is multiplied by each factor, `rounds` times from what is
    best so far by mean AP of all images. What was tried is then what every category chooses from, cross-validated;
    only the set of what is tried in later rounds has seen all images.

    Args:
        members: Detections of each, after suppression.
        dataset: The truth.
        base: The settings in use.
        config: Factors and cross-validation.
        max_detections: Detections counted per image and category, best first.

    Returns:
        `base` with the weights found: one for all categories, or a mapping with those that differ.

    Raises:
        UsageError: There is no object to tune on, or fewer than two members.
        ConfigError: `base` names a member or category that does not exist.
    """
    names = _require_objects(dataset)
    if len(members) < 2:
        raise UsageError("weights are tuned of two or more members", hint="Give several results files.")

    truths = EvalInputs.over(Detections.empty(), dataset)

    def fuse(table: Floats) -> MatchedDetections:
        settings = base.model_copy(update={"weights": _weights(table, table, list(members), names)})
        fused = ensemble_detections(members, settings, names)
        paired, rows = PairedInputs.of(truths.replace_detections(fused)), np.arange(len(fused))
        return paired.outcomes(rows, fused.scores, max_detections=max_detections)

    tables, outcomes = _search_weights(base.weight_table(list(members), names), fuse, config)
    selection = select(outcomes, config)
    chosen = np.stack([tables[selection.setting_of(k)][:, k] for k in range(len(names))], axis=1)
    weights = _weights(chosen, tables[selection.common], list(members), names)
    words = [[_words(table[:, k]) for table in tables] for k in range(len(names))]
    rows = rows_of(selection, names, [*words, ["as it is", *(_words(table[:, 0]) for table in tables[1:])]])
    found = base.model_copy(update={"weights": weights})
    return Tuned(config=found, rows=rows, before=_mean_ap(outcomes[0]), after=_mean_ap(fuse(chosen))).or_base(
        base
    )


def _search_weights(
    start: Floats, fuse: Callable[[Floats], MatchedDetections], config: TuneConfig
) -> tuple[list[Floats], list[MatchedDetections]]:
    """Every table (M, K) of weights that was tried, the given one first, and what came of it."""
    tables, outcomes = [start], [fuse(start)]
    averages = [_mean_ap(outcomes[0]) or 0.0]
    for _ in range(config.rounds):
        centre = tables[int(np.argmax(averages))]
        for table in _neighbours(centre, config.weight_factors):
            if not any(_same(table, other) for other in tables):
                tables.append(table)
                outcomes.append(fuse(table))
                averages.append(_mean_ap(outcomes[-1]) or 0.0)
    return tables, outcomes


def _neighbours(table: Floats, factors: Sequence[float]) -> list[Floats]:
    """Tables in which the weight of one member is multiplied; every category keeps a member."""
    found = []
    for member in range(len(table)):
        for factor in factors:
            changed = table.copy()
            changed[member] *= factor
            if changed.any(axis=0).all():
                found.append(changed)
    return found


def _same(table: Floats, other: Floats) -> bool:
    """Whether two tables say the same: only the ratios within a category matter."""
    return np.allclose(table / table.max(axis=0), other / other.max(axis=0))


def _weights(
    table: Floats, common: Floats, members: Sequence[str], names: Sequence[str]
) -> dict[str, float | dict[str, float]]:
    """Weights as a configuration has them: of each member one, or a mapping with the categories that differ."""
    found: dict[str, float | dict[str, float]] = {}
    for name, row, usual in zip(members, table.tolist(), common.tolist(), strict=True):
        default = Counter(usual).most_common(1)[0][0]
        own = {category: value for category, value in zip(names, row, strict=True) if value != default}
        found[name] = {DEFAULT: default, **own} if own else default
    return found


def _words(weights: Floats) -> str:
    """Weights of the members, in order, in words."""
    return " : ".join(f"{weight:g}" for weight in weights)

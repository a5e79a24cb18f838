"""Weights of an ensemble's members, from predictions on images that were not trained on.

    members' detections ─ weights changed one member at a time, and each one's AP ─► outcomes ─ select ─► EnsembleConfig

By AP of boxes or of masks, whichever counts. K: categories, M: members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.selection import average_precisions, select
from scantling.combine.tune import Floats, TuneConfig, mean_ap, require_objects
from scantling.combine.tuned import Tuned, rows_of
from scantling.data.coco.dataset import CocoDataset
from scantling.errors import UsageError
from scantling.evaluate.inputs import EvalInputs, IouType
from scantling.evaluate.outcomes import MatchedDetections, PairedInputs
from scantling.models.suppression import DEFAULT
from scantling.structures.detections import Detections

_DIGITS = 4  # of an AP as a weight


def tune_weights(
    members: Mapping[str, Detections],
    dataset: CocoDataset,
    base: EnsembleConfig,
    config: TuneConfig,
    *,
    max_detections: int = 100,
    iou_type: IouType = "bbox",
) -> Tuned[EnsembleConfig]:
    """Weights of an ensemble's members for all categories, and for those for which others are surely better.

    Coordinate search: the weight of one member at a time is multiplied by each factor, `rounds` times from what is
    best so far by mean AP of all images; by masks, each member's own AP is tried as its weight too. What was tried is
    then what every category chooses from, cross-validated; only the set of what is tried in later rounds has seen all
    images. With the rules `ap` and `category_ap` nothing is searched.

    Args:
        members: Detections of each, after suppression.
        dataset: The truth.
        base: The settings in use.
        config: Factors, rule and cross-validation.
        max_detections: Detections counted per image and category, best first.
        iou_type: Whether AP of boxes or of masks decides; for masks, what has none does not count.

    Returns:
        `base` with the weights found: one for all categories, or a mapping with those that differ.

    Raises:
        UsageError: There is no object to tune on, or fewer than two members.
        ConfigError: `base` names a member or category that does not exist.
        DataError: A member has no mask where masks are matched.
    """
    names = require_objects(dataset)
    if len(members) < 2:
        raise UsageError("weights are tuned of two or more members", hint="Give several results files.")
    truths = EvalInputs.over(Detections.empty(), dataset, iou_type)

    def outcomes_of(found: Detections) -> MatchedDetections:
        counted = found if iou_type == "bbox" else found[found.has_mask]
        paired, rows = PairedInputs.of(truths.replace_detections(counted)), np.arange(len(counted))
        return paired.outcomes(rows, counted.scores, max_detections=max_detections)

    def fuse(table: Floats) -> MatchedDetections:
        settings = base.model_copy(update={"weights": _weights(table, table, list(members), names)})
        return outcomes_of(ensemble_detections(members, settings, names))

    start, by_ap = base.weight_table(list(members), names), dict[str, Floats]()
    if iou_type == "segm" or config.weight_rule != "search":
        by_ap = _precisions(np.stack([average_precisions(outcomes_of(m))[:, 0] for m in members.values()]))
    if config.weight_rule != "search":
        return _by_rule(base, [start, by_ap[config.weight_rule]], fuse, config, (list(members), names))
    tables, outcomes = _search_weights([start, *by_ap.values()], fuse, config)
    selection = select(outcomes, config)
    chosen = np.stack([tables[selection.setting_of(k)][:, k] for k in range(len(names))], axis=1)
    weights = _weights(chosen, tables[selection.common], list(members), names)
    words = [[_words(table[:, k]) for table in tables] for k in range(len(names))]
    rows = rows_of(selection, names, [*words, ["as it is", *map(_in_words, tables[1:])]])
    found = base.model_copy(update={"weights": weights})
    return Tuned(config=found, rows=rows, before=mean_ap(outcomes[0]), after=mean_ap(fuse(chosen))).or_base(
        base
    )


def _by_rule(
    base: EnsembleConfig,
    tables: Sequence[Floats],
    fuse: Callable[[Floats], MatchedDetections],
    config: TuneConfig,
    members_and_names: tuple[Sequence[str], Sequence[str]],
) -> Tuned[EnsembleConfig]:
    """The second table of weights (M, K), whether or not it is better than the first; the table says whether."""
    outcomes = [fuse(table) for table in tables]
    selection = select(outcomes, config.model_copy(update={"per_category": False}))
    (row,) = rows_of(selection, (), [["as it is", _in_words(tables[1])]])
    row = replace(
        row, setting=_in_words(tables[1]), kept=True, reason=f"{row.reason}; weights are AP, as asked for"
    )
    members, names = members_and_names
    weights = _weights(tables[1], tables[1], members, names)
    before, after = map(mean_ap, outcomes)
    return Tuned(config=base.model_copy(update={"weights": weights}), rows=(row,), before=before, after=after)


def _precisions(values: Floats) -> dict[str, Floats]:
    """Tables of weights (M, K) out of each member's AP (M, K), NaN where it is undefined: one for all, and by category.

    A category in which it is undefined, or 0 for all members, has the mean over the others; members that are never
    right have equal weights.
    """
    defined = ~np.isnan(values).any(axis=0) & (np.nan_to_num(values) > 0).any(axis=0)  # (K,)
    mean = values[:, defined].mean(axis=1) if defined.any() else np.ones(len(values))  # (M,)
    overall = np.repeat(mean[:, None], values.shape[1], axis=1)
    tables = {"ap": overall, "category_ap": np.where(defined, values, overall)}
    return {name: np.round(table, _DIGITS) for name, table in tables.items()}


def _search_weights(
    first: Sequence[Floats], fuse: Callable[[Floats], MatchedDetections], config: TuneConfig
) -> tuple[list[Floats], list[MatchedDetections]]:
    """Every table (M, K) of weights that was tried, the first given one first, and what came of it."""
    tables, outcomes, averages = list[Floats](), list[MatchedDetections](), list[float]()

    def try_all(given: Sequence[Floats]) -> None:
        for table in given:
            if not any(_same(table, other) for other in tables):
                tables.append(table)
                outcomes.append(fuse(table))
                averages.append(mean_ap(outcomes[-1]) or 0.0)

    try_all(first)
    for _ in range(config.rounds):
        try_all(_neighbours(tables[int(np.argmax(averages))], config.weight_factors))
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


def _in_words(table: Floats) -> str:
    """A table of weights in words: those of the members, and whether they differ by category."""
    alike = (table == table[:, :1]).all()
    return _words(table[:, 0]) if alike else "AP by category"


def _words(weights: Floats) -> str:
    """Weights of the members, in order, in words."""
    return " : ".join(f"{weight:g}" for weight in weights)

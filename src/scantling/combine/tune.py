"""Settings of suppression, from predictions on images that were not trained on.

    candidates before suppression ─ every option of the grid ─► outcomes ─ select ─► SuppressConfig

A category has a setting of its own only where the gain holds on images that did not choose it; see `selection`. What is
tried for the weights of an ensemble (`tune_weights`) stands in the same settings. K: categories, S: settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from scantling.combine.selection import Selection, SelectionConfig, average_precisions, select, stitch
from scantling.combine.semantic import FusionMode
from scantling.combine.tuned import Tuned, rows_of
from scantling.data.coco.dataset import CocoDataset
from scantling.errors import UsageError
from scantling.evaluate.inputs import EvalInputs, IouType
from scantling.evaluate.outcomes import MatchedDetections, PairedInputs
from scantling.models.suppression import DEFAULT, SuppressConfig, by_category, suppress_detections
from scantling.ops.suppress_options import SuppressMethod
from scantling.settings.fields import Fraction, NonNegative, Positive
from scantling.structures.detections import Detections, mask_scores

_FIELDS = ("method", "iou_threshold", "sigma")

Floats = NDArray[np.float64]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


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
        weight_rule: `search` tries these, and each member's AP as its weight, and keeps what surely helps. `ap` takes
            each member's AP as its weight, `category_ap` that of each category, whether or not it helps: the more a
            member is right, the more it counts, as in the mask ensemble of Tao et al. 2023.
        fusion_modes: Ways to fuse masks with score maps, each tried with every score threshold; and none of them.
        fusion_scores: Score thresholds of that fusion.
    """

    methods: tuple[SuppressMethod, ...] = ("hard", "soft_linear", "soft_gaussian")
    iou_thresholds: tuple[Fraction, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    sigmas: tuple[Positive, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
    weight_factors: tuple[NonNegative, ...] = (0.0, 0.25, 0.5, 2.0, 4.0)
    rounds: Annotated[int, Field(ge=1, le=10)] = 2
    weight_rule: Literal["search", "ap", "category_ap"] = "search"
    fusion_modes: tuple[FusionMode, ...] = ("union", "replace", "intersect")
    fusion_scores: tuple[Fraction, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)

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
    names = require_objects(dataset)
    considered = candidates[_considered(candidates, base, names)]
    paired = PairedInputs.of(EvalInputs.over(considered, dataset, iou_type))
    in_use, grid = _options_of(base, names), config.options()
    limit = min(max_detections, base.max_per_image or max_detections)
    ways = list(dict.fromkeys([*in_use, *grid]))
    outcomes = {
        option: paired.outcomes(*_kept(considered, _alone(base, option), names), max_detections=limit)
        for option in ways
    }
    selection = select([outcomes_by_label(outcomes, in_use), *(outcomes[option] for option in grid)], config)
    found = _suppression(base, selection, (in_use, grid), names)
    before, after = (
        mean_ap(paired.outcomes(*_kept(considered, settings, names), max_detections=max_detections))
        for settings in (base, found)
    )
    words = [[str(option), *map(str, grid)] for option in in_use]
    rows = rows_of(selection, names, [*words, ["as it is", *map(str, grid)]])
    return Tuned(config=found, rows=rows, before=before, after=after).or_base(base)


def rows_to_tune(
    candidates: Detections, base: SuppressConfig, config: TuneConfig, class_names: Sequence[str]
) -> NDArray[np.int64]:
    """Rows, ascending, that some option keeps among the `max_per_image` best of an image.

    With these alone, a single category's options are measured as with all: what comes after the best neither removes
    one of them nor lowers its score. Of several categories, what is left out would not come out of an image anyway.

    Args:
        candidates: As in `tune_suppression`.
        base: The settings in use.
        config: Grid.
        class_names: Category names in label order.
    """
    considered = np.flatnonzero(_considered(candidates, base, class_names))
    seen, kept = candidates[considered], np.zeros(len(considered), dtype=bool)
    for option in dict.fromkeys([*_options_of(base, class_names), *config.options()]):
        settings = _alone(base, option).model_copy(update={"max_per_image": base.max_per_image})
        kept[suppress_detections(seen, settings, class_names)[0]] = True
    return considered[kept]


def _kept(
    candidates: Detections, settings: SuppressConfig, names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows that stay, and their scores, by their masks where a detector ranks by them."""
    rows, scores = suppress_detections(candidates, settings, names)
    ious = candidates.mask_ious
    return rows, scores if ious is None else mask_scores(scores, ious[rows])


def require_objects(dataset: CocoDataset) -> tuple[str, ...]:
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


def outcomes_by_label(outcomes: Mapping[K, MatchedDetections], options: Sequence[K]) -> MatchedDetections:
    """Detections of each category from the option that it has.

    Args:
        outcomes: Of every option that a category has.
        options: By label.
    """
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
            field: compressed(
                [_value_of(option, field) for option in chosen], _common_value(base, common, field), names
            )
            for field in _FIELDS
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


def compressed(values: Sequence[Any], common: Any, names: Sequence[str]) -> Any:
    """One value, or a mapping with the categories that differ from it.

    Args:
        values: By label; None where a category does not need the setting.
        common: What the others have.
        names: Category names in label order.
    """
    own = {
        name: value
        for name, value in zip(names, values, strict=True)
        if value is not None and value != common
    }
    return {DEFAULT: common, **own} if own else common


def mean_ap(outcomes: MatchedDetections) -> float | None:
    """Mean over the categories that have truths."""
    values = average_precisions(outcomes)[:, 0]
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None

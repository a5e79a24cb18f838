"""Where and how masks are fused with score maps, from predictions on images that were not trained on.

    detections, score maps ─ every mode with every score threshold, and none ─► outcomes ─ select ─► SemanticConfig

By mask AP; a category has a setting of its own only where the gain holds on images that did not choose it, see
`selection`. K: categories.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import NamedTuple

import numpy as np

from scantling.combine.selection import Selection, select
from scantling.combine.semantic import FusionMode, SemanticConfig, fuse_semantic
from scantling.combine.tune import TuneConfig, compressed, mean_ap, outcomes_by_label, require_objects
from scantling.combine.tuned import Tuned, rows_of
from scantling.data.coco.dataset import CocoDataset
from scantling.errors import DataError
from scantling.evaluate.inputs import EvalInputs
from scantling.evaluate.outcomes import MatchedDetections, PairedInputs
from scantling.structures.detections import Detections
from scantling.structures.score_maps import ScoreMaps


class FusionOption(NamedTuple):
    """One way to fuse.

    Attributes:
        mode: As in `SemanticConfig`.
        score_threshold: As in `SemanticConfig`; 1 fuses nothing.
    """

    mode: FusionMode
    score_threshold: float

    def __str__(self) -> str:
        return "none" if self == _NONE else f"{self.mode} {self.score_threshold:g}"


_NONE = FusionOption("union", 1.0)


def tune_semantic(
    detections: Detections,
    maps: ScoreMaps,
    dataset: CocoDataset,
    base: SemanticConfig,
    config: TuneConfig,
    *,
    max_detections: int = 100,
) -> Tuned[SemanticConfig]:
    """Mode and score threshold for all categories, and for those for which others are surely better, by mask AP.

    While searching, all categories have the same option, so that they claim pixels of one another as they will; should
    the settings found be worse together than `base` on these very images, `base` is returned.

    Args:
        detections: Soft masks pasted; what has no mask does not count.
        maps: Of the same images.
        dataset: The truth, with masks.
        base: The settings in use; its other settings stay as they are.
        config: Options and cross-validation.
        max_detections: Detections counted per image and category, best first.

    Raises:
        UsageError: There is no object to tune on.
        ConfigError: `base` names a category that does not exist.
        DataError: No detection has a mask, or a map is damaged.
    """
    names = require_objects(dataset)
    found = detections[detections.has_mask]
    if len(detections) and not len(found):
        raise DataError("no prediction has a mask, so there is nothing to fuse with score maps")
    truths = EvalInputs.over(Detections.empty(), dataset, "segm")

    def outcomes_with(settings: SemanticConfig) -> MatchedDetections:
        fused = fuse_semantic(found, maps, settings, names).detections
        paired = PairedInputs.of(truths.replace_detections(fused))
        return paired.outcomes(np.arange(len(fused)), fused.scores, max_detections=max_detections)

    pairs = zip(base.modes(names), base.score_thresholds(names).tolist(), strict=True)
    in_use = [_NONE if threshold >= 1 else FusionOption(mode, threshold) for mode, threshold in pairs]
    grid = [_NONE, *(FusionOption(*pair) for pair in product(config.fusion_modes, config.fusion_scores))]
    outcomes = {
        option: outcomes_with(base.model_copy(update=option._asdict()))
        for option in dict.fromkeys([*in_use, *grid])
    }
    selection = select([outcomes_by_label(outcomes, in_use), *(outcomes[option] for option in grid)], config)
    settings = _chosen(base, selection, in_use, grid, names)
    words = [[str(option), *map(str, grid)] for option in in_use]
    rows = rows_of(selection, names, [*words, ["as it is", *map(str, grid)]])
    before, after = mean_ap(outcomes_with(base)), mean_ap(outcomes_with(settings))
    return Tuned(config=settings, rows=rows, before=before, after=after).or_base(base)


def _chosen(
    base: SemanticConfig,
    selection: Selection,
    in_use: list[FusionOption],
    grid: list[FusionOption],
    names: tuple[str, ...],
) -> SemanticConfig:
    """The settings in use with what was selected."""
    settings = [selection.setting_of(label) for label in range(len(names))]
    options = [grid[setting - 1] if setting else own for setting, own in zip(settings, in_use, strict=True)]
    usual = grid[selection.common - 1] if selection.common else Counter(in_use).most_common(1)[0][0]
    return base.model_copy(
        update={
            field: compressed([getattr(option, field) for option in options], getattr(usual, field), names)
            for field in FusionOption._fields
        }
    )

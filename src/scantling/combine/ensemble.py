"""Boxes of several detectors as those of one better detector.

    members {name: Detections} ─► weighted scores ─┬─ wbf, nmw ─► clusters of overlapping boxes ─► one box of each
                                                   ├─ nms, soft_* ─► pooled, as if one detector had found them
                                                   └─ mask_* ─► the same by overlap of masks (`mask_ensemble`)

Some images at a time, all their categories at once. The order of a member's rows does not matter: boxes are taken by
falling weighted score, ties by box (x1, y1, x2, y2) and then by member. K: categories; M: members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from scantling.combine.clusters import Floats
from scantling.combine.fusion import (
    FusedScore,
    fuse_non_maximum,
    fuse_weighted,
    suppress_pooled,
    without_own_duplicates,
)
from scantling.combine.mask_ensemble import (
    MASK_METHODS,
    MASK_PORTION,
    MaskMethod,
    suppress_pooled_masks,
    vote_pooled_masks,
    with_masks,
)
from scantling.combine.pool import BOX_PORTION, Pool, pools
from scantling.errors import ConfigError, DataError, did_you_mean
from scantling.models.suppression import (
    DEFAULT,
    PerCategory,
    SuppressConfig,
    by_category,
    suppress_detections,
)
from scantling.ops.suppress_options import SuppressMethod
from scantling.settings.fields import Fraction, NonNegative, Positive
from scantling.structures.detections import Detections

EnsembleMethod: TypeAlias = Literal[
    "wbf",
    "nmw",
    "nms",
    "soft_linear",
    "soft_gaussian",
    "mask_nms",
    "mask_soft_linear",
    "mask_soft_gaussian",
    "mask_vote",
]

_ROUNDING = 1e-6  # a score may lie outside 0..1 by so much


class EnsembleConfig(BaseModel):
    """How the boxes of several detectors become one set.

    A weight says how much a member's scores count against the other members'; only their ratios matter. With w_m for
    the member of a box, all of one category:

        nmw, nms, soft_*, mask_nms, mask_soft_*
                           a box enters with s · w_m / max w, so the best trusted member's scores stay as they are
        wbf, mask_vote     a cluster of n boxes of scores s_i ends, with W = Σ over all M members of w, at
            mean                      Σ w_i s_i / n · min(n, M) / W: one that few members found counts less
            max                       max w_i s_i / max w
            box_and_model_mean        Σ w_i s_i / Σ w_i · (Σ w of the members in it) / W
            absent_model_aware_mean   Σ w_i s_i / (Σ w_i + Σ w of the members not in it)

    No score leaves [0, 1]: only `mean` could, where a heavy member gives a cluster several boxes, and stops at 1. A
    member of weight 0 is left out, for the category or altogether, as if it were not given.

    Attributes:
        method: `wbf` (weighted boxes fusion), `nmw` (non-maximum weighted), `nms`, or soft-NMS with `soft_linear` or
            `soft_gaussian` decay over the pooled boxes. By masks: `mask_nms`, `mask_soft_linear`, `mask_soft_gaussian`
            are the same by overlap of masks; with `mask_vote` the instances that overlap the best one become one, whose
            mask is their vote. These need a mask for every prediction.
        iou_threshold: Overlap, of masks with `mask_*`, beyond which two boxes of a category are of one object: one for
            all categories, or a mapping from category name to overlap, in which `default` serves the categories that
            are not named.
        weights: Weight of each member, or a mapping from category name to it. What is not named has weight 1, or that
            of `default` in the mapping.
        score: Score of a cluster; used by `wbf` and `mask_vote`.
        own_duplicates: Of a member's own boxes of a category that overlap beyond `iou_threshold`, `drop` lets only the
            best take part, `keep` all, as `ensemble-boxes` does; used by `wbf` and `mask_vote`. What soft-NMS leaves
            would be averaged with better boxes and count as votes: on bccd, fusing a good and a bad detector after
            soft-NMS reached AP 0.469 with all and 0.501 with the best, and the good one alone fell from 0.520 to 0.472
            by passing through the fusion (2026-11-26).
        pixel_share: Share of a cluster's weighted scores that have to agree on a pixel; used by `mask_vote` only.
        score_threshold: Boxes at or below this score, unweighted, are not considered.
        sigma: Width of the gaussian decay.
        min_score: Soft-NMS drops boxes whose decayed score falls below this.
        max_per_image: Boxes kept per image, best first; null keeps all.

    Source:
        Solovyev et al. 2021 (wbf); Zhou et al. 2017 (nmw); Bodla et al. 2017 (soft-NMS); Tao et al. 2023, section 2.3
        (`mask_nms` over pooled models); Dai et al. 2016, "Instance-aware semantic segmentation via multi-task network
        cascades" (mask voting, there within one model and with the best score kept: `score: max`). The variants of
        `score` are those of Solovyev's `ensemble-boxes`, whose numbers these are but for the limit of 1, for
        `own_duplicates`, and for pooled NMS, where it divides by W instead of max w.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: EnsembleMethod = "wbf"
    iou_threshold: PerCategory[Fraction] = 0.55
    weights: dict[str, PerCategory[NonNegative]] = {}
    score: FusedScore = "mean"
    own_duplicates: Literal["drop", "keep"] = "drop"
    pixel_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    score_threshold: Fraction = 0.0
    sigma: Positive = 0.5
    min_score: Fraction = 1e-3
    max_per_image: Annotated[int, Field(ge=1)] | None = None

    @property
    def by_masks(self) -> bool:
        """Whether instances are matched by their masks."""
        return self.method in MASK_METHODS

    def matching_masks(self) -> Self:
        """The settings by overlap of masks instead of boxes: `mask_nms` where no method is set.

        Raises:
            ConfigError: The method makes means of boxes, which is nothing that masks could have.
        """
        by_masks: dict[str, MaskMethod] = {
            "nms": "mask_nms",
            "soft_linear": "mask_soft_linear",
            "soft_gaussian": "mask_soft_gaussian",
        }
        method = self.method if "method" in self.model_fields_set else "nms"
        if method in MASK_METHODS:
            return self
        if method not in by_masks:
            raise ConfigError(
                f"method: {method} makes means of boxes, and masks have none",
                hint="By masks: nms, soft_linear, soft_gaussian or mask_vote.",
            )
        return self.model_copy(update={"method": by_masks[method]})

    def thresholds(self, class_names: Sequence[str]) -> Floats:
        """Overlap threshold by label, (K,).

        Args:
            class_names: Category names in label order.

        Raises:
            ConfigError: A named category does not exist, or one has no value and there is no `default`.
        """
        values = by_category("iou_threshold", self.iou_threshold, class_names)
        return np.broadcast_to(np.array(values, dtype=np.float64), (len(class_names),))

    def weight_table(self, members: Sequence[str], class_names: Sequence[str]) -> Floats:
        """Weight by member and label, (M, K).

        Args:
            members: Their names, in order.
            class_names: Category names in label order.

        Raises:
            ConfigError: A named member or category does not exist, or a category has no member of weight above 0.
        """
        for name in self.weights.keys() - set(members):
            raise ConfigError(
                f"weights: there is no member {name!r}{did_you_mean(name, members)}",
                hint=f"The members are {list(members)}.",
            )
        table = np.ones((len(members), len(class_names)))
        for row, name in zip(table, members, strict=True):
            given = self.weights.get(name, 1.0)
            named = {DEFAULT: 1.0, **given} if isinstance(given, dict) else given
            row[:] = by_category(f"weights.{name}", named, class_names)
        unseen = [name for name, column in zip(class_names, table.T, strict=True) if not column.any()]
        if members and unseen:
            raise ConfigError(f"weights: every member has weight 0 for {unseen}")
        return table


def ensemble_detections(
    members: Mapping[str, Detections], config: EnsembleConfig, class_names: Sequence[str]
) -> Detections:
    """Fuse what several detectors found in the same images.

    Args:
        members: Detections by name, each in any order, finite; members and images may be empty. Boxes of width or
            height 0 overlap nothing and stay as they are, and so do empty masks. For a method of masks, soft masks are
            pasted into the images before (`data.detections.pasted`).
        config: Method, thresholds and weights.
        class_names: Category names in label order.

    Returns:
        Image by image, best first, ties by label and then in the order of the boxes taken; scores in [0, 1].

    Raises:
        ConfigError: The settings name members or categories that do not exist.
        DataError: A member has scores outside 0..1, or no mask where masks are matched.
    """
    if config.by_masks:
        members = with_masks(members)
    weights = config.weight_table(list(members), class_names)
    limits = config.thresholds(class_names)
    for name, member in members.items():
        _require_probabilities(name, member.scores)
    portion = MASK_PORTION if config.by_masks else BOX_PORTION
    parts = []
    for pool in pools(list(members.values()), weights, config.score_threshold, portion):
        fused = _fused(pool, config, limits, weights, class_names)
        parts.append(_best(fused, config.max_per_image))
    return Detections.cat(parts)


def _fused(
    pool: Pool, config: EnsembleConfig, limits: Floats, weights: Floats, class_names: Sequence[str]
) -> Detections:
    """What the method makes of some images' boxes."""
    match config.method:
        case "wbf":
            voices = pool if config.own_duplicates == "keep" else without_own_duplicates(pool, limits)
            return fuse_weighted(voices, limits, weights, config.score)
        case "nmw":
            return fuse_non_maximum(pool, limits, weights)
        case "nms":
            return suppress_pooled(pool, limits, weights)
        case "soft_linear" | "soft_gaussian" as method:
            return _soften(pool.scaled(weights), config, method, class_names)
        case "mask_vote":
            return vote_pooled_masks(
                pool,
                limits,
                weights,
                config.score,
                keeps_duplicates=config.own_duplicates == "keep",
                share=config.pixel_share,
            )
        case "mask_nms" | "mask_soft_linear" | "mask_soft_gaussian" as method:
            return suppress_pooled_masks(
                pool, limits, weights, method, sigma=config.sigma, min_score=config.min_score
            )


def _soften(
    rows: Detections, config: EnsembleConfig, method: SuppressMethod, class_names: Sequence[str]
) -> Detections:
    """Soft-NMS as if one detector had found all boxes."""
    suppression = SuppressConfig(
        method=method,
        iou_threshold=config.iou_threshold,
        sigma=config.sigma,
        score_threshold=0.0,
        min_score=config.min_score,
        max_per_image=config.max_per_image,
    )
    keep, scores = suppress_detections(rows, suppression, class_names)
    return rows[keep].replace(scores=scores)


def _best(found: Detections, max_per_image: int | None) -> Detections:
    """The best of each image, best first."""
    found = found.by_score()
    if max_per_image is None:
        return found
    _, first, counts = np.unique(found.images, return_index=True, return_counts=True)
    return found[np.arange(len(found)) - np.repeat(first, counts) < max_per_image]


def _require_probabilities(name: str, scores: Floats) -> None:
    """Refuse scores that cannot be compared with another detector's."""
    low, high = scores.min(initial=0.0), scores.max(initial=0.0)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise DataError(
            f"{name}: the scores lie in {low:g}..{high:g}, and boxes are fused by their scores",
            hint="Scale them to 0..1.",
        )

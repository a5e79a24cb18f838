"""From scored candidates to detections: settings by category, for one image or for a whole data set at once.

    Instances of one image ── suppress_instances ──► Instances, best first
    Detections of a data set ── suppress_detections ──► rows and scores, image by image, best first

Both give the same for the same boxes. N: boxes; K: categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scantling.errors import ConfigError
from scantling.models.contract import CandidateLimits, Detector
from scantling.ops.nms import suppress
from scantling.ops.suppress_options import SuppressMethod
from scantling.settings.fields import Fraction, Positive
from scantling.structures.detections import Detections
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch

T = TypeVar("T")
PerCategory: TypeAlias = T | dict[str, T]

DEFAULT = "default"
"""The key of a mapping whose value serves the categories that it does not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CategorySettings:
    """What may differ between categories, each for all of them or by label.

    Attributes:
        method: One, or K of them.
        iou_threshold: One, or (K,) float32.
        sigma: One, or (K,) float32.
        score_threshold: One, or (K,) float32.
    """

    method: SuppressMethod | list[SuppressMethod]
    iou_threshold: float | Tensor
    sigma: float | Tensor
    score_threshold: float | Tensor

    def considered(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Which scores are above the threshold of their category, bool (N,).

        Args:
            scores: (N,); compared in single precision.
            labels: (N,) int64.
        """
        limit = self.score_threshold
        return scores.float() > (limit.to(labels.device)[labels] if isinstance(limit, Tensor) else limit)


class SuppressConfig(BaseModel):
    """How scored candidates become detections.

    The first four take one value for all categories, or a mapping from category name to value, in which `default`
    serves the categories that are not named.

    Attributes:
        method: `hard` NMS, soft-NMS with `soft_linear` or `soft_gaussian` decay (Bodla et al. 2017), or `none`.
        iou_threshold: Overlap beyond which a better box removes another (`hard`) or lowers its score (`soft_linear`).
        sigma: Width of the gaussian decay.
        score_threshold: Candidates at or below this score are not considered.
        min_score: Soft-NMS drops boxes whose decayed score falls below this.
        max_per_image: Detections kept per image, best first; null keeps all.
        max_candidates: Candidates that a detector hands on per image (and scale), best first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: PerCategory[SuppressMethod] = "hard"
    iou_threshold: PerCategory[Fraction] = 0.5
    sigma: PerCategory[Positive] = 0.5
    score_threshold: PerCategory[Fraction] = 0.001
    min_score: Fraction = 1e-3
    max_per_image: Annotated[int, Field(ge=1)] | None = 100
    max_candidates: Annotated[int, Field(ge=1)] = 1000

    def limits(self, class_names: Sequence[str]) -> CandidateLimits:
        """What a detector needs not hand on, since it would be dropped here.

        Args:
            class_names: As in `thresholds`.

        Raises:
            ConfigError: See `thresholds`.
        """
        return CandidateLimits(
            score_threshold=self.thresholds(class_names).score_threshold, max_candidates=self.max_candidates
        )

    def thresholds(self, class_names: Sequence[str]) -> CategorySettings:
        """The settings of each category.

        Args:
            class_names: Category names in label order; not needed where every setting is one value.

        Raises:
            ConfigError: A mapping names a category that does not exist, or lacks one and has no `default`.
        """
        method, *numbers = (
            by_category(name, getattr(self, name), class_names)
            for name in ("method", "iou_threshold", "sigma", "score_threshold")
        )
        iou_threshold, sigma, score_threshold = (
            torch.tensor(value) if isinstance(value, list) else value for value in numbers
        )
        return CategorySettings(
            method=method, iou_threshold=iou_threshold, sigma=sigma, score_threshold=score_threshold
        )


def by_category(field: str, value: PerCategory[T], class_names: Sequence[str]) -> T | list[T]:
    """A setting as it applies: the one value, or a value for each category in label order.

    Args:
        field: Name of the setting, for the message.
        value: One for all, or a mapping from category name to value.
        class_names: Category names in label order.

    Raises:
        ConfigError: The mapping names a category that does not exist, or lacks one and has no `default`.
    """
    if not isinstance(value, dict):
        return value
    named = dict(value)
    others = [named.pop(DEFAULT)] if DEFAULT in named else []
    unknown = sorted(named.keys() - set(class_names))
    missing = [] if others else sorted(set(class_names) - named.keys())
    if unknown or missing:
        raise ConfigError(
            f"{field}: unknown categories {unknown}, categories without a value {missing}",
            hint=f"The categories are {list(class_names)}; add `{DEFAULT}` for those not named.",
        )
    return [named[name] if name in named else others[0] for name in class_names]


def suppress_instances(found: Instances, config: SuppressConfig, class_names: Sequence[str]) -> Instances:
    """Remove or down-weight detections that overlap a better one of the same category.

    Args:
        found: Scored instances of one image; may be empty.
        config: Method and thresholds.
        class_names: Category names in label order (used by settings per category only).

    Returns:
        At most `max_per_image` instances, best first, with their (decayed) scores.

    Raises:
        ConfigError: See `SuppressConfig.thresholds`.
        TypeError: The instances are ground truth, which has no scores.
    """
    settings = config.thresholds(class_names)
    found = found[settings.considered(scores_of(found), found.labels)]
    keep, scores = suppress(
        found.boxes,
        scores_of(found),
        found.labels,
        method=settings.method,
        iou_threshold=settings.iou_threshold,
        sigma=settings.sigma,
        min_score=config.min_score,
        max_per_image=config.max_per_image,
    )
    return found[keep].replace(scores=scores)


def detect(
    model: Detector, batch: Batch, config: SuppressConfig | None = None, class_names: Sequence[str] = ()
) -> list[Instances]:
    """All steps of a detector in a row, for one view of the images.

    Args:
        model: In evaluation mode.
        batch: On the model's device.
        config: Suppression; None takes the defaults.
        class_names: Category names in label order (used by settings per category only).

    Returns:
        Detections of each image in the batch's frame, best first; with soft masks where the model has them.

    Raises:
        ConfigError: See `SuppressConfig.thresholds`.
    """
    config = config or SuppressConfig()
    encoded = model.encode(batch)
    candidates = model.candidates(encoded, config.limits(class_names))
    kept = [suppress_instances(found, config, class_names) for found in candidates]
    if not model.has_masks:
        return kept
    masks = model.masks(encoded, kept)
    drawn = [found.replace(masks=own) for found, own in zip(kept, masks, strict=True)]
    if not model.ranks_by_masks:
        return drawn
    ious = model.mask_ious(encoded, kept, masks)
    return [each.replace(mask_ious=own).ranked_by_masks() for each, own in zip(drawn, ious, strict=True)]


def suppress_detections(
    detections: Detections, config: SuppressConfig, class_names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`suppress_instances` for the candidates of many images at once.

    Args:
        detections: Scored boxes, in any order; may be empty.
        config: Method and thresholds. `max_candidates` is not applied: it is a detector's, for each of its views.
        class_names: Category names in label order (used by settings per category only).

    Returns:
        Rows (M,) of the input that stay, and their scores (M,), both image by image, best first, ties by lower row.
        Scores and overlaps are reckoned in single precision; a score that nothing lowered comes back as it was.

    Raises:
        ConfigError: See `SuppressConfig.thresholds`.
    """
    settings = config.thresholds(class_names)
    scores, labels = torch.from_numpy(detections.scores), torch.from_numpy(detections.labels)
    rows = settings.considered(scores, labels).nonzero()[:, 0]
    keep, found = suppress(
        torch.from_numpy(detections.boxes)[rows],
        scores[rows],
        labels[rows],
        torch.from_numpy(detections.images)[rows],
        method=settings.method,
        iou_threshold=settings.iou_threshold,
        sigma=settings.sigma,
        min_score=config.min_score,
        max_per_image=config.max_per_image,
    )
    keep = rows[keep]
    untouched = found == scores[keep].float()
    return keep.numpy(), torch.where(untouched, scores[keep], found.double()).numpy()


def scores_of(found: Instances) -> Tensor:
    """Scores (N,) of predictions; refuses ground truth, which has none."""
    if found.scores is None:
        raise TypeError("expected scored predictions, found ground truth (scores is None)")
    return found.scores

"""How well score maps tell objects from the ground: intersection over union of pixels.

    truth: the masks of the instances, one label per pixel (as a segmenter learns it)     prediction: scores above 0.5
    IoU = pixels that are both / pixels that are either, summed over all images; their mean over the categories

Maps of the foreground of all categories have one IoU; of each category the share of its pixels that is found is told
beside it. The ground has no part in the mean: what VISION'23's report calls mean IoU (its Table 1) lies below 0.5 on
some sets, as a mean with the ground's IoU near 1 cannot. K: categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.models.context_heads import IGNORED, semantic_targets
from scantling.structures.score_maps import CERTAIN, ScoreMap, ScoreMaps

MEAN = "semantic/mIoU"
FOREGROUND = "foreground"


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticEvaluation:
    """What was measured of the maps of a data set.

    Attributes:
        class_names: In label order.
        by_category: Whether the maps tell categories apart.
        common: (P,) pixels that are the plane's in truth and prediction; P is K, or 1 for the foreground of all.
        either: (P,) pixels that are in one of them at least.
        pixels: (K,) pixels of each category in the truth.
        found: (K,) of these, those that the maps call the category's, or the foreground's.
        without: Images that have no map; nothing is called anything there.
    """

    class_names: tuple[str, ...]
    by_category: bool
    common: NDArray[np.int64]
    either: NDArray[np.int64]
    pixels: NDArray[np.int64]
    found: NDArray[np.int64]
    without: int

    @property
    def ious(self) -> dict[str, float | None]:
        """IoU of each category, or of the foreground; None for one that is neither in the truth nor predicted."""
        names = self.class_names if self.by_category else (FOREGROUND,)
        pairs = zip(names, self.common.tolist(), self.either.tolist(), strict=True)
        return {name: common / either if either else None for name, common, either in pairs}

    @property
    def mean_iou(self) -> float | None:
        """Mean of the IoUs that there are."""
        known = [value for value in self.ious.values() if value is not None]
        return sum(known) / len(known) if known else None

    @property
    def shares(self) -> dict[str, float | None]:
        """Share of each category's pixels that is found."""
        pairs = zip(self.class_names, self.found.tolist(), self.pixels.tolist(), strict=True)
        return {name: found / pixels if pixels else None for name, found, pixels in pairs}

    @property
    def metrics(self) -> dict[str, float | None]:
        """For `metrics.json`: `semantic/mIoU`, `semantic/IoU/NAME`, `semantic/found/NAME`."""
        return {
            MEAN: self.mean_iou,
            **{f"semantic/IoU/{name}": value for name, value in self.ious.items()},
            **{f"semantic/found/{name}": value for name, value in self.shares.items()},
        }

    def to_text(self) -> str:
        """A line for each category."""
        known = self.ious if self.by_category else {}
        rows = [(name, known.get(name), share) for name, share in self.shares.items()]
        total = float(self.found.sum() / self.pixels.sum()) if self.pixels.sum() else None
        rows.append(("mean" if self.by_category else FOREGROUND, self.mean_iou, total))
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'':{width}}  {'IoU':>5}  {'found':>5}"]
        lines += [f"{name:{width}}  {_shown(iou):>5}  {_shown(share):>5}" for name, iou, share in rows]
        if self.without:
            lines.append(f"{self.without} images have no map")
        return "\n".join(lines)


def evaluate_score_maps(maps: ScoreMaps, dataset: CocoDataset) -> SemanticEvaluation:
    """Compare score maps with the masks of the instances, at the images' own pixels.

    Args:
        maps: Of the data set's images.
        dataset: With a mask for every annotation; crowds count for nothing.

    Raises:
        DataError: A map is damaged.
        UsageError: An annotation has no mask.
    """
    num_classes = len(dataset.categories)
    counts = np.zeros((4, num_classes), dtype=np.int64)  # common, either, pixels, found; by category
    together = np.zeros(2, dtype=np.int64)
    kinds, without = set[bool](), 0
    for position, record in enumerate(dataset.images):
        one = maps[position]
        without += one is None
        if one is not None:
            kinds.add(one.labels is not None)
        truth = semantic_targets(dataset.instances(position, masks=True), record.size_hw, 1).numpy()
        counted = truth != IGNORED
        for label in _shown_labels(one, truth, num_classes):
            own = truth == label + 1
            called = _called(one, label, record.size_hw) & counted
            both = int((own & called).sum())
            counts[:, label] += (both, int((own | called).sum()), int(own.sum()), both)
        if one is not None and one.labels is None:
            called = _called(one, 0, record.size_hw) & counted
            together += (int((called & (truth > 0)).sum()), int((called | (truth > 0)).sum()))
        else:
            together += (0, int((truth > 0).sum()))
    by_category = True in kinds or not kinds
    return SemanticEvaluation(
        class_names=dataset.class_names,
        by_category=by_category,
        common=counts[0] if by_category else together[:1],
        either=counts[1] if by_category else together[1:],
        pixels=counts[2],
        found=counts[3],
        without=without,
    )


def _shown_labels(one: ScoreMap | None, truth: NDArray[np.int64], num_classes: int) -> Sequence[int]:
    """Categories that an image shows, or its map says it does."""
    labels = {int(value) - 1 for value in np.unique(truth) if value > 0}
    if one is not None and one.labels is not None:
        labels |= {label for label in one.labels if label < num_classes}
    return sorted(labels)


def _called(one: ScoreMap | None, label: int, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    if one is None:
        return np.zeros(size_hw, dtype=np.bool_)
    called: NDArray[np.bool_] = one.scores(label) > 0.5 * CERTAIN
    return called


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""COCO's limit on the predictions that are counted, and data sets that have more objects than that."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from scantling.data.coco.dataset import CocoDataset

COCO_LIMIT = 100
"""Predictions per image and category that COCO's AP counts."""


class OverLimit(NamedTuple):
    """Images with more objects of one class than predictions are counted: the largest number, and what to say."""

    number: int
    message: str
    hint: str


def over_limit(dataset: CocoDataset, limit: int) -> OverLimit | None:
    """Whether some image has more objects of a class than the limit; None where none has.

    Args:
        dataset: Any.
        limit: Predictions counted per image and category.
    """
    counts = [
        (number, label, image)
        for image, annotations in zip(dataset.images, dataset.annotations, strict=True)
        for label, number in Counter(a.label for a in annotations if a.is_object).items()
        if number > limit
    ]
    if not counts:
        return None
    number, label, image = max(counts, key=lambda count: count[0])
    message = (
        f"{len({image.id for _, _, image in counts})} images have more than {limit} objects of one class, but only "
        f"{limit} predictions per image and class are counted ({image.file_name}: {number} of "
        f"{dataset.class_names[label]!r}, recall there is at most {limit / number:.3f})"
    )
    hint = (
        f"Count more with --max-dets {number} (in a recipe evaluate.max_dets); COCO's own numbers are at 100."
    )
    return OverLimit(number, message, hint)

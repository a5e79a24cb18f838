"""Classifiers moved from one list of categories to another: rows by name, the rest as initialised.

their head: (K' + 1, C) classes, background last ── rows ──► our head: (K + 1, C)
their boxes, one per class: (4 K', C) ────────────── rows ──► (4 K, C)
their masks, one per class: (K', C, 1, 1) ────────── rows ──► (K, C, 1, 1)
their classes of an image, IoU of masks: (K', C) ── rows ──► (K, C)
their labels of cells, ground first: (K' + 1, C, 1, 1) rows ► (K + 1, C, 1, 1); labels of other things start anew
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, float32

_PREDICTORS = (
    # (their key, our key, rows per category), of MMDetection and of torchvision
    (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"head.logits.\1", 1),
    (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"head.deltas.\1", 4),
    (r"roi_head\.bbox_head\.(\d+)\.fc_cls\.(\w+)", r"stages.\1.logits.\2", 1),
    (r"roi_head\.bbox_head\.(\d+)\.fc_reg\.(\w+)", r"stages.\1.deltas.\2", 4),
    (r"roi_head\.mask_head\.conv_logits\.(\w+)", r"mask_head.logits.\1", 1),
    (r"roi_head\.mask_head\.(\d+)\.conv_logits\.(\w+)", r"mask_stages.\1.logits.\2", 1),
    (r"roi_head\.glbctx_head\.fc\.(\w+)", r"context_head.logits.\1", 1),
    (r"roi_head\.mask_iou_head\.fc_mask_iou\.(\w+)", r"mask_iou_head.ious.\1", 1),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"head.logits.\1", 1),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"head.deltas.\1", 4),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1", 1),
)
_SEMANTIC = (r"roi_head\.semantic_head\.conv_logits\.(\w+)", r"semantic_head.logits.\1")


def rows_by_name(wanted: Sequence[str], found: Sequence[str]) -> tuple[int | None, ...]:
    """For each wanted category the row of the one of that name, upper and lower case alike; None where missing."""
    rows = {name.casefold(): row for row, name in reversed(list(enumerate(found)))}
    return tuple(rows.get(name.casefold()) for name in wanted)


def with_rows(
    weights: Mapping[str, Tensor],
    rows: Sequence[int | None],
    num_found: int,
    fresh: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """A checkpoint whose classifiers have other categories.

    Args:
        weights: By MMDetection's or torchvision's keys, background behind the categories.
        rows: For each new category the old one it takes over; None leaves it as initialised.
        num_found: Categories of the checkpoint.
        fresh: Our model's initial weights, by our keys.

    Returns:
        The weights; what stands behind the categories (background) keeps its rows unless no category is taken over,
        when the whole classifier is new. Boxes and masks that all classes share stay as they are.
    """
    changed = dict(weights)
    for key, value in weights.items():
        for pattern, name, step in _PREDICTORS:
            match = re.fullmatch(pattern, key)
            is_classifier = match is not None and ("cls" in pattern)
            if match is None or not (is_classifier or len(value) == step * num_found):
                continue
            initial = fresh.get(match.expand(name))
            if initial is None:  # a part that the model does not have
                continue
            taken = list(rows)
            if is_classifier and any(row is not None for row in rows):
                taken += range(num_found, num_found + len(initial) - len(rows))
            changed[key] = moved_rows(value, taken, initial, step)
        semantic = re.fullmatch(_SEMANTIC[0], key)
        if semantic is not None and (own := semantic.expand(_SEMANTIC[1])) in fresh:
            changed[key] = moved_rows(value, label_rows(rows, num_found, len(value)), fresh[own], 1)
    return changed


def label_rows(rows: Sequence[int | None], num_found: int, num_labels: int) -> tuple[int | None, ...]:
    """For the ground and each new category the row of a semantic head's classifier.

    Args:
        rows: For each new category the old one it takes over.
        num_found: Old categories.
        num_labels: Rows that there are.

    Returns:
        None throughout where no category is taken over, or the rows are those of other things than the categories.
    """
    if num_labels != num_found + 1 or all(row is None for row in rows):
        return (None,) * (len(rows) + 1)
    return (0, *(None if row is None else row + 1 for row in rows))


def moved_rows(value: Tensor, rows: Sequence[int | None], initial: Tensor, step: int) -> Tensor:
    """A classifier's tensor with the rows of another one.

    Args:
        value: (R', ...) of the other one.
        rows: For each category, and what stands behind the categories, the one in `value`; None leaves it as it is.
        initial: (R, ...) as initialised.
        step: Rows per category.
    """
    moved = initial.clone()
    for new, old in enumerate(rows):
        if old is not None:
            moved[new * step : (new + 1) * step] = value[old * step : (old + 1) * step]
    return moved.to(float32)

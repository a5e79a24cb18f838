"""Classifiers moved from one list of categories to another: rows by name, the rest as initialised.

their head: (K' + 1, C) classes, background last ── rows ──► our head: (K + 1, C)
their boxes, one per class: (4 K', C) ────────────── rows ──► (4 K, C)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_CLASSIFIER = re.compile(
    r"roi_head\.bbox_head\.(?:(?P<stage>\d+)\.)?fc_(?P<kind>cls|reg)\.(?P<part>weight|bias)"
)


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
        weights: By MMDetection's keys.
        rows: For each new category the old one it takes over; None leaves it as initialised.
        num_found: Categories of the checkpoint.
        fresh: Our model's initial weights, by our keys.

    Returns:
        The weights; background keeps its row unless no category is taken over, when the whole classifier is new.
        Boxes that all classes share stay as they are.
    """
    changed = dict(weights)
    for key, value in weights.items():
        match = _CLASSIFIER.fullmatch(key)
        if match is None or (match["kind"] == "reg" and len(value) != 4 * num_found):
            continue
        place = "head" if match["stage"] is None else f"stages.{match['stage']}"
        name = "logits" if match["kind"] == "cls" else "deltas"
        initial = fresh[f"{place}.{name}.{match['part']}"]
        background = name == "logits" and any(row is not None for row in rows)
        changed[key] = _moved(value, [*rows, *([num_found] if background else [])], initial, name == "deltas")
    return changed


def _moved(value: Tensor, rows: Sequence[int | None], initial: Tensor, four_each: bool) -> Tensor:  # noqa: FBT001
    step = 4 if four_each else 1
    moved = initial.clone()
    for new, old in enumerate(rows):
        if old is not None:
            moved[new * step : (new + 1) * step] = value[old * step : (old + 1) * step]
    return moved.to(torch.float32)

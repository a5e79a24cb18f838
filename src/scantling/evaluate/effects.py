"""What each factor of a full factorial design gives, whatever the others are: its main effect.

AP of every combination, on the same draws of images ──► mean with the factor - mean without it, paired interval
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scantling.evaluate.bootstrap import Floats
from scantling.evaluate.compare import Difference, difference_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A factor's main effect on AP.

    Attributes:
        factor: Its name.
        difference: `first`: mean over the combinations without it; `second`: over those with it.
    """

    factor: str
    difference: Difference


def main_effects(values: Mapping[tuple[str, ...], Floats], factors: Sequence[str]) -> tuple[Effect, ...]:
    """The main effect of each factor.

    Args:
        values: (1 + S,) AP of all images and of S draws of them, by the factors of each combination; all combinations.
        factors: Their names.

    Source: Fisher, The Design of Experiments, 1935 (factorial designs).
    """
    found = []
    for factor in factors:
        means = [
            np.mean([value for chosen, value in values.items() if (factor in chosen) == wanted], axis=0)
            for wanted in (False, True)
        ]
        found.append(Effect(factor=factor, difference=difference_of(None, "AP", *means)))
    return tuple(found)


def effects_text(effects: Sequence[Effect]) -> str:
    """Markdown, which also reads well as it is."""
    table = [["factor", "AP without", "AP with", "difference", "95 % interval"]]
    table.append(["---", *["---:"] * 4])
    for effect in effects:
        one = effect.difference
        span = "-" if one.interval is None else f"{one.interval[0]:+.3f} to {one.interval[1]:+.3f}"
        table.append(
            [effect.factor, _number(one.first), _number(one.second), _number(one.difference, "+"), span]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in table)


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"

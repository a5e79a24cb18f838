"""Factors of an ablation: named sets of settings, and which of their combinations are compared.

ablation: {design: full, factors: {seesaw: {model.class_loss: seesaw}, dcn: {"model.deform": [2, 3, 4]}}}
──► base, seesaw, dcn, seesaw+dcn
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from scantling.settings.section import Section

BASE = "base"
"""Name of the combination without any factor."""

FactorName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,23}$")]
"""Names joined by `+` are the folder of a combination."""

OF_MEMBERS = ("model", "segmenter", "augment", "sampling", "train", "predict")
"""Sections of a member; a key that begins with one is meant for every member that has the section."""

_FIXED = ("about", "ablation", "evaluate", "data.root")
"""What no factor may change: all combinations are measured alike, on the same images."""


class AblationConfig(Section):
    """What `ablate` compares instead of a run's steps.

    Attributes:
        factors: For each factor the settings that it changes, as `--set` would: `members.NAME.train.lr: 0.01`. A key
            that begins with a section of members (`model.class_loss`) is meant for every member that has it.
        design: Which combinations are done. `one_at_a_time`: each factor alone; `leave_one_out`: all but each;
            `cumulative`: one factor more in every row, in the order given; `full`: every combination.
    """

    factors: Annotated[dict[FactorName, dict[str, JsonValue]], Field(min_length=1, max_length=8)]
    design: Literal["one_at_a_time", "leave_one_out", "cumulative", "full"] = "one_at_a_time"

    @model_validator(mode="after")
    def _can_be_combined(self) -> Self:
        for name, settings in self.factors.items():
            if name == BASE:
                raise ValueError(f"no factor may be called {BASE}, as the combination without any is")
            if not settings:
                raise ValueError(f"the factor {name} changes nothing")
            if fixed := [key for key in settings if any(_overlap(key, one) for one in _FIXED)]:
                raise ValueError(f"the factor {name} changes {fixed[0]}, which must be the same for all")
        if self.design != "one_at_a_time":
            for (first, own), (second, other) in itertools.combinations(self.factors.items(), 2):
                if both := [key for key in own for theirs in other if _overlap(key, theirs)]:
                    raise ValueError(
                        f"the factors {first} and {second} both change {both[0]}, so they cannot be combined"
                    )
        return self


class FactorCombination(NamedTuple):
    """One row: the recipe with some factors.

    Attributes:
        title: In the table.
        factors: Names, in the order of the recipe.
        base: Title of the row that it is compared with; None for no comparison.
    """

    title: str
    factors: tuple[str, ...]
    base: str | None

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return "+".join(self.factors) or BASE


def combinations_of(config: AblationConfig) -> list[FactorCombination]:
    """The rows of an ablation, in the order in which they are done."""
    names = tuple(config.factors)
    if config.design == "leave_one_out":
        without = [tuple(other for other in names if other != name) for name in names]
        return [
            FactorCombination("all", names, None),
            *(
                FactorCombination(f"without {name}", rest, "all")
                for name, rest in zip(names, without, strict=True)
            ),
        ]
    if config.design == "cumulative":
        titles = [BASE, *(f"+ {name}" for name in names)]
        return [
            FactorCombination(title, names[:number], titles[number - 1] if number else None)
            for number, title in enumerate(titles)
        ]
    most = len(names) if config.design == "full" else 1
    chosen = [found for size in range(most + 1) for found in itertools.combinations(names, size)]
    return [FactorCombination(" + ".join(found) or BASE, found, BASE if found else None) for found in chosen]


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """A factor's settings as `--set` takes them."""
    return [f"{_absolute(key)}={json.dumps(value)}" for key, value in settings.items()]


def _absolute(key: str) -> str:
    return f"members.*.{key}" if key.partition(".")[0] in OF_MEMBERS else key


def _overlap(first: str, second: str) -> bool:
    """Whether one of two keys is the other, or holds it; `*` is any name."""
    pairs: Sequence[tuple[str, str]] = list(
        zip(_absolute(first).split("."), _absolute(second).split("."), strict=False)
    )
    return all(one == other or "*" in (one, other) for one, other in pairs)

"""Recipes: what a run does, as one flat YAML file.

    about:    one line for `recipes list`
    seed:     0
    data:     {root: DIR, train: train, val: val}
    members:  {NAME: {model: {...}, augment: {...}, train: {...}, predict: {...}}}
    evaluate: {split: val}

Every section is the pydantic model of the component it configures and lives beside that component, with its
defaults; this module only puts them together. Reading is strict (`strict_yaml`, `draft`): no unknown key, no
silent conversion, every problem with its line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from scantling import strict_yaml
from scantling.data.transforms import AugmentConfig
from scantling.draft import Draft
from scantling.models.zoo import ModelConfig
from scantling.predict.predictor import PredictConfig
from scantling.recipes import find_recipe, read_recipe
from scantling.train.config import TrainConfig

MemberName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A member's name is also the name of its folder."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Which data set a recipe works on; usually given on the command line with `--data`.

    Attributes:
        root: Folder of the data set.
        train: Split to train on: its name, or a COCO file relative to `root`.
        val: Split that picks the best checkpoint and is evaluated.
        images: Folder of the images relative to `root`, where it is not beside the annotations.
        skip_invalid: Leave out single annotations and images that are wrong, counted, instead of stopping.
        strict: Stop at warnings too.
    """

    root: str | None = None
    train: str = "train"
    val: str = "val"
    images: str | None = None
    skip_invalid: bool = False
    strict: bool = False


class MemberConfig(_Section):
    """One detector: what it is, how it is trained, how it predicts."""

    model: ModelConfig
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()


class EvaluateConfig(_Section):
    """What the run's metrics are computed from.

    Attributes:
        split: Split to evaluate: a split's name, or a COCO file relative to the data set's folder.
        backend: `pycocotools`, `hotcoco` (same numbers, faster), or `auto` for the fastest one installed.
        bootstrap: Resamples of the images for the intervals of every AP; 0 for none.
    """

    split: str = "val"
    backend: Literal["auto", "pycocotools", "hotcoco"] = "auto"
    bootstrap: Annotated[int, Field(ge=0, le=1_000_000)] = 1000


class Recipe(_Section):
    """Everything a run does; equal recipes on equal data with equal seeds give equal results."""

    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataConfig = DataConfig()
    members: Annotated[dict[MemberName, MemberConfig], Field(min_length=1)]
    evaluate: EvaluateConfig = EvaluateConfig()

    def on(self, *, data: str | Path | None = None, seed: int | None = None) -> Recipe:
        """The recipe for a data set and with a seed; None keeps the recipe's own.

        The folder is made absolute, so that the run can be found again from elsewhere.
        """
        root = data if data is not None else self.data.root
        absolute = str(Path(root).absolute()) if root is not None else None
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"root": absolute}),
                "seed": self.seed if seed is None else seed,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The recipe as a file that `load_recipe` reads back as an equal object."""
        return strict_yaml.dump(self.to_dict())


def fingerprint(value: object) -> str:
    """SHA-256 of plain values (or of a pydantic model), the same whatever the order of keys."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        source: A file (its name ends in .yaml or .yml, or holds a folder) or the name of a shipped recipe.
        overrides: `KEY.PATH=VALUE` texts that replace values of the file, checked like the file's own.

    Raises:
        ConfigError: With every problem found, each with its line, key path and remedy.
    """
    path = find_recipe(source)
    return parse_recipe(read_recipe(path), file=str(path), overrides=overrides)


def parse_recipe(text: str, *, file: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from its text; see `load_recipe`."""
    draft = Draft.parse(Recipe, text, file=file)
    for override in overrides:
        draft = draft.with_override(override)
    return draft.check()

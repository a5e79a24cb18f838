"""Suites: what is done on every data set of a folder, as one YAML file.

    about:    one line for `recipes list`
    recipes:  [NAME, FILE.yaml]        whose members run together on each data set; {MEMBER: NAME} calls them otherwise
    combine:  {...}  evaluate: {...}   as in a recipe; else those of the recipes
    sets:     {SET: [KEY.PATH=VALUE]}  what is different on one data set

A recipe is a suite of its own: its members on every data set. Several recipes are put together into one, whose run on a
data set is an ordinary run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from scantling.errors import ConfigError
from scantling.recipe.recipe import (
    CombineConfig,
    EvaluateConfig,
    MemberConfig,
    MemberName,
    Recipe,
    load_recipe,
    parse_recipe,
)
from scantling.recipe.shipped import find_recipe_or_suite, read_recipe
from scantling.settings import yaml as strict_yaml
from scantling.settings.draft import Draft
from scantling.settings.section import Section

RECIPES = "recipes"
_OWN = {"about", "members"}


class SuiteConfig(Section):
    """A suite as its file says it.

    Attributes:
        about: One line.
        recipes: Shipped names, or files relative to that of the suite. Their members run together; what else they say
            must agree, or be said here. As a mapping: what the only member of each is called here.
        combine: How the members are combined; null takes it from the recipes.
        evaluate: What is measured, and on which split; null takes it from the recipes.
        sets: `KEY.PATH=VALUE` texts that replace values of the recipe on a data set, by the name of its folder.
    """

    about: str = ""
    recipes: (
        Annotated[tuple[str, ...], Field(min_length=1)]
        | Annotated[dict[MemberName, str], Field(min_length=1)]
    )
    combine: CombineConfig | None = None
    evaluate: EvaluateConfig | None = None
    sets: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What is done on every data set.

    Attributes:
        name: Of its file.
        recipe: With the members of all recipes; `data.root` is left open.
        overrides: What is different on a data set, by its name.
    """

    name: str
    recipe: Recipe
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def recipe_for(self, name: str, folder: Path, *, seed: int | None = None) -> Recipe:
        """The recipe on a data set.

        Args:
            name: Of the data set.
            folder: Where it is.
            seed: Of all randomness; None takes the recipe's own.

        Raises:
            ConfigError: What is different there does not fit the recipe.
        """
        own = self.overrides.get(name, ())
        recipe = (
            parse_recipe(self.recipe.to_yaml(), file=f"sets.{name}", overrides=own) if own else self.recipe
        )
        return recipe.on(data=folder, seed=seed)


def load_suite(source: str | Path, overrides: Iterable[str] = ()) -> Suite:
    """Read a suite, or a recipe as one.

    Args:
        source: A file, or the name of a shipped suite or recipe.
        overrides: `KEY.PATH=VALUE` texts that replace values of the recipe on every data set.

    Raises:
        ConfigError: With every problem of a file; or recipes that cannot be put together.
    """
    path, chosen = find_recipe_or_suite(source), list(overrides)
    text = read_recipe(path)
    if not is_suite(text, file=str(path)):
        return Suite(name=path.stem, recipe=load_recipe(source, chosen))
    config = Draft.parse(SuiteConfig, text, file=str(path)).check()
    recipe = _together(config, path)
    if chosen:
        recipe = parse_recipe(recipe.to_yaml(), file=f"{path} (its recipes together)", overrides=chosen)
    return Suite(name=path.stem, recipe=recipe, overrides=config.sets)


def is_suite(text: str, *, file: str) -> bool:
    """Whether the text of a file is that of a suite, not of a recipe."""
    value = strict_yaml.parse(text, file=file).value
    return isinstance(value, dict) and RECIPES in value


def _together(config: SuiteConfig, path: Path) -> Recipe:
    """One recipe out of several: all members; every other section as the suite or the recipes say it.

    Raises:
        ConfigError: A name is given twice, or a section is said differently by two recipes.
    """
    given = config.recipes
    names = list(given.values()) if isinstance(given, dict) else list(given)
    recipes = {name: load_recipe(_beside(name, path)) for name in names}
    members: dict[str, Any] = {}
    for called, name in given.items() if isinstance(given, dict) else ((None, name) for name in given):
        own = _called(called, recipes[name].members, f"{path}: recipes: {name}")
        if twice := sorted(members.keys() & own.keys()):
            raise ConfigError(
                f"{path}: recipes: {name} and one before it both have a member {', '.join(twice)}",
                hint=f"Write `recipes` as a mapping: {{A: {names[0]}, B: {name}}} calls their members A and B.",
            )
        members |= own
    said = {key: value for key in ("combine", "evaluate") if (value := getattr(config, key)) is not None}
    for key in Recipe.model_fields.keys() - _OWN - said.keys():
        said[key] = _agreed(key, recipes, path)
    return Recipe(about=config.about, members=members, **said)


def _called(name: str | None, members: Mapping[str, MemberConfig], place: str) -> dict[str, MemberConfig]:
    """A recipe's members as the suite calls them.

    Raises:
        ConfigError: There are several for one name.
    """
    if name is None:
        return dict(members)
    if len(members) > 1:
        hint = "Write `recipes` as a list, or name recipes of one member each."
        raise ConfigError(f"{place}: cannot be called {name!r}, it has {len(members)} members", hint=hint)
    return dict.fromkeys([name], next(iter(members.values())))


def _agreed(key: str, recipes: Mapping[str, Recipe], path: Path) -> object:
    """What the recipes say of a section: those that leave it at its default do not count."""
    default = Recipe.model_fields[key].get_default()
    given = {name: value for name, recipe in recipes.items() if (value := getattr(recipe, key)) != default}
    first, *others = given or {"": default}
    for other in others:
        if given[other] != given[first]:
            remedy = (
                f"Say `{key}` in the suite's own file."
                if key in SuiteConfig.model_fields
                else "Change one of them."
            )
            raise ConfigError(f"{path}: {first} and {other} say different things of `{key}`", hint=remedy)
    return given.get(first, default)


def _beside(name: str, path: Path) -> str:
    """A recipe as the suite's file names it; a file relative to that file."""
    is_file = Path(name).suffix in {".yaml", ".yml"}
    return str(path.parent / name) if is_file else name

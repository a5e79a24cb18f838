"""Suites: recipes put together, what is different on a data set, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scantling.errors import ConfigError
from scantling.recipe.recipe import load_recipe
from scantling.recipe.shipped import find_recipe, shipped_suites
from scantling.recipe.suite import load_suite

SMALL = "members: {{{name}: {{model: {{name: faster_rcnn_r18_small}}}}}}\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Recipes of one member each: `a.yaml` and `b.yaml`."""
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(SMALL.format(name=name))
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_a_suite_of_its_own():
    suite = load_suite("bccd-cpu", ["seed=7"])
    assert suite.recipe == load_recipe("bccd-cpu", ["seed=7"])
    recipe = suite.recipe_for("x", Path("/sets/x"), seed=3)
    assert (recipe.data.root, recipe.seed) == ("/sets/x", 3)


def test_members_of_all_recipes_run_together(folder):
    (folder / "b.yaml").write_text(SMALL.format(name="b") + "evaluate: {split: test}\n")
    suite = load_suite(
        written(folder, "about: Two.\nrecipes: [a.yaml, b.yaml, bccd-cpu]\ncombine: {ensemble: {}}\n"),
        ["members.a.train.epochs=3"],
    )
    recipe = suite.recipe
    assert list(recipe.members) == ["a", "b", *load_recipe("bccd-cpu").members]
    assert recipe.members["b"] == load_recipe(folder / "b.yaml").members["b"]
    assert recipe.members["a"].train.epochs == 3
    assert (recipe.about, recipe.evaluate.split) == ("Two.", "test")
    assert recipe.combining.ensemble is not None
    assert suite.name == "suite"


def test_members_can_be_called_otherwise(folder):
    suite = load_suite(
        written(folder, "recipes: {htc: a.yaml, r50: a.yaml}\n"), ["members.r50.train.epochs=3"]
    )
    assert list(suite.recipe.members) == ["htc", "r50"]
    assert suite.recipe.members["htc"] == load_recipe(folder / "a.yaml").members["a"]
    assert suite.recipe.members["r50"].train.epochs == 3


def test_what_is_different_on_a_set_is_there_alone(folder):
    text = "recipes: [a.yaml]\nsets: {Cable: [members.a.train.epochs=5, seed=2]}\n"
    suite = load_suite(written(folder, text))
    cable, wood = (suite.recipe_for(name, folder / name) for name in ("Cable", "Wood"))
    assert (cable.members["a"].train.epochs, cable.seed) == (5, 2)
    assert (wood.members["a"].train.epochs, wood.seed) == ("auto", 0)
    wrong = load_suite(written(folder, "recipes: [a.yaml]\nsets: {Cable: [members.a.trian.epochs=5]}\n"))
    with pytest.raises(ConfigError, match="trian"):
        wrong.recipe_for("Cable", folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipes: [a.yaml, a.yaml2]\n", "no recipe is called 'a.yaml2'"),
        ("recipes: [a.yaml, again.yaml]\n", "again.yaml and one before it both have a member a"),
        ("recipes: {one: parts-cpu}\n", "cannot be called 'one', it has 2 members"),
        ("recipes: []\n", "recipes"),
        ("recipes: [a.yaml]\nset: {}\n", "unknown key; did you mean 'sets'"),
        ("recipes: [a.yaml, b.yaml, other.yaml, third.yaml]\n", "say different things of `seed`"),
        ("recipes: [a.yaml, judged.yaml, strict.yaml]\n", "Say `evaluate` in the suite's own file"),
    ],
)
def test_recipes_that_do_not_go_together_are_told(folder, text, words):
    (folder / "again.yaml").write_text(SMALL.format(name="a"))
    (folder / "other.yaml").write_text(SMALL.format(name="c") + "seed: 1\n")
    (folder / "third.yaml").write_text(SMALL.format(name="d") + "seed: 2\n")
    (folder / "judged.yaml").write_text(SMALL.format(name="e") + "evaluate: {split: test}\n")
    (folder / "strict.yaml").write_text(SMALL.format(name="f") + "evaluate: {bootstrap: 7}\n")
    with pytest.raises(ConfigError) as caught:
        load_suite(written(folder, text))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_load_and_are_told_from_recipes(name):
    suite = load_suite(name)
    assert suite.recipe.about.endswith(".")
    assert suite.overrides == {}
    with pytest.raises(ConfigError, match="is a suite, not a recipe") as caught:
        find_recipe(name)
    assert f"scantling suite {name} --data" in str(caught.value)

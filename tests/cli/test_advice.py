"""Every advice that scantling prints is fed back to the parser it is meant for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import scantling
from scantling.models.suppression import SuppressConfig
from scantling.predict.predictor import PredictConfig
from scantling.recipe.facts import DataFacts
from scantling.recipe.recipe import parse_recipe
from scantling.recipe.suggest import MEMBER, OpenRecipe
from scantling.refine.train import RefineConfig
from scantling.settings.draft import Draft

ADVICE = re.compile(r"--set ([A-Za-z_.{}]+=[^\s`\"');,]+)")
PLACEHOLDERS = {"KEY.PATH=VALUE", "KEY=VALUE"}
VERBS = {"batch_size=1": PredictConfig, "method=hard": SuppressConfig, "train.batch_size=8": RefineConfig}
"""Advice for `predict`, `suppress` and `refine train`; every other is for a recipe."""
PLACES = {"{MEMBER}": MEMBER, "NAME": MEMBER}
RECIPE = f"members: {{{MEMBER}: {{model: {{}}}}}}"


def advices() -> list[str]:
    """`KEY.PATH=VALUE` of every `--set` in the source of scantling, its placeholders filled in."""
    root = Path(scantling.__file__).parent
    found = {
        match.rstrip(".")
        for file in root.rglob("*.py")
        for match in ADVICE.findall(file.read_text(encoding="utf-8"))
        if match not in PLACEHOLDERS
    }
    for placeholder, name in PLACES.items():
        found = {match.replace(placeholder, name) for match in found}
    return sorted(found)


@pytest.mark.parametrize("advice", advices())
def test_what_is_advised_in_the_source_can_be_set(advice):
    model = PredictConfig if advice.startswith("suppress.") else VERBS.get(advice)
    if model is not None:
        assert Draft.of(model, [advice]).check()
    else:
        assert parse_recipe(RECIPE, file="r.yaml", overrides=[advice])


def test_there_are_advices():
    assert f"members.{MEMBER}.model.init=random" in advices()
    assert "data.train=splits/train.json" in advices()
    assert "suppress.method=none" in advices()
    assert VERBS.keys() <= set(advices())


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("names", [("a", "b"), ("left wheel", "right wheel")])
def test_what_train_advises_is_taken_by_train(device, names):
    facts = DataFacts(
        num_images=40,
        median_hw=(4000, 6000),
        small_object=9.0,
        device=device,
        memory_gib=None if device == "cpu" else 24.0,
        cpu_count=4,
        class_counts=dict.fromkeys(names, 3),
        max_objects=3,
    )
    told = "\n".join(OpenRecipe.over("data").choose(facts).reasons)
    advised = ADVICE.findall(told)
    assert bool(advised) == (device == "cuda")
    for advice in advised:
        recipe = OpenRecipe.over("data", overrides=[advice]).choose(facts).recipe
        assert recipe.members[MEMBER].detector.init == "pretrained"

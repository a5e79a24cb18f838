"""Recipes of an ablation's combinations, who trains what, and how finished work is taken over."""

from __future__ import annotations

import pytest

from scantling.errors import ConfigError
from scantling.recipe.factors import combinations_of
from scantling.recipe.recipe import Recipe, parse_recipe
from scantling.run.factors import owners_of, recipe_with
from scantling.run.folder import open_run
from scantling.run.stage import Resources, Stage

RECIPE = """
members:
  one: {model: {name: faster_rcnn_r50}}
  two: {model: {name: cascade_rcnn_r50, class_loss: seesaw}}
  other: {predictions: found.json}
"""


def recipes(ablation: str) -> dict[str, Recipe]:
    recipe = parse_recipe(f"{RECIPE}ablation: {ablation}", file="r.yaml")
    found = combinations_of(recipe.ablation)
    return {each.folder: recipe_with(recipe, recipe.ablation, each) for each in found}


def test_a_factor_is_set_in_every_member_that_has_the_section():
    fast = "{members.two.train.epochs: 3, combine: {ensemble: {}}}"
    found = recipes(f"{{factors: {{dcn: {{model.deform: [2, 3]}}, fast: {fast}}}}}")
    assert list(found) == ["base", "dcn", "fast"]
    options = [found["dcn"].members[name].detector.options for name in ("one", "two")]
    assert options == [{"deform": (2, 3)}, {"deform": (2, 3), "class_loss": "seesaw"}]
    assert found["dcn"].members["other"] == found["base"].members["other"]
    assert found["fast"].members["two"].train.epochs == 3
    assert found["fast"].members["one"] == found["base"].members["one"]
    assert found["fast"].combining.ensemble is not None
    assert all(recipe.ablation is None for recipe in found.values())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{model.no_such: 1}", "unknown key"),
        ("{modle.deform: [2]}", "ablation.factors.x"),
        ("{model.class_loss: hinge}", "softmax"),
        ("{segmenter.name: mask2former_swin_t}", "changes nothing"),
        ("{members.two.model.class_loss: seesaw}", "changes nothing"),
    ],
)
def test_a_factor_that_does_not_fit_is_told_by_its_name(settings, told):
    with pytest.raises(ConfigError) as caught:
        recipes(f"{{factors: {{x: {settings}}}}}")
    assert told in str(caught.value)
    assert "ablation.factors.x" in str(caught.value)


def test_of_all_with_the_same_training_the_first_trains():
    found = recipes(
        "{design: full, factors: {dcn: {members.one.model.deform: [2]}, many: {predict.suppress.max_per_image: 50}}}"
    )
    assert owners_of(found) == {
        "base": (),
        "dcn": ("base",),  # the member two
        "many": ("base",),
        "dcn+many": ("dcn", "base"),
    }
    single = recipes("{factors: {seed: {seed: 7}}}")
    assert owners_of(single) == {"base": (), "seed": ()}


def stage(root, done: list[str], *, value: int = 1, gpus: int = 1) -> Stage:
    def work() -> None:
        done.append(root.name)
        (root / "part").mkdir(exist_ok=True)
        (root / "part" / "result.txt").write_text(f"{value} by {root.name}")

    return Stage(
        folder="part",
        name="train",
        inputs=lambda: {"value": value},
        outputs=("part/result.txt",),
        action=work,
        resources=Resources(gpus=gpus),
    )


def test_finished_work_with_the_same_inputs_is_taken_over(tmp_path):
    done: list[str] = []
    lender, others = (
        tmp_path / "lender",
        [tmp_path / name for name in ("same", "changed", "light", "damaged")],
    )
    with open_run(lender) as run:
        run.do(stage(lender, done))
        run.do(stage(lender, done))
    same, changed, light, damaged = others

    def do(root, **settings) -> dict[str, str]:
        with open_run(root) as run:
            run.lenders = (tmp_path / "nowhere", lender)
            run.do(stage(root, done, **settings))
            run.do(stage(root, done, **settings))
            return dict(run.stages)

    assert do(same) == {"part/train": "kept"}
    assert (same / "part/result.txt").read_text() == "1 by lender"
    do(changed, value=2)
    do(light, gpus=0)
    assert done == ["lender", "changed", "light"]
    (lender / "part/result.txt").unlink()
    (lender / "part/result.txt").write_text("something else")
    assert do(damaged) == {"part/train": "kept"}
    assert done[3:] == ["damaged"]
    assert (same / "part/result.txt").read_text() == "1 by lender"

"""Which combinations an ablation of factors has, and what is refused."""

from __future__ import annotations

import pytest

from scantling.errors import ConfigError
from scantling.recipe.factors import AblationConfig, combinations_of, overrides_of
from scantling.recipe.recipe import load_recipe, parse_recipe

THREE = {"a": {"model.x": 1}, "b": {"train.y": 2}, "c": {"combine.eliminate": None}}
MEMBERS = "members: {one: {model: {name: faster_rcnn_r50}}}\n"


def rows(design: str, factors=THREE) -> list[tuple[str, str, str | None]]:
    config = AblationConfig(factors=factors, design=design)
    return [(each.title, each.folder, each.base) for each in combinations_of(config)]


def test_one_at_a_time():
    assert rows("one_at_a_time") == [
        ("base", "base", None),
        ("a", "a", "base"),
        ("b", "b", "base"),
        ("c", "c", "base"),
    ]


def test_leave_one_out():
    assert rows("leave_one_out") == [
        ("all", "a+b+c", None),
        ("without a", "b+c", "all"),
        ("without b", "a+c", "all"),
        ("without c", "a+b", "all"),
    ]
    assert rows("leave_one_out", {"a": {"seed": 1}}) == [("all", "a", None), ("without a", "base", "all")]


def test_cumulative():
    assert rows("cumulative") == [
        ("base", "base", None),
        ("+ a", "a", "base"),
        ("+ b", "a+b", "+ a"),
        ("+ c", "a+b+c", "+ b"),
    ]


def test_full():
    found = rows("full")
    assert [title for title, _, _ in found] == [
        *("base", "a", "b", "c", "a + b", "a + c", "b + c", "a + b + c"),
    ]
    assert {base for _, _, base in found[1:]} == {"base"}


def test_settings_are_those_of_set_and_sections_of_members_mean_all_that_have_one():
    settings = {"model.deform": [2, 3], "members.one.train.lr": 0.1, "combine": None, "predict.scales": "a b"}
    assert overrides_of(settings) == [
        "members.*.model.deform=[2, 3]",
        "members.one.train.lr=0.1",
        "combine=null",
        'members.*.predict.scales="a b"',
    ]


@pytest.mark.parametrize(
    ("ablation", "told"),
    [
        ("{factors: {}}", "at least 1"),
        ("{factors: {a: {}}}", "the factor a changes nothing"),
        ("{factors: {base: {seed: 1}}}", "no factor may be called base"),
        ("{factors: {A: {seed: 1}}}", "ablation.factors"),
        ("{factors: {a: {evaluate.split: test}}}", "changes evaluate.split, which must be the same"),
        ("{factors: {a: {data: {root: x}}}}", "changes data, which must be the same"),
        ("{design: full, factors: {a: {seed: 1}, b: {seed: 2}}}", "a and b both change seed"),
        (
            "{design: full, factors: {a: {model.norm: gn}, b: {members.one.model: {name: htc_r50}}}}",
            "a and b both change model.norm",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_line(ablation, told):
    with pytest.raises(ConfigError) as caught:
        parse_recipe(f"{MEMBERS}ablation: {ablation}", file="r.yaml")
    assert told in str(caught.value)
    assert "line 2" in str(caught.value)


def test_levels_of_one_setting_are_compared_one_at_a_time():
    recipe = parse_recipe(
        f"{MEMBERS}ablation: {{factors: {{a: {{seed: 1}}, b: {{seed: 2}}}}}}", file="r.yaml"
    )
    assert parse_recipe(recipe.to_yaml(), file="again.yaml") == recipe


def test_no_shipped_recipe_needs_one():
    assert load_recipe("parts-cpu").ablation is None

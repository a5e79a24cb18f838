"""Messages about wrong configurations: place, key path, value, what was expected, the nearest name."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from scantling.errors import ConfigError
from scantling.settings.draft import Draft


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Train(Section):
    lr: Annotated[float, Field(gt=0, le=10)] = 0.1
    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    milestones: tuple[int, ...] = ()
    shuffle: bool = True

    @model_validator(mode="after")
    def _rise(self):
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError("milestones must rise")
        return self


class Predict(Section):
    iou_threshold: Annotated[float, Field(ge=0, le=1)] | dict[str, Annotated[float, Field(ge=0, le=1)]] = 0.5


class Member(Section):
    train: Train = Train()
    predict: Predict = Predict()


Name = Annotated[str, StringConstraints(pattern="^[a-z]+$")]


class Settings(Section):
    seed: int = 0
    members: Annotated[dict[Name, Member], Field(min_length=1)]


def check(text: str, *overrides: str) -> Settings:
    draft = Draft.parse(Settings, text, file="r.yaml")
    for override in overrides:
        draft = draft.with_override(override)
    return draft.check()


def complaint(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(text, *overrides)
    return str(caught.value).splitlines()


def test_a_right_text_becomes_the_model():
    settings = check("seed: 3\nmembers:\n  a: {train: {lr: 1e-2, epochs: 5, milestones: [1, 2]}}\n")
    assert settings == Settings(
        seed=3, members={"a": Member(train=Train(lr=0.01, epochs=5, milestones=(1, 2)))}
    )


def test_all_problems_are_told_each_with_its_line():
    train = "    train:\n      epochs: 1.5\n      lrr: 1\n"
    text = f"seed: true\nmembers:\n  a:\n{train}    predict: {{iou_threshold: {{WBC: 2}}}}\n"
    assert complaint(text) == [
        "r.yaml: line 1: seed: found true; expected a valid integer",
        "r.yaml: line 5: members.a.train.epochs: found 1.5; expected a valid integer, or 'auto'",
        "r.yaml: line 6: members.a.train.lrr: unknown key; did you mean 'lr'? "
        "(keys here: lr, epochs, milestones, shuffle)",
        "r.yaml: line 7: members.a.predict.iou_threshold.WBC: found 2; expected less than or equal to 1",
    ]


@pytest.mark.parametrize(
    ("train", "found"),
    [
        ("lr: word", '"word"'),
        ("lr: true", "true"),
        ("lr: null", "null"),
        ("lr: [0.1]", "[0.1]"),
        ("lr: '0.1'", '"0.1"'),
        ("lr: 0", "0; expected greater than 0"),
        ("lr: -1e-3", "-0.001; expected greater than 0"),
        ("epochs: '3'", '"3"'),
        ("epochs: -1", "-1; expected greater than or equal to 1, or 'auto'"),
        ("epochs: 2.0", "2.0"),
        ("shuffle: 1", "1; expected a valid boolean"),
        ("shuffle: yes", '"yes"; expected a valid boolean'),
        ("milestones: 3", "3"),
    ],
)
def test_wrong_values_are_refused_and_shown(train, found):
    (line,) = complaint(f"members: {{a: {{train: {{{train}}}}}}}")
    key = train.split(":")[0]
    assert line.startswith(f"r.yaml: line 1: members.a.train.{key}: found {found}")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(number):
    assert complaint(f"members: {{a: {{train: {{lr: {number}}}}}}}") == [
        "r.yaml: line 1: members.a.train.lr: not a finite number"
    ]


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one():
    (line,) = complaint("members: {a: {lr: 1}}")
    assert line == "r.yaml: line 1: members.a.lr: unknown key; it belongs to members.NAME.train"


def test_missing_and_empty():
    assert complaint("seed: 1") == ["r.yaml: members: this key is missing"]
    assert "at least 1 item" in complaint("members: {}")[0]
    assert "a name here should match pattern" in complaint("members: {A b: {}}")[0]
    assert complaint("- 1") == ["r.yaml: expected a mapping with the keys seed, members; found [1]"]
    assert complaint("") == ["r.yaml: expected a mapping with the keys seed, members; found null"]


def test_a_validator_of_the_component_is_told_at_its_section():
    (line,) = complaint("members: {a: {train: {milestones: [2, 1]}}}")
    assert line.startswith("r.yaml: line 1: members.a.train: ")
    assert line.endswith("milestones must rise")


def test_overrides_replace_and_create():
    text = "members: {a: {train: {lr: 1}}}"
    assert check(text, "members.a.train.lr=1e-3").members["a"].train.lr == 0.001
    assert check(text, "members.a.predict.iou_threshold=0.7").members["a"].predict.iou_threshold == 0.7
    assert check(text, "members.a.train={epochs: 3}").members["a"].train == Train(epochs=3)
    assert check(text, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("members.a.train.lr=abc", '--set members.a.train.lr=abc: members.a.train.lr: found "abc"'),
        ("members.a.train.lrr=1", "unknown key; did you mean 'lr'?"),
        ("members.ab.train.lr=1", "there is no 'ab'; did you mean 'a'? (there is: a)"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("seed", "write it as KEY.PATH=VALUE"),
        ("=1", "write it as KEY.PATH=VALUE"),
        ("a..b=1", "write it as KEY.PATH=VALUE"),
        ("seed=[1", "not valid YAML"),
        ("seed=!!python/none x", "tag"),
    ],
)
def test_wrong_overrides_name_the_option(override, message):
    (line,) = complaint("seed: 1\nmembers: {a: {train: {lr: 1}}}", override)
    assert message in line
    assert line.startswith(f"--set {override}")


def test_an_override_can_repair_the_file():
    assert check("seed: x\nmembers: {a: {}}", "seed=4").seed == 4


def test_an_override_of_an_aliased_section_changes_one_member_only():
    settings = check("members: {a: &m {train: {lr: 1}}, b: *m}", "members.b.train.lr=2")
    assert (settings.members["a"].train.lr, settings.members["b"].train.lr) == (1, 2)


def test_a_whole_section_that_is_unknown_is_told_by_the_option_that_made_it():
    draft = Draft(Train, {"lr": 0.2}, {}, "checkpoint").with_override("optimizer.momentum=0.9")
    with pytest.raises(ConfigError, match=r"--set optimizer\.momentum=0\.9: optimizer: unknown key"):
        draft.check()


def test_a_star_is_every_entry_that_has_the_section():
    text = "members: {a: {train: {lr: 0.2}}, b: {predict: {}}, c: {train: {}}}"
    changed = check(text, "members.*.train.epochs=3", "members.c.train.epochs=4")
    assert [member.train.epochs for member in changed.members.values()] == [3, "auto", 4]
    assert changed.members["a"].train.lr == 0.2
    told = complaint(text, "members.*.train.epoch=3")
    assert len(told) == 2
    assert all("--set members.*.train.epoch=3: members." in line for line in told)

"""Suites without models: what is done on which set, the rows of step after step, and what goes to another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reference.vision_layout import write_vision_set
from scantling.errors import DataError, Finding, Severity, UsageError
from scantling.evaluate.over_sets import SetResult, SetRow
from scantling.recipe.recipe import parse_recipe
from scantling.recipe.suite import Suite
from scantling.run.folder import open_run
from scantling.run.stages.suite import step_after_step
from scantling.run.suite import SuiteFolder, recipes_of
from scantling.run.suite_summary import SuiteSummary

RECIPE = parse_recipe("members: {a: {model: {name: faster_rcnn_r18_small}}}", file="r.yaml")


@dataclass(frozen=True)
class NamedStep:
    """As much of a step as the rows look at."""

    name: str

    @property
    def title(self) -> str:
        return {"ensemble": "ensemble", "semantic": "segm", "eliminate": "elimination"}[self.name]


ENSEMBLE, SEMANTIC, ELIMINATE = map(NamedStep, ("ensemble", "semantic", "eliminate"))


@pytest.mark.parametrize(
    ("members", "steps", "rows"),
    [
        (
            ("HTC", "R50", "ConvNext"),
            (ENSEMBLE, SEMANTIC),
            [
                ("HTC", 1, ()),
                ("HTC + segm", 1, (SEMANTIC,)),
                ("HTC + segm + R50", 2, (ENSEMBLE, SEMANTIC)),
                ("HTC + segm + R50 + ConvNext", 3, (ENSEMBLE, SEMANTIC)),
            ],
        ),
        (("HTC", "R50"), (ENSEMBLE,), [("HTC", 1, ()), ("HTC + R50", 2, (ENSEMBLE,))]),
        (("HTC",), (ELIMINATE,), [("HTC", 1, ()), ("HTC + elimination", 1, (ELIMINATE,))]),
        (
            ("HTC",),
            (ENSEMBLE, ELIMINATE),
            [
                ("HTC", 1, ()),
                ("HTC + ensemble", 1, (ENSEMBLE,)),
                ("HTC + ensemble + elimination", 1, (ENSEMBLE, ELIMINATE)),
            ],
        ),
    ],
)
def test_rows_are_those_of_the_papers_third_table_and_end_with_the_run(members, steps, rows):
    found = step_after_step(members, steps)
    assert [(row.name, row.members, row.steps) for row in found] == [
        (name, members[:count], own) for name, count, own in rows
    ]
    assert (found[-1].members, found[-1].steps) == (members, steps)


def test_a_failure_is_told_in_a_line_with_its_place(tmp_path):
    finding = Finding(code="box-size", severity=Severity.ERROR, message="is odd", file="a.json", id=7)
    errors = {
        "x": DataError("two errors", findings=[finding, finding]),
        "y": UsageError("no space left\nhere", hint="Free some."),
        "z": MemoryError("not enough"),
        "w": KeyError("sides"),
        "v": UsageError("x: was run with other settings:\n  lr: was 1\n  seed: was 0"),
    }
    with open_run(tmp_path / "out") as run:
        folder = SuiteFolder(run)
        for name, error in errors.items():
            folder.begin(name)
            folder.fail(name, error)
    assert folder.failures == {
        "x": "error [box-size] a.json: id 7: is odd (and 1 more)",
        "y": "no space left",
        "z": "MemoryError: not enough",
        "w": "KeyError: 'sides'",
        "v": "x: was run with other settings: lr: was 1",
    }
    assert folder.bugs == ["w"]
    told = (tmp_path / "out/run.log").read_text()
    assert "Free some." in told
    summary = SuiteSummary(out=tmp_path / "out", results=tuple(map(folder.result_of, errors)))
    assert "5 of 5 data sets failed." in summary.to_text()
    assert "Measured on no data set." in summary.to_text()
    assert summary.tables == {}


@pytest.mark.parametrize(("part", "name"), [("members", "x"), ("steps", "y")])
def test_a_page_begins_with_what_the_runs_end_with(part, name):
    """Without steps that is the best member, not the last one."""

    def row(of: str, value: float) -> SetRow:
        values = np.array([value])
        return SetRow(name=of, part=part, average_precision=values, average_recall=values)

    result = SetResult(name="a", iou_type="segm", rows=(row("x", 0.5), row("y", 0.3)))
    assert SuiteSummary(out=Path(), results=(result,)).outcome.name == name


def test_each_set_has_its_recipe_and_only_those_asked_for_are_taken(tmp_path, caplog):
    for name in ("Cable", "Wood", "Lens"):
        write_vision_set(tmp_path / name, {"train": 1, "val": 1})
    (tmp_path / "readme").mkdir()
    suite = Suite(name="s", recipe=RECIPE, overrides={"Wood": ("members.a.train.epochs=2",), "Wodo": ()})
    found = recipes_of(suite, tmp_path, ("Wood", "Cable"), 5)
    assert {name: recipe.data.root for name, recipe in found.items()} == {
        name: str(tmp_path / name) for name in ("Cable", "Wood")
    }
    assert [recipe.members["a"].train.epochs for recipe in found.values()] == ["auto", 2]
    assert {recipe.seed for recipe in found.values()} == {5}
    assert "sets.Wodo: there is no such data set" in caplog.text
    assert "passed over: readme" in caplog.text
    assert list(recipes_of(suite, tmp_path, (), None)) == ["Cable", "Lens", "Wood"]

"""What a run would do: told before anything is done, and true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from scantling.data.splits import read_run_data
from scantling.recipe.recipe import parse_recipe
from scantling.run.context import RunContext
from scantling.run.folder import open_run
from scantling.run.pipeline import stages_of
from scantling.run.plan import plan_of
from scantling.run.stage import Stage
from scantling.synth.synth import SynthConfig, write_synth


def chain(root: Path, number: int = 1, *, costly: bool = False) -> list[Stage]:
    """a -> b -> c, and d by itself; every file holds the one before it, and a's the number."""

    def stage(name: str, need: str | None) -> Stage:
        def inputs() -> dict[str, object]:
            return {"number": number} if need is None else {"before": (root / need).read_text()}

        def work() -> None:
            (root / name / "out.txt").write_text(f"{name} of {inputs()}")

        return Stage(
            folder=name,
            name=name,
            inputs=inputs,
            needs=() if need is None else (need,),
            outputs=(f"{name}/out.txt",),
            action=work,
            costly=costly and name == "a",
        )

    return [stage("a", None), stage("b", "a/out.txt"), stage("c", "b/out.txt"), stage("d", None)]


WHOLE = """
pretrain: {epochs: 1}
members:
  one: {model: {name: faster_rcnn_r18_small, init: pretrain}}
  two: {model: {name: faster_rcnn_r18_small, init: random}}
combine: {tune: {}, ensemble: {}, eliminate: {}}
refine: {}
audit: {}
"""


def whole_context(folder: Path, folds: int | None) -> RunContext:
    """A run with every kind of stage, none of them done."""
    write_synth(folder / "data", SynthConfig(size_hw=(64, 64)), splits={"train": 2, "val": 1}, seed=0)
    change = f"data.folds={folds or 'null'}"
    recipe = parse_recipe(WHOLE, file="r.yaml", overrides=[change]).on(data=folder / "data")
    data = read_run_data(recipe.data, recipe.evaluate.split)
    console, device = Console(quiet=True), torch.device("cpu")
    return RunContext(root=folder / "run", recipe=recipe, data=data, device=device, console=console)


def do(root: Path, stages: list[Stage]) -> dict[str, str]:
    with open_run(root) as run:
        for stage in stages:
            run.do(stage)
    return run.stages


def told(root: Path, stages: list[Stage], **options: bool) -> dict[str, str]:
    return {stage.title: str(stage.action) for stage in plan_of(stages, root, **options).stages}


def test_nothing_is_done_or_written_by_a_plan(tmp_path):
    root = tmp_path / "run"
    plan = plan_of(chain(root), root)
    assert [str(stage.action) for stage in plan.stages] == ["do"] * 4
    assert [stage.after for stage in plan.stages] == [(), ("a",), ("b",), ()]
    assert [stage.reasons for stage in plan.stages[:2]] == [("not done yet",), ("after a",)]
    assert not root.exists()


def test_a_plan_comes_true(tmp_path):
    assert set(do(tmp_path, chain(tmp_path)).values()) == {"done"}
    assert told(tmp_path, chain(tmp_path)) == dict.fromkeys("abcd", "keep")
    (tmp_path / "b/out.txt").write_text("x")
    plan = plan_of(chain(tmp_path), tmp_path)
    assert [str(stage.action) for stage in plan.stages] == ["keep", "redo", "redo", "keep"]
    assert plan.stages[1].reasons == ("b/out.txt: missing or changed",)
    assert plan.stages[2].reasons == (
        "after b; kept if nothing that it is computed from comes out differently",
    )
    assert do(tmp_path, chain(tmp_path)) == {"a": "kept", "b": "done", "c": "kept", "d": "kept"}
    plan = plan_of(chain(tmp_path, 2), tmp_path)
    assert plan.stages[0].reasons == ("number: was 1, is now 2",)
    assert told(tmp_path, chain(tmp_path, 2)) == {"a": "redo", "b": "redo", "c": "redo", "d": "redo"}
    assert told(tmp_path, chain(tmp_path), fresh=True) == dict.fromkeys("abcd", "do")


def test_what_would_stop_the_run_is_told(tmp_path):
    do(tmp_path, chain(tmp_path, costly=True))
    plan = plan_of(chain(tmp_path, 2, costly=True), tmp_path)
    assert [str(stage.action) for stage in plan.stages] == ["refuse", "redo", "redo", "redo"]
    alone = [Stage(folder="e", name="e", inputs=dict, needs=("/nowhere.json",), outputs=(), action=list)]
    plan = plan_of(alone, tmp_path)
    assert (str(plan.stages[0].action), plan.stages[0].reasons) == (
        "refuse",
        ("/nowhere.json: there is no such file",),
    )


def test_what_was_begun_goes_on(tmp_path):
    (stage, *_) = chain(tmp_path, costly=True)
    stage.note_start(tmp_path, stage.inputs())
    assert told(tmp_path, chain(tmp_path, costly=True))["a"] == "continue"


def test_a_plan_reads_well_and_is_plain_values(tmp_path):
    do(tmp_path, chain(tmp_path)[:1])
    plan = plan_of(chain(tmp_path), tmp_path)
    lines = plan.to_text().splitlines()
    assert lines[0].split(maxsplit=2) == ["keep", "a", "done and unchanged"]
    assert lines[-1] == f"{tmp_path}: 1 to keep, 3 to do"
    record = json.loads(json.dumps(plan.to_dict()))
    assert record["stages"][2] == {"stage": "c", "action": "do", "reasons": ["after b"], "after": ["b"]}


@pytest.mark.parametrize("folds", [None, 2])
def test_every_file_of_a_run_that_a_stage_needs_is_left_by_an_earlier_one(tmp_path, folds):
    context = whole_context(tmp_path, folds)
    left: set[str] = set()
    titles, stages = [], stages_of(context)
    for stage in stages:
        titles.append(stage.title)
        assert set(stage.needs) <= left, stage.title
        assert not left & set(stage.outputs), stage.title
        left |= set(stage.outputs)
    assert len(set(titles)) == len(titles)
    assert {"refine/gate", "eliminate", "tune/ensemble", "audit", "pretrain"} <= set(titles)
    last = plan_of(stages, context.root).stages[-1]
    assert (last.title, set(last.after)) == ("report", {"audit", "evaluate"})
    assert not context.root.exists()

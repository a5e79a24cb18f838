"""Several runs as one graph: each with its own records and log, and what ends one ends no other."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from scantling.errors import Interrupted, TrainingError
from scantling.run.engines.schedule import do_all
from scantling.run.folder import open_run
from scantling.run.logs import telling_of
from scantling.run.several import RunsContext, _Notes, _OpenRun, stages_of_runs
from scantling.run.stage import Resources, Stage

log = logging.getLogger("scantling.tests")


@dataclass
class Whole:
    """What is noted of each run as a whole."""

    said: list[tuple[str, ...]] = field(default_factory=list)

    def expect(self, names: Sequence[str]) -> None:
        self.said.append(("expect", *names))

    def begin(self, name: str) -> None:
        self.said.append(("begin", name))

    def end(self, name: str) -> None:
        self.said.append(("end", name))

    def fail(self, name: str, error: Exception) -> None:
        self.said.append(("fail", name, type(error).__name__))

    def progress(self, name: str, facts) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Runs(RunsContext):
    """Runs of two stages, of which some do not work."""

    trouble: dict[str, Exception] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)

    def stages_of(self, folder: str) -> Sequence[Stage]:
        root = self.root / folder

        def stage(name: str, needs: tuple[str, ...] = (), **options) -> Stage:
            action = partial(self.work, root, folder, name)
            inputs = partial(dict, value=self.settings.get(folder, 0))
            return Stage(
                folder=name,
                name=name,
                inputs=inputs,
                needs=needs,
                outputs=(f"{name}/out",),
                action=action,
                **options,
            )

        return [stage("train", costly=True, resources=Resources(gpus=1)), stage("judge", ("train/out",))]

    def work(self, root: Path, folder: str, name: str) -> None:
        log.info("%s is done for %s", name, folder)
        if (error := self.trouble.get(f"{folder}/{name}")) is not None:
            raise error
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "out").write_text(folder)


def runs_in(root: Path, names: Sequence[str] = ("a", "b", "c"), **options) -> Runs:
    console = Console(file=io.StringIO())
    place = {"root": root, "device": torch.device("cpu"), "console": console, "build": list}
    return Runs(runs=dict.fromkeys(names), **place, **options)


def do(context: Runs) -> tuple[Whole, dict[str, dict]]:
    """All runs, and the status of each afterwards."""
    whole, root = Whole(), context.root
    with open_run(root), telling_of(root), ExitStack() as together:
        opened = {}
        for folder in context.runs:
            stack = together.enter_context(ExitStack())
            opened[folder] = _OpenRun(context, stack.enter_context(open_run(root / folder)), stack)
        for folder, others in context.after.items():
            opened[folder].run.lenders = tuple(root / other for other in others)
        do_all(stages_of_runs(context), _Notes(context, opened, whole))
    return whole, {folder: status_of(root / folder) for folder in context.runs}


def status_of(root: Path) -> dict:
    return json.loads((root / "status.json").read_text())


def test_each_run_ends_with_its_last_stage_and_has_its_own_log(tmp_path):
    whole, status = do(runs_in(tmp_path / "out"))
    assert whole.said == [(what, name) for name in "abc" for what in ("begin", "end")]
    assert {name: one["state"] for name, one in status.items()} == dict.fromkeys("abc", "done")
    logs = {name: (tmp_path / "out" / name / "run.log").read_text() for name in "abc"}
    assert "judge is done for a" in logs["a"]
    assert "for b" not in logs["a"]
    assert all(f"judge is done for {name}" in (tmp_path / "out/run.log").read_text() for name in "abc")


def test_a_run_that_fails_or_is_refused_costs_no_other(tmp_path):
    root = tmp_path / "out"
    do(runs_in(root, ("b",)))
    trouble = {"a/train": TrainingError("no")}
    whole, status = do(runs_in(root, trouble=trouble, settings={"b": 1}))
    assert [one for one in whole.said if one[0] in ("end", "fail")] == [
        ("fail", "a", "TrainingError"),
        ("fail", "b", "ConfigError"),
        ("end", "c"),
    ]
    assert status["a"]["stages"] == {"train": "failed", "judge": "left"}
    assert status["b"]["stages"] == {"train": "failed", "judge": "left"}
    assert "was run with other settings" in status["b"]["message"]
    assert status["c"]["state"] == "done"


def test_a_signal_leaves_runs_that_are_done_as_they_are(tmp_path):
    root = tmp_path / "out"
    with pytest.raises(Interrupted):
        do(runs_in(root, trouble={"b/judge": Interrupted(15, "stop")}))
    states = {name: (status_of(root / name)["state"], status_of(root / name)["stages"]) for name in "abc"}
    assert states["a"] == ("done", {"train": "done", "judge": "done"})
    assert states["b"] == ("interrupted", {"train": "done", "judge": "interrupted"})
    assert states["c"] == ("interrupted", {"train": "waiting", "judge": "waiting"})


def test_a_training_waits_for_the_same_of_another_run_and_does_without_it(tmp_path):
    context = runs_in(tmp_path / "out", after={"b": ("a",)})
    by_title = {stage.title: stage for stage in stages_of_runs(context)}
    assert by_title["b/train"].after == ("a/train/out",)
    assert by_title["b/judge"].after == ()
    whole, status = do(runs_in(tmp_path / "lent", after={"b": ("a",)}))
    assert status["b"]["stages"] == {"train": "shared", "judge": "done"}
    assert (tmp_path / "lent/b/train/out").read_text() == "a"
    failing = runs_in(tmp_path / "alone", after={"b": ("a",)}, trouble={"a/train": TrainingError("no")})
    whole, status = do(failing)
    assert status["b"]["stages"] == {"train": "done", "judge": "done"}
    assert ("end", "b") in whole.said


def test_a_run_of_which_all_is_left_is_not_done(tmp_path):
    def left() -> None:
        with open_run(tmp_path / "run") as run:
            run.note("t", "left")
            run.require_all()

    with pytest.raises(TrainingError, match="1 stages were left"):
        left()
    assert status_of(tmp_path / "run")["state"] == "failed"


def test_a_refusal_names_the_settings(tmp_path):
    do(runs_in(tmp_path / "out", ("a",)))
    _, status = do(runs_in(tmp_path / "out", ("a",), settings={"a": 3}))
    assert "value: was 0, is now 3" in status["a"]["message"]


def test_a_context_from_another_process_is_narrowed_to_the_run_of_a_stage(tmp_path):
    console = Console(file=io.StringIO())
    place = {"root": tmp_path, "device": torch.device("cpu"), "console": console, "build": list}
    sent = pickle.loads(pickle.dumps(RunsContext(runs=dict.fromkeys(("x/a", "x/ab", "b")), **place)))
    assert list(sent.only("x/a/members/one/train").runs) == ["x/a"]
    assert list(sent.runs) == ["x/a", "x/ab", "b"]

"""How a run stands: what is told while it goes on, and what is made of it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import typer

from reference.forked import fork_workers
from run import side_by_side_stages as stages
from run.test_schedule import stages as plain_stages
from scantling import api
from scantling.cli.app import app
from scantling.errors import DataError, UsageError
from scantling.run.engines.schedule import do_all
from scantling.run.folder import STATUS, open_run
from scantling.run.leases import Leases, Owner
from scantling.run.running import command_to_go_on, describe_process, seconds_left
from scantling.train.progress import Pace, counted, tell, watched_by

HERE = socket.gethostname()


def status_of(path):
    return json.loads((path / STATUS).read_text())


def test_every_watcher_is_told_and_those_further_out_which_stage_it_is(monkeypatch):
    now, outer, inner = [0.0], [], []
    monkeypatch.setattr("scantling.train.progress.time.monotonic", lambda: now[0])
    with watched_by(outer.append, "set"), watched_by(inner.append, "a/train"):
        assert (outer, inner) == ([{}, {"stage": "a/train"}], [{}])
        tell(lambda: {"step": 1})
        assert len(inner) == 1, "a second has not passed"
        now[0] = 1.0
        tell(lambda: {"step": 2})
        tell(lambda: {"step": 3})
        tell(lambda: {"step": 4}, at_once=True)
    assert inner[1:] == [{"step": 2}, {"step": 4}]
    assert outer[2:] == [{"step": 2, "stage": "a/train"}, {"step": 4, "stage": "a/train"}]
    tell(lambda: pytest.fail("nobody is to be told"), at_once=True)


def test_a_training_tells_speed_time_left_and_the_metrics_seen_last(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr("scantling.train.progress.time.monotonic", lambda: now[0])
    pace = Pace(total=40, start=10, epochs=4)
    assert pace.facts()["eta_seconds"] is None
    with watched_by(told.append):
        for step in range(11, 21):
            now[0] += 2.0
            pace.advance(step, 4)
        pace.note({"step": 20, "epoch": 2.0, "loss": 0.5, "loss/box": 0.1, "lr": 0.01})
        pace.note({"step": 20, "epoch": 2.0, "val/bbox/AP": 0.25, "val/bbox/AP50": float("nan")})
        pace.note({"step": 20, "epoch": 2.0, "loss": 0.4})
    assert told[-1] == {
        "step": 20,
        "total_steps": 40,
        "epoch": 2.0,
        "epochs": 4,
        "images_per_second": 2.0,
        "eta_seconds": 40.0,
        "metrics": {"loss": 0.5, "val/bbox/AP": 0.25, "val/bbox/AP50": None},
    }
    assert pace.describe() == "2.0 images/s, 0:00:40 left"


def test_images_are_counted_as_they_are_seen(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr("scantling.train.progress.time.monotonic", lambda: now[0])
    with watched_by(told.append):
        for _ in counted("abcd", 4):
            now[0] += 2.0
    assert [each.get("images") for each in told] == [None, 1, 2, 3, 4]
    assert (told[1]["eta_seconds"], told[-1]["images_per_second"]) == (6.0, 0.5)


def test_one_process_notes_what_it_does_and_which_stages_wait(tmp_path):
    seen = []

    def act(run, name: str) -> None:
        tell(lambda: {"step": 1, "total_steps": 2, "eta_seconds": 7.0}, at_once=True)
        run.write_status("running")
        seen.append(api.status(tmp_path))

    with open_run(tmp_path) as run:
        do_all(
            [replace(stage, outputs=()) for stage in plain_stages(partial(act, run), {"a": "", "b": ""})], run
        )
    first, last = seen
    assert dict(first.stages) == {"a": "running", "b": "waiting"}
    assert (first.running["a"].host, first.running["a"].pid) == (HERE, os.getpid())
    assert first.running["a"].facts["step"] == 1
    assert (first.eta_seconds, last.eta_seconds) == (None, 7.0)
    assert "0 of 2 stages done (1 running, 1 waiting)" in first.to_text()
    assert f"  a: process {os.getpid()} on {HERE}" in first.to_text()
    assert "    step 1 of 2, 0:00:07 left" in first.to_text()
    end = api.status(tmp_path)
    assert (end.state, dict(end.running), end.counts) == ("done", {}, {"done": 2})
    assert end.has_ended


def test_time_is_left_only_where_it_is_known():
    known, unknown, part = (
        {"eta_seconds": 3.0},
        {"eta_seconds": None},
        {"eta_seconds": 2.0, "stage": "a/train"},
    )
    assert seconds_left([known, {"eta_seconds": 9.0}], ["running", "done"]) == 9.0
    assert seconds_left([known], ["running", "waiting"]) is None
    assert seconds_left([known, unknown], ["running"]) is None
    assert seconds_left([part], ["running"]) is None
    assert seconds_left([], ["done"]) is None


def test_workers_tell_the_main_process_how_they_come_along(tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    notes = stages.Notes()
    stages.do_side_by_side(stages.context_at(tmp_path), notes, stages.build_telling, 2)
    assert notes.planned == ["a", "b"]
    for name in "ab":
        where, told = notes.told[name][-1]["where"], notes.told[name][-1]
        assert where["host"] == HERE
        assert where["pid"] == int((tmp_path / name / "out.txt").read_text()) != os.getpid()
        assert told["step"] == 2


def test_what_failed_is_named_with_its_log_and_the_command_that_goes_on(tmp_path, monkeypatch, caplog):
    out = tmp_path / "a run"
    command = ["train", "data", "--out", str(out), "--overwrite", "--set", "members.*.train.lr=0.1"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/scantling", *command])

    def act(name: str) -> None:
        (out / "logs").mkdir(exist_ok=True)
        (out / "logs/a.log").write_text("long")
        raise DataError(f"{name} is broken", findings=[stages.FINDING])

    with pytest.raises(DataError), open_run(out) as run:  # noqa: PT012 - the end of a run that failed
        do_all(plain_stages(act, {"a": "", "c": "a"}), run)
        run.require_all()
    found = api.status(out)
    assert (found.state, dict(found.stages)) == ("failed", {"a": "failed", "c": "left"})
    assert found.failures["a"] == {"reason": str(stages.FINDING), "log": "logs/a.log"}
    text = found.to_text()
    assert f"  a: {stages.FINDING}\n    log: {out / 'logs/a.log'}\n" in text
    assert "left, as they need what these would have made: c" in text
    advised = text.splitlines()[-1].partition("does only what is missing: ")[2]
    assert shlex.split(advised) == ["scantling", *(each for each in command if each != "--overwrite")]
    group = typer.main.get_command(app)
    verb = group.commands["train"]
    assert verb.make_context("train", shlex.split(advised)[2:]).params["overwrite"] is False
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert f"a: {stages.FINDING} (log: {out / 'logs/a.log'})" in told
    assert f"The same command given again does only what is missing: {advised}" in told


@pytest.mark.parametrize(
    ("program", "world", "known"),
    [("/venv/lib/scantling/__main__.py", "1", True), ("/bin/pytest", "1", False), ("scantling", "2", False)],
)
def test_a_command_is_told_only_where_there_was_one(monkeypatch, program, world, known):
    monkeypatch.setattr(sys, "argv", [program, "run", "a b.yaml"])
    monkeypatch.setenv("WORLD_SIZE", world)
    assert command_to_go_on() == ("scantling run 'a b.yaml'" if known else None)


def running_status(path, stages_, **changes):
    path.mkdir(parents=True, exist_ok=True)
    owner = Owner.here()
    content = {"state": "running", "stages": stages_, "running": {}, "host": owner.host, "pid": owner.pid}
    content |= {"process": {"space": owner.space, "began": owner.began}, "command": "scantling run r.yaml"}
    content |= {"directory": str(Path.cwd()), "updated": "2026-01-01T00:00:00+00:00"}
    (path / STATUS).write_text(json.dumps(content | changes))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = Owner.here().began
    facts = {"a": {"where": {"host": HERE, "pid": process.pid}, "since": "2026-01-01T00:00:00+00:00"}}
    process.communicate(b"\n")
    running_status(tmp_path, {"a": "running", "b": "waiting"}, pid=process.pid, running=facts)
    found = api.status(tmp_path)
    assert (found.state, dict(found.running)) == ("killed", {})
    assert found.counts == {"waiting": 1, "interrupted": 1}
    assert "was killed" in found.to_text()
    assert found.to_text().endswith("The same command does only what is missing: scantling run r.yaml")
    running_status(tmp_path, {"a": "running"}, running=facts)
    assert (api.status(tmp_path).state, began) == ("running", Owner.here().began)
    running_status(tmp_path, {"a": "running"}, pid=process.pid, host="elsewhere")
    assert api.status(tmp_path).state == "running", "what happens elsewhere is not known"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_shared_run_goes_on_while_another_process_holds_a_stage_and_is_heard(tmp_path):
    gone = {"pid": 4194303, "process": {"space": Owner.here().space, "began": "1"}}
    waiting = {"c": {"where": None, "since": "2026-01-01T00:00:00+00:00"}}
    running_status(
        tmp_path,
        {"a": "running", "b": "running", "c": "running"},
        running=waiting,
        eta_seconds=5.0,
        **gone,
    )
    assert Leases(root=tmp_path, owner=replace(Owner.here(), pid=4194303, began="1")).take("b")
    assert (api.status(tmp_path).state, api.status(tmp_path).has_ended) == ("killed", True)
    live = Leases(root=tmp_path, owner=replace(Owner.here(), host="elsewhere")).take("a")
    found = api.status(tmp_path)
    assert (found.state, found.has_ended, list(found.running)) == ("running", False, ["a"])
    assert dict(found.stages) == {"a": "running", "b": "interrupted", "c": "interrupted"}
    assert found.eta_seconds is None, "it was that of the process that is gone"
    assert "killed" not in found.to_text()
    live.beat({"updated": "2026-01-01T00:00:00+00:00"})
    assert api.status(tmp_path).state == "killed", "it has been silent for too long"


def test_what_is_queued_has_not_ended_and_is_not_to_be_submitted_again(tmp_path):
    running_status(tmp_path, {}, state="queued", command="scantling launch slurm r.yaml")
    found = api.status(tmp_path)
    assert (found.state, found.has_ended) == ("queued", False)
    assert "launch slurm" not in found.to_text()


def test_leases_tell_who_does_a_stage_and_when_it_was_heard_last(tmp_path):
    running_status(
        tmp_path,
        {"a": "running", "b": "running", "c": "running", "d": "done"},
        running={name: {"where": None, "since": "2026-01-01T00:00:00+00:00"} for name in "abc"},
    )
    live = Leases(root=tmp_path).take("a")
    dead = Leases(root=tmp_path, owner=replace(Owner.here(), pid=4194303, began="1")).take("b")
    done = Leases(root=tmp_path).take("d")
    assert all((live, dead, done))
    live.beat(
        {
            "epoch": 1.5,
            "epochs": 4,
            "since": "2026-01-01T00:00:00+00:00",
            "updated": "2026-01-01T00:00:00+00:00",
        }
    )
    found = api.status(tmp_path)
    assert (found.running["a"].host, found.running["a"].facts["epoch"]) == (HERE, 1.5)
    assert found.running["a"].silent_seconds > 1e6
    assert (found.running["a"].is_gone, found.running["b"].is_gone) == (False, sys.platform == "linux")
    assert found.running["c"].host is None
    assert "d" not in found.running
    text = found.to_text()
    assert "epoch 1.50 of 4" in text
    assert "last sign of life" in text
    assert "waiting for a machine or just begun: 1" in text
    if sys.platform == "linux":
        assert "process 4194303 on" in text
        assert "which is gone" in text


def test_a_suite_has_a_line_for_each_set_and_what_runs_in_it(tmp_path):
    running_status(tmp_path, {"first": "running", "second": "done", "third": "waiting"})
    facts = {
        "where": {"host": "n1", "pid": 7},
        "since": None,
        "epoch": 2.0,
        "epochs": 4,
        "metrics": {"loss": 0.5},
    }
    running_status(
        tmp_path / "first", {"a/train": "running", "report": "waiting"}, running={"a/train": facts}
    )
    running_status(tmp_path / "second", {"a/train": "done", "report": "kept"}, state="done")
    found = api.status(tmp_path)
    text = found.to_text()
    assert list(found.parts) == ["first", "second"]
    assert "  first: running, 0 of 2 stages done (1 running, 1 waiting)" in text
    assert "  second: done, 2 of 2 stages done (1 done, 1 kept)" in text
    assert "  first: a/train: process 7 on n1\n    epoch 2.00 of 4\n    loss 0.5" in text
    assert json.loads(json.dumps(found.to_dict()))["parts"]["first"]["running"]["a/train"]["pid"] == 7
    running_status(tmp_path, {"one": "running"})
    running_status(tmp_path / "combinations/one", {"a/train": "running"})
    assert list(api.status(tmp_path).parts) == ["one"]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run in there"):
        api.status(tmp_path)
    (tmp_path / STATUS).write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        api.status(tmp_path)
    (tmp_path / STATUS).write_text("[]")
    with pytest.raises(UsageError, match="no status of a run"):
        api.status(tmp_path)


def test_watching_ends_with_the_run_and_tells_only_news(tmp_path, monkeypatch, capsys):
    from scantling.cli import status_verb

    running_status(tmp_path, {"a": "running"})
    looks = iter([{"a": "running"}, {"a": "done"}])

    def pass_time(_: float) -> None:
        now = next(looks)
        running_status(tmp_path, now, state="running" if now["a"] == "running" else "done")

    monkeypatch.setattr(status_verb.time, "sleep", pass_time)
    status_verb.status(tmp_path, watch=True)
    told = capsys.readouterr().out
    assert told.count(f"{tmp_path}: running") == 1
    assert told.count(f"{tmp_path}: done") == 1


def test_whoever_has_seen_enough_ends_the_watching(tmp_path, monkeypatch, capsys):
    from scantling.cli import status_verb

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    running_status(tmp_path, {"a": "running"})
    monkeypatch.setattr(status_verb.time, "sleep", interrupt)
    status_verb.status(tmp_path, watch=True)
    assert "interrupted" not in capsys.readouterr().err


@pytest.mark.parametrize("state", ["interrupted", "running"])
def test_a_suite_goes_on_while_one_of_its_runs_does_whatever_ended_the_process_that_wrote_last(
    tmp_path, state
):
    here = Owner.here()
    gone = {"pid": 4_000_000, "host": here.host, "process": {"space": here.space, "began": "1"}}
    whole = {"state": state, "stages": {"alpha": "interrupted"}, "message": "stopped by SIGTERM", **gone}
    (tmp_path / "alpha").mkdir()
    (tmp_path / "status.json").write_text(json.dumps(whole))
    part = {"state": "running", "stages": {"one/train": "running"}, **describe_process()}
    for part_state, expected in (("running", "running"), ("interrupted", None)):
        (tmp_path / "alpha/status.json").write_text(json.dumps(part | {"state": part_state}))
        found = api.status(tmp_path)
        assert found.state == (expected or {"running": "killed"}.get(state, state))
        assert found.message == (None if expected else "stopped by SIGTERM")

"""Stages side by side in processes of their own: as one after the other, and no process is left behind."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reference.forked import fork_workers
from run import side_by_side_stages as stages
from scantling.errors import DataError, Interrupted, TrainingError, UsageError
from scantling.recipe.recipe import parse_recipe
from scantling.run.engines.choice import Engine, check_engine
from scantling.run.engines.local import do_side_by_side
from scantling.run.engines.worker import Failed, failure_of
from scantling.run.pipeline import available_for, run_recipe
from scantling.synth.synth import SynthConfig, write_synth
from scantling.train.devices import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def forked(monkeypatch) -> None:
    """Workers that load nothing anew; elsewhere in this file they start as they do for users."""
    fork_workers(monkeypatch)


def scenario(tmp_path: Path, name: str) -> Path:
    (tmp_path / "scenario").write_text(name)
    return tmp_path / "run"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(tmp_path: Path) -> list[int]:
    pids = [int(file.read_text()) for file in sorted((tmp_path / "pids").iterdir())]
    deadline = time.monotonic() + stages.PATIENCE
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_alive(pid)]
    return pids


@pytest.mark.parametrize("name", ["error", "killed"])
def test_a_failure_arrives_whole_and_stops_only_what_needs_the_stage(tmp_path, forked, name, capsys):
    root = scenario(tmp_path, name)
    with pytest.raises(DataError if name == "error" else TrainingError) as caught:
        stages.do(root)
    if name == "error":
        assert (caught.value.findings, caught.value.hint) == ((stages.FINDING,), "Mend it.")
        assert "in fail" in caught.value.__notes__[0]
    else:
        assert "b: its process ended by signal 9" in str(caught.value)
        assert "--jobs" in str(caught.value.hint)
    assert len({*wait_until_gone(tmp_path), os.getpid()}) == 3
    told = capsys.readouterr().err
    assert "a: a is here\n" in told
    assert "b: b is here\n" in told
    status = json.loads((root / "status.json").read_text())
    assert (status["state"], status["stages"]) == ("failed", {"a": "done", "b": "failed", "c": "left"})
    assert (root / "a/out.txt").is_file()
    assert not (root / "c").exists()
    log = (root / "run.log").read_text()
    assert "1 of 3 stages failed: b; 1 were left, as they need what these would have made: c" in log
    assert f"b: {status['failures']['b']['reason']} (log: {root / 'run.log'})" in log
    assert list(status["failures"]) == ["b"]
    assert "The same command given again does only what is missing." in log


def test_where_failures_are_noted_the_others_are_done(tmp_path, forked):
    notes = stages.Notes()
    do_side_by_side(stages.context_at(tmp_path), notes, stages.build_unrelated, 2)
    assert notes.begun == ["a", "b", "c", "d"]
    assert sorted(notes.done) == ["a", "d"]
    broken, killed = notes.failed["b"], notes.failed["c"]
    assert isinstance(broken, DataError)
    assert broken.findings == (stages.FINDING,)
    assert isinstance(killed, TrainingError)
    assert "c: its process ended by signal 9" in str(killed)
    assert {name for name in "abcd" if (tmp_path / name / "out.txt").is_file()} == {"a", "d"}


def test_a_signal_to_the_main_process_ends_all_with_their_state_saved(tmp_path, forked):
    root = scenario(tmp_path, "stay")

    def send() -> None:
        stages.wait_for(tmp_path / "pids/a", tmp_path / "pids/b")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("not waited for where it may arrive"))
    try:
        threading.Thread(target=send).start()
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
            stages.do(root)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.signum == signal.SIGTERM
    wait_until_gone(tmp_path)
    assert all((tmp_path / f"saved-{name}").exists() for name in "ab")
    status = json.loads((root / "status.json").read_text())
    stopped = {"a": "interrupted", "b": "interrupted", "c": "waiting"}
    assert (status["state"], status["stages"], status["running"]) == ("interrupted", stopped, {})


def test_workers_outlive_no_main_process(tmp_path):
    root = scenario(tmp_path, "stay")
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, stages.__file__, str(root)], env=environment)
    stages.wait_for(tmp_path / "pids/a", tmp_path / "pids/b")
    process.kill()
    process.wait(stages.PATIENCE)
    wait_until_gone(tmp_path)
    assert all((tmp_path / f"saved-{name}").exists() for name in "ab")


def test_what_failed_is_told_by_whatever_can_travel():
    class OddError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def through(error: BaseException) -> BaseException:
        failed = pickle.loads(pickle.dumps(failure_of(error)))
        assert isinstance(failed, Failed)
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - the type is what is tested
            raise failed.as_error()
        return caught.value

    assert isinstance(through(ZeroDivisionError("by nothing")), ZeroDivisionError)
    odd = through(OddError(1, 2))
    assert (type(odd), str(odd)) == (RuntimeError, "OddError: 1 and 2")
    assert isinstance(through(torch.OutOfMemoryError("full")), torch.OutOfMemoryError)
    stopped = through(Interrupted(15, "after step 3"))
    assert isinstance(stopped, Interrupted)
    assert (stopped.signum, stopped.message) == (15, "after step 3")


def test_each_of_several_gpus_is_used_unless_one_was_asked_for(monkeypatch):
    names = ["cuda:0", "cuda:1", "cpu"]
    monkeypatch.setattr("scantling.run.pipeline.available_devices", lambda: names)
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert available_for("auto", gpu) == (gpu, torch.device("cuda:1"))
    assert available_for("cuda:0", gpu) == (gpu,)
    assert available_for("auto", cpu) == (cpu,)


def test_processes_that_do_each_stage_together_are_not_shared_out(tmp_path):
    root = scenario(tmp_path, "stay")
    context = replace(stages.context_at(root), processes=Processes(rank=0, world=2))
    with pytest.raises(UsageError, match="torchrun"):
        check_engine(Engine(jobs=2), context)
    check_engine(Engine(), context)


RECIPE = """
members:
  one:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 2, workers: 1, warmup_steps: 2}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 20}}
combine: {tune: {weights: false}, ensemble: {}}
evaluate: {bootstrap: 10}
"""
OWN = {"env.json", "run.log", "status.json", "report.html", "report/done.json"}
"""Files that tell when and how a run was done."""


def files_in(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_run_side_by_side_equals_one_stage_after_the_other_to_the_bit(tmp_path):
    write_synth(tmp_path / "data", SynthConfig(size_hw=(96, 128)), splits={"train": 4, "val": 2}, seed=0)
    recipe = parse_recipe(RECIPE, file="r.yaml")
    recipe = recipe.model_copy(update={"members": dict.fromkeys(("one", "two"), recipe.members["one"])})
    recipe = recipe.on(data=tmp_path / "data")
    first = run_recipe(recipe, tmp_path / "first", device="cpu")
    second = run_recipe(recipe, tmp_path / "second", device="cpu", engine=Engine(jobs=2))
    assert (second.metrics, second.steps) == (first.metrics, first.steps)
    ours, theirs = files_in(tmp_path / "second"), files_in(tmp_path / "first")
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= OWN
    weights = [ours[f"members/{name}/best.safetensors"] for name in ("one", "two")]
    assert weights[0] != weights[1]
    assert list(json.loads(ours["status.json"])["stages"].values()) == ["done"] * 11

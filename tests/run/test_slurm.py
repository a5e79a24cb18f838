"""Arrays of jobs through submitit: checked first, one run together, the same weights after pre-emption."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from reference.forked import Forked
from scantling import api
from scantling.errors import Interrupted, ScantlingError, UsageError
from scantling.recipe.recipe import Recipe, parse_recipe
from scantling.run.engines import slurm
from scantling.run.engines.choice import Engine
from scantling.run.engines.slurm import Allocation, Unit
from scantling.run.folder import open_run
from scantling.run.leases import PATIENCE_SECONDS, current_leases, read_log
from scantling.run.pipeline import prepared_run, run_recipe
from scantling.synth.synth import SynthConfig, write_synth

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="the system has no such signal"),
]
RECIPE = """
data: {folds: 3}
members:
  one:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 2, batch_size: 2, workers: 0, warmup_steps: 2}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 20}}
  two:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 2, batch_size: 2, workers: 0, warmup_steps: 2}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 20}}
evaluate: {bootstrap: 10}
"""
PATIENCE = 250.0
OWN = {"env.json", "status.json", "report.html", "report/done.json", "run.log"}
"""Files that tell when and how a run was done."""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    write_synth(folder / "data", SynthConfig(size_hw=(96, 128)), splits={"train": 6, "val": 2}, seed=0)
    file = folder / "tiny.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def recipe(recipe_file) -> Recipe:
    return parse_recipe(RECIPE, file="tiny.yaml").on(data=recipe_file.parent / "data")


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory) -> dict[str, bytes]:
    """What the ordinary run leaves."""
    out = tmp_path_factory.mktemp("ordinary") / "run"
    run_recipe(recipe, out, device="cpu")
    return files_in(out)


def files_in(out: Path) -> dict[str, bytes]:
    """Everything that the stages left."""
    shared = ("leases", "logs", "slurm")
    paths = [
        path for path in out.rglob("*") if path.is_file() and path.relative_to(out).parts[0] not in shared
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def require_equal(out: Path, expected: dict[str, bytes]) -> None:
    found = files_in(out)
    assert found.keys() - OWN == expected.keys() - OWN
    assert {name for name in found.keys() & expected.keys() if found[name] != expected[name]} <= OWN
    assert sum(name.endswith("best.safetensors") for name in found) == 6


def preempt_in_training(monkeypatch) -> list[int]:
    """Have this process asked to end in the midst of the second training, once; the steps at which it was."""
    from scantling.train.step import Stepper

    asked, seen, update = [], [], Stepper.update

    def updated(self, *args, **kwargs):
        seen.append(kwargs["step"])
        if not asked and seen.count(1) == 2:
            asked.append(kwargs["step"])
            signal.raise_signal(signal.SIGUSR2)
        return update(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "update", updated)
    return asked


@pytest.mark.slow
def test_an_array_one_of_which_is_preempted_ends_with_the_weights_of_a_run_that_was_not(
    recipe_file, uninterrupted, tmp_path, monkeypatch
):
    asked, out = preempt_in_training(monkeypatch), tmp_path / "run"
    launched = api.launch_slurm(
        recipe_file,
        recipe_file.parent / "data",
        out,
        device="cpu",
        units=6,
        slurm=Allocation(executor="debug", gpus=0),
    )
    assert len(launched.jobs) == 6
    assert asked == [1]
    require_equal(out, uninterrupted)
    events = [(entry["stage"], entry["event"]) for entry in read_log(out)]
    stopped = [title for title, event in events if event == "stopped"]
    assert stopped == ["members/one/fold-1/train"]
    assert [event for title, event in events if title == stopped[0]] == ["taken", "stopped", "taken", "done"]
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    assert f"scantling status {out}" in launched.to_text()


def test_a_unit_asks_submitit_to_begin_it_again_after_its_state_is_saved(tmp_path):
    told: list[object] = []

    def run(*_, engine: Engine, **__):
        told.append(engine)
        try:
            signal.raise_signal(signal.SIGUSR2)
        finally:
            told.append("saved")

    before = signal.signal(signal.SIGUSR2, lambda signum, _: told.append(signum))
    try:
        unit = Unit(do=run, out=tmp_path / "run", device="cpu", launch="x")
        assert unit() == "stopped"
        assert told == [Engine(name="shared", launch="x"), "saved", signal.SIGUSR2]
        again = unit.checkpoint()
        assert (again.function, again.args, again.kwargs) == (unit, (), {})
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_unit_that_is_cancelled_is_not_begun_again(tmp_path):
    def run(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it was passed on"))
    try:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            Unit(do=run, out=tmp_path / "run", device="cpu", launch="x")()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 2}, "a unit uses one GPU or none, not 2"),
        ({"options": ("account",)}, "--slurm account: KEY=VALUE is needed"),
        ({"executor": "slrum"}, "did you mean 'slurm'"),
    ],
)
def test_an_allocation_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Allocation(**options)


def test_what_sbatch_is_told():
    allocation = Allocation(partition="gpu", memory=16, hours=1.5, options=("account=me", "qos=low"))
    assert allocation.parameters(6) == {
        "name": "scantling",
        "timeout_min": 90,
        "gpus_per_node": 1,
        "cpus_per_task": 4,
        "mem_gb": 16,
        "slurm_partition": "gpu",
        "slurm_array_parallelism": 6,
        "slurm_signal_delay_s": 120,
        "slurm_additional_parameters": {"requeue": True, "account": "me", "qos": "low"},
    }


SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
{answer}
"""


def pretend_slurm(folder: Path, monkeypatch, answer: str) -> Path:
    """A Slurm that keeps what is submitted."""
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text(SBATCH.format(answer=answer))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "script"


def test_the_script_is_an_array_with_the_signal_and_may_be_requeued(recipe_file, tmp_path, monkeypatch):
    script = pretend_slurm(tmp_path / "bin", monkeypatch, "echo Submitted batch job 77")
    out = tmp_path / "run"
    allocation = Allocation(partition="gpu", options=("account=me",))
    launched = api.launch_slurm(recipe_file, recipe_file.parent / "data", out, units=6, slurm=allocation)
    assert launched.jobs == tuple(f"77_{number}" for number in range(6))
    lines = script.read_text().splitlines()
    wanted = {"array=0-5%6", "partition=gpu", "account=me", "requeue", "gpus-per-node=1", "time=1440"}
    assert {f"#SBATCH --{option}" for option in wanted} <= set(lines)
    assert any(line.startswith("#SBATCH --signal=") and "USR2@120" in line for line in lines)
    assert json.loads((out / "status.json").read_text())["state"] == "queued"
    assert len(list((out / "slurm").glob("*_submitted.pkl"))) == 6


def test_the_folder_of_an_earlier_run_is_queued_unless_it_is_at_work(recipe_file, tmp_path, monkeypatch):
    data, out = recipe_file.parent / "data", tmp_path / "run"
    script = pretend_slurm(tmp_path / "bin", monkeypatch, "exit 1")
    with pytest.raises(UsageError, match="it fails"), open_run(out) as run:  # noqa: PT012 - a run that failed
        run.note("a", "done")
        run.note("b", "failed")
        raise UsageError("it fails")
    before = (out / "status.json").read_bytes()
    with pytest.raises(UsageError, match="Slurm does not take the jobs"):
        api.launch_slurm(recipe_file, data, out, units=2)
    assert (out / "status.json").read_bytes() == before
    for name in ("sbatch", "srun"):
        (script.parent / name).write_text(SBATCH.format(answer="echo Submitted batch job 77"))
    api.launch_slurm(recipe_file, data, out, units=2)
    found = api.status(out)
    assert (found.state, dict(found.stages)) == ("queued", {"a": "done", "b": "waiting"})
    with open_run(tmp_path / "other") as run:
        run.end_with("running")
        api.launch_slurm(recipe_file, data, tmp_path / "other", units=2)
        assert api.status(tmp_path / "other").state == "running"


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cuda")])
def test_units_compute_on_what_they_are_given(recipe_file, tmp_path, monkeypatch, gpus, device):
    pretend_slurm(tmp_path / "bin", monkeypatch, "echo Submitted batch job 77")
    out = tmp_path / "run"
    api.launch_slurm(recipe_file, recipe_file.parent / "data", out, slurm=Allocation(gpus=gpus))
    (submitted,) = (out / "slurm").glob("*_submitted.pkl")
    assert slurm.require_submitit().helpers.DelayedSubmission.load(submitted).function.device == device


def test_what_cannot_work_is_refused_before_anything_is_written(recipe_file, tmp_path, monkeypatch):
    data, out = recipe_file.parent / "data", tmp_path / "run"
    with pytest.raises(UsageError, match="sbatch is not found"):
        api.launch_slurm(recipe_file, data, out)
    script = pretend_slurm(tmp_path / "bin", monkeypatch, "echo no such partition >&2; exit 1")
    with pytest.raises(ScantlingError, match="nothing"):
        api.launch_slurm(recipe_file, data, out, overrides=["data.val=nothing"])
    assert not script.exists()
    with pytest.raises(UsageError, match="Slurm does not take the jobs"):
        api.launch_slurm(recipe_file, data, out, units=2)
    assert script.exists()
    assert not out.exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    with pytest.raises(UsageError, match="is not a run of scantling"):
        api.launch_slurm(recipe_file, data, tmp_path / "notes", units=2)
    monkeypatch.setattr(slurm, "require_submitit", lambda: pytest.fail("not reached"))
    with pytest.raises(UsageError, match="at least one unit"):
        api.launch_slurm(recipe_file, data, out, units=0)
    with pytest.raises(UsageError, match="did you mean 'suite'"):
        api.launch_slurm(recipe_file, data, out, verb="suit")
    with pytest.raises(UsageError, match="ablate needs --data"):
        api.launch_slurm(recipe_file, None, out, verb="ablate")


def test_the_patience_of_the_engine_is_that_of_a_shared_run(recipe, tmp_path):
    for seconds, expected in ((7.0, 7.0), (None, PATIENCE_SECONDS)):
        engine = Engine(name="shared", patience=seconds)
        with prepared_run(recipe, tmp_path / "run", device="cpu", overwrite=False, engine=engine) as (_, run):
            assert run.leases.patience == expected


@pytest.mark.slow
def test_a_run_by_two_commands_equals_that_by_one(recipe_file, uninterrupted, tmp_path):
    out = tmp_path / "run"
    command = ["run", str(recipe_file), "--device", "cpu", "--engine", "shared", "--json"]
    command += ["--data", str(recipe_file.parent / "data"), "--out", str(out)]
    processes = [begin(command, tmp_path / name) for name in ("first", "second")]
    told = [json.loads(process.communicate(PATIENCE)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert told[0] == told[1]
    require_equal(out, uninterrupted)
    trained = {entry["owner"] for entry in read_log(out) if entry["stage"].endswith("/train")}
    assert len(trained) == 2


def begin(command: list[str], said: Path) -> Forked:
    """The command in a process of its own; what it says is kept in the folder."""
    said.mkdir()
    source = str(Path(__file__).parents[2] / "src")
    return Forked(command, said, environment={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the process of a stage is found by its number")
def test_a_local_array_one_of_which_is_preempted_is_requeued_and_ends_with_the_same_weights(
    recipe_file, uninterrupted, tmp_path
):
    out = tmp_path / "run"
    command = ["launch", "slurm", str(recipe_file), "--device", "cpu"]
    command += ["--data", str(recipe_file.parent / "data"), "--out", str(out), "--units", "3", "--gpus", "0"]
    command += ["--executor", "local", "--json"]
    launch = begin(command, tmp_path / "launch")
    told, errors = launch.communicate(PATIENCE)
    assert launch.returncode == 0, errors
    jobs = json.loads(told)["jobs"]
    assert len(set(jobs)) == 3
    preempted = preempt_whoever_trains(out)
    wait_for_results(out, jobs)
    require_equal(out, uninterrupted)
    logs = "".join(path.read_text() for path in (out / "slurm").glob("*_log.out"))
    assert logs.count("Requeued job") == 1
    events = [entry["event"] for entry in read_log(out) if entry["stage"] == preempted]
    assert events == ["taken", "stopped", "taken", "done"]


def preempt_whoever_trains(out: Path) -> str:
    """Send the signal to the process of a training that has done a step; title of the stage."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for title, state in current_leases(out).items():
            log = out / Path(title).parent / "metrics.jsonl"
            if title.endswith("/train") and state.outcome is None and log.is_file() and log.stat().st_size:
                os.kill(state.owner.pid, signal.SIGUSR2)
                return title
        time.sleep(0.02)
    raise TimeoutError("nothing was trained")


def wait_for_results(out: Path, jobs: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    results = [out / "slurm" / f"{job}_0_result.pkl" for job in jobs]
    while not all(result.is_file() for result in results):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {results}")
        time.sleep(0.2)

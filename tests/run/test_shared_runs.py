"""Several runs, a suite's or an ablation's, done by two processes through nothing but their folders."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from reference.forked import Forked
from reference.masked_parts import write_masked_parts
from scantling import api
from scantling.errors import ScantlingError, UsageError
from scantling.run.engines.choice import Engine
from scantling.run.engines.slurm import Allocation
from scantling.run.leases import LEASES, read_log
from scantling.run.running import LOGS
from scantling.synth.synth import SynthConfig, write_synth

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and seen to be gone"),
]
PATIENCE = 250.0
MEMBER = """
members:
  one:
    model: {name: mask_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16, mask_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 2, batch_size: 2, workers: 0, warmup_steps: 2}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 10}}
evaluate: {bootstrap: 10}
"""
FACTORS = """
ablation:
  design: full
  factors:
    seesaw: {model.class_loss: seesaw}
    few: {predict.suppress.max_per_image: 2}
"""
OWN = {"env.json", "run.log", "status.json", "report.html", "done.json"}
"""Files that tell when and how something was done; `done.json` of the report and of what is made from it."""


def by_two(command: list[object], folder: Path) -> list[tuple[int | None, dict]]:
    """Exit code and result of a command that two processes are given."""
    begun = []
    for name in ("first", "second"):
        (folder / name).mkdir()
        source = str(Path(__file__).parents[2] / "src")
        environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        given = [str(each) for each in (*command, "--engine", "shared", "--device", "cpu", "--json")]
        begun.append(Forked(given, folder / name, environment=environment))
    said = [process.communicate(PATIENCE) for process in begun]
    assert all(out for out, _ in said), said
    return [(process.returncode, json.loads(out)) for process, (out, _) in zip(begun, said, strict=True)]


def files_in(folder: Path) -> dict[str, bytes]:
    """All that runs leave but what tells when, how and where."""
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and path.name not in OWN and not {LEASES, LOGS, "report"} & set(parts):
            found["/".join(parts)] = path.read_bytes()
    return found


def require_equal(ours: Path, theirs: Path) -> None:
    first, second = files_in(ours), files_in(theirs)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def what_was_done(root: Path) -> list[tuple[str, str, str]]:
    """Run, stage and who has done it, of all stages that were done in a folder of runs."""
    found = []
    for log in sorted(root.rglob(f"{LEASES}/log")):
        run = log.parents[1]
        done = [entry for entry in read_log(run) if entry["event"] == "done"]
        found += [(run.relative_to(root).as_posix(), entry["stage"], entry["owner"]) for entry in done]
    return found


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory) -> Path:
    """A recipe beside three sets."""
    folder = tmp_path_factory.mktemp("suite")
    for number, name in enumerate(("alpha", "beta", "gamma")):
        write_masked_parts(folder / "sets" / name, {"train": 4, "val": 2}, seed=number)
    (folder / "r.yaml").write_text(MEMBER)
    return folder / "r.yaml"


def test_a_suite_by_two_commands_equals_that_by_one_and_a_set_that_fails_costs_no_other(suite_file, tmp_path):
    sets = suite_file.parent / "sets"
    for out in ("alone", "two"):  # what beta learns cannot be written
        (tmp_path / out / "beta/members/one/best.safetensors/in-the-way").mkdir(parents=True)
        (tmp_path / out / "beta/status.json").write_text("{}")
        (tmp_path / out / "status.json").write_text("{}")
    alone = api.suite(suite_file, sets, tmp_path / "alone", device="cpu")
    told = by_two(["suite", suite_file, "--data", sets, "--out", tmp_path / "two"], tmp_path)
    assert [code for code, _ in told] == [2, 2]
    assert told[0][1]["tables"] == told[1][1]["tables"] == json.loads(json.dumps(alone.to_dict()["tables"]))
    assert list(alone.failures) == ["beta"]
    for name in ("alpha", "gamma"):
        require_equal(tmp_path / "two" / name, tmp_path / "alone" / name)
    done = what_was_done(tmp_path / "two")
    assert len({(run, stage) for run, stage, _ in done}) == len(done)
    assert {run for run, stage, _ in done if stage == "members/one/train"} == {"alpha", "gamma"}
    assert len({owner for *_, owner in done}) == 2
    status = json.loads((tmp_path / "two/status.json").read_text())
    assert status["stages"] == {"alpha": "done", "beta": "failed", "gamma": "done"}
    for name, state in (("alpha", "done"), ("beta", "failed")):
        assert json.loads((tmp_path / "two" / name / "status.json").read_text())["state"] == state
    assert [Path(each["log"]).exists() for each in told[0][1]["sets"].values()] == [True] * 3
    logs = "".join(path.read_text() for path in (tmp_path / "two/beta" / LOGS).iterdir())
    assert "members/one/train failed" in logs
    assert "alpha" not in logs


def test_an_ablation_by_two_commands_equals_that_by_one_and_models_are_shared(tmp_path):
    write_synth(tmp_path / "data", SynthConfig(size_hw=(96, 128)), splits={"train": 4, "val": 2}, seed=0)
    (tmp_path / "r.yaml").write_text(
        MEMBER.replace("mask_rcnn", "faster_rcnn").replace(" mask_channels: 16,", "") + FACTORS
    )
    first = api.ablate(tmp_path / "data", tmp_path / "r.yaml", tmp_path / "alone", device="cpu")
    command = ["ablate", tmp_path / "data", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "two"]
    told = by_two(command, tmp_path)
    assert [code for code, _ in told] == [0, 0]
    assert told[0][1]["table"] == told[1][1]["table"] == json.loads(json.dumps(first.to_dict()["table"]))
    require_equal(tmp_path / "two", tmp_path / "alone")
    states = json.loads((tmp_path / "two/combinations/few/status.json").read_text())["stages"]
    assert states["members/one/train"] == "shared"
    done = what_was_done(tmp_path / "two")
    assert len({owner for *_, owner in done}) == 2
    assert len({(run, stage) for run, stage, _ in done}) == len(done)


def test_a_suite_is_done_by_an_array_of_jobs_and_a_set_that_cannot_be_used_is_told_first(
    suite_file, tmp_path, caplog
):
    sets = tmp_path / "sets"
    shutil.copytree(suite_file.parent / "sets/alpha", sets / "alpha")
    shutil.copytree(suite_file.parent / "sets/beta", sets / "beta")
    (sets / "beta/annotations/val.json").write_text("{}")
    slurm = Allocation(executor="debug", gpus=0)
    options = {"device": "cpu", "units": 2, "slurm": slurm, "verb": "suite"}
    with pytest.raises(ScantlingError, match="1 of 2 data sets failed: beta"):
        api.launch_slurm(suite_file, sets, tmp_path / "array", **options)
    assert any("beta: " in record.message for record in caplog.records if record.levelname == "WARNING")
    alone = api.suite(suite_file, sets, tmp_path / "alone", device="cpu")
    require_equal(tmp_path / "array/alpha", tmp_path / "alone/alpha")
    told = [
        text.partition("beta failed")[0]
        for text in ((tmp_path / "array/suite.md").read_text(), alone.to_text())
    ]
    assert told[0] == told[1]
    assert "Measured on alpha" in told[0]
    (sets / "alpha/annotations/val.json").write_text("{}")
    with pytest.raises(ScantlingError, match=r"val\.json"):
        api.launch_slurm(suite_file, sets, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_an_ablation_is_done_by_an_array_of_jobs(tmp_path):
    data, slurm = tmp_path / "data", Allocation(executor="debug", gpus=0)
    write_synth(data, SynthConfig(size_hw=(96, 128)), splits={"train": 4, "val": 2}, seed=0)
    boxes = MEMBER.replace("mask_rcnn", "faster_rcnn").replace(" mask_channels: 16,", "")
    options = {"device": "cpu", "units": 2, "slurm": slurm, "verb": "ablate"}
    (tmp_path / "steps.yaml").write_text(boxes)
    launched = api.launch_slurm(tmp_path / "steps.yaml", data, tmp_path / "steps", **options)
    assert len(launched.jobs) == 2
    alone = api.ablate(data, tmp_path / "steps.yaml", tmp_path / "alone", device="cpu")
    assert (tmp_path / "steps/ablation.md").read_text() == alone.text + "\n"
    (tmp_path / "wrong.yaml").write_text(boxes + FACTORS.replace("seesaw}", "no_such}"))
    with pytest.raises(ScantlingError, match=r"ablation\.factors\.seesaw"):
        api.launch_slurm(tmp_path / "wrong.yaml", data, tmp_path / "wrong", **options)
    assert not (tmp_path / "wrong").exists()


def test_what_others_may_work_in_is_not_started_over(suite_file, tmp_path):
    with pytest.raises(UsageError, match="--overwrite does not go with --engine shared"):
        api.suite(
            suite_file,
            suite_file.parent / "sets",
            tmp_path / "out",
            overwrite=True,
            device="cpu",
            jobs=Engine(name="shared"),
        )
    assert not (tmp_path / "out").exists()

"""Several processes that do one thing together, and end with its exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scantling.errors import UsageError
from scantling.train.launch import check_launch, launch

SCRIPT = """
import json, os, sys
from pathlib import Path
rank = int(os.environ["RANK"])
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps({name: os.environ[name] for name in names}))
sys.exit(int(sys.argv[2 + rank]))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_each_process_knows_its_place(script, tmp_path):
    assert launch(2, [str(script), str(tmp_path), "0", "0"]) == 0
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [(one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"]) for one in told] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
    ]
    assert told[0]["MASTER_PORT"] == told[1]["MASTER_PORT"]


def test_the_exit_code_is_that_of_the_process_that_failed(script, tmp_path):
    assert launch(2, [str(script), str(tmp_path), "0", "3"]) == 3


def test_a_process_that_is_killed_is_no_success(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert launch(1, [str(script)]) == 1


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("scantling.train.launch.available_devices", lambda: ["cuda:0", "cpu"])
    check_launch(1, "auto")
    check_launch(4, "cpu")
    with pytest.raises(UsageError, match="--gpus 2: there are 1"):
        check_launch(2, "cuda")
    with pytest.raises(UsageError, match="each process takes a GPU of its own"):
        check_launch(2, "cuda:0")
    monkeypatch.setattr("scantling.train.launch.available_devices", lambda: ["cpu"])
    with pytest.raises(UsageError, match="there is none here") as caught:
        check_launch(2, "auto")
    assert "--device cpu" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "2", "--jobs", "2", "--device", "cpu"], "--gpus and --jobs"),
        (["--gpus", "2", "--engine", "shared", "--device", "cpu"], "--gpus and --engine"),
        (["--gpus", "2", "--device", "cuda:0"], "a GPU of its own"),
    ],
)
def test_what_does_not_go_together_is_told(options, words, tmp_path):
    command = [
        sys.executable,
        "-m",
        "scantling",
        "train",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()

"""Every way a verb can end has its exit code and its words."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from scantling import api
from scantling.cli import shell
from scantling.cli.app import app
from scantling.errors import FOR_THE_FILE, ConfigError, DataError, Finding, Interrupted, Severity, UsageError


def listing(monkeypatch, error: BaseException, *options: str):
    """`recipes list`, failing."""

    def fail() -> dict[str, str]:
        raise error

    monkeypatch.setattr(api, "recipes", fail)
    return CliRunner().invoke(app, ["recipes", "list", *options])


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("the path is wrong", hint="Try another."), 2, "error: the path is wrong\nTry another.\n"),
        (ConfigError("a\nb"), 2, "error: a\nb\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Interrupted(2, "stopped, saved"), 130, "stopped, saved\n"),
        (Interrupted(15, "stopped, saved"), 143, "stopped, saved\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 2, "error: runs/a: no space left"),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/a"),
            2,
            "error: runs/a: Permission denied\n",
        ),
        (MemoryError(), 2, "error: out of memory"),
        (
            OutOfMemoryError("CUDA out of memory.\nmore"),
            2,
            "error: out of memory: CUDA out of memory.\nIn training lower the batch",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            2,
            "error: out of memory: [enforce fail",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "error: out of memory"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "this is a bug in scantling: ZeroDivisionError: division by zero\n",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "template"),
            1,
            "this is a bug in scantling: FileNotFound",
        ),
    ],
)
def test_exit_code_and_message(monkeypatch, error, code, words):
    done = listing(monkeypatch, error)
    assert done.exit_code == code
    assert done.stderr.startswith(words)
    assert done.stdout == ""
    assert "Traceback" not in done.output


def test_debug_shows_the_traceback(monkeypatch):
    done = listing(monkeypatch, ZeroDivisionError("division by zero"), "--debug")
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "raise error" in done.stderr


def test_all_findings_are_shown(monkeypatch):
    findings = [
        Finding(
            code=f"code-{n}", severity=Severity.ERROR, message="m", file="a.json", id=n, hint="Repair it."
        )
        for n in range(60)
    ]
    done = listing(monkeypatch, DataError("a.json: 60 errors", findings=findings))
    assert done.exit_code == 2
    assert "error [code-0] a.json: id 0: m. Repair it." in done.stderr
    assert "error [code-49]" in done.stderr
    assert done.stderr.endswith("... and 10 more\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument"),
        (["train", "data", "--recipe", "parts-cpu", "--epochs", "3"], "No such option"),
        (["train", "data", "--recipe", "parts-cpu", "--seed", "-1"], "--seed"),
        (["evaluate", "r.json", "--data", "d.json", "--iou-type", "mask"], "mask"),
        (["predict", "photos"], "photos: there is no such source"),
        (["predict", ".", "--run", "a", "--checkpoint", "b"], "give either --run DIR or --checkpoint FILE"),
        (["predict", ".", "--run", "nowhere"], "nowhere: there is no such run folder"),
        (["predict", ".", "--run", "."], "not a finished run"),
        (["report", "."], "not a finished run"),
        (["evaluate", "nowhere.json", "--data", "x.json"], "nowhere.json: there is no such results file"),
        (["train", "nowhere", "--recipe", "parts-cpu"], "nowhere: there is no such data set"),
        (["train", ".", "--recipe", "bccd-cp"], "no recipe is called 'bccd-cp'; did you mean 'bccd-cpu'?"),
        (["train", ".", "--recipe", "nowhere/r.yaml"], "nowhere/r.yaml: there is no such file"),
        (["run", "parts-cpu"], "no data set is given"),
        (["run", "parts-cpu", "--data", ".", "--set", "members.cascade.train.lrr=1"], "did you mean 'lr'?"),
        (["recipes", "show", "bccd-cp"], "did you mean 'bccd-cpu'?"),
        (["synth", "out", "--split", "train"], "write it as NAME=COUNT"),
        (["synth", "out", "--split", "train=2", "--split", "train=3"], "train is given twice, as 2 and as 3"),
        (
            ["split", ".", "--out", "o", "--ratios", "train=0.6,train=0.4"],
            "train is given twice, as 0.6 and as 0.4",
        ),
        (["split", ".", "--out", "o", "--ratios", "0.6,val=0.4"], "write NAME=SHARE"),
        (["split", ".", "--out", "o", "--ratios", "=0.6,val=0.4"], "the value 0.6 has no name"),
        (
            ["synth", "out", "--set", "noise.missing=2"],
            "noise.missing: found 2; expected less than or equal to 1",
        ),
        (["import-weights", "nowhere.pth", "--model", "x", "--out", "o"], "no such checkpoint"),
    ],
)
def test_mistakes_end_with_code_2_and_create_nothing(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_runs_inside_of_a_folder_that_is_none_are_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("unfinished", "my bolts"):
        (tmp_path / "suite" / name).mkdir(parents=True)
        (tmp_path / "suite" / name / "recipe.yaml").write_text("")
    (tmp_path / "suite" / "my bolts" / "metrics.json").write_text("{}")
    done = CliRunner().invoke(app, ["report", "suite"])
    assert done.exit_code == 2
    assert done.stderr.endswith(
        "There are finished runs in it: give one of them, such as 'suite/my bolts'.\n"
    )


def test_a_data_set_given_as_a_file_is_explained(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.json").write_text("{}")
    done = CliRunner().invoke(app, ["train", "train.json", "--recipe", "parts-cpu"])
    assert done.exit_code == 2
    assert "a data set is a folder, this is a file" in done.stderr
    done = CliRunner().invoke(app, ["train", "trian.json", "--recipe", "parts-cpu"])
    assert "did you mean 'train.json'?" in done.stderr


def test_a_wrong_path_is_told_before_anything_heavy_is_loaded():
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    main = "from scantling.cli import main; main()"
    code = f"{check}; sys.argv = ['scantling', 'train', 'nowhere', '--recipe', 'demo']; {main}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "False\n")


def test_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "scantling", "recipes", "show", "parts-cpu"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr == "error: standard output was closed before everything was written\n"


def test_a_full_disk_is_told_of_the_copy_not_of_its_source(monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device", "photos/a.png", None, "out/a.png")
    done = listing(monkeypatch, error)
    assert done.stderr.startswith("error: out/a.png: no space left")
    assert "photos" not in done.stderr


def test_what_the_run_log_keeps_is_not_told_twice(capsys):
    shell._configure_logging(quiet=False, debug=False)
    logging.getLogger("scantling.x").error("kept", extra={FOR_THE_FILE: True})
    logging.getLogger("scantling.x").error("told")
    assert capsys.readouterr().err == "error: told\n"

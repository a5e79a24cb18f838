"""The doctor: broken libraries are recognised without harm, and every problem comes with a remedy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scantling.cli.failures import describe
from scantling.doctor import (
    NEEDED,
    Check,
    Diagnosis,
    ask,
    ask_all,
    check_device,
    check_library,
    import_questions,
)

ROOT = Path(__file__).parents[1]
NO_GPU = {"gpus": [], "cuda": "13.0", "mps": False, "trial": None}
GPU = {"gpus": [{"name": "RTX 5090", "gib": 31.5}], "cuda": "13.0", "mps": False, "trial": None}


def doctor(*options: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    folders = [str(folder) for folder in (path, ROOT / "src") if folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scantling", "doctor", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_the_table_of_needs_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = dict(re.split(">=", need) for need in project["dependencies"])
    assert {name: oldest for name, (_, oldest) in NEEDED.items()} == declared


def break_torchvision(folder: Path, content: str) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision/__init__.py").write_text(content)
    return folder


@pytest.mark.slow
def test_a_torchvision_of_another_torch_is_recognised(tmp_path):
    mismatch = "raise RuntimeError('operator torchvision::nms does not exist')"
    done = doctor("--json", path=break_torchvision(tmp_path, mismatch))
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    states = {check["topic"]: check for check in found["checks"]}
    assert not found["usable"]
    assert states["torchvision"]["state"] == "wrong"
    assert "pip install --force-reinstall torch torchvision" in states["torchvision"]["remedy"]
    assert states["timm"]["found"].endswith("while torchvision is broken")
    assert states["torch"]["state"] == "ok"
    assert "GPU" in states
    assert "torchvision" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_library_that_kills_its_process_spares_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(break_torchvision(tmp_path, "import os; os._exit(134)")))
    few = {name: import_questions()[name] for name in ("pyyaml", "torchvision", "jinja2")}
    dead = {"error": "the process that imported it ended with code 134"}
    assert ask_all(few) == {"pyyaml": {}, "torchvision": dead, "jinja2": {}}


def test_questions_of_one_process_do_not_disturb_each_other():
    raised = {"error": "ValueError: no"}
    assert ask_all({"a": "facts['x'] = 1", "b": "raise ValueError('no')", "c": "print(1)"}) == {
        "a": {"x": 1},
        "b": raised,
        "c": {},
    }


@pytest.mark.slow
def test_this_installation_is_usable():
    done = doctor()
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    topics = [re.split(r"\s{2,}", line)[1] for line in lines if line.startswith("ok ")]
    assert {"python", "memory", *NEEDED} <= {*topics, *(line.split()[1] for line in lines if line.strip())}


@pytest.mark.parametrize(
    ("version", "problem", "state", "word"),
    [
        ("2.15.0", None, "ok", "2.15.0"),
        ("2.11", None, "ok", "2.11"),
        ("2.9.1+cpu", None, "wrong", "too old"),
        (None, "ModuleNotFoundError: No module named 'torch'", "wrong", "not installed"),
        ("2.15.0", "ModuleNotFoundError: No module named 'sympy'", "wrong", "without sympy"),
        ("2.15.0", "OSError: libcudart.so.13: cannot open", "wrong", "libcudart"),
    ],
)
def test_a_library_is_judged_by_version_and_import(version, problem, state, word):
    check = check_library("torch", version, problem)
    assert check.state == state
    assert word in check.found


@pytest.mark.parametrize(
    ("found", "driver", "state", "words"),
    [
        (GPU, "580.65", "ok", ("RTX 5090", "32 GiB", "580.65")),
        (NO_GPU, None, "ok", ("none",)),
        ({**NO_GPU, "mps": True}, None, "ok", ("mps",)),
        ({**NO_GPU, "cuda": None}, "580.65", "note", ("without CUDA", "pip install")),
        (NO_GPU, "470.1", "note", ("finds no GPU", "driver")),
        ({**GPU, "trial": "no kernel image"}, "580.65", "note", ("no kernel image", "--device cpu")),
        ({"error": "RuntimeError: x"}, None, "note", ("--device cpu",)),
    ],
)
def test_a_gpu_that_is_not_used_is_explained(found, driver, state, words):
    check = check_device(found, driver)
    assert check.state == state
    assert all(word in f"{check.found} {check.remedy}" for word in words)
    assert (check.remedy is None) == (state == "ok")


def test_one_wrong_line_makes_the_whole_unusable():
    fine = Check(topic="a", state="ok", found="1")
    note = Check(topic="b", state="note", found="2", remedy="do")
    wrong = Check(topic="c", state="wrong", found="3", remedy="install")
    assert Diagnosis((fine, note)).usable
    assert not Diagnosis((fine, wrong, note)).usable
    assert Diagnosis((note,)).to_text() == "note  b  2\n         -> do"


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("facts['a'] = 1", {"a": 1}),
        ("print('noise'); facts['a'] = 2", {"a": 2}),
        ("raise SystemExit(3)", {"error": "SystemExit: 3"}),
        ("import os; os._exit(9)", {"error": "the process that imported it ended with code 9"}),
    ],
)
def test_a_question_is_answered_whatever_the_process_does(code, answer):
    assert ask(code) == answer


def test_another_verb_sends_to_the_doctor():
    for error in (
        ModuleNotFoundError("No module named 'timm'", name="timm"),
        RuntimeError("operator torchvision::nms does not exist"),
    ):
        code, message = describe(error)
        assert code == 2
        assert "scantling doctor" in message
    assert describe(ModuleNotFoundError("x", name="scantling.nothing"))[0] == 1


def test_a_failed_download_is_no_bug_and_says_what_asked_for_it():
    from huggingface_hub.errors import LocalEntryNotFoundError

    code, message = describe(LocalEntryNotFoundError("cannot find the files\nmore"))
    assert code == 2
    assert "a download failed: cannot find the files\n" in message
    assert "model.init=random" in message

"""Every benchmark can be started: what it imports is there, and `--help` tells what it measures."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = sorted(BENCH.glob("*.py"))


@pytest.fixture
def at_home(monkeypatch):
    """The scripts find one another as when they are started by their path; nothing of them stays."""
    modules, environment = set(sys.modules), dict(os.environ)
    monkeypatch.syspath_prepend(BENCH)
    yield
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCH:
            del sys.modules[name]
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_can_be_started(script, at_home, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(f"usage: {script.name}")
    about = script.read_text(encoding="utf-8").removeprefix('"""').split("\n", maxsplit=1)[0]
    assert about in told


def test_every_benchmark_is_tested():
    assert len(SCRIPTS) > 20


def test_an_import_that_is_not_there_is_noticed(tmp_path, at_home):
    (tmp_path / "broken.py").write_text("from scantling.data.samples import no_such_thing\n")
    with pytest.raises(ImportError, match="no_such_thing"):
        runpy.run_path(str(tmp_path / "broken.py"), run_name="__main__")

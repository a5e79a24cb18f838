"""What the command sets for the libraries it loads, unless the user has."""

from __future__ import annotations

import os

import pytest

from scantling.cli import main


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_give_way_soon_unless_the_user_says_otherwise(monkeypatch, capsys, given, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["scantling", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out
    assert os.environ.get("GOMP_SPINCOUNT") == spins

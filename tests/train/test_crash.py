"""Runs that die for real (SIGKILL, signals, a full disk), in child processes of child_driver.py."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(child_runs) -> dict[str, Any]:
    return child_runs.report


def test_killed_before_or_in_any_file_operation(report):
    result = report["at_every_operation"]
    assert result["wrong"] == []
    assert result["kills"] > 20  # five saves, each of several operations


def test_killed_at_random_moments(report):
    assert report["at_random_moments"]["equal"]
    assert report["at_random_moments"]["kills"] >= 1


def test_asked_to_stop(report):
    assert report["by_signals"] == {"codes": [143, 130, 0], "equal": True}


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(report):
    result = report["on_a_full_disk"]
    assert (result["code"], result["step"]) == (2, 6)
    assert not [name for name in result["files"] if "tmp" in name]
    assert (result["again"], result["equal"]) == (0, True)

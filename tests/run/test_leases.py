"""Leases of stages: one holder at a time, taken over only from the dead, and lost by who wakes up late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from scantling.errors import Interrupted, UsageError
from scantling.run.leases import LEASES, LeaseLost, Leases, LeaseState, Owner, current_leases, read_log

ELSEWHERE = Owner(host="another-machine", pid=7, space="", began="", token="x")


def elsewhere(root: Path, patience: float = 60.0) -> Leases:
    """As a process of another machine sees them, of which nobody here knows whether it lives."""
    return Leases(root=root, patience=patience, owner=ELSEWHERE)


def events(root: Path) -> list[tuple[str, int, str]]:
    return [(entry["stage"], entry["generation"], entry["event"]) for entry in read_log(root)]


def test_a_lease_has_one_holder_until_it_is_given_back(tmp_path):
    ours, theirs = Leases(root=tmp_path), elsewhere(tmp_path)
    lease = ours.take("members/a/train")
    assert lease is not None
    assert theirs.take("members/a/train") is None
    assert theirs.take("members/b/train") is not None
    lease.give_back("done")
    again = theirs.take("members/a/train")
    assert again is not None
    assert again.state.generation == 2
    assert [path.name for path in (tmp_path / LEASES / "members/a/train").iterdir()] == ["0002.json"]
    assert events(tmp_path) == [
        ("members/a/train", 1, "taken"),
        ("members/b/train", 1, "taken"),
        ("members/a/train", 1, "done"),
        ("members/a/train", 2, "taken"),
    ]


def test_of_many_who_want_it_at_once_one_gets_it(tmp_path):
    barrier = threading.Barrier(16)

    def take(number: int) -> bool:
        leases = elsewhere(tmp_path)
        barrier.wait()
        return leases.take("a") is not None

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(take, range(16))) == 1


def test_a_silent_holder_is_taken_for_dead_by_the_clock_of_who_waits_and_one_that_beats_is_not(
    tmp_path, monkeypatch
):
    now = [100.0]
    monkeypatch.setattr("scantling.run.leases.time.monotonic", lambda: now[0])
    theirs = elsewhere(tmp_path, 30.0).take("a")
    assert theirs is not None
    ours = Leases(root=tmp_path, patience=30.0)
    for _ in range(5):
        now[0] += 20.0
        theirs.beat()
        assert ours.take("a") is None
    now[0] += 29.0
    assert ours.take("a") is None
    now[0] += 2.0
    lease = ours.take("a")
    assert lease is not None
    assert events(tmp_path)[-1] == ("a", 2, "taken over")
    assert read_log(tmp_path)[-1]["from"] == "process 7 on another-machine"
    with pytest.raises(LeaseLost, match="a: taken over by another process"):
        theirs.beat()
    with pytest.raises(LeaseLost):
        theirs.give_back("done")
    lease.require()
    assert ours.state("a") == lease.state


def test_a_process_of_this_machine_that_is_gone_is_seen_at_once(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from scantling.run.leases import Leases\n"
        "assert Leases(root=Path(sys.argv[1])).take('a'); os._exit(9)"
    )
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    state = current_leases(tmp_path)["a"]
    assert (state.owner.is_gone(), state.outcome) == (sys.platform == "linux", None)
    if sys.platform == "linux":
        assert Leases(root=tmp_path).take("a") is not None


def test_another_process_with_the_same_number_is_not_the_holder():
    ours = Owner.here()
    assert not ours.is_gone()
    if sys.platform == "linux":
        assert replace(ours, began="1").is_gone()
    assert not replace(ours, began="1", space="pid:[1]").is_gone()
    assert not replace(ours, began="1", host="another-machine").is_gone()


def test_signs_of_life_carry_what_is_known_and_end_with_how_it_went(tmp_path):
    leases = Leases(root=tmp_path, patience=0.3)
    lease = leases.take("a")
    assert lease is not None
    with lease.kept(lambda: {"step": 5}):
        deadline = time.monotonic() + 60
        while current_leases(tmp_path)["a"].beat < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        state = current_leases(tmp_path)["a"]
        assert (state.facts["step"], state.outcome) == (5, None)
        assert state.facts["since"] <= state.facts["updated"]
        assert state.beat >= 2
    assert current_leases(tmp_path)["a"].outcome == "done"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UsageError("no"), "failed"),
        (ValueError("bug"), "failed"),
        (Interrupted(15, "stop"), "stopped"),
        (SystemExit(3), "stopped"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path, error, outcome):
    lease = Leases(root=tmp_path).take("a")
    assert lease is not None
    with pytest.raises(type(error)), lease.kept():
        raise error
    assert current_leases(tmp_path)["a"].outcome == outcome
    assert events(tmp_path)[-1] == ("a", 1, outcome)


def test_what_is_known_from_the_start_stays_and_how_it_ended_is_added(tmp_path):
    facts = {"launch": "x"}
    lease = Leases(root=tmp_path).take("a", facts)
    assert lease is not None

    def told() -> dict:
        return {k: v for k, v in current_leases(tmp_path)["a"].facts.items() if k not in ("since", "updated")}

    assert told() == facts
    with lease.kept():
        pass
    assert told() == facts
    again = Leases(root=tmp_path).take("a", facts)
    assert again is not None
    with again.kept(lambda: facts):
        facts["error"] = "no"
    assert told() == {"launch": "x", "error": "no"}


def test_what_one_process_at_a_time_may_do_is_in_no_list_of_stages(tmp_path):
    path, barrier = tmp_path / "sum", threading.Barrier(8)
    path.write_text("0")

    def add(number: int) -> None:
        leases = elsewhere(tmp_path)
        barrier.wait()
        for _ in range(5):
            with leases.only_here("sum"):
                before = int(path.read_text())
                time.sleep(0.001)
                path.write_text(str(before + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert path.read_text() == "40"
    assert (current_leases(tmp_path), read_log(tmp_path)) == ({}, [])


def test_who_wakes_up_late_is_ended_and_leaves_the_new_holder_alone(tmp_path, monkeypatch):
    late = elsewhere(tmp_path, 0.2).take("a")
    assert late is not None
    told = threading.Event()
    monkeypatch.setattr("scantling.run.leases._end_process", told.set)
    ours = Leases(root=tmp_path, patience=0.0)
    lease = None
    while lease is None:
        lease = ours.take("a")
    with late.kept():
        assert told.wait(60)
    assert ours.state("a") == lease.state
    assert [event for *_, event in events(tmp_path)].count("lost") >= 1


def test_a_damaged_file_is_waited_for_as_a_silent_holder_is(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("scantling.run.leases.time.monotonic", lambda: now[0])
    leases = Leases(root=tmp_path, patience=30.0)
    path = tmp_path / LEASES / "a/0004.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert leases.take("a") is None
    now[0] = 31.0
    lease = leases.take("a")
    assert lease is not None
    assert lease.state.generation == 5


def test_a_state_comes_back_from_its_file(tmp_path):
    state = LeaseState(generation=3, owner=ELSEWHERE, beat=4, outcome="done", facts={"epoch": 1.5})
    (tmp_path / "0003.json").write_text(state.to_json())
    assert LeaseState.read(tmp_path / "0003.json") == state
    assert json.loads(state.to_json())["owner"]["pid"] == 7

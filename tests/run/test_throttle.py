"""A status that is written often: at once where that is cheap, and never lost."""

from __future__ import annotations

import threading
import time

import pytest

from scantling.errors import UsageError
from scantling.run.leases import LeaseLost
from scantling.run.throttle import Throttle


def test_what_is_dear_to_write_is_written_a_little_later_and_the_newest_wins(monkeypatch):
    now, written, timers = [0.0], [], []
    monkeypatch.setattr("scantling.run.throttle.time.monotonic", lambda: now[0])

    class Timer:
        def __init__(self, seconds, call, arguments):
            self.fire = lambda: call(*arguments)
            timers.append(self)
            self.cancelled = False

        def start(self):
            pass

        def cancel(self):
            self.cancelled = True

    monkeypatch.setattr("scantling.run.throttle.threading.Timer", Timer)
    throttle, state = Throttle(), {"n": 0}

    def write() -> None:
        now[0] += 0.1
        written.append(state["n"])

    throttle.soon(write)
    for number in (1, 2, 3):
        state["n"] = number
        throttle.soon(write)
    assert (written, len(timers)) == ([0], 1)
    timers[0].fire()
    assert written == [0, 3]
    now[0] += 2.1
    throttle.soon(write)
    assert written == [0, 3, 3]
    throttle.soon(write)
    throttle.now(lambda: written.append("last"))
    timers[1].fire()  # too late to be cancelled
    assert (written[3:], timers[1].cancelled) == (["last"], True)


def test_what_is_due_soon_does_not_wait_for_what_is_due_later(monkeypatch):
    throttle, written = Throttle(), threading.Event()
    throttle.now(lambda: None)
    monkeypatch.setattr(throttle, "_free_from", time.monotonic() + 1000.0)
    throttle.later(lambda: None)
    late = throttle._timer
    throttle.soon(written.set)
    assert late.finished.is_set(), "it was cancelled"
    assert throttle._timer.interval == 1.0
    due = throttle._timer
    throttle.later(lambda: None)
    throttle.soon(lambda: None)
    assert throttle._timer is due
    assert written.wait(60)


@pytest.mark.parametrize("problem", [LeaseLost("taken over"), UsageError("full"), OSError("away")])
def test_what_cannot_be_written_later_is_left_to_the_next_time(monkeypatch, problem):
    throttle, raised, tried = Throttle(), [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda told: raised.append(told.exc_value))

    def write() -> None:
        tried.set()
        raise problem

    throttle.later(write)
    timer = throttle._timer
    assert tried.wait(60)
    timer.join(60)
    assert raised == []


def test_a_status_that_waits_is_written_without_being_asked_again():
    throttle, written = Throttle(), threading.Event()
    throttle.now(lambda: threading.Event().wait(0.05))
    throttle.soon(written.set)
    assert written.wait(60)


def test_what_changes_all_the_time_is_written_now_and_then(monkeypatch):
    waits, calls = [], []

    class Timer:
        def __init__(self, seconds, call, arguments):
            waits.append(seconds)
            calls.append(lambda: call(*arguments))

        def start(self):
            pass

        def cancel(self):
            pass

    monkeypatch.setattr("scantling.run.throttle.threading.Timer", Timer)
    throttle, written = Throttle(), []
    for number in range(100):
        throttle.later(lambda number=number: written.append(number))
    assert (waits, written) == ([1.0], [])
    calls[0]()
    assert written == [0]
    monkeypatch.setattr(throttle, "_free_from", time.monotonic() + 1000.0)
    throttle.later(lambda: written.append("dear"))
    assert 1.0 < waits[1] <= 30.0
    throttle.now(lambda: written.append("last"))
    calls[1]()  # too late to be cancelled
    assert written == [0, "last"]

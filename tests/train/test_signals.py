"""Signals become requests, and only for as long as the guard is active."""

from __future__ import annotations

import signal
import threading

import pytest

from scantling.train import signals
from scantling.train.signals import SignalGuard, StopRequested


def test_a_signal_is_remembered_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with SignalGuard() as guard:
        assert guard.signum is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert guard.signum == signal.SIGTERM  # the first one counts
    assert signal.getsignal(signal.SIGTERM) is before


def test_interruptible_work_is_abandoned_even_if_it_swallows_exceptions():
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("it was swallowed")
        pytest.fail("it went on")

    with SignalGuard() as guard, pytest.raises(StopRequested), guard.interruptible():
        work()


def test_interruptible_work_does_not_begin_after_a_signal():
    with SignalGuard() as guard:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested), guard.interruptible():
            pytest.fail("it began")


def test_after_the_block_a_signal_only_asks():
    with SignalGuard() as guard:
        with guard.interruptible():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert guard.signum == signal.SIGTERM


def test_a_second_ctrl_c_ends_the_run_unless_it_is_the_first_one_twice(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with SignalGuard():
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.001
        signal.raise_signal(signal.SIGINT)
        now[0] += 5
        signal.raise_signal(signal.SIGTERM)  # schedulers repeat it
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_is_touched():
    handlers = []

    def work() -> None:
        with SignalGuard():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="the system has no such signal")
def test_the_signal_before_a_machine_is_taken_away_is_a_request_like_the_others():
    before = signal.getsignal(signal.SIGUSR2)
    with SignalGuard() as guard:
        signal.raise_signal(signal.SIGUSR2)
        assert guard.signum == signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) is before

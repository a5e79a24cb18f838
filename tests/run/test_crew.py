"""What the crew of one machine makes of what its workers tell, without a process: devices, signals, late messages."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest
import torch

from run import side_by_side_stages as stages
from scantling.errors import Interrupted
from scantling.run.engines import local
from scantling.run.engines.worker import Done, Failed


class Pretended:
    """A process that says what the test has it say."""

    def __init__(self, target, args, name) -> None:
        theirs, order = args
        self.own, self.device = Connection(os.dup(theirs.fileno())), order.context.device
        self.exitcode = None

    def start(self) -> None:
        """Nothing is to be done."""

    def say(self, message) -> None:
        self.own.send(message)

    def terminate(self) -> None:
        self.exitcode = 0
        self.own.close()

    def join(self) -> None:
        """It is gone already."""


@pytest.fixture
def workers(monkeypatch) -> list[Pretended]:
    """Those that were hired, in that order."""
    hired: list[Pretended] = []

    def hire(**given) -> Pretended:
        hired.append(Pretended(**given))
        return hired[-1]

    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Process=hire))
    return hired


def crew_of(tmp_path, jobs: int, devices: tuple[torch.device, ...] = ()) -> local._Crew:
    context = replace(stages.context_at(tmp_path), devices=devices)
    return local._Crew(context, stages.build_unrelated, jobs, stages.Notes().about)


def test_the_worker_after_one_that_failed_takes_the_gpu_that_idles(tmp_path, workers):
    gpus = tuple(torch.device(f"cuda:{number}") for number in range(2))
    crew = crew_of(tmp_path, 3, gpus)
    first, second, third, last = stages.build_unrelated(stages.context_at(tmp_path))
    crew.start(first)
    crew.start(second)
    workers[0].say(Failed(ValueError("no"), 0, ""))
    assert list(crew.ended().failed) == ["a"]
    crew.start(third)
    crew.start(last)
    assert [worker.device for worker in workers] == [gpus[0], gpus[1], gpus[0], gpus[0]]


def test_what_is_done_when_a_signal_arrives_is_told_before_the_signal(tmp_path, workers, monkeypatch):
    crew, wait, asked = crew_of(tmp_path, 3), local.wait, []

    def interrupted(connections, timeout=None):
        if not asked:
            asked.append(timeout)
            workers[1].say(Done())
            signal.raise_signal(signal.SIGTERM)
        return wait(connections, timeout)

    monkeypatch.setattr(local, "wait", interrupted)
    for stage in stages.build_unrelated(stages.context_at(tmp_path))[:2]:
        crew.start(stage)
    assert crew.is_free
    assert crew.ended().done == ["b"]
    assert (list(crew.busy), crew.is_free) == (["a"], False)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        crew.ended()


def test_what_is_done_when_another_worker_was_stopped_is_told_first(tmp_path, workers):
    crew = crew_of(tmp_path, 3)
    for stage in stages.build_unrelated(stages.context_at(tmp_path))[:2]:
        crew.start(stage)
    workers[0].say(Done())
    workers[1].say(Failed(None, signal.SIGINT, "interrupted"))
    assert crew.ended().done == ["a"]
    with pytest.raises(Interrupted, match="interrupted"):
        crew.ended()


@pytest.mark.parametrize("has_ended", [False, True])
def test_what_is_done_while_all_are_told_to_end_is_recorded(tmp_path, workers, monkeypatch, has_ended):
    def end(worker: Pretended) -> None:
        if not has_ended:
            worker.say(Done())
        worker.exitcode = 0
        worker.own.close()

    def begin(worker: Pretended) -> None:
        if len(workers) == 1:
            worker.say(Failed(None, signal.SIGTERM, "stopped"))
        elif has_ended:
            worker.exitcode = 0

    def hear_one(crew, worker, *told) -> None:
        hear(crew, worker, *told)
        if has_ended and len(workers) == 2:
            workers[1].say(Done())

    hear = local._Crew._hear
    monkeypatch.setattr(local._Crew, "_hear", hear_one)
    monkeypatch.setattr(Pretended, "terminate", end)
    monkeypatch.setattr(Pretended, "start", begin)
    notes = stages.Notes()
    with pytest.raises(Interrupted, match="stopped"):
        local.do_side_by_side(stages.context_at(tmp_path), notes, stages.build_unrelated, 2)
    assert (notes.begun, notes.done) == (["a", "b"], ["b"])

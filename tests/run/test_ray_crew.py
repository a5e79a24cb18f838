"""The driver of a cluster that is a list: what it makes of tasks that end, stop, or are not seen yet."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from scantling.errors import ConfigError, Interrupted, TrainingError
from scantling.run.context import Workplace
from scantling.run.engines.ray import RayCrew
from scantling.run.engines.remote import RemoteOrder, Workshop
from scantling.run.engines.schedule import do_all
from scantling.run.engines.worker import Done, Failed
from scantling.run.leases import Leases
from scantling.run.owner import Owner
from scantling.run.stage import Stage


class Number(str):
    """Of what a cluster holds."""

    def hex(self) -> str:
        return self


@dataclass
class FakeRay:
    """A cluster whose tasks have ended as soon as they are given to it.

    Attributes:
        outcome: Of a task, by the title of its stage; what is raised is what a task raises.
        given: Titles, in the order in which they were given to it.
    """

    outcome: Callable[[str], Any]
    given: list[str] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)
    exceptions = SimpleNamespace(
        RayError=type("RayError", (Exception,), {}), RayTaskError=type("RayTaskError", (Exception,), {})
    )

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def put(self, content: object) -> Number:
        self.held[number := Number(f"held-{len(self.held)}")] = content
        return number

    def remote(self, **_: object) -> Callable[[object], FakeRay]:
        return lambda function: SimpleNamespace(options=self._options)

    def _options(self, **_: object) -> SimpleNamespace:
        return SimpleNamespace(remote=self._begin)

    def _begin(self, order: list[Number], key: str, title: str, *_: object) -> Number:
        self.given.append(title)
        return Number(f"{len(self.given)} {title}")

    def wait(self, tasks: Sequence[Number], *, num_returns: int, timeout: float) -> tuple[list, list]:
        assert tasks
        return list(tasks[:num_returns]), list(tasks[num_returns:])

    def get(self, task: Number) -> Any:
        return self.outcome(task.split(" ", 1)[1])

    def cancel(self, task: Number, *, force: bool = False) -> None:
        """All have ended."""


class Noted:
    """Records of stages, as a list."""

    def __init__(self) -> None:
        self.done, self.failed = list[str](), dict[str, Exception]()

    def expect(self, titles: Sequence[str]) -> None:
        pass

    def begin(self, stage: Stage) -> bool:
        return True

    def end(self, stage: Stage) -> None:
        self.done.append(stage.title)

    def fail(self, stage: Stage, error: Exception) -> None:
        self.failed[stage.title] = error

    def leave(self, stage: Stage, cause: Stage) -> None:
        pass

    def progress(self, title: str, facts: object) -> None:
        pass


def build(context: Workplace) -> Sequence[Stage]:
    return [
        Stage(
            folder=name,
            name=name,
            inputs=dict,
            outputs=(f"{name}/out.txt",),
            action=partial(write, context, name),
        )
        for name in ("a", "b")
    ]


def write(context: Workplace, name: str) -> None:
    (context.root / name).mkdir(parents=True, exist_ok=True)
    (context.root / name / "out.txt").write_text(name)


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(root=tmp_path / "run", device=torch.device("cpu"), console=Console(file=io.StringIO()))


def test_two_drivers_in_one_folder_do_not_disturb_each_other_and_leave_nothing(place):
    """As with `--engine ray --shard I/N`, given on two machines."""
    first = RemoteOrder.of(place, build)
    second = RemoteOrder.of(place, build)
    Workshop(first)
    second.withdraw()
    Workshop(first)
    ray = FakeRay(lambda _: Done())
    with RayCrew(ray, place, build).at_work(Noted()):
        Workshop(next(iter(ray.held.values())))
    first.withdraw()
    assert [path for path in (place.root / "leases").rglob("*") if path.is_file()] == []


def do_both(ray: FakeRay, place: Workplace, notes: Noted) -> None:
    crew = RayCrew(ray, place, build)
    with crew.at_work(notes):
        do_all(build(place), notes, crew)


@pytest.mark.parametrize(
    "stopped", [Failed(None, signal.SIGTERM, "stopped by SIGTERM"), Failed(SystemExit(1), 0, "")]
)
def test_a_stage_whose_machine_is_asked_to_end_is_begun_again_elsewhere(place, stopped):
    """With or without a state: in a training the signal is answered, elsewhere Ray has it end the process."""
    left = {"a": 3, "b": 0}

    def outcome(title: str) -> Done | Failed:
        left[title] -= 1
        if left[title] >= 0:
            return stopped
        write(place, title)
        return Done()

    ray, notes = FakeRay(outcome), Noted()
    do_both(ray, place, notes)
    assert sorted(notes.done) == ["a", "b"]
    assert notes.failed == {}
    assert ray.given.count("a") == 4


def test_a_stage_that_is_stopped_again_and_again_fails_and_the_others_are_done(place):
    def outcome(title: str) -> Done | Failed:
        write(place, title)
        return Done() if title == "b" else Failed(None, signal.SIGTERM, "stopped")

    ray, notes = FakeRay(outcome), Noted()
    do_both(ray, place, notes)
    assert notes.done == ["b"]
    assert isinstance(notes.failed["a"], TrainingError)
    assert "stopped 11 times on its machine, last by SIGTERM" in str(notes.failed["a"])
    assert ray.given.count("a") == 11


@pytest.mark.parametrize("other", [Done(), Failed(None, signal.SIGTERM, "stopped by SIGTERM")])
def test_what_ends_in_the_moment_of_a_signal_is_recorded_before_the_run_ends(place, other):
    def outcome(title: str) -> Done | Failed:
        os.kill(os.getpid(), signal.SIGTERM)
        write(place, title)
        return Done() if title == "a" else other

    ray, notes = FakeRay(outcome), Noted()
    with pytest.raises(Interrupted) as caught:
        do_both(ray, place, notes)
    assert caught.value.signum == signal.SIGTERM
    assert sorted(notes.done) == (["a", "b"] if isinstance(other, Done) else ["a"])
    assert (notes.failed, ray.given) == ({}, ["a", "b"])


def test_what_is_done_while_the_others_are_told_to_end_is_recorded(place):
    ray, notes = FakeRay(lambda title: write(place, title) or Done()), Noted()
    crew = RayCrew(ray, place, build)
    with suppress(ConfigError), crew.at_work(notes):
        crew.start(build(place)[0])
        raise ConfigError("another stage cannot be begun")
    assert notes.done == ["a"]


def test_the_lease_of_a_process_that_is_gone_delays_no_end(place, monkeypatch):
    """It holds the lease for ever; the task that would take it over was still waiting for a machine."""
    dead = Leases(root=place.root, owner=replace(Owner.here(), began="long ago"))
    assert dead.take("a") is not None
    told = list[str]()
    monkeypatch.setattr("scantling.run.engines.ray.GRACE_SECONDS", 5.0)
    monkeypatch.setattr("scantling.run.engines.ray.log.warning", lambda text, *_: told.append(text))
    crew = RayCrew(FakeRay(lambda _: Failed(KeyboardInterrupt(), 0, "")), place, build)
    with crew.at_work(Noted()):
        crew.start(build(place)[0])
    assert told == []


def test_what_a_stage_has_left_is_awaited_until_it_is_seen_here(place, monkeypatch):
    """A network folder shows it late, or never."""
    write(place, "b")
    late = threading.Timer(1.0, write, [place, "a"])
    ray, notes = FakeRay(lambda _: Done()), Noted()
    late.start()
    do_both(ray, place, notes)
    late.join()
    assert (notes.done, notes.failed) == (["b", "a"], {})
    (place.root / "a/out.txt").unlink()
    monkeypatch.setattr("scantling.run.engines.ray.SIGHT_SECONDS", 0.3)
    again = Noted()
    do_both(ray, place, again)
    assert again.done == ["b"]
    assert "what it left is not seen by the scheduling machine: a/out.txt" in str(again.failed["a"])

"""The driver of a cluster that is a list: what it makes of tasks that end, stop, or are not seen yet."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from scantling.run.context import Workplace
from scantling.run.engines.ray import RayCrew
from scantling.run.engines.remote import RemoteOrder, Workshop
from scantling.run.engines.worker import Done
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
    with RayCrew(ray, place, build).at_work():
        Workshop(next(iter(ray.held.values())))
    first.withdraw()
    assert [path for path in (place.root / "leases").rglob("*") if path.is_file()] == []

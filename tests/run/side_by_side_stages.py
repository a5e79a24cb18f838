"""Stages without models for the tests of doing them side by side; workers import this module by its name, and little
else, so that they start fast.

As a script: `ROOT` does them there in two processes and ends as the command line would.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from rich.console import Console

from scantling.errors import DataError, Finding, Interrupted, Severity
from scantling.run.engines.local import do_side_by_side
from scantling.run.stage import Stage
from scantling.train.devices import ALONE, Processes
from scantling.train.progress import Facts, tell

PATIENCE = 100.0
FINDING = Finding(code="box-size", severity=Severity.ERROR, message="odd", id=7, value=[1, 2])


@dataclass(frozen=True)
class Context:
    """What doing stages needs of a run's context, without data or recipe."""

    root: Path
    console: Console
    device: torch.device = torch.device("cpu")
    devices: tuple[torch.device, ...] = ()
    processes: Processes = ALONE

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "console"}


def context_at(root: Path) -> Context:
    return Context(root, Console(stderr=True))


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {files}")
        time.sleep(0.02)


def build(context: Context) -> list[Stage]:
    """Stages a and b, which need nothing; the file `scenario` says what b does; and c, which needs both."""
    scenario = (context.root.parent / "scenario").read_text()

    def stage(name: str, work, needs: tuple[str, ...] = ()) -> Stage:
        outputs = (f"{name}/out.txt",)
        action = partial(work, context, name)
        return Stage(folder=name, name=name, inputs=dict, needs=needs, outputs=outputs, action=action)

    first, second = {"error": (finish, fail), "killed": (finish, die), "stay": (stay, stay)}[scenario]
    return [stage("a", first), stage("b", second), stage("c", write, ("a/out.txt", "b/out.txt"))]


def build_unrelated(context: Context) -> list[Stage]:
    """Four stages that need nothing of one another, of which b and c fail."""

    def stage(name: str, work) -> Stage:
        action = partial(work, context, name)
        return Stage(folder=name, name=name, inputs=dict, outputs=(f"{name}/out.txt",), action=action)

    return [stage("a", make), stage("b", give_up), stage("c", vanish), stage("d", make)]


def build_telling(context: Context) -> list[Stage]:
    """Two stages that tell how far they are, and leave the number of their process."""

    def stage(name: str) -> Stage:
        action = partial(tell_twice, context, name)
        return Stage(folder=name, name=name, inputs=dict, outputs=(f"{name}/out.txt",), action=action)

    return [stage("a"), stage("b")]


def tell_twice(context: Context, name: str) -> None:
    for step in (1, 2):
        tell(lambda: {"step": step}, at_once=True)  # noqa: B023 - called at once
    (context.root / name).mkdir(parents=True)
    (context.root / name / "out.txt").write_text(str(os.getpid()))


def make(context: Context, name: str) -> None:
    (context.root / name).mkdir(parents=True)
    write(context, name)


def give_up(context: Context, name: str) -> None:
    raise DataError(f"{name} is broken", findings=[FINDING])


def vanish(context: Context, name: str) -> None:
    if multiprocessing.parent_process() is None:
        raise RuntimeError("this would end the tests")
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Notes:
    """What becomes of stages where one that fails ends nothing."""

    ends_at_refusal: ClassVar[bool] = False
    begun: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    planned: list[str] = field(default_factory=list)
    told: dict[str, list] = field(default_factory=dict)

    def expect(self, titles: Sequence[str]) -> None:
        self.planned += titles

    def progress(self, title: str, facts: Facts) -> None:
        self.told.setdefault(title, []).append(facts)

    def begin(self, stage: Stage) -> bool:
        self.begun.append(stage.title)
        return True

    def end(self, stage: Stage) -> None:
        self.done.append(stage.title)

    def fail(self, stage: Stage, error: Exception) -> None:
        self.failed[stage.title] = error

    def about(self, stage: Stage) -> AbstractContextManager:
        return nullcontext()

    def leave(self, stage: Stage, cause: Stage) -> None:
        self.left[stage.title] = cause.title


def arrive(context: Context, name: str) -> None:
    """Wait for the other, so that one after the other would never end."""
    folder = context.root.parent / "pids"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.tmp").write_text(str(os.getpid()))
    (folder / f"{name}.tmp").rename(folder / name)
    context.console.print(f"{name} is here")
    wait_for(folder / "a", folder / "b")


def finish(context: Context, name: str) -> None:
    """Only after the other has failed."""
    arrive(context, name)
    wait_for(context.root.parent / "failed")
    (context.root / name).mkdir(exist_ok=True)
    write(context, name)


def write(context: Context, name: str) -> None:
    (context.root / name / "out.txt").write_text(f"{name} with {torch.get_num_threads()} threads")


def stay(context: Context, name: str) -> None:
    """Until it is interrupted, which it takes note of as a training does."""
    try:
        arrive(context, name)
        time.sleep(PATIENCE)
    except Interrupted as error:
        (context.root.parent / f"saved-{name}").write_text(str(error.signum))
        raise


def fail(context: Context, name: str) -> None:
    arrive(context, name)
    (context.root.parent / "failed").touch()
    raise DataError("b is broken", findings=[FINDING], hint="Mend it.")


def die(context: Context, name: str) -> None:
    arrive(context, name)
    (context.root.parent / "failed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def do(root: Path, jobs: int = 2) -> dict[str, str]:
    from scantling.run.folder import open_run  # brings much that workers need not wait for

    context = context_at(root)
    with open_run(root) as run:
        do_side_by_side(context, run, build, jobs)
        run.require_all()
    return run.stages


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from run import side_by_side_stages as named  # as the workers know it

    named.do(Path(sys.argv[1]))

"""What it costs to schedule stages: per stage, as their number grows, in this process, side by side and on Ray.

    python bench/engine.py [--stages 100,1000,10000] [--shapes chain,wide] [--jobs 2] [--ray 200]

Stages here do nothing but write one small file; what is measured is all that is done beside their work: finding out
what can be done, hashing, records, status, and the way to another process and back. `chain` needs each stage before the
next, `wide` is one stage that all others need and one that needs all. A crew that does its stages at once stands for a
cluster without limits. Ray does them on this machine, with a lease, a scratch folder and a log for each. Shards are
those of a prediction of so many images, 500 each, planned, listed and scheduled without looking at an image.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from scantling.run.context import Workplace
from scantling.run.engines.local import do_side_by_side
from scantling.run.engines.schedule import Agenda, Ended, Records, do_all
from scantling.run.folder import open_run
from scantling.run.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Empty(Workplace):
    """Where empty stages are done: how many, and in what order they need one another."""

    number: int
    shape: str


def build(context: Empty) -> Sequence[Stage]:
    """The stages, each in a folder of its own."""
    names = [f"{number // 1000:03d}/{number:06d}" for number in range(context.number)]
    files = [f"{name}/out.txt" for name in names]

    def needs(number: int) -> tuple[str, ...]:
        if context.shape == "chain":
            return (files[number - 1],) if number else ()
        if number == 0:
            return ()
        return tuple(files[:-1]) if number == context.number - 1 else (files[0],)

    return [
        Stage(
            folder=name,
            name="stage",
            inputs=dict,
            needs=needs(number),
            outputs=(files[number],),
            action=partial(write, context.root / files[number]),
        )
        for number, name in enumerate(names)
    ]


def write(path: Path) -> None:
    """The work of an empty stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("done")


class AtOnce:
    """A crew that has done a stage as soon as it is asked, as many at a time as there are."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}

    @property
    def busy(self) -> Sequence[str]:
        """Titles of what is being done."""
        return list(self.stages)

    @property
    def is_free(self) -> bool:
        """Whether one more can be begun."""
        return len(self.stages) < 1000

    def wants(self, *, company: bool) -> bool:  # noqa: ARG002 - alone or not
        """It takes all."""
        return True

    def start(self, stage: Stage) -> None:
        """Begin one."""
        self.stages[stage.title] = stage

    def ended(self) -> Ended:
        """Do all that was begun."""
        for stage in self.stages.values():
            stage.action()
        done, self.stages = list(self.stages), {}
        return Ended(done, {})


def place(root: Path, number: int, shape: str) -> Empty:
    """A folder for so many stages."""
    console = Console(file=io.StringIO(), quiet=True)
    return Empty(root=root, device=torch.device("cpu"), console=console, number=number, shape=shape)


Spent = tuple[float, float]
"""Seconds by the clock, and of this process' processor time."""


def seconds_of(number: int, shape: str, do: Callable[[Empty, Records], None]) -> Spent:
    """How long so many empty stages take, records and status included."""
    with tempfile.TemporaryDirectory() as folder:
        context = place(Path(folder) / "run", number, shape)
        with open_run(context.root) as run:
            began, spent = time.perf_counter(), time.process_time()
            do(context, run)
            seconds = time.perf_counter() - began, time.process_time() - spent
            run.require_all()
        return seconds


def here(context: Empty, run: Records) -> None:
    """One after the other in this process."""
    do_all(build(context), run)


def at_once(context: Empty, run: Records) -> None:
    """By a crew without limits."""
    do_all(build(context), run, AtOnce())


def agenda_seconds(number: int, shape: str) -> Spent:
    """The graph alone: which stage can be done next, for all of them."""
    stages = build(place(Path("nowhere"), number, shape))
    began, spent = time.perf_counter(), time.process_time()
    agenda = Agenda(stages)
    while agenda:
        agenda.note_done(agenda.take())
    return time.perf_counter() - began, time.process_time() - spent


def on_ray(context: Empty, run: Records) -> None:
    """On Ray, which is in contact already."""
    from scantling.run.engines.ray import do_on_ray

    do_on_ray(context, run, build)


def ray_rows(number: int) -> list[tuple[str, int, Spent]]:
    """Ray on this machine: its start, the first stage (a process is begun), and each of many."""
    from scantling.run.engines.ray import connected

    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    began, spent = time.perf_counter(), time.process_time()
    with connected(None):
        rows = [("Ray: start", 1, (time.perf_counter() - began, time.process_time() - spent))]
        for shape in ("chain", "wide"):
            few = seconds_of(4, shape, on_ray)
            rows.append((f"Ray, {shape}", 4, few))
            rows.append((f"Ray, {shape}", number, seconds_of(number, shape, on_ray)))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default="100,1000,10000", help="numbers of stages, with commas")
    parser.add_argument("--shapes", default="chain,wide", help="of the graph, with commas")
    parser.add_argument("--ray", type=int, default=200, help="stages on Ray; 0 leaves it out")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side; 1 leaves them out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[str, int, Spent]] = []
    for number in [int(text) for text in arguments.stages.split(",")]:
        for shape in arguments.shapes.split(","):
            rows.append((f"graph alone, {shape}", number, agenda_seconds(number, shape)))
            rows.append((f"this process, {shape}", number, seconds_of(number, shape, here)))
        rows.append(("crew without limits, wide", number, seconds_of(number, "wide", at_once)))
        sys.stderr.write(f"{number} stages: {rows[-1][2][0]:.0f} s\n")
    if arguments.jobs > 1:
        side_by_side = partial(do_jobs, jobs=arguments.jobs)
        rows += [
            (f"--jobs {arguments.jobs}, wide", n, seconds_of(n, "wide", side_by_side)) for n in (10, 210)
        ]
    if arguments.ray:
        rows += ray_rows(arguments.ray)
    sys.stdout.write(
        "| | stages | seconds | ms a stage | ms a stage, processor |\n|---|---:|---:|---:|---:|\n"
    )
    for name, number, (seconds, spent) in rows:
        each, own = 1000 * seconds / number, 1000 * spent / number
        sys.stdout.write(f"| {name} | {number} | {seconds:.2f} | {each:.2f} | {own:.2f} |\n")


def do_jobs(context: Empty, run: Records, *, jobs: int) -> None:
    """Side by side in processes of this machine."""
    do_side_by_side(context, run, named_build, jobs)


def named_build(context: Empty) -> Sequence[Stage]:
    """`build` under the name that another process knows this module by."""
    return build(replace(context))


if __name__ == "__main__":
    import engine  # as other processes know it

    engine.main()

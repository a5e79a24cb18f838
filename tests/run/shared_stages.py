"""A run without models or data that several processes share, for the tests.

a1 a2 a3 ──► b (needs all) ──► c       a1 leaves a state behind when it is ended, and goes on from it
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from scantling.errors import Interrupted
from scantling.recipe.recipe import Recipe, parse_recipe
from scantling.run.context import Workplace
from scantling.run.engines.shared import do_shared
from scantling.run.engines.shared_folder import Terms, share_run
from scantling.run.stage import Stage

PATIENCE = 250.0
RECIPE = "members: {one: {model: {name: faster_rcnn_r18_small}}}\n"


def recipe_of(text: str = RECIPE) -> Recipe:
    return parse_recipe(text, file="r.yaml")


def build(context: Workplace) -> list[Stage]:
    root = context.root

    def stage(name: str, work, needs: tuple[str, ...] = (), working: tuple[str, ...] = ()) -> Stage:
        return Stage(
            folder="all",
            name=name,
            inputs=dict,
            needs=needs,
            outputs=(f"all/{name}.txt",),
            working_files=working,
            action=partial(work, root, name),
        )

    firsts = [stage("a1", learn, working=("all/a1.state",)), stage("a2", write), stage("a3", write)]
    needs = tuple(f"all/a{number}.txt" for number in (1, 2, 3))
    return [*firsts, stage("b", join, needs), stage("c", write, ("all/b.txt",))]


def learn(root: Path, name: str) -> None:
    """Ten steps, each kept; it stops for good at the fifth where the scenario says so and nobody has died there."""
    state, marks = root / f"all/{name}.state", root.parent
    state.parent.mkdir(exist_ok=True)
    begun = int(state.read_text()) if state.exists() else 0
    with (marks / "begun").open("a") as stream:
        stream.write(f"{begun}\n")
    for step in range(begun, 10):
        state.write_text(str(step))
        if step == 5 and begun == 0:
            end_at_the_fifth_step(marks)
        time.sleep(0.01)
    (root / f"all/{name}.txt").write_text("learned")


def end_at_the_fifth_step(marks: Path) -> None:
    scenario = (marks / "scenario").read_text() if (marks / "scenario").exists() else ""
    if scenario == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if scenario == "stopped":
        raise Interrupted(15, "stopped")
    if scenario == "broken":
        raise ValueError("it does not work")


def write(root: Path, name: str) -> None:
    (root / "all").mkdir(exist_ok=True)
    time.sleep(0.05)
    (root / f"all/{name}.txt").write_text(name)


def join(root: Path, name: str) -> None:
    parts = [(root / f"all/a{number}.txt").read_text() for number in (1, 2, 3)]
    (root / f"all/{name}.txt").write_text(" ".join(parts))


def take_part(root: Path, recipe: Recipe | None = None, *, launch: str | None = None) -> dict[str, str]:
    """Do the run in this process, together with whoever else does."""
    recipe = recipe or recipe_of()
    cpu = torch.device("cpu")
    context = Workplace(root=root, device=cpu, console=Console(quiet=True))
    terms = Terms(given=recipe.to_dict(), recipe=recipe, device=cpu)

    def facts() -> None:
        (root / "recipe.yaml").write_text(recipe.to_yaml())

    with share_run(root, terms, facts, launch=launch) as (run, _):
        do_shared(context, run, build)
        run.require_all()
    return run.stages

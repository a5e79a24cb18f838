"""A recipe becomes a run: stages in order, each done once.

    check data ─► resolve `auto` ─► pretrain ─► for each member (and fold): train ─► predict
       ─► tune suppression ─► detect ─► tune weights ─► ensemble ─► eliminate ─► refine ─► audit labels
       ─► evaluate ─► report

Nothing is written before all of the data has been checked. Further methods are further stages: a function that
returns a `Stage`, in `stages/`, and a line here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from scantling.data.io import atomic_write, read_json, write_json
from scantling.data.splits import RunData, describe_run_data, log_run_data, read_run_data
from scantling.recipe.auto import Resolution
from scantling.recipe.facts import measure
from scantling.recipe.recipe import Recipe
from scantling.recipe.suggest import OpenRecipe, settle
from scantling.report.build import REASONS
from scantling.run.context import RunContext
from scantling.run.folder import (
    CATEGORIES,
    DATA,
    METRICS,
    RECIPE,
    REPORT,
    RunFolder,
    check_run_folder,
    open_run,
    write_environment,
)
from scantling.run.stages.combining import (
    check_combination,
    eliminate_stage,
    ensemble_stage,
    outcome_file,
    weights_stage,
)
from scantling.run.stages.detecting import detect_stage, import_stage, tune_stage
from scantling.run.stages.judging import (
    HEADLINE,
    INGREDIENTS,
    TABLE,
    evaluate_stage,
    report_stage,
)
from scantling.run.stages.pretraining import pretrain_stage, settle_pretraining
from scantling.run.stages.refining import (
    audit_stage,
    check_refining,
    gate_stage,
    refine_stage,
    refiner_stage,
    settle_refining,
)
from scantling.run.stages.training import check_detectors, predict_stage, train_stage
from scantling.train.devices import Processes, join_processes, resolve_device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run reached.

    Attributes:
        out: The run folder.
        metrics: Content of `metrics.json`.
        table: COCO table of the stage the metrics are of.
        ingredients: Table of what each step gave.
    """

    out: Path
    metrics: Mapping[str, Any]
    table: str
    ingredients: str

    def to_text(self) -> str:
        """For people: the tables, the headline number, where the report is."""
        ap = self.metrics[HEADLINE]
        value = "undefined" if ap is None else f"{ap:.3f}"
        kind = "member" if self.metrics["stage"] == self.metrics["member"] else "after"
        headline = f"{HEADLINE} {value} on {self.metrics['split']} ({kind} {self.metrics['stage']})"
        return "\n".join([self.table, "", self.ingredients, "", headline, f"report: {self.out / REPORT}"])

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), "report": str(self.out / REPORT), "metrics": dict(self.metrics)}


def run_recipe(
    recipe: Recipe | OpenRecipe, out: Path, *, device: str = "auto", overwrite: bool = False
) -> RunSummary:
    """Do what a recipe says; what is done and unchanged is kept, what was interrupted goes on.

    Args:
        recipe: With `data.root`; may hold `auto`, or be one that is chosen for the data.
        out: Run folder; that of an earlier run of the same recipe is continued.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Start over in the folder of an earlier run.

    Raises:
        ScantlingError: The data, a setting, the device or the folder cannot be used; then nothing was written.
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
    """
    with prepared_run(recipe, out, device=device, overwrite=overwrite) as (context, run):
        do_stages(context, run)
    return context.processes.on_main(partial(summarise, out))


@contextmanager
def prepared_run(
    recipe: Recipe | OpenRecipe, out: Path, *, device: str, overwrite: bool
) -> Iterator[tuple[RunContext, RunFolder]]:
    """A run before its first stage: everything is checked, the folder is held and says what is to be done.

    The arguments and errors are those of `run_recipe`.
    """
    chosen = resolve_device(device)
    processes = join_processes(chosen)
    data, (resolved, reasons) = processes.on_main(partial(_prepare, recipe, out, chosen, processes))
    console = Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO))
    context = RunContext(
        root=out, recipe=resolved, data=data, device=chosen, console=console, processes=processes
    )
    with processes.together():
        check_combination(context)
        check_refining(context)
        check_detectors(context, begun=not overwrite)
    with open_run(out, overwrite=overwrite, processes=processes) as run:
        processes.on_main(partial(_write_facts, context, reasons))
        yield context, run


def do_stages(context: RunContext, run: RunFolder) -> None:
    """Do the stages of a run in their order."""
    recipe = context.recipe
    if recipe.pretrain is not None:
        run.do(pretrain_stage(context))
    for unit in context.units():
        run.do(train_stage(context, unit))
        run.do(predict_stage(context, unit))
    for name in recipe.members:
        if name in recipe.foreign_members:
            run.do(import_stage(context, name), alone=True)
            continue
        if recipe.tunes_suppression:
            run.do(tune_stage(context, name), alone=True)
        run.do(detect_stage(context, name), alone=True)
    _combine(context, run)
    if recipe.refine is not None:
        _refine(context, run)
    if recipe.audit is not None:
        run.do(audit_stage(context), alone=True)
    run.do(evaluate_stage(context), alone=True)
    run.do(report_stage(context), alone=True)


def _combine(context: RunContext, run: RunFolder) -> None:
    recipe = context.recipe
    if recipe.tunes_weights:
        run.do(weights_stage(context), alone=True)
    if recipe.combining.ensemble is not None:
        run.do(ensemble_stage(context), alone=True)
    if recipe.combining.eliminate is not None:
        run.do(eliminate_stage(context), alone=True)


def _refine(context: RunContext, run: RunFolder) -> None:
    run.do(refiner_stage(context))
    if context.recipe.gates_refinement:
        run.do(gate_stage(context), alone=True)
    run.do(refine_stage(context, outcome_file(context)), alone=True)


def _prepare(
    recipe: Recipe | OpenRecipe, out: Path, device: torch.device, processes: Processes
) -> tuple[RunData, Resolution]:
    """The checked data, and the recipe without `auto`: what one process finds out for all."""
    check_run_folder(out)
    data = read_run_data(recipe.data, recipe.evaluate.split)
    settled = settle(recipe, measure(data.train, device, processes))
    settled = settle_pretraining(settled, data, device, processes)
    return data, settle_refining(settled, data, device, processes)


def summarise(out: Path) -> RunSummary:
    """The outcome of a finished run, from its folder."""
    metrics = cast("dict[str, Any]", read_json(out / METRICS))
    table, ingredients = (
        (out / name).read_text(encoding="utf-8").rstrip("\n") for name in (TABLE, INGREDIENTS)
    )
    return RunSummary(out=out, metrics=metrics, table=table, ingredients=ingredients)


def _write_facts(context: RunContext, reasons: Iterable[str]) -> None:
    """Everything that is known before the first stage."""
    log_run_data(context.data)
    told = list(reasons)
    for reason in told:
        log.info("%s", reason)
    if told:  # a recipe without `auto`, as a run is gone on with, leaves nothing to decide: the reasons stay
        write_json(context.root / REASONS, told, indent=2)
    categories = [
        {"id": category.id, "name": category.name, "label": label}
        for label, category in enumerate(context.data.train.categories)
    ]
    atomic_write(context.root / RECIPE, context.recipe.to_yaml())
    write_json(context.root / CATEGORIES, categories, indent=2)
    write_json(context.root / DATA, describe_run_data(context.data), indent=2)
    write_environment(context.root, device=context.device)

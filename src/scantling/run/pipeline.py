"""A recipe becomes a run: stages in order, each done once.

    check data ─► resolve `auto` ─► pretrain ─► for each member (and fold): train ─► predict (a segmenter: score)
       ─► tune suppression ─► draw masks ─► detect ─► tune weights ─► ensemble ─► fuse with score maps ─► eliminate
       ─► refine ─► audit labels ─► evaluate ─► report

Nothing is written before all of the data has been checked. `stages_of` lists the stages before any is done, so that
they can be shown (`plan_recipe`) or done side by side (`run/engines`). What happens after prediction is `run/steps.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from scantling.data.io import atomic_write, write_json
from scantling.data.splits import RunData, describe_run_data, log_run_data, read_run_data
from scantling.recipe.auto import Resolution
from scantling.recipe.facts import measure
from scantling.recipe.recipe import Recipe
from scantling.recipe.suggest import OpenRecipe, resolve_auto
from scantling.report.build import REASONS
from scantling.run.context import RunContext, Workplace
from scantling.run.engines.choice import ONE_AFTER_THE_OTHER, Engine, check_engine, do_with
from scantling.run.folder import (
    CATEGORIES,
    DATA,
    RECIPE,
    RunFolder,
    check_run_folder,
    open_run,
    write_environment,
)
from scantling.run.leases import PATIENCE_SECONDS
from scantling.run.plan import Plan, plan_of
from scantling.run.run_summary import RunSummary, summarise
from scantling.run.stage import Stage
from scantling.run.stages.combining import (
    applied_steps,
    check_combination,
    eliminate_stage,
    ensemble_stage,
    first_file,
    semantic_stage,
    semantic_tune_stage,
    weights_stage,
)
from scantling.run.stages.detecting import detect_stage, import_stage, masks_stage, tune_stage
from scantling.run.stages.evaluation import (
    evaluate_stage,
    report_stage,
)
from scantling.run.stages.pretraining import pretrain_stage, resolve_pretraining
from scantling.run.stages.refining import (
    audit_stage,
    check_refining,
    gate_stage,
    refine_stage,
    refiner_stage,
    resolve_refining,
)
from scantling.run.stages.semantic import check_semantic, semantic_stages
from scantling.run.stages.training import check_detectors, predict_stage, score_maps_stage, train_stage
from scantling.run.steps import Eliminate, Ensemble, FuseSemantic, Refine, Step
from scantling.run.without_val import check_without_val
from scantling.train.devices import Processes, available_devices, join_processes, resolve_device

log = logging.getLogger(__name__)


def run_recipe(
    recipe: Recipe | OpenRecipe,
    out: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    engine: Engine = ONE_AFTER_THE_OTHER,
) -> RunSummary:
    """Do what a recipe says; what is done and unchanged is kept, what was interrupted goes on.

    Args:
        recipe: With `data.root`; may hold `auto`, or be one that is chosen for the data.
        out: Run folder; that of an earlier run of the same recipe is continued.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Start over in the folder of an earlier run.
        engine: Who does the stages; those that do not need one another may be done side by side, each in a process of
            its own and on a GPU of its own where there are several. The result is the same to the bit.

    Raises:
        ScantlingError: The data, a setting, the device or the folder cannot be used; then nothing was written.
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
    """
    with prepared_run(recipe, out, device=device, overwrite=overwrite, engine=engine) as (context, run):
        do_stages(context, run, engine=engine)
    return context.processes.on_main(partial(summarise, out))


@contextmanager
def prepared_run(
    recipe: Recipe | OpenRecipe,
    out: Path,
    *,
    device: str,
    overwrite: bool,
    engine: Engine = ONE_AFTER_THE_OTHER,
    console: Console | None = None,
) -> Iterator[tuple[RunContext, RunFolder]]:
    """A run before its first stage: everything is checked, the folder is held and says what is to be done.

    The arguments and errors are those of `run_recipe`.

    Args:
        recipe: As there.
        out: As there.
        device: As there.
        overwrite: As there.
        engine: As there.
        console: On which progress is shown; None: standard error, unless nobody wants to see it.
    """
    engine.check_overwrite(overwrite=overwrite)
    context, reasons = _checked_context(
        recipe, out, device=device, begun=not overwrite, console=console, gpus=engine.gpus
    )
    check_engine(engine, context)
    if engine.name == "shared":
        from scantling.run.engines.shared_folder import Terms, share_run

        given = (
            recipe.to_dict() if isinstance(recipe, Recipe) else {"data": recipe.data.model_dump(mode="json")}
        )
        terms = Terms(given=given, recipe=context.recipe, device=context.device)
        facts = partial(_write_facts, context, reasons)
        patience = engine.patience or PATIENCE_SECONDS
        with share_run(out, terms, facts, launch=engine.launch, patience=patience) as (shared, agreed):
            yield replace(context, recipe=agreed), shared
        return
    processes = context.processes
    with open_run(out, overwrite=overwrite, processes=processes) as run:
        processes.on_main(partial(_write_facts, context, reasons))
        yield context, run


@contextmanager
def part_of(
    whole: Workplace,
    recipe: Recipe,
    folder: Path,
    *,
    overwrite: bool,
    engine: Engine = ONE_AFTER_THE_OTHER,
) -> Iterator[tuple[RunContext, RunFolder]]:
    """One of the runs that something larger consists of (a suite, an ablation), before its first stage.

    Afterwards it leaves the GPU's memory to the next.

    Args:
        whole: Where that is done.
        recipe: Of this run.
        folder: Of this run.
        overwrite: As in `run_recipe`.
        engine: As in `run_recipe`.
    """
    device, console = str(whole.device), whole.console
    try:
        with prepared_run(
            recipe, folder, device=device, overwrite=overwrite, engine=engine, console=console
        ) as opened:
            yield opened
    finally:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch says nothing of its type
            torch.cuda.empty_cache()


def _checked_context(
    recipe: Recipe | OpenRecipe,
    out: Path,
    *,
    device: str,
    begun: bool,
    console: Console | None = None,
    gpus: int = 1,
) -> tuple[RunContext, tuple[str, ...]]:
    """A run that can be done, and the reasons for what was decided; nothing is written."""
    chosen = resolve_device(device)
    processes = join_processes(chosen)
    who_trains = processes if gpus == 1 else Processes(rank=0, world=gpus, on_machine=gpus)
    data, (resolved, reasons) = processes.on_main(partial(_prepare, recipe, out, chosen, who_trains))
    context = RunContext(
        root=out,
        recipe=resolved,
        data=data,
        device=chosen,
        devices=available_for(device, chosen),
        console=console or Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO)),
        processes=processes,
    )
    with processes.together():
        check_without_val(resolved)
        check_semantic(context)
        check_combination(context)
        check_refining(context)
        check_detectors(context, begun=begun)
    return context, tuple(reasons)


def check_run(recipe: Recipe, out: Path, *, device: str, elsewhere: bool) -> None:
    """Find what cannot work before a run is begun; nothing is written.

    Args:
        recipe: As in `run_recipe`.
        out: As in `run_recipe`.
        device: As in `run_recipe`.
        elsewhere: It is to be done on the GPU of another machine, which this one need not have.

    Raises:
        ScantlingError: As in `run_recipe`.
    """
    check_run_folder(out)
    if elsewhere and not torch.cuda.is_available():
        device, members = "cpu", {}
        for name, member in recipe.members.items():
            train = member.train.model_copy(update={"precision": "fp32"})
            members[name] = member.model_copy(update={"train": train})
        recipe = recipe.model_copy(update={"members": members})
        out = out / "elsewhere"  # what was trained there in another precision is for the units to compare
    _checked_context(recipe, out, device=device, begun=True)


def available_for(option: str, chosen: torch.device) -> tuple[torch.device, ...]:
    """All GPUs where none of them was asked for by its number; else the one device."""
    if chosen.type != "cuda" or option not in ("auto", "cuda"):
        return (chosen,)
    return tuple(torch.device(name) for name in available_devices() if name.startswith("cuda"))


def plan_recipe(
    recipe: Recipe | OpenRecipe,
    out: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    build: Callable[[RunContext], Sequence[Stage]] | None = None,
) -> Plan:
    """What `run_recipe` would do with the same arguments, and why; nothing is written.

    Args:
        recipe: As in `run_recipe`.
        out: As in `run_recipe`.
        device: As in `run_recipe`.
        overwrite: As in `run_recipe`.
        build: As in `do_stages`.

    Raises:
        ScantlingError: The data, a setting, the device or the folder cannot be used.
    """
    context, _ = _checked_context(recipe, out, device=device, begun=False)
    stages = (build or stages_of)(context)
    return context.processes.on_main(partial(plan_of, stages, out, fresh=overwrite))


def do_stages(
    context: RunContext,
    run: RunFolder,
    *,
    engine: Engine = ONE_AFTER_THE_OTHER,
    build: Callable[[RunContext], Sequence[Stage]] | None = None,
) -> None:
    """Do the stages of a run, each after those whose files it needs.

    Args:
        context: Of the run.
        run: Its folder.
        engine: Who does them.
        build: Lists the stages, in an order in which they can be done; a function of a module. None: `stages_of`.

    Raises:
        ScantlingError: A stage cannot be begun, as it was done with other settings say.
        Exception: What the first stage raised that failed, when all that do not need it are done.
    """
    build = build or stages_of
    if context.processes.world > 1:
        stages = build(context)
        run.expect([stage.title for stage in stages])
        for stage in stages:
            run.do(stage)
    else:
        do_with(engine, context, run, build)
        run.require_all()


def stages_of(context: RunContext) -> tuple[Stage, ...]:
    """All stages of a run, each after those whose files it needs; none of them need be done yet."""
    recipe, stages = context.recipe, list[Stage]()
    if recipe.pretrain is not None:
        stages.append(pretrain_stage(context))
    for unit in context.units():
        look = score_maps_stage if context.member(unit.member).gives_maps else predict_stage
        stages += [train_stage(context, unit), look(context, unit)]
    for name in recipe.members:
        if context.member(name).gives_maps:
            stages += semantic_stages(context, name)
            continue
        if name in recipe.foreign_members:
            stages.append(import_stage(context, name))
            continue
        if recipe.tunes_suppression:
            stages.append(tune_stage(context, name))
        if context.member(name).draws_masks:
            stages += [masks_stage(context, unit) for unit in context.units_of(name)]
        stages.append(detect_stage(context, name))
    for step in applied_steps(context):
        stages += _stages_of_step(context, step)
    if recipe.audit is not None:
        stages.append(audit_stage(context))
    return (*stages, evaluate_stage(context), report_stage(context))


def _stages_of_step(context: RunContext, step: Step) -> list[Stage]:
    """What is learned for a step, and the step itself."""
    if isinstance(step, Ensemble):
        learned = [weights_stage(context)] if context.recipe.tunes_weights else []
        return [*learned, ensemble_stage(context, step)]
    if isinstance(step, FuseSemantic):
        learned = [semantic_tune_stage(context)] if context.recipe.tunes_semantic else []
        return [*learned, semantic_stage(context, step, first_file(context, step))]
    if isinstance(step, Eliminate):
        return [eliminate_stage(context, step, first_file(context, step))]
    if isinstance(step, Refine):
        gate = [gate_stage(context)] if context.recipe.gates_refinement else []
        return [refiner_stage(context), *gate, refine_stage(context, step, first_file(context, step))]
    raise TypeError(f"the step {step.name} has no stage")


def _prepare(
    recipe: Recipe | OpenRecipe, out: Path, device: torch.device, processes: Processes
) -> tuple[RunData, Resolution]:
    """The checked data, and the recipe without `auto`: what one process finds out for all."""
    check_run_folder(out)
    data = read_run_data(recipe.data, recipe.evaluate.split, with_masks=recipe.needs_masks)
    resolved = resolve_auto(recipe, measure(data.train, device, processes))
    resolved = resolve_pretraining(resolved, data, device, processes)
    return data, resolve_refining(resolved, data, device, processes)


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

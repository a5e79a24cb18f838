"""Sharper boxes at the end of a run, and its labels audited: a refiner learns from the training boxes alone.

train boxes ── refine/refiner ──► a gate, measured on val ──► refine/predictions.json
the training labels, refined, and out-of-fold detections ──► audit/ (suspects, audit.html)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from scantling.audit.suspects import find_suspects
from scantling.data.coco import write_results
from scantling.data.detections import results_of
from scantling.data.io import atomic_write, sha256_of, write_json
from scantling.data.splits import RunData
from scantling.errors import CheckpointError, ConfigError
from scantling.recipe.auto import Resolution
from scantling.recipe.recipe import RefineSection
from scantling.refine.apply import load_refiner, refine_truth
from scantling.refine.bbrefinement import check_initial_weights
from scantling.refine.gate_tuning import tune_gate
from scantling.refine.train import RefinerRun, resolve_training, train_refiner
from scantling.refine.training_data import LabelledBoxes
from scantling.report.audit_report import write_audit
from scantling.run.context import HELD_OUT, OUT_OF_FOLD, RunContext
from scantling.run.results import own_results
from scantling.run.stage import Inputs, Resources, Stage, hashes_of
from scantling.run.stages.combining import applied_steps, fused, member_sources
from scantling.run.stages.detecting import read_member
from scantling.run.steps import (
    GATE,
    REFINE,
    REFINER,
    SEMANTIC,
    Ensemble,
    Refine,
    Step,
    apply_steps,
    combined_members,
    step_file,
    steps_before,
)
from scantling.train.checkpoint import load_checkpoint
from scantling.train.devices import Processes
from scantling.train.history import CSV_NAME, JSONL_NAME
from scantling.train.keeper import BEST_NAME, LAST_NAME, PREVIOUS_NAME, resumable

AUDIT = "audit"
SUSPECTS = f"{AUDIT}/suspects.json"


def check_refining(context: RunContext) -> None:
    """Find what cannot be refined before anything is written.

    Raises:
        CheckpointError: The file of the refiner's initial weights is missing or damaged.
        ConfigError: There are several members and no ensemble, an audit has nothing to go by, or the refiner's weights
            do not fit it.
    """
    recipe, held_out = context.recipe, _out_of_fold_members(context)
    if recipe.refine is not None:
        try:
            check_initial_weights(recipe.refine.model)
        except (ConfigError, CheckpointError) as error:
            raise type(error)(f"refine.{error.message}", hint=error.hint) from error
    apart = recipe.combining.ensemble is None
    for section, several in (
        ("refine", recipe.refine is not None and len(combined_members(context.recipe)) > 1),
        ("audit", recipe.audit is not None and len(held_out) > 1),
    ):
        if apart and several:
            hint = "Add combine.ensemble, or name one member in combine.members."
            raise ConfigError(f"{section}: there are several members and no ensemble", hint=hint)
    if recipe.audit is not None and recipe.refine is None and not held_out:
        hint = "Add the section `refine`, or train with --folds."
        raise ConfigError(
            "audit: neither refined boxes nor out-of-fold predictions to compare with", hint=hint
        )


def resolve_refining(
    found: Resolution, data: RunData, device: torch.device, processes: Processes
) -> Resolution:
    """Decide what `auto` means in a recipe's `refine`.

    Args:
        found: The recipe with everything else decided.
        data: Its splits.
        device: Where it computes.
        processes: Those that train together.
    """
    config = found.recipe.refine
    if config is None:
        return found
    resolved = resolve_training(config, LabelledBoxes(data.train, config.model.min_side), device, processes)
    return Resolution(found.recipe.model_copy(update={"refine": resolved}), found.reasons)


def refiner_stage(context: RunContext) -> Stage:
    """Train the refiner."""
    config = _config(context)
    folder = f"{REFINE}/refiner"
    return Stage(
        folder=folder,
        name="train",
        inputs=lambda: {
            "seed": context.recipe.seed,
            "data": context.data.learned_hashes,
            "model": config.model.model_dump(mode="json"),
            "crops": config.crops.model_dump(mode="json"),
            "train": config.train.result_settings(),
            "apply": config.apply.model_dump(mode="json"),  # validation refines so, and decides what is best
        },
        outputs=tuple(f"{folder}/{name}" for name in (BEST_NAME, JSONL_NAME, CSV_NAME)),
        working_files=tuple(f"{folder}/{name}" for name in (LAST_NAME, PREVIOUS_NAME)),
        action=partial(_train, context),
        costly=True,
        resources=Resources(gpus=1, processes=None),
    )


def gate_stage(context: RunContext) -> Stage:
    """Measure on `val` where refining helps the run's own detections."""
    members = combined_members(context.recipe)
    files = {name: context.detections_file(name, "val") for name in members}
    learned = [file for step in _steps_before_refining(context) for file in step.needs()]
    if context.recipe.combining.semantic is not None:
        files[SEMANTIC] = context.maps_file(context.recipe.map_member(), "val")

    return Stage(
        folder=REFINE,
        name="gate",
        inputs=partial(_gate_inputs, context, files),
        needs=(REFINER, *files.values(), *learned),
        outputs=(GATE, f"{REFINE}/gate.txt"),
        action=partial(_measure, context),
        resources=Resources(gpus=1),
    )


def _gate_inputs(context: RunContext, files: Mapping[str, str]) -> Inputs:
    config = _config(context)
    return {
        "refiner": sha256_of(context.root / REFINER),
        "gate": config.gate.model_dump(mode="json") if config.gate else None,
        "apply": config.apply.model_dump(mode="json"),
        "detections": hashes_of(context.root, files),
        "combine": context.recipe.combining.model_dump(mode="json"),
        "fusion": Ensemble(context.recipe, context.root).inputs(),
        **{step.name: step.inputs() for step in _steps_before_refining(context) if step.name == SEMANTIC},
        "data": context.data.hashes["val"],
    }


def refine_stage(context: RunContext, step: Refine, before: str) -> Stage:
    """Sharpen the boxes of the step before.

    Args:
        context: Of the run.
        step: How.
        before: Results file that is refined, relative to the run folder.
    """
    return Stage(
        folder=REFINE,
        name=REFINE,
        inputs=lambda: {"detections": sha256_of(context.root / before), **step.inputs()},
        needs=(before, *step.needs()),
        outputs=(step_file(step), f"{REFINE}/counts.json"),
        action=partial(_refine, context, step, before),
        resources=Resources(gpus=1),
    )


def audit_stage(context: RunContext) -> Stage:
    """Rank the training labels by how likely they are wrong."""
    members, refine = _out_of_fold_members(context), context.recipe.refine
    files = [f"members/{name}/{OUT_OF_FOLD}" for name in members]
    files += [REFINER] if refine is not None else []
    fusion = Ensemble(context.recipe, context.root)
    return Stage(
        folder=AUDIT,
        name=AUDIT,
        inputs=lambda: {
            "files": hashes_of(context.root, {file: file for file in files}),
            "apply": refine.apply.model_dump(mode="json") if refine is not None else None,
            "fusion": fusion.inputs() if len(members) > 1 else None,
            "audit": context.recipe.auditing.model_dump(mode="json"),
            "data": context.data.hashes["train"],
        },
        needs=(*files, *(fusion.needs() if len(members) > 1 else ())),
        outputs=(SUSPECTS, f"{AUDIT}/audit.html"),
        action=partial(_audit, context),
        resources=Resources(gpus=1),
    )


def _config(context: RunContext) -> RefineSection:
    if context.recipe.refine is None:
        raise TypeError("this recipe does not refine")
    return context.recipe.refine


def _out_of_fold_members(context: RunContext) -> list[str]:
    foreign = context.recipe.foreign_members
    return [name for name in combined_members(context.recipe) if name not in foreign] if context.folds else []


def _train(context: RunContext) -> None:
    out = context.root / REFINE / "refiner"
    run = RefinerRun(
        out=out,
        seed=context.recipe.seed,
        device=str(context.device),
        overwrite=not context.processes.from_main(resumable(out)),
        data_hash=context.data.learned_hash,
        console=context.console,
    )
    train_refiner(context.data.train, context.data.val, _config(context), run)


def _measure(context: RunContext) -> None:
    config, path = _config(context), context.root / REFINER
    found = apply_steps(_steps_before_refining(context), member_sources(context, "val"), context.data.val)
    refiner = load_refiner(path, str(context.device))
    gate = tune_gate(
        results_of(found, context.data.val),
        context.data.val,
        refiner,
        config.gating,
        config.apply,
        refiner_sha=load_checkpoint(path).meta.sha256,
    )
    atomic_write(context.root / GATE, gate.to_yaml())
    atomic_write(context.root / REFINE / "gate.txt", gate.to_text() + "\n")


def _steps_before_refining(context: RunContext) -> tuple[Step, ...]:
    return steps_before(applied_steps(context), REFINE)


def _refine(context: RunContext, step: Refine, before: str) -> None:
    target = context.data.target
    refined, counts = step.refine(own_results(context.root, before, target), target)
    write_results(refined, context.root / step_file(step), target)
    write_json(context.root / REFINE / "counts.json", counts, indent=2)


def _audit(context: RunContext) -> None:
    train, config, refined = context.data.train, context.recipe.auditing, None
    if context.recipe.refine is not None:
        refiner = load_refiner(context.root / REFINER, str(context.device))
        apply = _config(context).apply.model_copy(update={"iterations": config.iterations})
        refined = refine_truth(train, refiner, apply)
    members = _out_of_fold_members(context)
    detections = None
    if len(members) > 1:
        found = {name: read_member(context, name, HELD_OUT) for name in members}
        detections = fused(context, found, HELD_OUT)
    elif members:
        detections = read_member(context, members[0], HELD_OUT)
    write_audit(context.root / AUDIT, find_suspects(train, refined, detections, config), train, detections)

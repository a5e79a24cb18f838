"""Sharper boxes at the end of a run, and its labels audited: a refiner learns from the training boxes alone.

train boxes ── refine/refiner ──► a gate, measured on val ──► refine/predictions.json
the training labels, refined, and out-of-fold detections ──► audit/ (suspects, audit.html)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scantling.audit.suspects import find_suspects
from scantling.data.coco import CocoDataset, read_results, write_results
from scantling.data.coco.results import Result
from scantling.data.detections import detections_of, results_of
from scantling.data.io import atomic_write, sha256_of, write_json
from scantling.data.splits import RunData
from scantling.errors import CheckpointError, ConfigError
from scantling.recipe.auto import Resolution
from scantling.recipe.recipe import RefineSection
from scantling.refine.apply import load_refiner, refine_results, refine_truth
from scantling.refine.bbrefinement import check_initial_weights
from scantling.refine.gate import RefineGate
from scantling.refine.gate_tuning import tune_gate
from scantling.refine.train import RefinerRun, resolve_training, train_refiner
from scantling.refine.training_data import LabelledBoxes
from scantling.report.audit_report import write_audit
from scantling.run.context import HELD_OUT, OUT_OF_FOLD, PREDICTIONS, RunContext
from scantling.run.stage import Stage
from scantling.run.stages.combining import cleaned, combined_members, fused, fusion_inputs
from scantling.run.stages.detecting import read_member
from scantling.settings.draft import Draft
from scantling.structures.detections import Detections
from scantling.train.checkpoint import load_checkpoint
from scantling.train.devices import Processes
from scantling.train.history import CSV_NAME, JSONL_NAME
from scantling.train.keeper import BEST_NAME, LAST_NAME, PREVIOUS_NAME, resumable

REFINE, AUDIT = "refine", "audit"
REFINER, GATE = f"{REFINE}/refiner/{BEST_NAME}", f"{REFINE}/gate.yaml"


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
        ("refine", recipe.refine is not None and len(combined_members(context)) > 1),
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


def settle_refining(
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
    decided = resolve_training(config, LabelledBoxes(data.train, config.model.min_side), device, processes)
    return Resolution(found.recipe.model_copy(update={"refine": decided}), found.reasons)


def refiner_stage(context: RunContext) -> Stage:
    """Train the refiner."""
    config = _config(context)
    inputs = {
        "seed": context.recipe.seed,
        "data": {split: context.data.hashes[split] for split in ("train", "val")},
        "model": config.model.model_dump(mode="json"),
        "crops": config.crops.model_dump(mode="json"),
        "train": config.train.result_settings(),
        "apply": config.apply.model_dump(mode="json"),  # validation refines so, and decides what is best
    }
    folder = f"{REFINE}/refiner"
    return Stage(
        folder=folder,
        name="train",
        inputs=inputs,
        outputs=tuple(f"{folder}/{name}" for name in (BEST_NAME, JSONL_NAME, CSV_NAME)),
        working_files=tuple(f"{folder}/{name}" for name in (LAST_NAME, PREVIOUS_NAME)),
        action=partial(_train, context),
        costly=True,
    )


def gate_stage(context: RunContext) -> Stage:
    """Measure on `val` where refining helps the run's own detections."""
    config = _config(context)
    inputs = {
        "refiner": sha256_of(context.root / REFINER),
        "gate": config.gate.model_dump(mode="json") if config.gate else None,
        "apply": config.apply.model_dump(mode="json"),
        "detections": {
            name: sha256_of(context.root / context.detections_file(name, "val"))
            for name in combined_members(context)
        },
        "combine": context.recipe.combining.model_dump(mode="json"),
        "fusion": fusion_inputs(context),
        "data": context.data.hashes["val"],
    }
    outputs = (GATE, f"{REFINE}/gate.txt")
    return Stage(
        folder=REFINE, name="gate", inputs=inputs, outputs=outputs, action=partial(_measure, context)
    )


def refine_stage(context: RunContext, before: str) -> Stage:
    """Refine the outcome of the combination, or of the only member.

    Args:
        context: Of the run.
        before: Results file that is refined, relative to the run folder.
    """
    config = _config(context)
    inputs = {
        "refiner": sha256_of(context.root / REFINER),
        "gate": sha256_of(context.root / GATE) if config.gate is not None else None,
        "apply": config.apply.model_dump(mode="json"),
        "detections": sha256_of(context.root / before),
    }
    outputs = (f"{REFINE}/{PREDICTIONS}", f"{REFINE}/counts.json")
    action = partial(_refine, context, before)
    return Stage(folder=REFINE, name=REFINE, inputs=inputs, outputs=outputs, action=action)


def audit_stage(context: RunContext) -> Stage:
    """Rank the training labels by how likely they are wrong."""
    members, refine = _out_of_fold_members(context), context.recipe.refine
    files = [f"members/{name}/{OUT_OF_FOLD}" for name in members]
    files += [REFINER] if refine is not None else []
    inputs: dict[str, Any] = {
        "files": {file: sha256_of(context.root / file) for file in files},
        "apply": refine.apply.model_dump(mode="json") if refine is not None else None,
        "fusion": fusion_inputs(context) if len(members) > 1 else None,
        "audit": context.recipe.auditing.model_dump(mode="json"),
        "data": context.data.hashes["train"],
    }
    outputs = tuple(f"{AUDIT}/{name}" for name in ("suspects.json", "audit.html"))
    return Stage(folder=AUDIT, name=AUDIT, inputs=inputs, outputs=outputs, action=partial(_audit, context))


def refined_results(
    root: Path, config: RefineSection, dataset: CocoDataset, results: Sequence[Result], device: str
) -> tuple[list[Result], dict[str, int]]:
    """Results with the boxes of a run's refiner, where its gate allows it; and how many were refined or not, and why.

    Args:
        root: The run folder.
        config: The run's.
        dataset: What the results are about.
        results: Of the combination.
        device: Where the refiner computes.

    Raises:
        CheckpointError: The refiner is missing or damaged.
        ConfigError: The gate's file was changed so that it is none.
        DataError: An image that has results cannot be read.
    """
    refiner, gate, path = load_refiner(root / REFINER, device), None, root / GATE
    if config.gate is not None:
        gate = Draft.parse(RefineGate, path.read_text(encoding="utf-8"), file=str(path)).check()
    return refine_results(results, dataset, refiner, config.apply, gate=gate)


def _config(context: RunContext) -> RefineSection:
    if context.recipe.refine is None:
        raise TypeError("this recipe does not refine")
    return context.recipe.refine


def _out_of_fold_members(context: RunContext) -> list[str]:
    foreign = context.recipe.foreign_members
    return [name for name in combined_members(context) if name not in foreign] if context.folds else []


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
    found = _combined(context, "val")
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


def _combined(context: RunContext, split: str) -> Detections:
    """What the combination makes of the members' detections of a split."""
    members = combined_members(context)
    if context.recipe.combining.ensemble is None:
        found = read_member(context, members[0], split)
    else:
        found = fused(context, members, split)
    return found if context.recipe.combining.eliminate is None else cleaned(context, found)


def _refine(context: RunContext, before: str) -> None:
    results = read_results(context.root / before, context.data.target, image_ids="id")
    refined, counts = refined_results(
        context.root, _config(context), context.data.target, results, str(context.device)
    )
    write_results(refined, context.root / REFINE / PREDICTIONS, context.data.target.images)
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
        detections = fused(context, members, HELD_OUT)
    elif members:
        path = context.root / "members" / members[0] / OUT_OF_FOLD
        detections = detections_of(read_results(path, train, image_ids="id"), train)
    write_audit(context.root / AUDIT, find_suspects(train, refined, detections, config), train, detections)

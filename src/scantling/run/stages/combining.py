"""Members become one set of detections: weights tuned or given, boxes fused, impossible pairs removed.

members/*/predictions.json ── ensemble ──► ensemble/predictions.json ── eliminate ──► eliminate/predictions.json
"""

from __future__ import annotations

from functools import partial

from scantling.combine.eliminate import learn_relations
from scantling.combine.ensemble import EnsembleConfig
from scantling.combine.tune_weights import tune_weights
from scantling.combine.tuned import write_tuned
from scantling.data.coco import write_results
from scantling.data.detections import detections_of, results_of
from scantling.data.io import atomic_write, sha256_of, write_json
from scantling.errors import ConfigError
from scantling.run.context import RunContext
from scantling.run.results import own_results
from scantling.run.stage import Stage, hashes_of
from scantling.run.stages.detecting import dataset_of, foreign_files, read_member, tuned_by
from scantling.run.steps import (
    ELIMINATE,
    ENSEMBLE,
    RELATIONS,
    TUNED,
    Eliminate,
    Ensemble,
    Sources,
    Step,
    apply_steps,
    combined_members,
    run_steps,
    step_file,
    tuned_file,
)
from scantling.structures.detections import Detections


def check_combination(context: RunContext) -> None:
    """Find what cannot be combined before anything is written.

    Raises:
        ConfigError: A member, a category or a needed result file does not exist.
    """
    combining, recipe = context.recipe.combining, context.recipe
    unknown = [name for name in combined_members(context.recipe) if name not in recipe.members]
    if unknown:
        raise ConfigError(
            f"combine.members: unknown {', '.join(unknown)}", hint=f"There are {', '.join(recipe.members)}."
        )
    if (
        combining.eliminate is not None
        and combining.ensemble is None
        and len(combined_members(context.recipe)) > 1
    ):
        hint = "Add combine.ensemble, or name one member in combine.members."
        raise ConfigError("combine.eliminate: there are several members and no ensemble", hint=hint)
    if combining.ensemble is not None:
        _check_ensemble(context, combining.ensemble)
    needed = [context.data.evaluated, *([context.tuning_split] if recipe.tunes_weights else [])]
    needed += ["val"] if recipe.gates_refinement else []
    for name in recipe.foreign_members:
        missing = [split for split in needed if split not in foreign_files(context, name)]
        if missing:
            hint = f"Give members.{name}.predictions as a mapping from split to file."
            raise ConfigError(f"members.{name}: no predictions for {', '.join(missing)}", hint=hint)
        for path in foreign_files(context, name).values():
            if not path.is_file():
                raise ConfigError(f"members.{name}.predictions: there is no file {path}")


def _check_ensemble(context: RunContext, config: EnsembleConfig) -> None:
    """Refuse weights of members and categories that do not exist, and masks to be matched that nobody draws."""
    members = combined_members(context.recipe)
    config.weight_table(members, context.data.train.class_names)
    bare = [
        name
        for name in members
        if name not in context.recipe.foreign_members and not context.member(name).draws_masks
    ]
    if config.by_masks and bare:
        raise ConfigError(
            f"combine.ensemble.method: {config.method} matches masks, and {', '.join(bare)} draws none",
            hint="Give it a model of masks, or take wbf, nmw, nms, soft_linear or soft_gaussian.",
        )


def weights_stage(context: RunContext) -> Stage:
    """Choose how much each member counts, on images that none of them has learned from."""
    files = _member_files(context, context.tuning_split)
    return Stage(
        folder=TUNED,
        name=ENSEMBLE,
        inputs=lambda: {
            "detections": hashes_of(context.root, files),
            "ensemble": Ensemble(context.recipe, context.root).given.model_dump(mode="json"),
            "tune": context.recipe.combining.tuning.model_dump(mode="json"),
            **context.recipe.evaluate.limits,
            **({"iou_type": "segm"} if tuned_by(context) == "segm" else {}),
        },
        needs=tuple(files.values()),
        outputs=(tuned_file(ENSEMBLE), f"{TUNED}/{ENSEMBLE}.txt"),
        action=partial(_weigh, context),
    )


def ensemble_stage(context: RunContext, step: Ensemble) -> Stage:
    """Fuse the members' boxes."""
    files = _member_files(context, context.data.evaluated)
    return Stage(
        folder=ENSEMBLE,
        name=ENSEMBLE,
        inputs=lambda: {"detections": hashes_of(context.root, files), **step.inputs()},
        needs=(*files.values(), *step.needs()),
        outputs=(step_file(step),),
        action=partial(_fuse, context, step),
    )


def eliminate_stage(context: RunContext, step: Eliminate, before: str) -> Stage:
    """Remove boxes that contradict the training annotations.

    Args:
        context: Of the run.
        step: What is judged.
        before: Results file that is judged, relative to the run folder.
    """
    return Stage(
        folder=ELIMINATE,
        name=ELIMINATE,
        inputs=lambda: {
            "detections": sha256_of(context.root / before),
            "train": context.data.hashes["train"],
            **step.inputs(),
        },
        needs=(before,),
        outputs=(step_file(step), f"{ELIMINATE}/removed.json", RELATIONS),
        action=partial(_eliminate, context, step, before),
    )


def member_sources(context: RunContext, split: str) -> Sources:
    """What the combined members detect in a split: what the steps of a run start from."""
    return {name: read_member(context, name, split) for name in combined_members(context.recipe)}


def fused(context: RunContext, found: Sources, split: str) -> Detections:
    """Some members' detections of a split as one set."""
    return apply_steps([Ensemble(context.recipe, context.root)], found, dataset_of(context, split))


def first_file(context: RunContext, step: Step) -> str:
    """Results file that a step reads which works on one set: that of the step before, or of the only member."""
    steps = run_steps(context.recipe, context.root)
    before = [step_file(other) for other in steps[: [other.name for other in steps].index(step.name)]]
    if before:
        return before[-1]
    (name,) = combined_members(context.recipe)
    return context.detections_file(name, context.data.evaluated)


def _member_files(context: RunContext, split: str) -> dict[str, str]:
    return {name: context.detections_file(name, split) for name in combined_members(context.recipe)}


def _weigh(context: RunContext) -> None:
    members = member_sources(context, context.tuning_split)
    config = Ensemble(context.recipe, context.root).given
    found = tune_weights(
        members,
        context.tuning_data,
        config,
        context.recipe.combining.tuning,
        max_detections=context.recipe.evaluate.max_dets,
        iou_type=tuned_by(context),
    )
    write_tuned(context.root / tuned_file(ENSEMBLE), ensemble=found.config)
    atomic_write(context.root / TUNED / f"{ENSEMBLE}.txt", found.to_text() + "\n")


def _fuse(context: RunContext, step: Ensemble) -> None:
    target = context.data.target
    found = apply_steps([step], member_sources(context, context.data.evaluated), target)
    write_results(results_of(found, target), context.root / step_file(step), target.images)


def _eliminate(context: RunContext, step: Eliminate, before: str) -> None:
    target = context.data.target
    relations = learn_relations(context.data.train, step.config)
    write_json(context.root / RELATIONS, relations.to_dict())
    results = own_results(context.root, before, target)
    found = step.judge(detections_of(results, target))
    kept = [result for result, keep in zip(results, found.keep, strict=True) if keep]
    write_results(kept, context.root / step_file(step), target.images)
    write_json(context.root / ELIMINATE / "removed.json", found.to_dict(), indent=2)

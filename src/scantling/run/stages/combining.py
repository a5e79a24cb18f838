"""Members become one set of detections: weights tuned or given, boxes fused, impossible pairs removed.

members/*/predictions.json ── ensemble ──► semantic ──► eliminate ──► each its folder's predictions.json
"""

from __future__ import annotations

import logging
from functools import partial

from scantling.combine.eliminate import learn_relations
from scantling.combine.ensemble import EnsembleConfig
from scantling.combine.semantic import SemanticConfig
from scantling.combine.semantic_files import with_masks_of
from scantling.combine.tune_semantic import tune_semantic
from scantling.combine.tune_weights import tune_weights
from scantling.combine.tuned import write_tuned
from scantling.data.coco import CocoDataset, write_results
from scantling.data.detections import detections_of, pasted, results_of
from scantling.data.io import atomic_write, sha256_of, write_json
from scantling.errors import ConfigError
from scantling.run.context import RunContext
from scantling.run.results import own_results
from scantling.run.stage import Stage, hashes_of
from scantling.run.stages.detecting import dataset_of, foreign_files, read_member, tuned_by
from scantling.run.stages.semantic import semantic_maps_of
from scantling.run.steps import (
    ELIMINATE,
    ENSEMBLE,
    RELATIONS,
    SEMANTIC,
    TUNED,
    Eliminate,
    Ensemble,
    FuseSemantic,
    Sources,
    Step,
    apply_steps,
    combined_members,
    run_steps,
    step_file,
    steps_before,
    tuned_file,
)
from scantling.structures.detections import Detections
from scantling.structures.score_maps import ScoreMaps

log = logging.getLogger(__name__)

FUSED = f"{SEMANTIC}/counts.json"


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
    several = len(combined_members(context.recipe)) > 1
    for section in ("semantic", "eliminate"):
        if several and combining.ensemble is None and getattr(combining, section) is not None:
            hint = "Add combine.ensemble, or name one member in combine.members."
            raise ConfigError(f"combine.{section}: there are several members and no ensemble", hint=hint)
    if combining.ensemble is not None:
        _check_ensemble(context, combining.ensemble)
    if combining.semantic is not None:
        _check_semantic(context, combining.semantic)
    tunes = recipe.tunes_weights or recipe.tunes_semantic
    needed = [context.data.evaluated, *([context.tuning_split] if tunes else [])]
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
    config.weight_table(combined_members(context.recipe), context.data.train.class_names)
    if config.by_masks and (bare := _without_masks(context)):
        raise ConfigError(
            f"combine.ensemble.method: {config.method} matches masks, and {', '.join(bare)} draws none",
            hint="Give it a model of masks, or take wbf, nmw, nms, soft_linear or soft_gaussian.",
        )


def _check_semantic(context: RunContext, config: SemanticConfig) -> None:
    """Refuse maps that nobody gives, categories that do not exist, and members that draw no masks."""
    context.recipe.map_member()
    config.modes(context.data.train.class_names)
    config.score_thresholds(context.data.train.class_names)
    if bare := _without_masks(context):
        raise ConfigError(
            f"combine.semantic: masks are fused, and {', '.join(bare)} draws none",
            hint="Give it a model of masks, or name members of masks in combine.members.",
        )


def _without_masks(context: RunContext) -> list[str]:
    """Combined members that are trained here and draw no masks."""
    own = [name for name in combined_members(context.recipe) if name not in context.recipe.foreign_members]
    return [name for name in own if not context.member(name).draws_masks]


def learned_files(context: RunContext) -> list[str]:
    """Files of what the run learns for its suppression and its steps, relative to the run folder."""
    recipe = context.recipe
    tuned = [name for name in recipe.detecting_members if name not in recipe.foreign_members]
    suppression = [tuned_file(name) for name in tuned] if recipe.tunes_suppression else []
    steps = [file for step in applied_steps(context) for file in step.needs()]
    return list(dict.fromkeys([*suppression, *steps]))


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


def semantic_tune_stage(context: RunContext) -> Stage:
    """Choose how masks are fused with score maps, on images that no member has learned from."""
    split, before = context.tuning_split, steps_before(applied_steps(context), SEMANTIC)
    files = _member_files(context, split) | {SEMANTIC: context.maps_file(context.recipe.map_member(), split)}
    learned = {file: file for step in before for file in step.needs()}
    return Stage(
        folder=TUNED,
        name=SEMANTIC,
        inputs=lambda: {
            "detections": hashes_of(context.root, files),
            "before": [step.inputs() for step in before],
            "semantic": context.recipe.combining.model_dump(mode="json")["semantic"],
            "tune": context.recipe.combining.tuning.model_dump(mode="json"),
            **context.recipe.evaluate.limits,
        },
        needs=(*files.values(), *learned),
        outputs=(tuned_file(SEMANTIC), f"{TUNED}/{SEMANTIC}.txt"),
        action=partial(_tune_semantic, context),
    )


def semantic_stage(context: RunContext, step: FuseSemantic, before: str) -> Stage:
    """Fuse masks with score maps.

    Args:
        context: Of the run.
        step: How.
        before: Results file whose masks are fused, relative to the run folder.
    """
    maps = context.maps_file(context.recipe.map_member(), context.data.evaluated)
    return Stage(
        folder=SEMANTIC,
        name=SEMANTIC,
        inputs=lambda: {
            "detections": sha256_of(context.root / before),
            "maps": sha256_of(context.root / maps),
            **step.inputs(),
        },
        needs=(before, maps, *step.needs()),
        outputs=(step_file(step), FUSED),
        action=partial(_fuse_semantic, context, step, before),
    )


def applied_steps(context: RunContext) -> tuple[Step, ...]:
    """The steps of a run as they are applied to its own images, whose score maps are stored."""
    return run_steps(
        context.recipe, context.root, device=str(context.device), maps_of=partial(stored_maps, context)
    )


def stored_maps(context: RunContext, name: str, images: CocoDataset) -> ScoreMaps:
    """What a member's stages have kept of the images of a split; of the training images, their maps out of fold.

    Raises:
        DataError: The file is missing, damaged, or about other images.
    """
    splits = (context.data.evaluated, context.tuning_split, "val")
    split = next(split for split in splits if dataset_of(context, split) is images)
    return semantic_maps_of(context, name, split)


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
    write_results(results_of(found, target), context.root / step_file(step), target)


def _tune_semantic(context: RunContext) -> None:
    images, split = context.tuning_data, context.tuning_split
    before = steps_before(applied_steps(context), SEMANTIC)
    base = SemanticConfig(**context.recipe.combining.fusing.model_dump(exclude={"member"}))
    told = "there are no objects to tune semantic fusion on, so it stays as the recipe has it"
    config = base
    if images.num_objects:
        found = tune_semantic(
            pasted(apply_steps(before, member_sources(context, split), images), images),
            stored_maps(context, context.recipe.map_member(), images),
            images,
            base,
            context.recipe.combining.tuning,
            max_detections=context.recipe.evaluate.max_dets,
        )
        told, config = found.to_text(), found.config
    else:
        log.warning(told)
    write_tuned(context.root / tuned_file(SEMANTIC), semantic=config)
    atomic_write(context.root / TUNED / f"{SEMANTIC}.txt", told + "\n")


def _fuse_semantic(context: RunContext, step: FuseSemantic, before: str) -> None:
    target = context.data.target
    results = own_results(context.root, before, target)
    fusion = step.fuse(detections_of(results, target), target)
    if fusion.num_unmapped:
        log.warning("%d images have objects to fuse and no score map; their masks stay", fusion.num_unmapped)
    write_results(with_masks_of(results, fusion), context.root / step_file(step), target)
    write_json(context.root / FUSED, fusion.to_dict(target.class_names), indent=2)


def _eliminate(context: RunContext, step: Eliminate, before: str) -> None:
    target = context.data.target
    relations = learn_relations(context.data.train, step.config)
    write_json(context.root / RELATIONS, relations.to_dict())
    results = own_results(context.root, before, target)
    found = step.judge(detections_of(results, target))
    kept = [result for result, keep in zip(results, found.keep, strict=True) if keep]
    write_results(kept, context.root / step_file(step), target)
    write_json(context.root / ELIMINATE / "removed.json", found.to_dict(), indent=2)

"""Members become one set of detections: weights tuned or given, boxes fused, impossible pairs removed.

members/*/predictions.json ── ensemble ──► ensemble/predictions.json ── eliminate ──► eliminate/predictions.json
"""

from __future__ import annotations

from functools import partial
from typing import Any

from scantling.combine.eliminate import eliminate, learn_relations
from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.tune import tune_weights
from scantling.combine.tuned import read_tuned, write_tuned
from scantling.data.coco import read_results, write_results
from scantling.data.detections import detections_of, results_of
from scantling.data.io import atomic_write, sha256_of, write_json
from scantling.errors import ConfigError
from scantling.run.context import PREDICTIONS, RunContext
from scantling.run.stage import Stage
from scantling.run.stages.detecting import TUNED, foreign_files, read_member, tuned_file
from scantling.structures.detections import Detections

ENSEMBLE, ELIMINATE = "ensemble", "eliminate"
RELATIONS = f"{ELIMINATE}/relations.json"


def combined_members(context: RunContext) -> list[str]:
    """Members whose detections are combined."""
    return list(context.recipe.combining.members or context.recipe.members)


def check_combination(context: RunContext) -> None:
    """Find what cannot be combined before anything is written.

    Raises:
        ConfigError: A member, a category or a needed result file does not exist.
    """
    combining, recipe = context.recipe.combining, context.recipe
    unknown = [name for name in combined_members(context) if name not in recipe.members]
    if unknown:
        raise ConfigError(
            f"combine.members: unknown {', '.join(unknown)}", hint=f"There are {', '.join(recipe.members)}."
        )
    if combining.eliminate is not None and combining.ensemble is None and len(combined_members(context)) > 1:
        hint = "Add combine.ensemble, or name one member in combine.members."
        raise ConfigError("combine.eliminate: there are several members and no ensemble", hint=hint)
    if combining.ensemble is not None:
        combining.ensemble.weight_table(combined_members(context), context.data.train.class_names)
    needed = [context.data.evaluated, *([context.tuning_split] if recipe.tunes_weights else [])]
    needed += ["val"] if recipe.gates_refinement else []
    for name in recipe.foreign_members:
        missing = [split for split in needed if split not in foreign_files(context, name)]
        if missing:
            hint = f"Give members.{name}.predictions as a mapping from split to file."
            raise ConfigError(f"members.{name}: no predictions for {', '.join(missing)}", hint=hint)


def weights_stage(context: RunContext) -> Stage:
    """Choose how much each member counts, on images that none of them has learned from."""
    split = context.tuning_split
    inputs = {
        "detections": _member_hashes(context, split),
        "ensemble": _ensemble_config(context).model_dump(mode="json"),
        "tune": context.recipe.combining.tuning.model_dump(mode="json"),
        **context.recipe.evaluate.limits,
    }
    outputs = (tuned_file(ENSEMBLE), f"{TUNED}/{ENSEMBLE}.txt")
    return Stage(folder=TUNED, name=ENSEMBLE, inputs=inputs, outputs=outputs, action=partial(_weigh, context))


def ensemble_stage(context: RunContext) -> Stage:
    """Fuse the members' boxes."""
    inputs = {"detections": _member_hashes(context, context.data.evaluated), **fusion_inputs(context)}
    outputs = (f"{ENSEMBLE}/{PREDICTIONS}",)
    return Stage(
        folder=ENSEMBLE, name=ENSEMBLE, inputs=inputs, outputs=outputs, action=partial(_fuse, context)
    )


def eliminate_stage(context: RunContext) -> Stage:
    """Remove boxes of the ensemble, or of the only member, that contradict the training annotations."""
    combining, before = context.recipe.combining, _before_elimination(context)
    inputs = {
        "detections": sha256_of(context.root / before),
        "train": context.data.hashes["train"],
        "eliminate": combining.eliminate.model_dump(mode="json") if combining.eliminate else None,
    }
    outputs = (f"{ELIMINATE}/{PREDICTIONS}", f"{ELIMINATE}/removed.json", RELATIONS)
    action = partial(_eliminate, context, before)
    return Stage(folder=ELIMINATE, name=ELIMINATE, inputs=inputs, outputs=outputs, action=action)


def fusion_inputs(context: RunContext) -> dict[str, Any]:
    """What decides how members are fused: settings, and the file of tuned ones."""
    return {
        "ensemble": _ensemble_config(context).model_dump(mode="json"),
        "tuned": sha256_of(context.root / tuned_file(ENSEMBLE)) if context.recipe.tunes_weights else None,
    }


def ensemble_config(context: RunContext) -> EnsembleConfig:
    """How members are fused: with tuned weights where they are tuned."""
    own = _ensemble_config(context)
    tuned = read_tuned(context.root / tuned_file(ENSEMBLE)).ensemble if context.recipe.tunes_weights else None
    return own if tuned is None else tuned


def fused(context: RunContext, members: list[str], split: str | None = None) -> Detections:
    """Some members' detections of a split (the evaluated one if left out) as one set."""
    found = {name: read_member(context, name, split or context.data.evaluated) for name in members}
    config = ensemble_config(context)
    weights = {name: weight for name, weight in config.weights.items() if name in found}
    chosen, names = config.model_copy(update={"weights": weights}), context.data.target.class_names
    return ensemble_detections(found, chosen, names)


def cleaned(context: RunContext, detections: Detections) -> Detections:
    """Detections without those that the elimination removes."""
    config = context.recipe.combining.elimination
    relations = learn_relations(context.data.train, config)
    return detections[eliminate(detections, relations, config).keep]


def outcome_file(context: RunContext) -> str:
    """Results file that the combination, or the only member, leaves, relative to the run folder."""
    if context.recipe.combining.eliminate is not None:
        return f"{ELIMINATE}/{PREDICTIONS}"
    return _before_elimination(context)


def _before_elimination(context: RunContext) -> str:
    if context.recipe.combining.ensemble is not None:
        return f"{ENSEMBLE}/{PREDICTIONS}"
    (name,) = combined_members(context)
    return context.detections_file(name, context.data.evaluated)


def _ensemble_config(context: RunContext) -> EnsembleConfig:
    return context.recipe.combining.ensemble or EnsembleConfig()


def _member_hashes(context: RunContext, split: str) -> dict[str, str]:
    files = {name: context.detections_file(name, split) for name in combined_members(context)}
    return {name: sha256_of(context.root / file) for name, file in files.items()}


def _weigh(context: RunContext) -> None:
    members = {name: read_member(context, name, context.tuning_split) for name in combined_members(context)}
    config = _ensemble_config(context)
    found = tune_weights(
        members,
        context.tuning_data,
        config,
        context.recipe.combining.tuning,
        max_detections=context.recipe.evaluate.max_dets,
    )
    write_tuned(context.root / tuned_file(ENSEMBLE), ensemble=found.config)
    atomic_write(context.root / TUNED / f"{ENSEMBLE}.txt", found.to_text() + "\n")


def _fuse(context: RunContext) -> None:
    results = results_of(fused(context, combined_members(context)), context.data.target)
    write_results(results, context.root / ENSEMBLE / PREDICTIONS, context.data.target.images)


def _eliminate(context: RunContext, before: str) -> None:
    target, config = context.data.target, context.recipe.combining.elimination
    results = read_results(context.root / before, target, image_ids="id")
    relations = learn_relations(context.data.train, config)
    found = eliminate(detections_of(results, target), relations, config)
    kept = [result for result, keep in zip(results, found.keep, strict=True) if keep]
    write_results(kept, context.root / ELIMINATE / PREDICTIONS, target.images)
    write_json(context.root / ELIMINATE / "removed.json", found.to_dict(), indent=2)
    write_json(context.root / RELATIONS, relations.to_dict())

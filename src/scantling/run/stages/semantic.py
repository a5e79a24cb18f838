"""Semantic members: one score map per image out of several folds, any tool's maps taken over, and how good they are.

    members/NAME/fold-N/maps-*.safetensors ── mean over the folds ──► members/NAME/maps-*.safetensors
    any tool's folder of maps ── checked ──────────────────────────────────┘            │
                                                  mean IoU, and each category's, of the evaluated split ──► metrics.json

Without folds a segmenter's own files are those of its member. Out-of-fold maps are those of the one segmenter that has
not learned from the image, in the order of the training images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from scantling.data.map_files import map_files, read_score_maps
from scantling.data.score_maps import load_score_maps, save_score_maps
from scantling.data.splits import RunData
from scantling.errors import ConfigError
from scantling.evaluate.semantic import SemanticEvaluation, evaluate_score_maps
from scantling.recipe.recipe import Recipe
from scantling.run.context import HELD_OUT, RunContext, TrainingJob
from scantling.run.stage import Stage, hashes_of
from scantling.run.stages.detecting import dataset_of
from scantling.structures.score_maps import ScoreMap, ScoreMaps

log = logging.getLogger(__name__)

SCORE_MAPS = "maps"
"""Stage that leaves a semantic member's files."""


def semantic_stages(context: RunContext, name: str) -> list[Stage]:
    """What is done for a semantic member after its segmenters have scored the images."""
    if context.member(name).maps is not None:
        return [_import_stage(context, name)]
    return [_join_stage(context, name)] if context.folds else []


def check_semantic(context: RunContext) -> None:
    """Find what semantic members cannot do before anything is written.

    Raises:
        ConfigError: Maps of a split that is needed are not given, or not there; a semantic member is among those whose
            boxes are combined, or there are no others and boxes are to be combined, refined or judged.
    """
    recipe = context.recipe
    if not recipe.detecting_members:
        asked = {"combine": recipe.combine, "refine": recipe.refine, "audit": recipe.audit}
        if unusable := [section for section, value in asked.items() if value is not None]:
            raise ConfigError(
                f"{', '.join(unusable)}: no member finds objects; segmenters and maps say what pixels are",
                hint="Add a member with `model` or `predictions`, or leave these sections out.",
            )
    for name in recipe.combining.members or ():
        if name in recipe.map_members:
            hint = "Its maps can be fused into the masks of those that find objects."
            raise ConfigError(f"combine.members: {name} has score maps, and no objects", hint=hint)
    for name in recipe.map_members:
        given = given_maps(context, name)
        if context.member(name).maps is None:
            continue
        missing = [split for split in _splits(context) if split not in given]
        if missing:
            hint = f"Give members.{name}.maps as a mapping from split to folder."
            raise ConfigError(f"members.{name}: no maps for {', '.join(missing)}", hint=hint)
        for path in given.values():
            if not path.exists():
                raise ConfigError(f"members.{name}.maps: there is nothing at {path}")


def given_maps(context: RunContext, name: str) -> dict[str, Path]:
    """Folders of maps that another tool made, by split; `held-out` is of the training images."""
    given = context.member(name).maps or {}
    by_split = given if isinstance(given, dict) else {context.data.evaluated: given}
    return {split: Path(path) for split, path in by_split.items()}


def semantic_maps_of(context: RunContext, name: str, split: str) -> ScoreMaps:
    """A semantic member's maps of a split, from the run folder.

    Args:
        context: Of the run.
        name: The member.
        split: One that it has maps of; `HELD_OUT` for those of the training images.
    """
    return load_score_maps(context.root / context.maps_file(name, split), dataset_of(context, split))


def evaluated_maps(root: Path, recipe: Recipe, data: RunData) -> dict[str, SemanticEvaluation]:
    """How good the maps of each semantic member are on the evaluated split; none where the labels have no masks.

    Args:
        root: The run folder.
        recipe: Of the run.
        data: Its splits.
    """
    if not recipe.map_members:
        return {}
    if any(each.segmentation is None for each in chain(*data.target.annotations)):
        log.warning("%s has objects without masks, so score maps cannot be measured on it", data.evaluated)
        return {}
    found = {}
    for name in recipe.map_members:
        path = root / TrainingJob(name).score_maps(data.evaluated)
        found[name] = evaluate_score_maps(load_score_maps(path, data.target), data.target)
    return found


def _splits(context: RunContext) -> list[str]:
    """What a semantic member must have maps of."""
    recipe = context.recipe
    tuned = [context.tuning_split] if recipe.tunes_semantic else []
    gated = ["val"] if recipe.gates_refinement and recipe.combining.semantic is not None else []
    return list(dict.fromkeys([context.data.evaluated, *tuned, *gated]))


def _import_stage(context: RunContext, name: str) -> Stage:
    """Take over the maps of another tool, checked, so that the run holds all it was made of."""
    folders, member = given_maps(context, name), context.member(name)
    files = {
        f"{split}/{file.relative_to(path)}": str(file.absolute())
        for split, path in folders.items()
        for file in ([path] if path.is_file() else map_files(path))
    }
    return Stage(
        folder=f"members/{name}",
        name="import",
        inputs=lambda: {
            "maps": hashes_of(context.root, files),
            "map_values": member.map_values,
        },
        needs=tuple(files.values()),
        outputs=tuple(context.maps_file(name, split) for split in folders),
        action=partial(_import, context, name),
    )


def _join_stage(context: RunContext, name: str) -> Stage:
    """The folds' maps as one for each image."""
    splits = list(context.splits_of(context.units_of(name)[0]))
    files = [unit.score_maps(split) for unit in context.units_of(name) for split in splits]
    return Stage(
        folder=f"members/{name}",
        name=SCORE_MAPS,
        inputs=lambda: {"files": hashes_of(context.root, {file: file for file in files})},
        needs=tuple(files),
        outputs=tuple(context.maps_file(name, split) for split in splits),
        action=partial(_join, context, name, splits),
    )


def _import(context: RunContext, name: str) -> None:
    member = context.member(name)
    for split, path in given_maps(context, name).items():
        maps = read_score_maps(
            path,
            dataset_of(context, split),
            values=member.map_values or "auto",
            skip_invalid=context.recipe.data.skip_invalid,
        )
        save_score_maps(maps, context.root / context.maps_file(name, split))


def _join(context: RunContext, name: str, splits: list[str]) -> None:
    for split in splits:
        save_score_maps(_joined(context, name, split), context.root / context.maps_file(name, split))


def _joined(context: RunContext, name: str, split: str) -> Iterator[ScoreMap | None]:
    """For each image of a split what the folds say: their mean, or that of the one that held it out."""
    units = context.units_of(name)
    files = [
        load_score_maps(context.root / unit.score_maps(split), context.splits_of(unit)[split])
        for unit in units
    ]
    if split != HELD_OUT:
        for position in range(len(files[0])):
            shown = [one for maps in files if (one := maps[position]) is not None]
            yield ScoreMap.mean(shown) if shown else None
        return
    place = {
        int(position): (number, own)
        for number, fold in enumerate(context.folds)
        for own, position in enumerate(fold.positions)
    }
    for position in range(len(place)):
        number, own = place[position]
        yield files[number][own]

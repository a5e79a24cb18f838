"""Candidates become detections: one suppression over all test sizes and, with folds, one voice out of several.

    members/NAME/candidates-*.safetensors ── suppression (own, or tuned) ──► members/NAME/predictions.json
           └─ a detector of masks: those of every row that some suppression keeps ──► members/NAME/masks-*.safetensors

With folds each fold's detector looks at the evaluated images, and their detections are fused with equal weights;
each training image has been seen by the one detector that did not train on it: `out-of-fold.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scantling.combine.tune import rows_to_tune, tune_suppression
from scantling.combine.tuned import read_tuned, write_tuned
from scantling.data.coco import CocoDataset, read_results, write_results
from scantling.data.detections import detections_of, load_detections, pasted, results_of, save_detections
from scantling.data.io import atomic_write, sha256_of
from scantling.evaluate.inputs import IouType
from scantling.models.contract import Detector
from scantling.models.suppression import SuppressConfig, suppress_detections
from scantling.predict.candidates import Candidates, find_masks
from scantling.recipe.recipe import MemberConfig
from scantling.run.context import HELD_OUT, RunContext, TrainingJob
from scantling.run.results import own_results
from scantling.run.stage import Resources, Stage, hashes_of
from scantling.run.stages.training import load_trained
from scantling.run.steps import TUNED, one_voice, tuned_file
from scantling.structures.detections import Detections
from scantling.train.devices import ALONE, Processes

log = logging.getLogger(__name__)


def tune_stage(context: RunContext, name: str) -> Stage:
    """Choose a member's suppression, category by category, on images it has not learned from.

    By what the run is judged by: where that is masks, they are drawn for all candidates that some option keeps.
    """
    files = [unit.candidates(context.tuning_split) for unit in context.units_of(name)]
    by_masks = context.member(name).draws_masks and tuned_by(context) == "segm"
    weights = [unit.weights for unit in context.units_of(name)] if by_masks else []
    return Stage(
        folder=TUNED,
        name=name,
        inputs=lambda: {
            "candidates": _hashes(context.root, files),
            "suppress": context.member(name).predict.suppress.model_dump(mode="json"),
            "tune": context.recipe.combining.tuning.model_dump(mode="json"),
            **context.recipe.evaluate.limits,
            "data": context.data.hashes["train" if context.folds else "val"],
            **({"weights": _hashes(context.root, weights), "iou_type": "segm"} if weights else {}),
        },
        needs=(*files, *weights),
        outputs=(tuned_file(name), f"{TUNED}/{name}.txt"),
        action=partial(_tune, context, name),
        resources=Resources(gpus=1 if weights else 0),
    )


def detect_stage(context: RunContext, name: str) -> Stage:
    """Detections of a member on every split it predicts."""
    splits = list(context.splits_of(context.units_of(name)[0]))
    files = [unit.candidates(split) for unit in context.units_of(name) for split in splits]
    if context.member(name).draws_masks:
        files += [unit.masks(split) for unit in context.units_of(name) for split in splits]
    if context.recipe.tunes_suppression:
        files.append(tuned_file(name))
    return Stage(
        folder=f"members/{name}",
        name="detect",
        inputs=lambda: {
            "files": _hashes(context.root, files),
            "suppress": context.member(name).predict.suppress.model_dump(mode="json"),
        },
        needs=tuple(files),
        outputs=tuple(context.detections_file(name, split) for split in splits),
        action=partial(_detect, context, name, splits),
    )


def masks_stage(context: RunContext, unit: TrainingJob) -> Stage:
    """Masks of all that some suppression of the run's tables keeps: the network's second pass, over kept boxes only."""
    splits = context.splits_of(unit)
    files = [unit.weights, *(unit.candidates(split) for split in splits)]
    if context.recipe.tunes_suppression:
        files.append(tuned_file(unit.member))
    return Stage(
        folder=unit.folder,
        name="masks",
        inputs=lambda: {
            "files": _hashes(context.root, files),
            "suppress": context.member(unit.member).predict.suppress.model_dump(mode="json"),
        },
        needs=tuple(files),
        outputs=tuple(unit.masks(split) for split in splits),
        action=partial(_draw, context, unit),
        resources=Resources(gpus=1, processes=None),
    )


def import_stage(context: RunContext, name: str) -> Stage:
    """Take over the detections of another tool, checked, so that the run holds all it was made of."""
    files, image_ids = foreign_files(context, name), context.member(name).image_ids
    return Stage(
        folder=f"members/{name}",
        name="import",
        inputs=lambda: {
            **{split: sha256_of(path) for split, path in files.items()},
            **({} if image_ids is None else {"image_ids": image_ids}),
        },
        needs=tuple(str(path.absolute()) for path in files.values()),
        outputs=tuple(context.detections_file(name, split) for split in files),
        action=partial(_import, context, name),
    )


def foreign_files(context: RunContext, name: str) -> dict[str, Path]:
    """Result files of a member that another tool predicted, by split."""
    given = context.member(name).predictions or {}
    by_split = given if isinstance(given, dict) else {context.data.evaluated: given}
    return {split: Path(path) for split, path in by_split.items()}


def tuned_by(context: RunContext) -> IouType:
    """What thresholds and weights are chosen by, before there are results: what the run will be judged by.

    Where that is left open: masks where the labels have some, and every member that detects draws or brings them.
    """
    asked, recipe = context.recipe.evaluate.iou_type, context.recipe
    labelled = any(a.segmentation is not None for a in chain(*context.tuning_data.annotations))
    if asked != "auto" or not labelled:
        return "segm" if asked == "segm" and labelled else "bbox"
    foreign = {name: foreign_files(context, name).values() for name in recipe.foreign_members}
    drawn = all(
        any(b'"segmentation"' in path.read_bytes() for path in foreign[name])
        if name in foreign
        else context.member(name).draws_masks
        for name in recipe.members
        if name not in recipe.map_members
    )
    return "segm" if drawn else "bbox"


def suppression_of(context: RunContext, name: str) -> SuppressConfig:
    """A member's suppression: what was tuned, else its own."""
    own = context.member(name).predict.suppress
    if not context.recipe.tunes_suppression:
        return own
    return read_tuned(context.root / tuned_file(name)).suppression_over(own)


def detections_with(
    context: RunContext, name: str, config: SuppressConfig, *, split: str, views: Sequence[int] | None = None
) -> Detections:
    """What a member detects in a split with some suppression and some of its test sizes.

    Args:
        context: Of the run.
        name: A member that was trained here.
        config: Suppression.
        split: One that the member predicts.
        views: Numbers of the test sizes; None for all of them.
    """
    units = context.units_of(name)
    found = {unit.title: _suppressed(context, unit, config, split, views) for unit in units}
    if split == HELD_OUT:
        return Detections.cat(list(found.values())).by_score()
    return one_voice(list(found.values()), context.data.target.class_names, config.max_per_image)


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which candidates become detections.

    Attributes:
        title: What it is called in the table of steps.
        config: Suppression.
        views: Numbers of the test sizes; None for all of them.
    """

    title: str
    config: SuppressConfig
    views: Sequence[int] | None = None


def ways_of(context: RunContext, name: str) -> list[Way]:
    """One size and plain NMS, all sizes, the recipe's own suppression, the tuned one: those that differ, in order."""
    own, views = context.member(name).predict.suppress, num_views(context.member(name))
    hard = own.model_copy(update={"method": "hard", "iou_threshold": 0.5})
    ways = []
    if views > 1:
        ways.append(Way(f"{name}, one size, NMS", hard, [views // 2]))
    if own != hard:
        ways.append(Way(f"{name}, {views} sizes, NMS" if views > 1 else f"{name}, NMS", hard))
    chosen = suppression_of(context, name)
    if context.recipe.tunes_suppression and chosen != own:
        method = own.method.replace("_", " ") if isinstance(own.method, str) else "suppression of the recipe"
        ways.append(Way(f"{name}, {method}", own))
    return [*ways, Way(f"{name}, tuned" if context.recipe.tunes_suppression else name, chosen)]


def dataset_of(context: RunContext, split: str) -> CocoDataset:
    """The images that a split's detections are about; out-of-fold ones are about the training images."""
    return context.data.train if split == HELD_OUT else context.data.splits[split]


def read_member(context: RunContext, name: str, split: str) -> Detections:
    """Detections of a member, from the run folder."""
    dataset = dataset_of(context, split)
    results = own_results(context.root, context.detections_file(name, split), dataset)
    return detections_of(results, dataset)


def load_candidates(context: RunContext, unit: TrainingJob, split: str) -> Candidates:
    """Candidates of a unit; those of a held-out fold at their places in the training split."""
    found = Candidates.load(context.root / unit.candidates(split))
    return (
        found if split != HELD_OUT or unit.fold is None else found.placed(context.folds[unit.fold].positions)
    )


def num_views(member: MemberConfig) -> int:
    """How many views of each image a member looks at."""
    predict = member.predict
    if predict.tile_side is not None:
        return 1
    return (len(predict.scales) if isinstance(predict.scales, tuple) else 1) * (2 if predict.flip else 1)


def _suppressed(
    context: RunContext, unit: TrainingJob, config: SuppressConfig, split: str, views: Sequence[int] | None
) -> Detections:
    candidates = load_candidates(context, unit, split)
    rows, scores = _kept(candidates, Way("", config, views), context.data.train.class_names)
    found = candidates.detections[rows].replace(scores=scores)
    return (
        _with_masks(context, unit, split, rows, found) if context.member(unit.member).draws_masks else found
    )


def _kept(
    candidates: Candidates, way: Way, class_names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the candidates (M,) that stay, and their scores (M,)."""
    seen = np.arange(len(candidates))
    if way.views is not None:
        seen = np.flatnonzero(np.isin(candidates.views, list(way.views)))
    rows, scores = suppress_detections(candidates.detections[seen], way.config, class_names)
    return seen[rows], scores


def _with_masks(
    context: RunContext, unit: TrainingJob, split: str, rows: NDArray[np.int64], found: Detections
) -> Detections:
    """Detections with their masks: from the file where they are, else drawn now, as for an ablation's settings."""
    saved = load_detections(context.root / unit.masks(split))
    masks, known = saved.detections, saved.extra["rows"].astype(np.int64)
    if len(new := np.setdiff1d(rows, known)):
        masks = Detections.cat([masks, _drawn(context, unit, _trained(context, unit), split, new, ALONE)])
        known = np.concatenate([known, new])
    order = np.argsort(known)
    own = masks[order[np.searchsorted(known, rows, sorter=order)]]
    drawn = found.replace(masks=own.masks, soft_masks=own.soft_masks, mask_ious=own.mask_ious)
    return drawn.ranked_by_masks()


def _trained(context: RunContext, unit: TrainingJob) -> Detector:
    num_classes = len(context.data.target.class_names)
    return load_trained(context.root / unit.weights, context.member(unit.member), num_classes)


def _drawn(
    context: RunContext,
    unit: TrainingJob,
    model: Detector,
    split: str,
    rows: NDArray[np.int64],
    processes: Processes,
) -> Detections:
    """Masks of some rows of a unit's candidates; of several processes complete on the main one."""
    dataset = context.splits_of(unit)[split]
    candidates = Candidates.load(context.root / unit.candidates(split)).detections
    predict = context.member(unit.member).predict
    return find_masks(model, predict, dataset, candidates[rows], context.device, processes)


def _draw(context: RunContext, unit: TrainingJob) -> None:
    class_names, model = context.data.train.class_names, _trained(context, unit)
    for split in context.splits_of(unit):
        candidates = Candidates.load(context.root / unit.candidates(split))
        kept = [_kept(candidates, way, class_names)[0] for way in ways_of(context, unit.member)]
        rows = np.unique(np.concatenate(kept))
        log.info("%s: drawing %d masks of %s", unit.title, len(rows), split)
        found = _drawn(context, unit, model, split, rows, context.processes)
        context.processes.on_main(
            partial(save_detections, found, context.root / unit.masks(split), rows=rows)
        )


def _tune(context: RunContext, name: str) -> None:
    split, base = context.tuning_split, context.member(name).predict.suppress
    if not context.tuning_data.num_objects:
        told = f"{name}: there are no objects to tune suppression on, so it stays as the recipe has it"
        log.warning(told)
        write_tuned(context.root / tuned_file(name), suppress=base)
        atomic_write(context.root / TUNED / f"{name}.txt", told + "\n")
        return
    kind: IouType = tuned_by(context) if context.member(name).draws_masks else "bbox"
    parts = [_tunable(context, unit, split, kind) for unit in context.units_of(name)]
    found = tune_suppression(
        Detections.cat(parts),
        context.tuning_data,
        base,
        context.recipe.combining.tuning,
        max_detections=context.recipe.evaluate.max_dets,
        iou_type=kind,
    )
    write_tuned(context.root / tuned_file(name), suppress=found.config)
    atomic_write(context.root / TUNED / f"{name}.txt", found.to_text() + "\n")


def _tunable(context: RunContext, unit: TrainingJob, split: str, kind: IouType) -> Detections:
    """Candidates of a unit to tune on; for masks those that some option keeps, with their masks."""
    candidates = load_candidates(context, unit, split).detections
    if kind == "bbox":
        return candidates
    suppress = context.member(unit.member).predict.suppress
    rows = rows_to_tune(candidates, suppress, context.recipe.combining.tuning, context.data.train.class_names)
    log.info("%s: drawing %d masks of %s to tune by", unit.title, len(rows), split)
    model, parts = _trained(context, unit), list[Detections]()
    for some in _in_portions(rows, candidates.images, suppress.max_per_image or len(rows)):
        drawn = _drawn(context, unit, model, split, some, ALONE)
        own = candidates[some].replace(
            masks=drawn.masks, soft_masks=drawn.soft_masks, mask_ious=drawn.mask_ious
        )
        parts.append(pasted(own, dataset_of(context, split)))
    return Detections.cat(parts)


def _in_portions(rows: NDArray[np.int64], images: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Rows in portions with at most so many of an image: no more masks are drawn at once than prediction draws."""
    order = rows[np.argsort(images[rows], kind="stable")]
    first = np.searchsorted(images[order], images[order], side="left")
    rank = (np.arange(len(order)) - first) // max(1, most)
    return [np.sort(order[rank == portion]) for portion in range(int(rank.max(initial=-1)) + 1)]


def _detect(context: RunContext, name: str, splits: Sequence[str]) -> None:
    config = suppression_of(context, name)
    for split in splits:
        dataset = dataset_of(context, split)
        results = results_of(detections_with(context, name, config, split=split), dataset)
        write_results(results, context.root / context.detections_file(name, split), dataset)


def _import(context: RunContext, name: str) -> None:
    for split, path in foreign_files(context, name).items():
        dataset = dataset_of(context, split)
        results = read_results(
            path,
            dataset,
            image_ids=context.member(name).image_ids or "auto",
            skip_invalid=context.recipe.data.skip_invalid,
        )
        write_results(results, context.root / context.detections_file(name, split), dataset)


def _hashes(root: Path, files: Sequence[str]) -> dict[str, str]:
    return hashes_of(root, {file: file for file in files})

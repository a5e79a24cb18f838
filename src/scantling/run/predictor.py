"""New images go the whole way of a run: every member that is combined, suppression, ensemble, elimination, refiner.

    records ── each member (and fold) ──► Detections ── the steps of the run ──► (record, Instances)
       └────── its segmenter, where masks are fused with score maps ──┘

A run that combines nothing predicts with its best member alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from scantling.combine.tuned import read_tuned
from scantling.data.coco import Category, CocoDataset, ImageRecord
from scantling.data.io import read_json
from scantling.data.score_maps import PackedMap
from scantling.errors import Finding, UsageError
from scantling.predict.loaded import ImagePredictor, LoadedDetector, LoadedSegmenter, load_detector
from scantling.recipe.recipe import Recipe, load_recipe
from scantling.run.context import TrainingJob
from scantling.run.folder import METRICS, RECIPE
from scantling.run.map_predictions import load_run_segmenters, score_maps_of
from scantling.run.steps import (
    Step,
    apply_steps,
    combined_members,
    run_steps,
    steps_of,
    tuned_file,
)
from scantling.structures.detections import Detections
from scantling.structures.instances import Instances
from scantling.structures.score_maps import ScoreMaps

log = logging.getLogger(__name__)

IMAGES_AT_ONCE = 256
"""So many images at a time go through all of a run: more of them take more memory and are not faster."""


def load_run(root: Path, overrides: Iterable[str] = (), *, device: str = "auto") -> ImagePredictor:
    """Everything that a finished run predicts with.

    Args:
        root: The run folder.
        overrides: `KEY=VALUE` texts that replace settings of prediction, of all members.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        CheckpointError: Weights are missing or damaged.
        ConfigError: An override is wrong.
    """
    recipe = load_recipe(root / RECIPE)
    chosen = list(overrides)
    members = {
        name: [_detector(root, recipe, unit, chosen, device) for unit in _units(recipe, name)]
        for name in _members(root, recipe)
    }
    first = next(iter(members.values()))[0]
    recipe = _with_own_maps(root, _as_loaded(recipe, members))
    maps_of = None
    if recipe.combining.semantic is not None:
        segmenters = load_run_segmenters(root, chosen, member=recipe.map_member(), device=device)
        maps_of = partial(_new_maps, segmenters)
    steps = steps_of(recipe, root, device=str(first.predictor.device), maps_of=maps_of)
    return RunDetectors(root=root, steps=steps, members=members) if steps else first


def files_of_run(root: Path) -> list[str]:
    """The files that decide what `load_run` predicts, relative to the run folder.

    Raises:
        UsageError: As in `load_run`.
    """
    recipe = load_recipe(root / RECIPE)
    files = [RECIPE]
    for name in _members(root, recipe):
        files += [unit.weights for unit in _units(recipe, name)]
        files += [tuned_file(name)] if recipe.tunes_suppression else []
    recipe = _with_own_maps(root, recipe)
    if recipe.combining.semantic is not None:
        files += [unit.weights for unit in _units(recipe, recipe.map_member())]
    files += [file for step in steps_of(recipe, root) for file in step.needs()]
    return list(dict.fromkeys(files))


def _members(root: Path, recipe: Recipe) -> list[str]:
    """Members to predict with: those the steps start from, or the best one; another tool's cannot be asked again.

    Raises:
        UsageError: All of them are another tool's.
    """
    if run_steps(recipe, root):
        wanted = combined_members(recipe)
    elif not recipe.detecting_members:
        hint = "Score pixels instead: --maps FOLDER."
        raise UsageError(f"{root}: no member of this run finds objects", hint=hint)
    else:
        wanted = [cast("dict[str, Any]", read_json(root / METRICS))["member"]]
    foreign = [name for name in wanted if name in recipe.foreign_members]
    if len(foreign) == len(wanted):
        hint = "Predict with that tool, and `scantling run` or `ensemble` what it writes."
        raise UsageError(f"{root}: {', '.join(foreign)} was predicted by another tool", hint=hint)
    if foreign:
        log.warning("%s: predicted by another tool, so left out here", ", ".join(foreign))
    return [name for name in wanted if name not in foreign]


def _with_own_maps(root: Path, recipe: Recipe) -> Recipe:
    """The recipe without the fusion with another tool's score maps, which has none of new images."""
    combining = recipe.combining
    if combining.semantic is None or recipe.members[recipe.map_member()].maps is None:
        return recipe
    log.warning("%s: masks are not fused with the maps of %s, another tool's", root, recipe.map_member())
    return recipe.model_copy(update={"combine": combining.model_copy(update={"semantic": None})})


def _new_maps(segmenters: Sequence[LoadedSegmenter], _name: str, images: CocoDataset) -> ScoreMaps:
    """What the segmenters of a member say of new images; those that cannot be read have no map."""
    found = {id(record): PackedMap.of(one) for record, one in score_maps_of(segmenters, images.images)}
    for segmenter in segmenters:
        segmenter.take_findings()  # the detectors say the same of these images
    packed = [found.get(id(record)) for record in images.images]
    return ScoreMaps(len(packed), lambda position: one.unpack() if (one := packed[position]) else None)


def _as_loaded(recipe: Recipe, members: Mapping[str, Sequence[LoadedDetector]]) -> Recipe:
    """The recipe with the settings of prediction that the detectors were loaded with."""
    changed = {
        name: recipe.members[name].model_copy(update={"predict": detectors[0].predictor.config})
        for name, detectors in members.items()
    }
    return recipe.model_copy(update={"members": {**recipe.members, **changed}})


def _units(recipe: Recipe, name: str) -> list[TrainingJob]:
    folds = recipe.data.folds
    return [TrainingJob(name)] if folds is None else [TrainingJob(name, fold) for fold in range(folds)]


def _detector(
    root: Path, recipe: Recipe, unit: TrainingJob, overrides: Sequence[str], device: str
) -> LoadedDetector:
    """A unit with the run's suppression; what the user asks for wins over it."""
    suppress = recipe.members[unit.member].predict.suppress
    if recipe.tunes_suppression:
        suppress = read_tuned(root / tuned_file(unit.member)).suppression_over(suppress)
    given = f"suppress={json.dumps(suppress.model_dump(mode='json'))}"
    return load_detector(root / unit.weights, [given, *overrides], device=device)


@dataclass(slots=True, kw_only=True)
class RunDetectors:
    """All detectors of a run; see `ImagePredictor`.

    No step looks from one image to another, so that images go through all of them a few at a time: the outcome is the
    same, and memory does not grow with their number.

    Attributes:
        root: The run folder.
        steps: What is done with what they find, in the order of the run.
        members: Detectors by member, one for each fold.
        images_at_once: Images that go through all detectors and steps before the next ones do.
        findings: Warnings about images left out since they were last asked for, by their text: each is told once.
    """

    root: Path
    steps: Sequence[Step]
    members: Mapping[str, Sequence[LoadedDetector]]
    images_at_once: int = IMAGES_AT_ONCE
    findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def categories(self) -> tuple[Category, ...]:
        """With the ids of the data set they were trained on, in label order."""
        return next(iter(self.members.values()))[0].categories

    @property
    def white(self) -> int | None:
        """What they learned with; see `ImagePredictor`."""
        return next(iter(self.members.values()))[0].white

    def predict(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Instances]]:
        """Detections of each readable image, in the order given; see `ImagePredictor`.

        Args:
            records: Images to read; every detector looks at `images_at_once` of them before the first of these comes.
        """
        bare = total = 0
        for start in range(0, len(records), self.images_at_once):
            some = records[start : start + self.images_at_once]
            readable, outcome = self._outcome(some)
            total += len(outcome)
            bare += 0 if outcome.masks is None else sum(mask is None for mask in outcome.masks)
            for position in sorted(readable):
                record = some[position]
                yield record, Instances.from_detections(outcome[outcome.images == position], record.size_hw)
        if bare:
            told = "%d of %d objects have no mask: images that hold one of them are written without masks"
            log.warning(told, bare, total)

    def take_findings(self) -> tuple[Finding, ...]:
        """Warnings of every detector, each once; see `ImagePredictor`."""
        taken = tuple(self.findings.values())
        self.findings.clear()
        return taken

    def _outcome(self, records: Sequence[ImageRecord]) -> tuple[set[int], Detections]:
        """Positions of the images that can be read, and what all detectors and steps make of them."""
        place = {id(record): position for position, record in enumerate(records)}
        readable, found = set[int](), dict[str, Detections]()
        for name, detectors in self.members.items():
            for number, detector in enumerate(detectors):
                unit = TrainingJob(name, None if len(detectors) == 1 else number)
                log.debug("%s: %d images", unit.title, len(records))
                seen = {place[id(record)]: instances for record, instances in detector.predict(records)}
                readable |= seen.keys()
                found[unit.title] = Detections.cat([one.to_detections(p) for p, one in sorted(seen.items())])
                self.findings |= {str(finding): finding for finding in detector.take_findings()}
        return readable, apply_steps(self.steps, found, self._as_dataset(records))

    def _as_dataset(self, records: Sequence[ImageRecord]) -> CocoDataset:
        return CocoDataset(
            file=self.root,
            image_root=self.root,
            images=tuple(records),
            annotations=((),) * len(records),
            categories=self.categories,
        )

"""New images go the whole way of a run: every member that is combined, suppression, ensemble, elimination, refiner.

    records ── each member (and fold) ──► Detections ── fuse ──► eliminate ──► refine ──► (record, Instances)

A run that combines nothing predicts with its best member alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from scantling.combine.eliminate import eliminate
from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.relations import Relations
from scantling.combine.tuned import read_tuned
from scantling.data.coco import Category, CocoDataset, ImageRecord
from scantling.data.detections import detections_of, results_of
from scantling.data.io import read_json
from scantling.errors import Finding
from scantling.predict.loaded import Finder, LoadedDetector, load_detector
from scantling.recipe.recipe import Recipe, load_recipe
from scantling.run.context import Unit
from scantling.run.folder import METRICS, RECIPE
from scantling.run.stages.combining import ENSEMBLE, RELATIONS
from scantling.run.stages.detecting import tuned_file
from scantling.run.stages.refining import refined_results
from scantling.structures.detections import Detections
from scantling.structures.instances import Instances

log = logging.getLogger(__name__)


def load_run(root: Path, overrides: Iterable[str] = (), *, device: str = "auto") -> Finder:
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
    first = next(iter(members.values()))
    if len(members) == 1 and len(first) == 1 and recipe.combining.eliminate is None and recipe.refine is None:
        return first[0]
    return RunDetectors(root=root, recipe=recipe, members=members)


def _members(root: Path, recipe: Recipe) -> list[str]:
    """Members to predict with; another tool's cannot be asked again."""
    combining = recipe.combining
    if combining.ensemble is None:
        metrics = cast("dict[str, Any]", read_json(root / METRICS))
        return list(combining.members or ()) if combining.eliminate else [metrics["member"]]
    wanted = list(combining.members or recipe.members)
    foreign = [name for name in wanted if name in recipe.foreign_members]
    if foreign:
        log.warning("%s: predicted by another tool, so left out here", ", ".join(foreign))
    return [name for name in wanted if name not in foreign]


def _units(recipe: Recipe, name: str) -> list[Unit]:
    folds = recipe.data.folds
    return [Unit(name)] if folds is None else [Unit(name, fold) for fold in range(folds)]


def _detector(
    root: Path, recipe: Recipe, unit: Unit, overrides: Sequence[str], device: str
) -> LoadedDetector:
    """A unit with the run's suppression; what the user asks for wins over it."""
    suppress = recipe.members[unit.member].predict.suppress
    if recipe.tunes_suppression:
        suppress = read_tuned(root / tuned_file(unit.member)).suppression_over(suppress)
    given = f"suppress={json.dumps(suppress.model_dump(mode='json'))}"
    return load_detector(root / unit.weights, [given, *overrides], device=device)


@dataclass(slots=True, kw_only=True)
class RunDetectors:
    """All detectors of a run; see `Finder`.

    Attributes:
        root: The run folder.
        recipe: Resolved.
        members: Detectors by member, one for each fold.
        findings: Warnings of every detector about images left out so far, each once.
    """

    root: Path
    recipe: Recipe
    members: Mapping[str, Sequence[LoadedDetector]]
    findings: list[Finding] = field(default_factory=list)

    @property
    def categories(self) -> tuple[Category, ...]:
        """With the ids of the data set they were trained on, in label order."""
        return next(iter(self.members.values()))[0].categories

    @property
    def white(self) -> int | None:
        """What they learned with; see `Finder`."""
        return next(iter(self.members.values()))[0].white

    def find(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Instances]]:
        """Detections of each readable image; see `Finder`. Every detector looks at all images before the first comes.

        Args:
            records: Images to read.
        """
        place = {id(record): position for position, record in enumerate(records)}
        readable: set[int] = set()
        found = {}
        for name, detectors in self.members.items():
            folds = {}
            for number, detector in enumerate(detectors):
                log.info("%s%s", name, "" if len(detectors) == 1 else f", fold {number}")
                seen = {place[id(record)]: instances for record, instances in detector.find(records)}
                readable |= seen.keys()
                folds[str(number)] = Detections.cat(
                    [found.to_detections(p) for p, found in sorted(seen.items())]
                )
            found[name] = self._one_voice(folds, detectors)
        told = (
            finding for some in self.members.values() for detector in some for finding in detector.findings
        )
        self.findings = [*self.findings, *(new for new in _once(told) if new not in self.findings)]
        everything = self._refined(self._combined(found), records)
        for position in sorted(readable):
            record = records[position]
            yield record, Instances.from_detections(everything[everything.images == position], record.size_hw)

    def _one_voice(self, folds: Mapping[str, Detections], detectors: Sequence[LoadedDetector]) -> Detections:
        if len(folds) == 1:
            return next(iter(folds.values()))
        limit = detectors[0].predictor.config.suppress.max_per_image
        fusion = EnsembleConfig(max_per_image=limit)
        return ensemble_detections(folds, fusion, self._names)

    def _combined(self, found: Mapping[str, Detections]) -> Detections:
        combining = self.recipe.combining
        if combining.ensemble is None:
            detections = next(iter(found.values()))
        else:
            config = combining.ensemble
            if self.recipe.tunes_weights:
                config = read_tuned(self.root / tuned_file(ENSEMBLE)).ensemble or config
            weights = {name: weight for name, weight in config.weights.items() if name in found}
            chosen = config.model_copy(update={"weights": weights})
            detections = ensemble_detections(found, chosen, self._names)
        if combining.eliminate is None:
            return detections
        relations = Relations.from_dict(cast("dict[str, Any]", read_json(self.root / RELATIONS)))
        return detections[eliminate(detections, relations, combining.eliminate).keep]

    def _refined(self, detections: Detections, records: Sequence[ImageRecord]) -> Detections:
        if self.recipe.refine is None:
            return detections
        dataset = CocoDataset(
            file=self.root,
            image_root=self.root,
            images=tuple(records),
            annotations=((),) * len(records),
            categories=self.categories,
        )
        device = str(next(iter(self.members.values()))[0].predictor.device)
        results = results_of(detections, dataset)
        refined, _ = refined_results(self.root, self.recipe.refine, dataset, results, device)
        return detections_of(refined, dataset)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once, in the order in which they first came."""
    kept: list[Finding] = []
    for finding in findings:
        if finding not in kept:
            kept.append(finding)
    return kept

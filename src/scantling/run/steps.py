"""What happens to detections after every member has found its own: the steps, and their order, written once.

    {unit: Detections} ── folds ──► {member: Detections} ── ensemble ──► one set ── semantic ──► eliminate ──► refine

Masks are fused with score maps after the ensemble, since its weights say which scores are high enough, and its vote
which pixels an object has before more are added; and before the elimination and the refiner, since the box inside which
pixels are gained is that of the detector that found the object.

`steps_of` is the order; a run's stages, tables, ablation, gate and report, and prediction with a run, iterate over it.
A step goes by the recipe and by what the run has learned (tuned weights, relations, a refiner), from the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, cast

from scantling.combine.eliminate import EliminateConfig, Elimination, eliminate
from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.relations import Relations
from scantling.combine.semantic import SemanticConfig, SemanticFusion, fuse_semantic
from scantling.combine.tuned import read_tuned
from scantling.data.coco import CocoDataset
from scantling.data.coco.results import Result
from scantling.data.detections import detections_of, pasted, results_of
from scantling.data.io import read_json, sha256_of
from scantling.recipe.recipe import Recipe, RefineSection, SemanticSection
from scantling.refine.apply import load_refiner, refine_results
from scantling.refine.gate import RefineGate
from scantling.run.context import PREDICTIONS, TrainingJob
from scantling.settings.draft import Draft
from scantling.structures.detections import Detections
from scantling.structures.score_maps import ScoreMaps
from scantling.train.keeper import BEST_NAME

FOLDS, ENSEMBLE, SEMANTIC, ELIMINATE, REFINE = "folds", "ensemble", "semantic", "eliminate", "refine"
TUNED = "tune"
RELATIONS = f"{ELIMINATE}/relations.json"
REFINER, GATE = f"{REFINE}/refiner/{BEST_NAME}", f"{REFINE}/gate.yaml"

Sources: TypeAlias = Mapping[str, Detections]
"""Detections of the same images by who found them: a unit (its title), a member, or the last step."""

MapsOf: TypeAlias = Callable[[str, CocoDataset], ScoreMaps]
"""The score maps that a member gives of some images: stored ones in a run, new ones in prediction with it."""


class Step(Protocol):
    """One step after prediction.

    Attributes:
        name: Its folder in the run, its row in the tables, its key in `metrics.json`.
        title: What it is called in a table that adds one step after the other.
        each_member: It is done for each member alone, as part of the member's own stages; else it has a stage.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    each_member: ClassVar[bool]

    def needs(self) -> tuple[str, ...]:
        """Files of what was learned, relative to the run folder, without which nothing can be applied."""

    def inputs(self) -> Mapping[str, Any]:
        """What decides the step besides the detections: settings, hashes of what was learned."""

    def apply(self, found: Sources, images: CocoDataset) -> Sources:
        """The detections after the step.

        Args:
            found: As the step before left them.
            images: What they are about, with the categories in label order.
        """


def steps_of(
    recipe: Recipe, folder: Path, *, device: str = "auto", maps_of: MapsOf | None = None
) -> tuple[Step, ...]:
    """The steps of a run, in their order.

    Args:
        recipe: Without `auto`.
        folder: The run folder, where what was learned is or will be.
        device: Where the refiner computes.
        maps_of: Where score maps come from; needed only where steps are applied.
    """
    combining, steps = recipe.combining, list[Step]()
    if recipe.data.folds is not None:
        steps.append(Folds(recipe))
    if combining.ensemble is not None:
        steps.append(Ensemble(recipe, folder))
    if combining.semantic is not None:
        steps.append(FuseSemantic(recipe, combining.semantic, folder, maps_of))
    if combining.eliminate is not None:
        steps.append(Eliminate(combining.eliminate, folder))
    if recipe.refine is not None:
        steps.append(Refine(recipe.refine, folder, device))
    return tuple(steps)


def run_steps(
    recipe: Recipe, folder: Path, *, device: str = "auto", maps_of: MapsOf | None = None
) -> tuple[Step, ...]:
    """Those steps that have a stage, a folder and a row in the tables; they start from the members' detections."""
    steps = steps_of(recipe, folder, device=device, maps_of=maps_of)
    return tuple(step for step in steps if not step.each_member)


def steps_before(steps: Sequence[Step], name: str) -> tuple[Step, ...]:
    """The steps before the one of this name; all where there is none."""
    names = [step.name for step in steps]
    return tuple(steps[: names.index(name)] if name in names else steps)


def apply_steps(steps: Sequence[Step], found: Sources, images: CocoDataset) -> Detections:
    """The outcome of some steps in a row; without a step, of the only source.

    Args:
        steps: In their order; may be empty.
        found: What they start from.
        images: What the detections are about.
    """
    for step in steps:
        found = step.apply(found, images)
    return only(found)


def combined_members(recipe: Recipe) -> list[str]:
    """Members whose detections the steps start from."""
    return list(recipe.combining.members or recipe.detecting_members)


def step_file(step: Step) -> str:
    """Results file that a step leaves, relative to the run folder."""
    return f"{step.name}/{PREDICTIONS}"


def tuned_file(name: str) -> str:
    """What was chosen for a member or the ensemble, relative to the run folder."""
    return f"{TUNED}/{name}.yaml"


def only(found: Sources) -> Detections:
    """The detections of the only source.

    Raises:
        ValueError: There are several, or none.
    """
    if len(found) != 1:
        raise ValueError(f"expected detections of one source, found {list(found)}")
    return next(iter(found.values()))


def one_voice(
    parts: Sequence[Detections], class_names: Sequence[str], max_per_image: int | None
) -> Detections:
    """What several detectors of one member say together, each with the same weight; a single one is left alone.

    Args:
        parts: Of each detector.
        class_names: In label order.
        max_per_image: Detections kept per image; None keeps all.
    """
    if len(parts) == 1:
        return parts[0]
    voices = {str(number): part for number, part in enumerate(parts)}
    return ensemble_detections(voices, EnsembleConfig(max_per_image=max_per_image), class_names)


@dataclass(frozen=True, slots=True)
class Folds:
    """The detectors of a member's folds speak with one voice.

    Attributes:
        recipe: With folds; each member's own suppression says how many detections are kept per image.
    """

    name: ClassVar[str] = FOLDS
    title: ClassVar[str] = "folds together"
    each_member: ClassVar[bool] = True
    recipe: Recipe

    def needs(self) -> tuple[str, ...]:
        """Nothing is learned."""
        return ()

    def inputs(self) -> Mapping[str, Any]:
        """The number of folds."""
        return {"folds": self.recipe.data.folds}

    def apply(self, found: Sources, images: CocoDataset) -> Sources:
        """Detections by member; those of another tool, which has no folds, as they are."""
        units = [
            (name, TrainingJob(name, fold).title) for name in self.recipe.members for fold in self._numbers
        ]
        together = {title: part for title, part in found.items() if title in self.recipe.members}
        for name in dict.fromkeys(member for member, title in units if title in found):
            parts = [found[title] for member, title in units if member == name and title in found]
            limit = self.recipe.members[name].predict.suppress.max_per_image
            together[name] = one_voice(parts, images.class_names, limit)
        return {name: together[name] for name in self.recipe.detecting_members if name in together}

    @property
    def _numbers(self) -> range:
        return range(self.recipe.data.folds or 0)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Members become one set of boxes.

    Attributes:
        recipe: What it does not say about fusing is the default.
        folder: Run folder, for tuned weights.
    """

    name: ClassVar[str] = ENSEMBLE
    title: ClassVar[str] = "ensemble"
    each_member: ClassVar[bool] = False
    recipe: Recipe
    folder: Path

    @property
    def given(self) -> EnsembleConfig:
        """How members are fused as the recipe says it."""
        return self.recipe.combining.ensemble or EnsembleConfig()

    @property
    def config(self) -> EnsembleConfig:
        """How members are fused: with tuned weights where they are tuned."""
        if not self.recipe.tunes_weights:
            return self.given
        return read_tuned(self.folder / tuned_file(ENSEMBLE)).ensemble or self.given

    def needs(self) -> tuple[str, ...]:
        """The tuned weights."""
        return (tuned_file(ENSEMBLE),) if self.recipe.tunes_weights else ()

    def inputs(self) -> Mapping[str, Any]:
        """Settings, and the file of tuned ones."""
        tuned = self.folder / tuned_file(ENSEMBLE)
        return {
            "ensemble": self.given.model_dump(mode="json"),
            "tuned": sha256_of(tuned) if self.recipe.tunes_weights else None,
        }

    def apply(self, found: Sources, images: CocoDataset) -> Sources:
        """One set out of those of the members that are combined and given; others are left out.

        A soft mask is laid over its image first: it is stretched over its own box, not over a mean of several, and has
        another number of cells than those of other members, or these have none.
        """
        members = {
            name: pasted(found[name], images) for name in combined_members(self.recipe) if name in found
        }
        config = self.config
        weights = {name: weight for name, weight in config.weights.items() if name in members}
        chosen = config.model_copy(update={"weights": weights})
        return {ENSEMBLE: ensemble_detections(members, chosen, images.class_names)}


@dataclass(frozen=True, slots=True)
class FuseSemantic:
    """Masks gain the pixels that a segmenter calls foreground inside their boxes.

    Attributes:
        recipe: It says whose maps these are, and whether settings are tuned.
        given: What is fused and how, as the recipe says it.
        folder: Run folder, for tuned settings.
        maps_of: Where the maps come from; None where nothing is applied.
    """

    name: ClassVar[str] = SEMANTIC
    title: ClassVar[str] = "semantic fusion"
    each_member: ClassVar[bool] = False
    recipe: Recipe
    given: SemanticSection
    folder: Path
    maps_of: MapsOf | None

    @property
    def config(self) -> SemanticConfig:
        """What is fused and how: as tuned where it is tuned."""
        if not self.recipe.tunes_semantic:
            return self.given
        return read_tuned(self.folder / tuned_file(SEMANTIC)).semantic or self.given

    def needs(self) -> tuple[str, ...]:
        """The tuned settings."""
        return (tuned_file(SEMANTIC),) if self.recipe.tunes_semantic else ()

    def inputs(self) -> Mapping[str, Any]:
        """Settings, and the file of tuned ones; the maps are those of the images."""
        tuned = self.folder / tuned_file(SEMANTIC)
        sha256 = sha256_of(tuned) if self.recipe.tunes_semantic else None
        return {"semantic": self.given.model_dump(mode="json"), "tuned": sha256}

    def fuse(self, detections: Detections, images: CocoDataset) -> SemanticFusion:
        """What becomes of the masks; soft ones are laid over their images first.

        Raises:
            DataError: A map is missing or damaged.
        """
        if self.maps_of is None:
            raise TypeError("these steps were not told where score maps come from")
        maps = self.maps_of(self.recipe.map_member(), images)
        return fuse_semantic(pasted(detections, images), maps, self.config, images.class_names)

    def apply(self, found: Sources, images: CocoDataset) -> Sources:
        """The only source's detections with their masks fused."""
        return {SEMANTIC: self.fuse(only(found), images).detections}


@dataclass(frozen=True, slots=True)
class Eliminate:
    """Boxes go that contradict what occurs among the training annotations.

    Attributes:
        config: What is judged.
        folder: Run folder, for the relations that were learned.
    """

    name: ClassVar[str] = ELIMINATE
    title: ClassVar[str] = "elimination"
    each_member: ClassVar[bool] = False
    config: EliminateConfig
    folder: Path

    def needs(self) -> tuple[str, ...]:
        """The relations."""
        return (RELATIONS,)

    def inputs(self) -> Mapping[str, Any]:
        """Settings; the relations are those of the training split."""
        return {"eliminate": self.config.model_dump(mode="json")}

    def judge(self, detections: Detections) -> Elimination:
        """What is to go, and why.

        Raises:
            DataError: The relations are missing or damaged.
        """
        relations = Relations.from_dict(cast("dict[str, Any]", read_json(self.folder / RELATIONS)))
        return eliminate(detections, relations, self.config)

    def apply(self, found: Sources, images: CocoDataset) -> Sources:  # noqa: ARG002 - boxes alone are judged
        """The only source's detections without those that are to go."""
        detections = only(found)
        return {ELIMINATE: detections[self.judge(detections).keep]}


@dataclass(frozen=True, slots=True)
class Refine:
    """The run's refiner sharpens boxes where its gate allows it.

    Attributes:
        config: The run's.
        folder: Run folder, for the refiner and its gate.
        device: Where the refiner computes.
    """

    name: ClassVar[str] = REFINE
    title: ClassVar[str] = "refinement"
    each_member: ClassVar[bool] = False
    config: RefineSection
    folder: Path
    device: str

    def needs(self) -> tuple[str, ...]:
        """The refiner, and its gate if there is one."""
        return (REFINER,) if self.config.gate is None else (REFINER, GATE)

    def inputs(self) -> Mapping[str, Any]:
        """Refiner, gate, and how it is applied."""
        return {
            "refiner": sha256_of(self.folder / REFINER),
            "gate": sha256_of(self.folder / GATE) if self.config.gate is not None else None,
            "apply": self.config.apply.model_dump(mode="json"),
        }

    def refine(self, results: Sequence[Result], images: CocoDataset) -> tuple[list[Result], dict[str, int]]:
        """Results with their boxes refined, all their keys kept; and how many were refined or not, and why.

        Raises:
            CheckpointError: The refiner is missing or damaged.
            ConfigError: The gate's file was changed so that it is none.
            DataError: An image that has results cannot be read.
        """
        refiner, gate, path = load_refiner(self.folder / REFINER, self.device), None, self.folder / GATE
        if self.config.gate is not None:
            gate = Draft.parse(RefineGate, path.read_text(encoding="utf-8"), file=str(path)).check()
        return refine_results(results, images, refiner, self.config.apply, gate=gate)

    def apply(self, found: Sources, images: CocoDataset) -> Sources:
        """The only source's detections with their boxes refined."""
        refined, _ = self.refine(results_of(only(found), images), images)
        return {REFINE: detections_of(refined, images)}

"""Recipes: what a run does, as one flat YAML file.

    about:    one line for `recipes list`
    seed:     0
    data:     {root: DIR, train: train, val: val}
    pretrain: {epochs: auto}                     backbones learn from the objects' crops first
    members:  {NAME: {model: {...}, augment: {...}, sampling: {...}, train: {...}, predict: {...}},
               OTHER: {predictions: FILE},
               SEGM: {segmenter: {...}, augment: {...}, train: {...}, predict: {...}}, OTHER_SEGM: {maps: FOLDER}}
    combine:  {tune: {...}, ensemble: {...}, semantic: {...}, eliminate: {...}}
    refine:   {model: {...}, train: {...}, gate: {...}}      sharpen the boxes that come out
    audit:    {}                                             rank the training labels by how likely they are wrong
    evaluate: {split: val}
    ablation: {factors: {...}}                               what `ablate` compares

Every section is the pydantic model of the component it configures and lives beside that component, with its
defaults; this module only puts them together. Reading is strict (`strict_yaml`, `draft`): no unknown key, no
silent conversion, every problem with its line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StrictBool, StringConstraints, model_validator

from scantling.audit.suspects import AuditConfig
from scantling.combine.eliminate import EliminateConfig
from scantling.combine.ensemble import EnsembleConfig
from scantling.combine.semantic import SemanticConfig
from scantling.combine.tune import TuneConfig
from scantling.data.samples.augmentation import AugmentConfig
from scantling.data.samples.sampling import SamplingConfig
from scantling.data.splits import DataConfig
from scantling.errors import ConfigError, did_you_mean
from scantling.models.segmenters import SegmenterConfig
from scantling.models.suppression import SuppressConfig
from scantling.models.zoo import ModelConfig
from scantling.predict.predictor import PredictConfig
from scantling.pretrain.config import PretrainConfig
from scantling.recipe.factors import AblationConfig
from scantling.recipe.shipped import find_recipe, read_recipe
from scantling.refine.gate import GateConfig
from scantling.refine.train import RefineConfig
from scantling.settings import yaml as strict_yaml
from scantling.settings.draft import Draft
from scantling.settings.section import Section
from scantling.train.config import TrainConfig

MemberName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A member's name is also the name of its folder."""


class MemberConfig(Section):
    """A detector or a segmenter: what it is, how it is trained, how it looks at images; or what another tool has found.

    Attributes:
        model: The detector that is trained here.
        segmenter: The segmenter that is trained here, in the place of a detector.
        augment: What its training images go through. A segmenter learns every pixel that shows, so `min_visibility`
            is nothing to it.
        sampling: How often each training image is shown.
        train: How it is trained.
        predict: How it looks at images; a segmenter has no use for `suppress`.
        predictions: COCO results file of any tool for the evaluated split, or a mapping from split to file.
        image_ids: What numbers as `image_id` in these files are: `id` of the data set, the number that the `file` is
            called by, or null to find out.
        maps: Folder of any tool's maps of pixels (a PNG or NPY for each image) or a file of score maps, for the
            evaluated split, or a mapping from split to folder.
        map_values: What the numbers in these maps are: `scores`, `foreground`, `ids`, `positions`, or null to find
            out; see `data.map_files`.
    """

    model: ModelConfig | None = None
    segmenter: SegmenterConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    sampling: SamplingConfig = SamplingConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    predictions: str | dict[str, str] | None = None
    image_ids: Literal["id", "file"] | None = None
    maps: str | dict[str, str] | None = None
    map_values: Literal["scores", "foreground", "ids", "positions"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = (self.model, self.segmenter, self.predictions, self.maps)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "give one of `model` (a detector trained here), `segmenter` (one trained here), `predictions` (a file "
                "of any tool) and `maps` (a folder of any tool)"
            )
        if self.map_values is not None and self.maps is None:
            raise ValueError("`map_values` says what the numbers in `maps` are, and there are none")
        if self.segmenter is not None and self.predict.suppress != SuppressConfig():
            raise ValueError("`predict.suppress` is for boxes; a segmenter has none")
        return self

    @property
    def draws_masks(self) -> bool:
        """Whether it is a detector of masks, trained here."""
        return self.model is not None and self.model.has_masks

    @property
    def gives_maps(self) -> bool:
        """Whether it says of pixels what they are, and detects nothing: a segmenter, or any tool's maps."""
        return self.segmenter is not None or self.maps is not None

    @property
    def is_trained(self) -> bool:
        """Whether it is trained here."""
        return self.model is not None or self.segmenter is not None

    @property
    def augmentation(self) -> AugmentConfig:
        """What its training images go through, with what holds for a segmenter."""
        return self.augment.model_copy(update={"min_visibility": 0.0}) if self.segmenter else self.augment

    @property
    def detector(self) -> ModelConfig:
        """The detector that is trained here.

        Raises:
            TypeError: The member is something else.
        """
        if self.model is None:
            raise TypeError("this member is no detector that is trained here")
        return self.model

    @property
    def network(self) -> ModelConfig | SegmenterConfig:
        """What is trained here.

        Raises:
            TypeError: The member is a file or folder of another tool.
        """
        network = self.model or self.segmenter
        if network is None:
            raise TypeError("this member was made by another tool")
        return network


class TuneSection(TuneConfig):
    """What a run tunes, and how.

    Attributes:
        suppress: Each member's suppression, by category.
        weights: The members' weights in the ensemble.
        semantic: Mode and score threshold of the fusion with score maps, by category.
    """

    suppress: bool = True
    weights: bool = True
    semantic: bool = True


class SemanticSection(SemanticConfig):
    """Masks fused with the score maps of a member.

    Attributes:
        member: A segmenter, or maps of another tool; null for the only one there is.
    """

    member: MemberName | None = None


class CombineConfig(Section):
    """How the members' detections become better ones.

    Attributes:
        members: Those that are combined; null for all that find objects.
        tune: Choose suppression per member and category, and the weights of the ensemble, on `val` (or, with folds,
            on out-of-fold predictions); null takes them as the recipe gives them.
        ensemble: Fuse the members' boxes, or masks; null does not.
        semantic: Give masks the pixels that a segmenter calls foreground inside their boxes; null does not.
        eliminate: Remove boxes that contradict what occurs among the training annotations; null does not.
    """

    members: Annotated[tuple[MemberName, ...], Field(min_length=1)] | None = None
    tune: TuneSection | None = None
    ensemble: EnsembleConfig | None = None
    semantic: SemanticSection | None = None
    eliminate: EliminateConfig | None = None

    @property
    def tuning(self) -> TuneSection:
        """How thresholds and weights are chosen."""
        return self.tune or TuneSection()

    @property
    def fusing(self) -> SemanticSection:
        """How masks are fused with score maps."""
        return self.semantic or SemanticSection()

    @property
    def elimination(self) -> EliminateConfig:
        """What is eliminated."""
        return self.eliminate or EliminateConfig()


class RefineSection(RefineConfig):
    """A refiner trained on the training boxes, and where it may change the run's detections.

    Attributes:
        gate: Refine only where it was measured on `val` to help; null refines everywhere.
    """

    gate: GateConfig | None = GateConfig()

    @property
    def gating(self) -> GateConfig:
        """How the gate is measured."""
        return self.gate or GateConfig()


class EvaluateConfig(Section):
    """What the run's metrics are computed from.

    Attributes:
        split: Split to evaluate: a split's name, or a COCO file relative to the data set's folder. One without labels
            is predicted, and its numbers are undefined.
        backend: `pycocotools`, `hotcoco` (same numbers, faster), or `auto` for the fastest one installed.
        bootstrap: Resamples of the images for the intervals of every AP; 0 for none.
        iou_type: What the run is judged by: overlaps of boxes (`bbox`) or of masks (`segm`); both are measured where
            there are masks. `auto`: masks where a member draws them or brings them.
        max_dets: Predictions counted per image and category, best first; COCO's own number is 100. More than
            `predict.suppress.max_per_image` (100 unless set) are not predicted.
        occlusion: Also measure, where masks are, how objects that lie in several parts are found whole (OM, OIR, DPR).
    """

    split: str = "val"
    backend: Literal["auto", "pycocotools", "hotcoco"] = "auto"
    bootstrap: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    iou_type: Literal["auto", "bbox", "segm"] = "auto"
    max_dets: Annotated[int, Field(gt=10)] = 100
    occlusion: StrictBool = False

    @property
    def limits(self) -> dict[str, Any]:
        """What the stages that count predictions depend on; nothing where it is COCO's own, or left to the results."""
        given: dict[str, Any] = {"max_dets": self.max_dets} if self.max_dets != 100 else {}
        return given if self.iou_type == "auto" else {**given, "iou_type": self.iou_type}


class Recipe(Section):
    """Everything a run does; equal recipes on equal data with equal seeds give equal results."""

    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig | None = None
    members: Annotated[dict[MemberName, MemberConfig], Field(min_length=1)]
    combine: CombineConfig | None = None
    refine: RefineSection | None = None
    audit: AuditConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    ablation: AblationConfig | None = None

    def on(self, *, data: str | Path | None = None, seed: int | None = None) -> Recipe:
        """The recipe for a data set and with a seed; None keeps the recipe's own.

        The folder is made absolute, so that the run can be found again from elsewhere.
        """
        root = data if data is not None else self.data.root
        absolute = str(Path(root).absolute()) if root is not None else None
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"root": absolute}),
                "seed": self.seed if seed is None else seed,
            }
        )

    @property
    def draws_masks(self) -> bool:
        """Whether a detector draws masks."""
        return any(member.draws_masks for member in self.members.values())

    @property
    def needs_masks(self) -> bool:
        """Whether a member learns from masks: a detector that draws them, or a segmenter."""
        return self.draws_masks or any(member.segmenter is not None for member in self.members.values())

    @property
    def foreign_members(self) -> tuple[str, ...]:
        """Members whose predictions come from another tool."""
        return tuple(name for name, member in self.members.items() if member.predictions is not None)

    @property
    def detecting_members(self) -> tuple[str, ...]:
        """Members that find objects, whoever trained them."""
        return tuple(name for name, member in self.members.items() if not member.gives_maps)

    @property
    def map_members(self) -> tuple[str, ...]:
        """Members that give score maps instead of detections: segmenters, and any tool's maps."""
        return tuple(name for name, member in self.members.items() if member.gives_maps)

    def map_member(self) -> str:
        """The member whose score maps masks are fused with.

        Raises:
            ConfigError: It does not exist or gives no maps; or none is named, and there are several or none.
        """
        name, members = self.combining.fusing.member, self.map_members
        if name is not None and name not in members:
            found = "gives no score maps" if name in self.members else "does not exist"
            hint = f"Those that give some: {', '.join(members) or 'none'}."
            raise ConfigError(
                f"combine.semantic.member: {name} {found}{did_you_mean(name, members)}", hint=hint
            )
        if name is None and len(members) != 1:
            told = f"{len(members) or 'no'} members give score maps"
            hint = (
                "Name one in combine.semantic.member." if members else "Add one with `segmenter` or `maps`."
            )
            raise ConfigError(f"combine.semantic: {told}", hint=hint)
        return name or members[0]

    @property
    def combining(self) -> CombineConfig:
        """What is combined; nothing where the recipe says nothing about it."""
        return self.combine or CombineConfig()

    @property
    def auditing(self) -> AuditConfig:
        """How labels are judged."""
        return self.audit or AuditConfig()

    @property
    def gates_refinement(self) -> bool:
        """Whether it is measured on `val` where refining helps."""
        return self.refine is not None and self.refine.gate is not None

    @property
    def tunes_suppression(self) -> bool:
        """Whether the members' suppression is chosen on images they have not learned from."""
        return self.combining.tune is not None and self.combining.tune.suppress

    @property
    def tunes_weights(self) -> bool:
        """Whether the weights of the ensemble are; those of a single member mean nothing."""
        combining, several = self.combining, len(self.combining.members or self.detecting_members) > 1
        fuses = combining.ensemble is not None and several
        return combining.tune is not None and combining.tune.weights and fuses

    @property
    def tunes_semantic(self) -> bool:
        """Whether the fusion with score maps is chosen on images that no member has learned from."""
        combining = self.combining
        return combining.tune is not None and combining.tune.semantic and combining.semantic is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The recipe as a file that `load_recipe` reads back as an equal object."""
        return strict_yaml.dump(self.to_dict())


def fingerprint(value: object) -> str:
    """SHA-256 of plain values (or of a pydantic model), the same whatever the order of keys."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        source: A file (its name ends in .yaml or .yml, or holds a folder) or the name of a shipped recipe.
        overrides: `KEY.PATH=VALUE` texts that replace values of the file, checked like the file's own.

    Raises:
        ConfigError: With every problem found, each with its line, key path and remedy.
    """
    path = find_recipe(source)
    return parse_recipe(read_recipe(path), file=str(path), overrides=overrides)


def parse_recipe(text: str, *, file: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from its text; see `load_recipe`."""
    draft = Draft.parse(Recipe, text, file=file)
    for override in overrides:
        draft = draft.with_override(override)
    return draft.check()

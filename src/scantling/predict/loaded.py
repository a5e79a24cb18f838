"""A detector or a segmenter out of its checkpoint, ready to look at images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from scantling.data.coco import Category, ImageRecord
from scantling.errors import CheckpointError, Finding
from scantling.models.segmenters import KIND as SEGMENTER
from scantling.models.segmenters import SegmenterConfig, build_segmenter
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.predict.score_maps import ScorePredictor
from scantling.settings.draft import Draft
from scantling.structures.instances import Instances
from scantling.structures.score_maps import ScoreMap
from scantling.train.checkpoint import CheckpointMeta, load_checkpoint, load_weights, weights_in
from scantling.train.devices import resolve_device

log = logging.getLogger(__name__)

KIND = "detector"
_VERB_OF = {
    "refiner": "A refiner sharpens the boxes of a detector: `scantling refine apply RESULTS DATA --refiner FILE`.",
    "pretraining": "Its folder holds a `backbone.safetensors` to name in a detector's `model.init`; then train it.",
    "backbone": "A backbone is what a detector starts from: name the file in its `model.init` and train it.",
    SEGMENTER: "A segmenter finds no objects: `scantling predict SOURCE --checkpoint FILE --maps FOLDER`.",
}


class ImagePredictor(Protocol):
    """What finds objects in images: one detector, or all that a run has."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """With the ids of the data set it was trained on, in label order."""

    @property
    def white(self) -> int | None:
        """Value that was white in the pictures of 16 bits that it learned from; None for the full range."""

    def predict(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Instances]]:
        """Detections of each readable image in original pixels; those that cannot be read become findings."""

    def take_findings(self) -> tuple[Finding, ...]:
        """Warnings about images left out since this was last asked, each once; they are forgotten then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDetector:
    """A detector out of its checkpoint.

    Attributes:
        predictor: Ready to look at images.
        categories: With the ids of the data set it was trained on, in label order.
        white: Value that was white in the pictures of 16 bits that it learned from; None for the full range.
    """

    predictor: Predictor
    categories: tuple[Category, ...]
    white: int | None = None

    def predict(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Instances]]:
        """Detections of each readable image; see `ImagePredictor`."""
        return self.predictor.predict_records(records, skip_invalid=True)

    def take_findings(self) -> tuple[Finding, ...]:
        """Warnings about images left out since this was last asked; see `ImagePredictor`."""
        return _taken(self.predictor.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSegmenter:
    """A segmenter out of its checkpoint.

    Attributes:
        predictor: Ready to look at images.
        categories: With the ids of the data set it was trained on, in label order.
        white: As of `LoadedDetector`.
    """

    predictor: ScorePredictor
    categories: tuple[Category, ...]
    white: int | None = None

    @property
    def by_category(self) -> bool:
        """Whether its maps tell categories apart."""
        return self.predictor.model.by_category

    def predict(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, ScoreMap]]:
        """The score map of each readable image; see `ScorePredictor.predict`."""
        return self.predictor.predict(records, skip_invalid=True)

    def take_findings(self) -> tuple[Finding, ...]:
        """Warnings about images left out since this was last asked; see `ImagePredictor`."""
        return _taken(self.predictor.findings)


def _taken(findings: list[Finding]) -> tuple[Finding, ...]:
    taken = tuple(findings)
    findings.clear()
    return taken


def load_segmenter(path: Path, overrides: Iterable[str] = (), *, device: str = "auto") -> LoadedSegmenter:
    """Build the segmenter a checkpoint describes; arguments and errors are those of `load_detector`."""
    chosen = resolve_device(device)
    tensors, meta = load_checkpoint(path)
    if meta.kind != SEGMENTER:
        raise CheckpointError(
            f"{path}: expected a segmenter's checkpoint, found that of a {meta.kind}",
            hint="Score maps come from a member with `segmenter` of a run.",
        )
    config = _predict_config(meta.predict, overrides)
    try:
        model_config = SegmenterConfig.model_validate({**meta.model, "init": "random"})
    except ValidationError as error:
        raise CheckpointError(f"{path}: describes a segmenter this version does not know") from error
    model = build_segmenter(model_config, len(meta.class_names))
    load_weights(model, weights_in(tensors), source=path)
    predictor = ScorePredictor(model, config, chosen)
    return LoadedSegmenter(predictor=predictor, categories=_categories_of(meta), white=meta.white)


def _categories_of(meta: CheckpointMeta) -> tuple[Category, ...]:
    pairs = zip(meta.category_ids, meta.class_names, strict=True)
    return tuple(Category(int(number), name) for number, name in pairs)


def load_detector(path: Path, overrides: Iterable[str] = (), *, device: str = "auto") -> LoadedDetector:
    """Build the detector a checkpoint describes, with its weights and its settings of prediction.

    Args:
        path: Checkpoint.
        overrides: `KEY=VALUE` texts that replace settings of prediction.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        CheckpointError: The file cannot be used.
        ConfigError: An override is wrong.
    """
    chosen = resolve_device(device)
    tensors, meta = load_checkpoint(path)
    if meta.kind != KIND:
        raise CheckpointError(
            f"{path}: expected a detector's checkpoint, found that of a {meta.kind}",
            hint=_VERB_OF.get(meta.kind),
        )
    config = _predict_config(meta.predict, overrides)
    try:
        model_config = ModelConfig.model_validate({**meta.model, "init": "random"})
    except ValidationError as error:
        raise CheckpointError(f"{path}: describes a model this version does not know") from error
    model = build_model(model_config, len(meta.class_names))
    load_weights(model, weights_in(tensors), source=path)
    predictor = Predictor(model, config, meta.class_names, chosen)
    return LoadedDetector(predictor=predictor, categories=_categories_of(meta), white=meta.white)


def _predict_config(saved: dict[str, Any], overrides: Iterable[str]) -> PredictConfig:
    draft = Draft(PredictConfig, saved, {}, "checkpoint")
    for override in overrides:
        draft = draft.with_override(override)
    return draft.check()

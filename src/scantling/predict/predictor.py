"""Run a detector over images: read, resize, find candidates, map back, suppress.

    records ── TaskStream: read once, resize to every scale ──► one Batch per scale ── Detector.candidates ──►
    Instances per view ── tta.pool: back to original pixels, one suppression ──► (record, Instances)

Only a few batches exist at a time, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from scantling.data.coco import ImageRecord
from scantling.data.geometry import View, render
from scantling.data.images import open_image
from scantling.data.loader import aspect_order
from scantling.data.transforms import Side, fit_size
from scantling.data.workers import TaskStream
from scantling.errors import ConfigError, DataError, Finding, Severity
from scantling.models.two_stage import Detector, SuppressConfig
from scantling.predict.tta import mirrored, pool
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch, Frame, Sample

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PredictConfig(BaseModel):
    """How a trained detector looks at images.

    Attributes:
        scales: Length of the short side in pixels, or a list of them: each image is then predicted at every size and
            the results are pooled. `auto` is resolved from the training sizes.
        long_side: The long side is never longer than this. null: never longer than the scale itself, so that images
            fit into a square of that length.
        flip: Predict the mirrored image too.
        batch_size: Images predicted together.
        workers: Processes that read and resize; 0 does it in the predicting process.
        precision: Number format of the forward pass. bf16 and fp16 are for GPUs; most processors only imitate them.
        suppress: How candidates become detections, once for all scales.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scales: Side | Annotated[tuple[Side, ...], Field(min_length=1)] | Literal["auto"] = "auto"
    long_side: Side | None = 1333
    flip: StrictBool = False
    batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 1
    workers: Annotated[int, Field(strict=True, ge=0, le=256)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    suppress: SuppressConfig = SuppressConfig()

    def sizes_for(self, size_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes at which an image of this size is predicted.

        Raises:
            ConfigError: `scales` is still `auto`.
        """
        if self.scales == "auto":
            raise ConfigError(
                "predict.scales is `auto`", hint="Give the lengths of the short side, such as 800."
            )
        scales = self.scales if isinstance(self.scales, tuple) else (self.scales,)
        return [
            fit_size(size_hw, scale, scale if self.long_side is None else self.long_side) for scale in scales
        ]

    @model_validator(mode="after")
    def _sides_agree(self) -> Self:
        scales = self.scales if isinstance(self.scales, tuple) else (self.scales,)
        longest = max((scale for scale in scales if scale != "auto"), default=0)
        if self.long_side is not None and longest > self.long_side:
            raise ValueError(f"scales: {longest} is larger than long_side {self.long_side}")
        return self


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A few images at every scale, and those that could not be read."""

    records: tuple[ImageRecord, ...]
    batches: tuple[Batch, ...]
    failures: tuple[DataError, ...]


@dataclass(frozen=True, slots=True)
class _Load:
    """Records -> `_Loaded`, in whatever process."""

    config: PredictConfig

    def __call__(self, records: Sequence[ImageRecord]) -> _Loaded:
        readable, failures, views = [], [], []
        for record in records:
            try:
                sample = read_sample(record)
            except DataError as error:
                failures.append(error)
                continue
            readable.append(record)
            sizes = self.config.sizes_for(record.size_hw)
            views.append([render(sample, View.of(sample).resized(size_hw)) for size_hw in sizes])
        batches = tuple(Batch.collate(samples) for samples in zip(*views, strict=True))
        return _Loaded(tuple(readable), batches, tuple(failures))


def read_sample(record: ImageRecord) -> Sample:
    """An image without ground truth.

    Raises:
        DataError: The image cannot be read, or is not of its record's size.
    """
    pixels = open_image(record.path, size_hw=record.size_hw)
    return Sample(
        image=pixels.transpose(2, 0, 1),
        instances=Instances.empty(record.size_hw, scored=False),
        frame=Frame.identity(record.size_hw),
        image_id=record.id,
    )


class Predictor:
    """A detector ready to look at images.

    Args:
        model: Moved to the device; in evaluation mode while it predicts.
        config: Sizes, batches, suppression.
        class_names: Category names in label order.
        device: Where the model runs.

    Raises:
        ConfigError: `scales` is `auto`, or a suppression threshold names an unknown category.

    Attributes:
        findings: Warnings about images left out so far; see `predict_records`.
    """

    def __init__(
        self,
        model: Detector,
        config: PredictConfig,
        class_names: Sequence[str],
        device: torch.device | str = "cpu",
    ) -> None:
        config.sizes_for((1, 1))
        config.suppress.thresholds(class_names)
        self.model = model.to(device)
        self.config = config
        self.class_names = tuple(class_names)
        self.device = torch.device(device)
        self.findings: list[Finding] = []

    def predict_records(
        self, records: Sequence[ImageRecord], *, skip_invalid: bool = False
    ) -> Iterator[tuple[ImageRecord, Instances]]:
        """Detections of each image in original pixels, best first; images of similar aspect come together.

        Args:
            records: Images to read; may be empty.
            skip_invalid: Go on after an image that cannot be read; it is then a warning in `findings`.

        Yields:
            Each readable record once, with its detections in main memory.

        Raises:
            DataError: An image cannot be read; with `skip_invalid`, none of them can.
            TrainingError: A reading process died.
        """
        ordered = [records[position] for position in aspect_order([record.size_hw for record in records])]
        size = self.config.batch_size
        groups = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        failures: list[DataError] = []
        with self._evaluating(), TaskStream(_Load(self.config), self.config.workers) as stream:
            for loaded in stream.run(groups):
                failures.extend(loaded.failures)
                if failures and not skip_invalid:
                    raise failures[0]
                self.findings.extend(finding for error in loaded.failures for finding in _as_warnings(error))
                yield from zip(loaded.records, self._detect(loaded.batches), strict=True)
        if records and len(failures) == len(records):
            findings = [finding for error in failures for finding in error.findings]
            raise DataError(f"none of the {len(records)} images can be read", findings=findings)

    def _detect(self, batches: Sequence[Batch]) -> list[Instances]:
        """Detections, in original pixels, of the images of which every batch shows another view."""
        seen: list[list[tuple[Frame, Instances]]] = [[] for _ in range(len(batches[0]) if batches else 0)]
        for batch in batches:
            for view in self._views_of(batch.to(self.device)):
                for views, frame, found in zip(seen, view.frames, self._candidates(view), strict=True):
                    views.append((frame, found))
        return [pool(views, self.config.suppress, self.class_names) for views in seen]

    def _views_of(self, batch: Batch) -> list[Batch]:
        return [batch, mirrored(batch)] if self.config.flip else [batch]

    def _candidates(self, batch: Batch) -> list[Instances]:
        dtype = _DTYPES.get(self.config.precision)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.model.candidates(batch)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model in evaluation mode with this predictor's suppression; afterwards as it was."""
        before = self.model.training, self.model.suppression, self.model.class_names
        self.model.eval()
        self.model.suppression, self.model.class_names = self.config.suppress, self.class_names
        try:
            yield
        finally:
            training, self.model.suppression, self.model.class_names = before
            self.model.train(training)


def _as_warnings(error: DataError) -> list[Finding]:
    return [replace(finding, severity=Severity.WARNING) for finding in error.findings]

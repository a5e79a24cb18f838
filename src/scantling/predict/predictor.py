"""Run a detector over images: read, resize, find candidates, map back, suppress.

    records ── TaskStream: read once, resize to every scale ──► one Batch per scale ── Detector.encode, candidates ──►
    Instances per view, back in original pixels ── one suppression over all views ──► (record, Instances)
    a detector of masks, one view: the boxes that are kept ── Detector.masks ──► RoiMasks

Only a few batches exist at a time, whatever the number of images. With `tile`, one image at a time is held and cut
into overlapping tiles, each of which goes the same way; `tiles.py` puts together what they saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from scantling.data.coco import ImageRecord
from scantling.data.images.open import open_image
from scantling.data.samples.geometry import View, render
from scantling.data.samples.loader import aspect_order
from scantling.data.samples.transforms import Side, fit_size
from scantling.data.workers import TaskStream
from scantling.errors import ConfigError, DataError, Finding, Severity
from scantling.models.contract import CandidateLimits, Detector, Encoded
from scantling.models.suppression import SuppressConfig, scores_of, suppress_instances
from scantling.predict.tiles import TileGrid, Window, merge, sort_out
from scantling.predict.tta import in_original_pixels, mirrored
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch, Frame, Sample

T = TypeVar("T")
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
        tile: Side in pixels of the square tiles that images are cut into; each tile is then predicted as an image
            is, at `scales`. Images are read one at a time, by the predicting process. null: whole images. `auto`:
            the tiles of training; whole images where there were none.
        overlap: Share of its side that a tile has in common with the next. Objects up to that length are seen whole
            by some tile; longer ones are put together.
        overview: Predict the whole image too, for objects larger than a tile.
        suppress: How candidates become detections, once for all scales.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scales: Side | Annotated[tuple[Side, ...], Field(min_length=1)] | Literal["auto"] = "auto"
    long_side: Side | None = 1333
    flip: StrictBool = False
    batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 1
    workers: Annotated[int, Field(strict=True, ge=0, le=256)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tile: Annotated[int, Field(strict=True, ge=32, le=16384)] | Literal["auto"] | None = "auto"
    overlap: Annotated[float, Field(strict=True, ge=0, le=0.9)] = 0.2
    overview: StrictBool = False
    suppress: SuppressConfig = SuppressConfig()

    @property
    def tile_side(self) -> int | None:
        """Side of the tiles; None for whole images."""
        return None if self.tile == "auto" else self.tile

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


class _Seen(NamedTuple, Generic[T]):
    """What came of a few records: what was found in each, and the faults of those that could not be read."""

    views: Iterable[tuple[ImageRecord, T]]
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
    pixels = open_image(record.path, size_hw=record.size_hw, white=record.white)
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
        ConfigError: `scales` is `auto`, or a suppression setting names an unknown category.

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
        self._limits: CandidateLimits = config.suppress.limits(class_names)
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
        if self.model.has_masks and self._is_single_view:
            yield from self._with_masks(records, skip_invalid=skip_invalid)
            return
        for record, views in self.candidates(records, skip_invalid=skip_invalid):
            yield record, suppress_instances(Instances.cat(views), self.config.suppress, self.class_names)

    def candidates(
        self, records: Sequence[ImageRecord], *, skip_invalid: bool = False
    ) -> Iterator[tuple[ImageRecord, list[Instances]]]:
        """What is seen in each image before suppression, in original pixels, one set for every view.

        The views are the scales in their order, each followed by its mirror image where `flip` asks for it; an image
        cut into tiles is one view.

        Args:
            records: As in `predict_records`.
            skip_invalid: As in `predict_records`.

        Raises:
            DataError: As in `predict_records`.
            TrainingError: A reading process died.
        """
        look = self._look_at_images if self.config.tile_side is None else self._look_at_tiles
        for seen in self._readable(look(records), len(records), skip_invalid=skip_invalid):
            yield from seen.views

    def _readable(self, looks: Iterable[_Seen[T]], count: int, *, skip_invalid: bool) -> Iterator[_Seen[T]]:
        """The same, with the model in evaluation mode; images that cannot be read are told or end it."""
        failures: list[DataError] = []
        with self._evaluating():
            for seen in looks:
                failures.extend(seen.failures)
                if failures and not skip_invalid:
                    raise failures[0]
                self.findings.extend(finding for error in seen.failures for finding in _as_warnings(error))
                yield seen
        if count and len(failures) == count:
            findings = [finding for error in failures for finding in error.findings]
            raise DataError(f"none of the {count} images can be read", findings=findings)

    @property
    def _is_single_view(self) -> bool:
        """Whether each image is seen once, whole."""
        config = self.config
        several = isinstance(config.scales, tuple) and len(config.scales) > 1
        return config.tile_side is None and not config.flip and not several

    def _with_masks(
        self, records: Sequence[ImageRecord], *, skip_invalid: bool
    ) -> Iterator[tuple[ImageRecord, Instances]]:
        """Detections with soft masks, from one view: features are computed once for boxes and masks."""
        looks = self._look_for_masks(records)
        for seen in self._readable(looks, len(records), skip_invalid=skip_invalid):
            yield from seen.views

    def _look_for_masks(self, records: Sequence[ImageRecord]) -> Iterator[_Seen[Instances]]:
        for loaded in self._loaded(records):
            found: list[Instances] = []
            for batch in loaded.batches:
                view = batch.to(self.device)
                encoded = self._encode(view)
                seen = list(zip(view.frames, self._candidates(encoded), strict=True))
                found = [
                    suppress_instances(each, self.config.suppress, self.class_names)
                    for each in in_original_pixels(seen)
                ]
                found = self._masked(view, encoded, found)
            yield _Seen(zip(loaded.records, found, strict=True), loaded.failures)

    def _masked(self, view: Batch, encoded: Encoded, found: Sequence[Instances]) -> list[Instances]:
        """Detections in original pixels with the masks that the model draws for them in a view."""
        placed = [
            Instances(
                size_hw=size_hw,
                boxes=frame.apply_boxes(each.boxes).to(self.device),
                labels=each.labels.to(self.device),
                scores=scores_of(each).to(self.device),
            )
            for each, frame, size_hw in zip(found, view.frames, view.sizes_hw, strict=True)
        ]
        with self._inference():
            masks = self.model.masks(encoded, placed)
        return [each.replace(masks=own.to("cpu")) for each, own in zip(found, masks, strict=True)]

    def _loaded(self, records: Sequence[ImageRecord]) -> Iterator[_Loaded]:
        """A few images at every scale at a time, those of similar aspect together."""
        ordered = [records[position] for position in aspect_order([record.size_hw for record in records])]
        size = self.config.batch_size
        groups = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        with TaskStream(_Load(self.config), self.config.workers) as stream:
            yield from stream.run(groups)

    def _look_at_images(self, records: Sequence[ImageRecord]) -> Iterator[_Seen[list[Instances]]]:
        """A few whole images at a time."""
        for loaded in self._loaded(records):
            views = (in_original_pixels(seen) for seen in self._see(loaded.batches))
            yield _Seen(zip(loaded.records, views, strict=True), loaded.failures)

    def _look_at_tiles(self, records: Sequence[ImageRecord]) -> Iterator[_Seen[list[Instances]]]:
        """One image at a time, tile by tile."""
        for record in records:
            try:
                sample = read_sample(record)
            except DataError as error:
                yield _Seen((), (error,))
            else:
                yield _Seen([(record, [self._look_through_tiles(sample)])], ())

    def _look_through_tiles(self, sample: Sample) -> Instances:
        """Candidates in one image, in original pixels, from overlapping tiles and perhaps a view of the whole."""
        config = self.config
        grid = TileGrid.over(sample.size_hw, config.tile_side or max(sample.size_hw), config.overlap)
        windows = list(enumerate(grid.windows))
        tiles = []
        for start in range(0, len(windows), config.batch_size):
            indices, some = zip(*windows[start : start + config.batch_size], strict=True)
            found = self._candidates_in(sample, some)
            tiles += [sort_out(grid, index, seen) for index, seen in zip(indices, found, strict=True)]
        overview = None
        if config.overview and len(grid) > 1:
            (overview,) = self._candidates_in(sample, [(0, 0, *sample.size_hw[::-1])])
        return merge(grid, tiles, overview)

    def _candidates_in(self, sample: Sample, windows: Sequence[Window]) -> list[Instances]:
        """Candidates in each window of an image, at all scales together, in original pixels and main memory."""
        parts = [
            View.of(sample).cropped((x1, y1), (y2 - y1, x2 - x1)) for x1, y1, x2, y2 in windows
        ]  # views of one scale form a batch
        sizes = [self.config.sizes_for(part.size_hw) for part in parts]
        batches = (
            Batch.collate(
                [render(sample, part.resized(size)) for part, size in zip(parts, each, strict=True)]
            )
            for each in zip(*sizes, strict=True)
        )
        return [Instances.cat(in_original_pixels(views)) for views in self._see(batches)]

    def _see(self, batches: Iterable[Batch]) -> list[list[tuple[Frame, Instances]]]:
        """For each image, of which every batch shows another view: the frames and candidates of all views."""
        seen = [
            list(zip(view.frames, self._candidates(self._encode(view)), strict=True))
            for batch in batches
            for view in self._views_of(batch.to(self.device))
        ]
        return [list(views) for views in zip(*seen, strict=True)]

    def _views_of(self, batch: Batch) -> list[Batch]:
        return [batch, mirrored(batch)] if self.config.flip else [batch]

    def _encode(self, batch: Batch) -> Encoded:
        with self._inference():
            return self.model.encode(batch)

    def _candidates(self, encoded: Encoded) -> list[Instances]:
        with self._inference():
            return self.model.candidates(encoded, self._limits)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, in the configured number format."""
        dtype = _DTYPES.get(self.config.precision)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model in evaluation mode; afterwards as it was."""
        before = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(before)


def _as_warnings(error: DataError) -> list[Finding]:
    return [replace(finding, severity=Severity.WARNING) for finding in error.findings]

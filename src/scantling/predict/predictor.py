"""Run a detector over images: read, resize, find candidates, map back, suppress.

    records ── TaskStream: read once, resize to every scale ──► one Batch per scale ── Detector.encode, candidates ──►
    Instances per view, back in original pixels ── one suppression over all views ──► (record, Instances)
    a detector of masks: the boxes that are kept ── `masks.py`: every view again ──► one soft mask per box

Only a few batches exist at a time, whatever the number of images. With `tile`, one image at a time is held and cut
into overlapping tiles, each of which goes the same way; `tiles.py` puts together what they saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from scantling.data.coco import ImageId, ImageRecord
from scantling.data.samples.augmentation import Side
from scantling.data.samples.loader import aspect_order
from scantling.data.samples.transforms import fit_size
from scantling.data.workers import TaskStream
from scantling.errors import ConfigError, DataError, Finding, Severity
from scantling.models.contract import CandidateLimits, Detector
from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.predict.masks import mean_masks, tile_masks, tiles_at_all_sizes
from scantling.predict.tiles import TileGrid, TileWindow, merge, sort_out
from scantling.predict.tta import flip_horizontally, in_original_pixels
from scantling.predict.views import KEPT_BYTES, Load, Loaded, Network, Views, read_sample
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch, Sample

T = TypeVar("T")


class PredictConfig(BaseModel):
    """How a trained detector looks at images.

    Attributes:
        scales: Length of the short side in pixels, or a list of them: each image is then predicted at every size and
            the results are pooled. `auto` is resolved from the training sizes.
        long_side: The long side is never longer than this. null: never longer than the scale itself, so that images
            fit into a square of that length.
        flip: Predict the flipped image too.
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


class _Seen(NamedTuple, Generic[T]):
    """What came of a few records: what was found in each, and the faults of those that could not be read."""

    views: Iterable[tuple[ImageRecord, T]]
    failures: tuple[DataError, ...]


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
        self._network = Network(model=self.model, device=self.device, precision=config.precision)
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
            DataError: An image cannot be read, and `skip_invalid` is not given.
            TrainingError: A reading process died.
        """
        looks = self._detect_in_tiles(records) if self._tiled else self._detect_in_images(records)
        for seen in self._readable(looks, skip_invalid=skip_invalid):
            yield from seen.views

    def masks(
        self, records: Sequence[ImageRecord], found: Mapping[ImageId, Instances]
    ) -> Iterator[tuple[ImageRecord, Instances]]:
        """Masks for given boxes: those of a fusion, a refinement, or any other tool.

        Args:
            records: Images to read.
            found: By image id its instances in original pixels, in main memory.

        Yields:
            Each record once, its instances with masks, and the IoU that is predicted of them where the detector ranks
            by it; their scores as they were.

        Raises:
            DataError: An image cannot be read.
            TypeError: The detector has no masks.
        """
        looks = self._draw_in_tiles(records, found) if self._tiled else self._draw_in_images(records, found)
        for seen in self._readable(looks, skip_invalid=False):
            yield from seen.views

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
        look = self._look_at_tiles if self._tiled else self._look_at_images
        for seen in self._readable(look(records), skip_invalid=skip_invalid):
            yield from seen.views

    def _readable(self, looks: Iterable[_Seen[T]], *, skip_invalid: bool) -> Iterator[_Seen[T]]:
        """The same, with the model in evaluation mode; images that cannot be read are told or end it."""
        with self._evaluating():
            for seen in looks:
                if seen.failures and not skip_invalid:
                    raise seen.failures[0]
                self.findings.extend(finding for error in seen.failures for finding in _as_warnings(error))
                yield seen

    @property
    def _tiled(self) -> bool:
        return self.config.tile_side is not None

    def _loaded(self, records: Sequence[ImageRecord]) -> Iterator[tuple[Loaded, Views]]:
        """A few images at a time in all their views, those of similar aspect together."""
        ordered = [records[position] for position in aspect_order([record.size_hw for record in records])]
        size = self.config.batch_size
        groups = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        with TaskStream(Load(self.config.sizes_for), self.config.workers) as stream:
            for loaded in stream.run(groups):
                yield loaded, self._views_of(loaded.batches)

    def _views_of(self, batches: Sequence[Batch]) -> Views:
        """All views of the images that every batch shows at another size."""
        placed = [batch.to(self.device) for batch in batches]
        if self.config.flip:
            placed = [view for batch in placed for view in (batch, flip_horizontally(batch))]
        budget = KEPT_BYTES.get(self.device.type, 0) if self.model.has_masks else 0
        return Views(network=self._network, batches=placed, budget=budget)

    def _look_at_images(self, records: Sequence[ImageRecord]) -> Iterator[_Seen[list[Instances]]]:
        """Candidates in a few whole images at a time."""
        for loaded, views in self._loaded(records):
            found = (in_original_pixels(seen) for seen in views.candidates(self._limits))
            yield _Seen(zip(loaded.records, found, strict=True), loaded.failures)

    def _detect_in_images(self, records: Sequence[ImageRecord]) -> Iterator[_Seen[Instances]]:
        """Detections in a few whole images at a time; features are computed once for boxes and masks, if they fit."""
        for loaded, views in self._loaded(records):
            found = [self._suppressed(in_original_pixels(seen)) for seen in views.candidates(self._limits)]
            if self.model.has_masks:
                found = [each.ranked_by_masks() for each in mean_masks(views, found)]
            yield _Seen(zip(loaded.records, found, strict=True), loaded.failures)

    def _draw_in_images(
        self, records: Sequence[ImageRecord], found: Mapping[ImageId, Instances]
    ) -> Iterator[_Seen[Instances]]:
        for loaded, views in self._loaded(records):
            drawn = mean_masks(views, [found[record.id] for record in loaded.records])
            yield _Seen(zip(loaded.records, drawn, strict=True), loaded.failures)

    def _suppressed(self, views: Sequence[Instances]) -> Instances:
        return suppress_instances(Instances.cat(views), self.config.suppress, self.class_names)

    def _samples(
        self, records: Sequence[ImageRecord], look: Callable[[ImageRecord, Sample], T]
    ) -> Iterator[_Seen[T]]:
        """One image at a time."""
        for record in records:
            try:
                sample = read_sample(record)
            except DataError as error:
                yield _Seen((), (error,))
            else:
                yield _Seen([(record, look(record, sample))], ())

    def _look_at_tiles(self, records: Sequence[ImageRecord]) -> Iterator[_Seen[list[Instances]]]:
        """Candidates of one image at a time, tile by tile."""
        return self._samples(records, lambda _, sample: [self._look_through_tiles(sample)])

    def _detect_in_tiles(self, records: Sequence[ImageRecord]) -> Iterator[_Seen[Instances]]:
        """Detections of one image at a time, tile by tile."""

        def detect(_: ImageRecord, sample: Sample) -> Instances:
            found = self._suppressed([self._look_through_tiles(sample)])
            return self._drawn_in_tiles(sample, found).ranked_by_masks() if self.model.has_masks else found

        return self._samples(records, detect)

    def _draw_in_tiles(
        self, records: Sequence[ImageRecord], found: Mapping[ImageId, Instances]
    ) -> Iterator[_Seen[Instances]]:
        return self._samples(records, lambda record, sample: self._drawn_in_tiles(sample, found[record.id]))

    def _drawn_in_tiles(self, sample: Sample, found: Instances) -> Instances:
        return tile_masks(
            sample,
            self._grid(sample.size_hw),
            found,
            sizes_for=self.config.sizes_for,
            views_of=self._views_of,
            batch_size=self.config.batch_size,
        )

    def _grid(self, size_hw: tuple[int, int]) -> TileGrid:
        return TileGrid.over(size_hw, self.config.tile_side or max(size_hw), self.config.overlap)

    def _look_through_tiles(self, sample: Sample) -> Instances:
        """Candidates in one image, in original pixels, from overlapping tiles and perhaps a view of the whole."""
        config = self.config
        grid = self._grid(sample.size_hw)
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

    def _candidates_in(self, sample: Sample, windows: Sequence[TileWindow]) -> list[Instances]:
        """Candidates in each window of an image, at all scales together, in original pixels and main memory."""
        views = self._views_of(tiles_at_all_sizes(sample, windows, self.config.sizes_for))
        return [Instances.cat(in_original_pixels(seen)) for seen in views.candidates(self._limits)]

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

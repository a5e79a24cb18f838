"""Run a segmenter over images: read, resize, score every pixel, and put the views of an image together.

    records ── read once, at every size, flipped, or tile by tile ──► Segmenter.scores of each view
        ── each laid over the image at the largest size, through its frame; the mean where several meet ──► ScoreMap

The sizes, tiles and batches are those of a detector (`PredictConfig`); suppression means nothing here.
P: planes; h, w: of a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.data.coco import CocoDataset, ImageRecord
from scantling.data.samples.loader import aspect_order
from scantling.data.score_maps import PackedMap
from scantling.data.workers import TaskStream
from scantling.errors import DataError, Finding, Severity
from scantling.models.contract import Segmenter
from scantling.ops.masks import pixels_in, seen_through
from scantling.predict.masks import tiles_at_all_sizes
from scantling.predict.predictor import PredictConfig
from scantling.predict.tiles import TileGrid
from scantling.predict.tta import flip_horizontally
from scantling.predict.views import Load, inference, read_sample
from scantling.structures.sample import Batch, Frame
from scantling.structures.score_maps import ScoreMap, ScoreMaps
from scantling.train.devices import ALONE, Processes

Seen = tuple[Frame, NDArray[np.float32]]
"""Where a view lies in its image, and its scores (P, h, w)."""


class ScorePredictor:
    """A segmenter ready to look at images.

    Args:
        model: Moved to the device; in evaluation mode while it predicts.
        config: Sizes, tiles, batches; `suppress` is not looked at.
        device: Where the model runs.

    Raises:
        ConfigError: `scales` is `auto`.

    Attributes:
        findings: Warnings about images left out so far.
    """

    def __init__(self, model: Segmenter, config: PredictConfig, device: torch.device | str = "cpu") -> None:
        config.sizes_for((1, 1))
        self.model = model.to(device)
        self.config = config
        self.device = torch.device(device)
        self.findings: list[Finding] = []

    def predict(
        self, records: Sequence[ImageRecord], *, skip_invalid: bool = False
    ) -> Iterator[tuple[ImageRecord, ScoreMap]]:
        """The score map of each readable image; images of similar aspect come together.

        Args:
            records: Images to read; may be empty.
            skip_invalid: Go on after an image that cannot be read; it is then a warning in `findings`.

        Raises:
            DataError: An image cannot be read, and `skip_invalid` is not given.
        """
        training = self.model.training
        self.model.eval()
        try:
            for shown, failed in self._in_tiles(records) if self.config.tile_side else self._whole(records):
                if failed and not skip_invalid:
                    raise failed[0]
                told = (finding for error in failed for finding in error.findings)
                self.findings += [replace(finding, severity=Severity.WARNING) for finding in told]
                for record, views in shown:
                    yield record, self._map_of(record, views)
        finally:
            self.model.train(training)

    def _whole(
        self, records: Sequence[ImageRecord]
    ) -> Iterator[tuple[Iterable[tuple[ImageRecord, list[Seen]]], Sequence[DataError]]]:
        """A few images at a time, in all their views."""
        ordered = [records[position] for position in aspect_order([record.size_hw for record in records])]
        size = self.config.batch_size
        groups = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        with TaskStream(Load(self.config.sizes_for), self.config.workers) as stream:
            for loaded in stream.run(groups):
                seen = [self._seen(batch) for batch in loaded.batches]
                views = [list(chain(*each)) for each in zip(*seen, strict=True)]
                yield zip(loaded.records, views, strict=True), loaded.failures

    def _in_tiles(
        self, records: Sequence[ImageRecord]
    ) -> Iterator[tuple[Iterable[tuple[ImageRecord, list[Seen]]], Sequence[DataError]]]:
        """One image at a time, a few tiles at a time, and the whole image where `overview` asks for it."""
        config = self.config
        for record in records:
            try:
                sample = read_sample(record)
            except DataError as error:
                yield (), (error,)
                continue
            grid = TileGrid.over(record.size_hw, config.tile_side or max(record.size_hw), config.overlap)
            windows, step = grid.windows, config.batch_size
            groups = [windows[start : start + step] for start in range(0, len(windows), step)]
            if config.overview and len(windows) > 1:
                groups.append([(0, 0, *record.size_hw[::-1])])
            views = list[Seen]()
            for some in groups:
                for batch in tiles_at_all_sizes(sample, some, config.sizes_for):
                    views += chain(*self._seen(batch))
            yield [(record, views)], ()

    def _seen(self, batch: Batch) -> list[list[Seen]]:
        """For each picture of a batch its views: as it is, and flipped where that is asked for."""
        placed = batch.to(self.device)
        views = [placed, flip_horizontally(placed)] if self.config.flip else [placed]
        found = list[list[Seen]]()
        for view in views:
            with inference(self.device, self.config.precision):
                scores: list[Tensor] = self.model.scores(view)
            found.append([(f, s.float().cpu().numpy()) for f, s in zip(view.frames, scores, strict=True)])
        return [list(each) for each in zip(*found, strict=True)]

    def _map_of(self, record: ImageRecord, views: Sequence[Seen]) -> ScoreMap:
        """What the views of an image say together, at the largest of its sizes."""
        part = record.size_hw
        if self.config.tile_side:
            part = (min(part[0], self.config.tile_side), min(part[1], self.config.tile_side))
        largest = max(self.config.sizes_for(part), key=lambda size: size[0] * size[1])
        down, across = (mine / own for mine, own in zip(largest, part, strict=True))
        size_hw = (max(1, round(record.size_hw[0] * down)), max(1, round(record.size_hw[1] * across)))
        scale = np.array(
            [[size_hw[1] / record.size_hw[1], 0, 0], [0, size_hw[0] / record.size_hw[0], 0]], dtype=np.float64
        )
        frame = Frame.identity(record.size_hw).then(scale, size_hw)
        return ScoreMap.from_scores(mean_of(views, frame), frame, by_category=self.model.by_category)


def mean_of(views: Sequence[Seen], frame: Frame) -> NDArray[np.float32]:
    """The mean of the scores of several views, each counted where it shows the image.

    Args:
        views: Of one image; at least one, and together they show all of it.
        frame: Of the outcome.

    Returns:
        (P, h, w) of the size of `frame`.
    """
    (seen, scores), *others = views
    if not others and np.allclose(seen.matrix, frame.matrix) and scores.shape[1:] == frame.size_hw:
        return scores
    total = np.zeros((len(scores), *frame.size_hw), dtype=np.float32)
    counts = np.zeros(frame.size_hw, dtype=np.float32)
    back = Frame(matrix=frame.inverse(), original_hw=frame.size_hw, size_hw=frame.original_hw)
    for view, planes in views:
        placed = back.then(view.matrix, view.size_hw)  # the outcome's pixels -> the view's
        corners = np.array([[0, 0], [view.size_hw[1], view.size_hw[0]]], dtype=np.float64)
        ends = corners @ placed.inverse()[:, :2].T + placed.inverse()[:, 2]
        box = (*ends.min(axis=0).tolist(), *ends.max(axis=0).tolist())
        x1, y1, x2, y2 = window = pixels_in(box, frame.size_hw)
        for plane, own in zip(total, planes, strict=True):
            plane[y1:y2, x1:x2] += seen_through(np.ascontiguousarray(own), placed.matrix, window)
        counts[y1:y2, x1:x2] += 1
    return (total / np.maximum(counts, 1)).astype(np.float32)


def find_score_maps(
    model: Segmenter,
    config: PredictConfig,
    dataset: CocoDataset,
    device: torch.device,
    processes: Processes = ALONE,
) -> list[PackedMap]:
    """Score maps of every image of a data set, in its order.

    Args:
        model: The same on every process.
        config: How to look at the images.
        dataset: The same on every process; each looks at every so many-th image.
        device: Where this process computes.
        processes: Those that share the work; all must call this.

    Returns:
        On the main process all of them, on the others none.

    Raises:
        DataError: An image cannot be read.
        PeerFailed: Another process met a failure.
    """
    with processes.together():
        predictor = ScorePredictor(model, config, device)
        part = dataset.images[processes.rank :: processes.world]
        found = {dataset.index_of[record.id]: PackedMap.of(one) for record, one in predictor.predict(part)}
    merged = {key: one for each in processes.gather_on_main(found) for key, one in each.items()}
    return [merged[position] for position in sorted(merged)]


def as_score_maps(packed: Sequence[PackedMap]) -> ScoreMaps:
    """Maps held in memory, packed, one of which is unpacked when it is asked for."""
    return ScoreMaps(len(packed), lambda position: packed[position].unpack())

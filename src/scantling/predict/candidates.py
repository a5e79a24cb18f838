"""Everything a detector sees in a data set before suppression, kept so that it is computed once.

    Predictor.candidates ── one set per image and view (test size) ──► Candidates ── file of a run
                                                 │
        at_views(some) ── what fewer test sizes would have given
        models.suppression.suppress_detections ── detections: thresholds are tuned and compared without the network

N: candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.data.detections import load_detections, save_detections
from scantling.errors import DataError
from scantling.models.contract import Detector
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.structures.detections import Detections
from scantling.structures.instances import Instances
from scantling.train.devices import ALONE, Processes
from scantling.train.progress import counted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Candidates of every image of a data set.

    Attributes:
        detections: N rows, in original pixels, image by image in the data set's order.
        views: (N,) int32, the view each was seen in; see `Predictor.candidates`.
    """

    detections: Detections
    views: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.views)

    @classmethod
    def cat(cls, parts: Sequence[Candidates]) -> Self:
        """The rows of several sets, one after the other, such as those of the folds."""
        views = [part.views for part in parts]
        return cls(
            detections=Detections.cat([part.detections for part in parts]),
            views=np.concatenate(views) if views else np.zeros(0, dtype=np.int32),
        )

    @classmethod
    def of_views(cls, views: Sequence[Instances], *, position: int) -> Self:
        """What the views of one image show.

        Args:
            views: Scored instances of each view, in original pixels.
            position: Of the image in the data set.
        """
        counts = [len(view) for view in views]
        return cls(
            detections=Detections.cat([view.to_detections(position) for view in views]),
            views=np.repeat(np.arange(len(views), dtype=np.int32), counts),
        )

    def at_views(self, views: Sequence[int]) -> Detections:
        """What these views alone show."""
        return self.detections[np.isin(self.views, list(views))]

    def placed(self, positions: NDArray[np.int64]) -> Candidates:
        """The same rows in a larger data set.

        Args:
            positions: For each image of this data set its position in the larger one.
        """
        moved = self.detections.replace(images=positions[self.detections.images])
        return Candidates(detections=moved, views=self.views)

    def save(self, path: Path) -> None:
        """Write a file that `load` reads, atomically."""
        save_detections(self.detections, path, views=self.views)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing or is none of these.
        """
        detections, extra = load_detections(path)
        if "views" not in extra:
            raise DataError(f"{path}: holds detections, not candidates (no views)")
        return cls(detections=detections, views=extra["views"])


def find_candidates(
    model: Detector,
    config: PredictConfig,
    dataset: CocoDataset,
    device: torch.device,
    processes: Processes = ALONE,
) -> Candidates:
    """Candidates of every image of a data set.

    Args:
        model: The same on every process.
        config: How to look at the images; of `suppress`, the score thresholds and the number of candidates count.
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
        predictor = Predictor(model, config, dataset.class_names, device)
        found = {}
        part = dataset.images[processes.rank :: processes.world]
        for record, views in counted(predictor.candidates(part), len(part)):
            position = dataset.index_of[record.id]
            found[position] = Candidates.of_views(views, position=position)
    merged = {key: part for each in processes.gather_on_main(found) for key, part in each.items()}
    return Candidates.cat([merged[position] for position in sorted(merged)])


def find_masks(
    model: Detector,
    config: PredictConfig,
    dataset: CocoDataset,
    rows: Detections,
    device: torch.device,
    processes: Processes = ALONE,
) -> Detections:
    """Given boxes with the masks that a detector draws for them: soft ones, or those of the image through tiles.

    Args:
        model: The same on every process; one that draws masks.
        config: How to look at the images.
        dataset: The same on every process; each looks at every so many-th image that has boxes.
        rows: N boxes in original pixels, in any order; may be none.
        device: Where this process computes.
        processes: Those that share the work; all must call this.

    Returns:
        On the main process the same rows with masks, on the others none.

    Raises:
        DataError: An image cannot be read.
        PeerFailed: Another process met a failure.
    """
    with processes.together():
        predictor = Predictor(model, config, dataset.class_names, device)
        own = {int(image): np.flatnonzero(rows.images == image) for image in np.unique(rows.images)}
        shown = dict(list(own.items())[processes.rank :: processes.world])
        records = [dataset.images[image] for image in shown]
        boxes = {
            dataset.images[image].id: Instances.from_detections(
                rows[index].replace(masks=None, soft_masks=None, mask_ious=None),
                dataset.images[image].size_hw,
            )
            for image, index in shown.items()
        }
        drawn = {}
        for record, found in counted(predictor.masks(records, boxes), len(records)):
            image = dataset.index_of[record.id]
            seen = found.to_detections(image)
            drawn[image] = rows[shown[image]].replace(
                masks=seen.masks, soft_masks=seen.soft_masks, mask_ious=seen.mask_ious
            )
    parts = {image: part for each in processes.gather_on_main(drawn) for image, part in each.items()}
    if not parts:
        return rows[:0]
    order = np.concatenate([own[image] for image in parts])
    return Detections.cat(list(parts.values()))[np.argsort(order)]

"""Predicting a whole data set, each process its part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from scantling.data.coco import CocoDataset, to_results
from scantling.models.contract import Detector
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.train.devices import ALONE, Processes


def predict_dataset(
    model: Detector,
    config: PredictConfig,
    dataset: CocoDataset,
    device: torch.device,
    processes: Processes = ALONE,
) -> list[Mapping[str, Any]]:
    """COCO results of every image of a data set, in its order.

    Args:
        model: The same on every process.
        config: How to look at the images.
        dataset: The same on every process; each predicts every so many-th image.
        device: Where this process computes.
        processes: Those that share the work; all must call this.

    Returns:
        On the main process the results, on the others nothing.

    Raises:
        DataError: An image cannot be read.
        PeerFailed: Another process met a failure.
    """
    with processes.together():
        predictor = Predictor(model, config, dataset.class_names, device)
        part = dataset.images[processes.rank :: processes.world]
        found = {
            record.id: to_results(record.id, instances, dataset.categories)
            for record, instances in predictor.predict_records(part)
        }
    parts = processes.gather_on_main(found)
    if not parts:
        return []
    whole = {image_id: results for each in parts for image_id, results in each.items()}
    return [result for record in dataset.images for result in whole[record.id]]

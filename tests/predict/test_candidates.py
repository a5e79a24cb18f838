"""Candidates: all of what is seen, view by view, and what suppression makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.colour_detector import ColourDetector
from scantling.data.coco import Category
from scantling.data.coco.dataset import CocoDataset
from scantling.data.detections import save_detections
from scantling.errors import DataError
from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.predict.candidates import Candidates, find_candidates
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.structures.instances import Instances

BOXES = {0: (5, 6, 45, 46), 1: (60, 10, 120, 70), 2: (30, 55, 50, 80)}
NAMES = ("red", "green", "blue")


@pytest.fixture
def dataset(paint, tmp_path) -> CocoDataset:
    records = (
        paint("a.png", (89, 131), BOXES),
        paint("b.png", (131, 89), {0: (5, 6, 45, 46)}),
        paint("c.png", (60, 60), {}),
    )
    return CocoDataset(
        file=tmp_path / "x.json",
        image_root=tmp_path,
        images=records,
        annotations=((), (), ()),
        categories=tuple(Category(10 * (i + 1), name) for i, name in enumerate(NAMES)),
    )


def config(**changes) -> PredictConfig:
    return PredictConfig(scales=(60, 90), long_side=200, batch_size=2, **changes)


def test_every_view_of_every_image_is_there_in_the_order_of_the_data_set(dataset):
    found = find_candidates(ColourDetector(), config(), dataset, torch.device("cpu"))
    assert (np.diff(found.detections.images) >= 0).all()
    assert set(found.detections.images) == {0, 1}
    assert set(found.views) == {0, 1}
    one = find_candidates(
        ColourDetector(), config().model_copy(update={"scales": 90}), dataset, torch.device("cpu")
    )
    again = found.at_views([1])
    assert np.array_equal(again.boxes, one.detections.boxes)
    assert np.array_equal(again.scores, one.detections.scores)
    assert np.array_equal(again.labels, one.detections.labels)


def test_candidates_suppressed_are_what_the_predictor_detects(dataset):
    settings = config(suppress=SuppressConfig(method="soft_linear", iou_threshold=0.3))
    model = ColourDetector()
    found = find_candidates(model, settings, dataset, torch.device("cpu"))
    predictor = Predictor(model, settings, NAMES)
    for record, instances in predictor.predict_records(dataset.images):
        rows = found.detections[found.detections.images == dataset.index_of[record.id]]
        pooled = Instances(
            size_hw=record.size_hw,
            boxes=torch.from_numpy(rows.boxes).float(),
            labels=torch.from_numpy(rows.labels),
            scores=torch.from_numpy(rows.scores).float(),
        )
        expected = suppress_instances(pooled, settings.suppress, NAMES)
        assert torch.equal(instances.boxes, expected.boxes)
        assert torch.equal(instances.scores, expected.scores)


def test_they_come_back_from_their_file(dataset, tmp_path):
    found = find_candidates(ColourDetector(), config(), dataset, torch.device("cpu"))
    found.save(tmp_path / "c.safetensors")
    loaded = Candidates.load(tmp_path / "c.safetensors")
    for name in ("images", "labels", "scores", "boxes"):
        assert np.array_equal(getattr(loaded.detections, name), getattr(found.detections, name))
    assert np.array_equal(loaded.views, found.views)
    save_detections(found.detections, tmp_path / "d.safetensors")
    with pytest.raises(DataError, match=r"d\.safetensors: holds detections, not candidates"):
        Candidates.load(tmp_path / "d.safetensors")


def test_rows_of_folds_find_their_place_in_the_whole(dataset):
    parts = [dataset.subset(["a.png"]), dataset.subset(["b.png", "c.png"])]
    found = [find_candidates(ColourDetector(), config(), part, torch.device("cpu")) for part in parts]
    places = [np.array([0]), np.array([1, 2])]
    joined = Candidates.cat([f.placed(p) for f, p in zip(found, places, strict=True)])
    whole = find_candidates(ColourDetector(), config(), dataset, torch.device("cpu"))
    assert np.array_equal(joined.detections.images, whole.detections.images)
    assert np.array_equal(joined.detections.boxes, whole.detections.boxes)
    assert len(Candidates.cat([])) == 0

"""A small run on real pixels: two images with labels and predictions of every outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from scantling.data.coco import CocoDataset, read_coco
from scantling.evaluate.coco_eval import evaluate_results
from scantling.evaluate.saved import kinds_of

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """Two images of 160 x 120, three bolts and a category with a hostile name; the second image is missing."""
    content = {
        "images": [
            {"id": 1, "file_name": "first.png", "width": 160, "height": 120},
            {"id": 2, "file_name": 'quote"<b>.png', "width": 160, "height": 120},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 30], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [70, 20, 24, 24], "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 3, "bbox": [60, 40, 50, 50], "iscrowd": 0},
            {"id": 4, "image_id": 2, "category_id": 3, "bbox": [0, 0, 20, 20], "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "bolt"}, {"id": 7, "name": HOSTILE}],
    }
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    pixels = np.zeros((120, 160, 3), dtype=np.uint8)
    pixels[:, :80] = (0, 0, 255)  # left half red, in OpenCV's order
    cv2.imwrite(str(tmp_path / "first.png"), pixels)
    return read_coco(file, tmp_path)


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """A hit, a box on nothing, a bolt taken for the other category, and a doubtful box on the crowd region."""
    return [
        {"image_id": 1, "category_id": 3, "bbox": [10.0, 12.0, 40.0, 30.0], "score": 0.95},
        {"image_id": 1, "category_id": 3, "bbox": [110.0, 80.0, 30.0, 30.0], "score": 0.9},
        {"image_id": 2, "category_id": 7, "bbox": [60.0, 40.0, 50.0, 50.0], "score": 0.8},
        {"image_id": 2, "category_id": 3, "bbox": [0.0, 0.0, 12.0, 12.0], "score": 0.1},
    ]


def measured(
    dataset: CocoDataset, stages: Mapping[str, Sequence[dict[str, Any]]], *, bootstrap: int = 0
) -> dict[str, Any]:
    """What a run has measured of the results of its stages, as `RunFacts` takes it; the last are kept themselves."""
    found = {
        name: [
            evaluate_results(dataset, results, iou_type=kind, bootstrap=bootstrap)
            for kind in kinds_of(dataset, results)
        ]
        for name, results in stages.items()
    }
    return {"stages": found, "last": list(stages.values())[-1]}

"""A folder of small pictures, and a predictor that finds what is painted in them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from reference.colour_detector import CLASS_NAMES, ColourDetector
from scantling.data.coco import Category
from scantling.predict.loaded import LoadedDetector
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.run.shards.model import ChosenModel

NUM_PHOTOS = 11


def write_photos(folder: Path, count: int = NUM_PHOTOS) -> Path:
    """Pictures with a rectangle each at a place of its own; every third in a sub-folder, the fourth is damaged."""
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        pixels = np.zeros((40, 60, 3), dtype=np.uint8)
        pixels[4 : 20 + number % 8, 5 + number % 9 : 30, number % 3] = 255
        cv2.imwrite(str(folder / ("sub" if number % 3 == 0 else "") / f"{number}.png"), pixels)
    (folder / "4.png").write_bytes(b"nothing")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def colour_detector() -> LoadedDetector:
    """Its category ids are 1, 2, 3."""
    predictor = Predictor(ColourDetector(), PredictConfig(scales=40), CLASS_NAMES)
    return LoadedDetector(predictor=predictor, categories=tuple(map(Category, (1, 2, 3), CLASS_NAMES)))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the checkpoint of that predictor."""
    monkeypatch.setattr(ChosenModel, "load", lambda self, device: colour_detector())
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    return path

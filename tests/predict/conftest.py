"""Pictures to predict on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from scantling.data.coco import ImageRecord

Painter = Callable[..., ImageRecord]


@pytest.fixture
def paint(tmp_path: Path) -> Painter:
    """Writes a picture with rectangles {label: box, ...} and gives its record."""

    def paint(
        name: str, size_hw: tuple[int, int], rectangles: dict[int, tuple[int, int, int, int]]
    ) -> ImageRecord:
        pixels = np.zeros((*size_hw, 3), dtype=np.uint8)
        for label, (x1, y1, x2, y2) in rectangles.items():
            pixels[y1:y2, x1:x2, 2 - label] = 255  # OpenCV writes BGR
        path = tmp_path / name
        cv2.imwrite(str(path), pixels)
        return ImageRecord(id=name, file_name=name, path=path, size_hw=size_hw)

    return paint

"""A small sound COCO file to break in tests, and image files of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Content = dict[str, Any]
Writer = Callable[[object], Path]


@pytest.fixture
def content() -> Content:
    """Two images of 100 x 80 with three objects of two classes; category ids with gaps, listed in any order."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 4, "file_name": "sub/b.png", "width": 100, "height": 80},
        ],
        "annotations": [
            {
                "id": 31,
                "image_id": 7,
                "category_id": 90,
                "bbox": [10, 20, 30, 40],
                "area": 1200,
                "iscrowd": 0,
                "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]],
            },
            {
                "id": 12,
                "image_id": 7,
                "category_id": 3,
                "bbox": [0, 0, 2, 80],
                "area": 160,
                "iscrowd": 1,
                "segmentation": {"size": [80, 100], "counts": [0, 160, 7840]},
            },
            {
                "id": 50,
                "image_id": 4,
                "category_id": 3,
                "bbox": [50.5, 30.25, 10.5, 20],
                "segmentation": [[50.5, 30.25, 61, 30.25, 61, 50.25]],
            },
        ],
        "categories": [{"id": 90, "name": "dent"}, {"id": 3, "name": "scratch", "supercategory": "surface"}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write text, bytes, or anything as JSON to `annotations/train.json`."""

    def write(value: object) -> Path:
        path = tmp_path / "annotations" / "train.json"
        path.parent.mkdir(exist_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The image folder of `content`, with its two pictures."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for name, level in (("a.png", 50), ("sub/b.png", 200)):
        Image.fromarray(np.full((80, 100, 3), level, np.uint8)).save(root / name)
    return root

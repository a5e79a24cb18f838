"""Pictures of bright rectangles on a dark, noisy ground, with their labels: something a small refiner learns fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scantling.data.coco import CocoDataset, read_coco

SIZE_HW = (96, 128)
TINY = {"backbone": "test_resnet", "side": 32, "hidden": 8}
"""Settings of a refiner so small that building and running it takes milliseconds."""

Painter = Callable[..., CocoDataset]


def paint(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[list[int]]]:
    """A picture (H, W, 3) and the corners of its rectangles, none within 8 px of another."""
    height, width = SIZE_HW
    pixels = rng.normal(60, 8, (height, width, 3))
    boxes: list[list[int]] = []
    while len(boxes) < count:
        w, h = rng.integers(16, 40, 2)
        x, y = int(rng.integers(4, width - w - 4)), int(rng.integers(4, height - h - 4))
        box = [x, y, int(x + w), int(y + h)]
        if all(
            box[2] + 8 < b[0] or b[2] + 8 < box[0] or box[3] + 8 < b[1] or b[3] + 8 < box[1] for b in boxes
        ):
            boxes.append(box)
            pixels[box[1] : box[3], box[0] : box[2]] += rng.uniform(80, 150, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8), boxes


@pytest.fixture(scope="session")
def painted(tmp_path_factory) -> Painter:
    """Make a data set of painted pictures: `painted(images, boxes_per_image, seed)`."""

    def make(images: int, per_image: int = 2, seed: int = 0) -> CocoDataset:
        root = tmp_path_factory.mktemp("painted")
        (root / "images").mkdir()
        rng = np.random.default_rng(seed)
        document = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 3, "name": "slab"}, {"id": 9, "name": "plate"}],
        }
        for number in range(images):
            pixels, boxes = paint(rng, per_image)
            name = f"{number}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            document["images"].append(
                {"id": number + 1, "file_name": name, "height": SIZE_HW[0], "width": SIZE_HW[1]}
            )
            for x1, y1, x2, y2 in boxes:
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": number + 1,
                        "category_id": 3 if x2 - x1 < y2 - y1 else 9,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "iscrowd": 0,
                    }
                )
        path = root / "labels.json"
        path.write_text(json.dumps(document))
        return read_coco(path, root / "images")

    return make


@pytest.fixture(scope="session")
def slabs(painted) -> CocoDataset:
    """Six pictures with two rectangles each."""
    return painted(6)


@pytest.fixture
def picture() -> Path:
    """One picture's pixels without a file."""
    return paint(np.random.default_rng(5), 2)[0]

"""Pictures whose objects are painted, so small that a whole pretraining takes seconds.

Each category is a colour pattern of its own; its crops differ in light, zoom, place and noise, which is what views of
one crop differ in too.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from scantling.data.coco import read_coco
from scantling.pretrain.crop_store import CropStore, open_store
from scantling.pretrain.crops import CropFileConfig, CropPlan, object_crops

SIDE, PER_ROW, CELL = 32, 4, 40
TINY = {
    "backbone": "resnet10t",
    "side": SIDE,
    "batch_size": 8,
    "epochs": 2,
    "queue": 16,
    "embedding": 16,
    "log_every": 1,
    "knn_every": 1,
    "workers": 0,
}


def pattern(label: int) -> np.ndarray:
    """The look of a category, 8 x 8 fields."""
    rng = np.random.default_rng(label)
    return rng.integers(40, 216, (4, 4, 3)).astype(np.float32)


def paint(label: int, rng: np.random.Generator) -> np.ndarray:
    """One object (CELL, CELL, 3) uint8 in changing light, zoom, place and noise."""
    whole = cv2.resize(pattern(label), (64, 64), interpolation=cv2.INTER_NEAREST)
    side = int(rng.integers(44, 65))
    left, top = rng.integers(0, 65 - side, 2)
    shown = cv2.resize(whole[top : top + side, left : left + side], (CELL, CELL))
    light = rng.uniform(0.5, 1.5) * rng.uniform(0.8, 1.2, 3)
    return np.clip(shown * light + rng.normal(0, 12, shown.shape), 0, 255).astype(np.uint8)


def write_painted(
    root: Path, *, images: int = 6, categories: int = 4, seed: int = 0, split: str = "train"
) -> Path:
    """A COCO data set of pictures with 4 x 4 objects each; returns its folder."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    for image in range(images):
        canvas = np.full((PER_ROW * CELL, PER_ROW * CELL, 3), 128, np.uint8)
        for place in range(PER_ROW**2):
            label = int(rng.integers(categories))
            y, x = (CELL * v for v in divmod(place, PER_ROW))
            canvas[y : y + CELL, x : x + CELL] = paint(label, rng)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [x + 2, y + 2, CELL - 4, CELL - 4],
                }
            )
        name = f"{split}{image}.png"
        cv2.imwrite(str(root / "images" / name), canvas)
        records.append({"id": image, "file_name": name, "width": canvas.shape[1], "height": canvas.shape[0]})
    content = {
        "images": records,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": f"pattern {label}"} for label in range(categories)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def painted_plan(root: Path, config: CropFileConfig | None = None) -> CropPlan:
    """Crops of what `write_painted` wrote."""
    dataset = read_coco(root / "annotations" / "train.json", root / "images")
    return object_crops({"train": dataset}, config or CropFileConfig())


def painted_store(root: Path, folder: Path) -> CropStore:
    """The same, cut out."""
    return open_store(folder, painted_plan(root), CropFileConfig(), max_pixels=SIDE * SIDE * 5)

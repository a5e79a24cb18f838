"""A tiny data set of painted ellipses with masks, polygons and run lengths in turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SIZE_HW = (48, 60)
COLOURS = ((220, 80, 80), (80, 220, 80))
CATEGORIES = [{"id": 3, "name": "dent"}, {"id": 8, "name": "spot"}]


def write_masked_parts(root: Path, splits: dict[str, int], seed: int = 0) -> None:
    """Images of 48 x 60 with two ellipses each, in COCO's layout.

    Args:
        root: Folder to make.
        splits: Number of images by split.
        seed: Of the places.
    """
    rng, first = np.random.default_rng(seed), 1
    for folder in ("annotations", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in splits.items():
        images, annotations = [], list[dict[str, Any]]()
        for number in range(first, first + count):
            pixels = rng.integers(0, 60, (*SIZE_HW, 3)).astype(np.uint8)
            for place in range(2):
                label, mask = int(rng.integers(2)), _ellipse(rng)
                pixels[mask > 0] = COLOURS[label]
                shape = _polygon(mask) if place else _run_lengths(mask)
                names = {"id": 2 * number + place, "image_id": number, "category_id": CATEGORIES[label]["id"]}
                annotations.append(
                    {
                        **names,
                        "bbox": list(cv2.boundingRect(mask)),
                        "area": int(mask.sum()),
                        "segmentation": shape,
                    }
                )
            cv2.imwrite(str(root / "images" / f"{number}.png"), pixels[:, :, ::-1])
            names = {"id": number, "file_name": f"{number}.png"}
            images.append({**names, "height": SIZE_HW[0], "width": SIZE_HW[1]})
        first += count
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def _ellipse(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros(SIZE_HW, dtype=np.uint8)
    middle = (int(rng.integers(14, SIZE_HW[1] - 14)), int(rng.integers(14, SIZE_HW[0] - 14)))
    axes, angle = tuple(rng.integers(6, 13, 2).tolist()), float(rng.integers(180))
    return cv2.ellipse(mask, middle, axes, angle, 0, 360, 1, -1)


def _polygon(mask: np.ndarray) -> list[list[float]]:
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [outlines[0].reshape(-1).astype(float).tolist()]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE_HW), "counts": rle["counts"].decode()}

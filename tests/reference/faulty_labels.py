"""Labels with planted faults: a grid of objects of two categories, what a detector and a refiner say of them, and the truth.

Every image of 320 x 240 has six objects of about 40 x 30 at the same places. Detections and refined boxes are exact to
about a pixel.
"""  # noqa: E501

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from scantling.data.coco import CocoDataset, read_coco
from scantling.data.truths import truths_of
from scantling.structures.detections import Detections

NUM_IMAGES = 24
PLACES = [(30.0 + 100 * column, 30.0 + 100 * row) for row in range(2) for column in range(3)]
EMPTY_PLACE = (80.0, 90.0)
LOOSE, MISSING, CLASS, DUPLICATE, SPURIOUS = 9, 21, 33, 45, 1001


@dataclass(frozen=True)
class Faulty:
    """What was written and what is true."""

    dataset: CocoDataset
    truth: dict[int, list[float]]
    clean: dict[str, Any]
    detections: Detections

    @property
    def refined(self) -> np.ndarray:
        """The true box of every label (of the twin, for the duplicate), off by up to half a pixel."""
        generator = np.random.default_rng(1)
        labels = truths_of(self.dataset)
        boxes = labels.boxes.copy()
        for row, identifier in enumerate(labels.ids):
            true = self.truth.get(DUPLICATE if identifier == 1002 else identifier)
            if true is not None:
                boxes[row] = [true[0], true[1], true[0] + true[2], true[1] + true[3]]
            else:
                boxes[row] += [14, -9, -8, 12]
        return boxes + generator.uniform(-0.5, 0.5, boxes.shape)


def clean_content(names: tuple[str, str] = ("bolt", "clip")) -> dict[str, Any]:
    """Exact labels of all images."""
    generator = np.random.default_rng(0)
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": 320, "height": 240, "camera": "left"}
        for n in range(1, NUM_IMAGES + 1)
    ]
    annotations = []
    for image in images:
        for number, (x, y) in enumerate(PLACES):
            width, height = 40 + generator.integers(-4, 5), 30 + generator.integers(-3, 4)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": (3, 90)[number % 2],
                    "bbox": [x, y, float(width), float(height)],
                    "area": float(width * height),
                    "iscrowd": 0,
                    "worker": "anna",
                }
            )
    categories = [{"id": 3, "name": names[0], "colour": "red"}, {"id": 90, "name": names[1]}]
    return {"info": {"year": 2026}, "images": images, "annotations": annotations, "categories": categories}


def with_faults(clean: dict[str, Any]) -> dict[str, Any]:
    """One fault of each kind planted."""
    content = copy.deepcopy(clean)
    by_id = {annotation["id"]: annotation for annotation in content["annotations"]}
    by_id[LOOSE]["bbox"][0] += 9
    by_id[LOOSE]["bbox"][3] += 8
    by_id[CLASS]["category_id"] = 93 - by_id[CLASS]["category_id"]
    twin = copy.deepcopy(by_id[DUPLICATE]) | {"id": 1002}
    twin["bbox"][0] += 2
    stray = copy.deepcopy(by_id[1]) | {"id": SPURIOUS, "image_id": 12, "bbox": [*EMPTY_PLACE, 38.0, 31.0]}
    content["annotations"] = [a for a in content["annotations"] if a["id"] != MISSING] + [stray, twin]
    return content


def make_faulty(folder: Path, names: tuple[str, str] = ("bolt", "clip"), *, pixels: bool = False) -> Faulty:
    """Write the labels (and pictures, if asked for), read them, and detect."""
    clean = clean_content(names)
    (folder / "images").mkdir(parents=True)
    file = folder / "labels.json"
    file.write_text(json.dumps(with_faults(clean)), encoding="utf-8")
    if pixels:
        draw_pictures(folder / "images", clean)
    dataset = read_coco(file, folder / "images")
    truth = {annotation["id"]: annotation["bbox"] for annotation in clean["annotations"]}
    return Faulty(dataset=dataset, truth=truth, clean=clean, detections=detect(clean))


def detect(clean: dict[str, Any]) -> Detections:
    """One good detection of every true object, and a poor one on nothing in every third image."""
    generator = np.random.default_rng(2)
    boxes = np.array([annotation["bbox"] for annotation in clean["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    images = np.array([annotation["image_id"] - 1 for annotation in clean["annotations"]])
    labels = np.array([int(annotation["category_id"] == 90) for annotation in clean["annotations"]])
    real = Detections(
        images=images,
        labels=labels,
        scores=generator.uniform(0.8, 1.0, len(boxes)),
        boxes=boxes + generator.uniform(-1, 1, boxes.shape),
    )
    wrong = np.arange(0, NUM_IMAGES, 3)
    false = Detections(
        images=wrong,
        labels=np.zeros(len(wrong), dtype=np.int64),
        scores=generator.uniform(0.1, 0.4, len(wrong)),
        boxes=np.tile([180.0, 80.0, 220.0, 110.0], (len(wrong), 1)),
    )
    return Detections.cat([real, false])


def draw_pictures(folder: Path, clean: dict[str, Any]) -> None:
    """Gray noise with a bright rectangle for every true object."""
    generator = np.random.default_rng(3)
    for image in clean["images"]:
        pixels = cv2.resize(generator.integers(0, 90, (24, 32, 3), dtype=np.uint8), (320, 240))
        for annotation in clean["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, width, height = (int(edge) for edge in annotation["bbox"])
                colour = (0, 200, 230) if annotation["category_id"] == 3 else (220, 120, 0)
                cv2.rectangle(pixels, (x, y), (x + width - 1, y + height - 1), colour, -1)
        cv2.imwrite(str(folder / image["file_name"]), pixels)

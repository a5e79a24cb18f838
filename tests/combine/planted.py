"""Data with a known best setting: parts that touch, parts with scattered duplicates, and noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scantling.data.coco import CocoDataset, ReadOptions, parse_coco
from scantling.structures.detections import Detections

Box = Sequence[float]


def dataset_of(
    truths: Iterable[tuple[int, int, Box]],
    *,
    num_images: int,
    names: Sequence[str],
    crowds: frozenset[int] = frozenset(),
) -> CocoDataset:
    """A data set from (image, label, box xyxy); ids start at 100, category ids have gaps and fall with the label."""
    images = [
        {"id": 100 + index, "file_name": f"{index}.png", "width": 400, "height": 400}
        for index in range(num_images)
    ]
    annotations: list[dict[str, Any]] = [
        {
            "id": number,
            "image_id": 100 + image,
            "category_id": 3 + 2 * label,
            "bbox": [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
            "iscrowd": int(number in crowds),
        }
        for number, (image, label, box) in enumerate(truths)
    ]
    categories = [{"id": 3 + 2 * label, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return parse_coco(content, Path("planted.json"), Path(), ReadOptions())


def detections_from(rows: Iterable[tuple[int, int, float, Box]]) -> Detections:
    """Detections from (image, label, score, box xyxy)."""
    images, labels, scores, boxes = zip(*rows, strict=True)
    return Detections(
        images=np.array(images),
        labels=np.array(labels),
        scores=np.array(scores, dtype=np.float64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
    )


def planted(num_images: int = 40, seed: int = 0) -> tuple[CocoDataset, Detections]:
    """Truth and candidates before suppression, of three categories.

    `tooth`: two objects of IoU 0.61, each found twice by boxes of IoU 0.9: best kept apart by a threshold above 0.61.
    `disc`: one object, found well once and badly (IoU 0.45 with the good one) three times by scores that are hardly
    lower, some of them higher in the next image: best cleared by a threshold below 0.45.
    `dirt`: objects and boxes anywhere, so nothing about it is sure.
    """
    generator = np.random.default_rng(seed)
    truths, rows = [], []
    for image in range(num_images):
        for left in (20.0, 44.0):  # of width 100: IoU (100 - 24) / (100 + 24) = 0.61
            box = np.array([left, 20, left + 100, 120])
            truths.append((image, 0, box))
            score = generator.uniform(0.6, 1)
            rows += [
                (image, 0, score, box),
                (image, 0, score - generator.uniform(0.01, 0.1), box + [5, 0, 5, 0]),
            ]
        disc = np.array([200.0, 200, 300, 300])
        truths.append((image, 1, disc))
        score = generator.uniform(0.4, 1)
        rows.append((image, 1, score, disc))
        rows += [
            (image, 1, score * generator.uniform(0.9, 0.99), disc + shift)
            for shift in ([38, 0, 38, 0], [-38, 0, -38, 0], [0, 38, 0, 38])
        ]
        corner = generator.uniform(0, 300, 2)
        truths.append((image, 2, [*corner, *(corner + 40)]))
        for _ in range(6):
            corner = corner + generator.normal(0, 12, 2)
            rows.append((image, 2, generator.uniform(0, 1), [*corner, *(corner + 40)]))
    return dataset_of(truths, num_images=num_images, names=("tooth", "disc", "dirt")), detections_from(rows)

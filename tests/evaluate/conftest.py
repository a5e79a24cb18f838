"""Small data sets written as COCO JSON and read back by the one reader, and random results on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from scantling.data.coco import CocoDataset, read_coco

Make = Callable[..., CocoDataset]
SIZE_HW = (240, 320)


@pytest.fixture
def make_dataset(tmp_path: Path) -> Make:
    """make(annotations, image_ids=..., categories=...) -> data set; images are 320 x 240 and need not exist."""

    def make(
        annotations: Sequence[dict[str, Any]],
        *,
        image_ids: Sequence[int | str] = (1, 2, 3),
        categories: Sequence[tuple[int, str]] = ((1, "bolt"),),
        folder: str = "data",
    ) -> CocoDataset:
        height, width = SIZE_HW
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in image_ids
            ],
            "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations)],
            "categories": [{"id": i, "name": name} for i, name in categories],
        }
        file = tmp_path / folder / "val.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
        return read_coco(file, tmp_path / folder)

    return make


@pytest.fixture
def random_case(make_dataset: Make) -> Callable[..., tuple[CocoDataset, list[dict[str, Any]]]]:
    """random_case(seed) -> data set with crowds, gaps and ties of neighbouring boxes, and results on it."""

    def build(seed: int, *, masks: bool = False) -> tuple[CocoDataset, list[dict[str, Any]]]:
        generator = np.random.default_rng(seed)
        ids, categories = [7, 3, 90, 12, 5], [(4, "nut"), (0, "bolt"), (90, "gap")]
        annotations = []
        for _ in range(40):
            box = _random_box(generator)
            annotation = {
                "image_id": int(generator.choice(ids[:4])),
                "category_id": int(generator.choice([0, 4])),
                "bbox": box,
                "iscrowd": int(generator.random() < 0.1),
            }
            annotations.append(annotation | ({"segmentation": _ellipse(box)} if masks else {}))
        results = [_jittered(annotation, generator, masks) for annotation in annotations * 3]
        return make_dataset(annotations, image_ids=ids, categories=categories), results

    return build


def _random_box(generator: np.random.Generator) -> list[float]:
    width, height = generator.uniform(6, 150, 2)
    x, y = generator.uniform(0, 320 - width), generator.uniform(0, 240 - height)
    return [float(value) for value in (x, y, width, height)]


def _jittered(annotation: dict[str, Any], generator: np.random.Generator, masks: bool) -> dict[str, Any]:
    shift = generator.normal(0, 0.12, 2)
    x, y, width, height = annotation["bbox"]
    box = [float(x + shift[0] * width), float(y + shift[1] * height), width, height]
    result: dict[str, Any] = {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"] if generator.random() < 0.85 else 90,
        "score": float(generator.random()),
    }
    return result | ({"segmentation": _ellipse(box)} if masks else {"bbox": box})


def _ellipse(box: list[float]) -> dict[str, Any]:
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]] + 0.5
    x, y, width, height = box
    inside = ((columns - x - width / 2) / width) ** 2 + ((rows - y - height / 2) / height) ** 2 <= 0.25
    rle = mask_api.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}

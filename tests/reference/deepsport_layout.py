"""A tiny data set in the layout of the DeepSportRadar challenge, and a validator of what is handed in.

The layout: JSON files in `annotations/` (train, val, trainval, test, challenge), file names with the folders of arena
and game, one category with id 0, masks as run lengths, ids of images and annotations from 0. The challenge's images
have no annotations. Images are not in the order of their ids here, so that order can be told from numbering.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SIZE_HW = (48, 64)
CATEGORIES = [{"id": 0, "name": "human", "supercategory": "human"}]
SPLITS = {"train": (2, 0, 1), "val": (4, 3), "test": (6, 5), "challenge": (9, 7, 8)}


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as the challenge's files have them, by COCO's own code."""
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode("utf-8")}


def players(image_id: int) -> list[np.ndarray]:
    """Masks of two people; the first is seen in two parts, as a bar in front of it cuts it."""
    first, second = np.zeros(SIZE_HW, dtype=bool), np.zeros(SIZE_HW, dtype=bool)
    first[10:34, 6 + image_id : 16 + image_id] = True
    first[24:27] = False
    second[16:40, 36 + image_id : 44 + image_id] = True
    return [first, second]


def write_deepsport(folder: Path, *, annotations: Path | None = None) -> Path:
    """The data set; `annotations` puts the JSON files elsewhere. Returns the folder of the JSON files."""
    annotations = annotations or folder / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    splits = {name: _content(folder, name, ids) for name, ids in SPLITS.items()}
    both = {key: splits["train"][key] + splits["val"][key] for key in ("images", "annotations")}
    splits["trainval"] = {"categories": CATEGORIES, **both}
    for name, content in splits.items():
        (annotations / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return annotations


def _content(folder: Path, split: str, ids: tuple[int, ...]) -> dict[str, Any]:
    images, annotations = [], []
    for image_id in ids:
        name = f"KS-FR-{split.upper()}/2433{image_id}/camcourt1_{image_id}_0.png"
        pixels = np.full((*SIZE_HW, 3), 90, dtype=np.uint8)
        pixels += np.random.default_rng(image_id).integers(0, 20, pixels.shape, dtype=np.uint8)
        for number, mask in enumerate(players(image_id)):
            pixels[mask] = (220, 40 + 100 * number, 30)
            x, y, w, h = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()
            annotations.append(
                {
                    "id": 2 * image_id + number,
                    "image_id": image_id,
                    "category_id": 0,
                    "area": int(mask.sum()),
                    "bbox": [x, y, w, h],
                    "segmentation": rle_of(mask),
                    "iscrowd": 0,
                }
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), pixels)
        images.append({"file_name": name, "width": SIZE_HW[1], "height": SIZE_HW[0], "id": image_id})
    labelled = [] if split == "challenge" else annotations
    return {"categories": CATEGORIES, "images": images, "annotations": labelled}


def faults_of_submission(content: Any, images: list[dict[str, Any]]) -> list[str]:
    """What the challenge's description forbids in a file handed in; [] if it is accepted.

    Source: section "Submission format" of the description of 2023: a list of image results in the order of the images
        in the JSON of the split; each has labels (0), scores (0..1), bboxes ([x1, y1, x2, y2]) and masks ({"size":
        [H, W], "counts": text}), one for each detection.
    """
    if not isinstance(content, list) or len(content) != len(images):
        return [f"not a list of {len(images)} image results"]
    faults = []
    for index, (entry, image) in enumerate(zip(content, images, strict=True)):
        if not isinstance(entry, dict) or entry.keys() != {"labels", "scores", "bboxes", "masks"}:
            faults.append(f"{index}: wrong keys")
            continue
        if len({len(entry[key]) for key in entry}) != 1:
            faults.append(f"{index}: lists of several lengths")
        faults += [
            f"{index}: label {label!r}" for label in entry["labels"] if type(label) is not int or label
        ]
        faults += [
            f"{index}: score {s!r}" for s in entry["scores"] if type(s) is not float or not 0 <= s <= 1
        ]
        for x1, y1, x2, y2 in entry["bboxes"]:
            if not (0 <= x1 < x2 <= image["width"] and 0 <= y1 < y2 <= image["height"]):
                faults.append(f"{index}: box {x1, y1, x2, y2}")
        for mask in entry["masks"]:
            if mask["size"] != [image["height"], image["width"]] or not isinstance(mask["counts"], str):
                faults.append(f"{index}: mask of {mask['size']}")
            elif coco_mask.decode([mask]).shape != (image["height"], image["width"], 1):
                faults.append(f"{index}: not run lengths of its size")
    return faults

"""A data set in the layout of the VISION challenge: each split a folder with its images and their annotations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from reference.masked_parts import write_masked_parts


def write_vision_set(root: Path, splits: dict[str, int], seed: int = 0) -> None:
    """Painted ellipses as `SPLIT/_annotations.coco.json` beside the images; `inference` has no annotations.

    Args:
        root: Folder to make.
        splits: Number of images by split.
        seed: Of the places.
    """
    plain = root.with_name(f"{root.name}-plain")
    write_masked_parts(plain, splits, seed)
    for split in splits:
        (root / split).mkdir(parents=True)
        content = json.loads((plain / "annotations" / f"{split}.json").read_text())
        for image in content["images"]:
            shutil.move(plain / "images" / image["file_name"], root / split / image["file_name"])
        if split == "inference":
            del content["annotations"]
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    shutil.rmtree(plain)

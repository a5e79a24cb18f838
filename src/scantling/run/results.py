"""Results files that a run wrote itself: read as they are, as long as they are as the run left them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from scantling.data.coco import CocoDataset, read_results
from scantling.data.coco.results import Result
from scantling.data.io import parse_json, read_bytes
from scantling.run.stage import recorded_hash


def own_results(root: Path, file: str, dataset: CocoDataset) -> list[Result]:
    """Results that a stage wrote, which were checked or made then; checked again only if the file was changed since.

    Args:
        root: The run folder.
        file: Results file, relative to it.
        dataset: What was predicted.

    Raises:
        DataError: The file is missing, or was changed and does not belong to the data set.
    """
    content = read_bytes(root / file)
    if hashlib.sha256(content).hexdigest() != recorded_hash(root, file):
        return read_results(root / file, dataset, image_ids="id")
    return cast("list[Result]", parse_json(content, str(root / file)))

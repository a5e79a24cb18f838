"""Images that are the same picture: one file under two names, equal bytes, or equal pixels stored in another way."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scantling.data.coco.records import ImageRecord
from scantling.data.images.open import open_image
from scantling.data.io import sha256_of
from scantling.errors import DataError

Key = Callable[[ImageRecord], Hashable]
"""Images with equal keys are equal; None: equal to nothing."""

_logger = logging.getLogger(__name__)
_THREADS = 8
_MANY = 500


def groups_of_copies(records: Sequence[ImageRecord], *, pixels: bool = True) -> list[list[int]]:
    """Positions of images that are one picture, two or more of each; [] where all differ.

    Pixels are decoded only where several files have images of one size. A file that cannot be opened equals nothing but
    itself.

    Args:
        records: Images of a data set.
        pixels: Look for pictures that were stored anew too; else for equal files only.
    """
    by_path: dict[str, list[int]] = {}
    for position, record in enumerate(records):
        by_path.setdefault(os.path.realpath(record.path), []).append(position)
    groups = _merged(list(by_path.values()), records, lambda record: _length(record.path), _bytes)
    if pixels:
        groups = _merged(groups, records, _size_of_file, _pixels)
    return [group for group in groups if len(group) > 1]


def _length(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def _pixels(record: ImageRecord) -> bytes | None:
    """Checksum of an image's pixels in the frame of its labels; None where they cannot be had."""
    try:
        return hashlib.sha256(
            open_image(record.path, size_hw=record.size_hw, white=record.white).data
        ).digest()
    except DataError:
        return None


def _merged(
    groups: list[list[int]], records: Sequence[ImageRecord], rough: Key, exact: Key
) -> list[list[int]]:
    """Groups whose first images are equal made one; the exact key is computed only where rough ones are equal."""
    firsts = [records[group[0]] for group in groups]
    rough_keys = [rough(record) for record in firsts]
    counts = Counter(rough_keys)
    alike = [number for number, key in enumerate(rough_keys) if key is not None and counts[key] > 1]
    if len(alike) >= _MANY:
        _logger.info("looking for copies among %d images", len(alike))
    with ThreadPoolExecutor(_THREADS) as pool:
        keys = list(pool.map(exact, [firsts[number] for number in alike]))
    owner: dict[Hashable, int] = {}
    merged = [list(group) for group in groups]
    for number, key in zip(alike, keys, strict=True):
        first = owner.setdefault((rough_keys[number], key), number) if key is not None else number
        if first != number:
            merged[first] = sorted([*merged[first], *merged[number]])
            merged[number] = []
    return [group for group in merged if group]


def _bytes(record: ImageRecord) -> Hashable:
    return sha256_of(record.path)


def _size_of_file(record: ImageRecord) -> Hashable:
    return record.size_hw if record.path.is_file() else None

"""What white is in pictures of 16 bits per channel: cameras of 10, 12 or 14 bits fill only part of that range.

A file may say so itself (TIFF MaxSampleValue, 12 bits per sample; PNG sBIT). Where none does, the set shows it: the
brightest value of all its pictures decides, one rule for the whole set, which a run records and predicts by. A picture
alone decides nothing, because a dark one would come out as bright as the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import ImageRecord
from scantling.data.images.open import FULL_WHITE, brightest_value, image_header
from scantling.errors import DataError

_DEPTHS = (8, 10, 12, 14)
_THREADS = 4


def white_of(records: Iterable[ImageRecord]) -> int | None:
    """White of the 16-bit pictures of a set that do not say it themselves.

    Args:
        records: All images of the set; what cannot be read is passed over.

    Returns:
        The largest value of the smallest usual depth that holds every pixel, such as 4095; None where pictures use
        the full range, or none has 16 bits.
    """
    paths = sorted({record.path for record in records})
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [value for value in pool.map(_brightest, paths) if value is not None]
    brightest = max(found, default=FULL_WHITE)
    return next(((1 << depth) - 1 for depth in _DEPTHS if brightest < 1 << depth), None)


def with_white(records: Sequence[ImageRecord], white: int | None) -> tuple[ImageRecord, ...]:
    """The records with a rule for their 16-bit pictures; the same ones for None."""
    return tuple(records) if white is None else tuple(replace(record, white=white) for record in records)


def dataset_with_white(dataset: CocoDataset, white: int | None) -> CocoDataset:
    """The data set with a rule for its 16-bit pictures."""
    return dataset if white is None else replace(dataset, images=with_white(dataset.images, white))


def range_message(white: int) -> str:
    """What is told about a set whose pictures have another white than 65535."""
    return f"pictures of 16 bits use the range 0 to {white}, which is scaled to 0 to 255"


def _brightest(path: Path) -> int | None:
    """Largest value of a 16-bit picture that does not say what its white is; None for all others."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _brightest_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _brightest_of(path: Path, _size: int, _time: int) -> int | None:
    try:
        header = image_header(path)
        if header.bits != 16 or header.white is not None or header.significant is not None:
            return None
        return brightest_value(path)
    except DataError:
        return None

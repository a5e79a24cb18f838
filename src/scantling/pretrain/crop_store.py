"""Crops on disk, decoded once: an epoch reads them from one file and never opens an image.

    crops.bin    the crops' JPEGs, one after the other, read through a memory map
    crops.json   for each crop its id, image, label and place; checksum, and fingerprint of what it was made from

A store is used as it is while its fingerprint and checksum hold, and made anew otherwise. Both files are complete
under their names or absent; the index is written last, so that a store that was not finished has none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.images.open import open_image
from scantling.data.io import replacing, sha256_of, write_json
from scantling.data.workers import TaskStream
from scantling.errors import DataError
from scantling.pretrain.crops import CropFileConfig, CropPlan, CutImage, Pixels, cut

log = logging.getLogger(__name__)

DATA_NAME, INDEX_NAME = "crops.bin", "crops.json"
FORMAT_VERSION = 1
_TOLD_EVERY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CropStore:
    """Crops that can be read one by one, from any process.

    Attributes:
        file: The crops' bytes.
        sha256: Of the file: what a run that read these crops was trained on.
        ids: Id of each crop.
        images: Name of the image each crop was cut from.
        labels: (N,) int64 positions in `class_names`, -1 without a category.
        ends: (N,) int64 byte after each crop.
        class_names: Names of the categories.
    """

    file: Path
    sha256: str
    ids: tuple[str, ...]
    images: tuple[str, ...]
    labels: NDArray[np.int64]
    ends: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Pixels:
        """The crop (H, W, 3) uint8 RGB at a position.

        Raises:
            DataError: The file was damaged after it was opened.
        """
        start = int(self.ends[index - 1]) if index else 0
        encoded = _mapped(self.file, self.sha256)[start : int(self.ends[index])]
        pixels: Pixels | None = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise DataError(
                f"{self.file}: crop {self.ids[index]} is damaged", hint="Start the command again."
            )
        return pixels


def open_store(
    folder: Path, plan: CropPlan, config: CropFileConfig, *, max_pixels: int, workers: int = 0
) -> CropStore:
    """The store of a plan: the one in the folder if it is whole and made from the same, else a new one.

    Args:
        folder: Created if need be.
        plan: At least one crop.
        config: How the crops are cut.
        max_pixels: Larger crops are reduced; see `stored_pixels`.
        workers: Processes that decode and cut; never changes the result.

    Raises:
        DataError: An image cannot be read, or there is no crop.
        UsageError: The folder cannot be written to, or the disk is full.
    """
    if len(plan) == 0:
        hint = "Lower crops.min_side, or take whole images with source=images."
        raise DataError(f"no object is large enough to be cut out ({plan.left_out} were left out)", hint=hint)
    fingerprint = plan.fingerprint(config, max_pixels)
    index, fault = _read_index(folder, fingerprint)
    if index is None:
        log.info("cutting %d crops out of %d images (%s)", len(plan), len(plan.images), fault)
        index = _build(folder, plan, _CutCrops(config.quality, max_pixels), workers, fingerprint)
    return CropStore(
        file=folder / DATA_NAME,
        sha256=index["sha256"],
        ids=tuple(index["ids"]),
        images=tuple(index["images"]),
        labels=np.asarray(index["labels"], dtype=np.int64),
        ends=np.asarray(index["ends"], dtype=np.int64),
        class_names=tuple(index["class_names"]),
    )


@dataclass(frozen=True, slots=True)
class _CutCrops:
    """Image -> its crops as JPEGs, in whatever process."""

    quality: int
    max_pixels: int

    def __call__(self, image: CutImage) -> list[bytes]:
        pixels = open_image(image.path, size_hw=image.size_hw, white=image.white)
        return [self._encoded(cut(pixels, window.box, self.max_pixels)) for window in image.windows]

    def _encoded(self, pixels: Pixels) -> bytes:
        options = [
            cv2.IMWRITE_JPEG_QUALITY, self.quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]  # fmt: skip
        done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
        if not done:
            raise RuntimeError(f"a crop of {pixels.shape} could not be encoded")
        return encoded.tobytes()


def _build(
    folder: Path, plan: CropPlan, cut_crops: _CutCrops, workers: int, fingerprint: str
) -> Mapping[str, Any]:
    """Write both files and return the index."""
    (folder / INDEX_NAME).unlink(missing_ok=True)
    digest, ends = hashlib.sha256(), []
    with replacing(folder / DATA_NAME) as temporary, temporary.open("wb") as stream:
        for encoded in _encoded_crops(plan, cut_crops, workers):
            digest.update(encoded)
            stream.write(encoded)
            ends.append(stream.tell())
    windows = [(image.name, window) for image in plan.images for window in image.windows]
    index = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "sha256": digest.hexdigest(),
        "class_names": list(plan.class_names),
        "ids": [window.crop_id for _, window in windows],
        "images": [name for name, _ in windows],
        "labels": [window.label for _, window in windows],
        "ends": ends,
    }
    write_json(folder / INDEX_NAME, index)
    return index


def _encoded_crops(plan: CropPlan, cut_crops: _CutCrops, workers: int) -> Iterator[bytes]:
    with TaskStream(cut_crops, workers) as stream:
        for number, crops in enumerate(stream.run(plan.images), start=1):
            yield from crops
            if number % _TOLD_EVERY == 0:
                log.info("crops of %d of %d images are stored", number, len(plan.images))


def _read_index(folder: Path, fingerprint: str) -> tuple[Mapping[str, Any] | None, str]:
    """The index of a store that can be used; or None and why not."""
    file = folder / DATA_NAME
    try:
        index = json.loads((folder / INDEX_NAME).read_bytes())
    except FileNotFoundError:
        return None, "there are none yet"
    except (OSError, ValueError):
        return None, "their index cannot be read"
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION:
        return None, "their index is of another version"
    if index["fingerprint"] != fingerprint:
        return None, "the images, labels or settings have changed"
    if not file.is_file() or file.stat().st_size != index["ends"][-1]:
        return None, "the stored ones are cut off"
    if sha256_of(file) != index["sha256"]:
        return None, "the stored ones are damaged"
    return index, ""


@lru_cache(maxsize=4)
def _mapped(file: Path, _sha256: str) -> NDArray[np.uint8]:
    """The file as bytes, mapped once per process; another content has another checksum."""
    return np.memmap(file, dtype=np.uint8, mode="r")

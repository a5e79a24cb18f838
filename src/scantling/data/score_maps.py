"""Score maps of a data set in one compact file.

    [ScoreMap | None] ── save ──► one file: every map as a PNG of its planes, one below the other ── load ──► ScoreMaps

A map of 128 x 128 cells takes one to a few KiB. Opening the file reads its table alone; a map is decoded when it is
asked for. I: images; P: planes of a map; h, w: of a map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from scantling.data.coco.dataset import CocoDataset
from scantling.data.io import atomic_write
from scantling.errors import DataError
from scantling.structures.sample import Frame
from scantling.structures.score_maps import ScoreMap, ScoreMaps

_ALL_TOGETHER = -1
"""In the table of labels: the plane is of all categories together."""
_COLUMNS = ("ends", "shapes", "label_ends", "labels", "matrices", "sizes", "content")


class PackedMap(NamedTuple):
    """A score map as it lies in the file: what a process hands on, and what many of are held.

    Attributes:
        content: PNG of its planes, one below the other; nothing for no plane.
        shape: P, h, w.
        labels: As of the map.
        frame: As of the map.
    """

    content: bytes
    shape: tuple[int, int, int]
    labels: tuple[int, ...] | None
    frame: Frame

    @classmethod
    def of(cls, one: ScoreMap) -> Self:
        """The same map, packed."""
        planes, height, width = one.planes.shape
        content = b""
        if planes:
            written, encoded = cv2.imencode(".png", one.planes.reshape(-1, width))
            if not written:
                raise ValueError(f"a score map of shape {one.planes.shape} cannot be encoded")
            content = bytes(encoded.tobytes())
        return cls(content, (planes, height, width), one.labels, one.frame)

    def unpack(self) -> ScoreMap:
        """The map.

        Raises:
            ValueError: The content is damaged.
        """
        planes = np.zeros(self.shape, dtype=np.uint8)
        if self.shape[0]:
            stacked = cv2.imdecode(np.frombuffer(self.content, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
            if stacked is None or stacked.size != planes.size:
                raise ValueError("its pixels cannot be decoded")
            planes = np.asarray(stacked, dtype=np.uint8).reshape(self.shape)
        return ScoreMap(planes=planes, labels=self.labels, frame=self.frame)


def save_score_maps(maps: Iterable[ScoreMap | PackedMap | None], path: Path) -> None:
    """Write a file that `load_score_maps` reads, atomically.

    Args:
        maps: Of every image of a data set, in its order; None for an image without one. One is in memory at a time.
        path: Final name.

    Raises:
        UsageError: The file cannot be written.
    """
    content, ends, shapes, label_ends = bytearray(), list[int](), list[tuple[int, ...]](), list[int]()
    labels, matrices, sizes = list[int](), list[NDArray[np.float64]](), list[tuple[int, int]]()
    for given in maps:
        one = PackedMap.of(given) if isinstance(given, ScoreMap) else given
        if one is not None:
            content += one.content
            labels += [_ALL_TOGETHER] if one.labels is None else one.labels
        shapes.append((0, 0, 0) if one is None else one.shape)
        matrices.append(np.eye(2, 3) if one is None else one.frame.matrix)
        sizes.append((0, 0) if one is None else one.frame.original_hw)
        ends.append(len(content))
        label_ends.append(len(labels))
    columns = {
        "ends": np.array(ends, dtype=np.int64),
        "shapes": np.array(shapes, dtype=np.int32).reshape(-1, 3),
        "label_ends": np.array(label_ends, dtype=np.int64),
        "labels": np.array(labels, dtype=np.int32),
        "matrices": np.array(matrices, dtype=np.float64).reshape(-1, 2, 3),
        "sizes": np.array(sizes, dtype=np.int32).reshape(-1, 2),
        "content": np.frombuffer(bytes(content) or b"\0", dtype=np.uint8),
    }
    atomic_write(path, save(columns))


def load_score_maps(path: Path, dataset: CocoDataset) -> ScoreMaps:
    """Open what `save_score_maps` wrote.

    Args:
        path: The file.
        dataset: The images that the maps are about.

    Raises:
        DataError: The file is missing, is none of these, or is about other images. A map that is damaged is told when
            it is asked for.
    """
    stored = _Stored.open(path)
    if len(stored.ends) != len(dataset):
        raise DataError(
            f"{path}: holds score maps of {len(stored.ends)} images, the data set has {len(dataset)}"
        )
    for image, size in zip(dataset.images, stored.sizes.tolist(), strict=True):
        if size != [0, 0] and tuple(size) != image.size_hw:
            raise DataError(
                f"{path}: the score map of {image.file_name} is of an image of {tuple(size)} (height, width), "
                f"the data set's has {image.size_hw}"
            )
    return ScoreMaps(len(dataset), stored)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The table of a file; called with a position, it reads that map.

    Attributes:
        path: The file.
        ends: (I,) where each map ends in the content.
        shapes: (I, 3) P, h, w of each; zeros where an image has none.
        label_ends: (I,) where the labels of each end.
        labels: Of all planes.
        matrices: (I, 2, 3) from the original image to the map.
        sizes: (I, 2) height and width of the original image.
    """

    path: Path
    ends: NDArray[np.int64]
    shapes: NDArray[np.int32]
    label_ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    matrices: NDArray[np.float64]
    sizes: NDArray[np.int32]

    @classmethod
    def open(cls, path: Path) -> _Stored:
        try:
            with safe_open(path, framework="np") as file:
                missing = set(_COLUMNS) - set(file.keys())
                table: dict[str, Any] = {name: file.get_tensor(name) for name in _COLUMNS[:-1] if not missing}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not a file of score maps ({error})") from error
        if missing:
            raise DataError(f"{path}: not a file of score maps (no {', '.join(sorted(missing))})")
        count = len(table["ends"])
        shapes = [(count,), (count, 3), (count,), table["labels"].shape[:1], (count, 2, 3), (count, 2)]
        if [table[name].shape for name in _COLUMNS[:-1]] != shapes:
            raise DataError(f"{path}: not a file of score maps (its columns differ in length)")
        return cls(path, **table)

    def __call__(self, position: int) -> ScoreMap | None:
        planes, height, width = self.shapes[position].tolist()
        if height == 0:
            return None
        start, end = (int(self.ends[each]) if each >= 0 else 0 for each in (position - 1, position))
        first, last = (int(self.label_ends[each]) if each >= 0 else 0 for each in (position - 1, position))
        numbers = tuple(self.labels[first:last].tolist())
        try:
            with safe_open(self.path, framework="np") as file:
                content = file.get_slice("content")[start:end].tobytes()
            frame = Frame(
                matrix=self.matrices[position],
                original_hw=(int(self.sizes[position, 0]), int(self.sizes[position, 1])),
                size_hw=(height, width),
            )
            labels = None if numbers == (_ALL_TOGETHER,) else numbers
            return PackedMap(content, (planes, height, width), labels, frame).unpack()
        except (OSError, SafetensorError, ValueError, cv2.error) as error:
            raise DataError(
                f"{self.path}: the score map at position {position} is damaged ({error})"
            ) from error

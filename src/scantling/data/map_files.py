"""Maps of pixels that any other segmenter wrote: one PNG or NPY per image, called like the image.

| file | what it is |
|---|---|
| PNG of one channel (gray, palette, 1 bit, 16 bits), NPY of integers (h, w) | labels of the pixels, or scores |
| NPY of floats (h, w) or (1, h, w) | scores in 0..1 of all categories together |
| NPY of floats, or of bytes (K, h, w) | scores of each category, in the order of the data set's categories |

All files are looked at before the first is used, and what their numbers mean is decided once for all of them; where
they can mean several things, nothing is guessed. A map may be smaller or larger than its image, but must have its
proportions. K: categories; h, w: of a map; H, W: of its image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import ImageRecord
from scantling.data.coco.result_images import NONE, FileNames
from scantling.data.findings import FindingLog, Policy, name_some, refuse, tell_warnings
from scantling.data.images.header import MAX_PIXELS, open_with_pillow, parse_header
from scantling.data.images.open import files_below, read_image
from scantling.data.score_maps import load_score_maps
from scantling.errors import DataError
from scantling.settings.paths import MapValues, require_existing
from scantling.structures.sample import Frame
from scantling.structures.score_maps import CERTAIN, ScoreMap, ScoreMaps

log = logging.getLogger(__name__)

_SUFFIXES = (".png", ".npy")
_VOID = 255
"""In maps of labels often the number of pixels that nobody labelled."""
VALUES_KEY = "scantling:values"
"""Text in a PNG that says what its numbers are; scantling's own say `scores`."""
_MANY = 16
"""Maps of labels of a few categories have fewer different numbers; scores have more."""

Values = Literal["scores", "foreground", "ids", "positions"]
"""`MapValues` without `auto`."""


def read_score_maps(
    path: Path, dataset: CocoDataset, *, values: MapValues = "auto", skip_invalid: bool = False
) -> ScoreMaps:
    """Score maps of a data set's images: a file that scantling wrote, or a folder of any tool's maps.

    Args:
        path: The file or folder.
        dataset: The images that the maps are about.
        values: What the numbers of another tool's maps are.
        skip_invalid: Images whose map is missing or unusable have none, and are counted, instead of stopping the work.

    Raises:
        DataError: With every finding; codes `maps-*`.
        UsageError: There is nothing at that path.
    """
    require_existing(path, "file or folder of score maps")
    if path.is_file():
        return load_score_maps(path, dataset)
    findings = FindingLog(str(path), Policy(skip_invalid=skip_invalid))
    looked = _Looked(path, dataset, findings)
    looked.look()
    findings.raise_if_failed()
    tell_warnings(findings.findings, log, rest="all of this kind")
    meaning = _meaning(looked, values) if looked.numbers else "scores"
    log.info("%s: maps of %d images, read as %s", path, len(looked.files), meaning)
    return ScoreMaps(len(dataset), _Folder(dataset, looked.files, meaning))


class _Looked:
    """Everything there is to know about a folder of maps before the first is used.

    Attributes:
        files: By position of the image the file of its map, if it can be used.
        numbers: Every number that occurs in maps of integers (h, w).
        whole: The largest number that the files of these can hold.
        all_say_scores: Every one of these says of itself that it holds scores.
    """

    def __init__(self, folder: Path, dataset: CocoDataset, findings: FindingLog) -> None:
        self.folder, self.dataset, self.findings = folder, dataset, findings
        self.files: dict[int, Path] = {}
        self.numbers: set[int] = set()
        self.whole = CERTAIN
        self.all_say_scores = True
        self._kinds: dict[str, str] = {}

    def look(self) -> None:
        """Open every file once."""
        found = map_files(self.folder)
        if not found:
            inside = next(iter(sorted(self.folder.glob("**/maps-*.safetensors"))), None)
            hint = (
                None if inside is None else f"There are maps that a run kept: give a file, such as {inside}."
            )
            refuse("maps-file", str(self.folder), "the folder holds no map: no PNG, no NPY", hint=hint)
        names, owners, strangers = FileNames(self.dataset), dict[int, Path](), list[str]()
        for path in found:
            position = names.find(path.relative_to(self.folder).as_posix())
            if position == NONE:
                strangers.append(path.name)
            elif position in owners:
                told = f"{owners[position].name} and {path.name} are both called like one image"
                self.findings.add("maps-twice", told, path=path.name)
            else:
                owners[position] = path
        if strangers:
            told = f"{len(strangers)} maps are called like no image: {name_some(strangers)}"
            self.findings.add("maps-unused", told)
        if missing := [image.file_name for at, image in enumerate(self.dataset.images) if at not in owners]:
            told = f"{len(missing)} of {len(self.dataset)} images have no map: {name_some(missing)}"
            self.findings.add("maps-missing", told)
        for position, path in sorted(owners.items()):
            if self._is_sound(path, self.dataset.images[position]):
                self.files[position] = path
        if len(self._kinds) > 1:
            told = " and ".join(f"{kind} ({name})" for kind, name in self._kinds.items())
            self.findings.add("maps-reading", f"maps of several kinds: {told}")

    def _is_sound(self, path: Path, image: ImageRecord) -> bool:
        name = path.name
        try:
            array = _opened(path)
        except DataError as error:
            told = error.findings[0].message if error.findings else error.message
            self.findings.add("maps-file", told, path=name)
            return False
        planes, size_hw, count = len(array), array.shape[1:], len(self.dataset.categories)
        if planes not in (1, count):
            told = f"{planes} planes, while the data set has {count} categories (the ground needs none)"
            last = array.ndim == 3 and array.shape[-1] in (1, count)
            hint = "Write (K, h, w): the categories are the first axis here, not the last." if last else None
            self.findings.add("maps-size", told, path=name, hint=hint)
            return False
        if not _proportional(size_hw, image.size_hw):
            swapped = "; height and width are exchanged" if size_hw == image.size_hw[::-1] else ""
            told = f"the map has {size_hw} (height, width), its image {image.size_hw}{swapped}"
            self.findings.add("maps-size", told, path=name)
            return False
        return self._takes(array, path)

    def _takes(self, array: NDArray[Any], path: Path) -> bool:
        """Whether the numbers are usable; those of maps that may be labels are noted."""
        name = path.name
        lowest, highest = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        is_float = array.dtype.kind == "f"
        limit = 1.0 if is_float else CERTAIN if len(array) > 1 else np.inf
        if not (np.isfinite([lowest, highest]).all() and lowest >= 0 and highest <= limit):
            told = f"holds numbers from {lowest:g} to {highest:g}"
            hint = "Write sigmoid or softmax scores in 0..1, not logits." if is_float else None
            self.findings.add("maps-values", told, path=name, hint=hint)
            return False
        kind = "scores of each category" if len(array) > 1 else "floats" if is_float else "whole numbers"
        self._kinds.setdefault(kind, name)
        if kind == "whole numbers":
            self.numbers |= set(np.unique(array).astype(int).tolist())
            self.all_say_scores &= _says_scores(path)
            self.whole = max(self.whole, _whole(array.dtype))
        return True


def _meaning(looked: _Looked, values: MapValues) -> Values:
    """What the numbers of a folder's maps are.

    Raises:
        DataError: Code `maps-reading`: they are not what is said, or can be several things.
    """
    numbers, ids = looked.numbers, looked.dataset.category_ids
    by_id = {number: label for label, number in enumerate(ids)}
    by_position = {label + 1: label for label in range(len(ids))}
    labels, shown = numbers - {0}, name_some([str(number) for number in sorted(numbers)], limit=12)
    fits: dict[Values, bool] = {
        "ids": 0 not in by_id and labels - {_VOID} <= by_id.keys(),
        "positions": labels - {_VOID} <= by_position.keys(),
    }
    if values != "auto":
        if not fits.get(values, True):
            told = (
                f"the maps hold {shown}, which are not all {values} of the data set's {len(ids)} categories"
            )
            refuse("maps-reading", str(looked.folder), told)
        return values
    if looked.all_say_scores:
        return "scores"
    if labels <= {looked.whole} or (len(ids) == 1 and labels <= {1, looked.whole}):
        return "foreground"
    read: dict[Values, Mapping[int, int]] = {"ids": by_id, "positions": by_position}
    readings = {tuple(read[way].get(n) for n in sorted(labels)) for way, fit in fits.items() if fit}
    if len(readings) == 1 and labels - {_VOID} != {1}:
        return "ids" if fits["ids"] else "positions"
    if readings:
        told = (
            f"the maps hold {shown}: category ids, places in the list of categories, or the foreground of all"
        )
        refuse("maps-reading", str(looked.folder), told)
    if len(numbers) <= _MANY:
        told = f"the maps hold {shown}, which are no categories of the data set, and too few for scores"
        refuse("maps-reading", str(looked.folder), told)
    return "scores"


@dataclass(frozen=True, slots=True)
class _Folder:
    """Called with a position, it reads that image's map.

    Attributes:
        dataset: Sizes of the images, and the categories.
        files: By position.
        meaning: Of the numbers.
    """

    dataset: CocoDataset
    files: Mapping[int, Path]
    meaning: Values

    def __call__(self, position: int) -> ScoreMap | None:
        if position not in self.files:
            return None
        array = _opened(self.files[position])
        size_hw, image_hw = array.shape[1:], self.dataset.images[position].size_hw
        height, width = (mine / own for mine, own in zip(size_hw, image_hw, strict=True))
        frame = Frame.identity(image_hw).then(np.array([[width, 0, 0], [0, height, 0]]), size_hw)
        if array.dtype.kind == "f":
            return ScoreMap.from_scores(array, frame, by_category=len(array) > 1)
        if len(array) > 1:
            return ScoreMap.from_scores(array / CERTAIN, frame, by_category=True)
        if self.meaning == "scores":
            return ScoreMap.from_scores(array / _whole(array.dtype), frame, by_category=False)
        if self.meaning == "foreground":
            return ScoreMap.from_scores(array != 0, frame, by_category=False)
        return self._of_labels(array[0], frame)

    def _of_labels(self, numbers: NDArray[Any], frame: Frame) -> ScoreMap:
        ids = self.dataset.category_ids
        numbered = ids if self.meaning == "ids" else range(1, len(ids) + 1)
        label_of = {number: label for label, number in enumerate(numbered)}
        shown = sorted(label_of[n] for n in np.unique(numbers).tolist() if n in label_of)
        planes = np.zeros((len(shown), *numbers.shape), dtype=np.uint8)
        for plane, label in zip(planes, shown, strict=True):
            plane[numbers == numbered[label]] = CERTAIN
        return ScoreMap(planes=planes, labels=tuple(shown), frame=frame)


def map_files(folder: Path) -> list[Path]:
    """All files in a folder and its sub-folders that are called like maps, sorted."""
    return [path for path in files_below(folder) if path.suffix.lower() in _SUFFIXES]


def _opened(path: Path) -> NDArray[Any]:
    """(planes, h, w) of a file: floats, or whole numbers from 0 on.

    Raises:
        DataError: It cannot be read, or is something else.
    """
    array = _png(path) if path.suffix.lower() == ".png" else _npy(path)
    if array.dtype.kind not in "fubi":
        refuse("maps-file", str(path), f"holds {array.dtype}, no numbers")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or not array.size:
        refuse("maps-file", str(path), f"has the shape {array.shape}; needed is (h, w) or (K, h, w)")
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _png(path: Path) -> NDArray[Any]:
    """(h, w): gray values, or the numbers of a palette."""
    data = read_image(path)
    header = parse_header(data, str(path))
    if header.format != "PNG":
        refuse("maps-file", str(path), f"a {header.format}, which changes the numbers, where a PNG is needed")
    try:
        image = open_with_pillow(data, "PNG")
        image.load()
    except Exception as error:  # decoders raise whatever a damaged file provokes
        refuse("maps-file", str(path), f"its pixels cannot be decoded: {error}")
    array = np.array(image)
    if array.ndim == 2:
        return array
    colours = array[..., : 3 if array.shape[2] >= 3 else 1]
    if (colours != colours[..., :1]).any():
        refuse("maps-file", str(path), "a picture in colours; a map has one number per pixel")
    return np.ascontiguousarray(colours[..., 0])


def _says_scores(path: Path) -> bool:
    """Whether a map that can be read is a PNG that says so."""
    if path.suffix.lower() != ".png":
        return False
    with Image.open(path) as image:
        return image.info.get(VALUES_KEY) == "scores"


def _npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        refuse("maps-file", str(path), f"no NPY of numbers: {error}")
    if array.size > MAX_PIXELS:
        refuse("maps-file", str(path), f"more than {MAX_PIXELS} numbers")
    return np.array(array)


def _whole(dtype: np.dtype[Any]) -> int:
    """What is certain in a file of scores: the largest number of 8 or 16 bits."""
    return CERTAIN if dtype.itemsize == 1 else (1 << 16) - 1


def _proportional(size_hw: Sequence[int], image_hw: tuple[int, int]) -> bool:
    """Whether a map covers its image evenly, to within a cell of rounding."""
    (height, width), (rows, columns) = image_hw, size_hw
    return abs(rows - height * columns / width) <= 1 or abs(columns - width * rows / height) <= 1

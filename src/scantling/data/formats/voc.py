"""Pascal VOC: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/SPLIT.txt`.

Edges are counted in pixels from 1 and belong to the box: x = xmin - 1, width = xmax - xmin + 1 (VOC development kit).
Decimals are read as they are, so converted boxes keep their sub-pixel position. An edge `0` shows a tool that counted
from 0; such boxes are clipped at the image's edge and counted in a warning, because guessing would shift whole sets.

Without `ImageSets` everything is the one split `all`. Class names come from all XML files of the folder, sorted, so
that every split has the same list; a `categories.json` beside the folders fixes ids and order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from scantling.data.coco import CocoDataset, ReadOptions
from scantling.data.findings import FindingLog, name_some, refuse
from scantling.data.formats.document import Document, Place, Raw, image_numbers, stored_categories
from scantling.data.formats.safe_xml import Element, read_xml
from scantling.data.images.open import files_below
from scantling.data.io import read_bytes
from scantling.errors import DataError, Finding

ALL = "all"
FLAGS = ("truncated", "difficult", "occluded")
CROWD = "iscrowd"
"""Not VOC's: marks the difficult object that was a crowd region before it was written as VOC."""

_LABELS, _IMAGES = ("Annotations", "annotations"), ("JPEGImages", "images", "Images", "jpegimages")
_SPLIT_NAMES = ("train", "val", "trainval", "test")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


class VocFolder(NamedTuple):
    """What lies where; XML files and images by stem (path without suffix, relative to their folder)."""

    root: Path
    image_root: Path
    labels: dict[str, Path]
    images: dict[str, str]
    splits: dict[str, Path | None]


def voc_folder(root: Path) -> VocFolder | None:
    """The parts of a VOC data set; None if this folder is none."""
    label_root = next((root / name for name in _LABELS if any((root / name).glob("**/*.xml"))), None)
    if label_root is None:
        return None
    image_root = next((root / name for name in _IMAGES if (root / name).is_dir()), label_root)
    files = [path for path in files_below(image_root) if path.suffix.lower() in _SUFFIXES]
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    splits = {path.stem: path for path in lists if not _is_class_list(path.stem)}
    return VocFolder(
        root=root,
        image_root=image_root,
        labels={_stem(path, label_root): path for path in sorted(label_root.glob("**/*.xml"))},
        images={_stem(path, image_root): path.relative_to(image_root).as_posix() for path in files},
        splits=dict(splits) or {ALL: None},
    )


def read_voc(folder: VocFolder, split: str, options: ReadOptions) -> CocoDataset:
    """One split of a VOC data set.

    Args:
        folder: See `voc_folder`.
        split: One of its splits.
        options: How strictly.

    Raises:
        DataError: With the findings of all files, if one is an error.
    """
    listed = folder.splits[split]
    document = Document(file=listed or folder.root, image_root=folder.image_root, options=options)
    parsed = _parse_all(tuple(folder.labels.values()), _signature(folder))
    categories = _categories(folder.root, parsed)
    document.add_categories(categories)
    ids = {str(category["name"]): category["id"] for category in categories}
    numbers = image_numbers({stem: PurePosixPath(stem).name for stem in [*folder.labels, *folder.images]})
    zeros: list[str] = []
    for line, stem in _stems_of(folder, listed):
        if stem not in folder.labels:
            message = f"there is no XML file for {stem!r}"
            log = document.log_for(document.file)
            log.add("label-file-missing", message, path=f"line {line}" if line else None)
            continue
        file = folder.labels[stem]
        found = parsed[file]
        if isinstance(found, tuple):
            log = document.log_for(file)
            for finding in found:
                log.add(finding.code, finding.message, path=finding.path, value=finding.value)
            continue
        image_id = numbers[stem]
        document.enter("images", _image(found, folder, stem, image_id), Place(str(file)))
        _add_objects(found, document, file, image_id, ids)
        zeros += [stem] if _counts_from_zero(found) else []
    if zeros:
        message = f"{len(zeros)} files have an edge 0 where VOC counts from 1: {name_some(zeros)}"
        document.log_for(document.file).add("voc-counts-from-zero", message)
    return document.dataset()


Parsed = Element | tuple[Finding, ...]


@lru_cache(maxsize=2)
def _parse_all(files: tuple[Path, ...], _signature: object) -> dict[Path, Parsed]:
    """The root of every XML file, or why it cannot be read; kept for the other splits of the folder."""
    return {file: _parse(file) for file in files}


def _parse(file: Path) -> Parsed:
    try:
        return read_xml(file)
    except DataError as error:
        return error.findings


def _signature(folder: VocFolder) -> object:
    stats = [path.stat() for path in folder.labels.values()]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def _categories(root: Path, parsed: dict[Path, Parsed]) -> list[Raw]:
    """Stored categories first, then whatever else the files name."""
    roots = [element for element in parsed.values() if isinstance(element, Element)]
    names = {name for element in roots for box in element.all("object") if (name := box.text_of("name"))}
    stored = stored_categories(root)
    rest = sorted(names - {str(category["name"]) for category in stored})
    first = 1 + max((number for c in stored if isinstance(number := c["id"], int)), default=0)
    return [*stored, *({"id": number, "name": name} for number, name in enumerate(rest, start=first))]


def _stems_of(folder: VocFolder, listed: Path | None) -> Iterator[tuple[int, str]]:
    """Line and stem of every image of a split."""
    if listed is None:
        yield from ((0, stem) for stem in folder.labels)
        return
    try:
        text = read_bytes(listed).decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse("text-encoding", str(listed), "the list is not UTF-8")
    for line, entry in enumerate(text.splitlines(), start=1):
        stem = entry.strip()
        if stem and stem not in folder.labels:  # `2007_000027 -1`: a list of one class, or a full file name
            head, _, mark = stem.rpartition(" ")
            stem = head.strip() if mark in ("1", "0", "-1") and head else stem
            stem = stem[: -len(Path(stem).suffix)] if Path(stem).suffix.lower() in _SUFFIXES else stem
        if stem:
            yield line, stem


def _image(root: Element, folder: VocFolder, stem: str, image_id: int) -> Raw:
    """The image record; the size is left to the image file where the XML has none."""
    size = root.find("size")
    width, height = (_number(size.text_of(side)) if size else None for side in ("width", "height"))
    named = root.text_of("filename")
    fallback = named if (folder.image_root / named).is_file() and named else f"{stem}.jpg"
    record: Raw = {"id": image_id, "file_name": folder.images.get(stem, fallback)}
    return record | {"width": width, "height": height} if width and height else record


def _add_objects(
    root: Element, document: Document, file: Path, image_id: int, ids: dict[str, object]
) -> None:
    log: FindingLog | None = None
    for element in root.all("object"):
        box, name = _box(element), element.text_of("name")
        if box is None or not name:
            log = log or document.log_for(file)
            fault = "no name" if not name else "no bndbox with the numbers xmin, ymin, xmax, ymax"
            log.add("voc-object", f"the object has {fault}", path=f"line {element.line}", value=name or None)
            continue
        is_crowd = element.text_of(CROWD) == "1"
        marks = [CROWD, *(flag for flag in FLAGS if flag != "difficult")] if is_crowd else FLAGS
        flags = {flag: 1 for flag in marks if element.text_of(flag) == "1"}
        record: Raw = {"image_id": image_id, "category_id": ids[name], "bbox": box, **flags}
        document.enter("annotations", record, Place(str(file), f"line {element.line}"))


def _box(element: Element) -> list[float] | None:
    edges = _edges(element)
    if edges is None:
        return None
    x1, y1, x2, y2 = edges
    left, top = (0.0 if edge == 0 else edge - 1 for edge in (x1, y1))
    return [left, top, x2 - left, y2 - top]


def _edges(element: Element) -> tuple[float, float, float, float] | None:
    bounds = element.find("bndbox")
    numbers = [_number(bounds.text_of(edge)) for edge in _EDGES] if bounds else [None]
    if any(number is None for number in numbers):
        return None
    x1, y1, x2, y2 = (number for number in numbers if number is not None)
    return x1, y1, x2, y2


def _counts_from_zero(root: Element) -> bool:
    return any(0 in edges[:2] for element in root.all("object") if (edges := _edges(element)))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def _stem(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _is_class_list(stem: str) -> bool:
    """`dog_train.txt`: which images of the split have a dog."""
    return any(stem.endswith(f"_{name}") for name in _SPLIT_NAMES)

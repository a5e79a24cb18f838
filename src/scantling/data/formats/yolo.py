"""YOLO: one text file per image, one object per line, everything relative to the image's size.

class x_centre y_centre width height      a box
class x1 y1 x2 y2 x3 y3 ...               a polygon; its box is the one around it

The label of `.../images/sub/a.jpg` is `.../labels/sub/a.txt`; an image without one is background. Image ids are unique
over the splits of the data set: see `document.image_numbers`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from scantling.data.coco import CocoDataset, ReadOptions
from scantling.data.findings import FindingLog, refuse
from scantling.data.formats.document import (
    Document,
    Place,
    Raw,
    add_sizes,
    image_numbers,
    numbered,
    stored_categories,
)
from scantling.data.formats.yolo_settings import YoloFolder
from scantling.data.images.open import files_below
from scantling.data.io import read_bytes

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
_SLACK = 1e-3  # beyond 0..1, as a part of the image


def read_yolo(folder: YoloFolder, split: str, options: ReadOptions) -> CocoDataset:
    """One split of a YOLO data set.

    Args:
        folder: See `yolo_settings`.
        split: One of its splits.
        options: How strictly.

    Raises:
        DataError: With the findings of all files, if one is an error.
    """
    by_split = {
        name: [image for source in folder.splits[name] for image in _images_of(source)]
        for name in folder.splits
    }
    numbers = image_numbers({path: path.stem for paths in by_split.values() for path in paths})
    root = _common_root(by_split[split], folder.root)
    document = Document(file=_stands_for(folder, split), image_root=root, options=options)
    categories = _categories(folder)
    document.add_categories(categories)
    ids = [category["id"] for category in categories]
    records: dict[Path, Raw] = {
        path: {"id": numbers[path], "file_name": path.relative_to(root).as_posix()}
        for path in by_split[split]
    }
    for path in add_sizes(records, document):
        document.enter("images", records[path], Place(str(path)))
        _add_objects(label_path(path), records[path], document, ids)
    return document.dataset()


def label_path(image: Path) -> Path:
    """Where the labels of an image are: `labels` instead of the last `images` in its path, else beside it."""
    parts = list(image.parts)
    positions = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if positions:
        parts[positions[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _images_of(source: Path) -> list[Path]:
    if source.is_dir():
        return [
            Path(os.path.normpath(p))
            for p in files_below(source)
            if p.suffix.lower() in SUFFIXES and p.name[0] != "."
        ]
    try:
        text = read_bytes(source).decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse("text-encoding", str(source), "the list of images is not UTF-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [Path(os.path.normpath(source.parent / line)) for line in lines]


def _common_root(images: list[Path], fallback: Path) -> Path:
    """The `images` folder that holds all of them, if there is one, else their deepest common folder."""
    if not images:
        return fallback
    common = Path(os.path.commonpath([image.parent for image in images]))
    above = [folder for folder in (common, *common.parents) if folder.name == "images"]
    inside = [folder for folder in above if folder.resolve().is_relative_to(fallback.resolve())]
    return inside[0] if inside else common


def _stands_for(folder: YoloFolder, split: str) -> Path:
    """What messages call the split: its folder or list, the settings file if it has several."""
    return folder.splits[split][0] if len(folder.splits[split]) == 1 else folder.file


def _categories(folder: YoloFolder) -> list[Raw]:
    """Stored ids if they are those of the same names in the same order, else 1, 2, ..."""
    stored = stored_categories(folder.root)
    ids = [category["id"] for category in stored]
    same = [category["name"] for category in stored] == list(folder.names)
    return stored if same and all(isinstance(i, int) for i in ids) else numbered(folder.names)


def _add_objects(file: Path, image: Raw, document: Document, ids: list[object]) -> None:
    if not file.is_file() or file.stat().st_size == 0:
        return
    log: FindingLog | None = None
    for number, words in _lines_of(file):
        try:
            record = _parse_line(words, image, ids)
        except ValueError as error:
            log = log or document.log_for(file)
            code, message = error.args
            log.add(code, message, path=f"line {number}", value=" ".join(words)[:80])
            continue
        document.enter("annotations", record, Place(str(file), f"line {number}"))


def _lines_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    text = read_bytes(file).decode("utf-8-sig", errors="replace")
    return (
        (number, words) for number, line in enumerate(text.splitlines(), start=1) if (words := line.split())
    )


def _parse_line(words: list[str], image: Raw, ids: list[object]) -> Raw:
    """One object.

    Raises:
        ValueError: Its arguments are the code and the message of a finding.
    """
    values = _numbers(words)
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError("yolo-line", f"{len(values)} numbers; a box has 5, a polygon 7, 9, 11, ...")
    if not values[0].is_integer() or not 0 <= values[0] < len(ids):
        raise ValueError("yolo-class", f"class {words[0]} is not in 0..{len(ids) - 1}")
    if min(values[1:]) < -_SLACK or max(values[1:]) > 1 + _SLACK:
        raise ValueError("yolo-range", "coordinates are not within 0..1 (relative to the image's size)")
    height, width = float(str(image["height"])), float(str(image["width"]))
    record: Raw = {"image_id": image["id"], "category_id": ids[int(values[0])]}
    if len(values) == 5:
        x, y, w, h = values[1] * width, values[2] * height, values[3] * width, values[4] * height
        return record | {"bbox": [x - w / 2, y - h / 2, w, h]}
    xs, ys = [v * width for v in values[1::2]], [v * height for v in values[2::2]]
    bounds = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    corners = [edge for corner in zip(xs, ys, strict=True) for edge in corner]
    return record | {"bbox": bounds, "segmentation": [corners]}


def _numbers(words: list[str]) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError("yolo-line", "the line holds something other than numbers") from None
    if not all(map(math.isfinite, values)):
        raise ValueError("yolo-line", "the line holds NaN or infinity")
    return values

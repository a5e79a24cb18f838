"""YOLO: one text file per image, one object per line, everything relative to the image's size.

What a row is: `yolo_rows`. Which label belongs to which image: `yolo_labels`; an image without one is background. Image
ids are unique over the splits of the data set: see `document.image_numbers`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from scantling.data.coco import CocoDataset, ReadOptions
from scantling.data.findings import FindingLog, Kind, name_some
from scantling.data.formats.document import (
    Document,
    Place,
    Raw,
    add_sizes,
    image_numbers,
    numbered,
    stored_categories,
)
from scantling.data.formats.yolo_labels import LabelFiles, labels_folder, pair_labels
from scantling.data.formats.yolo_rows import BOX, RowReading, parse_row, reading_of, rows_of, unread_of
from scantling.data.formats.yolo_settings import YoloFolder, text_of
from scantling.data.images.open import pictures_below
from scantling.data.spelling import likeness


def read_yolo(folder: YoloFolder, split: str, options: ReadOptions) -> CocoDataset:
    """One split of a YOLO data set.

    Args:
        folder: See `yolo_settings`.
        split: One of its splits.
        options: How strictly.

    Raises:
        DataError: With the findings of all files, if one is an error, or if rows can be read in two ways.
    """
    by_split = {
        name: [image for source in folder.splits[name] for image in _images_of(source, folder)]
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
    pairs = pair_labels((p for paths in by_split.values() for p in paths), folder.splits[split], folder.bases)
    reader = _Objects(document, ids, reading_of(folder, _in_turn(pairs, by_split[split])))
    usable = add_sizes(records, document)
    for path in usable:
        document.enter("images", records[path], Place(str(path)))
        if path in pairs.labels:
            reader.add(pairs.labels[path], records[path])
    reader.remark()
    reader.remark_on_lost(pairs.labels[path] for path in (records.keys() - set(usable)) & pairs.labels.keys())
    _remark_on_pairs(pairs, by_split[split], document)
    return document.dataset()


def label_path(image: Path, base: Path) -> Path:
    """Where to write the labels of an image of a data set that lies in `base`."""
    return labels_folder(image.parent, (base,)) / f"{image.stem}.txt"


class _Objects:
    """Adds the rows of label files to a document, and counts those of which something is not read."""

    def __init__(self, document: Document, ids: list[object], reading: RowReading) -> None:
        self.document = document
        self.ids = ids
        self.reading = reading
        self.shortened = 0
        self.mixed: list[str] = []

    def add(self, file: Path, image: Raw) -> None:
        log: FindingLog | None = None
        boxes = set[bool]()
        for number, words in rows_of(file):
            try:
                record = parse_row(words, image, self.ids, self.reading)
            except ValueError as error:
                log = log or self.document.log_for(file)
                code, message, *hint = error.args
                place, value = f"line {number}", " ".join(words)[:80]
                log.add(code, message, path=place, value=value, hint=hint[0] if hint else None)
                continue
            boxes.add(len(words) == BOX)
            self.shortened += len(words) > BOX and (self.reading.length is not None or self.reading.rotated)
            unread = unread_of(words, self.reading)
            self.document.enter("annotations", record, Place(str(file), f"line {number}"), unread)
        self.mixed += [str(file)] if len(boxes) > 1 else []

    def remark(self) -> None:
        """Say what was left out of the rows."""
        log = self.document.log_for(self.document.file)
        if self.shortened and self.reading.rotated:
            message = f"{self.shortened} rotated boxes are read as the upright boxes around them"
            log.add("box-rotated", message, kind=Kind.NOTE)
        elif self.shortened:
            log.add("yolo-keypoints", f"{self.shortened} rows have key points; their boxes are used")
        if self.mixed:
            message = f"{len(self.mixed)} label files have rows of boxes beside longer ones: {name_some(self.mixed)}"
            log.add("yolo-mixed", message)

    def remark_on_lost(self, files: Iterable[Path]) -> None:
        """Count the rows of images that cannot be used."""
        rows = [sum(1 for _ in rows_of(file)) for file in files]
        if any(rows):
            message = (
                f"{sum(rows)} rows of {len(rows)} label files are not used, because their images cannot be"
            )
            self.document.log_for(self.document.file).add("annotations-dropped", message)


def _in_turn(pairs: LabelFiles, first: Iterable[Path]) -> list[Path]:
    """The label files of the data set, those of the images that are being read first."""
    return list(
        dict.fromkeys([*(pairs.labels[i] for i in first if i in pairs.labels), *pairs.labels.values()])
    )


def _remark_on_pairs(pairs: LabelFiles, images: list[Path], document: Document) -> None:
    """Name what has no counterpart, and what was found under another name."""
    log, mine = document.log_for(document.file), set(images)
    respelled = [f"{pairs.labels[i]} for {i.name}" for i in pairs.respelled if i in mine]
    if respelled:
        message = f"{len(respelled)} label files are spelled unlike their images: {name_some(respelled)}"
        log.add("label-spelling", message)
    for label, several in pairs.shared.items():
        if mine & set(several):
            message = f"{label} labels {len(several)} images: {name_some([image.name for image in several])}"
            log.add("label-shared", message)
    if pairs.unused:
        bare = {likeness(image.stem): image for image in images if image not in pairs.labels}
        listed = [_with_likely_image(path, bare) for path in pairs.unused]
        rows = sum(1 for path in pairs.unused for _ in rows_of(path))
        message = f"{len(listed)} label files with {rows} rows belong to no image: {name_some(listed)}"
        log.add("label-unused", message)


def _with_likely_image(label: Path, bare: dict[str, Path]) -> str:
    image = bare.get(likeness(label.stem))
    return f"{label} (for {image}?)" if image else str(label)


def _images_of(source: Path, folder: YoloFolder) -> list[Path]:
    if source.is_dir():
        return [Path(os.path.normpath(path)) for path in pictures_below(source)]
    lines = [line.strip() for line in text_of(source, "the list of images").splitlines() if line.strip()]
    places = dict.fromkeys((source.parent, folder.base or folder.root, folder.root))
    return [Path(os.path.normpath(_listed_image(line, list(places)))) for line in lines]


def _listed_image(line: str, places: list[Path]) -> Path:
    """The image of a line; leading folders of another machine or tool (`data/...` of darknet) are forgiven."""
    parts = Path(line.replace("\\", "/")).parts
    tries = [
        places[0] / line,
        *(place.joinpath(*parts[skip:]) for skip in range(len(parts)) for place in places),
    ]
    return next((path for path in tries if path.is_file()), tries[0])


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

"""What a person may name as data: a folder, one of its splits, an annotations file, or a list of image ids.

parts/                       the folder of a data set of a single split
parts:val                    a split of a folder in any format
parts/annotations/val.json   a COCO file; likewise data.yaml, ImageSets/Main/val.txt, val_annotations.json
splits/fold0-val.json        a split file: {"name", "data", "image_ids"}; `data` is any of the above, relative to it
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from scantling.data.coco import CocoDataset, ImageId, ReadOptions
from scantling.data.coco.annotations import BACKGROUND_CODES, remark_on_background
from scantling.data.findings import FindingLog, name_some, refuse, tell_warnings
from scantling.data.formats.delftbikes import TARGETS, State, delftbikes_folder, read_delftbikes
from scantling.data.formats.layouts import Layout, announce, detect_format, read_file, yolo_layout
from scantling.data.formats.voc import read_voc, voc_folder
from scantling.data.formats.yolo_settings import read_settings
from scantling.data.io import hint_for_missing, read_json, write_json
from scantling.errors import UsageError

_logger = logging.getLogger(__name__)

_PEEK = 4096
_KEYS = {"name", "data", "image_ids"}


class Location(NamedTuple):
    """A path and, for a folder of several splits, the one that is meant."""

    path: Path
    split: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.split}" if self.split else str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFile:
    """A list of images of some data set.

    Attributes:
        name: Of the split.
        data: Where its images and annotations are.
        image_ids: Ids as that data set has them.
    """

    name: str
    data: Location
    image_ids: tuple[ImageId, ...]


def parse_location(text: Path | str) -> Location:
    """A path, or `FOLDER:SPLIT` where no such path exists."""
    path = Path(text)
    folder, colon, split = str(text).rpartition(":")
    if colon and split and not path.exists() and Path(folder).is_dir():
        return Location(Path(folder), split)
    return Location(path)


def read_given(data: str | Path, *, skip_invalid: bool = False, count_difficult: bool = False) -> CocoDataset:
    """Read what a person named, strictly or leniently; what was found in it goes to the log.

    Args:
        data: See the top of this module.
        skip_invalid: Leave faulty records out, counted, instead of stopping.
        count_difficult: As in `ReadOptions`.

    Raises:
        DataError: As `read_location`.
    """
    options = ReadOptions(skip_invalid=skip_invalid, count_difficult=count_difficult)
    dataset = read_location(data, options)
    tell_warnings(dataset.findings, _logger, rest="`scantling check` tells all")
    if dataset.num_crowd or dataset.num_ignored:
        _logger.info("%s: %s", data, dataset.counts_text())
    return dataset


def read_location(
    location: Location | Path | str,
    options: ReadOptions | None = None,
    *,
    image_root: Path | None = None,
    states: tuple[State, ...] = TARGETS,
) -> CocoDataset:
    """Read whatever a person named.

    Args:
        location: See the top of this module.
        options: How strictly.
        image_root: Folder to which the names in a COCO file are relative; None: found near the file.
        states: DelftBikes parts in other states are no targets.

    Raises:
        DataError: It cannot be used, or the folder has several splits and none is named.
    """
    path, split = location if isinstance(location, Location) else parse_location(location)
    options = options or ReadOptions()
    if path.is_dir():
        layout = detect_format(path, states=states)
        announce(layout)
        return layout.read(layout.split_named(split or only_split(layout)), options)
    if is_split_file(path):
        return _read_listed(path, options, states)
    if path.suffix.lower() in (".yaml", ".yml"):
        settings = yolo_layout(read_settings(path))
        return settings.read(settings.split_named(split or only_split(settings)), options)
    if path.suffix.lower() == ".txt" and path.parent.name == "Main" and (voc := voc_folder(path.parents[2])):
        return read_voc(voc, path.stem, options)
    bikes = delftbikes_folder(path.parent) if path.is_file() else None
    name = (
        next((name for name, file in bikes.splits.items() if file.name == path.name), None) if bikes else None
    )
    if bikes and name:
        return read_delftbikes(bikes, name, options, states=states)
    return read_file(path, image_root, options)


def read_splits(
    location: Location | Path | str, options: ReadOptions, *, states: tuple[State, ...] = TARGETS
) -> dict[str, CocoDataset]:
    """All splits of a folder, or the one that is named; by name.

    Raises:
        DataError: With the findings of the first split that cannot be used.
    """
    location = location if isinstance(location, Location) else parse_location(location)
    if location.split is None and location.path.is_dir():
        layout = detect_format(location.path, states=states)
        announce(layout)
        return {split: layout.read(split, options) for split in layout.splits}
    return {split_name(location): read_location(location, options, states=states)}


def split_name(location: Location) -> str:
    """What to call the one split of a location."""
    if location.split:
        return location.split
    return read_split_file(location.path).name if is_split_file(location.path) else location.path.stem


def only_split(layout: Layout) -> str:
    """The split of a data set that has one.

    Raises:
        DataError: It has several.
    """
    if len(layout.splits) != 1:
        message = (
            f"{layout.format} data set with the splits {', '.join(layout.splits)}; one of them is needed"
        )
        refuse("split-choice", str(layout.root), message, hint=f"Write {layout.root}:{layout.splits[0]}.")
    return layout.splits[0]


def is_split_file(path: Path) -> bool:
    """Whether a file is a list of image ids, from its beginning."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(_PEEK)
    return b'"image_ids"' in head and b'"images"' not in head


def read_split_file(path: Path) -> SplitFile:
    """Read `{"name": ..., "data": ..., "image_ids": [...]}`.

    Raises:
        DataError: A key is missing, or holds something else.
    """
    content = read_json(path)
    missing = sorted(_KEYS - content.keys()) if isinstance(content, dict) else sorted(_KEYS)
    if missing or not isinstance(content, dict):
        hint = 'Expected {"name": "train", "data": "../parts:train", "image_ids": [1, 2]}.'
        refuse("split-file", str(path), f"the keys {', '.join(missing)} are missing", hint=hint)
    ids, data = content["image_ids"], content["data"]
    if (
        not isinstance(ids, list)
        or not all(isinstance(i, int | float | str) for i in ids)
        or not isinstance(data, str)
    ):
        refuse("split-file", str(path), "`image_ids` must be a list of ids and `data` a path")
    location = parse_location(path.parent / data)
    if not location.path.exists():
        hint = hint_for_missing(location.path) or "Correct `data`: it is relative to this file."
        refuse("split-file", str(path), f"its data set is not at {location.path}", path="data", hint=hint)
    return SplitFile(name=str(content["name"]), data=location, image_ids=tuple(ids))


def write_split_file(path: Path, name: str, data: Location, image_ids: Iterable[ImageId]) -> None:
    """Write a split file; the path of the data set becomes relative to it.

    Raises:
        UsageError: The file cannot be written.
    """
    relative = Path(os.path.relpath(data.path.resolve(), path.parent.resolve()))
    content = {"name": name, "data": str(Location(relative, data.split)), "image_ids": list(image_ids)}
    write_json(path, content)


def _read_listed(file: Path, options: ReadOptions, states: tuple[State, ...]) -> CocoDataset:
    """The images that a split file lists; those without objects are counted among them, not in the whole data set."""
    listed = read_split_file(file)
    dataset = read_location(listed.data, options, states=states)
    unknown = [i for i in listed.image_ids if i not in dataset.index_of]
    if unknown:
        message = (
            f"{listed.data} has no images with the ids {name_some(unknown)} that split {listed.name!r} lists"
        )
        raise UsageError(message, hint="The data set changed since: write the split anew.")
    chosen = dataset.subset(listed.image_ids)
    log = FindingLog(str(file), options.policy)
    remark_on_background({i.id: a for i, a in zip(chosen.images, chosen.annotations, strict=True)}, log)
    kept = (finding for finding in chosen.findings if finding.code not in BACKGROUND_CODES)
    return replace(chosen, findings=(*kept, *log.findings), listed_in=file)

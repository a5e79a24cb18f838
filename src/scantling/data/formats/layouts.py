"""Which format a folder is in, and one way to read any of them.

COCO        annotations/SPLIT.json, annotations/instances_SPLIT*.json, SPLIT.json
Roboflow    SPLIT/_annotations.coco.json beside the images (also VISION)
DelftBikes  SPLIT_annotations.json with parts and states
YOLO        data.yaml; darknet's obj.data; or images/ and labels/, or both in one folder, with classes.txt
VOC         Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt; or XML beside the images
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scantling.data.coco import CocoDataset, ReadOptions, find_split, read_coco_as
from scantling.data.coco.layout import (
    alias_of,
    coco_splits,
    files_without_objects,
    other_annotations,
    require_folder,
)
from scantling.data.findings import FindingLog, name_some, refuse
from scantling.data.formats.darknet import darknet_file, read_darknet
from scantling.data.formats.delftbikes import TARGETS, State, delftbikes_folder, read_delftbikes
from scantling.data.formats.foreign import foreign_files
from scantling.data.formats.voc import read_voc, voc_folder
from scantling.data.formats.yolo import read_yolo
from scantling.data.formats.yolo_settings import (
    YoloFolder,
    folder_without_settings,
    has_labels,
    read_settings,
    settings_file,
)
from scantling.data.images.open import is_picture

_logger = logging.getLogger(__name__)

Reader = Callable[[str, ReadOptions], CocoDataset]

_KNOWN = "COCO, Roboflow, DelftBikes, YOLO (data.yaml, images/, labels/) and VOC (Annotations/, JPEGImages/)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A data set folder that was recognised.

    Attributes:
        format: `COCO`, `Roboflow`, `DelftBikes`, `YOLO` or `VOC`.
        root: The folder.
        splits: Names of its splits as the folder has them.
        read: Reads one of them.
        notes: What a person should know about the choice.
    """

    format: str
    root: Path
    splits: tuple[str, ...]
    read: Reader
    notes: tuple[str, ...] = ()

    @property
    def is_coco(self) -> bool:
        """Whether its annotations are COCO files already."""
        return self.format in ("COCO", "Roboflow")

    def split_named(self, split: str) -> str:
        """The folder's own name of a split: `valid` for `val`.

        Raises:
            DataError: There is none.
        """
        found = alias_of(split, self.splits)
        if found is None:
            message = f"no split {split!r}; this {self.format} data set has {', '.join(self.splits)}"
            hint = (
                f"Divide it with `scantling split {shlex.quote(str(self.root))} --out splits`."
                if len(self.splits) == 1
                else None
            )
            refuse("split-missing", str(self.root), message, hint=hint)
        return found

    def __str__(self) -> str:
        plural = "s" if len(self.splits) != 1 else ""
        return f"{self.root}: {self.format} with the split{plural} {', '.join(self.splits)}"


def detect_format(folder: Path | str, *, states: tuple[State, ...] = TARGETS) -> Layout:
    """Recognise the format of a data set by what lies in its folder.

    Args:
        folder: Of the data set; only names are looked at, and the beginning of a few files.
        states: DelftBikes parts in other states are no targets.

    Raises:
        DataError: The folder is missing or in no known format; the message says what was found there.
    """
    root = Path(folder)
    require_folder(root)
    finders = (_coco, lambda where: _delftbikes(where, states), _yolo, _voc)
    found = [layout for find in finders if (layout := find(root)) is not None]
    if not found:
        _refuse_unknown(root)
    others = [layout.format for layout in found[1:]]
    notes = (f"it could be read as {', '.join(others)} too",) if others else ()
    return replace(found[0], notes=(*found[0].notes, *notes))


def _coco(root: Path) -> Layout | None:
    files = coco_splits(root)
    if not files:
        return None
    beside = all(path.name == "_annotations.coco.json" for path in files.values())

    def read(split: str, options: ReadOptions) -> CocoDataset:
        file, image_root = find_split(root, split)
        return read_file(file, image_root, options)

    name, passed = "Roboflow" if beside else "COCO", other_annotations(root)
    notes = (f"no splits of their own, not read: {name_some(passed, 8)}",) if passed else ()
    return Layout(format=name, root=root, splits=tuple(files), read=read, notes=notes)


def _delftbikes(root: Path, states: tuple[State, ...]) -> Layout | None:
    found = delftbikes_folder(root)
    if found is None:
        return None

    def read(split: str, options: ReadOptions) -> CocoDataset:
        return read_delftbikes(found, split, options, states=states)

    return Layout(format="DelftBikes", root=root, splits=tuple(found.splits), read=read)


def _yolo(root: Path) -> Layout | None:
    file = settings_file(root)
    if file is not None:
        return yolo_layout(read_settings(file))
    settings = darknet_file(root)
    if settings is not None:
        return yolo_layout(read_darknet(settings))
    return yolo_layout(folder_without_settings(root)) if has_labels(root) else None


def yolo_layout(found: YoloFolder) -> Layout:
    """The layout of YOLO settings."""

    def read(split: str, options: ReadOptions) -> CocoDataset:
        return read_yolo(found, split, options)

    return Layout(format="YOLO", root=found.root, splits=tuple(found.splits), read=read)


def _voc(root: Path) -> Layout | None:
    found = voc_folder(root)
    if found is None:
        return None

    def read(split: str, options: ReadOptions) -> CocoDataset:
        return read_voc(found, split, options)

    drawn = [name for name in ("SegmentationObject", "SegmentationClass") if (root / name).is_dir()]
    notes = (f"masks in pictures are not read: {name_some(drawn)}",) if drawn else ()
    return Layout(format="VOC", root=root, splits=tuple(found.splits), read=read, notes=notes)


def read_file(file: Path, image_root: Path | None, options: ReadOptions) -> CocoDataset:
    """A COCO file under the given options."""
    return read_coco_as(file, image_root, options)


def understood(layout: Layout, dataset: CocoDataset, split: str) -> str:
    """One line about a split that was read."""
    names = name_some(list(dataset.class_names), 8)
    counts = f"{dataset.counts_text()}, {len(dataset.categories)} categories ({names})"
    return f"{split}: {counts}; {layout.format}, {dataset.file}"


def announce(layout: Layout) -> None:
    """Say what was understood before anything else."""
    _logger.info("%s", layout)
    for note in layout.notes:
        FindingLog(str(layout.root), ReadOptions().policy).add("format-several", note)
        _logger.info("%s: %s", layout.root, note)


def _refuse_unknown(root: Path) -> None:
    """Say what is there instead, and what probably was meant."""
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir() if entry.name[0] != ".")
    images = [name for name in entries if is_picture(root / name)]
    message = f"no known layout; found here: {name_some(entries, 8) or 'nothing'}"
    refuse("format-unknown", str(root), message, hint=_advice(root, entries, images))


def _advice(root: Path, entries: list[str], images: list[str]) -> str:
    for name in entries:
        if name.endswith("/") and is_data_set(root / name):
            return f"The data set is in {root / name}: give that folder."
    above = root.absolute().parent
    meant = f"Labels are in {above}: give that folder." if images and is_data_set(above) else ""
    if bare := files_without_objects(root):
        return (
            f"COCO's files of captions, stuff, panoptic labels and image lists hold no instances: {name_some(bare)}."
            " Export or download instances_SPLIT.json, and put it there."
        )
    foreign = foreign_files(root)
    if foreign or meant:
        return " ".join(filter(None, (foreign, meant)))
    if images:
        return "Images without annotations can only be looked at, with `scantling predict`."
    return f"Known layouts: {_KNOWN}. See docs/formats.md."


def find_data_sets(folder: Path) -> dict[str, Path]:
    """The data sets of a folder: its sub-folders in a known format by name, in alphabetical order.

    Args:
        folder: Of data sets, such as that of VISION. Sub-folders in no known format, and hidden ones, are no data sets.

    Raises:
        DataError: The folder is missing.
    """
    require_folder(folder)
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {path.name: path for path in sorted(inside, key=lambda path: path.name) if is_data_set(path)}


def is_data_set(folder: Path) -> bool:
    """Whether a folder is in a known format, as far as its names tell; one whose files are damaged is, too."""
    return bool(
        coco_splits(folder)
        or settings_file(folder)
        or darknet_file(folder)
        or voc_folder(folder)
        or delftbikes_folder(folder)
    )

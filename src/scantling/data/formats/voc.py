"""Pascal VOC: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/SPLIT.txt`.

Edges are counted in pixels from 1 and belong to the box: x = xmin - 1, width = xmax - xmin + 1 (VOC development kit).
Decimals are read as they are, so converted boxes keep their sub-pixel position. An edge `0` shows a tool that counted
from 0; such boxes are clipped at the image's edge and counted in a warning, because guessing would shift whole sets.

Without `ImageSets` everything is the one split `all`. LabelImg and Roboflow write the XML beside the images, in the
folder itself or in `train`, `valid` and `test`, which are then the splits. Class names come from all XML files of the
folder, sorted, so that every split has the same list; a `categories.json` beside the folders fixes ids and order.
An object's mask is its `<polygon>`, if it has one: see `voc_polygons`.
XML files without an image, images without XML, and names in another spelling (`A.JPG`, `%20`) are told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from scantling.data.coco import CocoDataset, ReadOptions
from scantling.data.findings import FindingLog, name_some
from scantling.data.formats.document import ClassIds, Document, Place, Raw, image_numbers, stored_categories
from scantling.data.formats.safe_xml import Element, read_xml
from scantling.data.formats.voc_polygons import mask_of
from scantling.data.formats.yolo_settings import text_of
from scantling.data.images.open import (
    PICTURE_SUFFIXES,
    files_below,
    image_header,
    is_picture,
    pictures_below,
)
from scantling.data.spelling import Names
from scantling.errors import DataError, Finding
from scantling.ops.rle import RLE, check_size

ALL = "all"
FLAGS = ("truncated", "difficult", "occluded")
CROWD = "iscrowd"
"""Not VOC's: marks the difficult object that was a crowd region before it was written as VOC."""

_LABELS, _IMAGES = ("Annotations", "annotations"), ("JPEGImages", "images", "Images", "jpegimages")
_SPLIT_NAMES = ("train", "val", "trainval", "test")
_FOLDERS = ("train", "valid", "val", "test")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_READ = frozenset({"name", "bndbox", "polygon", CROWD, *FLAGS})
_NOTHING = ("", "0", "unspecified")
_XML = ".xml"
_PEEK = 4096


class VocFolder(NamedTuple):
    """What lies where; XML files and images by stem (path without suffix, relative to their folder).

    A split is a list of stems, a folder of XML files, or None for all of them.
    """

    root: Path
    label_root: Path
    image_root: Path
    labels: dict[str, Path]
    images: dict[str, list[str]]
    splits: dict[str, Path | None]


def voc_folder(root: Path) -> VocFolder | None:
    """The parts of a VOC data set; None if this folder is none."""
    label_root = next((root / name for name in _LABELS if _xml_below(root / name)), None)
    if label_root is None:
        return _beside_images(root)
    image_root = next((root / name for name in _IMAGES if (root / name).is_dir()), label_root)
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    splits: dict[str, Path | None] = {path.stem: path for path in lists if not _is_class_list(path.stem)}
    return VocFolder(
        root=root,
        label_root=label_root,
        image_root=image_root,
        labels={_stem(path, label_root): path for path in _xml_below(label_root)},
        images=_by_stem(pictures_below(image_root), image_root),
        splits=splits or {ALL: None},
    )


def _beside_images(root: Path) -> VocFolder | None:
    """XML files that lie beside their images, in the folder or in those of the splits."""
    folders = [root / name for name in _FOLDERS if (root / name).is_dir()]
    files = {folder: [p for p in folder.iterdir() if _is_voc(p)] for folder in (*folders, root)}
    splits: dict[str, Path | None] = {folder.name: folder for folder in folders if files[folder]}
    if not splits and not files[root]:
        return None
    xml = sorted(file for folder in files if not splits or folder != root for file in files[folder])
    pictures = [path for folder in files for path in folder.iterdir() if is_picture(path)]
    return VocFolder(
        root=root,
        label_root=root,
        image_root=root,
        labels={_stem(path, root): path for path in xml},
        images=_by_stem(pictures, root),
        splits=splits or {ALL: None},
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
    stored = stored_categories(folder.root)
    counted = _further_categories(stored, parsed)
    categories = [*stored, *({"id": number, "name": name} for number, name in counted.items())]
    document.add_categories(categories)
    document.counted_ids = frozenset(counted)
    ids = ClassIds(categories)
    numbers = image_numbers({stem: PurePosixPath(stem).name for stem in [*folder.labels, *folder.images]})
    pairs = _Pairs(folder, document)
    zeros: list[str] = []
    for line, entry in _stems_of(folder, listed):
        stem = pairs.label_of(entry)
        if stem is None:
            message, hint = f"there is no XML file for {entry!r}", None
            if images := pairs.set_aside(entry):
                message += f", whose image {images[0]} is there"
                hint = (
                    f"If there is no object on it, write {folder.label_root / entry}.xml with `<annotation/>`;"
                    " else label it, or take it off the list."
                )
            log = document.log_for(document.file)
            log.add("label-file-missing", message, path=f"line {line}" if line else None, hint=hint)
            continue
        file = folder.labels[stem]
        found = parsed[file]
        if isinstance(found, tuple):
            pairs.set_aside(stem)
            log = document.log_for(file)
            for finding in found:
                log.add(finding.code, finding.message, path=finding.path, value=finding.value)
            continue
        image_id = numbers[stem]
        image = _image(found, pairs.image_of(stem, found), image_id)
        document.enter("images", image, Place(str(file)))
        _add_objects(found, document, file, image, ids)
        zeros += [stem] if _counts_from_zero(found) else []
    if zeros:
        message = f"{len(zeros)} files have an edge 0 where VOC counts from 1: {name_some(zeros)}"
        document.log_for(document.file).add("voc-counts-from-zero", message)
    pairs.remark(split)
    return document.dataset()


class _Pairs:
    """Which image belongs to which XML file, and what belongs to none."""

    def __init__(self, folder: VocFolder, document: Document) -> None:
        self.folder = folder
        self.document = document
        self._labels, self._images = Names(folder.labels), Names(folder.images)
        self._respelled: list[str] = []
        self._used: set[str] = set()

    def label_of(self, entry: str) -> str | None:
        """The stem of the XML file that a line of a list means."""
        stem = self._labels.spelled(entry)
        if stem is not None and stem != entry:
            self._respelled.append(f"{self.folder.labels[stem].name} for {entry}")
        return stem

    def image_of(self, stem: str, root: Element) -> str:
        """The image of an XML file: of the same name, else the one that it names inside."""
        named = root.text_of("filename")
        found = self._images.spelled(stem)
        if found is not None:
            several = self.folder.images[found]
            image = next((name for name in several if PurePosixPath(name).name == named), several[0])
            if found != stem:
                self._respelled.append(f"{image} for {self.folder.labels[stem].name}")
        else:
            beside = PurePosixPath(stem).with_name(named) if named and "/" not in named else None
            tries = [str(name) for name in (beside, named) if name]
            image = next((n for n in tries if (self.folder.image_root / n).is_file()), f"{stem}.jpg")
        self._used.add(image)
        return image

    def set_aside(self, stem: str) -> list[str]:
        """The images of a name that cannot be used, because its XML file is missing or cannot be read."""
        found = self._images.spelled(stem)
        images = self.folder.images[found] if found is not None else []
        self._used.update(images)
        self.document.set_aside += [self.folder.image_root / image for image in images]
        return images

    def remark(self, split: str) -> None:
        """Name the images without XML and the XML files that no list names."""
        log, listed = self.document.log_for(self.document.file), self.folder.splits[split]
        if self._respelled:
            message = f"{len(self._respelled)} files are spelled unlike their partners: "
            log.add("label-spelling", message + name_some(self._respelled))
        if listed is not None and not listed.is_dir():
            return
        prefix = f"{listed.name}/" if listed is not None else ""
        names = (name for several in self.folder.images.values() for name in several)
        bare = sorted(name for name in names if name.startswith(prefix) and name not in self._used)
        if bare:
            message = f"{len(bare)} images have no XML file and are not used: {name_some(bare)}"
            log.add("image-unlabelled", message)
            self.document.set_aside += [self.folder.image_root / name for name in bare]


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


def _further_categories(stored: list[Raw], parsed: dict[Path, Parsed]) -> dict[int, str]:
    """Name by id of what the files name beside the stored categories, counted on from these in alphabetical order."""
    roots = [element for element in parsed.values() if isinstance(element, Element)]
    names = {name for element in roots for box in element.all("object") if (name := _name(box)).strip()}
    known = ClassIds(stored)
    rest = sorted({name.strip() for name in names if known.of(name) is None})
    first = 1 + max((number for c in stored if isinstance(number := c["id"], int)), default=0)
    return dict(enumerate(rest, start=first))


def _name(element: Element) -> str:
    """The class of an object, white space included: `ClassIds` decides whether that means something."""
    child = element.find("name")
    return child.text if child else ""


def _stems_of(folder: VocFolder, listed: Path | None) -> Iterator[tuple[int, str]]:
    """Line and stem of every image of a split."""
    if listed is None or listed.is_dir():
        folders = folder.labels.items()
        yield from ((0, stem) for stem, path in folders if listed is None or listed in path.parents)
        return
    for line, entry in enumerate(text_of(listed, "the list").splitlines(), start=1):
        stem = entry.strip()
        if stem and stem not in folder.labels:  # `2007_000027 -1`: a list of one class, or a full file name
            head, _, mark = stem.rpartition(" ")
            stem = head.strip() if mark in ("1", "0", "-1") and head else stem
            stem = stem[: -len(Path(stem).suffix)] if Path(stem).suffix.lower() in PICTURE_SUFFIXES else stem
        if stem:
            yield line, stem


def _image(root: Element, name: str, image_id: int) -> Raw:
    """The image record; the size is left to the image file where the XML has none."""
    size = root.find("size")
    width, height = (_number(size.text_of(side)) if size else None for side in ("width", "height"))
    record: Raw = {"id": image_id, "file_name": name}
    return record | {"width": width, "height": height} if width and height else record


def _add_objects(root: Element, document: Document, file: Path, image: Raw, ids: ClassIds) -> None:
    log: FindingLog | None = None
    for element in root.all("object"):
        box, name = _box(element), _name(element)
        category_id = ids.of(name)
        if box is None or category_id is None:
            log = log or document.log_for(file)
            fault = "no name" if box is not None else "no bndbox with the numbers xmin, ymin, xmax, ymax"
            log.add("voc-object", f"the object has {fault}", path=f"line {element.line}", value=name or None)
            continue
        is_crowd = element.text_of(CROWD) == "1"
        marks = [CROWD, *(flag for flag in FLAGS if flag != "difficult")] if is_crowd else FLAGS
        flags = {flag: 1 for flag in marks if element.text_of(flag) == "1"}
        record: Raw = {"image_id": image["id"], "category_id": category_id, "bbox": box, **flags}
        try:
            mask = _mask(element, image, document.image_root)
        except ValueError as error:
            log = log or document.log_for(file)
            message, line, value = error.args
            log.add(
                "voc-polygon",
                f"a polygon of {name!r} is no mask, only the box remains: {message}",
                path=f"line {line}",
                value=value,
            )
        else:
            record |= {"segmentation": mask} if mask else {}
        document.enter("annotations", record, Place(str(file), f"line {element.line}"), _unread(element))


def _unread(element: Element) -> tuple[str, ...]:
    """What an object says beyond box, mask, name and flags: `<part>`, `<pose>Left</pose>`, CVAT's `<attributes>`."""
    others = (child for child in element.children if child.tag not in _READ)
    said = {child.tag for child in others if child.children or child.text.strip().lower() not in _NOTHING}
    return tuple(f"<{tag}> of objects" for tag in sorted(said))


def _mask(element: Element, image: Raw, image_root: Path) -> RLE | None:
    """The mask of an object; none where nothing tells the image's size, which is a finding about the image."""
    if element.find("polygon") is None:
        return None
    try:
        declared = [image[side] for side in ("height", "width") if side in image]
        size_hw = check_size(declared or image_header(image_root / str(image["file_name"])).upright_hw)
    except DataError:
        return None
    return mask_of(element, size_hw)


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


def _by_stem(pictures: Iterable[Path], root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(pictures):
        found.setdefault(_stem(path, root), []).append(path.relative_to(root).as_posix())
    return found


def _xml_below(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.suffix.lower() == _XML]


def _is_voc(path: Path) -> bool:
    """Whether a file is the XML of one image, from its beginning."""
    if path.suffix.lower() != _XML or not path.is_file():
        return False
    with path.open("rb") as stream:
        return re.search(rb"<annotation\b", stream.read(_PEEK)) is not None


def _is_class_list(stem: str) -> bool:
    """`dog_train.txt`: which images of the split have a dog."""
    return any(stem.endswith(f"_{name}") for name in _SPLIT_NAMES)

"""A foreign data set on its way into COCO: raw records, and the place in the user's files each came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from scantling.data.coco import CocoDataset, ReadOptions, parse_coco
from scantling.data.coco.records import AnnotationId
from scantling.data.findings import FindingLog, summarise
from scantling.data.images.open import image_header
from scantling.data.io import read_json
from scantling.errors import DataError, Finding, Severity

CATEGORIES_FILE = "categories.json"
"""Optional beside YOLO and VOC labels: ids and supercategories, which these formats cannot hold themselves."""

Raw = dict[str, object]

_PATH = re.compile(r"(images|annotations|categories)\[(\d+)\]")
_ORDER = (Severity.ERROR, Severity.WARNING, Severity.INFO)
Key = TypeVar("Key", str, Path)
_DIGITS = 15  # of a name that is taken for a number: exact in a float
_THREADS = 8


class Place(NamedTuple):
    """Where a record was written: a file, and `line 12` or a key inside it."""

    file: str
    within: str | None = None


@dataclass(kw_only=True)
class Document:
    """Raw COCO lists under construction.

    Attributes:
        file: What stands for the split: the list of its images, its settings, or the folder.
        image_root: Folder to which file names are relative.
        options: How strictly the records are checked.
        set_aside: See `CocoDataset`.
        counted_ids: Category ids that no file gives, but the reader.
    """

    file: Path
    image_root: Path
    options: ReadOptions
    records: dict[str, list[object]] = field(
        default_factory=lambda: {"images": [], "annotations": [], "categories": []}
    )
    places: dict[str, list[Place]] = field(default_factory=dict)
    logs: list[FindingLog] = field(default_factory=list)
    unread: dict[AnnotationId, tuple[str, ...]] = field(default_factory=dict)
    set_aside: list[Path] = field(default_factory=list)
    counted_ids: frozenset[int] = frozenset()

    def log_for(self, file: Path | str) -> FindingLog:
        """A log for what is wrong in one of the user's files."""
        log = FindingLog(str(file), self.options.policy)
        self.logs.append(log)
        return log

    def enter(self, key: str, record: Raw, place: Place, unread: tuple[str, ...] = ()) -> None:
        """Add a record to `images`, `annotations` or `categories`; annotations are numbered.

        Args:
            key: One of the three.
            record: As COCO has it.
            place: Where the user wrote it.
            unread: See `Annotation`.
        """
        if key == "annotations":
            number = len(self.records[key]) + 1
            record = {"id": number, **record}
            self.unread |= {number: unread} if unread else {}
        self.records[key].append(record)
        self.places.setdefault(key, []).append(place)

    def add_categories(self, categories: Iterable[Raw]) -> None:
        """Declare the classes."""
        for category in categories:
            self.enter("categories", category, Place(str(self.file)))

    def dataset(self) -> CocoDataset:
        """Check everything together.

        Raises:
            DataError: With all findings of all files, if one is an error.
        """
        own = [finding for log in self.logs for finding in log.findings]
        try:
            dataset = parse_coco(dict(self.records), self.file, self.image_root, self.options)
            checked: Sequence[Finding] = dataset.findings
        except DataError as error:
            dataset, checked = None, error.findings
        found = [*own, *map(self._relocated, checked)]
        found.sort(key=lambda finding: _ORDER.index(finding.severity))
        if dataset is None or any(finding.severity is Severity.ERROR for finding in found):
            raise DataError(f"{self.file}: {summarise(found)}", findings=found)
        annotations = tuple(
            tuple(replace(a, unread=self.unread[a.id]) if a.id in self.unread else a for a in own)
            for own in dataset.annotations
        )
        aside = (*dataset.set_aside, *self.set_aside)
        return replace(
            dataset,
            annotations=annotations,
            findings=tuple(found),
            set_aside=aside,
            counted_ids=self.counted_ids,
        )

    def _relocated(self, finding: Finding) -> Finding:
        """The finding with the place in the user's file instead of one in lists they never saw."""
        match = _PATH.match(finding.path or "")
        if not match:
            return finding
        place = self.places[match[1]][int(match[2])]
        identifier = None if match[1] == "annotations" else finding.id
        return replace(finding, file=place.file, path=place.within, id=identifier)


class ClassIds:
    """Category ids by the names that label files write.

    Args:
        categories: With `id` and `name`, of which none repeats.
    """

    def __init__(self, categories: Iterable[Raw]) -> None:
        self._exact = {str(category["name"]): category["id"] for category in categories}
        bare: dict[str, list[object]] = {}
        for name, number in self._exact.items():
            bare.setdefault(name.strip(), []).append(number)
        self._bare = {name: numbers[0] for name, numbers in bare.items() if len(numbers) == 1}

    def of(self, name: str) -> object | None:
        """The id of a name as it stands, else of the only one that differs in white space around it; or None."""
        return self._exact.get(name, self._bare.get(name.strip()))


def add_sizes(images: Mapping[Path, Raw], document: Document) -> list[Path]:
    """Fill in width and height from the headers of image files.

    Args:
        images: Record of each file; `width` and `height` are added.
        document: Takes the findings about files that cannot be used.

    Returns:
        The files that can be used, in the given order.
    """
    usable = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, found in zip(images, pool.map(_size_or_findings, images), strict=True):
            if isinstance(found, tuple):
                images[path] |= {"height": found[0], "width": found[1]}
                usable.append(path)
                continue
            document.set_aside.append(path)
            for finding in found:
                document.log_for(path).add(finding.code, finding.message, hint=finding.hint)
    return usable


def _size_or_findings(path: Path) -> tuple[int, int] | list[Finding]:
    try:
        return image_header(path).upright_hw
    except DataError as error:
        return list(error.findings)


def stored_categories(folder: Path) -> list[Raw]:
    """Categories that a conversion left beside the labels; empty if there are none.

    Raises:
        DataError: The file is there and is no JSON.
    """
    file = folder / CATEGORIES_FILE
    content = read_json(file) if file.is_file() else []
    records = content if isinstance(content, list) else []
    sound = [record for record in records if isinstance(record, dict) and {"id", "name"} <= record.keys()]
    return sound if len(sound) == len(records) else []


def image_numbers(names: Mapping[Key, str]) -> dict[Key, int]:
    """An id for every image of a data set whose format has none.

    Args:
        names: Name of each image's file without its ending, by what tells the images apart and sorts them.

    Returns:
        The names as numbers where all are numbers and none repeats, which is what Ultralytics writes into its results;
        else 1, 2, ... in the order of the keys.
    """
    if all(name.isascii() and name.isdecimal() and len(name) <= _DIGITS for name in names.values()):
        numbers = {key: int(name) for key, name in names.items()}
        if len(set(numbers.values())) == len(numbers):
            return numbers
    return {key: number for number, key in enumerate(sorted(names), start=1)}


def numbered(names: Iterable[str]) -> list[Raw]:
    """Categories with the ids 1, 2, ... in the given order."""
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]

"""Which image each result is about: told by the name of its file, by the data set's id, or by a number of the file.

    file_name ───────────────────────────► image             the surest: it outlives any numbering
    image_id, text ──► id, else file name ► image
    image_id, number ─┬─ as the data set's id ─────────┐
                      └─ as what the file is called by ┴─► judged over all results together: is there such an image,
                                                           and do the boxes lie inside it?

Where both readings of the numbers can be and differ, nothing is guessed: both are named, and the user decides.
N: results whose image a number tells; P: results.
"""

from __future__ import annotations

import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.geometry import looks_xyxy, numbers_of_box
from scantling.data.coco.parse import type_name, usable_id
from scantling.data.coco.records import ImageId
from scantling.data.findings import FindingLog, name_some
from scantling.ops.overlaps import xywh_to_xyxy
from scantling.settings.paths import ImageIds

NONE = -1
"""Position of an image that the data set does not have."""

_FAR = 0.05  # of the image's side; no detector that saw the image puts a box so far outside
_FAR_PIXELS = 2.0
_FILE_NAME = "(file_name)"
_MAX_DIGITS = 18
_HUGE = 1e12  # larger numbers only overflow
_FEW = 0.01  # of the boxes may lie there all the same


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """One way to understand numbers.

    Attributes:
        words: What the numbers are.
        places: (N,) position of each result's image, or NONE.
        num_known: Results whose image is there.
        num_outside: Of these, results whose box lies far outside the image or whose mask is of another size.
    """

    words: str
    places: NDArray[np.int64]
    num_known: int
    num_outside: int

    @property
    def is_complete(self) -> bool:
        """Whether there is an image for each number."""
        return self.num_known == len(self.places)

    @property
    def fits(self) -> bool:
        """Whether there is an image for each number, and the boxes lie in it."""
        return self.is_complete and self.num_outside <= _FEW * len(self.places)

    def differs(self, other: Reading) -> bool:
        """Whether another reading means other images."""
        return not np.array_equal(self.places, other.places)

    def to_text(self) -> str:
        """For people."""
        count = len(self.places)
        return (
            f"as {self.words}: {self.num_known} of {count} known, {self.num_outside} do not fit their image"
        )


@dataclass(slots=True)
class ImagePlaces:
    """Finds the image of each result and counts what is to be told about it.

    Attributes:
        dataset: What was predicted.
        log: Takes the findings.
        image_ids: What numbers are.
        unknown: Images that the data set does not have, as the results name them.
        num_missing: Results that name no image at all.
    """

    dataset: CocoDataset
    log: FindingLog
    image_ids: ImageIds = "auto"
    unknown: Counter[str] = field(default_factory=Counter)
    num_missing: int = 0
    _named: list[str] = field(default_factory=list)
    _contradicting: list[str] = field(default_factory=list)
    _hint: str | None = None

    def find(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Position of each result's image in the data set, or NONE; the findings are added to the log."""
        names = FileNames(self.dataset)
        places, numbers = [], []
        for row, record in enumerate(records):
            value, name = record.get("image_id"), record.get("file_name")
            identifier = usable_id(value)
            if isinstance(name, str) and name:
                places.append(self._by_name(names, name, identifier))
            elif isinstance(identifier, str):
                places.append(self._by_text(names, identifier))
            else:
                places.append(NONE)
                if identifier is not None:
                    numbers.append(row)
                elif value is None:
                    self.num_missing += 1
                else:
                    self.unknown[shown(value)] += 1
        if numbers:
            found = self._by_number(names, [records[row] for row in numbers])
            for row, place in zip(numbers, found.tolist(), strict=True):
                places[row] = place
                if place == NONE:
                    self.unknown[shown(records[row]["image_id"])] += 1
        self._report(len(records))
        return places

    def _by_name(self, names: FileNames, name: str, identifier: ImageId | None) -> int:
        by_id = NONE if identifier is None else self.dataset.index_of.get(identifier, NONE)
        place = names.find(name, by_id)
        if place == NONE:
            self.unknown[f"{name!r:.80} {_FILE_NAME}"] += 1
        elif by_id not in (place, NONE):
            self._contradicting.append(f"{name} with image_id {identifier!r}")
        return place

    def _by_text(self, names: FileNames, text: str) -> int:
        place = self.dataset.index_of.get(text, NONE)
        if place == NONE:
            place = names.find(text)
            if place == NONE:
                self.unknown[shown(text)] += 1
            else:
                self._named.append(text)
        return place

    def _by_number(self, names: FileNames, records: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
        """Position of each image (N,), by the reading that can be; refuses where several can."""
        frames = _Frames.of(records, self.dataset)
        by_id = frames.read("the data set's ids", self.dataset.index_of)
        by_file = frames.read("the numbers that the files are called by", names.numbers)
        if self.image_ids == "file" or (self._named and by_file.fits and by_file.differs(by_id)):
            chosen = by_file  # where other images are named by their files, so are these
        elif self.image_ids == "id" or not (by_file.num_known and by_file.differs(by_id)):
            chosen = by_id
        else:
            chosen = self._decide(by_id, by_file)
        if chosen is by_file:
            self._named += [str(record["image_id"]) for record in records]
        if self.image_ids == "auto" and not chosen.fits:
            self._doubt(chosen, [frames.read(*one) for one in names.numberings])
        if chosen.num_outside and not frames.look_xyxy(chosen):
            message = f"{chosen.num_outside} of {len(records)} predictions lie far outside their image"
            self.log.add("results-boxes-outside", message)
        return chosen.places

    def _decide(self, by_id: Reading, by_file: Reading) -> Reading:
        for one, other in ((by_id, by_file), (by_file, by_id)):
            if (one.is_complete and not other.is_complete) or (one.fits and not other.fits):
                return one
            if one.num_known and not other.num_known:
                return one
        self._refuse(by_id, by_file)
        return by_id

    def _doubt(self, chosen: Reading, others: Iterable[Reading]) -> None:
        """What the numbers may be where they do not fit as they are read: a hint, or the refusal of the reading."""
        other = next((one for one in others if one.fits and one.differs(chosen)), None)
        if other is None:
            return
        if chosen.is_complete:
            self._refuse(chosen, other)
        else:
            self._hint = (
                f"All would fit {other.to_text()}. If that is what they are, give each its file_name."
            )

    def _refuse(self, one: Reading, other: Reading) -> None:
        message = f"image_id can be read in two ways; {one.to_text()}; {other.to_text()}"
        self.log.add("results-image-ambiguous", message)

    def _report(self, count: int) -> None:
        add = self.log.add
        if self.num_missing:
            add("results-image-missing", f"{self.num_missing} of {count} predictions have no image_id")
        if self._named:
            message = f"{len(self._named)} of {count} predictions name their image by its file"
            add("results-image-named", message, value=self._named[0])
        if self._contradicting:
            message = (
                f"in {len(self._contradicting)} of {count} predictions file_name and image_id name different images;"
                f" the file counts: {self._contradicting[0]}"
            )
            add("results-image-differs", message)
        if self.unknown:
            names = [repr(image.file_name) for image in self.dataset.images]
            ids = [repr(identifier) for identifier in self.dataset.index_of]
            known = name_some(names if next(iter(self.unknown)).endswith(_FILE_NAME) else ids)
            message = (
                f"{self.unknown.total()} of {count} predictions are for {len(self.unknown)} images not in"
                f" {self.dataset.listed_in or self.dataset.file}: {', '.join(list(self.unknown)[:5])}; it has {known}"
            )
            add("results-image-unknown", message, hint=self._hint or self._hint_for_text())

    def _hint_for_text(self) -> str | None:
        """What to do where ids are text and those of the data set are numbers."""
        if not all(text.endswith("(text)") for text in self.unknown):
            return None
        if any(isinstance(identifier, str) for identifier in self.dataset.index_of):
            return None
        return (
            "An image_id in quotes is text, the data set's are numbers: write 7, not '7', or the file's name."
        )


class FileNames:
    """Images of a data set by what their files are called."""

    def __init__(self, dataset: CocoDataset) -> None:
        self._dataset = dataset
        self._paths = [PurePosixPath(image.file_name) for image in dataset.images]
        self._found: dict[tuple[str, int], int] = {}

    def find(self, name: str, preferred: int = NONE) -> int:
        """Position of the image that a name means, with any folders and any ending or none; NONE where it is unclear.

        Args:
            name: Of the file; folders before those of the data set do not matter.
            preferred: Position of the image to choose where several are meant alike.
        """
        key = (name, preferred)
        if key not in self._found:
            self._found[key] = self._search(PurePosixPath(name.replace("\\", "/")), preferred)
        return self._found[key]

    def _search(self, path: PurePosixPath, preferred: int) -> int:
        converted = [] if path.suffix[1:].isdecimal() else self._by_stem.get(path.stem, [])
        for found in (self._by_name.get(path.name, []), self._by_stem.get(path.name, []), converted):
            alike = [_shared_folders(self._paths[place], path) for place in found]
            best = [place for place, shared in zip(found, alike, strict=True) if shared == max(alike)]
            if len(best) == 1:
                return best[0]
            if best:
                return preferred if preferred in best else NONE
        return NONE

    @cached_property
    def _by_name(self) -> Mapping[str, list[int]]:
        return _grouped(path.name for path in self._paths)

    @cached_property
    def _by_stem(self) -> Mapping[str, list[int]]:
        return _grouped(path.stem for path in self._paths)

    @cached_property
    def numbers(self) -> Mapping[ImageId, int]:
        """Position of each image whose file is called by a number, as 139 is 000000000139.jpg; none that two share."""
        return _single(path.stem for path in self._paths)

    @property
    def numberings(self) -> list[tuple[str, Mapping[ImageId, int]]]:
        """Other ways in which tools count images, in words and as positions."""
        order = sorted(range(len(self._paths)), key=lambda place: str(self._paths[place]))
        inside = ("".join(filter(str.isdecimal, path.stem)) for path in self._paths)
        return [
            ("the numbers in the files' names", _single(inside)),
            ("places in the order of the files' names, from 0", dict(enumerate(order))),
            ("places in the order of the files' names, from 1", dict(enumerate(order, start=1))),
        ]


@dataclass(frozen=True, slots=True)
class _Frames:
    """What numbers can be checked with.

    Attributes:
        numbers: N ids.
        boxes: (N, 4) xywh, NaN for none.
        masks_wh: (N, 2) width and height of the image a mask is for, NaN for none.
        sizes_wh: Width and height of every image of the data set.
    """

    numbers: list[Any]
    boxes: NDArray[np.float64]
    masks_wh: NDArray[np.float64]
    sizes_wh: NDArray[np.float64]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], dataset: CocoDataset) -> _Frames:
        boxes = [numbers_of_box(record.get("bbox")) or (np.nan,) * 4 for record in records]
        return cls(
            [record["image_id"] for record in records],
            np.array(boxes, dtype=np.float64).reshape(-1, 4).clip(-_HUGE, _HUGE),
            np.array([_mask_wh(record.get("segmentation")) for record in records]).reshape(-1, 2),
            np.array([image.size_hw[::-1] for image in dataset.images], dtype=np.float64).reshape(-1, 2),
        )

    def read(self, words: str, place_of: Mapping[Any, int]) -> Reading:
        """The numbers understood in one way."""
        places = np.array([place_of.get(number, NONE) for number in self.numbers], dtype=np.int64)
        known = places != NONE
        boxes, limits = self.boxes[known], self.sizes_wh[places[known]]
        slack = np.maximum(_FAR * limits, _FAR_PIXELS)
        start, end = boxes[:, :2], xywh_to_xyxy(boxes)[:, 2:]
        outside = ((start < -slack) | (end > limits + slack)).any(axis=1)  # no: where there is no box
        masks = self.masks_wh[known]
        outside |= ((masks != limits) & ~np.isnan(masks)).any(axis=1)
        return Reading(words=words, places=places, num_known=int(known.sum()), num_outside=int(outside.sum()))

    def look_xyxy(self, reading: Reading) -> bool:
        """Whether the boxes lie outside because they are corners, which is told elsewhere."""
        known = (reading.places != NONE) & ~np.isnan(self.boxes).any(axis=1)
        return bool(known.any()) and looks_xyxy(self.boxes[known], self.sizes_wh[reading.places[known]])


def shown(value: object) -> str:
    """An id for a message, with its type."""
    return f"{reprlib.repr(value)} ({type_name(value)})"


def _mask_wh(mask: object) -> tuple[float, float]:
    size = mask.get("size") if isinstance(mask, dict) else None
    if (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 0 < side < _HUGE for side in size)
    ):
        return size[1], size[0]
    return np.nan, np.nan


def _grouped(names: Iterable[str]) -> Mapping[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        found[name].append(place)
    return dict(found)


def _single(texts: Iterable[str]) -> Mapping[ImageId, int]:
    """Positions of numbers, without those that occur twice."""
    numbers = [int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else None for text in texts]
    count = Counter(numbers)
    return {
        number: place for place, number in enumerate(numbers) if number is not None and count[number] == 1
    }


def _shared_folders(one: PurePosixPath, other: PurePosixPath) -> int:
    """How many folders, from the innermost on, two paths share."""
    pairs = zip(one.parts[-2::-1], other.parts[-2::-1], strict=False)
    return next(
        (depth for depth, (a, b) in enumerate(pairs) if a != b), min(len(one.parts), len(other.parts)) - 1
    )

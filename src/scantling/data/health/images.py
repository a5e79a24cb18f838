"""The images of a data set or folder, looked at before any work starts: every problem at once.

Headers are cheap and tell most; `decode=True` also finds pixels that are cut off or damaged.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from scantling.data.coco import CocoDataset
from scantling.data.coco.records import ImageRecord
from scantling.data.findings import CODES, FindingLog, Kind, Policy, name_some, summarise
from scantling.data.images.header import LARGE_PIXELS, ImageHeader, parse_header
from scantling.data.images.open import (
    decode_image,
    files_below,
    image_header,
    jpeg_leftover,
    list_images,
    read_image,
    rotation_for,
)
from scantling.data.spelling import alike, other_spelling
from scantling.errors import DataError, Finding, Severity

_KEPT = "image-orientation-kept"  # told once for all images


class FileFault(NamedTuple):
    """What is wrong with one image file: the fields of a finding that the file alone decides."""

    code: str
    message: str
    hint: str | None = None


class Look(NamedTuple):
    """How closely images are looked at; headers alone by default.

    Attributes:
        decode: Decode the pixels, which finds those that are cut off or damaged.
        leftovers: Of decoded JPEGs, also look for pixel data that change nothing; takes twice as long again.
    """

    decode: bool = False
    leftovers: bool = True


CHEAP_PIXELS = 2_000_000_000
"""Pixels of a data set up to which all of it is decoded before training: some ten seconds."""


def look_before_training(dataset: CocoDataset, *, decode: bool | None, skip_invalid: bool) -> Look:
    """Whether the pixels of a data set are looked at before it is trained on.

    Args:
        dataset: What is to be read.
        decode: What the user says; None: where it is cheap, and always where damaged images are to be left out.
        skip_invalid: Damaged images are to be left out.
    """
    pixels = sum(record.size_hw[0] * record.size_hw[1] for record in dataset.images)
    chosen = skip_invalid or pixels <= CHEAP_PIXELS if decode is None else decode
    return Look(decode=chosen, leftovers=False)


class FolderImages(NamedTuple):
    """The images of a folder without annotations, and what else lies there."""

    records: tuple[ImageRecord, ...]
    findings: tuple[Finding, ...]


def check_images(
    dataset: CocoDataset,
    *,
    decode: bool | Look = False,
    skip_invalid: bool = False,
    strict: bool = False,
    threads: int = 4,
) -> tuple[Finding, ...]:
    """Look at every image file that a data set names.

    Args:
        dataset: Read from its JSON; its image root decides where the files are.
        decode: Decode every image completely as well; or how closely to look.
        skip_invalid: Unusable images are warnings; `usable_images` leaves them out.
        strict: Warnings become errors.
        threads: Files looked at together; each may need the memory of one decoded image.

    Returns:
        Findings, errors first; the id of each is that of its image.
    """
    log = FindingLog(str(dataset.file), Policy(skip_invalid=skip_invalid, strict=strict))
    closely = decode if isinstance(decode, Look) else Look(decode)
    folders = _Folders(dataset.image_root)
    if nowhere := _explain_nowhere(dataset, folders):
        log.add(nowhere.code, nowhere.message, hint=nowhere.hint)
        return log.findings

    def look(record: ImageRecord) -> tuple[FileFault, ...]:
        missing = folders.explain_missing(record)
        return (missing,) if missing else problems_of(record.path, record.size_hw, closely)

    kept: list[str] = []
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for record, problems in zip(dataset.images, pool.map(look, dataset.images), strict=True):
            for problem in problems:
                if problem.code == _KEPT:
                    kept.append(record.file_name)
                    continue
                path = f"image {record.file_name}"
                log.add(problem.code, problem.message, path=path, id=record.id, hint=problem.hint)
    if kept:
        message = f"the EXIF rotation of {len(kept)} images is not applied: {name_some(kept)}"
        log.add(_KEPT, message, path="images")
    return log.findings


def usable_images(
    dataset: CocoDataset,
    *,
    decode: bool | Look = False,
    skip_invalid: bool = False,
    strict: bool = False,
    threads: int = 4,
) -> CocoDataset:
    """The data set without unusable images; its findings tell which were left out and why.

    Args:
        dataset: As for `check_images`, like the other arguments.
        decode: Decode every image completely as well; or how closely to look.
        skip_invalid: Leave unusable images out instead of raising.
        strict: Warnings raise.
        threads: Files looked at together.

    Raises:
        DataError: With all findings, if one is an error.
    """
    findings = check_images(dataset, decode=decode, skip_invalid=skip_invalid, strict=strict, threads=threads)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise DataError(f"{dataset.file}: {summarise(findings)}", findings=findings)
    unusable = {finding.id for finding in findings if CODES[finding.code].kind is Kind.GEOMETRY}
    kept = [record.id for record in dataset.images if record.id not in unusable]
    log = FindingLog(str(dataset.file), Policy())
    if unusable:
        names = [record.file_name for record in dataset.images if record.id in unusable]
        kept_images = dataset.subset(kept)
        lost = dataset.num_annotations - kept_images.num_annotations
        objects = f", with {lost} objects" if lost else ""
        message = f"{len(names)} of {len(dataset)} images are not used{objects}: {name_some(names)}"
        log.add("images-dropped", message, path="images")
    return replace(dataset.subset(kept), findings=(*dataset.findings, *findings, *log.findings))


def images_of_folder(folder: Path | str, *, look: Look | None = None) -> FolderImages:
    """Records for the images of a folder (and its sub-folders) that has no annotations.

    Args:
        folder: Everything in it is looked at; what is no image, or damaged, is a warning.
        look: How closely.

    Returns:
        Records sorted by name; their ids are the names relative to the folder, their sizes those of the
        upright images.

    Raises:
        DataError: The folder is missing or holds no image at all.
    """
    folder = Path(folder)
    log = FindingLog(str(folder), Policy(skip_invalid=True))
    images = list_images(folder)
    for path in sorted(set(files_below(folder)) - set(images)):
        log.add("not-an-image", "this file is no image and is not used", path=_name(path, folder))
    records = [
        record for path in images if (record := _recorded(path, folder, log, look or Look())) is not None
    ]
    return FolderImages(tuple(records), log.findings)


def single_image(path: Path) -> FolderImages:
    """The record of one image, with the warnings that it would get in a folder.

    Raises:
        DataError: It cannot be used.
    """
    log = FindingLog(str(path), Policy(skip_invalid=True))
    record = _recorded(path, path.parent, log, Look())
    if record is None:
        image_header(path)  # raises what is wrong
        raise DataError(f"{path}: cannot be used", findings=log.findings)
    return FolderImages((record,), log.findings)


class LookedAt(NamedTuple):
    """What the header of an image file says.

    Attributes:
        size_hw: Of the upright image; None if it cannot be used.
        problems: What is wrong with it, or remarkable.
    """

    size_hw: tuple[int, int] | None
    problems: tuple[FileFault, ...]


def look_at_header(path: Path) -> LookedAt:
    """What the header of an image file says; unlike `problems_of`, nothing is remembered of it."""
    problems = _look_at(path, None, Look())
    usable = all(CODES[problem.code].kind is not Kind.GEOMETRY for problem in problems)
    return LookedAt(image_header(path).upright_hw if usable else None, problems)


def _recorded(path: Path, folder: Path, log: FindingLog, look: Look) -> ImageRecord | None:
    """Note what is wrong with an image, and make its record unless it cannot be used."""
    name = _name(path, folder)
    problems = problems_of(path, None, look)
    for problem in problems:
        log.add(problem.code, problem.message, path=name, id=name, hint=problem.hint)
    if any(CODES[problem.code].kind is Kind.GEOMETRY for problem in problems):
        return None
    return ImageRecord(id=name, file_name=name, path=path, size_hw=image_header(path).upright_hw)


def problems_of(path: Path, size_hw: tuple[int, int] | None, look: Look) -> tuple[FileFault, ...]:
    """What is wrong with one image file; a file that has not changed is decoded once in a process.

    Args:
        path: The file.
        size_hw: Size its record claims; None if there is no record.
        look: How closely to look.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # reading it says why
        return _look_at(path, size_hw, look)
    return _problems_of(path, size_hw, look, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=200_000)
def _problems_of(
    path: Path, size_hw: tuple[int, int] | None, look: Look, _state: tuple[int, int, int]
) -> tuple[FileFault, ...]:
    return _look_at(path, size_hw, look)


def _look_at(path: Path, size_hw: tuple[int, int] | None, look: Look) -> tuple[FileFault, ...]:
    try:
        data = read_image(path) if look.decode else b""
        header = parse_header(data, str(path)) if look.decode else image_header(path)
        rotation = rotation_for(header, size_hw, str(path))
        if look.decode:
            decode_image(data, header, str(path))
    except DataError as error:
        return tuple(FileFault(finding.code, finding.message, finding.hint) for finding in error.findings)
    remarks = _remarks(data if look.leftovers else b"", header, has_record=size_hw is not None)
    return (*remarks, FileFault(_KEPT, "")) if rotation != header.orientation else tuple(remarks)


def _explain_nowhere(dataset: CocoDataset, folders: _Folders) -> FileFault | None:
    """One problem for the whole data set where none of its images is there; None where at least one is."""
    root, images = dataset.image_root, dataset.images
    if images and not root.is_dir():
        hint = "Give the folder that `file_name` is relative to."
        return FileFault("file-missing", f"there is no image folder {root}", hint)
    if len(images) < 2 or any(folders.have(record) for record in images):  # noqa: PLR2004 - one is told by itself
        return None
    first = images[0]
    message = f"none of the {len(images)} images is in {root}, beginning with {first.file_name}"
    named, folder = folders.explain_missing(first), folders.elsewhere(first)
    if named is not None and named.hint:
        return FileFault("file-missing", message, named.hint)
    if folder is not None:
        return FileFault(
            "file-missing", message, f"{folder} has it: rename it to images, or set data.images to it."
        )
    return FileFault(
        "file-missing", message, "Put them there, or give the folder that `file_name` is relative to."
    )


def _remarks(data: bytes, header: ImageHeader, *, has_record: bool) -> list[FileFault]:
    """Warnings about an image that can be used."""
    remarks = []
    height, width = header.size_hw
    if header.frames > 1:
        remarks.append(FileFault("image-animated", f"a {header.format} of several frames; the first is used"))
    if height * width > LARGE_PIXELS:
        remarks.append(FileFault("image-large", f"{width} x {height} pixels"))
    if header.ambiguous and has_record:
        message = (
            f"EXIF orientation {header.orientation}, which {width} x {height} cannot confirm, is applied"
        )
        remarks.append(FileFault("image-orientation", message))
    if data and header.format == "JPEG" and jpeg_leftover(data, header):
        remarks.append(FileFault("image-surplus", "the picture is complete before its pixel data end"))
    return remarks


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


class _Folders:
    """Names of the files in each folder, listed once: spelling counts, also where the file system forgives it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[Path, frozenset[str]] = {}

    def have(self, record: ImageRecord) -> bool:
        """Whether the file is there under exactly this name."""
        return record.path.name in self._listed(record.path.parent)

    def explain_missing(self, record: ImageRecord) -> FileFault | None:
        """None if the file is there under exactly this name."""
        if self.have(record):
            return None
        meant = self._similar(record)
        hint = other_spelling(record.file_name, meant) if meant else None
        return FileFault("image-missing", f"there is no file {record.path}", hint)

    def elsewhere(self, record: ImageRecord) -> Path | None:
        """A folder inside the image folder under which the file is there."""
        for name in sorted(self._listed(self._root)):
            path = self._root / name / record.file_name
            if path.name in self._listed(path.parent):
                return self._root / name
        return None

    def _listed(self, folder: Path) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]

    def _similar(self, record: ImageRecord) -> str | None:
        """A name that exists: in another spelling, or the same file in the image folder itself."""
        name = Path(record.file_name)
        twin = alike(name.name, self._listed(record.path.parent))
        if twin is not None:
            return (name.parent / twin).as_posix()
        for skipped in range(1, len(name.parts)):
            shorter = Path(*name.parts[skipped:])
            if shorter.name in self._listed(self._root / shorter.parent):
                return shorter.as_posix()
        return None

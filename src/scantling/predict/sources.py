"""What to predict on: the images behind what a person named (`listing`), opened a few at a time.

source ── list_source ──► ListedImage: id, place ── opened_images ──► ImageRecord: path, size
                               an image at a URL is fetched into a folder that goes with the block ──┘
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from scantling.data.coco import Category, ImageRecord, ReadOptions
from scantling.data.findings import FindingLog, Policy
from scantling.data.formats.locations import parse_location, read_location
from scantling.data.health.images import FileFault, images_of_folder, look_at_header, single_image
from scantling.errors import DataError, Finding, Severity, UsageError
from scantling.predict.listing import ListedImage, list_source
from scantling.predict.remote import fetch, without_file_protocol
from scantling.settings.paths import is_pattern, is_url

_THREADS = 8
_PORTION = 256
"""Images fetched at a time, where they lie elsewhere."""


class Source(NamedTuple):
    """Images to predict on, what was found while looking for them, and the classes of a data set."""

    records: tuple[ImageRecord, ...]
    findings: tuple[Finding, ...]
    categories: tuple[Category, ...] = ()


class OpenedImages(NamedTuple):
    """Some images of a source, to be looked at now.

    Attributes:
        records: Images that can be opened, as far as their headers say.
        findings: About the others, and about the source.
        categories: Of a data set.
        urls: Of fetched images, by the path of the copy.
    """

    records: tuple[ImageRecord, ...]
    findings: tuple[Finding, ...]
    categories: tuple[Category, ...] = ()
    urls: Mapping[str, str] = {}

    def told(self, findings: Iterable[Finding]) -> list[Finding]:
        """Findings about files of these images, each with its image's id, and its URL in the place of a copy."""
        by_path = {str(record.path): record for record in self.records}
        return [
            finding
            if (record := by_path.get(finding.file or "")) is None
            else replace(finding, id=record.id, file=self.urls.get(str(record.path), finding.file))
            for finding in findings
        ]


def open_source(
    path: Path | str, image_root: Path | str | None = None, *, skip_invalid: bool = False
) -> Source:
    """The images behind a path on this machine that is an image, a folder, or names a data set.

    Args:
        path: An image; a folder, with its sub-folders; a COCO file, of which only `images` is needed; or a split
            of a data set in any format: `FOLDER:SPLIT`, a split file, a `data.yaml`.
        image_root: Folder to which the names in a COCO file are relative; None: found near the file.
        skip_invalid: Faulty records of a data set are left out and counted.

    Returns:
        Records with the COCO file's own ids, or the names relative to the folder as ids. What lies in a folder and
        is no image is a warning.

    Raises:
        UsageError: There is nothing at that path.
        DataError: The file is neither an image nor a COCO file, or there is no image.
    """
    location = parse_location(path)
    path = location.path
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder", hint="Check the path.")
    if path.is_dir() and location.split is None:
        folder = images_of_folder(path)
        return Source(folder.records, folder.findings)
    if path.is_dir() or path.suffix.lower() in (".json", ".yaml", ".yml"):
        options = ReadOptions(require_labels=False, skip_invalid=skip_invalid)
        dataset = read_location(location, options, image_root=Path(image_root) if image_root else None)
        return Source(dataset.images, dataset.findings, dataset.categories)
    return Source(*single_image(path))


def portions_of(source: Path | str, *, skip_invalid: bool = False) -> Iterator[OpenedImages]:
    """The images of any source (see `listing`), in portions; the copies of one are gone when the next is asked for.

    Args:
        source: What `open_source` opens comes whole; lists, patterns and URLs a few hundred images at a time.
        skip_invalid: As in `open_source`.

    Raises:
        ScantlingError: As `open_source` and `list_source`.
    """
    text = without_file_protocol(str(source))
    if not (is_url(text) or is_pattern(text) or Path(text).suffix.lower() == ".txt"):
        yield OpenedImages(*open_source(text, skip_invalid=skip_invalid))
        return
    listing = list_source(text, skip_invalid=skip_invalid)
    while some := list(islice(listing.images, _PORTION)):
        with opened_images(some, listing.root) as opened:
            yield opened
    yield OpenedImages((), tuple(listing.findings))


@contextmanager
def opened_images(images: Sequence[ListedImage], root: str) -> Iterator[OpenedImages]:
    """Open listed images: read their headers, and fetch those that lie elsewhere until the block ends.

    Args:
        images: At most some thousands, as their copies take space.
        root: Folder or URL that their places are relative to.

    Yields:
        Those that can be opened, in their order; each of the others is a warning.
    """
    with ExitStack() as stack:
        places = [_full_place(image.place, root) for image in images]
        paths = [Path(place) for place in places]
        if any(is_url(place) for place in places):
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="scantling-")))
            paths = [
                scratch / f"{number}{PurePosixPath(place).suffix}" if is_url(place) else path
                for number, (place, path) in enumerate(zip(places, paths, strict=True))
            ]
        with ThreadPoolExecutor(_THREADS) as pool:
            looks = list(pool.map(_look, images, places, paths))
        log, records = FindingLog(root, Policy(skip_invalid=True)), list[ImageRecord]()
        for image, path, (size_hw, problems) in zip(images, paths, looks, strict=True):
            for problem in problems:
                log.add(problem.code, problem.message, path=image.file_name, id=image.id, hint=problem.hint)
            if size_hw is not None:
                records.append(
                    ImageRecord(id=image.id, file_name=image.file_name, path=path, size_hw=size_hw)
                )
        urls = {str(path): place for path, place in zip(paths, places, strict=True) if is_url(place)}
        yield OpenedImages(tuple(records), log.findings, urls=urls)


def _full_place(place: str, root: str) -> str:
    if is_url(place):
        return without_file_protocol(place)
    return f"{root}/{place}" if is_url(root) else str(Path(root) / place)


class _Look(NamedTuple):
    """Size of an image that can be opened, else None; and what is wrong with it."""

    size_hw: tuple[int, int] | None
    problems: tuple[FileFault, ...]


def _look(image: ListedImage, place: str, path: Path) -> _Look:
    try:
        if is_url(place):
            fetch(place, path)
    except DataError as error:
        return _Look(None, tuple(FileFault(f.code, f.message, f.hint) for f in error.findings))
    return _Look(image.size_hw, ()) if image.size_hw is not None else _Look(*look_at_header(path))


def none_readable(source: object, findings: Sequence[Finding]) -> DataError:
    """What to raise where there is no image that can be looked at."""
    errors = [replace(finding, severity=Severity.ERROR) for finding in findings]
    return DataError(f"{source}: none of the images can be read", findings=errors)


def place_of_output(folder: Path, file_name: str) -> Path:
    """Where something that is made of an image goes: by its name, inside the folder also where that leads elsewhere."""
    name = file_name.partition("://")[2] if is_url(file_name) else file_name
    return folder.joinpath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..")))

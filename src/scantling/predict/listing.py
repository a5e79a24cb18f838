"""The images that a person named, one after the other, without opening one of them.

| source | images | ids |
|---|---|---|
| `photos/` | a folder and its sub-folders, in the order of their names | the name relative to it |
| `photos/a.png` | an image | its name |
| `photos/**/*.jpg` | a pattern | the name relative to the last folder before a `*`, `?` or `[` |
| `list.txt` | paths or URLs, one a line, relative to the file | the line |
| `s3://bucket/photos` | a folder, pattern, list or image of any protocol of fsspec | as above |
| `val.json`, `parts:val` | the images of a data set | its own |

A million images are a matter of seconds. What a folder holds besides images is told by its names; only a file whose
name says nothing is looked into.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from scantling.data.coco import Category, ImageId, ReadOptions
from scantling.data.findings import FindingLog, Policy, name_some, refuse
from scantling.data.formats.locations import parse_location, read_location
from scantling.data.images.open import PICTURE_SUFFIXES, begins_as_image
from scantling.errors import Finding, UsageError
from scantling.predict.remote import FileSystem, explained_reads, open_url, without_file_protocol
from scantling.settings.paths import is_pattern, is_url

_OTHER = "txt json jsonl xml csv tsv yaml yml toml ini md html pdf log py zip tar gz npy npz pt pth safetensors parquet"
_OTHER_SUFFIXES = frozenset(f".{word}" for word in _OTHER.split())
"""Endings of what lies beside images and is none."""

_QUERIED = ("http://", "https://")


class ListedImage(NamedTuple):
    """An image that has not been looked at.

    Attributes:
        id: What results say as `image_id`.
        file_name: What they say as `file_name`.
        place: Its path relative to the listing's root, its full path, or its URL.
        size_hw: Height and width as a data set says them; None where only the file does.
    """

    id: ImageId
    file_name: str
    place: str
    size_hw: tuple[int, int] | None = None


@dataclass(slots=True, kw_only=True)
class Listing:
    """The images of a source.

    Attributes:
        root: Folder, or URL of one, that their places are relative to.
        images: They, in their order; read once.
        categories: Of a data set.
        findings: About the source as a whole; complete when all images were listed.
    """

    root: str
    images: Iterator[ListedImage]
    categories: tuple[Category, ...] = ()
    findings: list[Finding] = field(default_factory=list)


def list_source(source: str | Path, *, skip_invalid: bool = False) -> Listing:
    """List the images behind what a person named; see the top of this module.

    Args:
        source: What to list.
        skip_invalid: Faulty records of a data set are left out and counted.

    Raises:
        UsageError: There is nothing, or the package of a protocol is not installed.
        DataError: A data set, or a list of images, cannot be used.
    """
    text = without_file_protocol(str(source))
    if is_url(text):
        with explained_reads(text):
            return _list_url(text)
    location = parse_location(text)
    path = location.path
    if is_pattern(text):
        return _list_pattern(text)
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder", hint="Check the path.")
    if path.is_dir() and location.split is None:
        return _list_folder(path)
    if path.is_dir() or path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _list_data_set(text, skip_invalid=skip_invalid)
    if path.suffix.lower() == ".txt":
        with path.open("rb") as stream:
            return _list_lines(text, stream.read(), str(path.parent))
    return Listing(root=str(path.parent), images=iter([_named(path.name)]))


def _named(name: str) -> ListedImage:
    return ListedImage(name, name, name)


def _in_order(names: list[str]) -> list[str]:
    """Names with the files of a folder together, as in a listing of folders."""
    return sorted(names, key=lambda name: name.split("/"))


def _list_folder(folder: Path) -> Listing:
    listing = Listing(root=str(folder), images=iter(()))
    listing.images = _pictures(
        _names_below(str(folder), ""), listing, lambda name: begins_as_image(folder / name)
    )
    return listing


def _names_below(folder: str, before: str) -> Iterator[str]:
    """Names of all files in a folder, in order; hidden folders and links to folders are passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # a folder that must not be looked into
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith("."):
                yield from _names_below(entry.path, f"{before}{entry.name}/")
        elif not entry.is_dir():
            yield before + entry.name


def _pictures(
    names: Iterator[str], listing: Listing, is_image: Callable[[str], bool]
) -> Iterator[ListedImage]:
    """Those names that are called like pictures, or are images by their content; the others are told."""
    others, count = list[str](), 0
    for name in names:
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        hidden = path.name.startswith(".")
        if not hidden and (suffix in PICTURE_SUFFIXES or (suffix not in _OTHER_SUFFIXES and is_image(name))):
            yield _named(name)
        else:
            count += 1
            others += [name] if len(others) < 5 else []
    if count:
        log = FindingLog(listing.root, Policy(skip_invalid=True))
        some = name_some([*others, *[""] * (count - len(others))])
        log.add("not-an-image", f"{count} files are no images and are not used: {some}")
        listing.findings += log.findings


def _list_pattern(pattern: str) -> Listing:
    root, relative = _split_pattern(pattern)
    found = glob.iglob(relative, root_dir=root or ".", recursive=True)  # noqa: PTH207 - Path's finds hidden files
    names = _in_order([name for name in found if (Path(root) / name).is_file()])
    if not names:
        raise _nothing_fits(pattern)
    return Listing(root=root or ".", images=map(_named, names))


def _split_pattern(pattern: str) -> tuple[str, str]:
    """The folders before the first wildcard, and the rest."""
    parts = pattern.split("/")
    first = next(place for place, part in enumerate(parts) if is_pattern(part))
    root = "/".join(parts[:first])
    return ("/" if first and not root else root), "/".join(parts[first:])


def _nothing_fits(pattern: str) -> UsageError:
    hint = "Check it, and put it between quotes, so that the shell leaves it alone."
    return UsageError(f"{pattern}: no file fits this pattern", hint=hint)


def _list_data_set(source: str, *, skip_invalid: bool) -> Listing:
    dataset = read_location(source, ReadOptions(require_labels=False, skip_invalid=skip_invalid))
    root = dataset.image_root

    def listed() -> Iterator[ListedImage]:
        for image in dataset.images:
            inside = image.path.is_relative_to(root)
            place = image.path.relative_to(root).as_posix() if inside else str(image.path.absolute())
            yield ListedImage(image.id, image.file_name, place, image.size_hw)

    return Listing(
        root=str(root), images=listed(), categories=dataset.categories, findings=list(dataset.findings)
    )


def _list_lines(source: str, content: bytes, root: str) -> Listing:
    """Images by the lines of a text."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        refuse("text-encoding", source, f"not UTF-8: byte offset {error.start}")
    wanted = [line for line in lines if line.strip()]
    names = list(dict.fromkeys(wanted))
    listing = Listing(root=root, images=map(_named, names))
    if not names:
        refuse("file-empty", source, "the list names no image", hint="Write one path or URL a line.")
    if len(names) < len(wanted):
        log = FindingLog(source, Policy(skip_invalid=True))
        log.add(
            "image-name-twice", f"{len(wanted) - len(names)} lines repeat an earlier one and do not count"
        )
        listing.findings += log.findings
    return listing


def _list_url(url: str) -> Listing:
    system, path = open_url(url)
    if is_pattern(path) and not url.startswith(_QUERIED):  # there `?` begins a query
        base, _ = _split_pattern(path)
        names = [name for name in system.glob(path) if not system.isdir(name)]
        if not names:
            raise _nothing_fits(url)
        return _list_found(system, base, names)
    if system.isfile(path):
        folder, _, name = path.rpartition("/")
        suffix = PurePosixPath(name).suffix.lower()
        if suffix == ".txt":
            return _list_lines(url, system.cat_file(path), _url_of(system, folder))
        if suffix in (".json", ".yaml", ".yml"):
            hint = "Copy the file to this machine; a list (.txt) of URLs is read from anywhere."
            raise UsageError(f"{url}: the annotations of a data set must be a local file", hint=hint)
        return Listing(root=_url_of(system, folder), images=iter([_named(name)]))
    names = system.find(path)
    if not names:
        raise UsageError(f"{url}: there is no such file or folder", hint="Check the URL.")
    return _list_found(system, path, names)


def _list_found(system: FileSystem, base: str, paths: list[str]) -> Listing:
    """Files below a folder elsewhere; what is not called like a picture is none."""
    listing = Listing(root=_url_of(system, base), images=iter(()))
    before = base.strip("/")
    names = _in_order([path.strip("/").removeprefix(before).lstrip("/") for path in paths])
    system.invalidate_cache()  # it remembers every name
    visible = (name for name in names if not any(part.startswith(".") for part in name.split("/")[:-1]))
    listing.images = _pictures(visible, listing, lambda _: False)
    return listing


def _url_of(system: FileSystem, path: str) -> str:
    return str(system.unstrip_protocol(path)).rstrip("/")

"""What to predict on: a file, a folder, or the images of a data set in any format."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scantling.data.coco import Category, ImageRecord, ReadOptions
from scantling.data.formats.locations import parse_location, read_location
from scantling.data.health.images import images_of_folder, single_image
from scantling.errors import Finding, UsageError


class Source(NamedTuple):
    """Images to predict on, what was found while looking for them, and the classes of a data set."""

    records: tuple[ImageRecord, ...]
    findings: tuple[Finding, ...]
    categories: tuple[Category, ...] = ()


def open_source(
    path: Path | str, image_root: Path | str | None = None, *, skip_invalid: bool = False
) -> Source:
    """The images behind a path.

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

"""COCO data sets and results: the only public place that knows category ids.

    JSON ──read_coco──► CocoDataset ──instances──► Instances (labels 0..K-1)
    Instances ──to_results──► list of results ──write_results──► JSON (the data set's own ids)

Every problem of a file is found in one pass and reported with a stable code (`docs/findings.md`). Images and the
annotations of each image are sorted by id, so the order of the records in the file changes nothing.
K: number of categories.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scantling.data.coco.annotations import (
    Tables,
    Task,
    parse_annotations,
    remark_on_coverage,
)
from scantling.data.coco.dataset import CocoDataset, joined
from scantling.data.coco.layout import choose_image_root, find_split
from scantling.data.coco.parse import can_be_written, parse_categories, parse_images, usable_id
from scantling.data.coco.records import Annotation, Category, Extra, ImageId, ImageRecord
from scantling.data.coco.results import (
    check_results,
    read_checked,
    read_results,
    to_results,
    with_names,
    write_results,
)
from scantling.data.findings import FindingLog, Kind, Policy
from scantling.data.io import read_json, write_json

__all__ = [
    "Annotation",
    "Category",
    "CocoDataset",
    "ImageId",
    "ImageRecord",
    "ReadOptions",
    "Task",
    "check_results",
    "find_split",
    "joined",
    "parse_coco",
    "read_coco",
    "read_coco_as",
    "read_checked",
    "read_results",
    "to_results",
    "with_names",
    "write_coco",
    "write_results",
]

_logger = logging.getLogger(__name__)
_LARGE_BYTES = 10_000_000
_LISTS = {"images": "no-images", "annotations": "no-annotations", "categories": "no-categories"}


def read_coco(
    file: Path | str,
    image_root: Path | str | None = None,
    *,
    task: Task = "detection",
    skip_invalid: bool = False,
    strict: bool = False,
    require_instances: bool = False,
    require_labels: bool = True,
) -> CocoDataset:
    """Read and check a COCO annotations file; images are not opened unless their size is missing.

    Args:
        file: The JSON.
        image_root: Folder to which file names are relative; None: the folder near the file that has the images.
        task: `segmentation` needs a mask for every annotation.
        skip_invalid: Drop and count records with unusable geometry instead of raising.
        strict: Warnings raise.
        require_instances: For training: no images, annotations or categories is an error, not a warning.
        require_labels: False accepts a file without the keys `annotations` and `categories`, for prediction.

    Raises:
        DataError: With all findings, if one is an error.
    """
    options = ReadOptions(
        task=task,
        skip_invalid=skip_invalid,
        strict=strict,
        require_instances=require_instances,
        require_labels=require_labels,
    )
    return read_coco_as(Path(file), image_root, options)


def read_coco_as(file: Path, image_root: Path | str | None, options: ReadOptions) -> CocoDataset:
    """Read and check a COCO annotations file; see `read_coco`."""
    _announce(file)
    return parse_coco(read_json(file, keep_nan=True), file, image_root, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How annotations are read; see the arguments of `read_coco`.

    Attributes:
        count_difficult: Objects marked `difficult` (VOC) or `ignore` (COCO) are ordinary ones; else they are ignored.
    """

    task: Task = "detection"
    skip_invalid: bool = False
    strict: bool = False
    require_instances: bool = False
    require_labels: bool = True
    count_difficult: bool = False

    @property
    def policy(self) -> Policy:
        """How findings weigh."""
        return Policy(skip_invalid=self.skip_invalid, strict=self.strict)


def parse_coco(
    content: object, file: Path, image_root: Path | str | None, options: ReadOptions
) -> CocoDataset:
    """Check the content of a COCO annotations file; the data sets of other formats come here as well.

    Args:
        content: As JSON gave it.
        file: Where it came from.
        image_root: As in `read_coco`.
        options: How strictly.

    Raises:
        DataError: With all findings, if one is an error.
    """
    log = FindingLog(str(file), options.policy)
    top = _top_level(content, log)
    required = options.require_labels
    raw = {key: _list_of(top, key, log, required=required or key == "images") for key in _LISTS}
    log.raise_if_failed()
    if required:
        _remark_on_empty_lists(raw, log, Kind.STRUCTURAL if options.require_instances else Kind.SUSPICIOUS)
    extra = _extra_of(top, log)
    root = _image_root(file, image_root, raw["images"])
    categories = parse_categories(raw["categories"], log)
    images = parse_images(raw["images"], root, log)
    tables = Tables(
        task=options.task,
        count_difficult=options.count_difficult,
        labels={category.id: label for label, category in enumerate(categories)},
        images={image.id: image for image in images},
        declared={key: _ids_of(raw[key]) for key in ("images", "categories")},
        log=log,
    )
    per_image = parse_annotations(raw["annotations"], tables)
    if raw["annotations"]:
        remark_on_coverage(categories, per_image, log, trains=options.require_instances)
    log.raise_if_failed()
    return CocoDataset(
        file=file,
        image_root=root,
        images=tuple(images),
        annotations=tuple(tuple(per_image[image.id]) for image in images),
        categories=tuple(categories),
        findings=log.findings,
        extra=extra,
        set_aside=_set_aside(raw["images"], images, root),
    )


def _set_aside(raw: list[object], images: list[ImageRecord], root: Path) -> tuple[Path, ...]:
    names = (record.get("file_name") for record in raw if isinstance(record, dict))
    used = {image.file_name for image in images}
    return tuple(root / name for name in names if isinstance(name, str) and name not in used)


def write_coco(dataset: Mapping[str, object], path: Path | str) -> None:
    """Write a COCO annotations file atomically.

    Args:
        dataset: As `CocoDataset.to_coco` gives it: `images`, `annotations`, `categories` and further keys.
        path: The JSON to write.

    Raises:
        ValueError: The content holds NaN or infinity.
        UsageError: The file cannot be written.
    """
    write_json(path, dataset)


def _announce(file: Path) -> None:
    """Say what takes seconds."""
    size = file.stat().st_size if file.is_file() else 0
    if size >= _LARGE_BYTES:
        _logger.info("reading %s (%d MB)", file, size // 10**6)


def _top_level(content: object, log: FindingLog) -> dict[str, object]:
    if isinstance(content, dict):
        return content
    if isinstance(content, list):
        message = (
            "looks like a predictions file (a list); expected an object with images/annotations/categories"
        )
        log.add("coco-is-results", message)
    else:
        log.add("coco-not-object", f"expected an object, found {type(content).__name__}", value=content)
    log.raise_if_failed()
    return {}


def _list_of(top: Mapping[str, object], key: str, log: FindingLog, *, required: bool) -> list[object]:
    value = top.get(key)
    if isinstance(value, list):
        return value
    if value is None and required:
        state = "is null" if key in top else "is missing"
        log.add("key-missing", f"the key {key!r} {state}; keys found: {sorted(top)[:10]}", path=key)
    elif value is not None:
        log.add(
            "key-not-list", f"{key!r} must be a list, found {type(value).__name__}", path=key, value=value
        )
    return []


def _remark_on_empty_lists(raw: Mapping[str, list[object]], log: FindingLog, kind: Kind) -> None:
    for key, code in _LISTS.items():
        if not raw[key]:
            log.add(code, f"the file has no {key}", path=key, kind=kind)


def _extra_of(top: Mapping[str, object], log: FindingLog) -> Extra:
    extra = {key: value for key, value in top.items() if key not in _LISTS}
    for key in [key for key, value in extra.items() if not can_be_written(value)]:
        log.add("extra-value", f"the value of {key!r} holds NaN or is nested too deep", path=key)
        del extra[key]
    return extra


def _image_root(file: Path, given: Path | str | None, images: list[object]) -> Path:
    if given is not None:
        return Path(given)
    names = [image.get("file_name") for image in images if isinstance(image, dict)]
    return choose_image_root(file, [name for name in names if isinstance(name, str)])


def _ids_of(records: list[object]) -> frozenset[ImageId]:
    ids = (usable_id(record.get("id")) for record in records if isinstance(record, dict))
    return frozenset(identifier for identifier in ids if identifier is not None)

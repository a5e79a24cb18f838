"""The lists `categories` and `images` of a COCO file -> checked records.

    categories ─► Category, id -> label ─┐
    images ─────► ImageRecord, by id ────┼─► annotations (`coco_annotations`) ─► Annotation, per image

Nothing is opened but images whose size the file does not give.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from scantling.data.coco.records import NO_EXTRA, Category, Extra, ImageId, ImageRecord, id_order
from scantling.data.findings import FindingLog, RecordLog, name_some
from scantling.data.images.open import MAX_PIXELS, image_header
from scantling.errors import DataError

Raw = dict[str, object]
T = TypeVar("T")

_IMAGE_KEYS = frozenset({"id", "file_name", "width", "height"})
_CATEGORY_KEYS = frozenset({"id", "name", "supercategory"})


def parse_list(
    raw: list[object], key: str, log: FindingLog, parse: Callable[[ImageId, Raw, RecordLog], T | None]
) -> list[T]:
    """Check what every list of a COCO file has in common (objects with an id of their own), and parse each.

    Args:
        raw: The list as JSON gave it.
        key: Its key, for messages.
        log: Takes the findings.
        parse: Called with id, record and a log for it; returns None after saying why the record is unusable.
            It is also called for records without a sound id, so that all their faults are found.

    Returns:
        What `parse` made of the sound records, in the order of the file.
    """
    seen: dict[ImageId, int] = {}
    parsed = []
    for index, record in enumerate(raw):
        path = f"{key}[{index}]"
        if not isinstance(record, dict):
            found = type(record).__name__
            log.add("record-not-object", f"expected an object, found {found}", path=path, value=record)
            continue
        identifier = usable_id(record.get("id"))
        record_log = log.record(path, identifier)
        _check_id(record, identifier, seen, record_log, key)
        if identifier is not None:
            seen.setdefault(identifier, index)
        result = parse(identifier if identifier is not None else -1, record, record_log)
        if result is not None and not record_log.faulty:
            parsed.append(result)
    return parsed


def usable_id(value: object) -> ImageId | None:
    """The value if it can be an id (integer, text, finite float), else None."""
    if type(value) is int or (isinstance(value, str) and value):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _check_id(
    record: Raw, identifier: ImageId | None, seen: dict[ImageId, int], log: RecordLog, key: str
) -> None:
    value = record.get("id")
    if value is None:
        log.add("id-missing", "the record has no id", field="id")
    elif identifier is None:
        log.add("id-type", f"the id is a {type(value).__name__}", field="id", value=value)
    elif identifier in seen:
        message = f"{key}[{seen[identifier]}] has the same id {identifier!r}"
        log.add("id-duplicate", message, field="id", value=identifier)


def unknown_reference(kind: str, value: object, known: Collection[ImageId]) -> str:
    """Message for an id that is not in the file; says so if only its type is wrong."""
    types = sorted({type_name(identifier) for identifier in known})
    listed = name_some(sorted(known, key=id_order), limit=20)
    message = f"there is no {kind} with id {value!r:.60}; known ids: {listed or 'none'}"
    if known and type_name(value) not in types:
        message += f" (this id is of type {type_name(value)}, those are {' and '.join(types)})"
    return message


def type_name(value: object) -> str:
    """The type of an id in words."""
    return {int: "integer", str: "text", float: "float"}.get(type(value), type(value).__name__)


def extra_of(record: Raw, known: frozenset[str], log: RecordLog) -> Extra:
    """The keys of a record that have no meaning here, to be written back unchanged."""
    if record.keys() <= known:
        return NO_EXTRA
    extra = {key: value for key, value in record.items() if key not in known}
    for key in [key for key, value in extra.items() if not can_be_written(value)]:
        log.add("extra-value", f"the value of {key!r} holds NaN or is nested too deep", field=key)
        del extra[key]
    return extra


def can_be_written(value: object) -> bool:
    """Whether a value without meaning here can go back into strict JSON."""
    if not isinstance(value, float | list | dict):
        return True
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def parse_categories(raw: list[object], log: FindingLog) -> list[Category]:
    """Categories sorted by id: their positions are the labels."""
    categories = parse_list(raw, "categories", log, _parse_category)
    names = Counter(category.name for category in categories)
    for name in (name for name, times in names.items() if times > 1):
        ids = [category.id for category in categories if category.name == name]
        message = f"categories {', '.join(map(str, ids))} are all named {name!r}"
        log.add("category-name-twice", message, path="categories", id=ids[1], value=name)
    return sorted(categories, key=lambda category: category.id)


def _parse_category(identifier: ImageId, record: Raw, log: RecordLog) -> Category | None:
    name, supercategory = record.get("name"), record.get("supercategory")
    if not isinstance(name, str) or not name.strip():
        log.add("category-name", "the category has no name", field="name", value=name)
        return None
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        message = "the name holds a line break, another control character or half a character"
        log.add("category-name", message, field="name", value=name)
        return None
    if not isinstance(identifier, int):
        message = f"a category id must be an integer, this is of type {type_name(identifier)}"
        log.add("id-type", message, field="id", value=identifier)
        return None
    group = supercategory if isinstance(supercategory, str) else ""
    return Category(identifier, name, group, extra_of(record, _CATEGORY_KEYS, log))


def parse_images(raw: list[object], root: Path, log: FindingLog) -> list[ImageRecord]:
    """Image records sorted by id.

    Args:
        raw: The list as JSON gave it.
        root: Folder to which file names are relative.
        log: Takes the findings.
    """
    prefix = os.path.abspath(root).rstrip("/") + "/"  # noqa: PTH100 - must not resolve links
    ids = [usable_id(record.get("id")) if isinstance(record, dict) else None for record in raw]
    positions = {identifier: index for index, identifier in enumerate(ids)}

    def parse(identifier: ImageId, record: Raw, record_log: RecordLog) -> ImageRecord | None:
        name = _file_name(record.get("file_name"), prefix, record_log)
        path = root / (name or "")
        size_hw = _declared_size(record, record_log) or (_size_in_file(path, record_log) if name else None)
        if name is None or size_hw is None:
            return None
        extra = extra_of(record, _IMAGE_KEYS, record_log)
        position = positions.get(identifier, 0)
        return ImageRecord(
            id=identifier, file_name=name, path=path, size_hw=size_hw, extra=extra, position=position
        )

    images = parse_list(raw, "images", log, parse)
    _warn_of_shared_files(images, log)
    return sorted(images, key=lambda image: id_order(image.id))


def _file_name(name: object, prefix: str, log: RecordLog) -> str | None:
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        log.add("image-name-missing", "the image has no file_name", field="file_name", value=name)
        return None
    if "\\" in name:
        hint = f"Did you mean {name.replace(chr(92), '/')!r}?"
        message = "file_name holds a backslash"
        log.add("image-name-backslash", message, field="file_name", value=name, hint=hint)
        return None
    if not os.path.normpath(prefix + name if not name.startswith("/") else name).startswith(prefix):
        message = f"file_name leaves the image folder {prefix}"
        log.add("image-name-outside", message, field="file_name", value=name)
        return None
    return name


def _declared_size(record: Raw, log: RecordLog) -> tuple[int, int] | None:
    """Height and width as declared; None if neither is given, or after saying that they are unusable."""
    height, width = record.get("height"), record.get("width")
    if height is None and width is None:
        return None
    sides = (_positive_integer(height), _positive_integer(width))
    if sides[0] is None or sides[1] is None:
        message = f"width {width!r:.40} and height {height!r:.40} are not positive whole numbers"
        log.add("image-size", message)
        return None
    if sides[0] * sides[1] > MAX_PIXELS:
        message = f"{sides[1]} x {sides[0]} pixels are more than the {MAX_PIXELS} that are ever decoded"
        log.add(
            "image-size", message, hint="Cut the picture into tiles, or shrink it together with its labels."
        )
        return None
    return sides[0], sides[1]


def _positive_integer(value: object) -> int | None:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return whole if type(whole) is int and whole > 0 else None


def _size_in_file(path: Path, log: RecordLog) -> tuple[int, int] | None:
    if log.faulty:
        return None
    try:
        return image_header(path).upright_hw
    except DataError as error:
        message = f"width and height are missing and the file does not tell: {error.findings[0].message}"
        log.add("image-size-missing", message, value=str(path))
        return None


def _warn_of_shared_files(images: list[ImageRecord], log: FindingLog) -> None:
    by_name: dict[str, list[ImageId]] = {}
    for image in images:
        by_name.setdefault(os.path.normpath(image.file_name), []).append(image.id)
    for name, ids in by_name.items():
        if len(ids) > 1:
            message = f"images {', '.join(map(repr, ids))} are all the file {name}"
            log.add("image-name-twice", message, path="images", id=ids[1], value=name)

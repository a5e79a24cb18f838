"""The list `annotations` of a COCO file -> checked `Annotation`s, per image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scantling.data.coco.geometry import (
    check_box,
    check_segmentation,
    compare_box_with_mask,
    diagnose_boxes,
    holds_no_polygon,
    is_finite_number,
    leaves,
    mask_extent,
    numbers_of_box,
    upright_box,
)
from scantling.data.coco.parse import Raw, extra_of, parse_list, unknown_reference, usable_id
from scantling.data.coco.records import (
    ROTATION,
    Annotation,
    Category,
    ImageId,
    ImageRecord,
    Segmentation,
    fits_int64,
    id_order,
)
from scantling.data.findings import FindingLog, Kind, RecordLog, name_some
from scantling.data.images.open import image_header
from scantling.errors import DataError
from scantling.ops.overlaps import Box

Task = Literal["detection", "segmentation"]

MARKS = ("difficult", "ignore")
"""Keys of an annotation that make it an object which counts neither way: VOC's name, and COCO's."""

BACKGROUND_CODES = ("images-without-annotations", "images-crowd-only")
"""Codes of what is told about images without objects."""

_KEYS = frozenset({"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"})


@dataclass(slots=True, kw_only=True)
class Tables:
    """What annotations refer to, and what is gathered while they are parsed.

    Attributes:
        task: Segmentation needs a mask for every annotation.
        count_difficult: Objects marked `difficult` or `ignore` are ordinary ones.
        labels: Category id -> label, for categories that can be used.
        images: Image id -> record, for images that can be used.
        declared: Ids of all `images` and `categories` in the file, usable or not: references to them need no remark.
        log: Takes the findings.
        boxes: Every box of four finite numbers, as in the file.
        box_sizes_hw: Sizes of their images.
        without_mask: Annotations whose unusable mask was left out while the box was kept.
        no_polygons: Of the annotations whose segmentation is a list without polygons.
        num_rotated: Boxes that were turned.
        upright_hw: Size of an image once its EXIF rotation is applied, where that is another; filled as needed.
    """

    task: Task
    count_difficult: bool
    labels: dict[ImageId, int]
    images: dict[ImageId, ImageRecord]
    declared: Mapping[str, frozenset[ImageId]]
    log: FindingLog
    boxes: list[Box] = field(default_factory=list)
    box_sizes_hw: list[tuple[int, int]] = field(default_factory=list)
    without_mask: list[ImageId] = field(default_factory=list)
    no_polygons: list[RecordLog] = field(default_factory=list)
    num_rotated: int = 0
    upright_hw: dict[ImageId, tuple[int, int] | None] = field(default_factory=dict)


def parse_annotations(raw: list[object], tables: Tables) -> dict[ImageId, list[Annotation]]:
    """Annotations per image id (all usable images are there), each list sorted by annotation id."""
    per_image: dict[ImageId, list[Annotation]] = {image_id: [] for image_id in tables.images}

    def parse(identifier: ImageId, record: Raw, log: RecordLog) -> tuple[ImageId, Annotation] | None:
        return _parse_annotation(identifier, record, tables, log)

    parsed = parse_list(raw, "annotations", tables.log, parse)
    for image_id, annotation in parsed:
        per_image[image_id].append(annotation)
    for image_id, objects in per_image.items():
        objects.sort(key=lambda annotation: id_order(annotation.id))
        _warn_of_repeated_boxes(image_id, objects, tables.log)
    if tables.task == "segmentation" or any(annotation.segmentation is not None for _, annotation in parsed):
        for record_log in tables.no_polygons:
            record_log.add("mask-empty", "the segmentation holds no polygon", field="segmentation", value=[])
    if tables.num_rotated:
        message = (
            f"{tables.num_rotated} boxes have a rotation (attributes.rotation, as CVAT writes it); the upright"
            " boxes around the rotated ones are used"
        )
        tables.log.add("box-rotated", message, path="annotations")
    unfit = [annotation.id for _, annotation in parsed if not fits_int64(annotation.id)]
    if unfit:
        message = f"{len(unfit)} annotation ids are no 64-bit integers: {name_some(unfit)}"
        tables.log.add("annotation-ids-renumbered", message, path="annotations")
    diagnose_boxes(tables.boxes, tables.box_sizes_hw, tables.log, "annotations")
    if tables.without_mask and not tables.log.failed:
        message = f"{len(tables.without_mask)} masks are not used, their boxes are: {name_some(tables.without_mask)}"
        tables.log.add("masks-dropped", message, path="annotations")
    if len(parsed) < len(raw) and not tables.log.failed:
        message = f"{len(raw) - len(parsed)} of {len(raw)} annotations are not used"
        tables.log.add("annotations-dropped", message, path="annotations")
    return per_image


def remark_on_coverage(
    categories: list[Category],
    per_image: dict[ImageId, list[Annotation]],
    log: FindingLog,
    *,
    trains: bool = False,
) -> None:
    """Name every declared class without an object, and count the images without any.

    Args:
        categories: By label.
        per_image: Annotations of every usable image.
        log: Takes the findings.
        trains: The data is to be learned from: a class of which nothing can be learned is an error.
    """
    everything = [annotation for annotations in per_image.values() for annotation in annotations]
    objects = Counter(annotation.label for annotation in everything if annotation.is_object)
    others = [annotation for annotation in everything if not annotation.is_object]
    if everything and not objects:
        message = f"there is no object among {_counted(others)}: nothing can be learned, and AP is undefined"
        kind = Kind.STRUCTURAL if trains else Kind.SUSPICIOUS
        log.add("no-objects", message, path="annotations", kind=kind)
    for label, category in enumerate(categories):
        own = [annotation for annotation in others if annotation.label == label]
        if label in objects:
            continue
        name = category.name
        if own:
            message = (
                f"class {name!r} has no object, only {_counted(own)}: nothing to learn, and AP undefined"
            )
            code, kind = "category-crowd-only", Kind.GEOMETRY if trains else Kind.SUSPICIOUS
        else:
            message, code, kind = f"no annotation is of class {name!r}", "category-unused", Kind.SUSPICIOUS
        log.add(code, message, path="categories", id=category.id, value=name, kind=kind)
    remark_on_background(per_image, log)


def remark_on_background(per_image: Mapping[ImageId, Sequence[Annotation]], log: FindingLog) -> None:
    """Count the images without objects, those that have crowd regions or ignored objects apart: `BACKGROUND_CODES`.

    Args:
        per_image: Annotations of every usable image.
        log: Takes the findings.
    """
    empty = [image_id for image_id, annotations in per_image.items() if not annotations]
    if empty:
        message = (
            f"{len(empty)} of {len(per_image)} images have no annotation (background): {name_some(empty)}"
        )
        log.add("images-without-annotations", message, path="images")
    crowded = [
        image_id
        for image_id, annotations in per_image.items()
        if annotations and not any(annotation.is_object for annotation in annotations)
    ]
    if crowded:
        message = (
            f"{len(crowded)} of {len(per_image)} images have no object, only crowd regions or ignored objects: "
            f"{name_some(crowded)}"
        )
        log.add("images-crowd-only", message, path="images")


def _counted(annotations: Sequence[Annotation]) -> str:
    """`3 crowd regions (iscrowd 1)`, `1 object marked difficult or ignore`, or both."""
    crowd = sum(annotation.is_crowd for annotation in annotations)
    ignored = len(annotations) - crowd
    parts = [f"{crowd} crowd region{'s' * (crowd != 1)} (iscrowd 1)"] if crowd else []
    parts += [f"{ignored} object{'s' * (ignored != 1)} marked difficult or ignore"] if ignored else []
    return " and ".join(parts)


def _parse_annotation(
    identifier: ImageId, record: Raw, tables: Tables, log: RecordLog
) -> tuple[ImageId, Annotation] | None:
    image = _image_of(record, tables, log)
    label = _label_of(record, tables, log)
    is_crowd = _crowd_of(record, log)
    if image is None:
        return None
    mask, rotated_before = _mask_of(identifier, record, image, tables, log), tables.num_rotated
    if mask is None:
        tables.no_polygons += [log] if holds_no_polygon(record.get("segmentation")) else []
        record = _set_upright(record, tables)
    box = _box_of(record, mask, image, tables, log)
    if mask is None and tables.task == "segmentation" and record.get("segmentation") is None:
        log.add("mask-missing", "the annotation has no segmentation", field="segmentation")
    if label is None or box is None or (mask is None and tables.task == "segmentation"):
        return None
    return image.id, Annotation(
        id=identifier,
        label=label,
        box_xywh=box,
        is_crowd=is_crowd,
        is_ignored=not (is_crowd or tables.count_difficult) and _is_marked(record),
        area=_area_of(record, log),
        segmentation=mask,
        extra=extra_of(record, _KEYS, log),
        unread=(ROTATION,) if tables.num_rotated > rotated_before else (),
    )


def _set_upright(record: Raw, tables: Tables) -> Raw:
    """The record of a rotated box with the upright box around it, and without its rotation, which is then spent."""
    attributes = record.get("attributes")
    if not isinstance(attributes, dict) or "rotation" not in attributes:
        return record
    degrees, box = attributes["rotation"], numbers_of_box(record.get("bbox"))
    if not is_finite_number(degrees) or degrees % 180 == 0 or box is None or min(box[2:]) <= 0:
        return record
    tables.num_rotated += 1
    rest = {key: value for key, value in attributes.items() if key != "rotation"}
    return record | {"bbox": list(upright_box(box, degrees)), "attributes": rest}


def _image_of(record: Raw, tables: Tables, log: RecordLog) -> ImageRecord | None:
    value = record.get("image_id")
    if value is None:
        log.add("reference-missing", "the annotation has no image_id", field="image_id")
        return None
    identifier = usable_id(value)
    image = tables.images.get(identifier) if identifier is not None else None
    if image is None and identifier not in tables.declared["images"]:
        message = unknown_reference("image", value, tables.declared["images"])
        log.add("image-unknown", message, field="image_id", value=value)
    return image


def _label_of(record: Raw, tables: Tables, log: RecordLog) -> int | None:
    value = record.get("category_id")
    if value is None:
        log.add("reference-missing", "the annotation has no category_id", field="category_id")
        return None
    identifier = usable_id(value)
    label = tables.labels.get(identifier) if identifier is not None else None
    if label is None and identifier not in tables.declared["categories"]:
        message = unknown_reference("category", value, tables.declared["categories"])
        log.add("category-unknown", message, field="category_id", value=value)
    return label


def _crowd_of(record: Raw, log: RecordLog) -> bool:
    value = record.get("iscrowd")
    if value is None or value in (0, 1):
        return bool(value)
    log.add("crowd-value", "iscrowd is neither 0 nor 1", field="iscrowd", value=value)
    return False


def _is_marked(record: Raw) -> bool:
    """Whether VOC's `difficult` or COCO's `ignore` says that the object counts neither way."""
    return any(record.get(mark) in (1, True) for mark in MARKS)


def _mask_of(
    identifier: ImageId, record: Raw, image: ImageRecord, tables: Tables, log: RecordLog
) -> Segmentation | None:
    """The mask; where boxes are enough and faulty records are left out, a faulty mask alone is left out."""
    was_faulty = log.faulty
    mask = check_segmentation(record.get("segmentation"), image.size_hw, log)
    boxes_do = tables.task == "detection" and tables.log.policy.skip_invalid and "bbox" in record
    if log.faulty and not was_faulty and boxes_do:
        log.faulty = False
        tables.without_mask.append(identifier)
    return mask


def _area_of(record: Raw, log: RecordLog) -> float | None:
    value = record.get("area")
    if value is None:
        return None
    if type(value) in (int, float) and 0 <= value < math.inf:  # type: ignore[operator] # a number by its type
        return value  # type: ignore[return-value]
    log.add("area-value", "the area is not a finite number >= 0", field="area", value=value)
    return None


def _box_of(
    record: Raw, mask: Segmentation | None, image: ImageRecord, tables: Tables, log: RecordLog
) -> Box | None:
    """The record's box, or the one around its mask if it has none."""
    value = record.get("bbox")
    extent = mask_extent(mask, image.size_hw) if mask is not None else None
    if value is None and "bbox" not in record:
        return _derived_box(extent, log)
    numbers = numbers_of_box(value)
    if numbers is not None:
        tables.boxes.append(numbers)
        tables.box_sizes_hw.append(image.size_hw)
    box = check_box(value, image.size_hw, log)
    if numbers is not None and _fits_only_upright(numbers, image, tables):
        message = "the bbox fits the picture as its EXIF rotation shows it, not as it is stored"
        log.add("labels-upright", message, field="bbox", value=value)
    if box is not None and extent is not None and record.get("iscrowd") != 1:
        compare_box_with_mask(box, extent, log)
    return box


def _fits_only_upright(box: Box, image: ImageRecord, tables: Tables) -> bool:
    """Whether a box leaves the frame that the record declares, and fits the one its EXIF rotation makes."""
    if leaves(box, image.size_hw) < 1:
        return False
    if image.id not in tables.upright_hw:
        try:
            tables.upright_hw[image.id] = image_header(image.path).upright_hw
        except DataError:
            tables.upright_hw[image.id] = None
    upright_hw = tables.upright_hw[image.id]
    return upright_hw == image.size_hw[::-1] != image.size_hw and leaves(box, upright_hw) < 1


def _derived_box(extent: Box | None, log: RecordLog) -> Box | None:
    if extent is None:
        log.add("box-missing", "the annotation has neither bbox nor a usable mask", field="bbox")
        return None
    box = (extent[0], extent[1], extent[2] - extent[0], extent[3] - extent[1])
    log.add(
        "box-derived",
        "the annotation has no bbox; the box around its mask is used",
        field="bbox",
        value=list(box),
    )
    return box


def _warn_of_repeated_boxes(image_id: ImageId, annotations: list[Annotation], log: FindingLog) -> None:
    """Name annotations that repeat another one's class and exact box."""
    first: dict[tuple[int, Box], Annotation] = {}
    for annotation in annotations:
        twin = first.setdefault((annotation.label, annotation.box_xywh), annotation)
        if twin is not annotation and not annotation.is_crowd:
            message = f"same class and box as annotation {twin.id!r} in image {image_id!r}"
            log.add(
                "box-twice", message, path="annotations", id=annotation.id, value=list(annotation.box_xywh)
            )

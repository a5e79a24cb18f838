"""Two splits of one data set compared: the same classes, no class unseen, no picture in both."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import ImageRecord
from scantling.data.findings import FindingLog, Policy
from scantling.data.images.copies import file_length, pixel_digest
from scantling.data.io import sha256_of
from scantling.errors import Finding


def compare_splits(
    train: CocoDataset, other: CocoDataset, *, pixels: bool = False, strict: bool = False
) -> tuple[Finding, ...]:
    """Look for what makes a score on `other` meaningless after training on `train`.

    Args:
        train: The training split.
        other: Validation or test.
        pixels: Decode images of equal size to find copies that were stored anew; else only equal files are found.
        strict: Warnings become errors.

    Returns:
        Findings; `split-categories-differ` is an error. Equal image ids in both splits mean nothing.
    """
    log = FindingLog(str(other.file), Policy(strict=strict))
    _compare_categories(train, other, log)
    _report_twins(train, other, _real_path, "split-same-file", log)
    _report_twins(train, other, _content_key(train, other), "split-same-file", log)
    if pixels:
        _report_twins(train, other, _pixel_key(train, other), "split-same-pixels", log)
    return log.findings


def _compare_categories(train: CocoDataset, other: CocoDataset, log: FindingLog) -> None:
    """Labels are positions, so the names must agree one by one; the ids need not."""
    if train.class_names != other.class_names:
        ours, theirs = (
            ", ".join(f"{category.id}: {category.name}" for category in dataset.categories)
            for dataset in (train, other)
        )
        message = f"its categories ({theirs}) are not those of {train.file} ({ours})"
        log.add("split-categories-differ", message, path="categories")
        return
    learned, wanted = train.objects_by_class(), other.objects_by_class()
    marked = {a.label for annotations in train.annotations for a in annotations if not a.is_object}
    for label, category in enumerate(other.categories):
        if learned[label] or not wanted[label]:
            continue
        never = "only as crowd regions or ignored objects" if label in marked else "never"
        message = f"class {category.name!r} occurs here, but {never} in {train.file}"
        log.add("split-class-unseen", message, path="categories", id=category.id, value=category.name)


Key = Callable[[ImageRecord], Hashable | None]
"""Two images with equal keys are copies; None: nothing to compare."""


def _report_twins(train: CocoDataset, other: CocoDataset, key: Key, code: str, log: FindingLog) -> None:
    reported = {finding.id for finding in log.findings if finding.code == "split-same-file"}
    known = {value: record for record in train.images if (value := key(record)) is not None}
    for record in other.images:
        twin = known.get(key(record)) if record.id not in reported else None
        if twin is not None:
            message = f"{record.file_name} is also in {train.file} as {twin.file_name}"
            log.add(code, message, path="images", id=record.id)


def _real_path(record: ImageRecord) -> Hashable | None:
    return os.path.realpath(record.path)


def _content_key(train: CocoDataset, other: CocoDataset) -> Key:
    """Checksum of the file, computed only where both splits have a file of that length."""
    shared = _shared(train, other, lambda record: file_length(record.path))

    def key(record: ImageRecord) -> Hashable | None:
        return sha256_of(record.path) if file_length(record.path) in shared else None

    return key


def _pixel_key(train: CocoDataset, other: CocoDataset) -> Key:
    """Checksum of the pixels, computed only where both splits have an image of that size."""
    shared = _shared(train, other, lambda record: record.size_hw)

    def key(record: ImageRecord) -> Hashable | None:
        return pixel_digest(record) if record.size_hw in shared else None

    return key


def _shared(train: CocoDataset, other: CocoDataset, key: Key) -> frozenset[Hashable]:
    ours, theirs = ({key(record) for record in dataset.images} for dataset in (train, other))
    return frozenset(ours & theirs) - {None}

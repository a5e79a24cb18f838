"""The splits of one data set compared: the same classes, no class unseen, no picture and no scene in two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.records import ImageRecord
from scantling.data.findings import CODES, FindingLog, Kind, Policy, name_some
from scantling.data.health.near_duplicates import find_near_duplicates, thumbnails
from scantling.data.images.copies import groups_of_copies
from scantling.errors import Finding

_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneDuplicates:
    """Two images that show the same scene; `peak` is 1 for copies (see `near_duplicates`)."""

    splits: tuple[str, str]
    images: tuple[ImageRecord, ImageRecord]
    peak: float

    @property
    def leaks(self) -> bool:
        """Whether they are in different splits."""
        return self.splits[0] != self.splits[1]


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
    _report_copies(train, other, "split-same-file", log)
    if pixels:
        _report_copies(train, other, "split-same-pixels", log)
    return log.findings


def compare_all(
    splits: Mapping[str, CocoDataset], *, pixels: bool = False, strict: bool = False
) -> dict[str, tuple[Finding, ...]]:
    """What each split has in common with those before it; classes are compared with those of the first only.

    Args:
        splits: By name, the one that is trained on first.
        pixels: See `compare_splits`.
        strict: Warnings become errors.
    """
    names = list(splits)
    found: dict[str, tuple[Finding, ...]] = {name: () for name in names}
    for position, name in enumerate(names):
        for earlier in names[:position]:
            pair = compare_splits(splits[earlier], splits[name], pixels=pixels, strict=strict)
            is_first = earlier == names[0]
            found[name] += tuple(f for f in pair if is_first or CODES[f.code].kind is not Kind.STRUCTURAL)
    return found


def unions_among(splits: Mapping[str, CocoDataset]) -> dict[str, list[str]]:
    """Splits that are others put together, such as `trainval`, and of which; their parts are compared in their place.

    Args:
        splits: By name; a split without images is a part of none.

    Returns:
        Names of the parts, by the name of the union: its images are exactly those of two or more others.
    """
    images = {name: {record.path.absolute() for record in each.images} for name, each in splits.items()}
    parts = {
        name: [other for other, theirs in images.items() if theirs and theirs < own]
        for name, own in images.items()
    }
    unions = {
        name: within
        for name, within in parts.items()
        if len(within) > 1 and set[Path]().union(*(images[other] for other in within)) == images[name]
    }
    return {name: [other for other in within if other not in unions] for name, within in unions.items()}


def scene_duplicates(splits: Mapping[str, CocoDataset]) -> list[SceneDuplicates]:
    """All pairs of images that show the same scene, the most alike first; every image is decoded."""
    images = [(name, record) for name, dataset in splits.items() for record in dataset.images]
    found = find_near_duplicates(thumbnails([record for _, record in images]))
    return [
        SceneDuplicates(
            splits=(images[duplicates.first][0], images[duplicates.second][0]),
            images=(images[duplicates.first][1], images[duplicates.second][1]),
            peak=duplicates.peak,
        )
        for duplicates in found
    ]


def report_scene_duplicates(duplicates: list[SceneDuplicates], log: FindingLog) -> None:
    """One finding for each pair of splits, and one for pairs within splits."""
    groups: dict[tuple[str, str], list[SceneDuplicates]] = {}
    for pair in duplicates:
        groups.setdefault(pair.splits, []).append(pair)
    for (first, second), pairs in groups.items():
        examples = [f"{p.images[0].file_name} = {p.images[1].file_name} ({p.peak:.2f})" for p in pairs]
        where = f"{first} and {second}: " if first != second else f"{first}: "
        message = f"{where}{len(pairs)} pairs of images show the same scene: {name_some(examples, _EXAMPLES)}"
        if first == second:
            log.add("image-near-twice", message)
        else:
            log.add("split-near-pixels", message)


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


def _report_copies(train: CocoDataset, other: CocoDataset, code: str, log: FindingLog) -> None:
    """One finding for each image of `other` that is a copy of one in `train`, if it was not told before."""
    reported = {finding.id for finding in log.findings if finding.code == "split-same-file"}
    records, first = [*train.images, *other.images], len(train.images)
    groups = groups_of_copies(records, pixels=code == "split-same-pixels")
    duplicates = {
        position: group[0] for group in groups for position in group if group[0] < first <= position
    }
    for position in sorted(duplicates):
        record, duplicate = records[position], records[duplicates[position]]
        if record.id not in reported:
            message = f"{record.file_name} is also in {train.file} as {duplicate.file_name}"
            log.add(code, message, path="images", id=record.id)

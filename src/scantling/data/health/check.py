"""Health of a data set: everything that would make a score meaningless or a training worse, in one pass.

DATA ─ read (all findings) ─ open every image ─ boxes ─ classes ─ leaks between splits ─► DataHealth
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from scantling.data.coco import CocoDataset, ReadOptions
from scantling.data.coco.dataset import objects_text
from scantling.data.coco.layout import alias_of
from scantling.data.coco.records import told_apart
from scantling.data.findings import FindingLog, Policy, name_some, summarise
from scantling.data.formats.layouts import announce, detect_format
from scantling.data.formats.locations import Location, parse_location, read_location, split_name
from scantling.data.health.boxes import PERCENTILES, SuspectBox, size_percentiles, suspects
from scantling.data.health.images import check_images
from scantling.data.health.leaks import (
    SceneDuplicates,
    compare_all,
    report_scene_duplicates,
    scene_duplicates,
    unions_among,
)
from scantling.data.images.open import pictures_below
from scantling.data.images.white import dataset_with_white, range_message, white_of
from scantling.data.limits import COCO_LIMIT, over_limit
from scantling.errors import DataError, Finding, Severity

RARE = 10
"""Objects of a class in training below which it is rare."""

_EXAMPLES = 5
_KNOWN_KEYS = frozenset({"attributes.rotation", "state", "truncated", "difficult", "occluded", "ignore"})
_SHOWN_PER_CODE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DataHealth:
    """What was found in a data set.

    Attributes:
        title: What was looked at, and its format.
        splits: What could be read, by name.
        findings: Errors first.
        suspects: Boxes worth a look, the oddest of each kind first.
        duplicates: Images of the same scene, the most alike first.
    """

    title: str
    splits: Mapping[str, CocoDataset]
    findings: tuple[Finding, ...]
    suspects: tuple[SuspectBox, ...]
    duplicates: tuple[SceneDuplicates, ...]

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Objects of every class in every split."""
        names = dict.fromkeys(n for dataset in self.splits.values() for n in told_apart(dataset.class_names))
        counts = {split: _class_counts(dataset) for split, dataset in self.splits.items()}
        return {name: {split: counts[split][name] for split in self.splits} for name in names}

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "title": self.title,
            "splits": {name: _facts(dataset) for name, dataset in self.splits.items()},
            "classes": self.class_counts(),
            "findings_by_code": dict(Counter(finding.code for finding in self.findings)),
            "findings": [_plain(finding) for finding in self.findings],
            "same_scene": [
                {"splits": list(t.splits), "files": [i.file_name for i in t.images], "peak": round(t.peak, 3)}
                for t in self.duplicates
            ],
        }

    def to_text(self) -> str:
        """For people: classes, sizes, then the findings."""
        lines = [self.title, ""]
        lines += _table(
            ("class", *self.splits),
            [(name, *counts.values()) for name, counts in self.class_counts().items()],
        )
        for name, dataset in self.splits.items():
            facts = _facts(dataset)
            others = objects_text(facts["objects"], facts["crowds"], facts["ignored"])
            lines += [
                "",
                f"{name}: {facts['images']} images ({facts['empty_images']} without objects), {others}",
            ]
            lines += _table(
                ("percentile", *map(str, PERCENTILES)),
                [(key.replace("_", " "), *values) for key, values in facts["percentiles"].items() if values],
            )
        return "\n".join([*lines, "", *_told(self.findings), summarise(self.findings)])


def check_data(location: Location | str, *, pixels: bool = True, strict: bool = False) -> DataHealth:
    """Look at everything.

    Args:
        location: Folder with all its splits, or one split in any of the known ways.
        pixels: Decode every image, and look for the same scene in two places.
        strict: Warnings become errors.

    Raises:
        DataError: There is no data set at all.
    """
    location = location if isinstance(location, Location) else parse_location(location)
    title, readers = _splits_of(location)
    train = alias_of("train", readers)
    splits: dict[str, CocoDataset] = {}
    log = FindingLog(str(location.path), Policy(strict=strict))
    findings: list[Finding] = []
    for name, read in readers.items():
        dataset, found = _read(read, strict=strict, learned=name == train)
        findings += found
        if dataset is not None:
            splits[name] = dataset
            findings += check_images(dataset, decode=pixels, strict=strict)
    white = white_of(record for dataset in splits.values() for record in dataset.images) if pixels else None
    if white is not None:
        log.add("image-range", range_message(white), value=white)
        splits = {name: dataset_with_white(dataset, white) for name, dataset in splits.items()}
    odd = [suspect for name, dataset in splits.items() for suspect in suspects(name, dataset)]
    _report_suspects(odd, log)
    if train in splits:
        _report_rare_classes(train, splits[train], log)
    _report_many_objects(splits, log)
    _report_keys(splits, log)
    if location.path.is_dir() and location.split is None and len(splits) == len(readers):
        _report_unlisted(splits, log)
    unions = unions_among(splits)
    for name, parts in unions.items():
        log.add("split-union", f"{name}: its images are those of {', '.join(parts)}, which are compared")
    single = {name: dataset for name, dataset in splits.items() if name not in unions}
    for compared in compare_all(single, pixels=pixels, strict=strict).values():
        findings += compared
    duplicates = scene_duplicates(single) if pixels else []
    report_scene_duplicates(duplicates, log)
    order = list(Severity)
    findings = sorted([*findings, *log.findings], key=lambda finding: order.index(finding.severity))
    return DataHealth(
        title=title,
        splits=splits,
        findings=tuple(findings),
        suspects=tuple(odd),
        duplicates=tuple(duplicates),
    )


Reader = Callable[[ReadOptions], CocoDataset]


def _splits_of(location: Location) -> tuple[str, dict[str, Reader]]:
    """What was understood, and how to read its splits."""
    if not location.path.is_dir():
        return str(location), {split_name(location): partial(read_location, location)}
    layout = detect_format(location.path)
    announce(layout)
    names = (layout.split_named(location.split),) if location.split else layout.splits
    return str(layout), {name: partial(layout.read, name) for name in names}


def _read(read: Reader, *, strict: bool, learned: bool) -> tuple[CocoDataset | None, list[Finding]]:
    """The usable part of a split, None if there is none, and everything that is wrong with all of it.

    Args:
        read: Reads it.
        strict: Warnings are errors.
        learned: It is the one to train on, where nothing to learn from is an error.
    """
    try:
        dataset = read(ReadOptions(strict=strict, require_instances=learned))
    except DataError as error:
        try:
            return read(ReadOptions(skip_invalid=True)), list(error.findings)
        except DataError:
            return None, list(error.findings)
    return dataset, list(dataset.findings)


def _report_suspects(odd: list[SuspectBox], log: FindingLog) -> None:
    """One finding for each kind and split, with examples."""
    groups: dict[tuple[str, str], list[SuspectBox]] = {}
    for suspect in odd:
        groups.setdefault((suspect.code, suspect.split), []).append(suspect)
    for (code, split), members in groups.items():
        examples = [f"{s.image.file_name} object {s.annotation.id} ({s.note})" for s in members]
        log.add(code, f"{split}: {len(members)} boxes: {name_some(examples, _EXAMPLES)}")


def _report_rare_classes(split: str, train: CocoDataset, log: FindingLog) -> None:
    for name, count in _class_counts(train).items():
        if 0 < count < RARE:
            log.add("class-rare", f"{split}: class {name!r} has {count} objects", value=name)


def _report_many_objects(splits: Mapping[str, CocoDataset], log: FindingLog) -> None:
    for name, dataset in splits.items():
        if over := over_limit(dataset, COCO_LIMIT):
            log.add("objects-over-limit", f"{name}: {over.message}", value=over.number, hint=over.hint)


def _report_keys(splits: Mapping[str, CocoDataset], log: FindingLog) -> None:
    """Name once what labels say that nothing here reads."""
    found: Counter[str] = Counter()
    for dataset in splits.values():
        for annotation in chain(*dataset.annotations):
            for key, value in annotation.extra.items():
                inner = value.keys() if isinstance(value, dict) else ()
                found.update(f"{key}.{name}" for name in inner)
                found[key] += not inner
    listed = [f"{key} ({count})" for key, count in found.most_common() if key not in _KNOWN_KEYS and count]
    if listed:
        message = f"annotations have keys that mean nothing here and are kept: {name_some(listed, 12)}"
        log.add("keys-not-used", message)


def _report_unlisted(splits: Mapping[str, CocoDataset], log: FindingLog) -> None:
    """Count the pictures in the image folders that no split names."""
    named = {record.path.absolute() for dataset in splits.values() for record in dataset.images}
    named |= {path.absolute() for dataset in splits.values() for path in dataset.set_aside}
    roots = dict.fromkeys(dataset.image_root.absolute() for dataset in splits.values())
    there = dict.fromkeys(path for root in roots for path in pictures_below(root))
    unlisted = [str(path) for path in there if path not in named]
    if unlisted:
        log.add("image-unlisted", f"{len(unlisted)} pictures are in no split: {name_some(unlisted)}")


def _class_counts(dataset: CocoDataset) -> Counter[str]:
    labels = (a.label for annotations in dataset.annotations for a in annotations if a.is_object)
    names = told_apart(dataset.class_names)
    return Counter({name: 0 for name in names}) + Counter(names[label] for label in labels)


def _facts(dataset: CocoDataset) -> dict[str, Any]:
    return {
        "file": str(dataset.file),
        "images": len(dataset),
        "objects": dataset.num_objects,
        "crowds": dataset.num_crowd,
        "ignored": dataset.num_ignored,
        "empty_images": sum(not any(a.is_object for a in annotations) for annotations in dataset.annotations),
        "percentiles": size_percentiles(dataset),
    }


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    cells = [head, *(tuple(f"{v:g}" if isinstance(v, float) else str(v) for v in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]


def _told(findings: tuple[Finding, ...]) -> list[str]:
    """The first few of each code."""
    lines: list[str] = []
    told: Counter[str] = Counter()
    for finding in findings:
        told[finding.code] += 1
        if told[finding.code] <= _SHOWN_PER_CODE:
            lines.append(str(finding))
    rest = [f"[{code}] {count - _SHOWN_PER_CODE} more of these" for code, count in told.items()]
    return [
        *lines,
        *(line for line, count in zip(rest, told.values(), strict=True) if count > _SHOWN_PER_CODE),
    ]


def _plain(finding: Finding) -> dict[str, Any]:
    value = finding.value if isinstance(finding.value, str | int | bool | None) else str(finding.value)
    return asdict(replace(finding, value=value))

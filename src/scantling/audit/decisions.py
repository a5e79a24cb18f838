"""What a person decided about suspects: read from the page's download, or made by rules such as `loose>0.8`.

    suspects.json ─┬─ audit.html ──► decisions.json ─┐
                   └─ --accept RULE ─────────────────┴──► list of accepted suspects ──► repair

Both files name the data by the hash of its labels, so decisions about other data are refused.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

from scantling.audit.file import FORMAT
from scantling.audit.suspects import REASONS, Reason, hash_of
from scantling.data.coco import CocoDataset, ImageId
from scantling.data.coco.geometry import is_finite_number
from scantling.data.coco.records import AnnotationId
from scantling.data.findings import FindingLog, Policy, RecordLog, name_some, refuse
from scantling.data.io import read_json
from scantling.errors import DataError, UsageError, did_you_mean
from scantling.ops.overlaps import corners

BoxXywh = tuple[float, float, float, float]

_RULE = re.compile(r"\s*(\w+)\s*(?:(>=|>)\s*([0-9.]+))?\s*")
_CHOICES = ("accept", "reject")
_CHANGES_BOX: tuple[Reason, ...] = ("loose", "missing")
_CHANGES_CATEGORY: tuple[Reason, ...] = ("class", "missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A suspect with what was decided.

    Attributes:
        accept: Whether the label is to be repaired.
        reason: What is wrong with it.
        score: How likely that was.
        image_id: Of the image.
        annotation_id: Of the label; None where one is missing.
        box_xywh: Better box; None where the box is not the matter.
        category_id: Better category; None where it is not the matter.
    """

    accept: bool
    reason: Reason
    score: float
    image_id: ImageId
    annotation_id: AnnotationId | None
    box_xywh: BoxXywh | None
    category_id: int | None


@dataclass(frozen=True, slots=True)
class Rule:
    """Accept the suspects of a reason from a score on."""

    reason: Reason
    least: float
    inclusive: bool

    def accepts(self, record: Mapping[str, Any]) -> bool:
        """Whether a suspect's record is of this reason and sure enough."""
        score = float(record["score"])
        enough = score >= self.least if self.inclusive else score > self.least
        return bool(record["reason"] == self.reason and enough)


def parse_rule(text: str) -> Rule:
    """`loose>0.8`, `loose>=0.8` or `loose`.

    Raises:
        UsageError: It has another form or names no reason.
    """
    found = _RULE.fullmatch(text)
    try:
        least = float(found[3] or 0) if found else math.nan
    except ValueError:
        least = math.nan
    if not found or not 0 <= least <= 1:
        raise UsageError(f"--accept {text!r}: write REASON>SCORE with a score in 0..1, such as loose>0.8")
    if found[1] not in REASONS:
        hint = f"Reasons: {', '.join(REASONS)}."
        raise UsageError(f"--accept {text!r}: unknown reason{did_you_mean(found[1], REASONS)}", hint=hint)
    return Rule(cast(Reason, found[1]), least, found[2] != ">")


def read_decisions(path: Path | str, dataset: CocoDataset) -> list[Decision]:
    """Read the file that the audit page offers for download.

    Args:
        path: `decisions.json`.
        dataset: The data set that was audited.

    Raises:
        DataError: It is no such file, about other data, or names what the data set does not have; with all findings.
    """
    return _read(path, dataset, "decisions", ())


def decide_by_rules(path: Path | str, dataset: CocoDataset, rules: Sequence[Rule]) -> list[Decision]:
    """Read `suspects.json` and accept what one of the rules accepts; everything else is rejected.

    Args:
        path: `suspects.json`.
        dataset: The data set that was audited.
        rules: At least one.

    Raises:
        DataError: As in `read_decisions`.
    """
    return _read(path, dataset, "suspects", rules)


def accepted(decisions: Iterable[Decision]) -> list[Decision]:
    """The accepted ones, at most one for each label.

    Raises:
        DataError: Two repairs of one label are accepted, one is accepted and rejected, or a missing label is accepted
            twice.
    """
    decisions = list(decisions)
    chosen = [decision for decision in decisions if decision.accept]
    hint = "Accept one of them and leave out the others."
    if twice := _repeated(d.annotation_id for d in chosen if d.annotation_id is not None):
        raise DataError(f"several repairs of the annotations {name_some(twice)} are accepted", hint=hint)
    if twice := _repeated((d.annotation_id, d.reason) for d in decisions if d.annotation_id is not None):
        raise DataError(
            f"repairs are both accepted and rejected, or listed twice: {name_some(twice)}", hint=hint
        )
    missing = (d for d in chosen if d.annotation_id is None)
    if twice := _repeated((d.image_id, d.category_id, d.box_xywh) for d in missing):
        message = f"missing labels (image, category, box) are accepted twice: {name_some(twice)}"
        raise DataError(message, hint=hint)
    return chosen


def _repeated(keys: Iterable[Hashable]) -> list[str]:
    return [repr(key) for key, count in Counter(keys).items() if count > 1]


def _read(path: Path | str, dataset: CocoDataset, kind: str, rules: Sequence[Rule]) -> list[Decision]:
    content = read_json(path)
    records = _records_of(content, str(path), kind)
    _check_data(cast(Mapping[str, Any], content), str(path), dataset)
    log = FindingLog(str(path), Policy())
    reader = _Reader(dataset, log)
    decisions = []
    for index, record in enumerate(records):
        one = log.record(f"{kind}[{index}]")
        if not isinstance(record, dict):
            one.add("decision-record", f"expected an object, found {type(record).__name__}")
        elif (decision := reader.read(record, one, rules)) is not None:
            decisions.append(decision)
    log.raise_if_failed()
    return decisions


def _records_of(content: object, file: str, kind: str) -> list[object]:
    """The list of a file of this kind."""
    if not isinstance(content, dict) or content.get("kind") != kind or content.get("format") != FORMAT:
        found = content.get("kind") if isinstance(content, dict) else type(content).__name__
        hints = {
            "decisions": "Decide in audit.html and download decisions.json, or use --suspects with --accept.",
            "suspects": "Give the suspects.json that `scantling audit` wrote.",
        }
        message = f"not a file of {kind} of format {FORMAT}"
        refuse("decisions-file", file, message, path="kind", value=found, hint=hints[kind])
    records = content.get(kind)
    if not isinstance(records, list):
        refuse("decisions-file", file, f"{kind!r} must be a list", path=kind, value=records)
    return records


def _check_data(content: Mapping[str, Any], file: str, dataset: CocoDataset) -> None:
    data = content.get("data")
    stated = data.get("sha256") if isinstance(data, dict) else None
    if stated != hash_of(dataset):
        message = f"made for other labels than those of {dataset.file}"
        refuse("decisions-other-data", file, message, path="data.sha256", value=stated)


class _Reader:
    """Turns records into decisions and says what is wrong with each."""

    def __init__(self, dataset: CocoDataset, log: FindingLog) -> None:
        self._dataset = dataset
        self._log = log
        self._image_of = {
            annotation.id: image.id
            for image, annotations in zip(dataset.images, dataset.annotations, strict=True)
            for annotation in annotations
        }

    def read(self, record: Mapping[str, Any], log: RecordLog, rules: Sequence[Rule]) -> Decision | None:
        """The decision of a record, None if the record is unusable."""
        reason, score = record.get("reason"), record.get("score")
        if reason not in REASONS:
            log.add(
                "decision-record",
                f"unknown reason; known: {', '.join(REASONS)}",
                field="reason",
                value=reason,
            )
            return None
        if not is_finite_number(score):
            log.add("decision-record", "the score is not a number", field="score", value=score)
        choice = record.get("decision")
        if not rules and choice not in _CHOICES:
            log.add("decision-record", "expected accept or reject", field="decision", value=choice)
        self._check_ids(record, reason, log)
        box = self._box(record, log) if reason in _CHANGES_BOX else None
        category_id = self._category(record, log) if reason in _CHANGES_CATEGORY else None
        if log.faulty:
            return None
        return Decision(
            accept=any(rule.accepts(record) for rule in rules) if rules else choice == "accept",
            reason=reason,
            score=float(record["score"]),
            image_id=record["image_id"],
            annotation_id=record.get("annotation_id"),
            box_xywh=box,
            category_id=category_id,
        )

    def _check_ids(self, record: Mapping[str, Any], reason: Reason, log: RecordLog) -> None:
        image_id, identifier = record.get("image_id"), record.get("annotation_id")
        if not _is_id(image_id) or image_id not in self._dataset.index_of:
            log.add("decision-unknown", "no such image", field="image_id", value=image_id)
        elif reason == "missing" and identifier is not None:
            log.add(
                "decision-record", "a missing label has no id yet", field="annotation_id", value=identifier
            )
        elif reason != "missing" and (not _is_id(identifier) or self._image_of.get(identifier) != image_id):
            log.add(
                "decision-unknown", "no such annotation on its image", field="annotation_id", value=identifier
            )

    def _box(self, record: Mapping[str, Any], log: RecordLog) -> BoxXywh | None:
        """A box with extent inside its image."""
        box = record.get("suggested_bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite_number, box)):
            log.add("decision-record", "expected four finite numbers", field="suggested_bbox", value=box)
            return None
        x, y, width, height = map(float, box)
        _, _, right, bottom = corners((x, y, width, height))
        size_hw = self._size_hw(record.get("image_id"))
        if min(x, y) < 0 or min(width, height) <= 0 or right > size_hw[1] + 1 or bottom > size_hw[0] + 1:
            log.add(
                "decision-record",
                "the box leaves its image or has no extent",
                field="suggested_bbox",
                value=box,
            )
        return (x, y, width, height)

    def _size_hw(self, image_id: object) -> tuple[float, float]:
        """Of an image; without limit for an image that is not known, which is told elsewhere."""
        index = self._dataset.index_of.get(image_id) if _is_id(image_id) else None
        return (math.inf, math.inf) if index is None else self._dataset.images[index].size_hw

    def _category(self, record: Mapping[str, Any], log: RecordLog) -> int | None:
        identifier = record.get("suggested_category_id")
        if isinstance(identifier, int) and identifier in self._dataset.category_ids:
            return identifier
        log.add("decision-unknown", "no such category", field="suggested_category_id", value=identifier)
        return None


def _is_id(value: object) -> TypeGuard[ImageId]:
    return isinstance(value, int | float | str) and not isinstance(value, bool)

"""A repaired copy of the labels: what was accepted is done, everything else stays as it is in the file.

| reason | what is done |
|---|---|
| loose | the box moves to the suggested one |
| class | the category becomes the suggested one |
| spurious, duplicate | the annotation is left out |
| missing | a new annotation, with an id of its own |

A changed or new record says so under the key `scantling_repair`, with what it was before. A mask contradicts a box
that moves: with `masks="keep"` such a record stays as it is, and is counted; with `masks="drop"` the box moves and the
mask goes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scantling.audit.decisions import Decision, accepted
from scantling.audit.suspects import REASONS, REMOVES, Reason
from scantling.data.coco import CocoDataset, write_coco
from scantling.data.coco.records import AnnotationId
from scantling.data.io import read_json
from scantling.errors import UsageError

MARK = "scantling_repair"
MaskPolicy = Literal["keep", "drop"]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was done.

    Attributes:
        out: The file that was written.
        done: Repairs by reason.
        kept_for_mask: Boxes that were to move but have a mask, and stayed.
        num_rejected: Decisions that left a label as it is.
        num_annotations: Annotations in the file.
        losses: How often something of labels that were no COCO file could not be kept, by what it was.
    """

    out: Path
    done: dict[Reason, int]
    kept_for_mask: int
    num_rejected: int
    num_annotations: int
    losses: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "out": str(self.out),
            "done": self.done,
            "kept_for_mask": self.kept_for_mask,
            "num_rejected": self.num_rejected,
            "num_annotations": self.num_annotations,
            "not_kept": self.losses,
        }

    def to_text(self) -> str:
        """The same as a few lines."""
        counted = ", ".join(f"{count} {reason}" for reason, count in self.done.items() if count) or "nothing"
        lines = [f"{self.out}: {self.num_annotations} annotations; repaired: {counted}"]
        if self.kept_for_mask:
            lines.append(
                f"{self.kept_for_mask} boxes with masks were not moved; --masks drop moves them without their masks"
            )
        lines += [f"not kept: {count} {what}" for what, count in self.losses.items()]
        return "\n".join(lines)


def repair_labels(
    dataset: CocoDataset, decisions: Iterable[Decision], out: Path, *, masks: MaskPolicy = "keep"
) -> Repair:
    """Write a repaired copy of a data set's annotations.

    A COCO file is copied record by record, so what is not repaired keeps every key and number it has, and records that
    were left out as faulty stay as they are; labels in another format are written as COCO.

    Args:
        dataset: The labels; never written to.
        decisions: About them. None leaves the copy equal to the original.
        out: The file to write.
        masks: What happens to the mask of a box that moves.

    Raises:
        DataError: Two repairs of one label are accepted.
        UsageError: `out` is the file of the original, or cannot be written.
    """
    if out.exists() and out.resolve() == dataset.file.resolve():
        raise UsageError(f"{out}: this is the original, which is never changed", hint="Choose another file.")
    decisions = list(decisions)
    chosen = accepted(decisions)
    own = _own_content(dataset)
    content = dataset.to_coco() if own is None else own
    work = _RepairWork({d.annotation_id: d for d in chosen if d.annotation_id is not None}, masks)
    annotations = [kept for record in content["annotations"] if (kept := work.apply(record)) is not None]
    added = [decision for decision in chosen if decision.reason == "missing"]
    annotations += _new_records(added, [_id_of(record) for record in content["annotations"]])
    write_coco(content | {"annotations": annotations}, out)
    left = {_id_of(record) for record in annotations} if own is None else set()
    unread = (a.unread for many in dataset.annotations for a in many if a.id in left)
    counted = work.done + Counter(missing=len(added))
    return Repair(
        out=out,
        done={reason: counted[reason] for reason in REASONS},
        kept_for_mask=work.kept_for_mask,
        num_rejected=len(decisions) - len(chosen),
        num_annotations=len(annotations),
        losses=dict(Counter(itertools.chain.from_iterable(unread))),
    )


def _own_content(dataset: CocoDataset) -> dict[str, Any] | None:
    """The file's own content where it is a COCO file."""
    if dataset.file.is_file() and dataset.file.suffix.lower() == ".json":
        content = read_json(dataset.file)
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            return content
    return None


class _RepairWork:
    """Applies decisions to records and counts."""

    def __init__(self, decisions: dict[AnnotationId, Decision], masks: MaskPolicy) -> None:
        self._decisions = decisions
        self._masks = masks
        self.done: Counter[str] = Counter()
        self.kept_for_mask = 0

    def apply(self, record: Record) -> Record | None:
        """The record as it is to be written; None leaves it out. Of records of one id the first is meant."""
        identifier = _id_of(record)
        decision = None if identifier is None else self._decisions.pop(identifier, None)
        if decision is None:
            return record
        if decision.reason == "loose" and record.get("segmentation") and self._masks == "keep":
            self.kept_for_mask += 1
            return record
        self.done[decision.reason] += 1
        return None if decision.reason in REMOVES else _changed(record, decision)


def _id_of(record: object) -> AnnotationId | None:
    """The id of a record as it came from the file, None where it has none that may be one."""
    identifier = record.get("id") if isinstance(record, dict) else None
    return identifier if isinstance(identifier, int | float | str) else None


def _changed(record: Record, decision: Decision) -> Record:
    """The record with its box (then without mask) or category replaced, and what they were."""
    moves = decision.reason == "loose"
    changes = _box_keys(decision) if moves else {"category_id": decision.category_id}
    replaced = {*changes, "segmentation"} if moves else set(changes)
    was = {key: value for key, value in record.items() if key in replaced}
    kept = {key: value for key, value in record.items() if key not in replaced or key in changes}
    return kept | changes | {MARK: _mark(decision) | {"was": was}}


def _new_records(decisions: Sequence[Decision], ids: Sequence[AnnotationId | None]) -> Iterator[Record]:
    """Annotations for what had none."""
    for decision, identifier in zip(decisions, _fresh_ids(ids), strict=False):
        yield {
            "id": identifier,
            "image_id": decision.image_id,
            "category_id": decision.category_id,
            **_box_keys(decision),
            "iscrowd": 0,
            MARK: _mark(decision),
        }


def _fresh_ids(ids: Sequence[AnnotationId | None]) -> Iterator[AnnotationId]:
    """Ids that are not taken: numbers after the largest, or texts where an id is a text."""
    numbers = [identifier for identifier in ids if identifier is not None and not isinstance(identifier, str)]
    if not any(isinstance(identifier, str) for identifier in ids):
        return itertools.count(int(max(numbers, default=0)) + 1)
    taken = set(ids)
    return (text for number in itertools.count(1) if (text := f"new-{number}") not in taken)


def _box_keys(decision: Decision) -> Record:
    x, y, width, height = decision.box_xywh or (0.0, 0.0, 0.0, 0.0)
    return {"bbox": [x, y, width, height], "area": round(width * height, 4)}


def _mark(decision: Decision) -> Record:
    return {"reason": decision.reason, "score": decision.score}

"""An audit for programs and people: the content of `suspects.json`, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scantling.audit.suspects import DECIMALS, Audit, Suspect
from scantling.data.coco import CocoDataset
from scantling.ops.overlaps import from_corners

FORMAT = 2


def suspects_json(audit: Audit, dataset: CocoDataset) -> dict[str, Any]:
    """The content of `suspects.json`: boxes as [x, y, width, height], ids and category names of the data set."""
    return {
        "format": FORMAT,
        "kind": "suspects",
        "data": {"file": dataset.file.name, "sha256": audit.data_hash, "num_labels": audit.num_labels},
        "used": list(audit.used),
        "config": audit.config.model_dump(mode="json"),
        "counts": audit.counts,
        "suspects": [suspect_json(suspect, dataset) for suspect in audit.suspects],
    }


def suspect_json(suspect: Suspect, dataset: CocoDataset) -> dict[str, Any]:
    """One suspect as plain values."""
    label = suspect.suggested_label
    return {
        "reason": suspect.reason,
        "score": round(suspect.score, 4),
        "image_id": suspect.image_id,
        "file_name": dataset.images[suspect.image].file_name,
        "annotation_id": suspect.annotation_id,
        "category": suspect.category,
        "bbox": _xywh(suspect.box),
        "suggested_bbox": _xywh(suspect.suggested_box),
        "suggested_category": suspect.suggested_category,
        "suggested_category_id": None if label is None else dataset.category_ids[label],
        "note": suspect.note,
    }


def table_text(audit: Audit, dataset: CocoDataset, first: int = 20) -> str:
    """The counts by reason and the first suspects as lines of text."""
    counted = ", ".join(f"{count} {reason}" for reason, count in audit.counts.items() if count)
    lines = [f"{len(audit.suspects)} suspects among {audit.num_labels} labels ({counted or 'none'})"]
    rows: list[tuple[str, ...]] = [("score", "reason", "image", "id", "category", "evidence")]
    rows += [_row(suspect, dataset) for suspect in audit.suspects[:first]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    shown = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    more = len(audit.suspects) - first
    return "\n".join(
        [*lines, *(shown if audit.suspects else []), *([f"and {more} more"] if more > 0 else [])]
    )


def _row(suspect: Suspect, dataset: CocoDataset) -> tuple[str, ...]:
    identifier = "new" if suspect.annotation_id is None else str(suspect.annotation_id)
    file_name = dataset.images[suspect.image].file_name
    return (f"{suspect.score:.2f}", suspect.reason, file_name, identifier, suspect.category, suspect.note)


def _xywh(box: Sequence[float] | None) -> list[float] | None:
    if box is None:
        return None
    x, y, width, height = from_corners(box)
    return [x, y, round(width, DECIMALS), round(height, DECIMALS)]

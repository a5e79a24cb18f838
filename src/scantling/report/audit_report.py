"""What `audit` leaves: suspects.json for programs, audit.html to decide in, suspects.jpg to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scantling.audit.file import suspects_json, table_text
from scantling.audit.suspects import Audit
from scantling.data.coco import CocoDataset
from scantling.data.io import write_json
from scantling.report.audit_page import write_audit_page
from scantling.report.suspect_sheet import write_suspect_sheet
from scantling.report.suspect_shots import Camera
from scantling.structures.detections import Detections

ON_SHEET = 30
"""Suspects in the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """An audit and where it was written.

    Attributes:
        audit: The suspects.
        dataset: The labels.
        out: Folder with suspects.json, audit.html, suspects.jpg.
        shown: Suspects on the page, the first ones.
    """

    audit: Audit
    dataset: CocoDataset
    out: Path
    shown: int

    def to_dict(self) -> dict[str, Any]:
        """Counts and files as plain values."""
        return {
            "out": str(self.out),
            "suspects": str(self.out / "suspects.json"),
            "page": str(self.out / "audit.html"),
            "num_labels": self.audit.num_labels,
            "num_suspects": len(self.audit.suspects),
            "shown": self.shown,
            "counts": self.audit.counts,
        }

    def to_text(self) -> str:
        """The first suspects as a table, and where to decide."""
        return f"{table_text(self.audit, self.dataset)}\n\nDecide in {self.out / 'audit.html'}"


def write_audit(
    out: Path, audit: Audit, dataset: CocoDataset, detections: Detections | None = None
) -> AuditReport:
    """Write all three files; each is complete or not there.

    Args:
        out: Folder, made if need be.
        audit: The suspects.
        dataset: The labels.
        detections: Drawn on the pictures.

    Raises:
        UsageError: The folder cannot be written to.
    """
    camera = Camera.on(dataset, detections)
    write_json(out / "suspects.json", suspects_json(audit, dataset), indent=1)
    shown = write_audit_page(out / "audit.html", audit, camera)
    write_suspect_sheet(out / "suspects.jpg", camera, audit.suspects[:ON_SHEET])
    return AuditReport(audit=audit, dataset=dataset, out=out, shown=shown)

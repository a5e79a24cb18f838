"""What a suite says at its end, and what it would do before its beginning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scantling.errors import ScantlingError
from scantling.evaluate.over_sets import Part, SetResult, SetsTable, TableRow, mean_iou_table, table_over_sets
from scantling.run.plan import Plan
from scantling.run.running import LOG, LOGS, STATUS
from scantling.run.stage import read_json_object

PAGE = "suite.html"
_PARTS: tuple[Part, Part] = ("steps", "members")
_NOTE = "Half-sum is (mAP + mAR) / 2; the 95 % intervals come from drawing the images of each data set anew."


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteSummary:
    """What a suite reached.

    Attributes:
        out: Its folder.
        results: Of every data set, failed ones too.
        bugs: Names of the sets whose failure is nobody's mistake but scantling's.
    """

    out: Path
    results: tuple[SetResult, ...]
    bugs: tuple[str, ...] = ()

    @property
    def failures(self) -> dict[str, str]:
        """Why a data set has no numbers, by its name."""
        return {each.name: each.failure for each in self.results if each.failure is not None}

    def require_all(self) -> None:
        """End as the worst of the failures would.

        Raises:
            ScantlingError: Some sets failed.
            RuntimeError: One of them by a bug.
        """
        failed = self.failures
        told = f"{len(failed)} of {len(self.results)} data sets failed: {', '.join(failed)}"
        if self.bugs:
            raise RuntimeError(f"{told}; {failed[self.bugs[0]]}")
        if failed:
            hint = (
                "The same command does what is missing, once what is told above is put right; `scantling suite` with"
                " --sets NAME takes a single set."
            )
            raise ScantlingError(told, hint=hint)

    @property
    def tables(self) -> dict[str, SetsTable]:
        """By what they show; empty ones are left out."""
        tables = {
            "Score maps of the segmenters": mean_iou_table(self.results),
            "Members": table_over_sets(self.results, "members"),
            "Step after step": table_over_sets(self.results, "steps"),
        }
        return {title: table for title, table in tables.items() if table.rows}

    @property
    def outcome(self) -> TableRow | None:
        """The row that the runs end with: that of all steps, or the best member's where there is no step."""
        steps, members = (table_over_sets(self.results, part).rows for part in _PARTS)
        if steps:
            return steps[-1]
        return max(members, key=lambda row: row.mean["mAP"].value or 0.0, default=None)

    def to_text(self) -> str:
        """For people: the tables, what they are of, what failed, and where all of it is."""
        parts = [f"**{title}**\n\n{table.to_text()}" for title, table in self.tables.items()]
        parts.append("\n".join([self.measured_on(), _NOTE, *self._told_failures()]))
        return "\n\n".join(parts)

    def measured_on(self) -> str:
        """A sentence on which images the numbers are of."""
        words = {"segm": "masks", "bbox": "boxes", "": "pixels"}
        sets = [
            f"{each.name} ({each.num_images} {each.split} images, {words[each.iou_type]})"
            for each in self.results
            if each.failure is None
        ]
        return f"Measured on {', '.join(sets) or 'no data set'}."

    def _told_failures(self) -> list[str]:
        lines = [
            f"{name} failed: {reason} (see {log_of(self.out, name)})"
            for name, reason in self.failures.items()
        ]
        count = len(self.failures)
        return [*lines, f"{count} of {len(self.results)} data sets failed."] if count else []

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "out": str(self.out),
            "report": str(self.out / PAGE),
            "sets": {
                each.name: {
                    "failure": each.failure,
                    "log": str(log_of(self.out, each.name)),
                    "iou_type": each.iou_type,
                    "split": each.split,
                    "num_images": each.num_images,
                }
                for each in self.results
            },
            "tables": {title: table.to_dict() for title, table in self.tables.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SuitePlan:
    """What a suite would do.

    Attributes:
        plans: Of the run of each data set, by its name; for one that cannot be done, why.
    """

    plans: Mapping[str, Plan | str]

    def to_text(self) -> str:
        """The plan of every data set under its name."""
        told = {name: plan if isinstance(plan, str) else plan.to_text() for name, plan in self.plans.items()}
        return "\n\n".join(f"{name}\n{text}" for name, text in told.items())

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            name: {"failure": plan} if isinstance(plan, str) else plan.to_dict()
            for name, plan in self.plans.items()
        }

    def require_all(self) -> None:
        """End as the suite would.

        Raises:
            ScantlingError: Some sets cannot be done.
        """
        failed = [name for name, plan in self.plans.items() if isinstance(plan, str)]
        if failed:
            raise ScantlingError(
                f"{len(failed)} of {len(self.plans)} data sets cannot be done: {', '.join(failed)}",
                hint="Put right what is told above, or take the others alone with --sets NAME.",
            )


def log_of(out: Path, name: str) -> Path:
    """Where it is told what happened to a set: in its own log, or in that of the suite if it was never begun.

    Where several processes share the folders it is the log of the one for which a stage failed, or the folder of all.
    """
    failures = read_json_object(out / name / STATUS).get("failures") or {}
    places = [out / name / failure["log"] for failure in failures.values() if failure.get("log")]
    places += [folder / log for folder in (out / name, out) for log in (LOG, LOGS)]
    return next((place for place in places if place.exists()), out / LOG)

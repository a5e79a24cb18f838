"""What a run reached, as its folder tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from scantling.data.io import read_json
from scantling.run.folder import METRICS, REPORT
from scantling.run.stages.evaluation import KIND, SEMANTIC, SEMANTIC_KEY, STEPS, TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run reached.

    Attributes:
        out: The run folder.
        metrics: Content of `metrics.json`.
        table: COCO table of the stage the metrics are of; empty where no member finds objects.
        steps: Table of what each step gave; empty likewise.
        semantic: Table of how good the score maps of semantic members are; empty without any.
    """

    out: Path
    metrics: Mapping[str, Any]
    table: str
    steps: str
    semantic: str = ""

    @property
    def finds_objects(self) -> bool:
        """Whether there is a member that finds objects."""
        return "stage" in self.metrics

    def to_text(self) -> str:
        """For people: the tables, the headline number, where the report is."""
        report = f"report: {self.out / REPORT}"
        if not self.finds_objects:
            nothing = "no member finds objects, so there is no AP, and nothing to combine, refine or audit"
            return "\n".join([*([self.semantic, ""] if self.semantic else []), nothing, report])
        headline_key = f"{self.metrics.get(KIND, 'bbox')}/AP"
        ap = self.metrics[headline_key]
        value = "undefined" if ap is None else f"{ap:.3f}"
        kind = "member" if self.metrics["stage"] == self.metrics["member"] else "after"
        headline = f"{headline_key} {value} on {self.metrics['split']} ({kind} {self.metrics['stage']})"
        semantic = [self.semantic, ""] if self.semantic else []
        return "\n".join([self.table, "", self.steps, "", *semantic, headline, report])

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), "report": str(self.out / REPORT), "metrics": dict(self.metrics)}


def summarise(out: Path) -> RunSummary:
    """The outcome of a finished run, from its folder."""
    metrics = cast("dict[str, Any]", read_json(out / METRICS))
    table, steps = (_text(out / name) if "stage" in metrics else "" for name in (TABLE, STEPS))
    semantic = _text(out / SEMANTIC) if SEMANTIC_KEY in metrics else ""
    return RunSummary(out=out, metrics=metrics, table=table, steps=steps, semantic=semantic)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").rstrip("\n")

"""The report: one HTML file that needs nothing else, neither network nor other files."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from scantling.data.io import atomic_write
from scantling.report.charts import LineChart, line_chart, reliability_chart, size_chart
from scantling.report.confusion_table import confusion_table
from scantling.report.content import MemberCurves, ReportContent, ScoreFacts
from scantling.report.palette import colour_of, hex_of
from scantling.report.summary import error_counts, headline_evaluation, headlines, sentences

_TEMPLATES = Path(__file__).parent / "templates"
_UNDEFINED = "–"  # en dash


def write_report(out: Path, content: ReportContent) -> Path:
    """Write the page; a file of that name is replaced only once the new one is complete.

    Args:
        out: `report.html`.
        content: What it says.

    Returns:
        `out`.

    Raises:
        UsageError: The folder cannot be written to or the disk is full.
    """
    atomic_write(out, render(content))
    return out


def render(content: ReportContent) -> str:
    """The whole page as text. Every text that comes from data is escaped; the page allows no script but its own."""
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    evaluation = headline_evaluation(content.stages)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            content=content,
            evaluation=evaluation,
            headlines=headlines(evaluation) if evaluation else (),
            sentences=sentences(content),
            error_counts=error_counts(content.points),
            charts=[(history.name, _history_charts(history)) for history in content.histories],
            score_charts=_score_charts(content.scores) if content.scores else [],
            reliability=reliability_chart(content.scores.calibration) if content.scores else None,
            confusion=confusion_table(content.scores.confusion) if content.scores else None,
            sizes=size_chart(content.dataset.sizes) if content.dataset else None,
            style=page_style(),
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _history_charts(history: MemberCurves) -> list[LineChart]:
    x_max = max((s.points[-1][0] for s in (*history.losses, *history.metrics) if s.points), default=0.0)
    charts = [
        line_chart("Training loss", history.losses, x_max=x_max),
        line_chart("Validation", history.metrics, x_max=x_max, y_max=1.0 if _reaches_half(history) else None),
    ]
    return [chart for chart in charts if chart]


def _score_charts(scores: ScoreFacts) -> list[LineChart]:
    marks = {"suggested": scores.threshold} if scores.threshold is not None else {}
    charts = [
        line_chart("Precision over recall", scores.precision_recall, x_label="recall", x_max=1.0, y_max=1.0),
        line_chart(
            "F1 over the score threshold", scores.f1, x_label="score", x_max=1.0, y_max=1.0, marks=marks
        ),
    ]
    return [chart for chart in charts if chart]


def _reaches_half(history: MemberCurves) -> bool:
    """Whether metrics fill enough of 0..1 to be shown on the whole of it."""
    return any(y > 0.5 for series in history.metrics for _, y in series.points)


def page_style() -> Markup:
    """The style sheet of all pages."""
    return Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file


@lru_cache(maxsize=1)
def page_environment() -> Environment:
    """Templates of this folder, with everything escaped and the filters that pages share."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "count": count,
        "signed": signed,
        "sort_value": sort_value,
        "data_uri": data_uri,
        "colour": lambda label: hex_of(colour_of(label)),
        "hover": hover_json,
        "by_code": findings_by_code,
    }
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals; an en dash where undefined."""
    return f"{value:.{digits}f}" if _is_defined(value) else _UNDEFINED


def percent(value: float | None) -> str:
    """Whole percent; an en dash where undefined."""
    return f"{value:.0%}" if _is_defined(value) else _UNDEFINED


def signed(value: float | None) -> str:
    """Three decimals with a sign; an en dash where undefined."""
    return f"{value:+.3f}".replace("-", "−") if _is_defined(value) else _UNDEFINED


def count(value: int) -> str:
    """With a thin space between thousands."""
    return f"{value:,}".replace(",", "\u2009")


def sort_value(value: float | None) -> str:
    """What a column sorts by; the undefined come last."""
    return repr(float(value)) if value is not None and math.isfinite(value) else "-1"


def data_uri(jpeg: bytes) -> str:
    """A JPEG as a URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def hover_json(chart: LineChart) -> str:
    """What the page needs to name the values under the pointer."""
    lines = [
        {"name": line.name, "at": line.positions, "values": [_short(y) for _, y in line.points]}
        for line in chart.lines
    ]
    steps = [[_short(x) for x, _ in line.points] for line in chart.lines]
    return json.dumps(
        {"x": chart.x_label, "lines": lines, "steps": steps}, allow_nan=False, separators=(",", ":")
    )


def findings_by_code(findings: Sequence[Any]) -> Mapping[str, list[Any]]:
    """Findings grouped by code, in the order of first appearance."""
    groups: dict[str, list[Any]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    return groups


def _is_defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _short(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 1000 else round(value)

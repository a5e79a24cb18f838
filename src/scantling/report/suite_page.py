"""The page of a suite: its tables over all data sets, and the way to each set's own report; one offline file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scantling.data.io import atomic_write
from scantling.evaluate.over_sets import METRICS, Measured, SetResult, SetsTable
from scantling.report.html import page_environment, page_style

_MEANINGS = {
    "mAP": "average precision, IoU 0.50 to 0.95, mean over the data sets",
    "mAR": "average recall over the same overlaps",
    "half-sum": "(mAP + mAR) / 2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLink:
    """Where more about a data set is, relative to the page.

    Attributes:
        report: The report of its run; None if there is none.
        submission: Results to hand in; None if there are none.
        log: What happened.
    """

    report: str | None
    submission: str | None
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteContent:
    """What the page of a suite says.

    Attributes:
        title: Of the suite.
        about: One line; may be empty.
        results: Of every data set, failed ones too.
        tables: By what they show.
        links: By data set.
    """

    title: str
    about: str
    results: Sequence[SetResult]
    tables: Mapping[str, SetsTable]
    links: Mapping[str, SetLink]


def write_suite_page(out: Path, content: SuiteContent) -> Path:
    """Write the page; a file of that name is replaced only once the new one is complete.

    Raises:
        UsageError: The folder cannot be written to or the disk is full.
    """
    created = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    atomic_write(out, render_suite(content, created=created))
    return out


def render_suite(content: SuiteContent, *, created: str) -> str:
    """The whole page as text; every text that comes from data is escaped, and the page allows no script.

    Args:
        content: What it says.
        created: When it was made, as it is shown.
    """
    outcome = next(
        (table.rows[-1] for table in reversed(list(content.tables.values())) if table.metrics == METRICS),
        None,
    )
    figures: list[tuple[str, Measured, str]] = []
    if outcome is not None:
        figures = [(metric, outcome.mean[metric], _MEANINGS[metric]) for metric in METRICS]
    return (
        page_environment()
        .get_template("suite.html.j2")
        .render(
            content=content,
            created=created,
            figures=figures,
            outcome=outcome,
            num_failed=sum(each.failure is not None for each in content.results),
            style=page_style(),
        )
    )

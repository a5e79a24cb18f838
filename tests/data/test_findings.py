"""Severity by policy, counted summaries, and the published table of codes."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from scantling.data.finding_codes import CODES
from scantling.data.findings import FindingLog, Kind, Policy, codes_table, name_some, refuse, summarise, tell
from scantling.errors import DataError, Severity

ROOT = Path(__file__).parents[2]
E, W, I = Severity.ERROR, Severity.WARNING, Severity.INFO  # noqa: E741


@pytest.mark.parametrize(
    ("kind", "default", "skipping", "strict", "both"),
    [
        (Kind.STRUCTURAL, E, E, E, E),
        (Kind.GEOMETRY, E, W, E, E),
        (Kind.SUSPICIOUS, W, W, E, E),
        (Kind.NOTE, I, I, I, I),
    ],
)
def test_policy(kind, default, skipping, strict, both):
    assert Policy().severity(kind) is default
    assert Policy(skip_invalid=True).severity(kind) is skipping
    assert Policy(strict=True).severity(kind) is strict
    assert Policy(skip_invalid=True, strict=True).severity(kind) is both


def test_findings_are_raised_together_errors_first():
    log = FindingLog("set.json", Policy())
    log.add("box-clipped", "one", id=1)
    log.raise_if_failed()
    log.add("box-size", "two", id=2, value=[1, 2, 0, 4])
    log.add("box-size", "three", id=3)
    with pytest.raises(DataError, match=r"2 errors \(box-size 2\), 1 warning \(box-clipped 1\)") as error:
        log.raise_if_failed()
    assert [finding.id for finding in error.value.findings] == [2, 3, 1]
    assert all(finding.file == "set.json" for finding in error.value.findings)


def test_long_values_are_shortened():
    log = FindingLog("f", Policy())
    for value in (
        "x" * 10_000,
        list(range(10_000)),
        {str(i): i for i in range(999)},
        10**4000,
        [[[[[[[[1]]]]]]]],
    ):
        log.add("box-type", "odd", value=value)
    assert all(len(str(finding)) < 500 for finding in log.findings)
    log.add("box-type", "plain", value=[1, 2, 3, 4.5])
    assert log.findings[-1].value == [1, 2, 3, 4.5]


def test_refuse_says_code_and_general_remedy():
    with pytest.raises(DataError, match=r"a\.png: cannot be used") as error:
        refuse("image-format", "a.png", "not an image")
    (finding,) = error.value.findings
    assert (finding.code, finding.severity, finding.hint) == ("image-format", E, CODES["image-format"].remedy)


def test_summaries():
    assert summarise(()) == "no findings"
    assert name_some(["a", "b"]) == "a, b"
    assert name_some([1, 2, 3], limit=2) == "1, 2 and 1 more"


def test_codes_are_kebab_case_and_explained():
    for name, code in CODES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert code.meaning.endswith(".")
        assert code.remedy or code.kind in (Kind.SUSPICIOUS, Kind.NOTE)


def test_every_code_is_used_and_every_used_code_is_known():
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "src" / "scantling").rglob("*.py")
        if path.name != "finding_codes.py"
    )
    assert [name for name in CODES if f'"{name}"' not in source] == []
    used = re.findall(r'(?:refuse|add|Problem)\(\s*"([a-z-]+)"', source)
    assert len(used) > 40
    assert sorted(set(used) - set(CODES)) == []


def test_the_published_table_is_up_to_date():
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert page == codes_table(), "write scantling.data.findings.codes_table() to docs/findings.md"


def test_a_finding_is_told_with_one_level_its_own(caplog):
    log = FindingLog("a.json", Policy())
    log.add("yolo-keypoints", "3 rows")
    log.add("box-twice", "the same")
    caplog.set_level(logging.INFO)
    tell([*log.findings, "info [box-twice] b.json: as text"], logging.getLogger("told"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "[box-twice] a.json: the same. Remove one of them."),
        ("INFO", "[yolo-keypoints] a.json: 3 rows"),
        ("INFO", "[box-twice] b.json: as text"),
    ]

"""The page: whole, offline, safe against names from data, and without a NaN."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from report.conftest import measured
from scantling.errors import Finding, Severity
from scantling.report.build import RunFacts, build_content
from scantling.report.content import ReportContent
from scantling.report.history import history_from_records
from scantling.report.html import count, number, percent, render, signed, sort_value, write_report

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Every element with its attributes, the text, and whether tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@pytest.fixture
def content(dataset, results):
    records = [{"step": 10 * i, "loss": 3.0 / (i + 1), "loss/rpn": 1.0 / (i + 1)} for i in range(6)]
    records += [{"step": 30, "val/bbox/AP": 0.2}, {"step": 50, "val/bbox/AP": float("nan")}]
    run = RunFacts(
        **measured(dataset, {"first": results[:1], HOSTILE: results}),
        histories=(history_from_records(HOSTILE, records),),
        recipe="data: {root: x}  # " + HOSTILE,
        environment={"python": "3.11", HOSTILE: HOSTILE},
        commands=("scantling run bccd-cpu --data 'a b'",),
    )
    built = build_content(HOSTILE, {"train": dataset, "val": dataset}, run)
    finding = Finding(
        code="box-clipped", severity=Severity.WARNING, message=HOSTILE, value=HOSTILE, path="a[0]"
    )
    return replace(built, dataset=replace(built.dataset, findings=(finding,) * 30))


@pytest.fixture
def page(content):
    return Page(render(content))


def test_every_tag_is_closed(page):
    assert page.open == []
    assert {"main", "nav", "table", "figure", "dialog"} <= {tag for tag, _ in page.elements}


def test_nothing_is_loaded_from_anywhere(content, page):
    loaded = page.attributes("src") + page.attributes("href") + page.attributes("srcset")
    assert all(address.startswith(("data:", "#")) for address in loaded)
    html = render(content)
    assert not re.search(r"url\(|@import|https?:|//cdn", html)
    policy = next(
        a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "img-src data:" in policy


def test_only_its_own_script_runs(page):
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(
        a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_names_from_data_are_text(content, page):
    html = render(content)
    assert HOSTILE not in html
    assert html.count("<script>") == 1
    shown = "".join(page.text)
    assert shown.count(HOSTILE) >= 8  # title, stage, category, caption, findings, environment, recipe, curve
    assert 'quote"<b>.png' in shown
    assert "b" not in {tag for tag, a in page.elements if a.get("href")}


def test_headline_and_table_are_the_evaluations(content, page):
    evaluation = content.stages[-1].evaluations[-1]
    shown = "".join(page.text)
    assert f"{evaluation.metrics['AP']:.3f}" in shown
    assert evaluation.table in shown
    assert "2 val images" in shown
    assert "Of the 3 objects in 2 val images, 33% are found" in shown


def test_tables_carry_what_they_sort_by(content, page):
    values = [float(value) for value in page.attributes("data-sort")]
    assert content.stages[0].evaluations[0].metrics["AP50"] in values
    assert -1 in values  # the undefined, last


def test_no_nan_is_shown_and_the_undefined_is_a_dash(page):
    shown = "".join(page.text)
    assert not re.search(r"\b(nan|inf|none|null)\b", shown, flags=re.IGNORECASE)
    assert "–" in shown
    assert not re.search(r"\bnan\b", " ".join(filter(None, page.attributes("d"))), flags=re.IGNORECASE)


def test_every_picture_says_what_it_shows(page):
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert pictures
    assert all(
        picture["alt"] and picture["src"].startswith("data:image/jpeg;base64,") for picture in pictures
    )
    assert any("could not be opened" in label for label in page.attributes("aria-label"))


def test_links_lead_somewhere(page):
    ids = set(page.attributes("id"))
    targets = {address[1:] for address in page.attributes("href") if address.startswith("#")}
    assert targets <= ids
    assert {"summary", "results", "categories", "errors", "learning", "dataset", "reproduce"} <= targets


def test_a_page_without_results_or_data():
    shown = "".join(Page(render(ReportContent(title="Nothing yet"))).text)
    assert "no evaluated predictions yet" in shown


@pytest.mark.parametrize("keep", ["truths", "results", "neither"])
def test_a_page_without_truths_or_predictions(dataset, results, keep):
    data = dataset if keep == "truths" else replace(dataset, annotations=((), ()))
    run = RunFacts(**measured(data, {"only": results if keep == "results" else []}))
    page = Page(render(build_content("Empty", {"val": data}, run)))
    shown = "".join(page.text)
    assert page.open == []
    assert ("AP and AR are undefined" in shown) == (keep != "truths")
    assert ("None of the 3 objects" in shown) == (keep == "truths")


def test_written_whole_and_where_asked(content, tmp_path):
    out = write_report(tmp_path / "run" / "report.html", content)
    assert out.read_text(encoding="utf-8") == render(content)
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_the_same_content_gives_the_same_page(content):
    assert render(content) == render(content)


def test_numbers_as_they_are_written():
    assert (number(0.12345), number(None), number(float("nan"))) == ("0.123", "–", "–")
    assert (signed(0.05), signed(-0.05), signed(None)) == ("+0.050", "−0.050", "–")
    assert (percent(0.256), percent(None)) == ("26%", "–")
    assert (count(1234567), count(12)) == ("1\u2009234\u2009567", "12")
    assert (sort_value(0.5), sort_value(None), sort_value(float("nan"))) == ("0.5", "-1", "-1")


@pytest.fixture
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no Chromium")


def test_in_a_browser_the_script_runs_without_an_error(content, tmp_path, browser):
    out = write_report(tmp_path / "report.html", content)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=2000",
        "--dump-dom",
        out.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    page = Page(done.stdout)
    roles = page.attributes("role")
    assert (roles.count("tablist"), roles.count("tab"), roles.count("tabpanel")) == (1, 3, 3)
    assert page.attributes("aria-selected").count("true") == 1
    assert "hidden" not in next(a for _, a in page.elements if "data-theme-button" in a)

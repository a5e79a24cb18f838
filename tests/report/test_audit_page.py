"""The audit's page and contact sheet: safe, bounded, and usable by keyboard alone."""

from __future__ import annotations

import base64
import json
import re
import time

import cv2
import numpy as np
import pytest

from reference.chromium import Chromium, find_chromium
from reference.faulty_labels import CLASS, LOOSE, Faulty, make_faulty
from scantling import api
from scantling.audit.suspects import AuditConfig, find_suspects
from scantling.data.coco import read_coco
from scantling.data.truths import truths_of
from scantling.report.audit_page import PageLimits, cards_of, render_audit, write_audit_page
from scantling.report.audit_report import write_audit
from scantling.report.suspect_sheet import CELL_HW, draw_suspect, write_suspect_sheet
from scantling.report.suspect_shots import Camera
from scantling.structures.detections import Detections

HOSTILE = ("<script>alert('x')</script>", 'nut" onload="alert(1)')
LARGEST_CARD = 14_000
VISIBLE = "[...document.querySelectorAll({})].filter((e) => e.getClientRects().length > 0).length"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Faulty:
    return make_faulty(tmp_path_factory.mktemp("audit") / "data", pixels=True)


@pytest.fixture(scope="module")
def written(faulty, tmp_path_factory):
    """The three files, with enough suspects to filter."""
    config = AuditConfig(min_score=0.02)
    audit = find_suspects(faulty.dataset, faulty.refined, faulty.detections, config)
    return write_audit(tmp_path_factory.mktemp("page") / "out", audit, faulty.dataset, faulty.detections)


@pytest.fixture
def camera(faulty):
    return Camera.on(faulty.dataset, faulty.detections)


def suspect_of(written, reason):
    return next(suspect for suspect in written.audit.suspects if suspect.reason == reason)


# ---------------------------------------------------------------- without a browser


def test_a_picture_shows_the_label_before_and_the_suggestion_after(written, camera):
    shot = camera.shoot(next(s for s in written.audit.suspects if s.annotation_id == LOOSE))
    before, after = (
        {mark.role: mark for mark in marks if mark.role in ("label", "suggestion")}
        for marks in (shot.before, shot.after)
    )
    assert (before.keys(), after.keys()) == ({"label"}, {"suggestion"})
    label = next(a for a in json.loads(camera.dataset.file.read_text())["annotations"] if a["id"] == LOOSE)[
        "bbox"
    ]
    x, y, width, height = before["label"].box_xywh
    assert [x + shot.window.left, y + shot.window.top, width, height] == pytest.approx(label, abs=0.1)
    assert shot.pixels.shape[:2] == (shot.window.height, shot.window.width)
    assert {mark.role for mark in shot.after} == {"suggestion", "detection"}


def test_what_is_to_go_is_gone_after_and_a_new_label_is_not_there_before(written, camera):
    spurious, missing = (camera.shoot(suspect_of(written, reason)) for reason in ("spurious", "missing"))
    assert "label" in {mark.role for mark in spurious.before}
    assert not {"label", "suggestion"} & {mark.role for mark in spurious.after}
    assert "label" not in {mark.role for mark in missing.before}
    assert [mark.caption for mark in missing.after if mark.role == "suggestion"] == [
        suspect_of(written, "missing").category
    ]


def test_the_sheet_draws_the_label_amber_and_the_suggestion_green(written, camera):
    suspect = suspect_of(written, "loose")
    shot = camera.shoot(suspect)
    cell = draw_suspect(shot, suspect).astype(int)
    assert cell.shape == (*CELL_HW, 3)
    scale = CELL_HW[1] / shot.window.width
    for marks, role, colour in (
        (shot.before, "label", (255, 176, 0)),
        (shot.after, "suggestion", (16, 214, 130)),
    ):
        x, y, _, height = next(mark.box_xywh for mark in marks if mark.role == role)
        row, column = round((y + height / 2) * scale), round(x * scale)
        around = cell[row - 2 : row + 3, column - 3 : column + 4].reshape(-1, 3)
        assert np.abs(around - colour).sum(axis=1).min() < 60


def test_the_sheet_holds_thirty_at_most(written):
    pixels = cv2.imread(str(written.out / "suspects.jpg"))
    rows = -(-min(30, len(written.audit.suspects)) // 6)
    assert pixels.shape[0] == rows * (CELL_HW[0] + 4) - 4


def test_no_suspects_make_an_empty_page_and_sheet(faulty, camera, tmp_path):
    audit = find_suspects(faulty.dataset, None, None, AuditConfig(min_score=0.99))
    assert write_audit_page(tmp_path / "audit.html", audit, camera) == 0
    write_suspect_sheet(tmp_path / "suspects.jpg", camera, audit.suspects)
    text = (tmp_path / "audit.html").read_text()
    assert "Nothing suspicious was found." in text
    assert "only duplicates were looked for" in text


def test_an_image_that_cannot_be_opened_leaves_its_picture_blank(tmp_path):
    blind = make_faulty(tmp_path / "data")
    audit = find_suspects(blind.dataset, blind.refined, blind.detections)
    made = write_audit(tmp_path / "out", audit, blind.dataset, blind.detections)
    assert made.shown == len(audit.suspects) > 0
    assert "(the image could not be opened)" in (tmp_path / "out" / "audit.html").read_text()


def test_the_limits_hold(written, camera):
    suspects = written.audit.suspects
    assert len(list(cards_of(suspects, camera, PageLimits(suspects=7)))) == 7
    cards = list(cards_of(suspects, camera, PageLimits(picture_bytes=20_000, picture_side=64)))
    assert 0 < sum(len(card.jpeg) for card in cards) <= 20_000
    page = render_audit(written.audit, camera, cards)
    assert f"the first {len(cards)} are shown" in page


def test_the_largest_page_stays_below_15_megabytes():
    """Pictures are limited in bytes, of which base64 makes a third more; for the rest of a card see below."""
    limits = PageLimits()
    assert limits.picture_bytes * 4 / 3 + limits.suspects * LARGEST_CARD < 15e6


def test_the_rest_of_a_card_is_small_in_a_crowd_as_well(tmp_path):
    boxes = [[4.0 * column, 4.0 * row, 9.5, 9.5] for row in range(20) for column in range(20)]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "a category with a name of fair length"}],
        "annotations": [
            {"id": 10**9 + n, "image_id": 1, "category_id": 1, "bbox": box}
            for n, box in enumerate([*boxes, boxes[9]])
        ],
    }
    (tmp_path / "crowd.json").write_text(json.dumps(content))
    dataset = read_coco(tmp_path / "crowd.json", tmp_path)
    labels = truths_of(dataset)
    found = Detections(
        images=labels.images, labels=labels.labels, scores=np.full(401, 0.9), boxes=labels.boxes + 0.3
    )
    audit = find_suspects(dataset, labels.boxes + [1.5, 0, 2, 0], found, AuditConfig(min_score=0))
    camera = Camera.on(dataset, found)
    page = render_audit(audit, camera, list(cards_of(audit.suspects, camera, PageLimits(suspects=20))))
    articles = re.findall(r"<article.*?</article>", page, re.DOTALL)
    assert len(articles) == 20
    assert 5_000 < max(map(len, articles)) < LARGEST_CARD


def test_names_from_data_are_text(tmp_path):
    hostile = make_faulty(tmp_path / "data", HOSTILE)
    audit = find_suspects(hostile.dataset, hostile.refined, hostile.detections)
    camera = Camera.on(hostile.dataset, hostile.detections)
    page = render_audit(audit, camera, list(cards_of(audit.suspects, camera, PageLimits())))
    assert page.count("<script") == 1
    assert "<script>alert" not in page
    assert 'onload="' not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium() or pytest.skip("no Chromium")
    started = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def page(browser, written):
    browser.open((written.out / "audit.html").as_uri())
    browser.evaluate("localStorage.clear()")
    browser.open((written.out / "audit.html").as_uri() + "?again")
    yield browser
    assert browser.problems == []


def counts(page) -> list[int]:
    return page.evaluate(
        "['accept', 'reject', 'open'].map((n) => +document.querySelector(`[data-count=${n}]`).textContent)"
    )


def test_every_picture_shows_twice_and_nothing_is_loaded(page, written):
    assert page.evaluate("document.images.length") == 2 * written.shown
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    outside = "performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
    assert page.evaluate(outside) == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_alone_decides_and_undoes(page, written):
    cards = "[...document.querySelectorAll('.suspect')]"
    current = f"{cards}.findIndex((card) => card === document.querySelector('.current'))"
    assert page.evaluate(current) == 0
    page.press("a")
    assert (page.evaluate(current), counts(page)) == (1, [1, 0, written.shown - 1])
    page.press("r")
    page.press("ArrowDown")
    page.press("j")
    page.press("k")
    assert (page.evaluate(current), counts(page)) == (3, [1, 1, written.shown - 2])
    page.press("ArrowUp")
    page.press("a")
    assert counts(page) == [2, 1, written.shown - 3]
    page.press("u")
    assert (page.evaluate(current), counts(page)) == (2, [1, 1, written.shown - 2])
    page.press("u")
    page.press("u")
    page.press("u")
    assert (page.evaluate(current), counts(page)) == (0, [0, 0, written.shown])
    assert page.evaluate("document.querySelector('[data-undo]').disabled")
    assert page.evaluate("document.activeElement.classList.contains('suspect')")


def test_buttons_decide_as_well_and_take_it_back(page):
    button = "document.querySelector('.suspect [data-decide=reject]')"
    page.evaluate(f"{button}.click()")
    assert page.evaluate(f"{button}.getAttribute('aria-pressed')") == "true"
    assert page.evaluate("document.querySelector('.suspect .state').textContent") == "rejected"
    page.evaluate(f"{button}.click()")
    assert counts(page)[1] == 0


def choose(page, name: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const s = document.querySelector('[data-filter={name}]'); s.value = {value!r};"
        " s.dispatchEvent(new Event('change')); })()"
    )


def test_filters_hide_and_the_keyboard_stays_within(page, written):
    shown = VISIBLE.format("'.suspect'")
    assert page.evaluate(shown) == written.shown
    choose(page, "reason", "loose")
    number = sum(suspect.reason == "loose" for suspect in written.audit.suspects[: written.shown])
    assert page.evaluate(shown) == number
    choose(page, "category", "clip")
    of_both = page.evaluate(shown)
    assert 0 < of_both < number
    page.press("j")
    page.press("a")
    assert page.evaluate(
        "[...document.querySelectorAll('[data-decision]')].map((c) => [c.dataset.reason, c.dataset.category])"
    ) == [["loose", "clip"]]
    choose(page, "state", "open")
    assert page.evaluate(shown) == of_both - 1
    choose(page, "reason", "missing")
    choose(page, "state", "accept")
    assert page.evaluate(shown) == 0
    assert page.evaluate(VISIBLE.format("'[data-none]'")) == 1


def test_decisions_survive_loading_the_page_again(page, written):
    page.press("a")
    page.press("r")
    page.open((written.out / "audit.html").as_uri() + "?later")
    assert counts(page) == [1, 1, written.shown - 2]


def test_what_is_downloaded_repairs_the_labels(page, written, faulty, tmp_path):
    page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for suspect in written.audit.suspects[:5]:
        page.press("r" if suspect.reason == "spurious" else "a")
    page.press("d")
    file = tmp_path / "decisions.json"
    for _ in range(100):
        if file.is_file() and file.stat().st_size:
            break
        time.sleep(0.05)
    done = api.repair(faulty.dataset.file, tmp_path / "repaired.json", decisions=file)
    assert done.done == {"loose": 1, "missing": 1, "spurious": 0, "class": 1, "duplicate": 1}
    assert done.num_rejected == 1
    given = {a["id"]: a for a in json.loads((tmp_path / "repaired.json").read_text())["annotations"]}
    assert given[CLASS]["category_id"] == faulty.clean["annotations"][CLASS - 1]["category_id"]


def test_hostile_names_stay_text_in_the_browser(browser, tmp_path):
    hostile = make_faulty(tmp_path / "data", HOSTILE, pixels=True)
    audit = find_suspects(hostile.dataset, hostile.refined, hostile.detections)
    write_audit_page(tmp_path / "audit.html", audit, Camera.on(hostile.dataset, hostile.detections))
    browser.open((tmp_path / "audit.html").as_uri())
    names = "[...document.querySelectorAll('[data-filter=category] option')].map((o) => o.value)"
    assert set(browser.evaluate(names)) <= {"", *HOSTILE}
    browser.evaluate(
        "(() => { const s = document.querySelector('[data-filter=category]'); s.selectedIndex = 1;"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert 0 < browser.evaluate(VISIBLE.format("'.suspect'")) < len(audit.suspects)
    assert browser.problems == []


def test_on_paper_every_suspect_is_there_and_no_control(page, written):
    page.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert page.evaluate(VISIBLE.format("'.suspect'")) == written.shown
        assert page.evaluate(VISIBLE.format("'.controls, .decide button'")) == 0
        pdf = base64.b64decode(page.send("Page.printToPDF", printBackground=True)["data"])
    finally:
        page.send("Emulation.setEmulatedMedia", media="")
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000

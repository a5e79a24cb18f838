"""The page in a real browser: nothing fails, and what can be clicked, moved, typed and printed works."""

from __future__ import annotations

import base64
import json

import cv2
import numpy as np
import pytest

from reference.chromium import Chromium, find_chromium
from report.conftest import measured
from scantling.data.coco import read_coco
from scantling.report.build import RunFacts, build_content
from scantling.report.gallery import GalleryLimits
from scantling.report.history import history_from_records
from scantling.report.html import write_report

NAMES = ("axle", "bolt", "clip", "disc", "eyelet", "flange", "gear", "hook", "insert")
CATEGORIES = [(n, name) for n, name in enumerate(NAMES, 1)]
VISIBLE = "[...document.querySelectorAll({})].filter((e) => e.getClientRects().length > 0).length"


def make_run(folder, num_images: int, size_wh: tuple[int, int] = (160, 120)):
    """Images with an object of each of three categories and predictions of every outcome."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    images, truths, results = [], [], []
    for image in range(1, num_images + 1):
        file = folder / f"{image}.jpg"
        if image <= 24:
            pixels = cv2.resize(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8), size_wh)
            cv2.imwrite(str(file), pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])
        else:
            file.hardlink_to(folder / f"{1 + image % 24}.jpg")
        images.append({"id": image, "file_name": file.name, "width": size_wh[0], "height": size_wh[1]})
        for place in range(3):
            category = int(generator.integers(1, len(CATEGORIES) + 1))
            box = [10.0 + 50 * place, 20.0, 36.0, 40.0]
            truths.append({"image_id": image, "category_id": category, "bbox": box, "id": len(truths) + 1})
            shift = float(generator.choice([0, 2, 25]))
            wanted = category if generator.random() < 0.8 else 1
            if generator.random() < 0.85:
                moved = [box[0] + shift, *box[1:]]
                score = round(float(generator.uniform(0.2, 1)), 3)
                results.append({"image_id": image, "category_id": wanted, "bbox": moved, "score": score})
    content = {
        "images": images,
        "annotations": truths,
        "categories": [{"id": i, "name": n} for i, n in CATEGORIES],
    }
    (folder / "val.json").write_text(json.dumps(content), encoding="utf-8")
    return read_coco(folder / "val.json", folder), results


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium() or pytest.skip("no Chromium")
    started = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    dataset, results = make_run(folder / "data", 24)
    records = [{"step": n, "loss": 1 / n, "val/bbox/AP": n / 30} for n in range(1, 20)]
    histories = (history_from_records("detector", records),)
    found = measured(dataset, {"first": results[::2], "detector": results}, bootstrap=50)
    run = RunFacts(**found, histories=histories, recipe="a: 1")
    content = build_content("Parts", {"val": dataset}, run)
    return write_report(folder / "report.html", content).as_uri()


@pytest.fixture
def page(browser, address):
    browser.open(address)
    yield browser
    assert browser.problems == []


def test_pictures_and_charts_show(page):
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.images.length") > 10
    assert page.evaluate(VISIBLE.format("'.chart svg'")) >= 5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (
        page.evaluate(
            "performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
        )
        == 0
    )


def test_intervals_stand_beside_the_numbers(page):
    shown = page.evaluate("document.querySelector('#categories .interval').textContent")
    low, high = (float(part) for part in shown.split("–"))
    assert 0 <= low <= high <= 1
    assert page.evaluate("document.querySelector('.figures .means b').textContent.includes(' to ')")


def test_a_click_sorts_a_table_and_the_next_one_turns_it_round(page):
    header = "document.querySelectorAll('#categories thead button')[3]"
    column = (
        "[...document.querySelectorAll('#categories tbody tr')].map((r) => Number(r.cells[3].dataset.sort))"
    )
    page.evaluate(f"{header}.click()")
    down = page.evaluate(column)
    page.evaluate(f"{header}.click()")
    assert down == sorted(down, reverse=True)
    assert page.evaluate(column) == sorted(down)
    assert len(set(down)) > 2
    assert page.evaluate(f"{header}.parentElement.getAttribute('aria-sort')") == "ascending"


def test_typing_filters_a_table(page):
    rows = VISIBLE.format("'#categories tbody tr'")
    assert page.evaluate(rows) == len(CATEGORIES)
    page.evaluate("document.querySelector('#categories .filter input').focus()")
    page.send("Input.insertText", text="FLA")
    assert page.evaluate(rows) == 1
    page.evaluate("document.querySelector('#categories .filter input').select()")
    page.send("Input.insertText", text="zz")
    assert page.evaluate(rows) == 0


def test_the_score_slider_hides_and_shows_boxes(page):
    boxes = VISIBLE.format("'.gallery .o[data-score]'")
    suggested = page.evaluate(boxes)

    def move(value: float) -> int:
        slider = "document.querySelector('[data-score-slider]')"
        page.evaluate(f"{slider}.value = {value}; {slider}.dispatchEvent(new Event('input'))")
        return page.evaluate(boxes)

    everything, few = move(0.05), move(0.9)
    assert everything > few
    scores = (
        "[...document.querySelectorAll('.gallery:not([hidden]) .o[data-score]')].map((o) => +o.dataset.score)"
    )
    assert few == sum(score >= 0.9 for score in page.evaluate(scores)) > 0
    page.evaluate("document.querySelector('[data-score-reset]').click()")
    assert page.evaluate(boxes) == suggested


def test_truths_can_be_hidden_and_a_category_chosen(page):
    truths = VISIBLE.format("'.gallery .card .o.truth, .gallery .card .o.missed'")
    assert page.evaluate(truths) > 0
    page.evaluate("document.querySelector('[data-layer=truths]').click()")
    assert page.evaluate(truths) == 0
    page.evaluate(
        "(() => { const s = document.querySelector('[data-class-filter]');"
        " s.value = 'bolt'; s.dispatchEvent(new Event('change')); })()"
    )
    cards = (
        "[...document.querySelectorAll('.gallery .card[data-class]')]"
        ".filter((c) => !c.hidden).map((c) => c.dataset.class)"
    )
    assert set(page.evaluate(cards)) == {"bolt"}


def test_the_keyboard_reaches_tabs_and_pictures(page):
    chosen = "document.querySelector('[role=tab][aria-selected=true]').id"
    page.evaluate("document.querySelector('[role=tab]').focus()")
    first = page.evaluate(chosen)
    page.press("ArrowRight")
    assert page.evaluate(chosen) != first
    assert page.evaluate("document.activeElement.id") == page.evaluate(chosen)
    page.press("ArrowLeft")
    assert page.evaluate(chosen) == first
    page.evaluate("document.querySelector('.gallery:not([hidden]) .open').focus()")
    page.press("Enter")
    assert page.evaluate("document.querySelector('.viewer').open")
    text = "document.querySelector('.viewer-text').textContent"
    before = page.evaluate(text)
    page.press("ArrowRight")
    assert page.evaluate(text) != before
    page.press("Escape")
    assert not page.evaluate("document.querySelector('.viewer').open")
    assert page.evaluate("document.activeElement.classList.contains('open')")


def test_on_paper_every_gallery_is_there_and_no_control(page):
    hidden = page.evaluate("document.querySelectorAll('.gallery[hidden]').length")
    assert hidden > 0
    page.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert page.evaluate(VISIBLE.format("'.gallery'")) == page.evaluate(
            "document.querySelectorAll('.gallery').length"
        )
        assert page.evaluate(VISIBLE.format("'.controls, [role=tablist], .rail, .filter'")) == 0
        pdf = base64.b64decode(page.send("Page.printToPDF", printBackground=True)["data"])
    finally:
        page.send("Emulation.setEmulatedMedia", media="")
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


def test_the_pointer_reads_a_chart(page):
    page.evaluate(
        "document.querySelector('#scores .chart svg').scrollIntoView({behavior: 'instant', block: 'center'})"
    )
    x, y = page.evaluate(
        "(() => { const b = document.querySelector('#scores .chart svg').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert page.evaluate("document.querySelector('#scores .readout').textContent").startswith("recall 0.")


def test_a_thousand_images_stay_below_15_megabytes(tmp_path):
    """Galleries are limited, so the page grows with the limits and not with the data set."""
    dataset, results = make_run(tmp_path / "data", 1000, (640, 480))
    limits = GalleryLimits()
    run = RunFacts(**measured(dataset, {"a": results}))
    content = build_content("Many", {"train": dataset, "val": dataset}, run, limits=limits)
    size = write_report(tmp_path / "report.html", content).stat().st_size
    pictures = [item.picture.jpeg for gallery in content.galleries for item in gallery.items]
    assert len(pictures) >= 4 * limits.cases + limits.images
    assert size < 15e6
    largest = max(len(jpeg) for jpeg in pictures if jpeg)
    assert largest * 4 / 3 * (6 * limits.cases + limits.images + 6) < 15e6

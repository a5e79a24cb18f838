"""The page of `audit`: each suspect before and after, to be accepted or rejected; one offline file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from scantling.audit.file import FORMAT, suspect_json
from scantling.audit.suspects import MEANINGS, Audit, Suspect
from scantling.data.io import atomic_write
from scantling.ops.overlaps import corners
from scantling.report.draw import place_tags
from scantling.report.gallery import encode_jpeg
from scantling.report.html import page_environment, page_style
from scantling.report.suspect_shots import Camera, Mark, Shot

_TEMPLATES = Path(__file__).parent / "templates"
_CHARACTER_WIDTH = 0.64  # of the font size
_FONTS_ACROSS = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLimits:
    """How much the page holds.

    Attributes:
        suspects: At most so many, the likeliest.
        picture_side: Longest side of a picture, pixels.
        picture_bytes: All pictures together; the page is a third larger.
    """

    suspects: int = 300
    picture_side: int = 420
    picture_bytes: int = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A caption and where its baseline begins."""

    text: str
    role: str
    at: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledView:
    """A picture as it is labelled, or as it would be."""

    marks: tuple[Mark, ...]
    tags: tuple[Tag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A suspect on the page.

    Attributes:
        number: Rank, from 1.
        suspect: What is shown.
        meaning: Of its reason, in words.
        file_name: Of its image.
        record: Its JSON; goes into the decisions unread, so that ids stay exactly what they are.
        jpeg: None if the image cannot be opened.
        size_wh: Of the window, in image pixels.
        font_size: Of the captions, in image pixels.
        before: As labelled.
        after: As it would be.
    """

    number: int
    suspect: Suspect
    meaning: str
    file_name: str
    record: str
    jpeg: bytes | None
    size_wh: tuple[int, int]
    font_size: float
    before: LabelledView
    after: LabelledView


def write_audit_page(out: Path, audit: Audit, camera: Camera, limits: PageLimits | None = None) -> int:
    """Write the page; a file of that name is replaced once the new one is complete.

    Args:
        out: The HTML file.
        audit: The suspects, likeliest first.
        camera: Takes their pictures.
        limits: How much the page holds.

    Returns:
        How many suspects it shows.

    Raises:
        UsageError: The file cannot be written.
    """
    cards = list(cards_of(audit.suspects, camera, limits or PageLimits()))
    atomic_write(out, render_audit(audit, camera, cards))
    return len(cards)


def render_audit(audit: Audit, camera: Camera, cards: Sequence[Card]) -> str:
    """The whole page as text. Every text that comes from data is escaped; the page allows no script but its own."""
    script = (_TEMPLATES / "audit.js").read_text(encoding="utf-8")
    style = (_TEMPLATES / "audit.css").read_text(encoding="utf-8")
    head = {"format": FORMAT, "kind": "decisions"}
    data = {"file": camera.dataset.file.name, "sha256": audit.data_hash}
    return (
        page_environment()
        .get_template("audit.html.j2")
        .render(
            title=camera.dataset.file.name,
            audit=audit,
            cards=cards,
            reasons=Counter(card.suspect.reason for card in cards),
            categories=Counter(card.suspect.category for card in cards),
            meanings=MEANINGS,
            head=json.dumps(head | {"data": data}, ensure_ascii=False),
            style=page_style() + Markup(style),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def cards_of(suspects: Sequence[Suspect], camera: Camera, limits: PageLimits) -> Iterator[Card]:
    """The first suspects with their pictures, as many as the limits allow."""
    total = 0
    for number, suspect in enumerate(suspects[: limits.suspects], start=1):
        shot = camera.shoot(suspect)
        jpeg = None if shot.pixels is None else encode_jpeg(shot.pixels, limits.picture_side)
        total += len(jpeg or b"")
        if total > limits.picture_bytes:
            return
        yield _card(number, suspect, shot, jpeg, camera)


def _card(number: int, suspect: Suspect, shot: Shot, jpeg: bytes | None, camera: Camera) -> Card:
    font_size = round(shot.window.width / _FONTS_ACROSS, 1)
    size_wh = (shot.window.width, shot.window.height)
    return Card(
        number=number,
        suspect=suspect,
        meaning=MEANINGS[suspect.reason],
        file_name=camera.dataset.images[suspect.image].file_name,
        record=json.dumps(suspect_json(suspect, camera.dataset), ensure_ascii=False),
        jpeg=jpeg,
        size_wh=size_wh,
        font_size=font_size,
        before=_view(shot.before, size_wh, font_size),
        after=_view(shot.after, size_wh, font_size),
    )


def _view(marks: Sequence[Mark], size_wh: tuple[int, int], font_size: float) -> LabelledView:
    """Marks with captions laid out so that they keep out of each other's way; further labels have none."""
    named = [mark for mark in reversed(marks) if mark.role != "other"]
    boxes = [corners(mark.box_xywh) for mark in named]
    sizes = [(len(mark.caption) * font_size * _CHARACTER_WIDTH, font_size * 1.3) for mark in named]
    places = place_tags(boxes, sizes, (size_wh[1], size_wh[0]))
    tags = [
        Tag(text=mark.caption, role=mark.role, at=(round(place[0], 1), round(place[3] - font_size * 0.3, 1)))
        for mark, place in zip(named, places, strict=True)
    ]
    return LabelledView(marks=tuple(marks), tags=tuple(tags))

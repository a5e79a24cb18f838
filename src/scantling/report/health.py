"""The page of `check`: what was found in a data set, with pictures of the worst; one offline file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset, ImageRecord
from scantling.data.finding_codes import CODES
from scantling.data.health.boxes import PERCENTILES, SuspectBox
from scantling.data.health.check import DataHealth
from scantling.data.health.leaks import SceneDuplicates
from scantling.data.images.open import open_image
from scantling.data.io import atomic_write
from scantling.errors import DataError
from scantling.report.draw import DrawStyle, draw
from scantling.report.html import page_environment, page_style

PER_KIND = 12
"""Pictures of each kind at most."""

_SIDE = 320
_CONTEXT = 2.0
_QUALITY = 82
_MARGIN = 6
_LINE, _GAP = (20, 20, 20), (255, 170, 60)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingShot:
    """A picture with what is odd about it."""

    jpeg: bytes
    title: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Pictures of one kind; `total` counts those not shown as well."""

    code: str
    meaning: str
    total: int
    shots: tuple[FindingShot, ...]


def write_health_page(out: Path, health: DataHealth) -> Path:
    """Write the page; a file of that name is replaced once the new one is complete.

    Args:
        out: The HTML file.
        health: What to tell.

    Raises:
        UsageError: The file cannot be written.
    """
    template = page_environment().get_template("health.html.j2")
    facts = health.to_dict()
    atomic_write(
        out,
        template.render(
            health=health,
            facts=facts,
            percentiles=PERCENTILES,
            boards=boards(health),
            style=page_style(),
        ),
    )
    return out


def boards(health: DataHealth) -> list[Board]:
    """Pictures of the oddest boxes of each kind, and of images that show the same scene."""
    made = [_board(code, members) for code, members in _by_code(health.suspects)]
    leaks = [pair for pair in health.duplicates if pair.leaks]
    if leaks:
        shots = tuple(shot for pair in leaks[:PER_KIND] if (shot := _pair_shot(pair)) is not None)
        code = "split-near-pixels"
        made.insert(0, Board(code=code, meaning=CODES[code].meaning, total=len(leaks), shots=shots))
    return made


def _by_code(suspects: tuple[SuspectBox, ...]) -> Iterator[tuple[str, list[SuspectBox]]]:
    for code in dict.fromkeys(suspect.code for suspect in suspects):
        members = [suspect for suspect in suspects if suspect.code == code]
        yield code, sorted(members, key=lambda suspect: -suspect.oddness)


def _board(code: str, members: list[SuspectBox]) -> Board:
    shots = tuple(shot for suspect in members[:PER_KIND] if (shot := _suspect_shot(suspect)) is not None)
    return Board(code=code, meaning=CODES[code].meaning, total=len(members), shots=shots)


def _suspect_shot(suspect: SuspectBox) -> FindingShot | None:
    pixels = _open(suspect.image)
    if pixels is None:
        return None
    lone = CocoDataset(
        file=suspect.image.path,
        image_root=suspect.image.path.parent,
        images=(suspect.image,),
        annotations=((suspect.annotation,),),
        categories=(),
    ).instances(0)
    style = DrawStyle(line_width=2, show_labels=False)
    drawn = draw(pixels, lone, [""] * (suspect.annotation.label + 1), style)
    return FindingShot(
        jpeg=_encoded(_around(drawn, suspect.annotation.box_xywh)),
        title=f"{suspect.split}: {suspect.image.file_name}",
        note=f"object {suspect.annotation.id}: {suspect.note}",
    )


def _pair_shot(pair: SceneDuplicates) -> FindingShot | None:
    pictures = [_open(record) for record in pair.images]
    shown = [_fitted(pixels) for pixels in pictures if pixels is not None]
    if len(shown) < 2:
        return None
    return FindingShot(
        jpeg=_encoded(_side_by_side(shown)),
        title=" = ".join(f"{s}: {i.file_name}" for s, i in zip(pair.splits, pair.images, strict=True)),
        note=f"likeness {pair.peak:.2f}",
    )


def _side_by_side(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures in one row, each in a frame of its own, so that blank ones can be told apart on any ground."""
    height = max(pixels.shape[0] for pixels in pictures) + 2 * _MARGIN + 2
    framed = []
    for pixels in pictures:
        bottom, right = pixels.shape[0] + _MARGIN + 1, pixels.shape[1] + _MARGIN + 1
        ground = np.full((height, right + _MARGIN + 1, 3), _GAP, dtype=np.uint8)
        ground[_MARGIN : bottom + 1, _MARGIN : right + 1] = _LINE
        ground[_MARGIN + 1 : bottom, _MARGIN + 1 : right] = pixels
        framed.append(ground)
    return np.concatenate(framed, axis=1)


def _open(record: ImageRecord) -> Pixels | None:
    try:
        return open_image(record.path, size_hw=record.size_hw, white=record.white)
    except DataError:
        return None


def _around(pixels: Pixels, box_xywh: tuple[float, float, float, float]) -> Pixels:
    """The part of an image around a box, at least a quarter of the image's shorter side wide."""
    x, y, width, height = box_xywh
    reach = max(width, height, min(pixels.shape[:2]) / 4) * _CONTEXT / 2
    middle_x, middle_y = x + width / 2, y + height / 2
    top, bottom = int(max(0, middle_y - reach)), int(min(pixels.shape[0], middle_y + reach) + 1)
    left, right = int(max(0, middle_x - reach)), int(min(pixels.shape[1], middle_x + reach) + 1)
    return _fitted(pixels[top:bottom, left:right])


def _fitted(pixels: Pixels) -> Pixels:
    """Scaled so that the longer side is that of a picture on the page."""
    scale = _SIDE / max(pixels.shape[:2])
    size_wh = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    resized = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _encoded(pixels: Pixels) -> bytes:
    upright = np.ascontiguousarray(pixels[..., ::-1])
    return cv2.imencode(".jpg", upright, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))[1].tobytes()

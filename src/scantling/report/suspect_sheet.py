"""The first suspects in one picture: as labelled (amber) and as suggested (green), with reason and score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from scantling.audit.suspects import Suspect
from scantling.data.io import atomic_write
from scantling.ops.overlaps import corners
from scantling.report.draw import DrawStyle, draw
from scantling.report.palette import Colour
from scantling.report.suspect_shots import Camera, Mark, Shot
from scantling.structures.instances import Instances

COLUMNS = 6
CELL_HW = (180, 240)
"""Height and width of one picture on the sheet."""

LABEL, SUGGESTION, OTHER = (255, 176, 0), (16, 214, 130), (225, 225, 225)

_GAP = 4
_QUALITY = 86

Pixels = NDArray[np.uint8]


def write_suspect_sheet(path: Path, camera: Camera, suspects: Sequence[Suspect]) -> None:
    """Write the sheet of some suspects as JPEG; without suspects one empty cell.

    Raises:
        UsageError: The file cannot be written.
    """
    cells = [draw_suspect(camera.shoot(suspect), suspect) for suspect in suspects]
    upright = np.ascontiguousarray(tiled(cells)[..., ::-1])
    coded = cv2.imencode(".jpg", upright, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))[1]
    atomic_write(path, coded.tobytes())


def draw_suspect(shot: Shot, suspect: Suspect) -> Pixels:
    """One cell: the part of the image with other labels, the label and the suggestion.

    Returns:
        (180, 240, 3) uint8 RGB; a blank one where the image cannot be opened.
    """
    scale = min(CELL_HW[0] / shot.window.height, CELL_HW[1] / shot.window.width)
    size_wh = (max(1, round(shot.window.width * scale)), max(1, round(shot.window.height * scale)))
    canvas = np.full((*CELL_HW, 3), 40, dtype=np.uint8)
    if shot.pixels is not None:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        canvas[: size_wh[1], : size_wh[0]] = cv2.resize(shot.pixels, size_wh, interpolation=how)
    others = [mark for mark in shot.before if mark.role == "other"]
    own = [mark for mark in shot.before if mark.role == "label"]
    better = [mark for mark in shot.after if mark.role == "suggestion"]
    for marks, colour in ((others, OTHER), (own, LABEL), (better, SUGGESTION)):
        canvas = _boxes(canvas, [_scaled(mark, scale) for mark in marks], colour)
    return _titled(canvas, suspect)


def tiled(cells: Sequence[Pixels]) -> Pixels:
    """Cells in rows of six with gaps between them."""
    rows = max(1, -(-len(cells) // COLUMNS))
    columns = min(max(1, len(cells)), COLUMNS)
    height, width = CELL_HW[0] + _GAP, CELL_HW[1] + _GAP
    sheet = np.full((rows * height - _GAP, columns * width - _GAP, 3), 255, dtype=np.uint8)
    for number, cell in enumerate(cells):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        sheet[top : top + CELL_HW[0], left : left + CELL_HW[1]] = cell
    return sheet


def _boxes(canvas: Pixels, boxes: Sequence[Sequence[float]], colour: Colour) -> Pixels:
    """Boxes without tags."""
    instances = _instances(boxes)
    width = 1 if colour == OTHER else 2
    return draw(canvas, instances, [""], DrawStyle(line_width=width, show_labels=False, colour=colour))


def _titled(canvas: Pixels, suspect: Suspect) -> Pixels:
    """Reason, score and category in the lower left corner."""
    change = suspect.category
    if suspect.suggested_category and suspect.reason == "class":
        change = f"{suspect.category} → {suspect.suggested_category}"
    text = f"{suspect.reason} {suspect.score:.2f}  {change}"
    corner = [[0.0, CELL_HW[0] - 0.5, 1.0, float(CELL_HW[0])]]
    return draw(
        canvas, _instances(corner), [text], DrawStyle(line_width=1, font_size=12, colour=(20, 20, 20))
    )


def _instances(boxes: Sequence[Sequence[float]]) -> Instances:
    return Instances(
        size_hw=CELL_HW,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
    )


def _scaled(mark: Mark, scale: float) -> tuple[float, float, float, float]:
    return corners([edge * scale for edge in mark.box_xywh])

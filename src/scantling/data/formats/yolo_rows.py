"""One row of a YOLO label file, in each of the readings that its numbers can have.

class x_centre y_centre width height                    a box
class x1 y1 x2 y2 x3 y3 ...                             a polygon; its box is the one around it
class x_centre y_centre width height k1x k1y [k1v] ...  a box with key points, read if `kpt_shape` tells their number
class x1 y1 x2 y2 x3 y3 x4 y4                           a rotated box (`task: obb`): the upright box around it

Key points and rotated boxes can look like polygons. The settings say what rows are; where they are silent and all rows
of the data set fit more than one reading, nothing is guessed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from scantling.data.coco.records import ROTATION
from scantling.data.findings import refuse
from scantling.data.formats.document import Raw
from scantling.data.formats.yolo_settings import YoloFolder
from scantling.data.io import read_bytes

BOX, ROTATED = 5, 9
"""Numbers of a row that is a box, and of one that has four corners."""

KEY_POINTS = "key points of objects (`kpt_shape` does not tell their number)"
"""What is unread of a row with key points without that setting."""

_SLACK = 0.01  # beyond 0..1, as a part of the image: what Ultralytics takes and clips
_DIVIDED = 1.5  # numbers up to this were divided by the image's size
_MIN_COVER = 0.5  # of a side of a box that its key points span, at the median
_UPRIGHT = 1e-4  # difference of coordinates, as a part of the image
_VISIBILITY = (0.0, 1.0, 2.0)


class RowReading(NamedTuple):
    """How rows are read.

    Attributes:
        length: Numbers of a row with key points; None if there are no key points, 0 if their number is not known.
        rotated: Whether four corners are a rotated box.
        values: Of each key point: 2, or 3 with its visibility.
    """

    length: int | None = None
    rotated: bool = False
    values: int = 0


def reading_of(folder: YoloFolder, files: Iterable[Path]) -> RowReading:
    """What the rows of a data set are.

    Args:
        folder: Its settings decide where they say something.
        files: Label files of all its splits; looked at as far as needed to tell.

    Raises:
        DataError: Code `yolo-reading`: two readings fit all rows.
    """
    if folder.kpt_shape is not None:
        points, values = folder.kpt_shape
        return RowReading(length=BOX + points * values, values=values)
    if folder.task is not None:
        return RowReading(length=0 if folder.task == "pose" else None, rotated=folder.task == "obb")
    rows = _rows_of_one_length(files)
    if not rows:
        return RowReading()
    length = len(rows[0])
    readings = [f"polygons of {(length - 1) // 2} corners (`task: segment`)"]
    if length == ROTATED and any(not _is_upright(row) for row in rows):
        readings.append("rotated boxes (`task: obb`)")
    for values in (2, 3):
        if (length - BOX) % values == 0 and _fit_key_points(rows, values):
            points = (length - BOX) // values
            readings.append(f"boxes with {points} key points (`kpt_shape: [{points}, {values}]`)")
    if len(readings) > 1:
        message = f"all {len(rows)} rows have {length} numbers, which can be {' or '.join(readings)}"
        where = folder.file if folder.file.suffix in (".yaml", ".yml") else folder.root / "data.yaml"
        hint = f"Write what they are into {where}: the words in brackets."
        refuse("yolo-reading", str(folder.file), message, hint=hint)
    return RowReading()


def rows_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of every row of a label file; none for an empty one."""
    data = read_bytes(file) if file.stat().st_size else b""
    text = data.decode("utf-8-sig", errors="replace")
    return (
        (number, words) for number, line in enumerate(text.splitlines(), start=1) if (words := line.split())
    )


def parse_row(words: list[str], image: Raw, ids: list[object], reading: RowReading) -> Raw:
    """One object.

    Raises:
        ValueError: Its arguments are the code and the message of a finding, and what to do if more can be said.
    """
    values = numbers_of(words)
    count = len(values)
    has_points = reading.length is not None and count > BOX
    if not _sound_length(count, reading):
        raise ValueError("yolo-line", *_explain_length(values, reading))
    if not values[0].is_integer() or not 0 <= values[0] < len(ids):
        raise ValueError("yolo-class", f"class {words[0]} is not in 0..{len(ids) - 1}")
    coordinates = values[1:BOX] if has_points else values[1:]
    _require_range(coordinates)
    height, width = float(str(image["height"])), float(str(image["width"]))
    record: Raw = {"image_id": image["id"], "category_id": ids[int(values[0])]}
    if len(coordinates) == BOX - 1:
        x, y, w, h = (v * side for v, side in zip(coordinates, (width, height) * 2, strict=True))
        points = _key_points(values[BOX:], (width, height), reading.values)
        return record | {"bbox": [x - w / 2, y - h / 2, w, h]} | points
    xs, ys = [v * width for v in coordinates[0::2]], [v * height for v in coordinates[1::2]]
    bounds = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    corners = [edge for corner in zip(xs, ys, strict=True) for edge in corner]
    return record | {"bbox": bounds} | ({} if reading.rotated else {"segmentation": [corners]})


def unread_of(words: list[str], reading: RowReading) -> tuple[str, ...]:
    """What of a sound row `parse_row` leaves out; see `Annotation`."""
    if reading.rotated and len(words) == ROTATED and not _is_upright(numbers_of(words)):
        return (ROTATION,)
    return (KEY_POINTS,) if reading.length == 0 and len(words) > BOX else ()


def numbers_of(words: list[str]) -> list[float]:
    """The numbers of a row.

    Raises:
        ValueError: As `parse_row`.
    """
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError("yolo-line", "the line holds something other than numbers") from None
    if not all(map(math.isfinite, values)):
        raise ValueError("yolo-line", "the line holds NaN or infinity")
    return values


def _key_points(numbers: list[float], size_wh: tuple[float, float], values: int) -> Raw:
    """COCO's `keypoints`: x, y in pixels and visibility; without one, a point at 0, 0 or outside is not labelled."""
    if not numbers or not values:
        return {}
    points: list[float] = []
    for start in range(0, len(numbers), values):
        x, y, *rest = numbers[start : start + values]
        visible = rest[0] if rest else 2 * (min(x, y) >= 0 and (x, y) != (0, 0))
        points += [x * size_wh[0], y * size_wh[1], int(visible)] if visible else [0, 0, 0]
    return {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}


def _sound_length(count: int, reading: RowReading) -> bool:
    if count == BOX:
        return True
    if reading.length is not None:
        return count == reading.length or (reading.length == 0 and count > BOX)
    return count == ROTATED if reading.rotated else count >= 7 and count % 2 == 1


def _explain_length(values: list[float], reading: RowReading) -> tuple[str, ...]:
    """What is wrong with the length of a row, and what to do if more can be said."""
    count = len(values)
    if reading.length is not None:
        return (f"{count} numbers; `kpt_shape` makes it {reading.length}, and {BOX} without key points",)
    if reading.rotated:
        return (f"{count} numbers; a rotated box has {ROTATED}",)
    message = f"{count} numbers; a box has {BOX}, a polygon 7, 9, 11, ..."
    points = (count - BOX) // 3
    fits = count > BOX and (count - BOX) % 3 == 0 and all(v in _VISIBILITY for v in values[7::3])
    if fits:
        return (f"{message}; key points need `kpt_shape: [{points}, 3]` in data.yaml",)
    if count > BOX and count % 2 == 0 and 0 <= values[-1] <= 1:
        what = "are a box" if count == BOX + 1 else "can be a polygon"
        told = f"{message}; {count} {what} and its score (`save_conf`): predictions, not labels"
        return told, "To take predictions for labels, write them without the score: `save_conf=False`."
    return (message,)


def _require_range(coordinates: list[float]) -> None:
    over = max(-min(coordinates), max(coordinates) - 1)
    if over <= _SLACK:
        return
    message = "coordinates are not within 0..1 (relative to the image's size)"
    if over > _DIVIDED - 1:
        raise ValueError("yolo-range", message)
    hint = "Correct the label: its numbers are divided by the image's size, but leave the image."
    raise ValueError("yolo-range", f"{message}: {over:.1%} beyond", hint)


def _rows_of_one_length(files: Iterable[Path]) -> list[list[float]]:
    """All rows, if they all have one length that can be a polygon; else none. Stops at the first that differs."""
    rows: list[list[float]] = []
    for file in files:
        for _, words in rows_of(file):
            if len(words) % 2 == 0 or len(words) < 7 or (rows and len(words) != len(rows[0])):
                return []
            try:
                rows.append(numbers_of(words))
            except ValueError:
                continue
    return rows


def _is_upright(row: list[float]) -> bool:
    """Whether four corners are those of an upright rectangle: both readings then mean the same."""
    xs, ys = row[1::2], row[2::2]
    edges = ((xs, (min(xs), max(xs))), (ys, (min(ys), max(ys))))
    on_edges = all(min(abs(v - edge) for edge in two) <= _UPRIGHT for values, two in edges for v in values)
    turns = [abs(xs[i] - xs[i - 1]) <= _UPRIGHT or abs(ys[i] - ys[i - 1]) <= _UPRIGHT for i in range(len(xs))]
    return on_edges and all(turns)


def _fit_key_points(rows: list[list[float]], values: int) -> bool:
    """Whether every row can be a box inside its image and key points, of so many values each, inside the box."""
    covers = [_cover(row, values) for row in rows]
    fitting = [cover for cover in covers if cover is not None]
    return len(fitting) == len(rows) and statistics.median(fitting) >= _MIN_COVER


def _cover(row: list[float], values: int) -> float | None:
    """Largest part of a side of the box that its key points span; None if they are no key points of it."""
    x, y, w, h = row[1:BOX]
    points = [tuple(row[start : start + values]) for start in range(BOX, len(row), values)]
    if values == 3 and not all(point[2] in _VISIBILITY for point in points):
        return None
    seen = [point for point in points if any(point)]
    inside = all(abs(p[0] - x) <= 0.55 * w + _SLACK and abs(p[1] - y) <= 0.55 * h + _SLACK for p in seen)
    reach = (w / 2 - x, h / 2 - y, x + w / 2 - 1, y + h / 2 - 1)
    if not seen or not inside or max(reach) > _SLACK or min(w, h) <= 0:
        return None
    spans = [max(p[axis] for p in seen) - min(p[axis] for p in seen) for axis in (0, 1)]
    return max(spans[0] / w, spans[1] / h)

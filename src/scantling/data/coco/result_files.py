"""The files that results lie in: a JSON list, JSON by lines, or parquet; what people give instead is told apart.

.json      COCO's list of results, or predictions image by image; so is every file with another ending
.jsonl     one result a line, as `scantling merge` writes it
.parquet   one result a row, likewise; needs pyarrow
"""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import NoReturn

from scantling.data.findings import refuse
from scantling.data.io import parse_json, read_bytes, read_json
from scantling.errors import UsageError

_LINES, _PARQUET = (".jsonl", ".ndjson"), ".parquet"
_TABLES = (".csv", ".tsv")
_LABELS = ".txt"

_FORM = (
    "Results are a JSON list of objects with file_name or image_id, category_name or category_id, score, and bbox"
    " [x, y, width, height] or segmentation; see docs/formats.md."
)
_YOLO = "Predict with Ultralytics' `val(save_json=True)` and give its predictions.json."


def read_result_file(path: Path | str) -> object:
    """The content of a results file; its records are unchecked (`check_results` does that).

    Args:
        path: The file.

    Raises:
        DataError: As `read_json`; folders, tables and YOLO's label files with what to give instead.
        UsageError: It is parquet, and pyarrow is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        _refuse_folder(path)
    if suffix in _TABLES:
        refuse("json-foreign", str(path), "a table (CSV), which is not read as results", hint=_FORM)
    if suffix == _LABELS:
        refuse("json-foreign", str(path), "YOLO label files are not results", hint=_YOLO)
    if suffix in _LINES:
        lines = read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
        items = b"\n".join(
            line + b"," if line.strip() else line for line in lines
        )  # empty lines keep their numbers
        return parse_json(b"[" + items.rstrip().removesuffix(b",") + b"]", str(path), keep_nan=True)
    return _read_parquet(path) if suffix == _PARQUET else read_json(path, keep_nan=True)


def _read_parquet(path: Path) -> list[object]:
    """The rows of a parquet file; cells without a value are left out."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        hint = "pip install 'scantling[parquet]', or `scantling merge` to a .json."
        raise UsageError(
            f"{path}: a parquet file needs pyarrow, which is not installed", hint=hint
        ) from error
    try:
        rows = parquet.read_table(io.BytesIO(read_bytes(path))).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        refuse("file-unreadable", str(path), f"no parquet file, or damaged: {error}", hint="Write it again.")
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _refuse_folder(folder: Path) -> NoReturn:
    """Say what to give instead of a folder.

    Raises:
        DataError: Always.
    """
    message, hint = "this is a folder, a file is needed", None
    if (folder / "plan.json").is_file() and (folder / "shards").is_dir():
        message = "this is a folder of predictions in shards, not a results file"
        hint = f"Put them into one: `scantling merge {shlex.quote(str(folder))} --out FILE.json`."
    elif any(path.suffix.lower() == _LABELS for place in (folder, folder / "labels") for path in _in(place)):
        message, hint = "this is a folder, and YOLO label files are not results", _YOLO
    refuse("file-is-folder", str(folder), message, hint=hint)


def _in(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []

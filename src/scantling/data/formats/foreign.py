"""Labels in formats that are not read, recognised by their beginnings, so that a person is told how to go on."""

from __future__ import annotations

import re
from pathlib import Path

from scantling.data.findings import name_some

_PEEK = 4096
_FEW = 200  # files of a folder that are looked at
_EXPORT = "Export them again as COCO, YOLO or Pascal VOC."
_KINDS: tuple[tuple[str, str, re.Pattern[bytes], str], ...] = (
    (
        ".json",
        "labelme's files",
        re.compile(rb'"shapes"\s*:|"imagePath"\s*:'),
        "Make one COCO file of them (labelme2coco FOLDER), and give the folder with that file.",
    ),
    (".xml", "CVAT's own XML", re.compile(rb"<annotations\b"), _EXPORT),
    (".json", "VIA's project", re.compile(rb'"_via_|"regions"\s*:'), _EXPORT),
    (".json", "a list of Label Studio's tasks", re.compile(rb'"completed_by"|"predictions"\s*:'), _EXPORT),
    (".csv", "a table", re.compile(rb"(?i)\b(xmin|x_min|x1|bbox|class|label)\b"), _EXPORT),
    (".record", "TensorFlow's records", re.compile(rb""), _EXPORT),
    (".tfrecord", "TensorFlow's records", re.compile(rb""), _EXPORT),
)


def foreign_files(folder: Path) -> str | None:
    """What was seen in a folder and its sub-folders that looks like labels, and what to do; None if nothing does."""
    files = [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file()]
    for suffix, what, mark, remedy in _KINDS:
        same = sorted(path for path in files if path.suffix.lower() == suffix)[:_FEW]
        found = [str(path.relative_to(folder)) for path in same if _begins_with(path, mark)]
        if found:
            return f"There are labels in {what}, which are not read: {name_some(found)}. {remedy}"
    return None


def _begins_with(path: Path, mark: re.Pattern[bytes]) -> bool:
    try:
        with path.open("rb") as stream:
            return mark.search(stream.read(_PEEK)) is not None
    except OSError:
        return False

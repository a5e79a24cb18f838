"""Darknet's own settings, which CVAT writes as "YOLO 1.1": `obj.data` with the names and lists of the splits.

classes = 2                  obj.names: one class name per line
train = data/train.txt       train.txt: data/obj_train_data/a.jpg
names = data/obj.names       the labels lie beside the images
"""

from __future__ import annotations

from pathlib import Path

from scantling.data.findings import refuse
from scantling.data.formats.yolo_settings import SPLITS, YoloFolder, read_names, text_of

_FILES = ("obj.data", "*.data")
_PEEK = 4096


def darknet_file(root: Path) -> Path | None:
    """The settings of a darknet folder; None if it has none."""
    files = [path for pattern in _FILES for path in sorted(root.glob(pattern)) if path.is_file()]
    return next((path for path in files if b"names" in path.read_bytes()[:_PEEK]), None)


def read_darknet(file: Path) -> YoloFolder:
    """Read `obj.data`.

    Raises:
        DataError: The class names or every list of images are missing, or the number of names is not `classes`.
    """
    entries, root = _entries(file), file.parent
    names_file = _found(entries.get("names", ""), root)
    if names_file is None:
        message = f"the list of class names is not there: {entries.get('names')}"
        refuse("yolo-names-missing", str(file), message, hint="Put obj.names beside this file.")
    names = read_names(names_file)
    declared = entries.get("classes", str(len(names)))
    if declared != str(len(names)):
        message = f"classes = {declared}, but {names_file} has {len(names)} names"
        refuse("yolo-names-missing", str(file), message)
    lists = {split: found for split in SPLITS if (found := _found(entries.get(split, ""), root))}
    if not lists:
        given = ", ".join(f"{split} = {entries[split]}" for split in SPLITS if split in entries)
        message = f"no list of images is there: {given or 'none of train, valid, test is given'}"
        refuse("split-missing", str(file), message, hint="Put train.txt beside this file.")
    return YoloFolder(file, root, names, {split: (path,) for split, path in lists.items()})


def _entries(file: Path) -> dict[str, str]:
    """What stands left and right of `=`."""
    if file.stat().st_size == 0:
        return {}
    pairs = (line.partition("=") for line in text_of(file, "the file").splitlines())
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def _found(entry: str, root: Path) -> Path | None:
    """The file or folder of an entry; leading folders such as `data/` stand for the settings' own folder."""
    parts = Path(entry).parts
    tries = (root.joinpath(*parts[skip:]) for skip in range(len(parts)))
    return next((path for path in tries if path.exists()), None)

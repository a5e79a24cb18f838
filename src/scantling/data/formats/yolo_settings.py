"""What a YOLO `data.yaml` says: class names, and where the images of each split are.

names: [bolt, gasket]        or {0: bolt, 1: gasket}; a folder without data.yaml may have classes.txt instead
path:  folder to which the others are relative (optional, often that of another machine)
train: images/train          a folder, a text file that lists images, or a list of these; likewise val and test;
                             any other key that names a folder is a split too
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from scantling.data.findings import refuse
from scantling.data.io import read_bytes
from scantling.errors import ConfigError
from scantling.settings.yaml import Document, parse

SPLITS = ("train", "val", "valid", "test")
SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")

_NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "labels.txt")
_OTHER_KEYS = ("path", "names", "nc")
_IMAGES, _LABELS = "images", "labels"
_NUMBER_KEY = re.compile(r"(?m)(^\s*|[{,]\s*)(\d+)(\s*:\s)")


class YoloFolder(NamedTuple):
    """A YOLO data set: its settings file or None, its root, class names, and the sources of each split."""

    file: Path
    root: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]


def settings_file(root: Path) -> Path | None:
    """The YAML file with class names in a folder, whatever it is called."""
    usual = [root / name for name in SETTINGS]
    others = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    return next((path for path in (*usual, *others) if path.is_file() and _has_names(path)), None)


def has_labels(root: Path) -> bool:
    """Whether a folder without settings holds images and YOLO's text files beside each other."""
    return any(_label_files(root))


def read_settings(file: Path) -> YoloFolder:
    """Read `data.yaml`.

    Raises:
        DataError: It is no YAML, has no names, or names no split that exists.
    """
    document = _parse(file)
    value = document.value
    if not isinstance(value, dict) or "names" not in value:
        refuse("yolo-names-missing", str(file), "there is no list `names`")
    names = _names(value["names"], file)
    declared = value.get("nc")
    if declared is not None and declared != len(names):
        refuse("yolo-names-missing", str(file), f"nc is {declared!r}, but there are {len(names)} names")
    root = _root(file, value.get("path"))
    entries = {split: value[split] for split in SPLITS if value.get(split)}
    others = {key: entry for key, entry in value.items() if key not in {*SPLITS, *_OTHER_KEYS}}
    entries |= {
        key: entry for key, entry in others.items() if isinstance(entry, str) and (root / entry).is_dir()
    }
    splits = {split: _sources(entry, split, file, root) for split, entry in entries.items()}
    if not splits:
        refuse(
            "split-missing", str(file), "none of train, val, test is given", hint="Add `train: images/train`."
        )
    return YoloFolder(file, file.parent, names, splits)


def folder_without_settings(root: Path) -> YoloFolder:
    """A folder of images and labels without data.yaml: usable if a list of class names is there.

    Raises:
        DataError: There is no list of names; the hint is a data.yaml to start from.
    """
    splits = _found_splits(root)
    file = next((root / name for name in _NAME_LISTS if (root / name).is_file()), None)
    if file is None:
        _refuse_nameless(root, splits)
    lines = read_bytes(file).decode("utf-8-sig", errors="replace").splitlines()
    return YoloFolder(file, root, tuple(line.strip() for line in lines if line.strip()), splits)


def _parse(file: Path) -> Document:
    try:
        return parse(_text(file), file=str(file))
    except ConfigError as error:
        refuse("yaml-syntax", str(file), error.message.removeprefix(f"{file}: "))


def _text(file: Path) -> str:
    """The settings; numbers as keys of `names` are quoted, because strict YAML wants text there."""
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse("text-encoding", str(file), "the file is not UTF-8")
    return _NUMBER_KEY.sub(r"\1'\2'\3", text)


def _has_names(file: Path) -> bool:
    return any(line.startswith("names") for line in file.read_text("utf-8", errors="replace").splitlines())


def _names(value: object, file: Path) -> tuple[str, ...]:
    """Names in the order of the class numbers."""
    if isinstance(value, list):
        return tuple(map(str, value))
    if isinstance(value, dict) and value and sorted(value) == sorted(map(str, range(len(value)))):
        return tuple(str(value[str(number)]) for number in range(len(value)))
    hint = "Write names: [bolt, gasket] or {0: bolt, 1: gasket}."
    return refuse(
        "yolo-names-missing", str(file), "`names` is no list and not numbered from 0", path="names", hint=hint
    )


def _root(file: Path, path: object) -> Path:
    """Folder of the splits: `path` if it exists as seen from the file, else the file's own."""
    root = file.parent / path if isinstance(path, str) else file.parent
    return root if root.is_dir() else file.parent


def _sources(entry: object, split: str, file: Path, root: Path) -> tuple[Path, ...]:
    entries = entry if isinstance(entry, list) else [entry]
    return tuple(_source(str(one), split, file, root) for one in entries)


def _source(entry: str, split: str, file: Path, root: Path) -> Path:
    """Folder or list of a split; leading `..` of exports that were moved are forgiven."""
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part != ".."]
    tries = (root / entry, file.parent / entry, file.parent.joinpath(*parts))
    for path in tries:
        if path.exists():
            return path
    message = f"the images of split {split!r} are not there: {entry}"
    hint = f"Looked for {tries[0]} and {tries[-1]}. Correct `{split}` or `path`."
    return refuse("split-missing", str(file), message, path=split, hint=hint)


def _found_splits(root: Path) -> dict[str, tuple[Path, ...]]:
    """Splits by folder: images/train or train/images; all images are one split `all` otherwise."""
    tries = {name: (root / _IMAGES / name, root / name / _IMAGES) for name in SPLITS}
    there = {name: tuple(path for path in paths if path.is_dir()) for name, paths in tries.items()}
    splits = {name: paths for name, paths in there.items() if paths}
    rest = root / _IMAGES if (root / _IMAGES).is_dir() else root
    return splits or {"all": (rest,)}


def _label_files(root: Path) -> list[Path]:
    places = (f"{_LABELS}/*.txt", f"{_LABELS}/*/*.txt", f"*/{_LABELS}/*.txt")
    return [path for place in places for path in root.glob(place) if path.name != "classes.txt"]


def _refuse_nameless(root: Path, splits: dict[str, tuple[Path, ...]]) -> NoReturn:
    """Say what is missing, as a file to copy."""
    heads = {line.split()[0] for path in _label_files(root)[:2000] for line in _lines(path) if line.strip()}
    numbers = [int(head) for head in heads if head.isdecimal()]
    names = ", ".join(f"{number}: NAME{number}" for number in range(max(numbers, default=0) + 1))
    lines = [f"{split}: {paths[0].relative_to(root)}" for split, paths in splits.items()]
    template = "\n".join(f"  {line}" for line in (f"names: {{{names}}}", *lines))
    message = f"YOLO labels without data.yaml: the names of the classes {sorted(numbers)} are not known"
    hint = f"Write {root / 'data.yaml'} with the true names:\n{template}"
    refuse("yolo-names-missing", str(root), message, hint=hint)


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines()

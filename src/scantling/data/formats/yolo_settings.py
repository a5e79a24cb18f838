"""What a YOLO `data.yaml` says: class names, and where the images of each split are.

names: [bolt, gasket]        or {0: bolt, 1: gasket}, as text whatever they look like (`007`, `1.10`, `null`)
path:  folder to which the others are relative (optional, often that of another machine)
train: images/train          a folder, a text file that lists images, or a list of these; likewise val and test;
                             any other key that names a folder is a split too; without any, the usual folders
kpt_shape: [17, 3]           rows are a box and so many key points of so many values
task:  segment               or detect, pose, obb: what rows are, where their numbers can mean two things

A folder without data.yaml may have classes.txt instead, one name per line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from scantling.data.findings import refuse
from scantling.data.formats.yolo_labels import looks_like_labels
from scantling.data.images.open import is_picture, pictures_below
from scantling.data.io import read_bytes
from scantling.errors import ConfigError
from scantling.settings.yaml import YamlDocument, parse

SPLITS = ("train", "val", "valid", "test")
SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")

TASKS = ("detect", "segment", "pose", "obb")

_NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "labels.txt")
_OTHER_KEYS = ("path", "names", "nc", "task", "kpt_shape")
_IMAGES, _LABELS = "images", "labels"


class YoloFolder(NamedTuple):
    """A YOLO data set.

    Attributes:
        file: Its settings, or its list of class names.
        root: Its folder.
        names: Of the classes, by number.
        splits: Folders and lists of images of each split.
        base: Folder to which the sources are relative, if it is not `root`.
        task: `detect`, `segment`, `pose` or `obb`, if the settings say so.
        kpt_shape: Number of key points of each row, and of the values of each.
    """

    file: Path
    root: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]
    base: Path | None = None
    task: str | None = None
    kpt_shape: tuple[int, int] | None = None

    @property
    def bases(self) -> tuple[Path, ...]:
        """Folders inside which `images` of a path stands for `labels`."""
        return (self.root,) if self.base is None else (self.root, self.base)


def settings_file(root: Path) -> Path | None:
    """The YAML file with class names in a folder, whatever it is called."""
    usual = [root / name for name in SETTINGS]
    others = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    return next((path for path in (*usual, *others) if path.is_file() and _has_names(path)), None)


def has_labels(root: Path) -> bool:
    """Whether a folder without settings holds YOLO's text files: in `labels`, or beside the images."""
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
    names = _names(document, file)
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
    splits = splits or _usual_splits(root)
    if not splits:
        refuse(
            "split-missing", str(file), "none of train, val, test is given", hint="Add `train: images/train`."
        )
    task, kpt_shape = _task(value.get("task"), file), _kpt_shape(value.get("kpt_shape"), file)
    return YoloFolder(file, file.parent, names, splits, base=root, task=task, kpt_shape=kpt_shape)


def folder_without_settings(root: Path) -> YoloFolder:
    """A folder of images and labels without data.yaml: usable if a list of class names is there.

    Raises:
        DataError: There is no list of names (the hint is a data.yaml to start from), it is not sound, or there is a
            data.yaml that says nothing of classes, so that its splits would be lost without a word.
    """
    damaged = next((root / name for name in SETTINGS if (root / name).is_file()), None)
    if damaged is not None:
        hint = "Repair it (is it a Git LFS pointer, or was it cut off?), or remove it."
        refuse("yolo-names-missing", str(damaged), "there is no list `names`", hint=hint)
    splits = _found_splits(root)
    file = next((root / name for name in _NAME_LISTS if (root / name).is_file()), None)
    if file is None:
        _refuse_nameless(root, splits)
    return YoloFolder(file, root, read_names(file), splits)


def read_names(file: Path) -> tuple[str, ...]:
    """A list of class names, one per line; the number of a class is its line, counted from 0.

    Raises:
        DataError: It is not UTF-8, or an empty line would shift all classes behind it.
    """
    text = text_of(file, "the list of class names").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        number = lines.index("") + 1
        message = f"line {number} is empty: other tools count it as a class, so all classes behind it shift"
        hint = "Remove the line, or write the name of the class that it stands for."
        refuse("class-list", str(file), message, path=f"line {number}", hint=hint)
    return tuple(lines)


def text_of(file: Path, what: str) -> str:
    """A text file, with or without a byte order mark.

    Raises:
        DataError: It is not UTF-8; the message says what `what` is encoded as, where that can be told.
    """
    data = read_bytes(file)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:64]:
        refuse("text-encoding", str(file), f"{what} is encoded as UTF-16, not UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"{what} is not UTF-8: byte 0x{data[error.start]:02x}"
        return refuse("text-encoding", str(file), message, path=f"line {line}")


def _parse(file: Path) -> YamlDocument:
    try:
        return parse(text_of(file, "the file"), file=str(file), number_keys=True)
    except ConfigError as error:
        refuse("yaml-syntax", str(file), error.message.removeprefix(f"{file}: "))


def _has_names(file: Path) -> bool:
    data = file.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    lines = data.decode(encoding, errors="replace").splitlines()
    return any(line.startswith(("names", "'names'", '"names"')) for line in lines)


def _names(document: YamlDocument, file: Path) -> tuple[str, ...]:
    """Names in the order of the class numbers, as they are written."""
    value = document.value["names"]
    keys: list[str | int] = []
    if isinstance(value, list):
        keys = list(range(len(value)))
    elif isinstance(value, dict) and sorted(value) == sorted(map(str, range(len(value)))):
        keys = list(map(str, range(len(value))))
    if not keys or any(isinstance(value[key], dict | list) for key in keys):
        hint = "Write names: [bolt, gasket] or {0: bolt, 1: gasket}."
        message = "`names` is no list of names and not numbered from 0"
        refuse("yolo-names-missing", str(file), message, path="names", hint=hint)
    return tuple(document.texts.get(("names", key), str(value[key])) for key in keys)


def _task(value: object, file: Path) -> str | None:
    """What rows are; None if it is not said."""
    if value is None or (isinstance(value, str) and value in TASKS):
        return value
    return refuse(
        "yolo-reading", str(file), f"`task` is none of {', '.join(TASKS)}", path="task", value=value
    )


def _kpt_shape(value: object, file: Path) -> tuple[int, int] | None:
    """Number of key points and of the values of each: x, y, or x, y and visibility."""
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and type(value[0]) is int and value[1] in (2, 3):
        return value[0], value[1]
    message = "`kpt_shape` is not the number of key points and 2 or 3 for the values of each"
    return refuse("yolo-reading", str(file), message, path="kpt_shape", value=value, hint="As in [17, 3].")


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


def _usual_splits(root: Path) -> dict[str, tuple[Path, ...]]:
    """Splits by folder where there are images; settings may leave them to that."""
    found = _found_splits(root)
    return {split: paths for split, paths in found.items() if any(pictures_below(path) for path in paths)}


def _found_splits(root: Path) -> dict[str, tuple[Path, ...]]:
    """Splits by folder: images/train, train/images, train or darknet's obj_train_data; else all images are `all`."""
    for patterns in (("images/{}", "{}/images"), ("obj_{}_data",), ("{}",)):
        tries = {name: [root / pattern.format(name) for pattern in patterns] for name in SPLITS}
        there = {name: tuple(path for path in paths if path.is_dir()) for name, paths in tries.items()}
        splits = {name: paths for name, paths in there.items() if paths}
        if splits:
            return splits
    return {"all": (root / _IMAGES if (root / _IMAGES).is_dir() else root,)}


def _label_files(root: Path) -> Iterator[Path]:
    """Label files of the usual places."""
    for place in (f"{_LABELS}/*.txt", f"{_LABELS}/*/*.txt", f"*/{_LABELS}/*.txt"):
        yield from (path for path in root.glob(place) if path.name != "classes.txt")
    for folder in (root, *(root / name for name in SPLITS), *root.glob("obj_*_data")):
        if folder.is_dir():
            stems = {path.stem for path in folder.iterdir() if is_picture(path)}
            texts = (path for path in folder.iterdir() if path.suffix.lower() == ".txt")
            yield from (path for path in texts if path.stem in stems and looks_like_labels(path))


def _refuse_nameless(root: Path, splits: dict[str, tuple[Path, ...]]) -> NoReturn:
    """Say what is missing, as a file to copy."""
    files = list(islice(_label_files(root), 2000))
    heads = {line.split()[0] for path in files for line in _lines(path) if line.strip()}
    numbers = [int(head) for head in heads if head.isdecimal()]
    names = ", ".join(f"{number}: NAME{number}" for number in range(max(numbers, default=0) + 1))
    lines = [f"{split}: {paths[0].relative_to(root)}" for split, paths in splits.items()]
    template = "\n".join(f"  {line}" for line in (f"names: {{{names}}}", *lines))
    message = f"YOLO labels without data.yaml: the names of the classes {sorted(numbers)} are not known"
    hint = f"Write {root / 'data.yaml'} with the true names:\n{template}"
    above = root.absolute().parent
    lists = [above / name for name in (*SETTINGS, *_NAME_LISTS) if (above / name).is_file()]
    if lists:
        hint = f"{lists[0]} names classes: give {above}, or put that file here. Else: {hint}"
    refuse("yolo-names-missing", str(root), message, hint=hint)


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines()

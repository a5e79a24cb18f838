"""Where the files of a data set lie: the usual folder layouts of COCO data.

DIR/annotations/{split}.json            images in DIR/images
DIR/{split}/_annotations.coco.json      images beside it (Roboflow, VISION)
DIR/annotations/instances_{split}*.json images in DIR/{split}*, DIR/images/{split}*, DIR/images; without one,
                                        person_keypoints_{split}*.json. Captions and image_info are no splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from scantling.data.findings import name_some, refuse
from scantling.data.io import hint_for_missing

_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "inference"),
}
_PROBED_NAMES = 16
_PEEK_CHARS = 1 << 20
_SPLIT_PREFIX = re.compile(r"^(instances|image_info|person_keypoints)_")
_KEYPOINTS = re.compile(r"^person_keypoints_")
_NO_OBJECTS = re.compile(r"^(captions|image_info|panoptic)_")
_KNOWN_PREFIX = re.compile(r"^(captions|image_info|panoptic|stuff|person_keypoints|instances)_")
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def find_split(data_dir: Path | str, split: str) -> tuple[Path, Path]:
    """Find the annotations and the images of a split.

    Args:
        data_dir: Folder of the data set.
        split: `train`, `val`, `test`, or any other name the folder uses; common spellings of the three
            (`valid`, `inference`, ...) are tried too.

    Returns:
        The JSON file and the folder to which its file names are relative.

    Raises:
        DataError: The folder is missing, or no known layout has that split; the message names what is there.
    """
    folder = Path(data_dir)
    require_folder(folder)
    for name in _ALIASES.get(split, (split,)):
        file = _annotations_of(folder, name)
        if file is not None:
            return file, choose_image_root(file, _peek_file_names(file))
    found = sorted(path.relative_to(folder).as_posix() for path in _json_files(folder))
    message = f"no annotations of split {split!r}; JSON files there: {name_some(found, 8) or 'none'}"
    layouts = (
        f"annotations/{split}.json",
        f"annotations/instances_{split}*.json",
        f"{split}/_annotations.coco.json",
    )
    hint = f"Known layouts: {', '.join(layouts)}."
    if split in _ALIASES["val"] and any(_annotations_of(folder, name) for name in _ALIASES["train"]):
        hint += (
            f" Or divide what is there with `scantling split {folder}:train --out splits` and add"
            " `--set data.train=splits/train.json --set data.val=splits/val.json`."
        )
    return refuse("split-missing", str(folder), message, hint=hint)


def coco_splits(folder: Path) -> dict[str, Path]:
    """The annotations files of a folder by split, training first.

    Args:
        folder: Of a data set; JSON files that do not begin like COCO annotations are passed over.
    """
    beside = {path.parent.name: path for path in folder.glob("*/_annotations.coco.json")}
    inside = {_SPLIT_PREFIX.sub("", path.stem): path for path in _object_files(folder / "annotations")}
    above = {path.stem: path for path in folder.glob("*.json")}
    files = {name: path for name, path in (above | inside | beside).items() if _looks_like_coco(path)}
    order = [alias for aliases in _ALIASES.values() for alias in aliases]
    known = sorted((name for name in files if name in order), key=order.index)
    return {name: files[name] for name in (*known, *sorted(files.keys() - set(known)))}


def other_annotations(folder: Path) -> list[str]:
    """Names of COCO's files that are no splits: captions, images without labels, key points beside instances."""
    used = set(coco_splits(folder).values())
    there = sorted((folder / "annotations").glob("*.json"))
    return [path.name for path in there if path not in used and _KNOWN_PREFIX.match(path.stem)]


def _object_files(folder: Path) -> list[Path]:
    """Annotation files that can hold objects; of several for one split, instances come last and so count."""
    files = [path for path in sorted(folder.glob("*.json")) if not _NO_OBJECTS.match(path.stem)]
    return sorted(
        files, key=lambda path: (not _KEYPOINTS.match(path.stem), path.stem.startswith("instances_"))
    )


def alias_of(split: str, names: Collection[str]) -> str | None:
    """The name among `names` that means this split: `valid` or `val2017` for `val`; None if there is none."""
    aliases = (split, *_ALIASES.get(split, ()))
    dated = [name for name in names if any(re.match(rf"{re.escape(alias)}\d+$", name) for alias in aliases)]
    return next((name for name in (*aliases, *dated) if name in names), None)


def _looks_like_coco(path: Path) -> bool:
    """An object, not a list; with the key of images if it ends within the first megabyte."""
    with path.open("rb") as stream:
        head = stream.read(_PEEK_CHARS)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
        return False
    return b'"images"' in head or b'"annotations"' in head


def choose_image_root(file: Path, names: Sequence[str]) -> Path:
    """The folder that has most of the images a JSON file names; the likeliest existing one if none has any.

    Args:
        file: The annotations.
        names: File names found in it; a few are tried.
    """
    step = max(1, len(names) // _PROBED_NAMES)
    probes = list(names)[::step][:_PROBED_NAMES]
    folders = [folder for folder in _root_candidates(file) if folder.is_dir()]
    scores = [sum(_exists(folder / name) for name in probes) for folder in folders]
    return folders[scores.index(max(scores))] if folders else file.parent


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _root_candidates(file: Path) -> list[Path]:
    """Folders that may hold the images, the likeliest first."""
    beside, above = file.parent, file.absolute().parent.parent
    split = _SPLIT_PREFIX.sub("", file.stem)
    in_annotations = beside.name.lower() in ("annotations", "annotation")
    tops = (above, beside) if in_annotations else (beside, above)
    named = [top / part for top in tops for part in (f"images/{split}", split, "images", ".")]
    return named if in_annotations else [beside, *named]


def _annotations_of(folder: Path, name: str) -> Path | None:
    fixed = (folder / "annotations" / f"{name}.json", folder / name / "_annotations.coco.json")
    globbed = _instances_of(folder / "annotations", name)
    candidates = [*fixed, *globbed, folder / f"{name}.json"]
    return next((path for path in candidates if path.is_file()), None)


def _instances_of(folder: Path, name: str) -> list[Path]:
    """COCO's own file names: `instances_val2017.json`, else `person_keypoints_val2017.json`.

    Raises:
        DataError: Several files could be meant.
    """
    for prefix in ("instances_", "person_keypoints_"):
        exact = folder / f"{prefix}{name}.json"
        if exact.is_file():
            return [exact]
        meant = re.compile(rf"{prefix}{re.escape(name)}(\W|_|\d)")
        matches = sorted(path for path in folder.glob("*.json") if meant.match(path.name))
        if len(matches) > 1:
            message = f"several files could be split {name!r}: {name_some([path.name for path in matches])}"
            refuse("split-missing", str(folder), message, hint=f"Rename the one meant to {name}.json.")
        if matches:
            return matches
    return []


def _peek_file_names(file: Path) -> list[str]:
    """Some file names near the start of a JSON file, without parsing all of it."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        text = stream.read(_PEEK_CHARS)
    return [_unquoted(match) for match in _FILE_NAME.findall(text)]


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return ""


def _json_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.json"), *folder.glob("*/*.json")]


def require_folder(folder: Path) -> None:
    """Refuse a path that is no folder.

    Raises:
        DataError: It is a file, or missing; the hint says where the path breaks.
    """
    if folder.is_dir():
        return
    if folder.is_file():
        message = "this is a file; the folder of the data set is needed"
        refuse("file-unreadable", str(folder), message)
    refuse("file-missing", str(folder), "there is no such folder", hint=hint_for_missing(folder))

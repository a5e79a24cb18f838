"""Where the files of a data set lie: the usual folder layouts of COCO data.

DIR/annotations/{split}.json            images in DIR/images
DIR/{split}/_annotations.coco.json      images beside it (Roboflow, VISION)
DIR/annotations/instances_{split}*.json images in DIR/{split}*, DIR/images/{split}*, DIR/images; without one,
                                        person_keypoints_{split}*.json. Captions, image_info, panoptic and stuff are
                                        no splits.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum, auto
from os.path import commonprefix
from pathlib import Path

from scantling.data.findings import name_some, refuse
from scantling.data.io import hint_for_missing, is_no_text

_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "inference"),
}
_PROBED_NAMES = 16
_PEEK_BYTES = 1 << 20
_OVERLAP = 1 << 12  # longer than any key or file name
_ANNOTATIONS = "annotations"
_COCO_KEYS = (b'"images"', b'"annotations"')
_SPLIT_PREFIX = re.compile(r"^(instances|image_info|person_keypoints)_")
_KEYPOINTS = re.compile(r"^person_keypoints_")
_NO_OBJECTS = re.compile(r"^(captions|image_info|panoptic|stuff)_")
_KNOWN_PREFIX = re.compile(r"^(captions|image_info|panoptic|stuff|person_keypoints|instances)_")
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


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
            f" Or divide what is there with `scantling split {shlex.quote(f'{folder}:train')} --out splits` and add"
            " `--set data.train=splits/train.json --set data.val=splits/val.json`."
        )
    return refuse("split-missing", str(folder), message, hint=hint)


class _Content(Enum):
    """What a JSON file holds, as far as can be told without parsing it."""

    COCO = auto()
    OTHER = auto()
    BROKEN = auto()


def coco_splits(folder: Path) -> dict[str, Path]:
    """The annotations files of a folder by split, training first.

    A split must not vanish because its file is damaged. What lies in a place of annotations and is a Git-LFS pointer,
    empty, cut off or no JSON is therefore a split as well, and so is whatever has a split's own name: reading it says
    what is wrong. Readable JSON of another kind, such as predictions beside the annotations, is passed over.

    Args:
        folder: Of a data set.
    """
    beside = {path.parent.name: path for path in folder.glob("*/_annotations.coco.json")}
    inside = {_SPLIT_PREFIX.sub("", path.stem): path for path in _object_files(folder / _ANNOTATIONS)}
    above = {path.stem: path for path in _object_files(folder)}
    content = {path: _content_of(path) for path in (*above.values(), *inside.values(), *beside.values())}
    coco = {path for path, kind in content.items() if kind is _Content.COCO}
    kept = [*beside.values(), *_splits_among(inside, content, expected=True)]
    kept += _splits_among(
        above, content, expected=bool(coco.intersection(above.values())), any_coco=bool(coco)
    )
    files = {name: path for name, path in (above | inside | beside).items() if path in kept}
    order = [alias for aliases in _ALIASES.values() for alias in aliases]
    known = sorted((name for name in files if name in order), key=order.index)
    return {name: files[name] for name in (*known, *sorted(files.keys() - set(known)))}


def _splits_among(
    files: Mapping[str, Path], content: Mapping[Path, _Content], *, expected: bool, any_coco: bool = True
) -> Iterator[Path]:
    """The files of one place that are splits.

    Args:
        files: By name of the split.
        content: Of each file.
        expected: Broken files are splits too: annotations lie here, not anything.
        any_coco: There are COCO files in the folder, so that a split's name means a split.
    """
    kinds = {content[path] for path in files.values()}
    foreign = _Content.OTHER in kinds and _Content.COCO not in kinds  # another tool's, one for each picture
    for name, path in files.items():
        named = any(_means(split, name) for split in _ALIASES)
        sought = named or name.endswith(_ANNOTATIONS) or (expected and not foreign)
        broken = content[path] is _Content.BROKEN
        if content[path] is _Content.COCO or (broken and sought) or (named and any_coco):
            yield path


def _content_of(path: Path) -> _Content:
    if is_no_text(path):
        return _Content.BROKEN
    blocks = _blocks(path)
    head = next(blocks).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] != b"{":
        return _Content.OTHER if head[:1] == b"[" else _Content.BROKEN
    if any(key in head for key in _COCO_KEYS) or any(key in block for block in blocks for key in _COCO_KEYS):
        return _Content.COCO
    return _Content.OTHER if _ends_whole(path) else _Content.BROKEN


def _ends_whole(path: Path) -> bool:
    """Whether the last character of a file that begins with a brace closes one."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _OVERLAP))
        return stream.read().rstrip().endswith(b"}")


def _blocks(path: Path) -> Iterator[bytes]:
    """A file in blocks, each with the end of the one before; at least one."""
    with path.open("rb") as stream:
        end = b""
        while (block := stream.read(_PEEK_BYTES)) or not end:
            yield end + block
            end = block[-_OVERLAP:] or b" "


def _json_in(folder: Path) -> list[Path]:
    """JSON files directly in a folder, whatever the case of their ending; none if there is no such folder."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in files if path.suffix.lower() == ".json" and path.is_file())


def other_annotations(folder: Path) -> list[str]:
    """Names of COCO's files that are no splits: captions, images without labels, key points beside instances."""
    used = set(coco_splits(folder).values())
    there = sorted((folder / "annotations").glob("*.json"))
    return [path.name for path in there if path not in used and _KNOWN_PREFIX.match(path.stem)]


def files_without_objects(folder: Path) -> list[str]:
    """COCO's files of a folder and its `annotations` that hold no instances, by their names: captions, stuff, ..."""
    there = [*_json_in(folder), *_json_in(folder / _ANNOTATIONS)]
    return [path.relative_to(folder).as_posix() for path in there if _NO_OBJECTS.match(path.stem)]


def _object_files(folder: Path) -> list[Path]:
    """Annotation files that can hold objects; of several for one split, instances come last and so count."""
    files = [path for path in _json_in(folder) if not _NO_OBJECTS.match(path.stem)]
    return sorted(
        files, key=lambda path: (not _KEYPOINTS.match(path.stem), path.stem.startswith("instances_"))
    )


def alias_of(split: str, names: Collection[str]) -> str | None:
    """The name among `names` that means this split: `valid` or `val2017` for `val`; None if there is none."""
    dated = [name for name in names if _means(split, name)]
    return next((name for name in (split, *_ALIASES.get(split, ()), *dated) if name in names), None)


def _means(split: str, name: str) -> bool:
    """Whether a name is that of a split: `valid`, `val` or `val2017` for `val`."""
    aliases = (split, *_ALIASES.get(split, ()))
    return any(re.fullmatch(rf"{re.escape(alias)}\d*", name) for alias in aliases)


def choose_image_root(file: Path, names: Sequence[str]) -> Path:
    """The folder that has most of the images a JSON file names; the likeliest existing one if none has any.

    Args:
        file: The annotations.
        names: File names found in it; a few are tried.
    """
    step = max(1, len(names) // _PROBED_NAMES)
    probes = list(names)[::step][:_PROBED_NAMES]
    nested = bool(probes) and all("/" in name for name in probes)
    folders = [folder for folder in _root_candidates(file, nested=nested) if folder.is_dir()]
    scores = [sum(_exists(folder / name) for name in probes) for folder in folders]
    if any(scores):
        return folders[scores.index(max(scores))]
    return _unusual_root(file, probes) or (folders[0] if folders else file.parent)


def _unusual_root(file: Path, probes: Sequence[str]) -> Path | None:
    """A folder of any name beside a file that has all of some images, or one above from which their paths lead there.

    SAHI writes `train_256_02.json` beside `train_images_256_02`; labelme2coco writes paths as they were typed where it
    ran. Of several folders beside the file that count whose names begin most like its own.
    """
    if not probes:
        return None
    top = file.absolute().parent
    beside = sorted(folder for folder in top.iterdir() if folder.is_dir()) if top.is_dir() else []
    found = [folder for folder in beside if all(_exists(folder / name) for name in probes)]
    alike = [len(commonprefix([folder.name, file.stem])) for folder in found]
    if alike.count(max(alike, default=0)) == 1:
        return file.parent / found[alike.index(max(alike))].name
    above = (folder for folder in top.parents if all(_exists(folder / name) for name in probes))
    return None if found or not all("/" in name for name in probes) else next(above, None)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _root_candidates(file: Path, *, nested: bool) -> list[Path]:
    """Folders that may hold the images, the likeliest first.

    Args:
        file: The annotations.
        nested: The images' names hold folders, so that they are not taken for others in any folder beside.
    """
    beside, above = file.parent, file.absolute().parent.parent
    split = _SPLIT_PREFIX.sub("", file.stem)
    in_annotations = beside.name.lower() in ("annotations", "annotation")
    tops = (above, beside) if in_annotations else (beside, above)
    named = [top / part for top in tops for part in (f"images/{split}", split, "images", ".")]
    beside_them = sorted(above.iterdir()) if nested and in_annotations and above.is_dir() else []
    return [*named, *beside_them] if in_annotations else [beside, *named]


def _annotations_of(folder: Path, name: str) -> Path | None:
    inside = folder / _ANNOTATIONS
    fixed = (inside / f"{name}.json", folder / name / "_annotations.coco.json")
    spelt = [path for path in (*_json_in(inside), *_json_in(folder)) if path.stem == name]
    candidates = [*fixed, *_instances_of(inside, name), folder / f"{name}.json", *spelt]
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
    """Some file names of a JSON file, from the first block that has any, without parsing all of it."""
    found = (_FILE_NAME.findall(block) for block in _blocks(file))
    return [_unquoted(match) for match in next(filter(None, found), ())]


def _unquoted(text: bytes) -> str:
    try:
        return str(json.loads(text.decode("utf-8", errors="replace")))
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

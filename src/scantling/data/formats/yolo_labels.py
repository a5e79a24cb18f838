"""Which label file belongs to which image, and which belong to none.

The label of `.../images/sub/a.jpg` is `.../labels/sub/a.txt`: the last `images` of its path inside the data set stands
for `labels`, wherever the data set itself lies. Without one, or where that file is missing, it is the text file beside
the image. A name in another spelling (`A.TXT`, `%20`, an umlaut as two signs) is found where only one file is meant.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scantling.data.images.open import files_below
from scantling.data.spelling import Names, alike

_IMAGES, _LABELS = "images", "labels"
_SUFFIX = ".txt"
_NO_LABELS = frozenset({"classes", "labels", "train", "val", "valid", "test", "readme"})
_PEEK = 4096
_BOX = 5


@dataclass(kw_only=True)
class LabelFiles:
    """Images and label files of a data set.

    Attributes:
        labels: Label file of each image that has one.
        respelled: Images whose label file is spelled in another way.
        unused: Label files that belong to no image, by the folder they lie in or below.
        shared: Label files that serve several images, with these images.
    """

    labels: dict[Path, Path] = field(default_factory=dict)
    respelled: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    shared: dict[Path, list[Path]] = field(default_factory=dict)


def pair_labels(images: Iterable[Path], sources: Iterable[Path], bases: Sequence[Path]) -> LabelFiles:
    """Find the label file of every image.

    Args:
        images: Of all splits, so that no file counts as left over that another split uses.
        sources: Folders of images, whose label folders are looked through for files that belong to no image.
        bases: The data set's folders; `images` above them means nothing.
    """
    images, shelf, pairs = list(dict.fromkeys(images)), _TextFiles(), LabelFiles()
    wanted: list[tuple[Path, tuple[Path, ...]]] = []
    for image in images:
        own_folder = labels_folder(image.parent, bases)
        places = (own_folder,) if own_folder == image.parent else (own_folder, image.parent)
        found = (file for place in places if (file := shelf.exact(place, image.stem)))
        label = next((file for file in found if _counts(file, own_folder)), None)
        if label is None:
            wanted.append((image, places))
        else:
            pairs.labels[image] = label
    _respell(wanted, shelf, pairs)
    for image, label in pairs.labels.items():
        pairs.shared.setdefault(label, []).append(image)
    folders = [labels_folder(source, bases) for source in sources if source.is_dir()]
    used = set(pairs.labels.values())
    below = {path for folder in folders if folder.is_dir() for path in files_below(folder)}
    beside = {path for listed in shelf.folders.values() for path in listed.things.values()}
    labelled = {labels_folder(image.parent, bases) for image in images} | set(folders)
    named = labelled - {image.parent for image in images} - {Path(source) for source in sources}
    pairs.unused = sorted(
        path
        for path in (below | beside) - used
        if path.suffix.lower() == _SUFFIX
        and path.stem.lower().split(".")[0] not in _NO_LABELS
        and (any(folder in path.parents for folder in named) or looks_like_labels(path))
    )
    pairs.shared = {label: several for label, several in pairs.shared.items() if len(several) > 1}
    return pairs


def labels_folder(folder: Path, bases: Sequence[Path] = ()) -> Path:
    """Where the labels of the images of a folder are: `labels` instead of the last `images`, else the folder itself.

    Args:
        folder: Of images.
        bases: Only `images` inside one of these folders counts; anywhere for a folder outside all of them.
    """
    parts = list(folder.parts)
    position = _last_images(folder, bases)
    if position is None:
        return folder
    above = Path(*parts[: position + len(parts)])
    spelled = None if (above / _LABELS).is_dir() else alike(_LABELS, _listed(above))
    return above.joinpath(spelled or _LABELS, *parts[position + len(parts) + 1 :])


def looks_like_labels(path: Path) -> bool:
    """Whether a text file begins with a row of a class number and four or more numbers, or is empty."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_PEEK).decode("utf-8-sig", errors="replace")
    except OSError:
        return False
    line = next((line for line in head.splitlines() if line.strip()), None)
    words = line.split() if line is not None else ["0"] * _BOX
    try:
        return len(words) >= _BOX and len(list(map(float, words))) == len(words)
    except ValueError:
        return False


def _last_images(folder: Path, bases: Sequence[Path]) -> int | None:
    """Position from the end (negative) of the last `images` inside the data set."""
    whole = Path(os.path.abspath(folder))  # noqa: PTH100 - must not resolve links
    inside = [
        whole.relative_to(base).parts
        for base in map(Path, map(os.path.abspath, bases))
        if whole.is_relative_to(base)
    ]
    within = max(inside, key=len) if inside else whole.parts
    found = [index - len(within) for index, part in enumerate(within) if part.lower() == _IMAGES]
    return found[-1] if found and -found[-1] <= len(folder.parts) else None


def _respell(wanted: list[tuple[Path, tuple[Path, ...]]], shelf: _TextFiles, pairs: LabelFiles) -> None:
    """Give images without a label the one file that is theirs in another spelling, if nobody else has it."""
    taken = set(pairs.labels.values())
    claims: dict[Path, list[Path]] = {}
    for image, places in wanted:
        found = (file for place in places if (file := shelf.spelled(place, image.stem)) and file not in taken)
        label = next((file for file in found if _counts(file, places[0])), None)
        if label is not None:
            claims.setdefault(label, []).append(image)
    for label, images in claims.items():
        if len(images) == 1:
            pairs.labels[images[0]] = label
            pairs.respelled.append(images[0])


def _counts(file: Path, own_folder: Path) -> bool:
    """A file beside the image, where a folder of labels was expected, must look like one."""
    return file.parent == own_folder or looks_like_labels(file)


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return []


class _TextFiles:
    """The text files of each folder by the name of their image, listed once."""

    def __init__(self) -> None:
        self.folders: dict[Path, Names[Path]] = {}

    def exact(self, folder: Path, stem: str) -> Path | None:
        """The label file of an image of this name."""
        return self._listed(folder).things.get(stem)

    def spelled(self, folder: Path, stem: str) -> Path | None:
        """The one label file of another spelling of this name."""
        names = self._listed(folder)
        name = names.spelled(stem)
        return None if name is None else names.things[name]

    def _listed(self, folder: Path) -> Names[Path]:
        if folder not in self.folders:
            texts = [folder / name for name in sorted(_listed(folder)) if name.lower().endswith(_SUFFIX)]
            self.folders[folder] = Names({path.stem: path for path in texts if path.name[0] != "."})
        return self.folders[folder]

"""DelftBikes: `SPLIT_annotations.json` with the parts of one bicycle per image, and the state of each part.

{"a.jpg": {"parts": {"saddle": {"object_state": "intact",
                                "absolute_bounding_box": {"left": 1, "top": 2, "width": 3, "height": 4}}}}}

Absent parts are boxed where they should be and are not targets; ask for them with `states`. The class list is that of
all annotation files of the folder, in the order of first mention (training first).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from scantling.data.coco import CocoDataset, ReadOptions
from scantling.data.findings import FindingLog, refuse
from scantling.data.formats.document import Document, Place, Raw, add_sizes, numbered
from scantling.data.io import is_no_text, read_json

State = Literal["intact", "damaged", "occluded", "absent"]
STATES: tuple[State, ...] = ("intact", "damaged", "occluded", "absent")
TARGETS: tuple[State, ...] = ("intact", "damaged", "occluded")

_SUFFIX = "_annotations.json"
_PEEK = 4096
_EDGES = ("left", "top", "width", "height")


class DelftBikesFolder(NamedTuple):
    """A folder with one annotations file per split."""

    root: Path
    splits: dict[str, Path]


def delftbikes_folder(root: Path) -> DelftBikesFolder | None:
    """The splits of a DelftBikes data set; None if this folder is none."""
    there = sorted(root.glob(f"*{_SUFFIX}"))
    parts = {path for path in there if _has_parts(path)}
    kept = [
        path for path in there if path in parts or (parts and is_no_text(path))
    ]  # reading says what is wrong
    files = {path.name.removesuffix(_SUFFIX): path for path in kept}
    ordered = sorted(files, key=lambda split: (split != "train", split))
    return DelftBikesFolder(root, {split: files[split] for split in ordered}) if files else None


def read_delftbikes(
    folder: DelftBikesFolder, split: str, options: ReadOptions, *, states: tuple[State, ...] = TARGETS
) -> CocoDataset:
    """One split of a DelftBikes data set; every annotation has its `state` as a further key.

    Args:
        folder: See `delftbikes_folder`.
        split: One of its splits.
        options: How strictly.
        states: Parts in other states are left out and counted.

    Raises:
        DataError: With all findings, if one is an error.
    """
    file = folder.splits[split]
    content = {name: _content(path) for name, path in folder.splits.items()}
    names = dict.fromkeys(part for images in content.values() for parts in images.values() for part in parts)
    order = sorted({image for images in content.values() for image in images})
    numbers = {image: number for number, image in enumerate(order, start=1)}
    root = _image_root(folder.root, split, list(content[split])[:16])
    ids = {name: number for number, name in enumerate(names, start=1)}
    document = Document(file=file, image_root=root, options=options, counted_ids=frozenset(ids.values()))
    document.add_categories(numbered(names))
    reader = _Parts(document, ids, states)
    records: dict[Path, Raw] = {
        root / image: {"id": numbers[image], "file_name": image} for image in content[split]
    }
    usable = set(add_sizes(records, document))
    for image, parts in content[split].items():
        if root / image in usable:
            document.enter("images", records[root / image], Place(str(file), image))
            reader.add(image, numbers[image], parts)
    reader.remark()
    lost = [len(parts) for image, parts in content[split].items() if root / image not in usable]
    if any(lost):
        message = f"{sum(lost)} parts of {len(lost)} images are not used, because their images cannot be"
        reader.log.add("annotations-dropped", message)
    return document.dataset()


class _Parts:
    """Adds the parts of images to a document, and counts those that are no targets."""

    def __init__(self, document: Document, ids: dict[str, int], states: tuple[State, ...]) -> None:
        self.document = document
        self.ids = ids
        self.states = states
        self.log: FindingLog = document.log_for(document.file)
        self.left_out: dict[str, int] = {}

    def add(self, image: str, image_id: int, parts: dict[str, object]) -> None:
        for name, part in parts.items():
            place = f"{image}.parts.{name}"
            state = part.get("object_state") if isinstance(part, dict) else None
            if state not in STATES:
                message = f"the state is not one of {', '.join(STATES)}"
                self.log.add("part-state", message, path=place, value=state)
            elif state not in self.states:
                self.left_out[str(state)] = self.left_out.get(str(state), 0) + 1
            elif isinstance(part, dict):
                record: Raw = {
                    "image_id": image_id,
                    "category_id": self.ids[name],
                    "bbox": _box(part),
                    "state": state,
                }
                self.document.enter("annotations", record, Place(str(self.document.file), place))

    def remark(self) -> None:
        """Say what was left out."""
        for state, count in self.left_out.items():
            self.log.add(
                "parts-not-targets", f"{count} parts are {state}: boxed, but no targets", value=state
            )


def _box(part: dict[str, object]) -> object:
    """Left, top, width, height; whatever stands there instead is judged where all boxes are."""
    box = part.get("absolute_bounding_box")
    return [box.get(edge) for edge in _EDGES] if isinstance(box, dict) else box


def _content(file: Path) -> dict[str, dict[str, object]]:
    """Parts by image."""
    content = read_json(file)
    if not isinstance(content, dict):
        refuse("part-layout", str(file), "expected an object with one entry per image")
    images = {}
    for image, entry in content.items():
        parts = entry.get("parts") if isinstance(entry, dict) else None
        if not isinstance(parts, dict):
            refuse("part-layout", str(file), "the entry has no object `parts`", path=image)
        images[image] = parts
    return images


def _image_root(root: Path, split: str, names: list[str]) -> Path:
    """The folder that has the images; the likeliest one if none has them."""
    tries = (root / "images" / split, root / split, root / "images", root)
    return next(
        (folder for folder in tries if any((folder / name).is_file() for name in names)), root / "images"
    )


def _has_parts(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(_PEEK)
    return head.lstrip()[:1] == b"{" and b'"parts"' in head

"""From labels to annotation documents, in COCO's and in DelftBikes' layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scantling.ops.rle import patch_to_rle
from scantling.synth.labels import Corruption, DelftPart, EntryCorruption, Label
from scantling.synth.layout import CATEGORY_IDS, DEFECTS
from scantling.synth.scene import SynthConfig

Json = dict[str, object]


class SceneRecord(NamedTuple):
    """What is known about one written picture.

    Attributes:
        number: Of its scene.
        file_name: Name in the images folder.
        labels: True labels of everything to be found.
        label_errors: What is wrong with the labels as given.
        entries: True DelftBikes entries by part name.
        entry_errors: What is wrong with the entries as given.
    """

    number: int
    file_name: str
    labels: list[Label]
    label_errors: list[Corruption]
    entries: dict[str, DelftPart]
    entry_errors: list[EntryCorruption]


def coco_documents(
    split: str, pictures: Sequence[SceneRecord], config: SynthConfig, seed: int, *, noisy: bool
) -> dict[str, object]:
    """Documents by file name: the annotations as given and, for a noisy split, the truth and the list of errors.

    Image ids are scene numbers + 1; annotation ids count from 1, the same in both files, spurious ones last.
    """
    clean: list[Json] = []
    errors: list[tuple[int, Corruption, int | None]] = []
    for picture in pictures:
        first = len(clean) + 1
        for number, label in enumerate(picture.labels, start=first):
            clean.append(_annotation(number, picture.number + 1, label, config.size_hw))
        for error in picture.label_errors:
            errors.append(
                (picture.number + 1, error, None if error.position is None else first + error.position)
            )
    head: Json = {
        "info": _info(config, seed),
        "images": _images(pictures, config.size_hw),
        "categories": _categories(),
    }
    truth = {**head, "annotations": clean}
    if not noisy:
        return {f"{split}.json": truth}
    given, corruptions = _apply(clean, errors, config.size_hw)
    return {
        f"{split}.json": {**head, "annotations": given},
        f"{split}_clean.json": truth,
        f"{split}_corruptions.json": corruptions,
    }


def _apply(
    clean: list[Json], errors: list[tuple[int, Corruption, int | None]], size_hw: tuple[int, int]
) -> tuple[list[Json], list[Json]]:
    """The annotations with their errors, and the errors one by one."""
    given: dict[int, Json] = dict(enumerate(clean, start=1))
    corruptions: list[Json] = []
    fresh = len(clean)
    for image_id, error, number in errors:
        fresh += number is None
        key = fresh if number is None else number
        noisy = _annotation(key, image_id, error.label, size_hw) if error.label else None
        truth = None if number is None else clean[number - 1]
        corruptions.append(
            {"annotation_id": key, "image_id": image_id, "kind": error.kind, "clean": truth, "noisy": noisy}
        )
        if noisy is None:
            del given[key]
        else:
            given[key] = noisy
    return list(given.values()), corruptions


def _annotation(number: int, image_id: int, label: Label, size_hw: tuple[int, int]) -> Json:
    annotation: Json = {
        "id": number,
        "image_id": image_id,
        "category_id": CATEGORY_IDS[label.category],
        "bbox": list(label.xywh),
        "area": int(label.patch.sum()),
        "iscrowd": 0,
        "segmentation": dict(patch_to_rle(label.patch, label.at, size_hw)),
    }
    return annotation if label.state is None else {**annotation, "state": label.state}


def _images(pictures: Sequence[SceneRecord], size_hw: tuple[int, int]) -> list[Json]:
    height, width = size_hw
    return [
        {"id": picture.number + 1, "file_name": picture.file_name, "width": width, "height": height}
        for picture in pictures
    ]


def _categories() -> list[Json]:
    return [
        {"id": number, "name": name, "supercategory": "surface defect" if name in DEFECTS else "part"}
        for name, number in CATEGORY_IDS.items()
    ]


def _info(config: SynthConfig, seed: int) -> Json:
    return {
        "description": "scantling generated inspection scenes",
        "seed": seed,
        "config": config.model_dump(mode="json"),
    }


def delftbikes_documents(split: str, pictures: Sequence[SceneRecord], *, noisy: bool) -> dict[str, object]:
    """Documents by file name, in the manner of `coco_documents`: entries by file name and part name."""
    truth = {picture.file_name: _parts(picture.entries) for picture in pictures}
    if not noisy:
        return {f"{split}_annotations.json": truth}
    wrong = [{error.name: error.entry for error in picture.entry_errors} for picture in pictures]
    given = {
        picture.file_name: _parts({**picture.entries, **errors})
        for picture, errors in zip(pictures, wrong, strict=True)
    }
    return {
        f"{split}_annotations.json": given,
        f"{split}_annotations_clean.json": truth,
        f"{split}_corruptions.json": [error for picture in pictures for error in _entry_errors(picture)],
    }


def _entry_errors(picture: SceneRecord) -> Iterator[Json]:
    for error in picture.entry_errors:
        yield {
            "file_name": picture.file_name,
            "part": error.name,
            "kind": error.kind,
            "clean": _entry(picture.entries[error.name]),
            "noisy": _entry(error.entry),
        }


def _parts(entries: dict[str, DelftPart]) -> Json:
    return {"parts": {name: _entry(entry) for name, entry in entries.items()}}


def _entry(entry: DelftPart) -> Json:
    x1, y1, x2, y2 = (int(edge) for edge in entry.box)
    return {
        "object_state": entry.state,
        "absolute_bounding_box": {"left": x1, "top": y1, "width": x2 - x1, "height": y2 - y1},
    }

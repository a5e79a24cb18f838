"""Predictions image by image, in the order of the annotations file, instead of one list of results.

    [{"labels": [0, 0], "scores": [0.9, 0.4], "bboxes": [[x1, y1, x2, y2], ...], "masks": [RLE, ...]}, ...]

This is how the DeepSportRadar challenge takes predictions and how MMDetection's JSON has them; image and category are
told by nothing but their places: entry i is image i of the annotations file, label k its k-th category, both from 0.
Read by every verb that takes results (`check_results` comes here), written by `scantling submission`.

N: predictions of an image.
Source: Challenge description, DeepSportRadar Instance Segmentation Challenge, edition of 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.geometry import numbers_of_box
from scantling.data.coco.records import ImageRecord
from scantling.data.findings import FindingLog
from scantling.data.io import write_json
from scantling.errors import UsageError
from scantling.ops.overlaps import corners, from_corners
from scantling.ops.rle import rle_to_box

Result = dict[str, Any]

_KEYS = ("labels", "scores", "bboxes")
_MASKS = "masks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was written.

    Attributes:
        out: The file.
        challenge: Whose layout it has.
        num_images: Entries.
        num_predictions: In all entries together.
    """

    out: Path
    challenge: str
    num_images: int
    num_predictions: int

    def to_text(self) -> str:
        """For people."""
        return f"{self.out}: {self.num_predictions} predictions on {self.num_images} images, for {self.challenge}"

    def to_dict(self) -> dict[str, object]:
        """For programs."""
        counts = {"images": self.num_images, "predictions": self.num_predictions}
        return {"out": str(self.out), "challenge": self.challenge, **counts}


def are_image_lists(content: object) -> TypeGuard[list[Mapping[str, object]]]:
    """Whether the content of a JSON file is predictions image by image: objects with labels, scores and bboxes."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(entry, dict) and entry.keys() >= set(_KEYS) for entry in content)
    )


def from_image_lists(
    content: Sequence[Mapping[str, object]], dataset: CocoDataset, log: FindingLog
) -> list[Result]:
    """Predictions image by image as COCO results, in the order of the file; their shapes and scores are not checked.

    Args:
        content: An entry for each image of the annotations file.
        dataset: The data set that was predicted, whole.
        log: Takes the findings.

    Raises:
        DataError: There are more or fewer entries than images, or an entry is not what it should be.
    """
    images = _in_file_order(dataset)
    if len(content) != len(images) or _has_gaps(images):
        message = f"{len(content)} entries, and {len(images)} images of {dataset.file}, which they belong to by place"
        log.add("results-lists-count", message)
        log.raise_if_failed()
    records: list[Result] = []
    for index, (entry, image) in enumerate(zip(content, images, strict=True)):
        fault = _fault_of(entry, len(dataset.categories))
        if fault:
            log.add("results-lists-entry", fault, path=f"[{index}]", value=image.file_name)
        else:
            records += _results_of(entry, image, dataset)
    log.raise_if_failed()
    return records


def to_image_lists(results: Iterable[Mapping[str, Any]], dataset: CocoDataset) -> list[dict[str, list[Any]]]:
    """COCO results image by image, best first, an entry for each image of the annotations file.

    Args:
        results: Checked, in the data set's ids; each with a mask.
        dataset: The data set that was predicted, whole; its order is that of its file.

    Raises:
        UsageError: A result has no mask, or images of the file are not in the data set, which would move all others.
    """
    images = _in_file_order(dataset)
    if _has_gaps(images):
        hint = "The place of an entry says which image it is: give the whole file."
        raise UsageError(f"{dataset.file}: only {len(images)} of its images are read", hint=hint)
    label_of = {category.id: label for label, category in enumerate(dataset.categories)}
    entries: dict[Any, dict[str, list[Any]]] = {
        image.id: {key: [] for key in (*_KEYS, _MASKS)} for image in images
    }
    for result in sorted(results, key=lambda result: -result["score"]):
        if "segmentation" not in result:
            where = dataset.images[dataset.index_of[result["image_id"]]].file_name
            raise UsageError(
                f"a prediction on {where} has no mask", hint="Predict with a model that draws masks."
            )
        entry, mask = entries[result["image_id"]], result["segmentation"]
        entry["labels"].append(label_of[result["category_id"]])
        entry["scores"].append(result["score"])
        entry["bboxes"].append(list(corners(result["bbox"]) if "bbox" in result else rle_to_box(mask)))
        entry[_MASKS].append({"size": list(mask["size"]), "counts": mask["counts"]})
    return list(entries.values())


def write_image_lists(
    results: Sequence[Mapping[str, Any]], dataset: CocoDataset, challenge: Literal["deepsport"], out: Path
) -> Submission:
    """Write COCO results as a challenge takes them, atomically; see `to_image_lists`.

    Raises:
        UsageError: As there, or the file cannot be written.
    """
    entries = to_image_lists(results, dataset)
    write_json(out, entries)
    return Submission(out=out, challenge=challenge, num_images=len(entries), num_predictions=len(results))


def _in_file_order(dataset: CocoDataset) -> list[ImageRecord]:
    return sorted(dataset.images, key=lambda image: image.position)


def _has_gaps(images: Sequence[ImageRecord]) -> bool:
    """Whether images of the file before the last of these are missing."""
    return bool(images) and images[-1].position != len(images) - 1


def _fault_of(entry: Mapping[str, object], num_classes: int) -> str | None:
    """What is wrong with the lists of one image, in words; None for nothing."""
    lists = {key: entry.get(key) for key in (*_KEYS, _MASKS) if entry.get(key) is not None}
    if any(not isinstance(value, list) for value in lists.values()):
        return f"{', '.join(lists)} are not all lists"
    lengths = {key: len(value) for key, value in lists.items() if isinstance(value, list)}
    if len(set(lengths.values())) > 1:
        return "the lists differ in length: " + ", ".join(f"{n} {key}" for key, n in lengths.items())
    labels: Any = lists["labels"]
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < num_classes]
    if wrong:
        return f"label {wrong[0]!r:.40} is none of 0 to {num_classes - 1}, the places of the categories"
    boxes: Any = lists["bboxes"]
    crooked = [box for box in boxes if numbers_of_box(box) is None]
    return f"{crooked[0]!r:.80} is no box of four finite numbers" if crooked else None


def _results_of(entry: Mapping[str, Any], image: ImageRecord, dataset: CocoDataset) -> list[Result]:
    masks = entry.get(_MASKS) or [None] * len(entry["labels"])
    return [
        {
            "image_id": image.id,
            "category_id": dataset.categories[label].id,
            "bbox": list(from_corners(box)),
            "score": score,
            **({} if mask is None else {"segmentation": mask}),
        }
        for label, score, box, mask in zip(
            entry["labels"], entry["scores"], entry["bboxes"], masks, strict=True
        )
    ]

"""One evaluation as a self-contained problem: truth and detections in numbers of ours, checked and copied.

Renumbering keeps every id of the user's file away from the engines (pycocotools takes an annotation with id 0
for "not matched" and cannot sort image ids of mixed types), and copying keeps them from writing into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from scantling.data.coco import CocoDataset, ImageRecord
from scantling.data.coco.records import Annotation, area_of, to_rle
from scantling.data.coco.results import CheckedResults, box_xywh, check_results
from scantling.data.limits import over_limit
from scantling.errors import Finding, Severity

IouType = Literal["bbox", "segm"]
Result = Mapping[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Truth and detections in numbers of ours: image number = position in the data set + 1, category = label + 1.

    Attributes:
        truth: COCO object (images, annotations, categories). Annotations with `ignore` are neither required nor a
            mistake to find, however often, as VOC has it for difficult objects.
        detections: COCO results in the order given; for `segm` without `bbox`, so that sizes are those of the
            masks. Segmentations are compressed RLE on both sides.
        iou_type: Which overlap counts.
        findings: What was left out and why.
    """

    truth: dict[str, list[Record]]
    detections: list[Record]
    iou_type: IouType
    findings: tuple[Finding, ...]


def build_problem(dataset: CocoDataset, results: Sequence[Result], iou_type: IouType) -> Problem:
    """Copy and renumber truth and results.

    Args:
        dataset: The truth.
        results: COCO results in the data set's own ids. For `bbox`, one without a box has that of its mask (its size is
            the box's; pycocotools takes the mask's); for `segm`, those without a mask are left out and counted in a
            finding.
        iou_type: Which overlap counts. For `segm`, truths without a mask are left out and counted.

    Raises:
        DataError: Results that do not belong to the data set or are damaged; with all findings.
    """
    annotations = _annotations(dataset, iou_type)
    key = "bbox" if iou_type == "bbox" else "segmentation"
    checked = check_results([dict(result) for result in results], dataset, image_ids="id")
    found = checked.records if iou_type == "segm" else [_boxed(result) for result in checked.records]
    usable = [result for result in found if key in result]
    return Problem(
        truth={
            "images": [_image_record(number, image) for number, image in enumerate(dataset.images, start=1)],
            "annotations": annotations,
            "categories": [
                {"id": number, "name": c.name} for number, c in enumerate(dataset.categories, start=1)
            ],
        },
        detections=_detections(dataset, usable, key),
        iou_type=iou_type,
        findings=(
            *truth_findings(dataset, iou_type, None),
            *_result_findings(checked, len(usable), key),
        ),
    )


def _boxed(result: Result) -> Result:
    return result if "bbox" in result else {**result, "bbox": box_xywh(result)}


def _image_record(number: int, image: ImageRecord) -> Record:
    return {"id": number, "height": image.size_hw[0], "width": image.size_hw[1]}


def _annotations(dataset: CocoDataset, iou_type: IouType) -> list[Record]:
    usable = [
        (number, image.size_hw, annotation)
        for number, (image, annotations) in enumerate(
            zip(dataset.images, dataset.annotations, strict=True), start=1
        )
        for annotation in annotations
        if iou_type == "bbox" or annotation.segmentation is not None
    ]
    return [
        {"id": n, "image_id": image_number, **_annotation_record(annotation, size_hw, iou_type)}
        for n, (image_number, size_hw, annotation) in enumerate(usable, start=1)
    ]


def _annotation_record(annotation: Annotation, size_hw: tuple[int, int], iou_type: IouType) -> Record:
    record: Record = {
        "category_id": annotation.label + 1,
        "bbox": list(annotation.box_xywh),
        "area": area_of(annotation, size_hw),
        "iscrowd": int(annotation.is_crowd),
        "ignore": int(annotation.is_ignored),
    }
    if iou_type == "segm" and annotation.segmentation is not None:
        record["segmentation"] = to_rle(annotation.segmentation, size_hw)
    return record


def is_ignored(record: Mapping[str, Any]) -> bool:
    """Whether a record of a problem counts neither way: a crowd region, or an ignored object."""
    return bool(record.get("iscrowd", 0) or record.get("ignore", 0))


def _detections(dataset: CocoDataset, results: Sequence[Result], key: str) -> list[Record]:
    label_of = {category.id: label for label, category in enumerate(dataset.categories)}
    return [
        {
            "image_id": dataset.index_of[result["image_id"]] + 1,
            "category_id": label_of[result["category_id"]] + 1,
            "score": float(result["score"]),
            key: [float(number) for number in result[key]] if key == "bbox" else result[key],
        }
        for result in results
    ]


def truth_findings(dataset: CocoDataset, iou_type: IouType, limit: int | None) -> list[Finding]:
    """What the reader of any numbers on this truth has to know.

    Args:
        dataset: The truth.
        iou_type: Which overlap counts.
        limit: Predictions counted per image and category; None says nothing about it.
    """
    file, needs_mask = str(dataset.file), iou_type == "segm"
    everything = list(chain.from_iterable(dataset.annotations))
    usable = [a for a in everything if not needs_mask or a.segmentation is not None]
    found: list[Finding] = []
    if not any(annotation.is_object for annotation in usable):
        others = f" ({dataset.counts_text()})" if everything else ""
        message = f"no objects to compare with{others}: every AP and AR is undefined (null, -1 in the table)"
        return [_warning("no-annotations", message, file=file)]
    if len(usable) < len(everything):
        missing = len(everything) - len(usable)
        message = f"{missing} of {len(everything)} annotations have no mask and are not part of the mask AP"
        found.append(_warning("mask-missing", message, file=file, value=missing))
    return found + ([] if limit is None else limit_findings(dataset, limit))


def limit_findings(dataset: CocoDataset, limit: int) -> list[Finding]:
    """The warning that an image has more objects of a class than predictions are counted; [] where none has."""
    over = over_limit(dataset, limit)
    if over is None:
        return []
    finding = _warning("objects-over-limit", over.message, file=str(dataset.file), value=over.number)
    return [replace(finding, hint=over.hint)]


def _result_findings(checked: CheckedResults, num_usable: int, key: str) -> tuple[Finding, ...]:
    if checked.records and not num_usable:
        return (*checked.findings, _warning("results-empty", f"no prediction has a {key}: AP is 0"))
    return checked.findings


def _warning(code: str, message: str, *, file: str | None = None, value: object = None) -> Finding:
    return Finding(code=code, severity=Severity.WARNING, message=message, file=file, value=value)

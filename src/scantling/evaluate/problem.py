"""One evaluation as a self-contained problem: truth and detections in numbers of ours, checked and copied.

Renumbering keeps every id of the user's file away from the engines (pycocotools takes an annotation with id 0
for "not matched" and cannot sort image ids of mixed types), and copying keeps them from writing into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scantling.data.coco import CocoDataset, ImageRecord
from scantling.data.coco.records import Annotation, area_of, to_rle
from scantling.data.coco.results import CheckedResults, box_xywh, check_results
from scantling.errors import Finding, Severity

IouType = Literal["bbox", "segm"]
Result = Mapping[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Truth and detections in numbers of ours: image number = position in the data set + 1, category = label + 1.

    Attributes:
        truth: COCO object (images, annotations, categories).
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
            *_truth_findings(dataset, len(annotations)),
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
    }
    if iou_type == "segm" and annotation.segmentation is not None:
        record["segmentation"] = to_rle(annotation.segmentation, size_hw)
    return record


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


def _truth_findings(dataset: CocoDataset, num_usable: int) -> list[Finding]:
    file, missing = str(dataset.file), dataset.num_annotations - num_usable
    if not num_usable:
        message = "no objects to compare with: every AP and AR is undefined (null)"
        return [_warning("no-annotations", message, file=file)]
    if missing:
        message = (
            f"{missing} of {dataset.num_annotations} annotations have no mask and are not part of the mask AP"
        )
        return [_warning("mask-missing", message, file=file, value=missing)]
    return []


def _result_findings(checked: CheckedResults, num_usable: int, key: str) -> tuple[Finding, ...]:
    if checked.records and not num_usable:
        return (*checked.findings, _warning("results-empty", f"no prediction has a {key}: AP is 0"))
    return checked.findings


def _warning(code: str, message: str, *, file: str | None = None, value: object = None) -> Finding:
    return Finding(code=code, severity=Severity.WARNING, message=message, file=file, value=value)

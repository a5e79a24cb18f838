"""What one evaluation is made from: truth and detections as columns, checked, and no part of the user's records.

Ids of the user's file stay outside: engines get numbers of ours (pycocotools takes an annotation with id 0 for "not
matched" and cannot sort image ids of mixed types), see `backends`.

N: detections, G: truths, I: images, K: categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from scantling.data.coco import CocoDataset
from scantling.data.coco.results import CheckedResults, box_xywh, check_results
from scantling.data.detections import detections_of, pasted
from scantling.data.limits import over_limit
from scantling.data.truths import Truths, truths_of
from scantling.errors import Finding, Severity
from scantling.ops.overlaps import Floats, Ints, mask_areas, xywh_to_xyxy, xyxy_to_xywh
from scantling.structures.detections import Detections, object_column

IouType = Literal["bbox", "segm"]
Result = Mapping[str, Any]
Predictions = Sequence[Result] | CheckedResults | Detections
"""Results of any tool, or those that were checked already, or columns of ours."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvalInputs:
    """Truth and detections of one evaluation.

    Attributes:
        truths: G rows in the data set's order; for masks those that have one, and their boxes are those of the masks.
        detections: N rows in the order given; for masks those that have one, and their boxes are those of the masks.
        boxes_xywh: (N, 4) boxes of the detections as they were written, to the last digit: COCO's areas are theirs.
        sizes_hw: (I, 2) of the images.
        num_classes: K.
        iou_type: Which overlap counts.
        findings: What was left out and why.
    """

    truths: Truths
    detections: Detections
    boxes_xywh: Floats
    sizes_hw: Ints
    num_classes: int
    iou_type: IouType
    findings: tuple[Finding, ...] = ()

    @classmethod
    def over(cls, detections: Detections, dataset: CocoDataset, iou_type: IouType = "bbox") -> Self:
        """Detections of a data set and its truths; none of either is fine. For masks, each detection has one."""
        return cls(
            truths=_usable_truths(dataset, iou_type),
            detections=detections,
            boxes_xywh=xyxy_to_xywh(detections.boxes),
            sizes_hw=np.array([image.size_hw for image in dataset.images], dtype=np.int64).reshape(-1, 2),
            num_classes=len(dataset.categories),
            iou_type=iou_type,
        )

    def __getitem__(self, rows: NDArray[Any]) -> Self:
        """The same truth with some of the detections."""
        return replace(self, detections=self.detections[rows], boxes_xywh=self.boxes_xywh[rows])

    def replace_detections(self, detections: Detections) -> Self:
        """The same truth with other detections of the data set."""
        return replace(self, detections=detections, boxes_xywh=xyxy_to_xywh(detections.boxes))

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.sizes_hw)

    @property
    def keys(self) -> Ints:
        """(N,) image and category of each detection in one number."""
        return self.detections.images * self.num_classes + self.detections.labels

    @property
    def truth_keys(self) -> Ints:
        """(G,) image and category of each truth in one number."""
        return self.truths.images * self.num_classes + self.truths.labels

    @property
    def shapes(self) -> NDArray[Any]:
        """(N, 4) boxes xywh, or (N,) masks: what overlaps."""
        return self.boxes_xywh if self.iou_type == "bbox" else self.detections.mask_column

    @property
    def truth_shapes(self) -> NDArray[Any]:
        """(G, 4) boxes xywh, or (G,) masks: what they overlap with."""
        return self.truths.boxes_xywh if self.iou_type == "bbox" else _masks(self.truths)

    @property
    def areas(self) -> Floats:
        """(N,) size of each detection in square pixels: that of its box, or of its mask where masks count."""
        if self.iou_type == "bbox":
            return self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3]
        return mask_areas(self.detections.mask_column)


def eval_inputs(dataset: CocoDataset, results: Predictions, iou_type: IouType) -> EvalInputs:
    """Check results, and put them and the truth into columns.

    Args:
        dataset: The truth.
        results: COCO results in the data set's own ids; `CheckedResults`, whose findings are taken on; or `Detections`,
            which were checked when they became columns.
            For `bbox`, one without a box has that of its mask (its size is the box's; pycocotools takes the mask's);
            for `segm`, those without a mask are left out and counted in a finding.
        iou_type: Which overlap counts. For `segm`, truths without a mask are left out and counted.

    Raises:
        DataError: Results that do not belong to the data set or are damaged; with all findings.
    """
    findings: tuple[Finding, ...] = ()
    if isinstance(results, Detections):
        found, boxes_xywh = results, xyxy_to_xywh(results.boxes)
    else:
        records, findings = (
            results
            if isinstance(results, CheckedResults)
            else check_results([dict(result) for result in results], dataset, image_ids="id")
        )
        found = detections_of(records, dataset)
        boxes_xywh = np.array([box_xywh(result) for result in records], dtype=np.float64).reshape(-1, 4)
    if iou_type == "bbox":
        usable = found.replace(masks=None, soft_masks=None, extra=None)
    else:
        usable = pasted(found, dataset).replace(extra=None)
        usable = usable[usable.has_mask]
        boxes_xywh = _mask_boxes(usable.mask_column)
        usable = usable.replace(boxes=xywh_to_xyxy(boxes_xywh))
    told = [*truth_findings(dataset, iou_type, None), *findings]
    if len(found) and not len(usable):
        told.append(_warning("results-empty", "no prediction has a segmentation: AP is 0"))
    inputs = EvalInputs.over(usable, dataset, iou_type)
    return replace(inputs, boxes_xywh=boxes_xywh, findings=tuple(told))


def _usable_truths(dataset: CocoDataset, iou_type: IouType) -> Truths:
    """The truths that can be compared with, in the data set's order."""
    if iou_type == "bbox":
        return truths_of(dataset)
    truths = truths_of(dataset, masks=True)
    truths = truths[np.array([mask is not None for mask in _masks(truths)], dtype=bool)]
    boxes_xywh = _mask_boxes(_masks(truths))
    return truths.replace(boxes_xywh=boxes_xywh, boxes=xywh_to_xyxy(boxes_xywh))


def _masks(rows: Truths) -> NDArray[np.object_]:
    return object_column([None] * len(rows)) if rows.masks is None else rows.masks


def _mask_boxes(masks: NDArray[np.object_]) -> Floats:
    """(N, 4) xywh around each mask."""
    boxes: Floats = np.asarray(mask_api.toBbox(masks.tolist()), dtype=np.float64).reshape(-1, 4)
    return boxes


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
        undefined = "every AP and AR is undefined (null, -1 in the table)"
        others = f" ({dataset.counts_text()})" if everything else ""
        if len(usable) < len(everything) and any(annotation.is_object for annotation in everything):
            message = (
                f"no object has a mask to compare with{others}: {undefined}; --iou-type bbox compares boxes"
            )
            return [_warning("mask-missing", message, file=file, value=len(everything) - len(usable))]
        return [_warning("no-annotations", f"no objects to compare with{others}: {undefined}", file=file)]
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


def _warning(code: str, message: str, *, file: str | None = None, value: object = None) -> Finding:
    return Finding(code=code, severity=Severity.WARNING, message=message, file=file, value=value)

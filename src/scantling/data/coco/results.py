"""Predictions in COCO's result form: written in the data set's own ids, and read from any tool with every check.

A result is a dict with `image_id`, `category_id`, `score` and `bbox` ([x, y, width, height]) or `segmentation` (RLE)
or both; further keys are kept. An `image_id` that is no id of the data set may be the name of one image's file, with or
without its folder and ending, as some tools write it: it is replaced by the id. N: results of an image.
"""

from __future__ import annotations

import logging
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.geometry import Box, is_finite_number, looks_xyxy, numbers_of_box, rle_fault
from scantling.data.coco.parse import type_name, usable_id
from scantling.data.coco.records import Category, ImageId, to_rle
from scantling.data.findings import FindingLog, Policy, RecordLog, name_some
from scantling.data.io import read_json, write_json
from scantling.errors import Finding
from scantling.ops.rle import rle_to_box

if TYPE_CHECKING:
    from scantling.structures.instances import Instances

Result = dict[str, Any]

_NO_RLE = "expected a mask as RLE, an object with size and counts, found {}"
_logger = logging.getLogger(__name__)


class CheckedResults(NamedTuple):
    """Usable results in the order of the file, and what was found while checking."""

    records: list[Result]
    findings: tuple[Finding, ...]


def to_results(image_id: ImageId, instances: Instances, categories: Sequence[Category]) -> list[Result]:
    """Detections of one image as COCO results.

    Args:
        image_id: The data set's own id, written unchanged.
        instances: Scored, in original pixels; masks, if any, become RLEs.
        categories: Of the data set, by label.

    Returns:
        N results with exact float values; [] for none.

    Raises:
        ValueError: The instances have no scores.
    """
    import torch  # here, because what only reads results shall start without it

    from scantling.structures.masks import RoiMasks

    if instances.scores is None:
        raise ValueError("to_results: expected detections, found instances without scores")
    corners = instances.boxes.detach().cpu().double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    scores = instances.scores.detach().cpu().tolist()
    labels = instances.labels.cpu().tolist()
    results: list[Result] = [
        {"image_id": image_id, "category_id": categories[label].id, "bbox": box, "score": score}
        for label, box, score in zip(labels, boxes, scores, strict=True)
    ]
    masks = instances.masks
    if isinstance(masks, RoiMasks):
        masks = masks.to_image(instances.boxes, instances.size_hw)
    for result, rle in zip(results, masks.to_rles() if masks is not None else (), strict=False):
        result["segmentation"] = rle
    return results


def write_results(results: Sequence[Mapping[str, object]], path: Path | str) -> None:
    """Write results atomically as a JSON list.

    Raises:
        ValueError: A number is NaN or infinite.
        UsageError: The file cannot be written.
    """
    write_json(path, list(results))


def read_results(
    path: Path | str, dataset: CocoDataset, *, skip_invalid: bool = False, strict: bool = False
) -> list[Result]:
    """Read and check a result file of any tool; warnings go to the log (use `check_results` to have them).

    Args:
        path: The JSON.
        dataset: The data set that was predicted.
        skip_invalid: Drop and count unusable results instead of raising.
        strict: Warnings raise.

    Raises:
        DataError: With all findings, if one is an error.
    """
    results = read_json(path, keep_nan=True)
    checked = check_results(results, dataset, file=str(path), skip_invalid=skip_invalid, strict=strict)
    for finding in checked.findings:
        _logger.warning("%s", str(finding).removeprefix("warning "))
    return checked.records


def check_results(
    results: object,
    dataset: CocoDataset,
    *,
    file: str = "predictions",
    skip_invalid: bool = False,
    strict: bool = False,
) -> CheckedResults:
    """Check results of any tool against a data set.

    Args:
        results: Should be a list of result dicts.
        dataset: The data set that was predicted.
        file: Name for messages.
        skip_invalid: Drop and count unusable results instead of raising.
        strict: Warnings raise.

    Raises:
        DataError: With all findings, if one is an error.
    """
    log = FindingLog(file, Policy(skip_invalid=skip_invalid, strict=strict))
    gathered = _Gathered(dataset, log, frozenset(dataset.category_ids))
    for index, record in enumerate(_as_list(results, log)):
        if isinstance(record, dict):
            gathered.take(record, index)
        else:
            message = f"expected an object, found {type(record).__name__}"
            log.add("record-not-object", message, path=f"[{index}]", value=record)
    gathered.report()
    log.raise_if_failed()
    return CheckedResults(gathered.records, log.findings)


def results_to_instances(results: Sequence[Result], dataset: CocoDataset) -> dict[ImageId, Instances]:
    """Checked results as detections of every image of the data set.

    Args:
        results: As `read_results` gives them.
        dataset: The data set that was predicted.

    Returns:
        Image id -> Instances with scores, in the order of the file; boxes absolute xyxy, not clipped; masks if
        every result has one. Images without results have N = 0.
    """
    grouped: dict[ImageId, list[Result]] = {image.id: [] for image in dataset.images}
    for result in results:
        grouped[result["image_id"]].append(result)
    labels = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    with_masks = bool(results) and all("segmentation" in result for result in results)
    return {
        image.id: _to_instances(grouped[image.id], image.size_hw, labels, with_masks=with_masks)
        for image in dataset.images
    }


def _to_instances(
    results: list[Result], size_hw: tuple[int, int], labels: Mapping[int, int], *, with_masks: bool
) -> Instances:
    import torch

    from scantling.structures.instances import Instances
    from scantling.structures.masks import ImageMasks

    corners = [_corners(result) for result in results]
    masks = [to_rle(result["segmentation"], size_hw) for result in results] if with_masks else []
    return Instances(
        size_hw=size_hw,
        boxes=torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([labels[result["category_id"]] for result in results], dtype=torch.int64),
        scores=torch.tensor([result["score"] for result in results], dtype=torch.float32),
        masks=ImageMasks.from_rles(masks, size_hw=size_hw) if with_masks else None,
    )


def box_xywh(result: Mapping[str, Any]) -> Box:
    """The box [x, y, width, height] of a checked result; that of its mask where it has none of its own."""
    if "bbox" in result:
        x, y, width, height = result["bbox"]
        return x, y, width, height
    x1, y1, x2, y2 = rle_to_box(result["segmentation"])
    return x1, y1, x2 - x1, y2 - y1


def _corners(result: Result) -> Box:
    x, y, width, height = box_xywh(result)
    return x, y, x + width, y + height


def _as_list(results: object, log: FindingLog) -> list[object]:
    if isinstance(results, list):
        return results
    if isinstance(results, dict) and "annotations" in results:
        log.add("results-is-coco", "looks like an annotations file (an object with `annotations`)")
    else:
        log.add("results-not-list", f"expected a list of predictions, found {type(results).__name__}")
    log.raise_if_failed()
    return []


@dataclass
class _Gathered:
    """Results taken so far, and what is counted over all of them."""

    dataset: CocoDataset
    log: FindingLog
    category_ids: frozenset[int]
    records: list[Result] = field(default_factory=list)
    taken: int = 0
    named_images: list[str] = field(default_factory=list)
    unknown_images: Counter[str] = field(default_factory=Counter)
    unknown_categories: Counter[str] = field(default_factory=Counter)
    scores_out_of_range: list[float] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    limits_wh: list[tuple[int, int]] = field(default_factory=list)

    def take(self, record: Result, index: int) -> None:
        """Check one result and keep it if it is usable."""
        self.taken += 1
        image_index = self._image_index(record.get("image_id"))
        known = self._knows_category(record.get("category_id"))
        log = self.log.record(f"[{index}]", usable_id(record.get("image_id")))
        self._check_score(record.get("score"), log)
        if image_index is None:
            return
        image = self.dataset.images[image_index]
        size_hw = image.size_hw
        record = _checked_shapes(record, size_hw, log)
        if record["image_id"] != image.id:
            self.named_images.append(record["image_id"])
            record = record | {"image_id": image.id}
        if not known or log.faulty:
            return
        self.records.append(record)
        if "bbox" in record:
            self.boxes.append(record["bbox"])
            self.limits_wh.append(size_hw[::-1])

    def _image_index(self, value: object) -> int | None:
        identifier = usable_id(value)
        index = self.dataset.index_of.get(identifier) if identifier is not None else None
        if index is None and isinstance(identifier, str):
            index = self._named.get(identifier)
        if index is None:
            self.unknown_images[_shown(value)] += 1
        return index

    @cached_property
    def _named(self) -> dict[str, int]:
        """Position of each image by the names that mean no other image."""
        found: dict[str, int | None] = {}
        for index, image in enumerate(self.dataset.images):
            path = PurePosixPath(image.file_name)
            for name in {str(path), str(path.with_suffix("")), path.name, path.stem}:
                found[name] = None if name in found else index
        return {name: index for name, index in found.items() if index is not None}

    def _knows_category(self, value: object) -> bool:
        known = type(value) in (int, float) and value in self.category_ids
        if not known:
            self.unknown_categories[_shown(value)] += 1
        return known

    def _check_score(self, value: object, log: RecordLog) -> None:
        if not is_finite_number(value):
            log.add("results-score", "the score is not a finite number", field="score", value=value)
        elif not 0 <= value <= 1:
            self.scores_out_of_range.append(value)

    def report(self) -> None:
        """Add the findings about all results together."""
        self._report_unknown()
        add = self.log.add
        if self.scores_out_of_range:
            message = f"{len(self.scores_out_of_range)} of {self.taken} scores lie outside 0..1"
            add("results-score-range", message, value=self.scores_out_of_range[0])
        if self.boxes and looks_xyxy(np.array(self.boxes, dtype=np.float64), np.array(self.limits_wh)):
            message = f"all {len(self.boxes)} boxes look like [x1, y1, x2, y2]"
            add("results-boxes-xyxy", message, value=list(self.boxes[0]))
        self._report_coverage()

    def _report_unknown(self) -> None:
        if self.named_images:
            message = f"{len(self.named_images)} of {self.taken} predictions name their image by its file"
            self.log.add("results-image-named", message, value=self.named_images[0])
        images, categories = list(self.dataset.index_of), list(self.dataset.category_ids)
        for code, kind, unknown, known in (
            ("results-image-unknown", "images", self.unknown_images, images),
            ("results-category-unknown", "categories", self.unknown_categories, categories),
        ):
            if unknown:
                some = ", ".join(list(unknown)[:5])
                message = (
                    f"{unknown.total()} of {self.taken} predictions are for {len(unknown)} {kind} not in"
                    f" {self.dataset.file}: {some}; it has {name_some([repr(identifier) for identifier in known])}"
                )
                self.log.add(code, message)

    def _report_coverage(self) -> None:
        add = self.log.add
        if not self.taken:
            add("results-empty", "the list of predictions is empty")
            return
        if len(self.records) < self.taken and not self.log.failed:
            message = f"{self.taken - len(self.records)} of {self.taken} predictions are not used"
            add("results-dropped", message)
        for key, count in (("bbox", len(self.boxes)), ("segmentation", self._count("segmentation"))):
            if 0 < count < len(self.records):
                add("results-mixed", f"{count} of {len(self.records)} predictions have a {key}")
        covered = {record["image_id"] for record in self.records}
        missing = [image.file_name for image in self.dataset.images if image.id not in covered]
        if missing:
            message = f"{len(missing)} of {len(self.dataset)} images have no prediction: {name_some(missing)}"
            add("results-uncovered", message)

    def _count(self, key: str) -> int:
        return sum(key in record for record in self.records)


def _checked_shapes(record: Result, size_hw: tuple[int, int], log: RecordLog) -> Result:
    """The result with a sound box and a compressed mask; what is null counts as missing."""
    shapes = {key: record[key] for key in ("bbox", "segmentation") if record.get(key) is not None}
    if nulls := (record.keys() & {"bbox", "segmentation"}) - shapes.keys():
        record = {key: value for key, value in record.items() if key not in nulls}
    if not shapes:
        log.add("results-shapeless", "the prediction has neither bbox nor segmentation")
    if "bbox" in shapes:
        box = numbers_of_box(shapes["bbox"])
        if box is None or box[2] < 0 or box[3] < 0:
            message = "bbox is not four finite numbers with width and height >= 0"
            log.add("results-box", message, field="bbox", value=shapes["bbox"])
    if "segmentation" in shapes:
        mask = shapes["segmentation"]
        fault = (
            rle_fault(mask, size_hw) if isinstance(mask, dict) else ("", _NO_RLE.format(type(mask).__name__))
        )
        if fault:
            log.add("results-rle", fault[1], field="segmentation", value=mask)
        elif isinstance(mask["counts"], list):
            record = record | {"segmentation": to_rle(mask, size_hw)}
    return record


def _shown(value: object) -> str:
    return f"{reprlib.repr(value)} ({type_name(value)})"

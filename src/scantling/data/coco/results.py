"""Predictions in COCO's result form: written in the data set's own ids, and read from any tool with every check.

A result is a dict with `image_id`, `category_id`, `score` and `bbox` ([x, y, width, height]) or `segmentation` (RLE or
polygons) or both; further keys are kept. Where it has them, `file_name` says which image it is about (`result_images`
has the rest) and `category_name` which category: tools count both in ways of their own. Checked results have the data
set's ids, masks as compressed RLE, and no empty shapes. N: results of an image.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.geometry import is_finite_number, looks_xyxy
from scantling.data.coco.image_lists import are_image_lists, from_image_lists
from scantling.data.coco.parse import usable_id
from scantling.data.coco.records import Category, ImageId, ImageRecord
from scantling.data.coco.result_files import read_result_file
from scantling.data.coco.result_images import NONE, ImagePlaces, shown
from scantling.data.coco.result_shapes import checked_shapes
from scantling.data.findings import FindingLog, Policy, RecordLog, name_some, tell_warnings
from scantling.data.io import write_json
from scantling.errors import Finding
from scantling.ops.overlaps import Box, from_corners, xyxy_to_xywh
from scantling.ops.rle import rle_to_box
from scantling.settings.paths import ImageIds

if TYPE_CHECKING:
    from scantling.structures.instances import Instances

Result = dict[str, Any]

_LACKING = {"results-score": "no score", "results-shapeless": "neither bbox nor segmentation"}
"""What results may lack, by the code of the finding."""

_logger = logging.getLogger(__name__)


class CheckedResults(NamedTuple):
    """Usable results in the order of the file, and what was found while checking; not checked again where evaluated."""

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
    from scantling.structures.masks import RoiMasks

    if instances.scores is None:
        raise ValueError("to_results: expected detections, found instances without scores")
    boxes = xyxy_to_xywh(instances.boxes.detach().cpu().double().numpy()).tolist()
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


def with_names(
    results: Iterable[Mapping[str, Any]], images: Iterable[ImageRecord], categories: Sequence[Category]
) -> list[Result]:
    """Results in a data set's ids, each with `file_name` and `category_name`: names outlive any numbering.

    Args:
        results: Names that they have already stay; one that is None was never told and is not written.
        images: Those that the results are about, or more.
        categories: Of the data set; a name that two of them share tells nothing and is not written.
    """
    files = {image.id: image.file_name for image in images}
    classes = {each.id: {"category_name": name} for name, each in _single_names(categories).items()}
    named = [
        {
            "image_id": result["image_id"],
            "file_name": files[result["image_id"]],
            "category_id": result["category_id"],
            **classes.get(result["category_id"], {}),
            **result,
        }
        for result in results
    ]
    for result in named:
        if result.get("category_name", "") is None:
            del result["category_name"]
    return named


def write_results(results: Iterable[Mapping[str, Any]], path: Path | str, dataset: CocoDataset) -> None:
    """Write results in the ids of a data set atomically as a JSON list; see `with_names`.

    Raises:
        ValueError: A number is NaN or infinite.
        UsageError: The file cannot be written.
    """
    write_json(path, with_names(results, dataset.images, dataset.categories))


def read_results(
    path: Path | str,
    dataset: CocoDataset,
    *,
    image_ids: ImageIds = "auto",
    skip_invalid: bool = False,
    strict: bool = False,
) -> list[Result]:
    """Read and check a result file of any tool; warnings go to the log (use `read_checked` to have them).

    Args:
        path: The file; `result_files` says which kinds are read.
        dataset: The data set that was predicted.
        image_ids: What numbers as `image_id` are.
        skip_invalid: Drop and count unusable results instead of raising.
        strict: Warnings raise.

    Raises:
        DataError: With all findings, if one is an error.
    """
    checked = read_checked(path, dataset, image_ids=image_ids, skip_invalid=skip_invalid, strict=strict)
    tell_warnings(checked.findings, _logger, rest=f"in {path}")
    return checked.records


def read_checked(
    path: Path | str,
    dataset: CocoDataset,
    *,
    image_ids: ImageIds = "auto",
    skip_invalid: bool = False,
    strict: bool = False,
) -> CheckedResults:
    """As `read_results`, but what was found is returned and not told."""
    results = read_result_file(path)
    return check_results(
        results, dataset, file=str(path), image_ids=image_ids, skip_invalid=skip_invalid, strict=strict
    )


def check_results(
    results: object,
    dataset: CocoDataset,
    *,
    file: str = "predictions",
    image_ids: ImageIds = "auto",
    skip_invalid: bool = False,
    strict: bool = False,
) -> CheckedResults:
    """Check results of any tool against a data set.

    Args:
        results: Should be a list of result dicts, or one of predictions image by image (`image_lists`).
        dataset: The data set that was predicted.
        file: Name for messages.
        image_ids: What numbers as `image_id` are; results that were checked before have the data set's ids.
        skip_invalid: Drop and count unusable results instead of raising.
        strict: Warnings raise.

    Raises:
        DataError: With all findings, if one is an error.
    """
    log = FindingLog(file, Policy(skip_invalid=skip_invalid, strict=strict))
    if are_image_lists(results):
        results, image_ids = from_image_lists(results, dataset, log), "id"
    listed = _as_list(results, log)
    records = {index: record for index, record in enumerate(listed) if isinstance(record, dict)}
    for index in sorted(set(range(len(listed))) - records.keys()):
        message = f"expected an object, found {type(listed[index]).__name__}"
        log.add("record-not-object", message, path=f"[{index}]", value=listed[index])
    places = ImagePlaces(dataset, log, image_ids).find(list(records.values()))
    gathered = _Gathered(dataset, log, frozenset(dataset.category_ids))
    for (index, record), place in zip(records.items(), places, strict=True):
        gathered.take(record, index, place)
    gathered.report()
    log.raise_if_failed()
    return CheckedResults(gathered.records, log.findings)


def _single_names(categories: Sequence[Category]) -> dict[str, Category]:
    """Categories by name, without names that occur twice."""
    count = Counter(category.name for category in categories)
    return {category.name: category for category in categories if count[category.name] == 1}


def box_xywh(result: Mapping[str, Any]) -> Box:
    """The box [x, y, width, height] of a checked result; that of its mask where it has none of its own."""
    if "bbox" in result:
        x, y, width, height = result["bbox"]
        return x, y, width, height
    return from_corners(rle_to_box(result["segmentation"]))


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
    covered: set[int] = field(default_factory=set)
    unknown_categories: Counter[str] = field(default_factory=Counter)
    num_without_category: int = 0
    named_categories: list[str] = field(default_factory=list)
    num_counted: int = 0
    lacking: dict[str, list[tuple[int, Result]]] = field(default_factory=dict)
    scores_out_of_range: list[float] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    limits_wh: list[tuple[int, int]] = field(default_factory=list)

    def take(self, record: Result, index: int, place: int) -> None:
        """Check one result and keep it if it is usable.

        Args:
            record: As in the file.
            index: Its place there.
            place: Position of its image in the data set, or NONE.
        """
        self.taken += 1
        counted_before = self.num_counted
        category_id = self._category_of(record)
        log = self.log.record(f"[{index}]", usable_id(record.get("image_id")), id_of="image")
        self._check_score(record, index, log)
        if place == NONE:
            return
        self.covered.add(place)
        image = self.dataset.images[place]
        given, record = record, checked_shapes(record, image.size_hw, log)
        if not record.keys() & {"bbox", "segmentation"}:
            self._miss("results-shapeless", given, index, log)
        if category_id is None or log.faulty:
            return
        if record.get("image_id") != image.id or record.get("category_id") != category_id:
            record = record | {"image_id": image.id, "category_id": category_id}
        if self.num_counted > counted_before and len(self.dataset.categories) > 1:
            record = record | {"category_name": None}  # assumed: what is written of it must not claim it
        self.records.append(record)
        if "bbox" in record:
            self.boxes.append(record["bbox"])
            self.limits_wh.append(image.size_hw[::-1])

    def _category_of(self, record: Result) -> int | None:
        """Id of the category that a result names, or None; the name counts where name and id disagree."""
        value, name = record.get("category_id"), record.get("category_name")
        by_name = self._id_of_name.get(name) if isinstance(name, str) else None
        known = type(value) in (int, float) and value in self.category_ids
        if by_name is not None and not (known and value == by_name):
            self.named_categories.append(f"{name!r} with category_id {value!r:.40}")
            return by_name
        if known:
            self.num_counted += by_name is None and value in self.dataset.counted_ids
            return value
        if value is None:
            self.num_without_category += 1
        else:
            self.unknown_categories[shown(value)] += 1
        return None

    @cached_property
    def _id_of_name(self) -> dict[str, int]:
        """Category id by name, without names that occur twice."""
        return {name: each.id for name, each in _single_names(self.dataset.categories).items()}

    def _miss(self, code: str, record: Result, index: int, log: RecordLog) -> None:
        """Remember a result that lacks something, to tell once of all that do."""
        log.faulty = True
        self.lacking.setdefault(code, []).append((index, record))

    def _check_score(self, record: Result, index: int, log: RecordLog) -> None:
        value = record.get("score")
        if "score" not in record:
            self._miss("results-score", record, index, log)
        elif not is_finite_number(value):
            log.add("results-score", "the score is not a finite number", field="score", value=value)
        elif not 0 <= value <= 1:
            self.scores_out_of_range.append(value)

    def report(self) -> None:
        """Add the findings about all results together."""
        self._report_categories()
        add = self.log.add
        for code, what in _LACKING.items():
            if lacking := self.lacking.get(code):
                first, record = lacking[0]
                keys = name_some(sorted(record), 12)
                message = f"{len(lacking)} of {self.taken} predictions have {what}; this one has {keys}"
                add(code, message, path=f"[{first}]")
        if self.scores_out_of_range:
            message = f"{len(self.scores_out_of_range)} of {self.taken} scores lie outside 0..1"
            add("results-score-range", message, value=self.scores_out_of_range[0])
        if self.boxes and looks_xyxy(np.array(self.boxes, dtype=np.float64), np.array(self.limits_wh)):
            message = f"all {len(self.boxes)} boxes look like [x1, y1, x2, y2]"
            add("results-boxes-xyxy", message, value=list(self.boxes[0]))
        self._report_coverage()

    def _report_categories(self) -> None:
        add = self.log.add
        if self.num_without_category:
            message = f"{self.num_without_category} of {self.taken} predictions have no category_id"
            add("results-category-missing", message)
        if self.named_categories:
            message = (
                f"in {len(self.named_categories)} of {self.taken} predictions category_name and category_id disagree;"
                f" the name counts: {self.named_categories[0]}"
            )
            add("results-category-differs", message)
        categories = self.dataset.categories
        if self.num_counted and len(categories) > 1:
            ours = [f"{each.id} {each.name}" for each in categories if each.id in self.dataset.counted_ids]
            message = (
                f"{self.num_counted} of {self.taken} predictions have no category_name of {self.dataset.file}, whose"
                f" categories have names but no ids: category_id is taken for {name_some(ours, 20)}"
            )
            add("results-category-counted", message)
        if unknown := self.unknown_categories:
            known = name_some([repr(category_id) for category_id in self.dataset.category_ids])
            message = (
                f"{unknown.total()} of {self.taken} predictions are for {len(unknown)} categories not in"
                f" {self.dataset.file}: {', '.join(list(unknown)[:5])}; it has {known}"
            )
            add("results-category-unknown", message)

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
        missing = [
            image.file_name for place, image in enumerate(self.dataset.images) if place not in self.covered
        ]
        if missing:
            message = f"{len(missing)} of {len(self.dataset)} images have no prediction: {name_some(missing)}"
            add("results-uncovered", message)

    def _count(self, key: str) -> int:
        return sum(key in record for record in self.records)

"""Evaluations as files, so that what was measured once is read afterwards and not measured again.

    evaluations ── save_evaluations ──► NAME.json (numbers), NAME.npz (curves) ── load_evaluations ──► evaluations

What only the bootstrap needs (the value of every resample) is not kept.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np

from scantling.data.coco import CocoDataset
from scantling.data.io import read_json, replacing, write_json
from scantling.errors import DataError, Finding, Severity
from scantling.evaluate.backends import Curves
from scantling.evaluate.bootstrap import Interval
from scantling.evaluate.coco_eval import CategoryResult, Evaluation
from scantling.evaluate.inputs import IouType, Result

_CURVES = tuple(field.name for field in fields(Curves))


def kinds_of(dataset: CocoDataset, results: Sequence[Result]) -> list[IouType]:
    """What results can be evaluated by: boxes where they have them, masks where both sides do; else boxes."""
    kinds: list[IouType] = []
    if any(result.get("bbox") for result in results):
        kinds.append("bbox")
    has_masks = any(a.segmentation is not None for a in chain(*dataset.annotations))
    if has_masks and any(result.get("segmentation") for result in results):
        kinds.append("segm")
    return kinds or ["bbox"]


def files_of(folder: str, name: str) -> tuple[str, str]:
    """The two files of what is called `name` in a folder."""
    return f"{folder}/{name}.json", f"{folder}/{name}.npz"


def save_evaluations(evaluations: Sequence[Evaluation], folder: Path, name: str) -> None:
    """Write evaluations of one result list, boxes before masks, each file atomically.

    Raises:
        UsageError: A file cannot be written.
    """
    numbers, curves = (Path(file) for file in files_of(str(folder), name))
    arrays = {f"{e.iou_type}/{part}": getattr(e.curves, part) for e in evaluations for part in _CURVES}
    with replacing(curves) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    write_json(numbers, [_plain(evaluation) for evaluation in evaluations])


def load_evaluations(folder: Path, name: str) -> tuple[Evaluation, ...]:
    """What `save_evaluations` wrote.

    Raises:
        DataError: A file is missing, or none of these.
    """
    numbers, curves = (Path(file) for file in files_of(str(folder), name))
    records = cast("list[dict[str, Any]]", read_json(numbers))
    try:
        with np.load(curves, allow_pickle=False) as arrays:
            return tuple(_evaluation(record, arrays) for record in records)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{curves}: not written by scantling, or damaged: {error}") from error


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    """All but the curves and the resamples; numbers come back from JSON as the same floats."""
    own = {field.name: getattr(evaluation, field.name) for field in fields(evaluation)}
    del own["curves"], own["resampled"]
    categories = [asdict(result) for result in evaluation.per_category]
    findings = [{**asdict(finding), "value": _json(finding.value)} for finding in evaluation.findings]
    return {**own, "per_category": categories, "findings": findings}


def _evaluation(record: dict[str, Any], arrays: Any) -> Evaluation:  # noqa: ANN401 - numpy's type is private
    curves = Curves(**{part: arrays[f"{record['iou_type']}/{part}"] for part in _CURVES})
    categories = tuple(
        CategoryResult(**{**result, "intervals": _intervals(result["intervals"])})
        for result in record["per_category"]
    )
    findings = tuple(
        Finding(**{**finding, "severity": Severity(finding["severity"])}) for finding in record["findings"]
    )
    first, second, third = record["max_detections"]
    return Evaluation(
        **{
            **record,
            "curves": curves,
            "per_category": categories,
            "findings": findings,
            "max_detections": (first, second, third),
            "intervals": _intervals(record["intervals"]),
        }
    )


def _intervals(found: dict[str, list[float] | None]) -> dict[str, Interval | None]:
    return {key: None if pair is None else (pair[0], pair[1]) for key, pair in found.items()}


def _json(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)

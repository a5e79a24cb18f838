"""Learning curves out of a training's `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scantling.report.content import MemberCurves, Series

_VALIDATION = "val/"
_SHOWN_METRICS = ("AP", "AP50", "AP75", "mIoU", "iou", "iou_before", "knn_accuracy", "queue_accuracy")


def read_history(path: Path, name: str) -> MemberCurves:
    """Learning curves of one member; a missing file and damaged lines (a cut-off last one) give no points.

    Args:
        path: `metrics.jsonl`, one JSON object per logged step or validation.
        name: Member, for the caption.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return history_from_records(name, _parse(lines))


def history_from_records(name: str, records: Iterable[Mapping[str, Any]]) -> MemberCurves:
    """Learning curves out of logged records.

    Args:
        name: Member, for the caption.
        records: With `step`, and `loss`, `loss/PART` or `val/bbox/AP` and the like; what is not finite is left
            out, and of records that were logged twice (after a resume) the last one counts.
    """
    values: dict[str, dict[float, float]] = defaultdict(dict)
    for record in records:
        for key, value in record.items():
            if _is_curve(key) and _is_number(value) and _is_number(record.get("step")):
                values[key][float(record["step"])] = float(value)
    losses = sorted((key for key in values if not key.startswith(_VALIDATION)), key=lambda key: key != "loss")
    metrics = [key for key in values if key.startswith(_VALIDATION)]
    return MemberCurves(
        name=name,
        losses=tuple(_series(_loss_name(key), values[key]) for key in losses),
        metrics=tuple(_series(key.removeprefix(_VALIDATION), values[key]) for key in sorted(metrics)),
    )


def _parse(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield record


def _is_curve(key: str) -> bool:
    is_shown = key.startswith(_VALIDATION) and key.rpartition("/")[2] in _SHOWN_METRICS
    return key == "loss" or key.startswith("loss/") or is_shown


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _loss_name(key: str) -> str:
    return "total" if key == "loss" else key.removeprefix("loss/")


def _series(name: str, values: Mapping[float, float]) -> Series:
    return Series(name=name, points=tuple(sorted(values.items())))

"""A result file of any tool after suppression; all else in it stays as it was."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.results import read_results, write_results
from scantling.data.detections import detections_of
from scantling.models.suppression import SuppressConfig, suppress_detections
from scantling.settings.paths import ResultsFile
from scantling.structures.detections import Detections

log = logging.getLogger(__name__)

_LOOKED_AT = 50  # images


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppressSummary:
    """What suppression did to a file.

    Attributes:
        num_results: Predictions read.
        num_kept: Those written.
        num_lowered: Of these, with a lower score than before.
        out: The results file.
    """

    num_results: int
    num_kept: int
    num_lowered: int
    out: Path

    def to_text(self) -> str:
        """For people."""
        lowered = f", {self.num_lowered} of them with a lower score" if self.num_lowered else ""
        return f"{self.num_kept} of {self.num_results} predictions are left{lowered}, in {self.out}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "out": str(self.out)}


def suppress_file(
    file: ResultsFile,
    dataset: CocoDataset,
    config: SuppressConfig,
    out: Path,
    *,
    skip_invalid: bool = False,
) -> SuppressSummary:
    """Suppress the predictions of a result file by their boxes.

    Args:
        file: COCO results of any tool, best before any suppression; keys and masks of what stays are written back.
        dataset: The data set that was predicted.
        config: Method and thresholds; see `for_results`.
        out: COCO results file to write, image by image, best first; what is there is replaced.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        ConfigError: A setting names a category that does not exist, or lacks one.
        UsageError: The output cannot be written.
        DataError: The results cannot be used.
    """
    config.thresholds(dataset.class_names)  # a wrong name is told before a large file is read
    results = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
    detections = detections_of(results, dataset)
    if is_suppressed(detections):
        log.warning(
            "%s: no box overlaps another of its category by more than half: it seems suppressed before",
            file.path,
        )
    rows, scores = suppress_detections(detections, config, dataset.class_names)
    changed = (scores != detections.scores[rows]).tolist()
    kept = [
        {**results[row], "score": score} if is_changed else results[row]
        for row, score, is_changed in zip(rows.tolist(), scores.tolist(), changed, strict=True)
    ]
    write_results(kept, out, dataset)
    return SuppressSummary(num_results=len(results), num_kept=len(kept), num_lowered=sum(changed), out=out)


def for_results(config: SuppressConfig) -> SuppressConfig:
    """Settings for the predictions of a file, all of which count unless a score threshold is given."""
    if "score_threshold" in config.model_fields_set:
        return config
    return config.model_copy(update={"score_threshold": 0.0})


def is_suppressed(candidates: Detections) -> bool:
    """Whether hard NMS at 0.5 has nothing to remove in the first images; no candidates: no."""
    some = candidates[(candidates.images < _LOOKED_AT) & (candidates.scores > 0)]
    rows, _ = suppress_detections(some, SuppressConfig(score_threshold=0.0, max_per_image=None), ())
    return 0 < len(some) == len(rows)

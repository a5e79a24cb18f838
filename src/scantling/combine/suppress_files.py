"""A result file of any tool after suppression; all else in it stays as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

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
        left_out: How many of the others each setting left out: `score_threshold`, `method`, `max_per_image`.
        out: The results file.
    """

    num_results: int
    num_kept: int
    num_lowered: int
    left_out: Mapping[str, int]
    out: Path

    def to_text(self) -> str:
        """For people."""
        lowered = f", {self.num_lowered} of them with a lower score" if self.num_lowered else ""
        parts = [f"{count} by {name}" for name, count in self.left_out.items() if count]
        less = f"; left out: {', '.join(parts)}" if parts else ""
        return f"{self.num_kept} of {self.num_results} predictions are left{lowered}, in {self.out}{less}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "left_out": dict(self.left_out), "out": str(self.out)}


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
    return SuppressSummary(
        num_results=len(results),
        num_kept=len(kept),
        num_lowered=sum(changed),
        left_out=_left_out(detections, config, dataset.class_names, len(kept)),
        out=out,
    )


def _left_out(
    detections: Detections, config: SuppressConfig, class_names: Sequence[str], num_kept: int
) -> dict[str, int]:
    """How many predictions each setting left out, by its name, in the order in which they apply."""
    scores, labels = torch.from_numpy(detections.scores), torch.from_numpy(detections.labels)
    considered = int(config.thresholds(class_names).considered(scores, labels).sum())
    unlimited = num_kept
    if config.max_per_image is not None and num_kept < considered:
        everything = config.model_copy(update={"max_per_image": None})
        unlimited = len(suppress_detections(detections, everything, class_names)[0])
    counts = (len(detections) - considered, considered - unlimited, unlimited - num_kept)
    return dict(zip(("score_threshold", "method", "max_per_image"), counts, strict=True))


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

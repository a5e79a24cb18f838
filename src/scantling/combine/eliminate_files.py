"""A result file of any tool without the predictions that contradict what occurs; all else in it stays as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scantling.combine.eliminate import EliminateConfig, Elimination, eliminate, learn_relations
from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.results import read_results, write_results
from scantling.data.detections import detections_of
from scantling.settings.paths import ResultsFile


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminateSummary:
    """What was removed and where the rest is.

    Attributes:
        elimination: What to keep and why not the others.
        out: Results file; None where it was only asked what contradicts.
    """

    elimination: Elimination
    out: Path | None

    def to_text(self) -> str:
        """For people: removals by pair."""
        end = "; nothing was removed" if self.out is None else f"; the others are in {self.out}"
        return self.elimination.to_text() + end

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out) if self.out else None, **self.elimination.to_dict()}


def eliminate_file(
    file: ResultsFile,
    train: CocoDataset,
    dataset: CocoDataset,
    config: EliminateConfig,
    out: Path | None,
    *,
    skip_invalid: bool = False,
) -> EliminateSummary:
    """Remove what contradicts from a result file.

    Args:
        file: COCO results of any tool; keys and masks of what stays are written back.
        train: Where to learn what occurs; categories are matched by name.
        dataset: The data set that was predicted.
        config: What is judged.
        out: Results file to write; what is there is replaced. None only lists.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        UsageError: The output cannot be written.
        DataError: The results cannot be used, or `train` lacks a category.
    """
    relations = learn_relations(train, config).ordered(dataset.class_names)
    results = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
    found = eliminate(detections_of(results, dataset), relations, config)
    if out is not None:
        kept = [result for result, stays in zip(results, found.keep, strict=True) if stays]
        write_results(kept, out, dataset)
    return EliminateSummary(elimination=found, out=out)

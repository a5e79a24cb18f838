"""A result file of any tool whose masks are fused with score maps of any tool; all else in it stays as it was.

results.json, maps ─┬─ fuse_semantic ─► results.json
                    └─ tune_semantic ─► tuned.yaml, of which it takes the section `semantic`
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from scantling.combine.semantic import SemanticConfig, SemanticFusion, fuse_semantic
from scantling.combine.tune import TuneConfig
from scantling.combine.tune_files import TuneSummary
from scantling.combine.tune_semantic import tune_semantic
from scantling.combine.tuned import write_tuned
from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.result_shapes import with_shapes
from scantling.data.coco.results import Result, read_results, write_results
from scantling.data.detections import detections_of
from scantling.data.findings import tell_warnings
from scantling.errors import DataError
from scantling.evaluate.inputs import truth_findings
from scantling.settings.paths import ResultsFile
from scantling.structures.detections import Detections
from scantling.structures.score_maps import ScoreMaps

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticSummary:
    """What fusion did to a file.

    Attributes:
        fusion: What became of the masks.
        class_names: Category names in label order.
        out: The results file.
    """

    fusion: SemanticFusion
    class_names: tuple[str, ...]
    out: Path

    def to_text(self) -> str:
        """A table for people."""
        counts = self.fusion.counts(self.class_names)
        width = max([len("category"), *map(len, counts)])
        lines = [f"{'category':<{width}}  {'predictions':>11}  {'fused':>6}  {'changed':>7}  pixels"]
        lines += [
            f"{name:<{width}}  {c['detections']:>11}  {c['fused']:>6}  {c['changed']:>7}  +{c['gained']} -{c['lost']}"
            for name, c in counts.items()
        ]
        total = int(self.fusion.is_changed.sum())
        return "\n".join(
            [*lines, "", f"{total} of {len(self.fusion.detections)} masks changed, in {self.out}"]
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), **self.fusion.to_dict(self.class_names)}


def fuse_semantic_file(
    file: ResultsFile,
    dataset: CocoDataset,
    maps: ScoreMaps,
    config: SemanticConfig,
    out: Path,
    *,
    skip_invalid: bool = False,
) -> SemanticSummary:
    """Fuse the masks of a result file with score maps.

    Args:
        file: COCO results of any tool, with masks; boxes, scores and further keys are written back.
        dataset: The data set that was predicted.
        maps: Of its images.
        config: Which instances, and how.
        out: COCO results file to write; what is there is replaced.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        ConfigError: A setting names a category that does not exist, or lacks one.
        UsageError: The output cannot be written.
        DataError: The results cannot be used, or none of them has a mask.
    """
    config.modes(dataset.class_names)  # a wrong name is told before a large file is read
    config.score_thresholds(dataset.class_names)
    results = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
    detections = _with_masks(results, dataset, file)
    fusion = fuse_semantic(detections, maps, config, dataset.class_names)
    if fusion.num_unmapped:
        log.warning("%d images with predictions to fuse have no map; their masks stay", fusion.num_unmapped)
    write_results(with_masks_of(results, fusion), out, dataset)
    return SemanticSummary(fusion=fusion, class_names=dataset.class_names, out=out)


def with_masks_of(results: Sequence[Result], fusion: SemanticFusion) -> list[Result]:
    """Results with the masks that fusion changed and their areas, and all else as it was; row i of both is one."""
    masks, changed = fusion.detections.mask_column.tolist(), fusion.is_changed.tolist()
    return [
        with_shapes(result, segmentation=mask) if is_changed else result
        for result, mask, is_changed in zip(results, masks, changed, strict=True)
    ]


class SemanticTuneRequest(BaseModel):
    """What is tuned from where.

    Attributes:
        search: What is tried, and how sure a choice has to be.
        semantic: Settings in use.
        max_dets: Detections counted per image and category, best first; COCO's own number is 100.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    search: TuneConfig = TuneConfig()
    semantic: SemanticConfig = SemanticConfig()
    max_dets: Annotated[int, Field(gt=10)] = 100


def tune_semantic_file(
    file: ResultsFile,
    dataset: CocoDataset,
    maps: ScoreMaps,
    request: SemanticTuneRequest,
    out: Path,
    *,
    skip_invalid: bool = False,
) -> TuneSummary:
    """Find mode and score threshold of the fusion of a result file with score maps, and write them.

    Args:
        file: COCO results of any tool, with masks, of images that neither it nor the segmenter was trained on.
        dataset: The truth.
        maps: Of its images.
        request: Search and settings in use.
        out: YAML file to write.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        UsageError: The data set has no objects, or `out` cannot be written.
        ConfigError: The settings in use name categories that do not exist.
        DataError: The results cannot be used, or none of them has a mask.
    """
    request.semantic.modes(dataset.class_names)
    results = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
    detections = _with_masks(results, dataset, file)
    tell_warnings(truth_findings(dataset, "segm", request.max_dets), log, rest="all of this kind")
    tuned = tune_semantic(
        detections, maps, dataset, request.semantic, request.search, max_detections=request.max_dets
    )
    write_tuned(out, semantic=tuned.config, comment=tuned.to_text())
    return TuneSummary(what="semantic", tuned=tuned, out=out)


def _with_masks(results: Sequence[Result], dataset: CocoDataset, file: ResultsFile) -> Detections:
    """Results as columns, in their order; those without a mask are told.

    Raises:
        DataError: None of them has one.
    """
    detections = detections_of(results, dataset)
    bare = np.count_nonzero(~detections.has_mask)
    if len(results) and bare == len(results):
        raise DataError(
            f"{file.path}: no prediction has a mask, so there is nothing to fuse",
            hint="Give results with a segmentation, as a detector of masks writes them.",
        )
    if bare:
        log.warning("%s: %d predictions have no mask and stay as they are", file.path, bare)
    return detections

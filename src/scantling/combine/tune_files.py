"""Result files of any tools tuned: one file of candidates, or the members of an ensemble, to a file of settings.

candidates.json ─ tune_suppression ───┐
A.json, B.json ... ─ tune_weights ────┼─► tuned.yaml, which prediction, ensembles and semantic fusion take
results.json, maps ─ tune_semantic ───┘  (`semantic_files`)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scantling.combine.ensemble import EnsembleConfig
from scantling.combine.members import Member, NamedFile, read_members
from scantling.combine.suppress_files import for_results, is_suppressed
from scantling.combine.tune import TuneConfig, tune_suppression
from scantling.combine.tune_weights import tune_weights
from scantling.combine.tuned import Tuned, write_tuned
from scantling.data.coco.dataset import CocoDataset
from scantling.data.detections import compare_detections
from scantling.data.findings import tell, tell_warnings
from scantling.errors import DataError, UsageError
from scantling.evaluate.inputs import IouType, truth_findings
from scantling.models.suppression import SuppressConfig
from scantling.structures.detections import Detections

log = logging.getLogger(__name__)

What = Literal["suppress", "weights", "semantic"]


class TuneRequest(BaseModel):
    """What is tuned from where.

    Attributes:
        iou_type: Whether AP of boxes or of masks decides; about the weights of an ensemble by masks, masks unless said
            otherwise.
        search: What is tried, and how sure a choice has to be.
        suppress: Settings of suppression in use. Its score threshold is 0 unless said otherwise: all candidates of
            the file count.
        ensemble: Settings of the ensemble in use.
        max_dets: Detections counted per image and category, best first; COCO's own number is 100.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou_type: IouType = "bbox"
    search: TuneConfig = TuneConfig()
    suppress: SuppressConfig = SuppressConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    max_dets: Annotated[int, Field(gt=10)] = 100

    def suppression(self) -> SuppressConfig:
        """Settings of suppression in use, for candidates of a file; as many are kept of an image as are counted."""
        config = for_results(self.suppress)
        if "max_per_image" in self.suppress.model_fields_set:
            return config
        return config.model_copy(update={"max_per_image": max(100, self.max_dets)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSummary:
    """What was found and where it is.

    Attributes:
        what: What was tuned.
        tuned: Settings and table.
        out: The file of settings.
    """

    what: What
    tuned: Tuned[Any]
    out: Path

    def to_text(self) -> str:
        """For people."""
        return f"{self.tuned.to_text()}, in {self.out}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"what": self.what, "out": str(self.out), **self.tuned.to_dict()}


def tune_files(
    files: Sequence[NamedFile],
    dataset: CocoDataset,
    request: TuneRequest,
    out: Path,
    what: What,
    *,
    skip_invalid: bool = False,
) -> TuneSummary:
    """Tune and write the settings found.

    Args:
        files: One of candidates for `suppress`; two or more for `weights`, by their names.
        dataset: The truth.
        request: Search and settings in use.
        out: YAML file to write.
        what: What to tune.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        UsageError: The number of files is another one, the data set has no objects, or `out` cannot be written.
        ConfigError: The settings in use name members or categories that do not exist.
        DataError: A file cannot be used.
    """
    if (what == "suppress") != (len(files) == 1):
        raise UsageError(
            f"{len(files)} results files: suppression is tuned from one, of candidates; weights from two or more"
        )
    iou_type = request.iou_type
    if what == "weights" and request.ensemble.by_masks and "iou_type" not in request.model_fields_set:
        iou_type = "segm"
    members = read_members(files, dataset, skip_invalid=skip_invalid, fuses_masks=iou_type == "segm")
    tell_warnings(truth_findings(dataset, iou_type, request.max_dets), log, rest="all of this kind")
    tell(compare_detections([(m.file, m.detections) for m in members], dataset.class_names), log)
    found = {member.name: _comparable(member, iou_type) for member in members}
    tuned: Tuned[Any]
    if what == "suppress":
        tuned = _suppression(members[0].file, found[members[0].name], dataset, request, iou_type)
        write_tuned(out, suppress=tuned.config, comment=tuned.to_text())
    else:
        tuned = tune_weights(
            found,
            dataset,
            request.ensemble,
            request.search,
            max_detections=request.max_dets,
            iou_type=iou_type,
        )
        write_tuned(out, ensemble=tuned.config, comment=tuned.to_text())
    return TuneSummary(what=what, tuned=tuned, out=out)


def _suppression(
    file: str, candidates: Detections, dataset: CocoDataset, request: TuneRequest, iou_type: IouType
) -> Tuned[SuppressConfig]:
    """Tune suppression; candidates that seem suppressed before are told."""
    if is_suppressed(candidates):
        log.warning(
            "%s: no box overlaps another of its category by more than half, so there is nothing to suppress; "
            "give candidates before suppression (predict --set suppress.method=none)",
            file,
        )
    return tune_suppression(
        candidates,
        dataset,
        request.suppression(),
        request.search,
        max_detections=request.max_dets,
        iou_type=iou_type,
    )


def _comparable(member: Member, iou_type: IouType) -> Detections:
    """The candidates of a file; where masks are compared, those that have one."""
    found = member.detections
    if iou_type == "bbox":
        return found
    has_mask = found.has_mask
    if len(found) and not has_mask.any():
        raise DataError(f"{member.file}: no prediction has a mask, so there is no mask AP to tune by")
    if not has_mask.all():
        log.warning("%s: %d predictions have no mask and are left out", member.file, (~has_mask).sum())
    return found[has_mask]

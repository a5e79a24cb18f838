"""Result files of any tools as the members of an ensemble, and the ensemble as one result file.

    A.json, B.json ... ─ read_members ─► {name: Detections} ─ ensemble_detections ─► results file

Of the files, which may be large, only one at a time is held as it was parsed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scantling.combine.ensemble import EnsembleConfig, EnsembleMethod, ensemble_detections
from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.results import read_results, write_results
from scantling.data.detections import compare_detections, detections_of, results_of
from scantling.errors import DataError, Finding, UsageError
from scantling.structures.detections import Detections

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """What one detector found.

    Attributes:
        name: By which its weight is given.
        file: Where it was read from.
        detections: Its boxes, in the order of the file.
        num_masks: Results whose mask is not used.
    """

    name: str
    file: str
    detections: Detections
    num_masks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFacts:
    """One line about a member.

    Attributes:
        name: By which its weight is given.
        file: Where it was read from.
        num_boxes: Boxes read.
        num_images: Images with at least one of them.
        num_masks: Results whose mask is not used.
        weight: One for all categories, or by category.
    """

    name: str
    file: str
    num_boxes: int
    num_images: int
    num_masks: int
    weight: float | dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleSummary:
    """What an ensemble was made of and what it is.

    Attributes:
        method: How boxes were fused.
        members: In the order given.
        num_boxes: Boxes written.
        num_images: Images with at least one of them.
        out: The results file.
        findings: Warnings about files that do not belong together.
    """

    method: EnsembleMethod
    members: tuple[MemberFacts, ...]
    num_boxes: int
    num_images: int
    out: Path
    findings: tuple[Finding, ...]

    def to_text(self) -> str:
        """A table for people."""
        width = max([len("member"), *(len(member.name) for member in self.members)])
        lines = [f"{'member':<{width}}  {'boxes':>9}  {'images':>7}  weight"]
        lines += [
            f"{m.name:<{width}}  {m.num_boxes:>9}  {m.num_images:>7}  {_weight_text(m.weight)}"
            for m in self.members
        ]
        lines += [f"{self.method:<{width}}  {self.num_boxes:>9}  {self.num_images:>7}  in {self.out}"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "out": str(self.out)}


def member_names(files: Sequence[Path]) -> list[str]:
    """A name for each result file, no two alike: what tells the paths apart.

    That is the name of the file without its ending or, where files of one name lie in folders of their own, that of
    the nearest folder that differs; else the whole path, numbered where the same is given twice.
    """
    parts = [[path.stem, *(folder.name for folder in path.absolute().parents)] for path in files]
    for names in zip(*parts, strict=False):
        if len(set(names)) == len(files):
            return list(names)
    told = [str(path) for path in files]
    return [
        name if told.count(name) == 1 else f"{name} ({told[: index + 1].count(name)})"
        for index, name in enumerate(told)
    ]


def read_members(files: Sequence[Path], dataset: CocoDataset, *, skip_invalid: bool = False) -> list[Member]:
    """Read and check the result files of an ensemble; warnings go to the log.

    Args:
        files: COCO results of any tool; one without a box has that of its mask.
        dataset: The data set that was predicted.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        DataError: With the findings of all files, if one cannot be used.
    """
    members, faults = [], []
    for name, file in zip(member_names(files), files, strict=True):
        try:
            results = read_results(file, dataset, skip_invalid=skip_invalid)
        except DataError as error:
            faults.append(error)
            continue
        num_masks = sum("segmentation" in result for result in results)
        if num_masks:
            log.warning("%s: the masks of %d predictions are not fused, only the boxes", file, num_masks)
        found = detections_of(results, dataset)
        members.append(Member(name=name, file=str(file), detections=found, num_masks=num_masks))
    if len(faults) > 1:
        findings = [finding for fault in faults for finding in fault.findings]
        raise DataError(f"{len(faults)} of {len(files)} files cannot be used", findings=findings)
    if faults:
        raise faults[0]
    return members


def ensemble_files(
    files: Sequence[Path],
    dataset: CocoDataset,
    config: EnsembleConfig,
    out: Path,
    *,
    skip_invalid: bool = False,
) -> EnsembleSummary:
    """Fuse result files into one.

    Args:
        files: See `read_members`.
        dataset: The data set that was predicted.
        config: Method, thresholds and weights, by the `member_names` of the files.
        out: COCO results file to write, image by image, best first; what is there is replaced.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        UsageError: The output cannot be written.
        ConfigError: The settings name members or categories that do not exist.
        DataError: A file cannot be used.
    """
    names, class_names = member_names(files), dataset.class_names
    config.thresholds(class_names)  # what is wrong with the names is told before large files are read
    config.weight_table(names, class_names)
    members = read_members(files, dataset, skip_invalid=skip_invalid)
    findings = compare_detections([(m.file, m.detections) for m in members], class_names)
    for finding in findings:
        log.warning("%s", str(finding).removeprefix("warning "))
    fused = ensemble_detections({m.name: m.detections for m in members}, config, class_names)
    write_results(results_of(fused, dataset), out)
    return EnsembleSummary(
        method=config.method,
        members=tuple(_facts(member, config) for member in members),
        num_boxes=len(fused),
        num_images=len(np.unique(fused.images)),
        out=out,
        findings=findings,
    )


def parse_weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """Weights of members as typed: `2,1` in the order of the files, or `NAME=2,OTHER=0.5`.

    Args:
        text: As given.
        names: Of the members, in order.

    Raises:
        UsageError: It is neither, or the number of values is not that of the members.
    """
    items = [item.strip() for item in text.split(",")]
    named = [item.rpartition("=") for item in items]
    try:
        if all(equals for _, equals, _ in named):
            return {name.strip(): float(number) for name, _, number in named}
        if len(items) == len(names):
            return {name: float(item) for name, item in zip(names, items, strict=True)}
    except ValueError:
        pass
    raise UsageError(
        f"--weights {text}: expected {len(names)} numbers, or NAME=NUMBER for some of the members",
        hint=f"The members are {', '.join(names)}.",
    )


def _facts(member: Member, config: EnsembleConfig) -> MemberFacts:
    return MemberFacts(
        name=member.name,
        file=member.file,
        num_boxes=len(member.detections),
        num_images=len(np.unique(member.detections.images)),
        num_masks=member.num_masks,
        weight=config.weights.get(member.name, 1.0),
    )


def _weight_text(weight: float | Mapping[str, float]) -> str:
    return f"{weight:g}" if isinstance(weight, float | int) else "by category"

"""Result files of any tools as the members of an ensemble, and the ensemble as one result file.

    A.json, name=B.json ... ─ read_members ─► {name: Detections} ─ ensemble_detections ─► results file

Of several files, which may be large, only one at a time is held as it was parsed.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scantling.combine.ensemble import EnsembleConfig, EnsembleMethod, ensemble_detections
from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.results import Result, read_results, write_results
from scantling.data.detections import compare_detections, detections_of, results_of
from scantling.data.findings import tell
from scantling.errors import ConfigError, DataError, Finding, UsageError, did_you_mean
from scantling.settings.named import by_name
from scantling.settings.paths import ResultsFile
from scantling.structures.detections import Detections

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """What one detector found.

    Attributes:
        name: The member's name, by which the user gives its weight.
        file: Path of the results file that was read.
        detections: The boxes in the file, in its order.
        results: The records of the file in the same order if there is no other member; else ().
        num_masks: Number of results whose mask is not used.
    """

    name: str
    file: str
    detections: Detections
    results: Sequence[Result]
    num_masks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFacts:
    """One line about a member.

    Attributes:
        name: The member's name, by which the user gives its weight.
        file: Path of the results file that was read.
        num_boxes: Number of boxes in the file.
        num_images: Number of images with at least one of these boxes.
        num_masks: Number of results whose mask is not used.
        weight: The member's weight: one for all categories, or one by category.
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
        method: The method by which boxes were fused.
        members: Summaries of the members, in the order of the command.
        num_boxes: Number of boxes written.
        num_images: Number of images with at least one of these boxes.
        out: The results file that was written.
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


class NamedFile(NamedTuple):
    """A member's results file and its name."""

    name: str
    file: ResultsFile


def named_files(given: Sequence[ResultsFile]) -> list[NamedFile]:
    """Every results file with a name of its own: that of the call, or what tells its path apart from the others'.

    Raises:
        UsageError: Two have one name.
    """
    derived = member_names([file.path for file in given])
    files = [NamedFile(file.name or name, file) for file, name in zip(given, derived, strict=True)]
    names = [name for name, _ in files]
    if twice := [name for name in names if names.count(name) > 1]:
        hint = "Give each a name of its own: NAME=FILE."
        raise UsageError(f"two members are called {twice[0]!r}", hint=hint)
    return files


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


def read_members(
    files: Sequence[NamedFile],
    dataset: CocoDataset,
    *,
    skip_invalid: bool = False,
    fuses_masks: bool = False,
) -> list[Member]:
    """Read and check the result files of an ensemble; warnings go to the log.

    Args:
        files: COCO results of any tool; one without a box has that of its mask.
        dataset: The data set that was predicted.
        skip_invalid: Leave unusable results out and count them.
        fuses_masks: Masks are what is fused or measured, so that it need not be told that boxes alone are.

    Raises:
        DataError: With the findings of all files, if one cannot be used.
    """
    members, faults = [], []
    for name, file in files:
        try:
            results = read_results(file.path, dataset, skip_invalid=skip_invalid, image_ids=file.image_ids)
        except DataError as error:
            faults.append(error)
            continue
        unused = len(files) > 1 and not fuses_masks
        num_masks = sum("segmentation" in result for result in results) if unused else 0
        if num_masks:
            log.warning("%s: the masks of %d predictions are not fused, only the boxes", file.path, num_masks)
        found, kept = detections_of(results, dataset), results if len(files) == 1 else ()
        member = Member(name=name, file=str(file.path), detections=found, results=kept, num_masks=num_masks)
        members.append(member)
    if len(faults) > 1:
        findings = [finding for fault in faults for finding in fault.findings]
        raise DataError(f"{len(faults)} of {len(files)} files cannot be used", findings=findings)
    if faults:
        raise faults[0]
    return members


def ensemble_files(
    files: Sequence[NamedFile],
    dataset: CocoDataset,
    config: EnsembleConfig,
    out: Path,
    *,
    skip_invalid: bool = False,
) -> EnsembleSummary:
    """Fuse result files into one. What is left of a single file keeps its masks and all its keys.

    By masks, what is one prediction's keeps its keys too; a vote of several has none of their own.

    Args:
        files: COCO results of any tool, as in `read_members`.
        dataset: The data set that was predicted.
        config: Method, thresholds and weights, by the names of the files.
        out: COCO results file to write, image by image, best first; what is there is replaced.
        skip_invalid: Leave unusable results out and count them.

    Raises:
        UsageError: The output cannot be written.
        ConfigError: The settings name members or categories that do not exist.
        DataError: A file cannot be used.
    """
    class_names = dataset.class_names
    config.thresholds(class_names)  # what is wrong with the names is told before large files are read
    _require_weighted(config, files)
    config.weight_table([file.name for file in files], class_names)
    members = read_members(files, dataset, skip_invalid=skip_invalid, fuses_masks=config.by_masks)
    findings = compare_detections([(m.file, m.detections) for m in members], class_names)
    tell(findings, log)
    fused = ensemble_detections({m.name: m.detections for m in members}, config, class_names)
    results = results_of(fused, dataset)
    if len(members) == 1 and not config.by_masks:
        sources = rows_behind(fused, members[0].detections)
        results = [
            result if row is None else {**members[0].results[row], "score": result["score"]}
            for result, row in zip(results, sources, strict=True)
        ]
    write_results(results, out, dataset)
    return EnsembleSummary(
        method=config.method,
        members=tuple(_facts(member, config) for member in members),
        num_boxes=len(fused),
        num_images=len(np.unique(fused.images)),
        out=out,
        findings=findings,
    )


def rows_behind(fused: Detections, source: Detections) -> list[int | None]:
    """For each fused box the row of the only member that it is, or None where it is a mean of several boxes.

    Args:
        fused: N rows, made of `source`.
        source: The member's detections; of equal boxes the best comes first.
    """
    order = np.argsort(-source.scores, kind="stable")
    places: dict[tuple[int, ...], list[int]] = {}
    for row, key in zip(order.tolist(), _keys(source[order]), strict=True):
        places.setdefault(key, []).append(row)
    return [rows.pop(0) if (rows := places.get(key)) else None for key in _keys(fused)]


def _keys(found: Detections) -> list[tuple[int, ...]]:
    """Image, label and box of each row, the box to a thousandth of a pixel: a mean of one box may round it."""
    thousandths = np.rint(found.boxes.clip(-1e12, 1e12) * 1000).astype(np.int64)
    return list(map(tuple, np.column_stack([found.images, found.labels, thousandths]).tolist()))


def _require_weighted(config: EnsembleConfig, files: Sequence[NamedFile]) -> None:
    """Refuse weights of members that are not there, and show the call in which they would be."""
    names = [file.name for file in files]
    unknown = [name for name in config.weights if name not in names]
    if not unknown:
        return
    free = iter([*unknown, *("NAME" for _ in files)])
    called = [
        f"{file.name if file.name in config.weights else next(free)}={shlex.quote(str(file.file.path))}"
        for file in files
    ]
    raise ConfigError(
        f"weights: there is no member {unknown[0]!r}{did_you_mean(unknown[0], names)}",
        hint=f"The members are {names}. Say in the call which is which; in the order of the weights, this would be"
        f" {' '.join(called)}",
    )


def parse_weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """Weights of members as typed: `2,1` in the order of the files, or `NAME=2,OTHER=0.5`.

    Args:
        text: The value of `--weights`, as it was typed.
        names: The members' names, in order.

    Raises:
        UsageError: It is neither, a name occurs twice, or the number of values is not that of the members.
    """
    items = [item.strip() for item in text.split(",")]
    named = [item.rpartition("=") for item in items]
    try:
        if all(equals for _, equals, _ in named):
            weights = [(name.strip(), float(number)) for name, _, number in named]
            return by_name(weights, f"--weights {text}")
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

"""The data of a run: every split read and checked before anything else happens."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from scantling.data.coco import CocoDataset, ReadOptions, Task, find_split, joined
from scantling.data.coco.layout import alias_of
from scantling.data.findings import FindingLog, Policy, summarise, tell_warnings
from scantling.data.formats.layouts import Layout, announce, detect_format
from scantling.data.formats.locations import Location, read_location
from scantling.data.health.images import look_before_training, usable_images
from scantling.data.health.leaks import compare_all, compare_splits, report_scene_duplicates, scene_duplicates
from scantling.data.images.white import dataset_with_white, range_message, white_of
from scantling.data.io import sha256_of
from scantling.errors import DataError, Finding, Severity, UsageError
from scantling.settings.section import Section

log = logging.getLogger(__name__)


class DataConfig(Section):
    """Which data set a recipe works on; usually given on the command line with `--data`.

    Attributes:
        root: Folder of the data set.
        train: Split to train on: its name, or a COCO file relative to `root`; or a list of them, whose images are
            trained on together.
        val: Split that picks the best checkpoint and is evaluated. There is none where it is null or one of the splits
            of the list that are trained on: the weights of the last step are kept then, and what chooses on `val` by
            itself cannot be done (tuning without folds, early stopping, refining).
        images: Folder of the images relative to `root`, where it is not beside the annotations.
        task: `segmentation` needs a mask for every annotation, and tells of those without before anything is done;
            `detection` looks at boxes. `auto`: segmentation if a member draws masks.
        skip_invalid: Leave out single annotations and images that are wrong, counted, instead of stopping.
        strict: Stop at warnings too.
        count_difficult: Objects marked `difficult` (VOC) or `ignore` (COCO) are ordinary ones; else they are no
            targets of training, and count neither way in AP.
        folds: Divide the training split into so many folds and train every member once without each: every training
            image is then predicted by a detector that has not seen it. null: train once on all of it.
        decode: Decode every image before anything else, so that damaged pixels are found at once. null: where that is
            cheap, or where damaged images are to be left out.
        white: Value that is white in pictures of 16 bits, such as 4095 for a camera of 12. null: what the file says,
            else what all pictures together show.
    """

    root: str | None = None
    train: str | Annotated[tuple[str, ...], Field(min_length=1)] = "train"
    val: str | None = "val"
    images: str | None = None
    task: Literal["auto", "detection", "segmentation"] = "auto"
    skip_invalid: bool = False
    strict: bool = False
    count_difficult: bool = False
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    decode: bool | None = None
    white: Annotated[int, Field(ge=255, le=65535)] | None = None

    @property
    def has_val(self) -> bool:
        """Whether there is a split that nothing is trained on and that picks the best checkpoint.

        A split `valid` that is trained on is `val`, too.
        """
        if self.val is None or isinstance(self.train, str):
            return self.val is not None
        return alias_of(self.val, self.train) is None

    def entries(self, name: str) -> tuple[str, ...]:
        """What is said of a split: names in the folder, or files; several where splits are trained on together.

        Args:
            name: `train` and `val` stand for the recipe's own entries; anything else is a split or a file itself.
        """
        if name == "train":
            return (self.train,) if isinstance(self.train, str) else self.train
        return (self.val,) if name == "val" and self.val is not None else (name,)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The splits of a run.

    Attributes:
        splits: By name: `train`, `val` where there is one, and what else is evaluated.
        hashes: For each split a hash of its annotations and of the names and lengths of its images.
        evaluated: Name of the split that predictions are made for.
        white: Value that is white in its pictures of 16 bits; None for the full range.
    """

    splits: Mapping[str, CocoDataset]
    hashes: Mapping[str, str]
    evaluated: str
    white: int | None = None

    @property
    def train(self) -> CocoDataset:
        """The split that is trained on."""
        return self.splits["train"]

    @property
    def val(self) -> CocoDataset:
        """The split that picks the best checkpoint; only where there is one."""
        return self.splits["val"]

    @property
    def learned(self) -> dict[str, CocoDataset]:
        """What is trained on, and what picks the best checkpoint if anything does."""
        return {name: self.splits[name] for name in ("train", "val") if name in self.splits}

    @property
    def learned_hashes(self) -> dict[str, str]:
        """Of the same."""
        return {name: self.hashes[name] for name in self.learned}

    @property
    def target(self) -> CocoDataset:
        """The split that is predicted and evaluated."""
        return self.splits[self.evaluated]

    @property
    def learned_hash(self) -> str:
        """Of all of it."""
        return ", ".join(self.learned_hashes.values())


def read_run_data(config: DataConfig, evaluated: str, *, with_masks: bool = False) -> RunData:
    """Read all splits of a run, with their images' headers, and compare them.

    Args:
        config: Where they are, and how strict to be.
        evaluated: `train`, `val`, a split's name, or a COCO file relative to the data set's folder.
        with_masks: What `task: auto` stands for: every annotation needs a mask.

    Raises:
        UsageError: No data set is given, or what is evaluated is trained on.
        DataError: With the findings of all splits, if one of them is an error.
    """
    if config.root is None:
        raise UsageError("no data set is given", hint="Add --data DIR, or data.root in the recipe.")
    if evaluated == "val" and not config.has_val:
        raise UsageError(
            "evaluate.split is `val`, but there is no such split: data.val is null, or is trained on",
            hint="Name another split, such as --set evaluate.split=test, or train on `train` alone.",
        )
    findings: list[Finding] = []
    parts: dict[str, list[CocoDataset]] = {}
    names = tuple(
        name for name in dict.fromkeys(("train", "val", evaluated)) if name != "val" or config.has_val
    )
    chosen: Task = "segmentation" if with_masks else "detection"
    task = chosen if config.task == "auto" else config.task
    layout = _layout(config, names)
    for name in names:
        read = [
            _collecting(findings, _reader(config, name, entry, layout, task))
            for entry in config.entries(name)
        ]
        parts[name] = [dataset for dataset in read if dataset is not None]
    white = config.white or white_of(
        record for part in parts.values() for one in part for record in one.images
    )
    parts = {name: [dataset_with_white(one, white) for one in part] for name, part in parts.items()}
    splits = {name: _together(part, findings) for name, part in parts.items() if part}
    for name, compared in _leaks(config, splits).items():
        splits[name] = replace(splits[name], findings=(*splits[name].findings, *compared))
        findings += compared
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise DataError(f"{config.root}: {summarise(findings)}", findings=findings)
    hashes = {name: _fingerprint_of(part, white) for name, part in parts.items()}
    return RunData(splits=splits, hashes=hashes, evaluated=evaluated, white=white)


def _together(parts: Sequence[CocoDataset], findings: list[Finding]) -> CocoDataset:
    """One data set of those that are trained on together; of those whose categories fit, the others are told."""
    fitting = list(parts[:1])
    for part in parts[1:]:
        differing = [f for f in compare_splits(parts[0], part) if f.code == "split-categories-differ"]
        findings += differing
        fitting += [] if differing else [part]
    return joined(fitting)


def _leaks(config: DataConfig, splits: Mapping[str, CocoDataset]) -> dict[str, tuple[Finding, ...]]:
    """What each split has in common with those before it: what `check` finds, pixels where they are looked at.

    A split that was given twice, under two names, is compared once.
    """
    files = {name: [record.path for record in dataset.images] for name, dataset in splits.items()}
    kept = {n: d for n, d in splits.items() if n in {"train", "val"} or files[n] != files.get("val")}
    if "train" not in kept:
        return {}
    pixels = all(
        look_before_training(dataset, decode=config.decode, skip_invalid=config.skip_invalid).decode
        for dataset in kept.values()
    )
    found = compare_all(kept, pixels=pixels, strict=config.strict)
    pairs = [pair for pair in scene_duplicates(kept) if pair.leaks] if pixels else []
    for name, dataset in kept.items():
        log_of_split = FindingLog(str(dataset.file), Policy(strict=config.strict))
        report_scene_duplicates([pair for pair in pairs if pair.splits[1] == name], log_of_split)
        found[name] += log_of_split.findings
    return found


def locate_split(config: DataConfig, entry: str) -> tuple[Path, Path | None]:
    """Annotations file of a split, and the folder of its images where that is not to be guessed.

    Args:
        config: With a root.
        entry: Of the recipe, see `DataConfig.entries`.

    Raises:
        DataError: There is no such split.
    """
    root = Path(config.root or ".")
    file, images = (_file(root, entry), None) if entry.endswith(".json") else find_split(root, entry)
    return file, root / config.images if config.images is not None else images


def log_run_data(data: RunData) -> None:
    """Say what was understood of the data, and what was found in it."""
    for name, dataset in data.splits.items():
        log.info(
            "%s: %s, %d categories (%s)", name, dataset.counts_text(), len(dataset.categories), dataset.file
        )
    if data.white is not None:
        log.info("%s", range_message(data.white))
    if "val" not in data.splits:
        log.info("no validation split: the weights of the last step are kept, nothing is chosen by its score")
    findings = [finding for dataset in data.splits.values() for finding in dataset.findings]
    tell_warnings(findings, log, rest="all in data.json")


def describe_run_data(data: RunData) -> dict[str, Any]:
    """Content of `data.json`: where the splits came from, their counts and every finding."""
    white = data.white
    return {
        name: _describe(dataset, data.hashes[name]) | ({} if white is None else {"white": white})
        for name, dataset in data.splits.items()
    }


def _file(root: Path, entry: str) -> Path:
    """A file named relative to the data set; a split file may be named relative to the working directory."""
    return Path(entry) if not (root / entry).exists() and Path(entry).is_file() else root / entry


def _layout(config: DataConfig, names: Iterable[str]) -> Layout | None:
    """The format of the data set, told first; None if every split is given as a file."""
    if all(entry.endswith(".json") for name in names for entry in config.entries(name)):
        return None
    layout = detect_format(config.root or ".")
    announce(layout)
    return layout


def _reader(
    config: DataConfig, name: str, entry: str, layout: Layout | None, task: Task
) -> Callable[[], CocoDataset]:
    """A call that reads one split; unusable records are dropped or refused as the recipe says."""
    skip, strict = config.skip_invalid, config.strict
    options = ReadOptions(
        task=task,
        skip_invalid=skip,
        strict=strict,
        require_instances=name == "train",
        require_labels=name in ("train", "val"),  # others may be there to be predicted alone
        count_difficult=config.count_difficult,
    )

    def read() -> CocoDataset:
        if layout is None or layout.is_coco or entry.endswith(".json"):
            file, images = locate_split(config, entry)
            dataset = read_location(Location(file), options, image_root=images)
        else:
            dataset = layout.read(layout.split_named(entry), options)
        look = look_before_training(dataset, decode=config.decode, skip_invalid=skip)
        return usable_images(dataset, decode=look, skip_invalid=skip, strict=strict)

    return read


def _collecting(findings: list[Finding], read: Callable[[], CocoDataset]) -> CocoDataset | None:
    """Read a split and add what was found to the list; None if it cannot be used."""
    try:
        dataset = read()
    except DataError as error:
        findings += error.findings
        return None
    findings += dataset.findings
    return dataset


def _fingerprint_of(parts: Sequence[CocoDataset], white: int | None) -> str:
    """Of a split, or of all that are trained on together."""
    found = [_fingerprint(part, white) for part in parts]
    return found[0] if len(found) == 1 else hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _fingerprint(dataset: CocoDataset, white: int | None) -> str:
    """Hash of the annotations file, of the names and lengths of the images (not their pixels), and of their white."""
    lengths = [[record.file_name, record.path.stat().st_size] for record in dataset.images]
    is_json = dataset.file.suffix == ".json"
    labels = (
        sha256_of(dataset.file) if is_json else json.dumps(dataset.to_coco(), sort_keys=True, default=str)
    )
    ignored = [dataset.num_ignored] if dataset.num_ignored else []
    text = json.dumps([labels, sorted(lengths), *([] if white is None else [white]), *ignored])
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(dataset: CocoDataset, data_hash: str) -> dict[str, Any]:
    return {
        "file": str(dataset.file),
        "images": str(dataset.image_root),
        "hash": data_hash,
        "num_images": len(dataset),
        "num_annotations": dataset.num_annotations,
        "num_objects": dataset.num_objects,
        "num_crowd": dataset.num_crowd,
        "num_ignored": dataset.num_ignored,
        "num_images_without_annotations": sum(not annotations for annotations in dataset.annotations),
        "findings_by_code": dict(Counter(finding.code for finding in dataset.findings)),
        "findings": _plain(dataset.findings),
    }


def _plain(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(
        json.dumps([asdict(finding) for finding in findings], default=str, allow_nan=True),
        parse_constant=str,
    )
    return records

"""Dividing images into splits or folds: every class in its share everywhere, groups never torn apart.

Groups are dealt out one by one, those with the rarest classes first, each to the split that lacks most of what the
group brings; ties go to the split that lacks most images, then to chance (the seed).

Source: Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML 2011; deviation: whole
groups are dealt, and a group's objects count, not only the presence of a class.
G: groups, K: classes, S: splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset, ImageId
from scantling.data.formats.locations import Location, write_split_file
from scantling.data.images.copies import groups_of_copies
from scantling.errors import UsageError

Assignment = dict[str, list[int]]
"""Positions of the images of each split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """How to divide.

    Attributes:
        ratios: Share of each split by name; they are scaled to sum to 1.
        folds: Number of folds instead of ratios.
        group: Regular expression searched in file names; images with equal matches (of the first group in parentheses,
            if there is one) stay together.
        stratify: Give every class its share; else only the number of images counts.
        seed: Of the order in which equal groups are dealt.
    """

    ratios: Mapping[str, float] | None = None
    folds: int | None = None
    group: str | None = None
    stratify: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """What was written.

    Attributes:
        files: Of the splits or folds.
        class_counts: Objects of each class in each split (or fold).
        image_counts: Images of each.
        num_groups: What was dealt out.
        unmatched: File names that the pattern of groups does not match.
        num_copies: Images that show what an earlier one shows, pixel by pixel, and stay with it.
        marked: Crowd regions and ignored objects in each split, which count for no class.
    """

    files: tuple[Path, ...]
    class_counts: Mapping[str, Mapping[str, int]]
    image_counts: Mapping[str, int]
    num_groups: int
    unmatched: int
    num_copies: int = 0
    marked: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def to_text(self) -> str:
        """For people."""
        lines = [
            f"{name}: {count} images, {_listed(self.class_counts[name], self.marked.get(name, (0, 0)))}"
            for name, count in self.image_counts.items()
        ]
        if self.num_copies:
            lines.append(f"{self.num_copies} images are copies of another one, with which they stay")
        if self.unmatched:
            lines.append(f"{self.unmatched} file names do not match --group; each is a group of its own")
        return "\n".join([*lines, *map(str, self.files)])

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "files": [str(file) for file in self.files],
            "images": dict(self.image_counts),
            "objects": {name: dict(counts) for name, counts in self.class_counts.items()},
            "groups": self.num_groups,
            "unmatched": self.unmatched,
            "copies": self.num_copies,
            "crowds": {name: crowds for name, (crowds, _) in self.marked.items()},
            "ignored": {name: ignored for name, (_, ignored) in self.marked.items()},
        }


def split_data(dataset: CocoDataset, data: Location, out: Path, plan: SplitPlan) -> SplitResult:
    """Divide a data set and write split files.

    Args:
        dataset: What is divided.
        data: Where it is, for the split files.
        out: Folder for `NAME.json`, or `foldN-train.json` and `foldN-val.json`.
        plan: How.

    Raises:
        UsageError: The plan cannot work, or one of the files is there already.
    """
    shares = _shares(plan, len(dataset))
    named, unmatched = group_images([record.file_name for record in dataset.images], plan.group)
    copies = groups_of_copies(dataset.images)
    groups = join_groups([*named, *copies], len(dataset))
    if len(groups) < len(shares):
        raise UsageError(f"{len(groups)} groups of images cannot fill {len(shares)} splits")
    assigned = deal(groups, _demand(dataset, stratify=plan.stratify), shares, plan.seed)
    lists = _lists(assigned, plan)
    taken = [str(out / f"{name}.json") for name in lists if (out / f"{name}.json").exists()]
    if taken:
        raise UsageError(f"{taken[0]} is there already", hint="Nothing was changed. Choose another --out.")
    for name, positions in lists.items():
        ids: list[ImageId] = [dataset.images[position].id for position in sorted(positions)]
        write_split_file(out / f"{name}.json", name, data, ids)
    return SplitResult(
        files=tuple(out / f"{name}.json" for name in lists),
        class_counts={name: _objects(dataset, positions) for name, positions in assigned.items()},
        image_counts={name: len(positions) for name, positions in assigned.items()},
        num_groups=len(groups),
        unmatched=unmatched,
        num_copies=sum(len(group) - 1 for group in copies),
        marked={name: _marked(dataset, positions) for name, positions in assigned.items()},
    )


def deal_folds(dataset: CocoDataset, folds: int, seed: int) -> list[list[int]]:
    """Positions of the images of each fold; every image is in exactly one, beside its copies, every class in its share.

    Args:
        dataset: What is divided.
        folds: How many.
        seed: Of the order among equals.

    Raises:
        UsageError: There are fewer different images than folds, or fewer than two folds.
    """
    groups = join_groups(groups_of_copies(dataset.images), len(dataset))
    shares = _shares(SplitPlan(folds=folds), len(dataset))
    if len(groups) < folds:
        raise UsageError(f"{len(groups)} different images cannot fill {folds} folds")
    return list(deal(groups, _demand(dataset, stratify=True), shares, seed).values())


def group_images(names: Sequence[str], pattern: str | None) -> tuple[list[list[int]], int]:
    """Positions of the images of each group, and how many names the pattern does not match.

    Raises:
        UsageError: The pattern is no regular expression.
    """
    if pattern is None:
        return [[position] for position in range(len(names))], 0
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group {pattern!r} is no regular expression: {error}") from error
    groups: dict[str | int, list[int]] = {}
    for position, name in enumerate(names):
        match = expression.search(name)
        key = (match[1] if expression.groups else match[0]) if match else position
        groups.setdefault(key if key is not None else position, []).append(position)
    return list(groups.values()), sum(isinstance(key, int) for key in groups)


def join_groups(groups: Iterable[Sequence[int]], num_images: int) -> list[list[int]]:
    """Groups that share an image made one; every image is in exactly one group, groups in the order of their first.

    Args:
        groups: Lists of image positions, which may overlap; images in none are groups of their own.
        num_images: N.
    """
    first = list(range(num_images))

    def root(position: int) -> int:
        while first[position] != position:
            position = first[position]
        return position

    for group in groups:
        for position in group[1:]:
            low, high = sorted((root(group[0]), root(position)))
            first[high] = low
    joined: dict[int, list[int]] = {}
    for position in range(num_images):
        joined.setdefault(root(position), []).append(position)
    return list(joined.values())


def deal(
    groups: Sequence[Sequence[int]], demand: NDArray[np.float64], shares: Mapping[str, float], seed: int
) -> Assignment:
    """Give every group to a split.

    Args:
        groups: G lists of image positions.
        demand: (N, 1 + K) what each image brings: 1 for itself, then its objects of each class.
        shares: Share of each split; they sum to 1.
        seed: Of the order among equals.

    Returns:
        Positions of each split; every image is in exactly one.
    """
    names = list(shares)
    brings = np.array([demand[list(group)].sum(axis=0) for group in groups])
    lacking = np.outer(list(shares.values()), brings.sum(axis=0))
    rng = np.random.default_rng(seed)
    left = set(range(len(groups)))
    order = rng.permutation(len(groups))
    assigned: Assignment = {name: [] for name in names}
    while left:
        column = _rarest(brings, left)
        candidates = [index for index in order if index in left and brings[index, column] > 0]
        for index in sorted(candidates, key=lambda index: -brings[index, column]):
            split = _neediest(lacking, column, rng)
            assigned[names[split]] += groups[index]
            lacking[split] -= brings[index]
            left.remove(index)
    return assigned


def _rarest(brings: NDArray[np.float64], left: set[int]) -> int:
    """Class with the fewest objects left, or 0 (images) when only images without objects are left."""
    totals = brings[sorted(left)].sum(axis=0)
    classes = [column for column in range(1, len(totals)) if totals[column] > 0]
    return min(classes, key=lambda column: totals[column], default=0)


def _neediest(lacking: NDArray[np.float64], column: int, rng: np.random.Generator) -> int:
    chance = rng.random(len(lacking))
    return max(
        range(len(lacking)), key=lambda split: (lacking[split, column], lacking[split, 0], chance[split])
    )


def _demand(dataset: CocoDataset, *, stratify: bool) -> NDArray[np.float64]:
    table = np.zeros((len(dataset), 1 + len(dataset.categories)))
    table[:, 0] = 1
    for position, objects in enumerate(dataset.annotations):
        for annotation in objects if stratify else ():
            table[position, 1 + annotation.label] += annotation.is_object
    return table


def _shares(plan: SplitPlan, num_images: int) -> dict[str, float]:
    if plan.folds is not None and plan.ratios is not None:
        raise UsageError("give either --ratios or --folds")
    if plan.folds is not None:
        if not 2 <= plan.folds <= max(num_images, 2):
            raise UsageError(f"--folds {plan.folds}: use 2 to {num_images}, the number of images")
        return {f"fold{number}": 1 / plan.folds for number in range(plan.folds)}
    ratios = plan.ratios or {"train": 0.8, "val": 0.2}
    if not all(0 < ratio < float("inf") for ratio in ratios.values()):
        raise UsageError("every ratio must be a number above 0")
    return {name: ratio / sum(ratios.values()) for name, ratio in ratios.items()}


def _lists(assigned: Assignment, plan: SplitPlan) -> Assignment:
    """The files to write: with folds, each fold is validated once by a training on all others."""
    if plan.folds is None:
        return assigned
    lists: Assignment = {}
    for name, positions in assigned.items():
        lists[f"{name}-train"] = [p for other, many in assigned.items() if other != name for p in many]
        lists[f"{name}-val"] = positions
    return lists


def _objects(dataset: CocoDataset, positions: Sequence[int]) -> dict[str, int]:
    counts = dict.fromkeys(dataset.class_names, 0)
    for position in positions:
        for annotation in dataset.annotations[position]:
            counts[dataset.class_names[annotation.label]] += annotation.is_object
    return counts


def _marked(dataset: CocoDataset, positions: Sequence[int]) -> tuple[int, int]:
    """Crowd regions and ignored objects."""
    annotations = [annotation for position in positions for annotation in dataset.annotations[position]]
    return sum(a.is_crowd for a in annotations), sum(a.is_ignored for a in annotations)


def _listed(counts: Mapping[str, int], marked: tuple[int, int]) -> str:
    words = zip(marked, ("crowd regions", "difficult or ignored"), strict=True)
    return ", ".join(
        [*(f"{name} {count}" for name, count in counts.items()), *(f"{n} {what}" for n, what in words if n)]
    )

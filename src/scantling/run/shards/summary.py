"""What came of a prediction in shards, over all machines that have a part in it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from scantling.data.findings import name_some
from scantling.data.io import read_json
from scantling.run.shards.plan import ShardPlan, shard_folder
from scantling.run.shards.stages import SUMMARY, inputs_of, outputs_of
from scantling.run.stage import hash_of, read_record
from scantling.settings.shards import Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """How a prediction in shards stands.

    Attributes:
        shards: Where it is, and which part of it this command did.
        num_shards: Of the whole prediction.
        num_images: Of the whole prediction.
        missing: Indices of shards that are not done, by whichever machine.
        predicted: Images in which objects were looked for.
        unreadable: Images that could not be read.
        objects: Found in all.
        left_out: Objects left out by the name of their category, which the data set does not have.
        failures: Why a shard failed in this command, by its folder.
        bugs: Those of them whose failure is scantling's own.
    """

    shards: Shards
    num_shards: int
    num_images: int
    missing: tuple[int, ...]
    predicted: int
    unreadable: int
    objects: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    bugs: tuple[str, ...] = ()

    @property
    def unfinished(self) -> tuple[int, ...]:
        """Indices of the missing shards that are this part's."""
        return tuple(index for index in self.missing if index in self.shards.part.of(self.num_shards))

    def to_text(self) -> str:
        """For people: how much was found, what is missing, and the command that goes on."""
        out, done = self.shards.folder, self.num_shards - len(self.missing)
        lost = f", {self.unreadable} could not be read" if self.unreadable else ""
        less = ", ".join(f"{count} {name}" for name, count in self.left_out.items())
        others = f"; left out, as the data set has no such categories: {less}" if less else ""
        told = f"{self.objects} objects in {self.predicted} images{lost}; {done} of {self.num_shards} shards{others}"
        if self.unreadable:
            told = f"{told}\nto look again at what could not be read: {self.shards.command} --retry-unread"
        if not self.missing:
            return f"{told}\nall in one file: scantling merge {shlex.quote(str(out))} --out FILE.json"
        if not self.unfinished:
            return f"{told}\npart {self.shards.part} is done; others are not: {_some(self.missing)}"
        return f"{told}\nmissing: {_some(self.unfinished)}; to go on: {self.shards.command}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "out": str(self.shards.folder),
            "num_shards": self.num_shards,
            "num_images": self.num_images,
            "num_predicted": self.predicted,
            "num_unusable": self.unreadable,
            "num_results": self.objects,
            "left_out": dict(self.left_out),
            "missing": [shard_folder(index) for index in self.missing],
            "failures": dict(self.failures),
        }


def summary_of(
    shards: Shards, plan: ShardPlan, failures: Mapping[str, str] | None = None, bugs: Sequence[str] = ()
) -> ShardSummary:
    """Add up the shards that are done, one at a time.

    Args:
        shards: Where they are.
        plan: Of them.
        failures: Why shards failed just now.
        bugs: Those of them that are scantling's own failures.
    """
    counts, left_out, missing = Counter[str](), Counter[str](), list[int]()
    for index in range(plan.num_shards):
        if not is_recorded(shards.folder, plan, index):
            missing.append(index)
            continue
        summary = cast("dict[str, Any]", read_json(shards.folder / shard_folder(index) / SUMMARY))
        counts.update({name: summary[name] for name in ("predicted", "unreadable", "objects")})
        left_out.update(summary["left_out"])
    return ShardSummary(
        shards=shards,
        num_shards=plan.num_shards,
        num_images=plan.num_images,
        missing=tuple(missing),
        predicted=counts["predicted"],
        unreadable=counts["unreadable"],
        objects=counts["objects"],
        left_out=dict(left_out),
        failures=dict(failures or {}),
        bugs=tuple(bugs),
    )


def is_recorded(root: Path, plan: ShardPlan, index: int) -> bool:
    """Whether a shard was done as planned and its files are there; whether they are whole, reading them says."""
    folder = shard_folder(index)
    step = read_record(root / folder).get(folder)
    if step is None or not step["outputs"] or step["inputs_sha256"] != hash_of(inputs_of(plan, root, index)):
        return False
    return all((root / name).is_file() for name in outputs_of(index))


def named(indices: Sequence[int]) -> Iterator[str]:
    """Shards as they are called in messages."""
    return (f"{index:05d}" for index in indices)


def _some(indices: Sequence[int]) -> str:
    return name_some(list(named(indices)))

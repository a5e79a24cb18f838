"""What every stage of a run may look at, the parts that are trained, and where their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from scantling.data.coco import CocoDataset
from scantling.data.splits import RunData
from scantling.data.splitting import deal_folds
from scantling.recipe.recipe import MemberConfig, Recipe
from scantling.train.devices import ALONE, Processes
from scantling.train.keeper import BEST_NAME

PREDICTIONS = "predictions.json"
OUT_OF_FOLD = "out-of-fold.json"
HELD_OUT = "held-out"


class Fold(NamedTuple):
    """One way to train and hold out.

    Attributes:
        train: The images to train on.
        held_out: The other images, on which the best weights are chosen and which are predicted.
        positions: (I,) position of each held-out image in the training split.
    """

    train: CocoDataset
    held_out: CocoDataset
    positions: NDArray[np.int64]


class TrainingJob(NamedTuple):
    """What is trained once: a member, or a member on one fold."""

    member: str
    fold: int | None = None

    @property
    def folder(self) -> str:
        """Folder of its files, relative to the run folder."""
        return f"members/{self.member}" + ("" if self.fold is None else f"/fold-{self.fold}")

    @property
    def title(self) -> str:
        """For the log."""
        return self.member + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def weights(self) -> str:
        """Its best checkpoint, relative to the run folder."""
        return f"{self.folder}/{BEST_NAME}"

    def masks(self, split: str) -> str:
        """File of the masks of what is kept of a split's candidates, relative to the run folder."""
        return f"{self.folder}/masks-{split.replace('/', '-')}.safetensors"

    def score_maps(self, split: str) -> str:
        """File of a segmenter's score maps of a split, relative to the run folder."""
        return f"{self.folder}/maps-{split.replace('/', '-')}.safetensors"

    def candidates(self, split: str) -> str:
        """File of what it sees in a split, relative to the run folder."""
        return f"{self.folder}/candidates-{split.replace('/', '-')}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where stages are done, whatever they are: what `run/engines` has to know.

    Attributes:
        root: The folder that the stages' files are relative to.
        device: The device that models compute on.
        devices: The devices that stages done side by side may use, `device` among them.
        console: The terminal on which progress is shown.
        processes: The group of processes that do the work together (`torchrun`), and this one's place in it.
    """

    root: Path
    device: torch.device
    devices: tuple[torch.device, ...] = ()
    console: Console
    processes: Processes = ALONE

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which has a console of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "console"}

    def only(self, title: str) -> Self:  # noqa: ARG002 - whichever
        """As much of it as one stage needs to be listed."""
        return self


@dataclass(frozen=True, kw_only=True)
class RunContext(Workplace):
    """What every stage of a run may look at.

    Attributes:
        recipe: The run's recipe, with a value for every `auto`.
        data: All splits of the data set, checked.
    """

    recipe: Recipe
    data: RunData

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """The folds of the training split; none where the recipe asks for none."""
        number = self.recipe.data.folds
        if number is None:
            return ()
        train, everything = self.data.train, np.arange(len(self.data.train))
        held = [np.sort(np.array(part)) for part in deal_folds(train, number, self.recipe.seed)]
        return tuple(
            Fold(
                train=_part(train, np.setdiff1d(everything, positions)),
                held_out=_part(train, positions),
                positions=positions,
            )
            for positions in held
        )

    def member(self, name: str) -> MemberConfig:
        """Settings of a member."""
        return self.recipe.members[name]

    def relative(self, path: Path) -> str:
        """A file as stages name it: relative to the run folder, or by its full path where it lies elsewhere."""
        path, root = path.absolute(), self.root.absolute()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def units_of(self, name: str) -> list[TrainingJob]:
        """What has to be trained for a member; nothing for a file of another tool."""
        if not self.member(name).is_trained:
            return []
        return (
            [TrainingJob(name, fold) for fold in range(len(self.folds))]
            if self.folds
            else [TrainingJob(name)]
        )

    def units(self) -> Iterator[TrainingJob]:
        """What has to be trained, member by member."""
        for name in self.recipe.members:
            yield from self.units_of(name)

    def splits_of(self, unit: TrainingJob) -> dict[str, CocoDataset]:
        """What a unit predicts: the evaluated split, what its member is tuned on, and what refining is judged on."""
        wanted = {self.data.evaluated: self.data.target}
        if unit.fold is not None:
            wanted[HELD_OUT] = self.folds[unit.fold].held_out
        tunes_on_val = self.recipe.combining.tune is not None and unit.fold is None
        if tunes_on_val or self.recipe.gates_refinement:
            wanted["val"] = self.data.val
        return wanted

    def train_and_held_out(self, unit: TrainingJob) -> tuple[CocoDataset, CocoDataset | None]:
        """The images a unit learns from, and those that pick its best weights; None where there are none for that."""
        if unit.fold is None:
            return self.data.train, self.data.splits.get("val")
        fold = self.folds[unit.fold]
        return fold.train, fold.held_out

    @property
    def tuning_split(self) -> str:
        """Name of the detections that thresholds and weights are chosen on."""
        return HELD_OUT if self.folds else "val"

    @property
    def tuning_data(self) -> CocoDataset:
        """The truth that thresholds and weights are chosen on: the training split with folds, else `val`."""
        return self.data.train if self.folds else self.data.val

    def maps_file(self, name: str, split: str) -> str:
        """File of a semantic member's score maps of a split, relative to the run folder."""
        return TrainingJob(name).score_maps(split)

    def detections_file(self, name: str, split: str) -> str:
        """Results file of a member on a split, relative to the run folder."""
        if split == self.data.evaluated:
            return f"members/{name}/{PREDICTIONS}"
        return f"members/{name}/{OUT_OF_FOLD if split == HELD_OUT else f'predictions-{split}.json'}"


def seed_of(seed: int, purpose: str) -> int:
    """Seed for one purpose: the same whatever else happens."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _part(dataset: CocoDataset, positions: NDArray[np.int64]) -> CocoDataset:
    return dataset.subset(dataset.images[position].id for position in positions)

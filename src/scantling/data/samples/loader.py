"""Samples -> batches: which images form which step, and the processes that prepare them.

    (seed, epoch) ── epoch_order ──► entries ── batched ──► global batches ── shard ──► this process's batches
                                                                                 │ TaskStream (0..n workers)
                                                                                 ▼
                                                                               Batch

The plan of an epoch is plain data made before anything is read: resuming at a step skips entries without touching
files, and the number of workers cannot matter.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Generic, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from scantling.data.coco import ImageId
from scantling.data.samples.dataset import DetectionDataset, draw_key
from scantling.data.samples.sampling import Sampler, SamplingConfig, labels_of
from scantling.data.workers import TaskStream
from scantling.errors import DataError
from scantling.settings.fields import Count
from scantling.structures.sample import Batch

log = logging.getLogger(__name__)

Plan = TypeVar("Plan")
Made = TypeVar("Made")
Index = Annotated[int, Field(strict=True, ge=0)]


class LoaderConfig(BaseModel):
    """How an epoch is cut into batches.

    Attributes:
        batch_size: Images per step in each process.
        repeats: Passes over the images that make one epoch, each with its own augmentations.
        sampling: How often each image is shown in a pass.
        workers: Processes that read and augment; 0 does it in the training process.
        size_divisor: Batches are padded to a multiple of this.
        rank: Number of this process.
        world: Number of training processes.
        drop_last: Leave out an incomplete last batch.
        group_aspect: Put upright and wide images into separate batches, which saves padding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Count = 2
    repeats: Count = 1
    sampling: SamplingConfig = SamplingConfig()
    workers: Index = 0
    size_divisor: Count = 32
    rank: Index = 0
    world: Count = 1
    drop_last: StrictBool = False
    group_aspect: StrictBool = False

    @model_validator(mode="after")
    def _rank_in_world(self) -> Self:
        if self.rank >= self.world:
            raise ValueError(f"rank {self.rank} does not exist among {self.world} processes")
        return self


class EpochImage(NamedTuple):
    """One image in an epoch: its position in the data set, and how often it has been shown in the epoch before."""

    position: int
    repeat: int


class BatchPlan(NamedTuple):
    """What a worker needs to know to build one batch.

    Attributes:
        epoch: Counted from 0.
        entries: Its images.
        is_padding: They are another process's, repeated so that this one is not idle.
    """

    epoch: int
    entries: tuple[EpochImage, ...]
    is_padding: bool = False


def epoch_order(
    image_ids: Sequence[ImageId], *, seed: int, epoch: int, repeats: int = 1, sampler: Sampler | None = None
) -> list[EpochImage]:
    """The order of an epoch: every pass in an order of its own, the same for any order of the records.

    Args:
        image_ids: Ids in record order; must be distinct.
        seed: Of the run.
        epoch: Counted from 0.
        repeats: Number of passes, one after another.
        sampler: How often each image is shown in a pass; None shows each once.
    """
    order: list[EpochImage] = []
    shown = [0] * len(image_ids)
    for repeat in range(repeats):
        keyed: list[tuple[bytes, EpochImage]] = []
        for position, times in enumerate(sampler.times(epoch, repeat) if sampler else [1] * len(shown)):
            for number in range(shown[position], shown[position] + times):
                key = draw_key(seed, epoch, image_ids[position], f"order {number}")
                keyed.append((key, EpochImage(position, number)))
            shown[position] += times
        order.extend(entry for _, entry in sorted(keyed))
    return order


def batched(
    entries: Sequence[EpochImage], size: int, *, groups: Sequence[bool], drop_last: bool
) -> list[list[EpochImage]]:
    """Cut entries into batches whose members belong to one group.

    Args:
        entries: In order.
        size: Entries per batch.
        groups: Group of each image, by position.
        drop_last: Leave out an incomplete batch at the end.

    Returns:
        Batches in the order in which they fill up. What is left of all groups at the end goes together, so the
        number of batches is the same as without groups.
    """
    open_batches: dict[bool, list[EpochImage]] = {}
    full: list[list[EpochImage]] = []
    for entry in entries:
        batch = open_batches.setdefault(groups[entry.position], [])
        batch.append(entry)
        if len(batch) == size:
            full.append(open_batches.pop(groups[entry.position]))
    rest = [entry for batch in open_batches.values() for entry in batch]
    ends = [rest[start : start + size] for start in range(0, len(rest), size)]
    return full + [end for end in ends if len(end) == size or not drop_last]


def shard(
    batch: Sequence[EpochImage], padding: Sequence[EpochImage], *, rank: int, world: int
) -> list[EpochImage]:
    """One process's part of a global batch.

    Args:
        batch: At least one entry; parts differ in length by one at most, the first processes get the longer ones.
        padding: Entries that fill up a batch shorter than the number of processes, so that none is idle.
        rank: Number of the process.
        world: Number of processes.
    """
    filled = list(batch)
    while len(filled) < world:
        filled.extend(padding[: world - len(filled)])
    length, longer = divmod(len(filled), world)
    start = rank * length + min(rank, longer)
    return filled[start : start + length + (rank < longer)]


@dataclass(frozen=True, slots=True)
class _BuildBatch:
    """Step -> Batch, in whatever process."""

    dataset: DetectionDataset
    size_divisor: int

    def __call__(self, step: BatchPlan) -> Batch:
        samples = [self.dataset.get(entry.position, step.epoch, entry.repeat) for entry in step.entries]
        batch = Batch.collate(samples, size_divisor=self.size_divisor)
        return replace(batch, is_padding=step.is_padding, left_out=tuple(self.dataset.left_out.items()))


class PlannedBatches(ABC, Generic[Plan, Made]):
    """Batches of epochs that are planned before anything is read; what detectors, refiners and pretraining learn from.

    Args:
        stream: Makes a batch of each step of a plan.
    """

    def __init__(self, stream: TaskStream[Plan, Made]) -> None:
        self._stream = stream

    @abstractmethod
    def plan(self, epoch: int) -> list[Plan]:
        """The batches of this process in an epoch, as entries."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Made]:
        """Batches of an epoch from a step on.

        Args:
            epoch: Counted from 0.
            start_step: Steps already done; they are skipped without reading anything.

        Raises:
            DataError: An image cannot be read.
            TrainingError: A worker died.
        """
        return self._stream.run(self.plan(epoch)[start_step:])

    def close(self) -> None:
        """End the workers, if any."""
        self._stream.close()


class TrainLoader(PlannedBatches[BatchPlan, Batch]):
    """Augmented batches, epoch by epoch.

    Args:
        dataset: With at least one image. Those that turn out to be unreadable while `skip_invalid` is set are told,
            and counted in `left_out`.
        config: Batch size, passes, workers, processes.

    Raises:
        DataError: There is no image, or fewer than one batch when incomplete ones are dropped.
    """

    def __init__(self, dataset: DetectionDataset, config: LoaderConfig) -> None:
        self.dataset = dataset
        self.config = config
        self._ids = [record.id for record in dataset.coco.images]
        wide = [record.size_hw[1] >= record.size_hw[0] for record in dataset.coco.images]
        self.sampler = Sampler(config.sampling, self._ids, labels_of(dataset.coco), seed=dataset.seed)
        self.left_out: dict[str, str] = {}
        self._groups = wide if config.group_aspect else [False] * len(wide)
        super().__init__(TaskStream(_BuildBatch(dataset, config.size_divisor), config.workers))
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{dataset.coco.file}: {len(dataset)} images make no batch of {self._global_size}",
                hint="Add images, or use a smaller batch size.",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that each process gets per epoch."""
        full, rest = divmod(self.sampler.length * self.config.repeats, self._global_size)
        return full + (rest > 0 and not self.config.drop_last)

    def plan(self, epoch: int) -> list[BatchPlan]:
        """The batches of this process in an epoch, as entries."""
        config = self.config
        order = epoch_order(
            self._ids, seed=self.dataset.seed, epoch=epoch, repeats=config.repeats, sampler=self.sampler
        )
        batches = batched(order, self._global_size, groups=self._groups, drop_last=config.drop_last)
        return [
            BatchPlan(
                epoch,
                tuple(shard(batch, order, rank=config.rank, world=config.world)),
                is_padding=config.rank >= len(batch),
            )
            for batch in batches
        ]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on; see `PlannedBatches`."""
        for batch in super().epoch(epoch, start_step):
            for name, reason in batch.left_out:
                if name not in self.left_out:
                    self.left_out[name] = reason
                    count = f"{len(self.left_out)} of {len(self._ids)} images"
                    log.warning("%s; another image takes its place (%s so far)", reason, count)
            yield batch

    @property
    def _global_size(self) -> int:
        return self.config.batch_size * self.config.world


def aspect_order(sizes_hw: Sequence[tuple[int, int]]) -> list[int]:
    """Positions of the sizes from widest to tallest, equal aspects in the order given."""
    return sorted(range(len(sizes_hw)), key=lambda position: sizes_hw[position][0] / sizes_hw[position][1])

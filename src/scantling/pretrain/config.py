"""Settings of a pretraining, and what `auto` means: each choice from the crops and the machine, with its reason.

Published (He et al. 2020, Chen et al. 2020): 1.28 million images, 200 epochs of 256, queue 65,536, learning rate 0.03,
momentum 0.999. What few crops change:

* Batch: at most an eighth of the crops, so that an epoch has several steps; the learning rate follows it (0.03 per
  256, Goyal et al. 2017).
* Queue: at most half of the crops. A longer one holds keys of crops that this very epoch has shown already.
* Epochs: the published 200, more for fewer crops (with the square root, through 200 at the 133,245 crops of
  DelftBikes), at most 800; on a CPU as many as show 60,000 crops in all, which takes minutes, not days.
* Optimiser: SGD as published; AdamW on a CPU, where only some hundred steps are affordable, in which SGD hardly leaves
  its start (`bench/README.md`, pretraining_gain.py).
* Momentum: the key encoder averages over 1 / (1 - m) steps. That is 1000 as published where training has at least
  50,000 steps, and else a fiftieth of the steps, so that the keys can follow at all.
* Side: 224 on a GPU. On a CPU the usual crop's side, 64 at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from scantling.data.formats.delftbikes import TARGETS, State
from scantling.errors import ConfigError
from scantling.pretrain.crops import CropFileConfig
from scantling.pretrain.moco import Auto, MocoConfig
from scantling.pretrain.views import PUBLISHED_SIDE, ViewConfig
from scantling.settings.auto import Choice, resolved
from scantling.settings.fields import Fraction
from scantling.train.config import Count, TrainConfig

PUBLISHED_CROPS, PUBLISHED_EPOCHS, MAX_EPOCHS = 133_245, 200, 800
PUBLISHED_BATCH, CPU_BATCH, MIN_STEPS_PER_EPOCH = 256, 64, 8
PUBLISHED_LR, PUBLISHED_QUEUE = 0.03, 65_536
ADAMW_LR = 1e-3
CPU_CROPS_SHOWN = 60_000
LONGEST_MEMORY, MEMORIES_PER_TRAINING = 1000, 50
CPU_SIDE, SIDE_STEP, SMALLEST_SIDE = 64, 32, 32
MAX_WORKERS = 8


class PretrainConfig(MocoConfig):
    """Every setting of a pretraining; those of the network and the contrast are MoCo's.

    Attributes:
        method: Only `moco_v2`.
        splits: Splits whose crops are learned from; of an own folder without splits all images are.
        source: `objects` cuts out every labelled object, `images` takes whole images, `random` random parts of
            them; `auto` is `objects` for a labelled data set and `images` for a folder of images.
        random_per_image: Parts of each image with `source: random`.
        states: DelftBikes parts in these states are cut out.
        skip_invalid: Leave out faulty annotations and images, counted, instead of stopping. Like `strict` it is
            for data that are read for the pretraining; a run that has read its data has its own.
        strict: Stop at warnings about the data, too.
        crops: How objects are cut out.
        augment: How views differ from their crop.
        side: Side of the views in pixels.
        epochs: Passes over the crops.
        batch_size: Crops per step and process.
        total_batch: Crops per step over all processes, what a learning rate is chosen for; `batch_size` is then each
            process's share. null: `batch_size` on every process, whatever their number.
        optimizer: `sgd` as published, or `adamw`; `auto` is `sgd` wherever a learning rate is given.
        lr: Learning rate at the start of the cosine.
        weight_decay: Of either; AdamW's is decoupled, and multiplied by the learning rate.
        warmup_steps: Steps over which the learning rate rises; the published schedule has none.
        precision: Number format of the forward pass.
        workers: Processes that make views; never changes the result.
        checkpoint_every: Steps between saves.
        log_every: Steps averaged into one entry of the history.
        knn_every: Epochs between measurements of the k-NN accuracy.
        neighbours: k, fewer where there are fewer crops.
        held_out: Share of the images whose crops are asked about, by the crops of the others.
        learn_held_out: Train on the held-out images, too. Their categories are not used, but to measure what
            pretraining gives on images it has never seen this must be off.
        max_judged: Most crops in the k-NN measurement.
    """

    method: Literal["moco_v2"] = "moco_v2"
    splits: Annotated[tuple[str, ...], Field(min_length=1)] = ("train", "val")
    source: Literal["auto", "objects", "images", "random"] = "auto"
    random_per_image: Count = 4
    states: tuple[State, ...] = TARGETS
    skip_invalid: bool = False
    strict: bool = False
    crops: CropFileConfig = CropFileConfig()
    augment: ViewConfig = ViewConfig()
    side: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] | Auto = "auto"
    epochs: Count | Auto = "auto"
    batch_size: Annotated[int, Field(ge=2, le=65_536)] | Auto = "auto"
    total_batch: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    lr: Annotated[float, Field(gt=0, le=100)] | Auto = "auto"
    weight_decay: Fraction = 1e-4
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: Annotated[int, Field(ge=0, le=256)] | Auto = "auto"
    checkpoint_every: Count = 500
    log_every: Count = 10
    knn_every: Count | Auto = "auto"
    neighbours: Count = 20
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    learn_held_out: bool = True
    max_judged: Annotated[int, Field(ge=2)] = 20_000

    def train_config(self) -> TrainConfig:
        """What the training loop needs; all `auto` must be decided.

        The published optimiser decays every parameter, norms and biases too.
        """
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            workers=self.workers,
            precision=self.precision,
            clip_norm=None,
            optimizer="adamw" if self.optimizer == "adamw" else "sgd",
            lr=resolved(self.lr),
            momentum=0.9,
            weight_decay=self.weight_decay,
            norm_decay=True,
            schedule="cosine",
            warmup_steps=self.warmup_steps,
            monitor="queue_accuracy",
            validate_every=int(resolved(self.knn_every)),
            checkpoint_every=self.checkpoint_every,
            log_every=self.log_every,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CropFacts:
    """What the rules look at.

    Attributes:
        num_crops: Crops to learn from.
        usual_side: Median over the crops of the side of a square of the same area, pixels.
        device: `cpu`, `cuda` or `mps`.
        cpu_count: Processor cores for each process.
        processes: How many train together.
    """

    num_crops: int
    usual_side: float
    device: str
    cpu_count: int
    processes: int = 1


class ResolvedPretraining(NamedTuple):
    """Settings without `auto`, and a sentence for every choice made."""

    config: PretrainConfig
    reasons: tuple[str, ...]


def resolve_auto(config: PretrainConfig, facts: CropFacts) -> ResolvedPretraining:
    """Replace every `auto` by a value; `source` is decided where the data are read.

    Args:
        config: As the user wrote it.
        facts: About its crops and the machine.

    Raises:
        ConfigError: The queue is to be longer than there are crops, or the processes cannot share `total_batch`.
    """
    reasons = []
    for key, rule in RULES.items():
        if getattr(config, key) == "auto":
            choice = rule(config, facts)
            reasons.append(f"pretrain.{key} = {choice.value}: {choice.reason}")
            config = PretrainConfig.model_validate({**config.model_dump(), key: choice.value})
    in_step = int(resolved(config.batch_size)) * facts.processes
    if config.total_batch is not None and in_step != config.total_batch:
        raise ConfigError(
            f"total_batch is {config.total_batch}, but {facts.processes} processes of batch_size "
            f"{config.batch_size} make steps of {in_step} crops",
            hint="Leave batch_size at auto, and let the number of processes divide total_batch.",
        )
    if facts.processes > 1 and config.total_batch is None:
        reasons.append(
            f"pretrain: a step is {in_step} crops of {facts.processes} processes; lr is {config.lr}"
        )
    if resolved(config.queue) > facts.num_crops:
        raise ConfigError(
            f"queue is {config.queue}, but there are only {facts.num_crops} crops",
            hint="Leave it at auto, or give at most half of the crops.",
        )
    return ResolvedPretraining(config, tuple(reasons))


def _side(config: PretrainConfig, facts: CropFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    if facts.device != "cpu":
        return Choice(PUBLISHED_SIDE, "as published")
    side = min(CPU_SIDE, max(SMALLEST_SIDE, round(facts.usual_side / SIDE_STEP) * SIDE_STEP))
    return Choice(side, f"crops are {facts.usual_side:.0f} px; a CPU takes up to {CPU_SIDE}")


def _batch_size(config: PretrainConfig, facts: CropFacts) -> Choice:
    if config.total_batch is not None:
        size = max(2, config.total_batch // facts.processes)
        return Choice(size, f"{config.total_batch} crops a step over {facts.processes} process(es)")
    largest = CPU_BATCH if facts.device == "cpu" else PUBLISHED_BATCH // facts.processes
    size = max(2, min(largest, facts.num_crops // (MIN_STEPS_PER_EPOCH * facts.processes)))
    return Choice(size, f"{largest} at most, and {MIN_STEPS_PER_EPOCH} steps in an epoch if there are crops")


def _epochs(config: PretrainConfig, facts: CropFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    if facts.device == "cpu":
        epochs = min(MAX_EPOCHS, max(1, round(CPU_CROPS_SHOWN / facts.num_crops)))
        return Choice(epochs, f"shows {CPU_CROPS_SHOWN} crops, which a CPU does in minutes")
    wanted = PUBLISHED_EPOCHS * math.sqrt(PUBLISHED_CROPS / facts.num_crops)
    epochs = round(min(MAX_EPOCHS, max(PUBLISHED_EPOCHS, wanted)))
    return Choice(epochs, f"{PUBLISHED_EPOCHS} as published, more for {facts.num_crops} crops")


def _queue(config: PretrainConfig, facts: CropFacts) -> Choice:
    batch = int(resolved(config.batch_size)) * facts.processes
    length = min(PUBLISHED_QUEUE, facts.num_crops // 2)
    length = max(batch, length // batch * batch)
    return Choice(min(length, facts.num_crops), f"whole batches, at most half of the {facts.num_crops} crops")


def _optimizer(config: PretrainConfig, facts: CropFacts) -> Choice:
    if config.lr != "auto":
        return Choice("sgd", "the published one, for the learning rate that was given")
    if facts.device == "cpu":
        return Choice("adamw", "in the steps that a CPU affords SGD hardly leaves its start")
    return Choice("sgd", "as published")


def _lr(config: PretrainConfig, facts: CropFacts) -> Choice:
    if config.optimizer == "adamw":
        return Choice(ADAMW_LR, "for AdamW")
    batch = int(resolved(config.batch_size)) * facts.processes
    rate = float(f"{PUBLISHED_LR * batch / PUBLISHED_BATCH:.4g}")
    return Choice(rate, f"{PUBLISHED_LR} per {PUBLISHED_BATCH} crops")


def _momentum(config: PretrainConfig, facts: CropFacts) -> Choice:
    batch = int(resolved(config.batch_size)) * facts.processes
    steps = int(resolved(config.epochs)) * (facts.num_crops // batch)
    memory = min(LONGEST_MEMORY, max(10, steps // MEMORIES_PER_TRAINING))
    return Choice(round(1 - 1 / memory, 4), f"the key encoder remembers {memory} of {steps} steps")


def _knn_every(config: PretrainConfig, facts: CropFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    return Choice(max(1, int(resolved(config.epochs)) // 10), "ten times in all")


def _workers(config: PretrainConfig, facts: CropFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    if facts.device == "cpu":
        return Choice(0, "the processor is busy training")
    workers = min(MAX_WORKERS, max(1, facts.cpu_count - 1))
    return Choice(workers, f"{facts.cpu_count} cores feed the {facts.device}")


RULES: Mapping[str, Callable[[PretrainConfig, CropFacts], Choice]] = {
    "side": _side,
    "batch_size": _batch_size,
    "epochs": _epochs,
    "queue": _queue,
    "optimizer": _optimizer,
    "lr": _lr,
    "momentum": _momentum,
    "knn_every": _knn_every,
    "workers": _workers,
}
"""Setting -> rule, in the order in which they are decided: later rules look at earlier choices."""

"""Training a refiner from labelled boxes alone.

train boxes ── CropLoader ──► CropBatch ── Refiner.losses ──► the one training loop (`train/loop.py`)
val boxes ── fixed jitter ── refine ──► mean IoU: decides what is best, the learning rate, and when to stop
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch import nn

from scantling.data.coco import CocoDataset
from scantling.data.samples.loader import LoaderConfig
from scantling.errors import DataError
from scantling.refine.apply import KIND, ApplyConfig
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.refine.training_data import CropConfig, CropLoader, CropMaker, LabelledBoxes
from scantling.refine.validation import JitteredBoxes, jittered_boxes, measure_undoing
from scantling.settings.fields import Fraction
from scantling.train.checkpoint import CheckpointMeta
from scantling.train.config import Auto, Count, TrainConfig
from scantling.train.devices import Processes, join_processes, resolve_device
from scantling.train.loop import FitResult, RunInfo, fit, resumable

log = logging.getLogger(__name__)

EPOCHS = 90
"""As published: "until loss did not stop decrease, which took approx 70-90 epochs"."""
MIN_CROPS = 1024
"""Crops per epoch that a small data set is repeated to: fewer would be over before a validation means anything."""
CPU_BATCH, GPU_BATCH = 16, 32
MAX_WORKERS = 8


class RefinerTrainConfig(TrainConfig):
    """`TrainConfig` with a refiner's defaults, as published: AdaDelta at rate 1, halved on a plateau of 2 epochs.

    What `auto` means here: `epochs` 90 (early stopping ends most runs sooner); `batch_size` 16 on a CPU, 32 on a GPU;
    `repeats` so that an epoch has at least 1024 crops; `workers` 0 on a CPU, on a GPU 8 shared by the processes of the
    machine. The batch size counts crops.

    Beyond the paper: gradients are clipped (`clip_norm`), and "no longer improves" is said of the IoU of jittered
    validation boxes, which is what refining is for, instead of the loss.
    """

    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Auto = "auto"
    repeats: Count | Auto = "auto"
    optimizer: Literal["sgd", "adamw", "adadelta"] = "adadelta"
    lr: Annotated[float, Field(gt=0, le=100)] = 1.0
    weight_decay: Fraction = 0.0
    schedule: Literal["step", "cosine", "plateau", "constant"] = "plateau"
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.5
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    monitor: str = "iou"
    early_stopping: Count | None = 8


class RefineConfig(BaseModel):
    """Everything about a refiner: what it is, what it sees in training, how it is trained, how it is applied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: RefinerConfig = RefinerConfig()
    crops: CropConfig = CropConfig()
    train: RefinerTrainConfig = RefinerTrainConfig()
    apply: ApplyConfig = ApplyConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinerRun:
    """The circumstances of one training.

    Attributes:
        out: Folder for checkpoints and history; a training begun there goes on.
        seed: Of all randomness.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: Start over.
        data_hash: Of the training data and of what is judged by.
        console: Where progress is shown; None means standard error.
    """

    out: Path
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False
    data_hash: str = ""
    console: Console | None = None


def train_refiner(train: CocoDataset, val: CocoDataset, config: RefineConfig, run: RefinerRun) -> FitResult:
    """Train until validation boxes come back no better.

    Args:
        train: Boxes to learn from.
        val: Boxes to judge by; categories are matched by name.
        config: May hold `auto`.
        run: Where and how reproducibly.

    Returns:
        Paths of the checkpoints (kind `refiner`), history, and the validation's metrics of the best.

    Raises:
        DataError: There is no usable box in one of the sets, or an image cannot be read.
        ScantlingError: As for `fit`.
    """
    device = resolve_device(run.device)
    processes = join_processes(device)
    labelled = LabelledBoxes(train, config.model.min_side)
    judged = jittered_boxes(LabelledBoxes(val, config.model.min_side))
    _require_boxes(judged)
    config = resolve_training(config, labelled, device, processes)
    log_boxes(labelled)
    begun = processes.from_main(resumable(run.out)) and not run.overwrite
    loader = _loader(labelled, config, run.seed, processes)
    info = RunInfo(
        seed=run.seed,
        meta=refiner_meta(config, train, run.data_hash),
        device=str(device),
        resume=begun,
        overwrite=run.overwrite,
        validate=_Validation(judged, config.apply),
        console=run.console,
    )
    try:
        refiner = initial_refiner(config.model, train.class_names, run.seed)
        return fit(refiner, loader, config.train, out=run.out, run=info)
    finally:
        loader.close()


def resolve_training(
    config: RefineConfig, labelled: LabelledBoxes, device: torch.device, processes: Processes
) -> RefineConfig:
    """The configuration without `auto`; see `RefinerTrainConfig`.

    Raises:
        ConfigError: The processes together cannot make steps of `total_batch` crops.
    """
    train = config.train
    pool = labelled.num_boxes if config.crops.all_boxes else sum(len(u.boxes) > 0 for u in labelled.usable)
    on_gpu = device.type != "cpu"
    choices = {
        "epochs": EPOCHS,
        "repeats": max(1, math.ceil(MIN_CROPS / max(1, pool))),
        "batch_size": GPU_BATCH if on_gpu else CPU_BATCH,
        "workers": MAX_WORKERS // processes.on_machine or 1 if on_gpu else 0,
    }
    if not math.isclose(sum(config.crops.padding) / 2, config.model.padding):
        log.warning(
            "refiner: crops.padding %s has the mean %g, but boxes are refined with model.padding %g: set both",
            list(config.crops.padding),
            sum(config.crops.padding) / 2,
            config.model.padding,
        )
    chosen = {name: value for name, value in choices.items() if getattr(train, name) == "auto"}
    if chosen:
        log.info("refiner: %s", ", ".join(f"{name} {value}" for name, value in chosen.items()))
    resolved = train.model_copy(update=chosen)
    resolved.batches_per_step(processes.world)  # refuses what does not go into whole batches
    return config.model_copy(update={"train": resolved})


def initial_refiner(config: RefinerConfig, class_names: tuple[str, ...], seed: int) -> Refiner:
    """A refiner before training; its random weights depend on the seed only."""
    digest = hashlib.sha256(f"{seed} refiner weights".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return Refiner(config, class_names)


def refiner_meta(config: RefineConfig, train: CocoDataset, data_hash: str) -> CheckpointMeta:
    """What a refiner's checkpoints say about themselves."""
    parts = (config.crops, config.apply)  # validation refines as it is applied
    text = "".join(part.model_dump_json() for part in parts)
    return CheckpointMeta(
        kind=KIND,
        class_names=train.class_names,
        category_ids=train.category_ids,
        model=config.model.model_dump(mode="json"),
        predict=config.apply.model_dump(mode="json"),
        recipe_hash=hashlib.sha256(text.encode()).hexdigest(),
        data_hash=data_hash,
        white=train.images[0].white if len(train) else None,
    )


def log_boxes(labelled: LabelledBoxes) -> None:
    """Say how many boxes are learnt from and how many are not."""
    left_out = [f"{count} {reason}" for reason, count in labelled.left_out.items() if count]
    rest = f"; left out: {', '.join(left_out)}" if left_out else ""
    log.info("refiner: %d boxes in %d images%s", labelled.num_boxes, len(labelled), rest)


@dataclass(frozen=True, slots=True)
class _Validation:
    """What the training loop calls after an epoch."""

    jittered: JitteredBoxes
    config: ApplyConfig

    def __call__(self, model: nn.Module) -> Mapping[str, float | None]:
        if not isinstance(model, Refiner):
            raise TypeError(f"expected a Refiner, found {type(model).__name__}")
        return measure_undoing(model, self.jittered, self.config)


def _loader(labelled: LabelledBoxes, config: RefineConfig, seed: int, processes: Processes) -> CropLoader:
    train = config.train
    maker = CropMaker(labelled, config.crops, config.model.crop_side, seed)
    return CropLoader(
        maker,
        LoaderConfig.model_validate(
            {
                "batch_size": train.batch_size,
                "repeats": train.repeats,
                "workers": train.workers,
                "rank": processes.rank,
                "world": processes.world,
            }
        ),
    )


def _require_boxes(jittered: JitteredBoxes) -> None:
    if not len(jittered):
        raise DataError(
            f"{jittered.dataset.file}: no box to judge the refiner by",
            hint="Validation needs labelled boxes that are no crowd regions and not smaller than min_side.",
        )

"""Every setting of training, flat, each default written once.

Lengths are in epochs (one pass over the loader, repeats included), so that a recipe means the same whatever the
number of images; only the warm-up and the intervals of logging and saving count steps. A step is one update of the
weights: `accumulate` batches on every process. This module does not load torch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from scantling.errors import ConfigError
from scantling.settings.fields import Fraction

Auto = Literal["auto"]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = tuple[Annotated[float, Field(gt=0)], ...]

_AUTO_MILESTONES = (2 / 3, 11 / 12)
"""Where a step schedule decays by default, as shares of the length: epochs 16 and 22 of the published 24."""

_NOT_PART_OF_THE_RESULT = frozenset({"workers", "checkpoint_every"})
"""Settings that may differ when a run is resumed, because the result cannot depend on them."""


def _as_tuple(value: object) -> object:
    """A list as Python code writes it; `strict=False` on a member of a union means nothing to pydantic 2.10."""
    return tuple(value) if isinstance(value, list) else value


class TrainConfig(BaseModel):
    """How a model is trained.

    Attributes:
        epochs: Length of the training; `auto` is resolved from the size of the data set before training starts.
        batch_size: Images per batch and process; `auto` is what the device's memory holds.
        accumulate: Batches whose gradients are averaged into one step.
        total_batch: Images of one step over all processes, what a learning rate is chosen for: as many batches are
            averaged as it takes. null: `accumulate` batches on every process, whatever their number.
        repeats: Number of times that the loader shows each image in an epoch; `auto` as for `epochs`.
        workers: Number of processes that load images (0: none); `auto` goes by the device; never changes the result.
        precision: Number format of the forward pass; weights are float32 in all of them. fp16 needs a GPU.
        clip_norm: Gradients with a larger norm are scaled down to it; null turns clipping off.
        ema: Decay of the moving average of the weights, such as 0.999; null keeps no average. When it is kept, it
            is what is validated and saved as best.
        swa: Number of last epochs whose final weights are averaged, each counting alike (Izmailov et al. 2018), with
            BatchNorm statistics estimated anew from a pass over the training images after each of them; null averages
            none. From the first of these epochs on, the average so far is what is validated and saved as best.
        swa_lr_scale: Learning rate in these epochs, relative to `lr`; null keeps the schedule's.
        optimizer: `sgd` (momentum), `adamw` or `adadelta`.
        lr: Learning rate after the warm-up. The default follows 0.02 per 16 images (Goyal et al. 2017); `auto` goes by
            the optimiser and by what training starts from.
        momentum: Momentum of SGD.
        betas: AdamW's decay rates of the first and second moment.
        rho: AdaDelta's decay rate (Zeiler 2012).
        weight_decay: Weight decay of every weight that the three switches below do not exempt.
        norm_decay: Decay the scales and shifts of normalisation layers, too.
        bias_decay: Decay biases, too.
        position_decay: Decay position tables (Swin's relative position bias), too.
        backbone_lr_scale: Learning rate of the backbone relative to the rest.
        schedule: `step` multiplies the learning rate by `gamma` at each milestone, `plateau` does so when the
            monitored metric has not gained for `patience` epochs, `cosine` falls to `final_lr_scale` along half a
            cosine, `constant` stays.
        milestones: Epochs of the step schedule, rising; `auto` is 2/3 and 11/12 of the length. Milestones past the
            end never happen.
        gamma: Factor of the step and plateau schedules.
        patience: Epochs without a gain before the plateau schedule lowers the learning rate (again).
        final_lr_scale: Learning rate at the end of the cosine schedule, relative to `lr`.
        warmup_steps: Steps over which the learning rate rises linearly; 0 turns the warm-up off.
        warmup_scale: Learning rate at the start of the warm-up, relative to `lr`.
        monitor: Metric of the validation that decides what is best; larger is better. `auto`: `segm/AP` of a detector
            that draws masks, else `bbox/AP`.
        validate_every: Epochs between validations; the last epoch is always validated.
        early_stopping: Stop after this many epochs without a gain; null trains to the end.
        checkpoint_every: Steps between saves of `last`; it is saved after every epoch as well.
        log_every: Steps averaged into one entry of the history.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    epochs: Count | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Auto = 2
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    total_batch: Count | None = None
    repeats: Count | Auto = 1
    workers: Annotated[int, Field(ge=0, le=256)] | Auto = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: Annotated[float, Field(gt=0)] | None = 35.0
    ema: Decay | None = None
    swa: Count | None = None
    swa_lr_scale: Annotated[float, Field(gt=0, le=100)] | None = None

    optimizer: Literal["sgd", "adamw", "adadelta"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=100)] | Auto = 0.0025
    momentum: Decay = 0.9
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    rho: Decay = 0.95
    weight_decay: Fraction = 1e-4
    norm_decay: bool = False
    bias_decay: bool = True
    position_decay: bool = False
    backbone_lr_scale: Annotated[float, Field(ge=0, le=100)] = 1.0

    schedule: Literal["step", "cosine", "plateau", "constant"] = "step"
    milestones: Annotated[Epochs | Auto, BeforeValidator(_as_tuple)] = "auto"
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Count = 2
    final_lr_scale: Fraction = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    warmup_scale: Fraction = 1e-3

    monitor: str = "auto"
    validate_every: Count = 1
    early_stopping: Count | None = None
    checkpoint_every: Count = 500
    log_every: Count = 10

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.milestones != "auto" and any(
            later <= earlier for earlier, later in pairwise(self.milestones)
        ):
            raise ValueError(f"milestones must rise, found {list(self.milestones)}")
        if self.total_batch is not None and self.accumulate != 1:
            raise ValueError("give either accumulate or total_batch, from which it follows")
        self._require_averages_that_go_together()
        return self

    def _require_averages_that_go_together(self) -> None:
        if self.swa is None:
            if self.swa_lr_scale is not None:
                raise ValueError("swa_lr_scale is for the epochs that swa averages, and there are none")
            return
        if self.ema is not None:
            raise ValueError(
                "give either ema or swa: each is an average of the weights, and one is predicted with"
            )
        if self.early_stopping is not None:
            raise ValueError(
                "swa averages the last epochs, which early_stopping may leave out: give one of them"
            )
        if self.epochs != "auto" and self.swa > self.epochs:
            raise ValueError(f"swa is {self.swa}, but there are {self.epochs} epochs")

    def averaged_epochs(self, epochs: int) -> int:
        """How many of the first `epochs` epochs are among the last ones, which `swa` averages."""
        if self.swa is None or self.epochs == "auto":
            return 0
        return max(0, epochs - max(0, self.epochs - self.swa))

    def batches_per_step(self, processes: int) -> int:
        """Batches that each of some processes averages into one step.

        Raises:
            ConfigError: The processes together cannot make steps of `total_batch` images.
        """
        if self.total_batch is None or self.batch_size == "auto":
            return self.accumulate
        at_once = self.batch_size * processes
        if self.total_batch % at_once:
            several = f"{processes} processes of {self.batch_size} images see {at_once} at a time"
            raise ConfigError(
                f"total_batch is {self.total_batch}, but {several}",
                hint=f"Choose batch_size so that its product with the number of processes divides {self.total_batch}.",
            )
        return self.total_batch // at_once

    def decay_epochs(self) -> tuple[float, ...]:
        """Epochs at which the step schedule lowers the learning rate; empty while `epochs` is `auto`."""
        if self.milestones != "auto":
            return self.milestones
        return () if self.epochs == "auto" else tuple(share * self.epochs for share in _AUTO_MILESTONES)

    def result_settings(self) -> dict[str, JsonValue]:
        """The settings that the trained weights and the history depend on, as JSON values."""
        unset = {name for name in ("total_batch", "swa", "swa_lr_scale") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=unset | _NOT_PART_OF_THE_RESULT)

"""What a run must remember to go on as if it had never stopped, and the test that it is the same run.

Weights, average and optimiser travel as tensors, the rest as JSON in the same file. Randomness is not stored: every
step seeds itself from the run's seed, the step and the process, and the data come from (seed, epoch, image).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from scantling.errors import CheckpointError
from scantling.train.checkpoint import (
    AVERAGE_PREFIX,
    EPOCHS_PREFIX,
    WEIGHTS_PREFIX,
    Checkpoint,
    CheckpointMeta,
    class_differences,
    load_weights,
    model_tensors,
    tensors_under,
)
from scantling.train.ema import MovingAverage
from scantling.train.swa import EpochAverage

_OPTIMIZER_PREFIX = "optimizer."
_SHOWN = 10


class LoopState(BaseModel):
    """Where a run stands.

    Attributes:
        step: Updates of the weights so far.
        closed_epochs: Epochs whose validation and bookkeeping are done.
        best: Largest value of the monitored metric so far.
        best_epoch: Finished epochs when it was reached.
        best_metrics: Everything that validation said about the weights saved as best.
        last_cut: Finished epochs when the plateau schedule last lowered the learning rate.
        plateau_cuts: Number of times that the plateau schedule has lowered the learning rate.
        finished: Nothing is left to do: the length is reached, or early stopping ended the run.
        history_lines: Number of entries in the history.
        skipped_steps: Updates left out because fp16 gradients overflowed.
        skipped_in_a_row: Number of updates left out since the last one that took place.
        average_updates: Updates of the moving average.
        averaged_epochs: Epochs in the average of the last epochs.
        estimated_epochs: Epochs that were in it when its BatchNorm statistics were estimated.
        meters: Per process, sums and counts of the losses since the last entry of the history.
        scaler: State of the fp16 loss scaling.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    step: int = 0
    closed_epochs: int = 0
    best: float | None = None
    best_epoch: int | None = None
    best_metrics: dict[str, float | None] = Field(default_factory=dict)
    last_cut: int = 0
    plateau_cuts: int = 0
    finished: bool = False
    history_lines: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    average_updates: int = 0
    averaged_epochs: int = 0
    estimated_epochs: int = 0
    meters: list[tuple[dict[str, float], dict[str, int]]] = Field(default_factory=list)
    scaler: dict[str, JsonValue] = Field(default_factory=dict)

    def judge(self, value: float | None, epoch: int) -> bool:
        """Take note of the monitored metric after `epoch` epochs and say whether these weights are the best so far.

        An undefined value (None) is never a gain; until a value is defined, the newest weights count as best.
        """
        if value is None:
            return self.best is None
        if self.best is not None and value <= self.best:
            return False
        self.best, self.best_epoch = value, epoch
        return True

    def epochs_without_gain(self, epoch: int) -> int:
        """Epochs since the metric last gained; 0 as long as it has never been defined."""
        return 0 if self.best_epoch is None else epoch - self.best_epoch

    def epochs_on_plateau(self, epoch: int) -> int:
        """Epochs since the metric last gained or the learning rate was last lowered."""
        return 0 if self.best_epoch is None else epoch - max(self.best_epoch, self.last_cut)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run changes: the bare model, its optimiser, its averages and the fp16 loss scaling.

    Attributes:
        model: What is trained.
        optimizer: Of its parameters.
        average: Their moving average, if one is kept.
        epochs_average: The average of the last epochs, if one is wanted.
        scaler: Of fp16 losses.
    """

    model: nn.Module
    optimizer: Optimizer
    average: MovingAverage | None
    epochs_average: EpochAverage | None = None
    scaler: GradScaler

    @property
    def best_model(self) -> nn.Module:
        """The model to validate and to keep: the average where there is one."""
        if self.epochs_average and self.epochs_average.epochs:
            return self.epochs_average.model
        return self.average.model if self.average else self.model

    def tensors(self) -> dict[str, Tensor]:
        """Everything training needs to go on, by checkpoint name."""
        averaged = model_tensors(self.average.model, AVERAGE_PREFIX) if self.average else {}
        if self.epochs_average and self.epochs_average.epochs:
            averaged |= model_tensors(self.epochs_average.model, EPOCHS_PREFIX)
        return model_tensors(self.model) | averaged | dict(_optimizer_tensors(self.optimizer))

    def restore(self, tensors: Mapping[str, Tensor], state: LoopState, *, source: Path) -> None:
        """Put back what `tensors` returned and the matching part of the state.

        Raises:
            CheckpointError: The tensors belong to another model or optimiser.
        """
        load_weights(self.model, tensors_under(tensors, WEIGHTS_PREFIX), source=source)
        if self.average:
            load_weights(self.average.model, tensors_under(tensors, AVERAGE_PREFIX), source=source)
            self.average.updates = state.average_updates
        if self.epochs_average and state.averaged_epochs:
            load_weights(self.epochs_average.model, tensors_under(tensors, EPOCHS_PREFIX), source=source)
            self.epochs_average.epochs = state.averaged_epochs
        _restore_optimizer(self.optimizer, tensors_under(tensors, _OPTIMIZER_PREFIX), source=source)
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))


def step_seed(seed: int, step: int, rank: int, batch: int = 0) -> int:
    """Seed of everything random in one batch of one step on one process; independent of what ran before.

    The first 8 bytes of SHA-256 of `seed/step/rank/batch`.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{rank}/{batch}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def training_record(state: LoopState, settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """What goes into `CheckpointMeta.training`."""
    return {"settings": dict(settings), "state": state.model_dump(mode="json")}


def resume_state(
    checkpoint: Checkpoint, meta: CheckpointMeta, settings: Mapping[str, JsonValue], *, source: Path
) -> LoopState:
    """Read the loop's state, provided that the checkpoint was written by this very run.

    Args:
        checkpoint: A `last` checkpoint.
        meta: The part of a checkpoint of the run at hand that tells model, classes, data and recipe.
        settings: Everything else that decides the result: training settings, seed, processes, steps per epoch.
        source: The checkpoint's path, for the message.

    Raises:
        CheckpointError: It holds no training state, or belongs to a run with other data, classes, model or settings;
            every difference is named.
    """
    training = checkpoint.meta.training
    if training is None:
        raise CheckpointError(
            f"{source} holds weights only; training cannot go on from it",
            hint="Resume needs `last.safetensors`.",
        )
    differences = _run_differences(checkpoint.meta, meta)
    differences += _differences(training.get("settings"), dict(settings))
    if not differences and checkpoint.meta.recipe_hash != meta.recipe_hash:
        differences = ["recipe: a setting outside the model's and the training's own has changed since"]
    if differences:
        more = [f"and {len(differences) - _SHOWN} more"] if len(differences) > _SHOWN else []
        raise CheckpointError(
            "\n  ".join([f"{source} belongs to another run:", *differences[:_SHOWN], *more]),
            hint="Restore what the run was started with, or start a new run.",
        )
    try:
        return LoopState.model_validate(training.get("state"))
    except ValidationError as error:
        raise CheckpointError(f"{source}: the training state in it cannot be read: {error}") from error


def _run_differences(saved: CheckpointMeta, now: CheckpointMeta) -> list[str]:
    lines = [f"classes: {line}" for line in class_differences(saved.class_names, now.class_names)]
    if not lines and saved.category_ids != now.category_ids:
        lines.append(f"category ids: {list(saved.category_ids)} then, {list(now.category_ids)} now")
    lines += _differences(saved.kind, now.kind, "kind")
    lines += _differences(saved.model, now.model, "model")
    if saved.data_hash != now.data_hash:
        lines.append("data: the images or annotations have changed since")
    return lines


def _differences(saved: object, now: object, path: str = "") -> list[str]:
    """Compare two JSON values, objects key by key; one line per difference."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*saved, *now])
        return [
            line
            for key in keys
            for line in _differences(saved.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if saved == now else [f"{path}: {saved!r:.100} then, {now!r:.100} now"]


def _optimizer_tensors(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"{_OPTIMIZER_PREFIX}{key}.{name}", value


def _restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    groups = optimizer.state_dict()["param_groups"]
    numbers = {
        name: number
        for group in groups
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    state: dict[int, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        key, _, name = path.partition(".")
        if name not in numbers:
            raise CheckpointError(
                f"{source}: optimiser state for {name!r}, which is no parameter of this model"
            )
        state.setdefault(numbers[name], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})

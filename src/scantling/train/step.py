"""One update of the weights: batches -> losses -> gradients -> checked -> applied.

The host waits for the device once per update, after the backward pass: losses and gradient norm come over together
and are checked before the optimiser touches the weights. Gradients of a non-finite loss are not finite on any
process, so all processes of a distributed run stop together and can say which of them met the fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from scantling.data.workers import worker_failures
from scantling.errors import TrainingError, is_out_of_memory
from scantling.train.config import TrainConfig
from scantling.train.devices import Processes, in_contact, repeatable, without_exchange
from scantling.train.state import LoopState, Parts, step_seed
from scantling.train.swa import estimated_layers, new_statistics

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_SKIPS_IN_A_ROW = 32
"""After so many halvings the loss scale is far below 1: the gradients are at fault, not their scale."""


class TrainBatch(Protocol):
    """What a model is trained on: anything that can move to a device and name its images."""

    @property
    def image_ids(self) -> Sequence[int | float | str]:
        """Ids of the images, for messages about this batch."""

    @property
    def is_padding(self) -> bool:
        """Whether it is there only so that no process is idle; it does not count then."""

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one update did.

    Attributes:
        values: `loss` (the sum), `loss/NAME` for every part, and `grad_norm` before clipping where it is finite.
        images: Number of images on this process.
        skipped: The fp16 gradients overflowed and the weights were left as they were.
    """

    values: dict[str, float]
    images: int
    skipped: bool


@dataclass(frozen=True, slots=True)
class _Record:
    """Losses of one batch, still on the device, and what they count in the step."""

    names: tuple[str, ...]
    losses: Tensor
    weight: Tensor
    image_ids: Sequence[int | float | str]


class Stepper:
    """Does updates; keeps no state beyond what `Parts` holds."""

    def __init__(
        self, model: nn.Module, parts: Parts, config: TrainConfig, processes: Processes, *, seed: int
    ) -> None:
        """Take the model as the processes share it (`Processes.distribute`) and the parts that belong to it."""
        self._model = model
        self._parts = parts
        self._config = config
        self._processes = processes
        self._seed = seed
        self._parameters = [p for group in parts.optimizer.param_groups for p in group["params"]]
        self._device = self._parameters[0].device

    def update(self, batches: Sequence[TrainBatch], *, step: int, lr: float) -> StepOutcome:
        """Update the weights once, by the mean gradient of some batches.

        A batch that is spread over several processes counts as one: each part by its number of images, as if one
        process had averaged over all of them.

        Args:
            batches: At least one; a distributed run has as many on every process.
            step: Updates done before; seeds everything random in the model.
            lr: Learning rate, for messages (the optimiser has it already).

        Raises:
            TrainingError: A loss or, in fp32 and bf16, a gradient is not finite; the weights are untouched.
        """
        counts = [0 if batch.is_padding else len(batch.image_ids) for batch in batches]
        weights = self._processes.shares(counts, self._device)
        records = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with repeatable(self._device), nullcontext() if last else without_exchange(self._model):
                records.append(self._backward(batch, weights[index] / len(batches), (step, index)))
        norm = self._clip()
        losses, means, norm_value = _fetch(records, norm)
        self._refuse_faults(records, losses, norm_value, f"step {step + 1}, learning rate {lr:.4g}")
        self._parts.scaler.step(self._parts.optimizer)
        self._parts.scaler.update()
        self._parts.optimizer.zero_grad(set_to_none=True)
        values = means | ({"grad_norm": norm_value} if math.isfinite(norm_value) else {})
        images = sum(len(record.image_ids) for record in records)
        return StepOutcome(values, images, skipped=not math.isfinite(norm_value))

    def losses(self, model: nn.Module, batch: TrainBatch, place: tuple[int, int]) -> dict[str, Tensor]:
        """What a model says of a batch, as it does in training.

        Args:
            model: The trained one as the processes share it, or another of its kind.
            batch: On any device.
            place: Updates done before, and which of its step's batches this is; both seed everything random.
        """
        step, index = place
        torch.manual_seed(step_seed(self._seed, step, self._processes.rank, index))
        dtype = _AUTOCAST[self._config.precision]
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            named: dict[str, Tensor] = model(batch.to(self._device))
        return named

    def average_epochs(
        self,
        due: int,
        state: LoopState,
        *,
        batches: Callable[[], Iterator[TrainBatch]],
        after_each: Callable[[], None],
    ) -> None:
        """Take an epoch's weights into the average of the last ones, if it is due, and estimate its statistics.

        Both are done once, also by a run that was stopped between them.

        Args:
            due: Epochs that have to be in the average.
            state: Of the run; notes for how many of them the statistics are.
            batches: Gives the training batches that statistics are estimated from.
            after_each: Is called after each of them.
        """
        average = self._parts.epochs_average
        if average is None or due == 0:
            return
        if average.epochs < due:
            average.take_in(self._parts.model)
        layers = estimated_layers(average.model)
        if layers and state.estimated_epochs < due:
            with torch.no_grad(), explained_failures(state.step), new_statistics(average.model, layers):
                for number, batch in enumerate(batches()):
                    self.losses(average.model, batch, (state.step, number))
                    after_each()
                self._processes.average_buffers(layers)
        state.estimated_epochs = due

    def _backward(self, batch: TrainBatch, weight: Tensor, place: tuple[int, int]) -> _Record:
        named = self.losses(self._model, batch, place)
        losses = torch.stack([loss.float() for loss in named.values()])
        self._parts.scaler.scale(losses.sum() * weight).backward()  # type: ignore[no-untyped-call]
        return _Record(tuple(named), losses.detach(), weight, batch.image_ids)

    def _clip(self) -> Tensor:
        """Return the norm of the whole gradient and scale the gradient down to the configured norm."""
        self._parts.scaler.unscale_(self._parts.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if self._config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._config.clip_norm, norm)
        return norm

    def _refuse_faults(
        self, records: Sequence[_Record], losses: Sequence[dict[str, float]], norm: float, place: str
    ) -> None:
        pairs = list(zip(records, losses, strict=True))
        faults = [
            _describe(record, values)
            for record, values in pairs
            if not all(map(math.isfinite, values.values()))
        ]
        if not math.isfinite(norm):
            faults = [fault for found in self._processes.gather(faults) for fault in found]
            if not faults and self._config.precision != "fp16":
                faults = [_describe(record, values | {"gradient norm": norm}) for record, values in pairs]
        if faults:
            raise TrainingError(
                "\n  ".join([f"training stopped at {place}: a loss or gradient is not finite", *faults]),
                hint="Look at these images' labels; try a lower learning rate, a longer warm-up, a smaller "
                "clip_norm, or fp32. The last checkpoint is from before this step.",
            )


def refuse_endless_skips(skipped_in_a_row: int, step: int) -> None:
    """Stop a run whose fp16 gradients overflow at every loss scale.

    Raises:
        TrainingError: 32 updates in a row were skipped.
    """
    if skipped_in_a_row >= _MAX_SKIPS_IN_A_ROW:
        raise TrainingError(
            f"training stopped at step {step}: the fp16 gradients overflowed {skipped_in_a_row} times in a row",
            hint="Use bf16 or fp32, or a lower learning rate.",
        )


@contextmanager
def explained_failures(step: int) -> Iterator[None]:
    """Turn what a machine does to a training into messages with a cause and a remedy.

    Raises:
        TrainingError: The device or the machine is out of memory, or a loader process died.
        PeerFailed: Another process of the run is gone.
    """
    with worker_failures(), in_contact():
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            place = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
            hint = (
                "Lower batch_size (raise accumulate as much), train on smaller images, or use bf16 on a GPU."
            )
            raise TrainingError(f"the {place} ran out of memory at step {step + 1}", hint=hint) from error


def _fetch(
    records: Sequence[_Record], norm: Tensor
) -> tuple[list[dict[str, float]], dict[str, float], float]:
    """Bring all losses and the norm to the host in one transfer, and average the losses."""
    values: list[float] = torch.cat(
        [*(torch.cat([r.losses, r.weight.reshape(1)]) for r in records), norm.reshape(1).float()]
    ).tolist()
    named, weights, start = [], [], 0
    for record in records:
        end = start + len(record.names)
        named.append(dict(zip(record.names, values[start:end], strict=True)))
        weights.append(values[end])
        start = end + 1
    return named, _mean_losses(named, weights), values[-1]


def _mean_losses(losses: Sequence[dict[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Average over the batches; a part that a batch does not have counts as 0 there."""
    weighted = list(zip(losses, weights, strict=True))
    means = {"loss": sum(sum(values.values()) * weight for values, weight in weighted)}
    for name in dict.fromkeys(name for values in losses for name in values):
        means[f"loss/{name}"] = sum(values.get(name, 0.0) * weight for values, weight in weighted)
    return means


def _describe(record: _Record, values: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"images {', '.join(map(str, record.image_ids))}: {parts}"

"""The one training loop, for detectors, pretraining, the refiner and the semantic member.

    data.epoch(e) -> batches -> Stepper.update -> history, progress
                                   |  every checkpoint_every steps:  last.safetensors (the one before is kept)
        end of epoch:  average of the last ones -> validate -> best.safetensors if it gained -> schedule, early
                       stopping -> last

Promises: a run that was stopped (SIGINT, SIGTERM: the step is finished and saved; SIGKILL: at any moment) and resumed
ends with the same weights and the same history as one that never stopped, bit for bit on the CPU (with as many
threads); `best` and `last` are complete, verified and finite at any moment. On a GPU the same holds as far as its
kernels are deterministic.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from pydantic import JsonValue
from rich.console import Console
from torch import nn
from torch.amp.grad_scaler import GradScaler

from scantling.data.workers import worker_failures
from scantling.errors import ConfigError, Interrupted, TrainingError, UsageError
from scantling.train.checkpoint import CheckpointMeta
from scantling.train.config import TrainConfig
from scantling.train.devices import Processes, join_processes, require_precision, resolve_device
from scantling.train.ema import MovingAverage
from scantling.train.history import CSV_NAME, JSONL_NAME, History, Logged, Meter
from scantling.train.keeper import BEST_NAME, LAST_NAME, PREVIOUS_NAME, Keeper, require_resumable, resumable
from scantling.train.optim import build_optimizer, build_schedule
from scantling.train.progress import make_reporter
from scantling.train.rundir import claim_folder
from scantling.train.signals import SignalGuard, StopRequested
from scantling.train.state import LoopState, Parts, step_seed
from scantling.train.step import StepOutcome, Stepper, TrainBatch, explained_failures, refuse_endless_skips
from scantling.train.swa import EpochAverage

__all__ = ["FitResult", "RunInfo", "TrainBatch", "TrainConfig", "TrainData", "fit", "resumable"]

Metrics = Mapping[str, float | None]

_LATE_SECONDS = 30.0
"""Before a validation, which may fail, the state is saved if more work than this would be lost."""

_FILES = (BEST_NAME, LAST_NAME, PREVIOUS_NAME, JSONL_NAME, CSV_NAME)


class TrainData(Protocol):
    """Batches in an order that depends on nothing but the epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch on this process, the same on every process."""

    def epoch(self, epoch: int, start_step: int) -> Iterator[TrainBatch]:
        """Yield the batches of one epoch, leaving out the first `start_step`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The circumstances of one run.

    Attributes:
        seed: Seed of everything random in the model; the data have their own.
        meta: The part of a checkpoint that tells kind, classes, model, recipe and data; the loop fills in the rest.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        resume: Go on from `last.safetensors` in the output folder, or from the one before where it is gone.
        overwrite: Replace the files of an earlier run in the output folder.
        validate: Measures a model that is in evaluation mode; every process calls it, the main process' answer
            counts. None trains without validation and keeps the weights of the last step as best.
        console: The terminal on which progress is shown; None means standard error.
    """

    seed: int
    meta: CheckpointMeta = field(default_factory=CheckpointMeta)
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    validate: Callable[[nn.Module], Metrics] | None = None
    console: Console | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a finished run leaves.

    Attributes:
        best: Checkpoint with the weights of the best validation (an average of them if one is kept).
        last: Checkpoint that holds the state of training.
        history: Entries of `metrics.jsonl`.
        metrics: The validation's metrics of the weights in `best`.
        epochs: Epochs trained; fewer than configured if early stopping ended the run.
    """

    best: Path
    last: Path
    history: list[Logged]
    metrics: dict[str, float | None]
    epochs: int


def fit(model: nn.Module, data: TrainData, config: TrainConfig, *, out: Path, run: RunInfo) -> FitResult:
    """Train a model to the end of its schedule, or until it stops getting better.

    Args:
        model: `model(batch)` returns named scalar losses; every one of them is added to what is minimised. It is
            trained in place and left as it is after the last step; the best weights are in the result's `best`.
        data: The source of the batches.
        config: Settings of the training, whose `epochs` must be a number.
        out: Folder for `best.safetensors`, `last.safetensors`, `metrics.jsonl` and `metrics.csv`.
        run: Seed, device, what to resume, how to validate.

    Raises:
        UsageError: The device or precision is not available, or the folder is taken or holds other files.
        ConfigError: A setting cannot work with this model or run.
        CheckpointError: What should be resumed is missing, damaged or from another run.
        TrainingError: A loss is not finite, memory or disk space ran out, a loader process died.
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
    """
    device = resolve_device(run.device)
    require_precision(config.precision, device)
    _require_validation(config, run)
    if run.resume:
        require_resumable(out)
    processes = join_processes(device)
    config = config.model_copy(update={"accumulate": config.batches_per_step(processes.world)})
    with (
        claim_folder(out, resume=run.resume, overwrite=run.overwrite, known=_FILES)
        if processes.is_main
        else nullcontext(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        return _Training(model.to(device), data, config, out, run, processes).complete()


class _Training:
    """One run in progress."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainData,
        config: TrainConfig,
        out: Path,
        run: RunInfo,
        processes: Processes,
    ) -> None:
        self._data, self._config, self._run, self._processes = data, config, run, processes
        self._guard = SignalGuard()
        self._saved_at = time.monotonic()
        self._steps_per_epoch = _count_steps(data, config, processes)
        self._schedule = build_schedule(config, self._steps_per_epoch)
        self._epochs = self._schedule.epochs
        self._device = next(model.parameters()).device
        self._parts, self._stepper = _assemble(model, config, self._processes, self._run.seed)
        self._keeper = Keeper(out, self._run.meta, self._settings())
        self._state = self._keeper.resume(self._parts) if self._run.resume else LoopState()
        self._schedule.plateau_cuts = self._state.plateau_cuts
        self._meter = Meter(*self._state.meters[self._processes.rank]) if self._state.meters else Meter()
        self._history = History(out, lines=self._state.history_lines) if self._processes.is_main else None
        self._reporter = make_reporter(
            self._run.console if self._processes.is_main else Console(quiet=True),
            total=self._epochs * self._steps_per_epoch,
            start=self._state.step,
            epochs=self._epochs,
            title=self._run.meta.kind,
        )

    def complete(self) -> FitResult:
        """Train what is left of the run."""
        with self._guard, self._reporter:
            if self._state.finished:
                self._reporter.say(f"{self._keeper.last}: this run is finished, nothing is left to train")
            elif not self._run.resume:
                self._save_last()
            while not self._state.finished:
                self._train_epoch()
                self._close_epoch()
        self._processes.gather(None)  # nobody goes on before the files are complete
        if self._guard.signum is not None:
            raise _interruption(self._guard.signum, self._state.step)
        return FitResult(
            best=self._keeper.best,
            last=self._keeper.last,
            history=self._history.entries() if self._history else [],
            metrics=self._state.best_metrics,
            epochs=self._state.closed_epochs,
        )

    def _train_epoch(self) -> None:
        """Do the steps that the current epoch still lacks, none if only its validation is missing."""
        epoch = self._state.closed_epochs
        done = self._state.step - epoch * self._steps_per_epoch
        if done == self._steps_per_epoch:
            return
        self._parts.model.train()
        batches = self._data.epoch(epoch, done * self._config.accumulate)
        with worker_failures():
            for _ in range(done, self._steps_per_epoch):
                self._step(batches)
                self._leave_if_asked()
                if self._state.step % self._config.checkpoint_every == 0:
                    self._save_last()
            is_late = time.monotonic() - self._saved_at > _LATE_SECONDS
            if self._processes.maximum(int(is_late), self._device):  # saving takes all processes
                self._save_last()

    def _step(self, batches: Iterator[TrainBatch]) -> None:
        step = self._state.step
        lr = self._schedule.apply(self._parts.optimizer, step)
        with explained_failures(step), self._expecting_interruption():
            group = list(islice(batches, self._config.accumulate))
            if not group:
                raise RuntimeError(
                    f"the data promised {self._data.steps_per_epoch} batches per epoch and gave fewer"
                )
            outcome = self._stepper.update(group, step=step, lr=lr)
        if self._parts.average:
            self._parts.average.update(self._parts.model)
        self._note(outcome, lr)

    def _note(self, outcome: StepOutcome, lr: float) -> None:
        state = self._state
        state.step += 1
        state.skipped_steps += outcome.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if outcome.skipped else 0
        refuse_endless_skips(state.skipped_in_a_row, state.step)
        self._meter.add(outcome.values)
        self._reporter.advance(state.step, outcome.images * self._processes.world)
        if state.step % self._config.log_every == 0 or state.step % self._steps_per_epoch == 0:
            means = Meter.merged(self._processes.gather(self._meter)).means()
            self._meter = Meter()
            self._log({"lr": lr, **means})

    def _close_epoch(self) -> None:
        """Validate if it is due, keep what is best, adjust the schedule, and save."""
        state, config = self._state, self._config
        epoch = state.closed_epochs + 1
        is_end = epoch == self._epochs
        self._stepper.average_epochs(
            config.averaged_epochs(epoch),
            state,
            batches=lambda: self._data.epoch(state.closed_epochs, 0),
            after_each=self._leave_if_asked,
        )
        if self._run.validate is not None and (is_end or epoch % config.validate_every == 0):
            self._take_in(self._validate(self._run.validate), epoch)
        elif self._run.validate is None and is_end:
            self._save_best({}, epoch)
        patience = config.early_stopping
        state.closed_epochs = epoch
        state.finished = is_end or (patience is not None and state.epochs_without_gain(epoch) >= patience)
        if self._history:
            self._history.write_table()
        self._save_last()

    def _take_in(self, metrics: dict[str, float | None], epoch: int) -> None:
        """Draw the conclusions from a validation: history, best weights, learning rate."""
        state, config = self._state, self._config
        self._log({f"val/{name}": value for name, value in metrics.items()})
        if state.judge(metrics[config.monitor], epoch):
            self._save_best(metrics, epoch)
        if config.schedule == "plateau" and state.epochs_on_plateau(epoch) >= config.patience:
            state.plateau_cuts, state.last_cut = state.plateau_cuts + 1, epoch
            self._schedule.plateau_cuts = state.plateau_cuts

    def _validate(self, validate: Callable[[nn.Module], Metrics]) -> dict[str, float | None]:
        model = self._parts.best_model.eval()
        self._processes.share_buffers(model)
        seed = step_seed(self._run.seed, self._state.step, self._processes.rank, self._config.accumulate)
        torch.manual_seed(seed)
        # Several processes must leave together, so only a lone one abandons its validation.
        abandonable = self._guard.interruptible() if self._processes.world == 1 else nullcontext()
        try:
            with torch.no_grad(), explained_failures(self._state.step), abandonable:
                found = dict(validate(model))
        except StopRequested:
            self._leave(self._guard.signum or signal.SIGTERM)
        metrics = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in self._processes.from_main(found).items()
        }
        if self._config.monitor not in metrics:
            raise ConfigError(
                f"monitor {self._config.monitor!r} is not among the metrics of the validation",
                hint=f"They are: {', '.join(sorted(metrics))}.",
            )
        return metrics

    def _log(self, values: Mapping[str, float | None]) -> None:
        epoch = round(self._state.step / self._steps_per_epoch, 6)
        entry = {"step": self._state.step, "epoch": epoch, **values}
        if self._history:
            self._history.append(entry)
        self._reporter.show(entry)

    def _leave_if_asked(self) -> None:
        signum = self._processes.maximum(self._guard.signum or 0, self._device)
        if signum:
            self._leave(signum)

    def _leave(self, signum: int) -> NoReturn:
        self._save_last()
        raise _interruption(signum, self._state.step)

    @contextmanager
    def _expecting_interruption(self) -> Iterator[None]:
        """Count a failure after a signal as its consequence: Ctrl-C reaches loader processes, too.

        Nothing is saved then, as the step may be half done; the last checkpoint is whole.
        """
        try:
            yield
        except (RuntimeError, OSError, TrainingError) as error:
            if self._guard.signum is None:
                raise
            raise _interruption(self._guard.signum, self._state.step) from error

    def _save_last(self) -> None:
        self._state.meters = self._processes.gather((self._meter.sums, self._meter.counts))
        if self._history:
            self._history.sync()
            self._state.history_lines = self._history.lines
            self._keeper.save_last(self._parts, self._state)
        self._saved_at = time.monotonic()

    def _save_best(self, metrics: Metrics, epoch: int) -> None:
        if self._processes.is_main:
            self._keeper.save_best(self._parts, self._state, metrics, epoch)

    def _settings(self) -> dict[str, JsonValue]:
        """What decides the result besides model, data and recipe."""
        return {
            "train": self._config.result_settings(),
            "seed": self._run.seed,
            "processes": self._processes.world,
            "steps_per_epoch": self._steps_per_epoch,
        }


def _count_steps(data: TrainData, config: TrainConfig, processes: Processes) -> int:
    """Updates per epoch; refuses data without batches, and processes that would wait for each other forever."""
    counts = set(processes.gather(data.steps_per_epoch))
    if len(counts) > 1:
        raise RuntimeError(f"the processes have different numbers of batches per epoch: {sorted(counts)}")
    if counts == {0}:
        hint = "Lower batch_size or add images."
        raise UsageError("there is nothing to train on: the data give no batch", hint=hint)
    return math.ceil(data.steps_per_epoch / config.accumulate)


def _assemble(
    model: nn.Module, config: TrainConfig, processes: Processes, seed: int
) -> tuple[Parts, Stepper]:
    """Build what an update needs; the average starts from the weights that all processes share."""
    device = next(model.parameters()).device
    optimizer = build_optimizer(model, config)
    shared = processes.distribute(model, device)
    average = MovingAverage(model, config.ema) if config.ema is not None else None
    scaler = GradScaler(device.type, enabled=config.precision == "fp16")
    parts = Parts(
        model=model,
        optimizer=optimizer,
        average=average,
        epochs_average=EpochAverage(model) if config.swa is not None else None,
        scaler=scaler,
    )
    return parts, Stepper(shared, parts, config, processes, seed=seed)


def _require_validation(config: TrainConfig, run: RunInfo) -> None:
    needs = [
        name
        for name, needed in (
            ("schedule: plateau", config.schedule == "plateau"),
            ("early_stopping", config.early_stopping is not None),
        )
        if needed
    ]
    if needs and run.validate is None:
        raise ConfigError(
            f"{' and '.join(needs)} cannot work without a validation", hint="Give validation data."
        )


def _interruption(signum: int, step: int) -> Interrupted:
    name = signal.Signals(signum).name
    return Interrupted(signum, f"stopped by {name} after step {step}; resume the run to go on from there")

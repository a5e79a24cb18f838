"""Which checkpoints a run keeps: `last` to go on from, the `last` before it, and the best weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from scantling.errors import CheckpointError
from scantling.train.checkpoint import (
    CheckpointMeta,
    keep_previous,
    load_checkpoint,
    model_tensors,
    save_checkpoint,
)
from scantling.train.state import LoopState, Parts, resume_state, training_record

log = logging.getLogger(__name__)

BEST_NAME = "best.safetensors"
LAST_NAME = "last.safetensors"
PREVIOUS_NAME = "last.previous.safetensors"


def resumable(out: Path) -> bool:
    """Whether the folder holds a training that can go on."""
    return _newest_state(out).is_file()


def require_resumable(out: Path) -> None:
    """Refuse to resume where nothing was begun; say so where the newest state is gone and an older one is taken.

    Raises:
        CheckpointError: The folder has neither `last.safetensors` nor the one before it.
    """
    newest = _newest_state(out)
    if not newest.is_file():
        raise CheckpointError(f"{out}: there is nothing to resume (no {LAST_NAME})", hint="Start a new run.")
    if newest.name != LAST_NAME:
        log.warning("%s is gone; training goes on from the one before it, %s", out / LAST_NAME, newest.name)


def _newest_state(out: Path) -> Path:
    """The file training goes on from: `last`, or the one before where that is gone."""
    last, previous = out / LAST_NAME, out / PREVIOUS_NAME
    return previous if previous.is_file() and not last.is_file() else last


class Keeper:
    """Writes and reads the checkpoints of one run.

    Attributes:
        best: Path of the best weights.
        last: Path of the newest state of training.
    """

    def __init__(self, out: Path, meta: CheckpointMeta, settings: Mapping[str, JsonValue]) -> None:
        self.best = out / BEST_NAME
        self.last = out / LAST_NAME
        self._previous = out / PREVIOUS_NAME
        self._meta = meta
        self._settings = settings

    def save_last(self, parts: Parts, state: LoopState) -> None:
        """Write the whole state of training; the file it replaces stays as `last.previous.safetensors`.

        Raises:
            TrainingError: It cannot be written; the file before it is intact.
        """
        state.average_updates = parts.average.updates if parts.average else 0
        state.averaged_epochs = parts.epochs_average.epochs if parts.epochs_average else 0
        state.scaler = parts.scaler.state_dict()
        progress = {"step": state.step, "epoch": state.closed_epochs}
        meta = self._meta.model_copy(update=progress | {"training": training_record(state, self._settings)})
        keep_previous(self.last, self._previous)
        save_checkpoint(self.last, parts.tensors(), meta)

    def save_best(
        self, parts: Parts, state: LoopState, metrics: Mapping[str, float | None], epoch: int
    ) -> None:
        """Write the weights to predict with.

        Raises:
            TrainingError: As `save_last`.
        """
        state.best_metrics = dict(metrics)
        progress = {"step": state.step, "epoch": epoch, "metrics": state.best_metrics}
        save_checkpoint(self.best, model_tensors(parts.best_model), self._meta.model_copy(update=progress))

    def resume(self, parts: Parts) -> LoopState:
        """Put `last`, or the one before where it is gone, back into a run's parts and return where it stood.

        Raises:
            CheckpointError: It is missing, damaged, or belongs to another run; the differences are listed.
        """
        newest = _newest_state(self.last.parent)
        checkpoint = load_checkpoint(newest)
        state = resume_state(checkpoint, self._meta, self._settings, source=newest)
        parts.restore(checkpoint.tensors, state, source=newest)
        return state

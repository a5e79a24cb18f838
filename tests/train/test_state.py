"""What is kept for resuming, beyond what whole runs show in test_loop.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from scantling.errors import CheckpointError
from scantling.train.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from scantling.train.config import TrainConfig
from scantling.train.ema import MovingAverage
from scantling.train.keeper import Keeper
from scantling.train.optim import build_optimizer
from scantling.train.state import LoopState, Parts


def parts_of(model: nn.Module, *, init_scale: float = 1024.0) -> Parts:
    config = TrainConfig(epochs=1, optimizer="adamw", lr=0.1)
    return Parts(
        model=model,
        optimizer=build_optimizer(model, config),
        average=MovingAverage(model, 0.5),
        scaler=GradScaler("cpu", init_scale=init_scale),
    )


def step(parts: Parts, gradient: float) -> None:
    for parameter in parts.model.parameters():
        parameter.grad = torch.full_like(parameter, gradient) * parts.scaler.scale(torch.tensor(1.0))
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.average.update(parts.model)


def test_the_loss_scale_and_the_average_go_on_where_they_were(tmp_path):
    keeper = Keeper(tmp_path, CheckpointMeta(), {})
    first, second = parts_of(nn.Linear(2, 2)), parts_of(nn.Linear(2, 2), init_scale=8.0)
    for gradient in (1.0, float("inf"), 2.0):
        step(first, gradient)
    keeper.save_last(first, LoopState(step=3))
    state = keeper.resume(second)
    assert state.step == 3
    assert second.scaler.get_scale() == 512.0
    assert second.average.decay() == first.average.decay()
    for parts in (first, second):
        step(parts, -0.5)
    for parameter, twin in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(parameter, twin)


def test_a_checkpoint_without_training_state_cannot_be_resumed(tmp_path):
    parts = parts_of(nn.Linear(2, 2))
    keeper = Keeper(tmp_path, CheckpointMeta(), {})
    save_checkpoint(keeper.last, parts.tensors(), CheckpointMeta())
    with pytest.raises(CheckpointError, match="holds weights only"):
        keeper.resume(parts)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"settings": {}, "state": {"step": "three"}}, "training state in it cannot be read"),
        ({"settings": {}, "state": {"unknown": 3}}, "training state in it cannot be read"),
        ({"settings": [1]}, "belongs to another run"),
        ({}, "belongs to another run"),
    ],
)
def test_a_training_state_that_makes_no_sense_is_refused(tmp_path, training, words):
    parts = parts_of(nn.Linear(2, 2))
    keeper = Keeper(tmp_path, CheckpointMeta(), {})
    save_checkpoint(keeper.last, parts.tensors(), CheckpointMeta(training=training))
    with pytest.raises(CheckpointError, match=words):
        keeper.resume(parts)


def test_optimiser_state_of_another_model_is_refused(tmp_path):
    keeper = Keeper(tmp_path, CheckpointMeta(), {})
    parts = parts_of(nn.Linear(2, 2))
    step(parts, 1.0)
    keeper.save_last(parts, LoopState())
    rename(keeper.last, "optimizer.exp_avg.weight", "optimizer.exp_avg.kernel")
    with pytest.raises(CheckpointError, match="'kernel', which is no parameter"):
        keeper.resume(parts_of(nn.Linear(2, 2)))


def rename(path: Path, old: str, new: str) -> None:
    tensors, meta = load_checkpoint(path)
    save_checkpoint(path, {new if name == old else name: tensor for name, tensor in tensors.items()}, meta)

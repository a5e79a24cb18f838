"""Which parameter is trained how, and the learning rate of every step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scantling.errors import ConfigError
from scantling.train.config import TrainConfig
from scantling.train.optim import Schedule, build_optimizer, build_schedule, parameter_groups


class RmsNorm(nn.Module):
    """A normalisation layer PyTorch does not know, named as timm names them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.q_bias = nn.Parameter(torch.zeros(2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "stem": nn.Conv2d(3, 2, 1),
                "norm": nn.GroupNorm(1, 2),
                "attention": Attention(),
                "rms": RmsNorm(),
            }
        )
        self.head = nn.Linear(2, 2)
        self.head_norm = nn.BatchNorm1d(2)


def decays(model: nn.Module, **settings) -> dict[str, float]:
    groups = parameter_groups(model, TrainConfig(weight_decay=0.05, **settings))
    return {name: group["weight_decay"] for group in groups for name, _ in group["params"]}


def spared(**settings) -> set[str]:
    return {name for name, decay in decays(Model(), **settings).items() if decay == 0}


NORMS = {
    "backbone.norm.weight",
    "backbone.norm.bias",
    "backbone.rms.weight",
    "head_norm.weight",
    "head_norm.bias",
}
TABLE = {"backbone.attention.relative_position_bias_table"}
BIASES = {"backbone.stem.bias", "backbone.attention.q_bias", "head.bias"}


def test_what_weight_decay_spares():
    assert spared() == NORMS | TABLE
    assert spared(norm_decay=True) == TABLE
    assert spared(position_decay=True) == NORMS
    assert spared(bias_decay=False) == NORMS | TABLE | BIASES
    assert spared(norm_decay=True, position_decay=True) == set()


def test_a_layer_that_only_sounds_like_a_norm_decays():
    class NormedLinear(nn.Linear):
        """A cosine classifier."""

    assert decays(nn.Sequential(NormedLinear(2, 2))) == {"0.weight": 0.05, "0.bias": 0.05}


def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = Model()
    model.backbone.stem.requires_grad_(False)
    names = [name for group in parameter_groups(model, TrainConfig()) for name, _ in group["params"]]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted(names) == sorted(trainable)
    assert "backbone.stem.weight" not in names


def test_backbone_rate_is_scaled_at_every_step():
    model = Model()
    config = TrainConfig(epochs=2, lr=0.4, backbone_lr_scale=0.1, warmup_steps=0, milestones=[1])
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(config, steps_per_epoch=10)
    for step, rate in ((0, 0.4), (10, 0.04)):
        assert schedule.apply(optimizer, step) == pytest.approx(rate)
        for group in optimizer.param_groups:
            in_backbone = {name.startswith("backbone") for name in group["param_names"]}
            assert in_backbone in ({True}, {False})
            assert group["lr"] == pytest.approx(rate * (0.1 if in_backbone == {True} else 1.0))


def test_nothing_to_train():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(Model().requires_grad_(False), TrainConfig())
    with pytest.raises(ConfigError, match="no trainable `backbone`"):
        build_optimizer(nn.Linear(2, 2), TrainConfig(backbone_lr_scale=0.1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", 1 - 0.1 * 1.9 * 2.0 - 0.1 * 2.0),  # w - lr g - lr (0.9 g + g) with g = 2
        ("adamw", 1 - 2 * 0.1),  # a constant gradient moves by lr a step
        ("adadelta", None),
    ],
)
def test_two_updates_under_a_constant_gradient(name, expected):
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.data.fill_(1.0)
    optimizer = build_optimizer(weight, TrainConfig(optimizer=name, lr=0.1, weight_decay=0.0))
    for _ in range(2):
        weight.weight.grad = torch.full((1, 1), 2.0)
        optimizer.step()
    assert weight.weight.item() == pytest.approx(
        adadelta_by_hand() if expected is None else expected, abs=1e-6
    )


def adadelta_by_hand() -> float:
    """Zeiler 2012, algorithm 1, with rho 0.95 and epsilon 1e-6."""
    weight, gradients, updates = 1.0, 0.0, 0.0
    for _ in range(2):
        gradients = 0.95 * gradients + 0.05 * 2.0**2
        update = math.sqrt(updates + 1e-6) / math.sqrt(gradients + 1e-6) * 2.0
        updates = 0.95 * updates + 0.05 * update**2
        weight -= 0.1 * update
    return weight


def schedule_of(**settings) -> Schedule:
    values = {"epochs": 10, "lr": 1.0, "warmup_steps": 0} | settings
    return build_schedule(TrainConfig(**values), steps_per_epoch=4)


def test_warm_up_rises_linearly():
    schedule = schedule_of(schedule="constant", warmup_steps=4, warmup_scale=0.2)
    assert [schedule.scale(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_step_schedule_decays_at_the_first_step_of_its_epochs():
    schedule = schedule_of(schedule="step", milestones=[2, 2.5, 99], gamma=0.5)
    assert [schedule.scale(step) for step in (0, 7, 8, 9, 10, 39)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_cosine_schedule():
    schedule = schedule_of(schedule="cosine", final_lr_scale=0.2)
    assert [schedule.scale(step) for step in (0, 20, 40)] == pytest.approx([1.0, 0.6, 0.2])
    assert schedule.scale(10) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)


def test_plateau_schedule_follows_its_cuts():
    schedule = schedule_of(schedule="plateau", gamma=0.5, warmup_steps=4, warmup_scale=0.0)
    schedule.plateau_cuts = 3
    assert [schedule.scale(2), schedule.scale(30)] == [0.5**3 / 2, 0.5**3]


def test_the_length_must_be_known():
    with pytest.raises(ConfigError, match="epochs is `auto`"):
        build_schedule(TrainConfig(), steps_per_epoch=4)

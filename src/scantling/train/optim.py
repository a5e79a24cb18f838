"""The optimiser with its parameter groups, and the learning rate as a function of the step.

    rate of a parameter at step s = lr x lr_scale of its group x warm-up(s) x body(s)

The schedule is a pure function of the step (the plateau schedule: of the step and its cuts so far), so resuming needs
no stored schedule beyond the number of cuts.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.optim import SGD, Adadelta, AdamW, Optimizer

from scantling.errors import ConfigError
from scantling.settings.auto import resolved
from scantling.train.config import TrainConfig

_NORM_NAME = re.compile(r"norm(act)?([123]d)?$", re.IGNORECASE)
"""Class names of normalisation layers, timm's own included: GroupNorm, LayerNorm2d, BatchNormAct2d, RmsNorm."""
_POSITION_TABLES = ("pos_embed", "position_embed", "relative_position_bias_table")
_BACKBONE = "backbone"


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build the optimiser of a model's trainable parameters.

    Frozen parameters (`requires_grad` false) belong to no group. Each group carries `lr_scale`, which
    `Schedule.apply` multiplies with the learning rate of the step, and `param_names`.

    Args:
        model: Parameters of its `backbone` (any module of that name in the path) get `backbone_lr_scale`.
        config: Optimiser, learning rate, decay and what the decay spares.

    Raises:
        ConfigError: Nothing can be trained, or `backbone_lr_scale` is set and there is no backbone.
    """
    groups = parameter_groups(model, config)
    on_cpu = all(p.device.type == "cpu" for group in groups for _, p in group["params"])
    fused = True if on_cpu else None  # one pass over the weights instead of ten; elsewhere torch chooses
    match config.optimizer:
        case "sgd":
            return SGD(groups, lr=resolved(config.lr), momentum=config.momentum, fused=fused)
        case "adamw":
            return AdamW(groups, lr=resolved(config.lr), betas=config.betas, fused=fused)
        case "adadelta":
            return Adadelta(groups, lr=resolved(config.lr), rho=config.rho)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and learning-rate scale, in the model's order.

    Returns:
        Dicts with `params` (name, parameter), `weight_decay` and `lr_scale`; every trainable parameter is in exactly
        one of them.

    Raises:
        ConfigError: As in `build_optimizer`.
    """
    spared = set(_spared_names(model, config))
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    _require_useful(trainable, config)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trainable:
        weight_decay = 0.0 if name in spared else config.weight_decay
        lr_scale = config.backbone_lr_scale if _in_backbone(name) else 1.0
        empty: dict[str, Any] = {"params": [], "weight_decay": weight_decay, "lr_scale": lr_scale}
        groups.setdefault((weight_decay, lr_scale), empty)["params"].append((name, parameter))
    return list(groups.values())


def _spared_names(model: nn.Module, config: TrainConfig) -> Iterator[str]:
    """Yield the names of the parameters that the decay leaves alone."""
    for prefix, module in model.named_modules():
        is_norm = _NORM_NAME.search(type(module).__name__) is not None
        for name, _ in module.named_parameters(prefix, recurse=False):
            leaf = name.rpartition(".")[2]
            is_bias = not is_norm and (leaf == "bias" or leaf.endswith("_bias"))
            is_position = any(table in leaf for table in _POSITION_TABLES)
            decays = (
                (config.norm_decay or not is_norm)
                and (config.bias_decay or not is_bias)
                and (config.position_decay or not is_position)
            )
            if not decays:
                yield name


def _in_backbone(name: str) -> bool:
    return _BACKBONE in name.split(".")


def _require_useful(trainable: Iterable[tuple[str, nn.Parameter]], config: TrainConfig) -> None:
    names = [name for name, _ in trainable]
    if not names:
        raise ConfigError("the model has no trainable parameter: every part of it is frozen")
    if config.backbone_lr_scale != 1.0 and not any(_in_backbone(name) for name in names):
        raise ConfigError(
            f"backbone_lr_scale is {config.backbone_lr_scale}, but the model has no trainable `backbone`",
            hint="Leave backbone_lr_scale at 1.",
        )


class Schedule:
    """The learning rate of every step.

    Attributes:
        epochs: Length of the run.
        plateau_cuts: Number of times that the plateau schedule has lowered the rate; the only state there is.
    """

    def __init__(self, config: TrainConfig, *, epochs: int, steps_per_epoch: int) -> None:
        self.epochs = epochs
        self.plateau_cuts = 0
        self._config = config
        self._steps = epochs * steps_per_epoch
        averaged = (
            epochs if config.swa is None or config.swa_lr_scale is None else max(0, epochs - config.swa)
        )
        self._averaged_from = averaged * steps_per_epoch
        self._milestones = [round(epoch * steps_per_epoch) for epoch in config.decay_epochs()]

    def scale(self, step: int) -> float:
        """Factor of the learning rate for the update that follows `step` finished updates."""
        steps, start = self._config.warmup_steps, self._config.warmup_scale
        warmup = start + (1 - start) * step / steps if step < steps else 1.0
        return warmup * self._body(step)

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set every group's learning rate for the next update and return the rate of an unscaled group."""
        rate = resolved(self._config.lr) * self.scale(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate

    def _body(self, step: int) -> float:
        config = self._config
        if config.swa_lr_scale is not None and step >= self._averaged_from:
            return config.swa_lr_scale
        match config.schedule:
            case "step":
                return float(config.gamma ** bisect_right(self._milestones, step))
            case "plateau":
                return float(config.gamma**self.plateau_cuts)
            case "cosine":
                half_wave = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._steps)))
                return config.final_lr_scale + (1 - config.final_lr_scale) * half_wave
            case "constant":
                return 1.0


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """Build the schedule of a run whose length is known.

    Args:
        config: Settings of the training, whose `epochs` must be a number.
        steps_per_epoch: Updates of the weights per epoch.

    Raises:
        ConfigError: `epochs` is still `auto`.
    """
    if config.epochs == "auto":
        raise ConfigError(
            "epochs is `auto`, which must be turned into a number before training starts",
            hint="Give a number of epochs, or start through a recipe, which works it out from the data set.",
        )
    return Schedule(config, epochs=config.epochs, steps_per_epoch=steps_per_epoch)

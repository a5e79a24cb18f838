"""Own-crop pretraining as a stage: the weights that members with `init: pretrain` start from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from scantling.data.io import sha256_of
from scantling.data.splits import RunData
from scantling.errors import ConfigError
from scantling.models.backbone import BackboneConfig
from scantling.models.segmenters import SegmenterConfig
from scantling.models.zoo import INIT_PRETRAIN, ModelConfig, build_model
from scantling.pretrain.config import PretrainConfig, resolve_auto
from scantling.pretrain.run import FILES, PretrainRun, measure_crops, pretrain
from scantling.pretrain.source import plan_crops
from scantling.pretrain.summary import BACKBONE
from scantling.recipe.auto import Resolution
from scantling.recipe.recipe import Recipe
from scantling.run.context import RunContext
from scantling.run.stage import Resources, Stage
from scantling.train.devices import Processes

FOLDER = "pretrain"
WEIGHTS = f"{FOLDER}/moco/{BACKBONE}"
_OF_BACKBONE = {"backbone": "name", "norm": "norm", "deform": "deform", "deform_version": "deform_version"}


Network = TypeVar("Network", ModelConfig, SegmenterConfig)


class InitialWeights(NamedTuple):
    """Where a member starts from.

    Attributes:
        path: File of weights; None for random ones and timm's.
        sha256: Its hash; None without a file, or where it is yet to be made.
        is_known: Whether what decides the training is known already.
    """

    path: Path | None
    sha256: str | None
    is_known: bool

    def applied_to(self, model: Network) -> Network:
        """The model's settings with the file to load."""
        return model if self.path is None else model.model_copy(update={"init": str(self.path)})


def initial_weights(context: RunContext, name: str) -> InitialWeights:
    """Where a member starts from."""
    model = context.member(name).network
    path = context.root / WEIGHTS if model.init == INIT_PRETRAIN else model.weights_file()
    if path is None:
        return InitialWeights(None, None, is_known=True)
    if not path.is_file():
        return InitialWeights(path, None, is_known=model.init != INIT_PRETRAIN)
    return InitialWeights(path, sha256_of(path), is_known=True)


def pretrain_stage(context: RunContext) -> Stage:
    """Learn the backbone from the crops of all training and validation objects, as the DelftBikes report does."""
    config = _require_config(context.recipe)
    return Stage(
        folder=FOLDER,
        name=FOLDER,
        inputs=lambda: {
            "seed": context.recipe.seed,
            "data": context.data.learned_hashes,
            "pretrain": config.model_dump(mode="json", exclude={"workers", "checkpoint_every", "log_every"}),
        },
        outputs=(WEIGHTS, f"{FOLDER}/moco/metrics.json"),
        working_files=tuple(f"{FOLDER}/moco/{name}" for name in FILES),
        action=partial(_pretrain, context, config),
        costly=True,
        resources=Resources(gpus=1, processes=None),
    )


def resolve_pretraining(
    found: Resolution, data: RunData, device: torch.device, processes: Processes
) -> Resolution:
    """Decide what `auto` means in a recipe's `pretrain`: the members' backbone, and numbers that fit its crops.

    Args:
        found: The recipe with everything else decided.
        data: Its splits.
        device: Where it computes.
        processes: Those that train together.

    Raises:
        ConfigError: Members and pretraining do not fit each other.
        DataError: There are too few crops.
    """
    recipe = found.recipe
    users = [
        name for name, m in recipe.members.items() if m.model is not None and m.model.init == INIT_PRETRAIN
    ]
    if recipe.pretrain is None:
        if users:
            hint = "Add a section `pretrain: {epochs: auto}`, or start from `init: random`."
            raise ConfigError(
                f"members.{users[0]}.model.init is {INIT_PRETRAIN!r}, but nothing is", hint=hint
            )
        return found
    if not users:
        hint = f"Set `init: {INIT_PRETRAIN}` in the `model` of a member, or leave out the section `pretrain`."
        raise ConfigError("pretrain: no member starts from it", hint=hint)
    config = _with_backbone(recipe, users)
    plan = plan_crops(data.learned, config, seed=recipe.seed)
    resolved = resolve_auto(config, measure_crops(plan, config, recipe.seed, device, processes))
    changed = recipe.model_copy(update={"pretrain": resolved.config})
    return Resolution(changed, (*found.reasons, *resolved.reasons))


def _with_backbone(recipe: Recipe, users: list[str]) -> PretrainConfig:
    """The pretraining's settings with the members' backbone, where they do not name one themselves."""
    config = _require_config(recipe)
    given = config.model_fields_set
    for name in users:
        wanted = _backbone_of(recipe.members[name].detector)
        own = {key: getattr(wanted, field) for key, field in _OF_BACKBONE.items()}
        differing = {key for key in own if key in given and getattr(config, key) != own[key]}
        if differing:
            told = ", ".join(f"{key} {getattr(config, key)!r} and {own[key]!r}" for key in sorted(differing))
            hint = "Leave the backbone out of `pretrain`; members with unlike backbones cannot share one."
            raise ConfigError(f"pretrain and members.{name} differ: {told}", hint=hint)
        config = PretrainConfig.model_validate({**config.model_dump(), **own})
        given = given | own.keys()
    return config


def _backbone_of(model: ModelConfig) -> BackboneConfig:
    with torch.device("meta"):  # shapes only
        backbones = [*build_model(model.model_copy(update={"init": "random"}), 1).backbones().values()]
    if not backbones:
        raise ConfigError(f"model {model.name!r} has no backbone that can be pretrained")
    return backbones[0].config


def _pretrain(context: RunContext, config: PretrainConfig) -> None:
    run = PretrainRun(seed=context.recipe.seed, device=str(context.device), console=context.console)
    plan = plan_crops(context.data.learned, config, seed=context.recipe.seed)
    pretrain(plan, config, context.root / FOLDER / "moco", run=run)


def _require_config(recipe: Recipe) -> PretrainConfig:
    if recipe.pretrain is None:
        raise TypeError("this recipe has no pretraining")
    return recipe.pretrain

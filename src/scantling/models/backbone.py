"""Backbones: one adapter over timm that states its channels and strides and returns NCHW feature maps.

    image (B, 3, H, W) ──► [(B, C_2, H/4, W/4), (B, C_3, H/8, W/8), (B, C_4, H/16, W/16), (B, C_5, H/32, W/32)]
    by parts:  stem ──► enter(1) ─ blocks(1) ──► enter(2) ─ blocks(2) ──► .. ──► outputs

Any timm model with hierarchical features works (ResNet, ResNeXt, ConvNeXt, Swin, EfficientNet, RegNet, ...).
What the adapter adds: normalisation by name, frozen stages, deformable convolution in chosen stages of the
ResNet family, any input size for Swin (its first version is our own, see `swin.py`), a LayerNorm on each output of
Swin and ConvNeXt (as their detection models have), weights from a local file, and the pass by parts that composite
backbones (`cbnet.py`) and activation checkpointing need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.layers import convert_sync_batchnorm
from timm.layers.norm_act import BatchNormAct2d, GroupNormAct
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scantling.errors import ConfigError
from scantling.models.layers import DeformConv, norm_groups
from scantling.models.swin import DEFAULT_DROP_PATH, Swin, swin_shape
from scantling.models.timm_networks import timm_features
from scantling.models.weights.published import published_network
from scantling.models.weights.torchvision_keys import timm_names

STRIDES = (4, 8, 16, 32)
BackboneStage = Annotated[int, Field(ge=1, le=4)]
BackboneNorm = Literal["default", "bn", "bn_eval", "frozen_bn", "sync_bn", "gn"]


class BackboneConfig(BaseModel):
    """Which timm network, and what is changed in it.

    Attributes:
        name: timm model name.
        norm: `default` keeps the network's own layers; `bn` trains BatchNorm as it is; `bn_eval` uses its running
            statistics but trains weight and bias; `frozen_bn` fixes all of it; `sync_bn` pools statistics over
            processes; `gn` replaces BatchNorm by GroupNorm. Networks without BatchNorm take `default` only.
        frozen_stages: Stem and this many stages are neither trained nor updated; 0 freezes nothing.
        deform: Stages (1..4) whose 3x3 convolutions become deformable; ResNet family only.
        deform_version: 1 or 2.
        drop_path: Stochastic depth rate, for networks that have it; None keeps timm's default for the model.
        activation_checkpointing: Keep only what each block reads, and compute the block again in the backward pass: a
            fraction of the memory for a third more time. ResNet, ResNeXt, Swin and ConvNeXt families only, and not
            with BatchNorm that learns its statistics, which would count every batch twice.
        pretrained: Fetch timm's published weights (needs a network; never done unless asked).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "resnet50"
    norm: BackboneNorm = "default"
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0
    deform: tuple[BackboneStage, ...] = ()
    deform_version: Literal[1, 2] = 1
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    activation_checkpointing: bool = False
    pretrained: bool = False


class Backbone(nn.Module):
    """A timm network as a source of feature maps at strides 4, 8, 16 and 32.

    Args:
        config: Network and changes.

    Attributes:
        channels: Width of each returned map, finest first.
        strides: (4, 8, 16, 32).

    Raises:
        ConfigError: Unknown model, no features at the four strides, or a change the network cannot take.
    """

    body: Any  # timm's feature networks share an interface, but no type that states it

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.body = _create(config)
        info = self.body.feature_info
        self._taken = [i for i, stride in enumerate(info.reduction()) if stride in STRIDES]
        self.strides = tuple(info.reduction()[i] for i in self._taken)
        if self.strides != STRIDES:
            raise ConfigError(
                f"backbone {config.name!r} has features at strides {tuple(info.reduction())}; needed are {STRIDES}"
            )
        self._left_out, self._num_left_out = list[str](), 0
        self.channels = tuple(info.channels()[i] for i in self._taken)
        self.channels_last = "NHWC" in str(getattr(self.body, "output_fmt", ""))
        normed = self.channels_last or config.name.startswith("convnext")
        self.out_norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels if normed)
        for stage in config.deform:
            _make_deformable(self.stage(stage), config)
        self._replace_norms()
        self._freeze()
        if config.activation_checkpointing:
            self.require_parts()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W), H and W multiples of 32 -> four maps (B, C, H/s, W/s)."""
        if not self.config.activation_checkpointing:
            outputs = self.body(images)
            return self.outputs([outputs[i] for i in self._taken])
        x, maps = self.stem(images), []
        for number in (1, 2, 3, 4):
            x = self.blocks(number, self.enter(number, x))
            maps.append(x)
        return self.outputs(maps)

    def stem(self, images: Tensor) -> Tensor:
        """Normalised images -> what stage 1 reads, in the network's own order of dimensions."""
        first = self.stage(1)
        x = images
        for part in self.body.children():
            if part is first:
                break
            x = part(x)
        return x

    def enter(self, number: int, x: Tensor) -> Tensor:
        """What stage 1..4 does before its blocks: Swin and ConvNeXt halve the map here, a ResNet in its first block."""
        stage: Any = self.stage(number)
        entered: Tensor = stage.downsample(x) if self.enters_apart else x
        return entered

    def blocks(self, number: int, x: Tensor) -> Tensor:
        """The blocks of stage 1..4, in training perhaps with checkpoints between them."""
        stage: Any = self.stage(number)
        blocks = stage.blocks if self.enters_apart else stage
        if not (self.config.activation_checkpointing and self.training and torch.is_grad_enabled()):
            whole: Tensor = blocks(x)
            return whole
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def outputs(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What the blocks of the four stages made -> four maps (B, C, H/s, W/s), normalised where the network is."""
        if not self.out_norms:
            return list(maps)
        if not self.channels_last:
            maps = [m.permute(0, 2, 3, 1) for m in maps]
        return [n(m).permute(0, 3, 1, 2).contiguous() for n, m in zip(self.out_norms, maps, strict=True)]

    @property
    def stem_channels(self) -> int:
        """Width of what a ResNet's stage 1 reads."""
        channels: int = self.body.feature_info.channels()[self._taken[0] - 1]
        return channels

    @property
    def enters_apart(self) -> bool:
        """Whether a stage halves its map before its blocks (Swin, ConvNeXt), or within the first (ResNet)."""
        return hasattr(self.stage(4), "downsample")

    def require_parts(self) -> None:
        """Refuse a network that cannot be passed by parts.

        Raises:
            ConfigError: It is none of the ResNet, ResNeXt, Swin and ConvNeXt families, or the blocks' second
                computation would change it.
        """
        stages = [self.stage(number) for number in (1, 2, 3, 4)]
        apart = all(hasattr(stage, "downsample") and hasattr(stage, "blocks") for stage in stages)
        in_order = list(self.body.children())[-4:] == stages
        name = self.config.name
        if not in_order or not (apart or all(type(stage) is nn.Sequential for stage in stages)):
            raise ConfigError(
                f"backbone {name!r} cannot be taken apart into stages of blocks",
                hint="Composite backbones and activation_checkpointing take networks of the ResNet, ResNeXt, Swin and "
                "ConvNeXt families.",
            )
        learns = self.config.norm in ("bn", "sync_bn") or (
            self.config.norm == "default" and self._batch_norms()
        )
        if self.config.activation_checkpointing and learns:
            raise ConfigError(
                f"backbone {name!r}: activation_checkpointing with norm {self.config.norm} would count the statistics "
                "of every batch twice",
                hint="Use norm bn_eval, frozen_bn or gn.",
            )

    def leave_out(self, num_stages: int) -> None:
        """Remove the stem, the first `num_stages` stages, and what the first one left does before its blocks."""
        first: Any = self.stage(num_stages + 1)
        self._num_left_out = num_stages
        for name, part in list(self.body.named_children()):
            if part is first:
                break
            delattr(self.body, name)
            self._left_out.append(f"{name}.")
        if self.enters_apart:
            first.downsample = nn.Identity()
            self._left_out.append(f"{self._stage_name(num_stages + 1)}.downsample.")

    def stage(self, number: int) -> nn.Module:
        """Stage 1..4 (output stride 4, 8, 16, 32)."""
        found: nn.Module = self.body.get_submodule(self._stage_name(number))
        return found

    def _stage_name(self, number: int) -> str:
        name: str = self.body.feature_info.module_name()[self._taken[number - 1]]
        for known in (name, name.replace(".", "_")):
            with suppress(AttributeError):
                self.body.get_submodule(known)
                return known
        raise ConfigError(f"backbone {self.config.name!r}: stage {number} ({name}) cannot be addressed")

    def train(self, mode: bool = True) -> Backbone:
        """Training mode, except for what is frozen and for BatchNorm with fixed statistics."""
        super().train(mode)
        for module in self._fixed():
            module.eval()
        return self

    def load(self, state: Mapping[str, Tensor], place: str = "backbone.") -> list[str]:
        """Load a backbone's weights, with or without a classifier.

        Args:
            state: timm or torchvision keys, or a checkpoint whose backbone keys start with `backbone.body.`.
            place: Where in the detector this backbone is; its own keys of a checkpoint go before those of a plain
                detector's.

        Returns:
            The keys of `state` that were not used (a classifier's, usually).

        Raises:
            ConfigError: See `fitting`.
        """
        found = self.fitting(state, place)
        target = self.body.state_dict()
        self.body.load_state_dict({k: found.get(k, v) for k, v in target.items()})
        return sorted(k for k in found if k not in target)

    def fitting(self, state: Mapping[str, Tensor], place: str = "backbone.") -> dict[str, Tensor]:
        """A backbone's weights under the names of this network, once they are known to fill it; loads nothing.

        Offsets of deformable convolutions may all be missing, as they are in the weights of a plain network: they
        then keep their start at zero. So may counters of batches.

        Args:
            state: As `load` takes it.
            place: As `load` takes it.

        Raises:
            ConfigError: A weight of this network is missing or has another shape, or a part of it has a weight or
                running statistic too many, as a deeper network's or one with another normalisation.
        """
        own = _inside(f"{place}body.", state) or _inside("backbone.body.", state) or timm_names(state)
        target = self.body.state_dict()
        found = {_feature_key(k, target): v for k, v in own.items()}
        renamed = {k: v for k, v in found.items() if not k.startswith(tuple(self._left_out))}
        optional = {k for k in target if k.endswith("num_batches_tracked")}
        offsets = {k for k in target if ".conv2.offset." in k}
        if not offsets & renamed.keys():
            optional |= offsets
        wanted = target.keys() - optional
        wrong = sorted(k for k in wanted if k not in renamed or renamed[k].shape != target[k].shape)
        parts = {k.partition(".")[0] for k in target}
        surplus = sorted(
            k
            for k in renamed.keys() - target.keys()
            if k.partition(".")[0] in parts and not k.endswith(_DERIVED)
        )
        if wrong or surplus:
            told = (
                f"{len(wrong)} of {len(wanted)} entries are missing or have another shape, first {wrong[:5]}"
            )
            if not wrong:
                told = f"{len(surplus)} of its entries find no place in the network, first {surplus[:5]}"
            raise ConfigError(
                f"weights do not fit backbone {self.config.name!r}: {told}",
                hint="Check the backbone's name, `norm` and `deform` against those the weights were made with.",
            )
        return renamed

    def _replace_norms(self) -> None:
        kind = self.config.norm
        if kind == "default":
            return
        if not any(isinstance(m, nn.BatchNorm2d) for m in self.body.modules()):
            raise ConfigError(
                f"backbone {self.config.name!r} has no BatchNorm; use norm: default, not {kind}"
            )
        if kind == "gn":
            _batch_to_group_norm(self.body)
        elif kind == "sync_bn":
            self.body = convert_sync_batchnorm(self.body)
        elif kind == "frozen_bn":  # the layers stay: in evaluation mode they are one fused kernel
            for layer in self._batch_norms():
                layer.requires_grad_(False)

    def _freeze(self) -> None:
        """Stop training everything up to the last frozen stage, in the order of definition."""
        if self.config.frozen_stages == 0:
            return
        last = list(self.stage(self.config.frozen_stages).parameters())[-1]
        for parameter in self.body.parameters():
            parameter.requires_grad_(False)
            if parameter is last:
                return

    def _batch_norms(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.body.modules() if isinstance(m, nn.BatchNorm2d)]

    def _fixed(self) -> Iterator[nn.Module]:
        """Layers that stay in evaluation mode: those of frozen stages, and BatchNorm with fixed statistics."""
        if self.config.norm in ("bn_eval", "frozen_bn"):
            yield from self._batch_norms()
        if self.config.frozen_stages > self._num_left_out:
            order = {module: place for place, module in enumerate(self.body.modules())}
            end = max(order[module] for module in self.stage(self.config.frozen_stages).modules())
            yield from (m for m in order if all(order[inner] <= end for inner in m.modules()))


_DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
"""Ends of keys that hold nothing learned."""


def _create(config: BackboneConfig) -> nn.Module:
    shape = swin_shape(config.name)
    if shape is not None:
        swin = Swin(shape, DEFAULT_DROP_PATH if config.drop_path is None else config.drop_path)
        if config.pretrained:
            _load_published(swin, config.name)
        return swin
    options: dict[str, object] = {}
    if config.name.startswith("swin"):  # any size; windows are padded, never shrunk
        options |= {"strict_img_size": False, "always_partition": True}
    if config.drop_path is not None:
        options["drop_path_rate"] = config.drop_path
    body = timm_features(config.name, options)
    if config.pretrained:
        _load_published(body, config.name)
    return body


def _load_published(body: nn.Module, name: str) -> None:
    """Put timm's published weights into a feature network."""
    published = published_network(name, features_only=True).state_dict()
    body.load_state_dict({key: published[key] for key in body.state_dict()})


def _make_deformable(stage: nn.Module, config: BackboneConfig) -> None:
    """Replace each block's 3x3 convolution (`conv2` in the ResNet family)."""
    blocks = [m for m in stage.modules() if isinstance(getattr(m, "conv2", None), nn.Conv2d)]
    if not blocks:
        raise ConfigError(f"backbone {config.name!r}: deform needs a network of the ResNet family")
    for block in blocks:
        conv = block.conv2
        if isinstance(conv, nn.Conv2d):
            block.conv2 = DeformConv(conv, config.deform_version)


def _batch_to_group_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            groups = norm_groups(child.num_features)
            replacement = GroupNormAct(child.num_features, num_groups=groups)
            replacement.act, replacement.drop = child.act, child.drop
            setattr(module, name, replacement)
        elif isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(norm_groups(child.num_features), child.num_features)
            if child.affine:
                norm.weight, norm.bias = child.weight, child.bias  # keeps zero-initialised residual branches
            setattr(module, name, norm)
        else:
            _batch_to_group_norm(child)


def _inside(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _feature_key(key: str, target: Mapping[str, Tensor]) -> str:
    """Name in a timm feature network, which writes `stages_0.` where the plain one writes `stages.0.`."""
    head, _, rest = key.partition(".")
    number, _, tail = rest.partition(".")
    joined = f"{head}_{number}.{tail}"
    return joined if key not in target and joined in target else key

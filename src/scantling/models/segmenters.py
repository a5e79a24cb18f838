"""Every named segmenter with its numbers: `name -> SegmenterPreset(options, build)`.

A recipe's `segmenter:` is a `SegmenterConfig`: a name from `SEGMENTERS`, `init`, what it tells apart, and any of the
options of that segmenter's method (`fpn_segmenter.FPNSegmenterOptions`, `mask2former.Mask2FormerOptions`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from scantling.errors import CheckpointError, ConfigError
from scantling.models.backbone import Backbone
from scantling.models.contract import Segmenter
from scantling.models.fpn_segmenter import FPNSegmenter, FPNSegmenterOptions
from scantling.models.mask2former import Mask2Former, Mask2FormerOptions
from scantling.models.named import NamedConfig
from scantling.models.weights.sources import HUB, HUB_FILE, fetch_from_hub, find_weights
from scantling.models.weights.start import read_start
from scantling.models.weights.transformers_keys import CONFIG, is_transformers, read_transformers

log = logging.getLogger(__name__)

DEFAULT = "fpn_r50"
KIND = "segmenter"
"""What a checkpoint of one says it is."""

_NO_FILE = ("random", "pretrained")
_BY_CLASS = ("logits.", "class_predictor.")
"""Layers whose rows are planes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterPreset:
    """A named segmenter.

    Attributes:
        options: Its numbers.
        build: The segmenter, given the options, the number of planes P, whether they are categories, and whether
            timm's published weights of the backbone are fetched.
    """

    options: BaseModel
    build: Callable[[Any, int, bool, bool], Segmenter]


def _fpn(**hyperparameters: Any) -> SegmenterPreset:
    def build(
        options: FPNSegmenterOptions,
        num_planes: int,
        by_category: bool,  # noqa: FBT001
        pretrained: bool,  # noqa: FBT001
    ) -> Segmenter:
        return FPNSegmenter(options, num_planes, by_category=by_category, pretrained=pretrained)

    return SegmenterPreset(options=FPNSegmenterOptions(**hyperparameters), build=build)


def _mask2former(**hyperparameters: Any) -> SegmenterPreset:
    def build(
        options: Mask2FormerOptions,
        num_planes: int,
        by_category: bool,  # noqa: FBT001
        pretrained: bool,  # noqa: FBT001
    ) -> Segmenter:
        if pretrained:
            hint = (
                "Name a checkpoint: init: hf-hub:facebook/mask2former-swin-large-ade-semantic, or a folder."
            )
            raise ConfigError(
                "segmenter.init: Mask2Former has no `pretrained` backbone of its own", hint=hint
            )
        return Mask2Former(options, num_planes, by_category=by_category)

    return SegmenterPreset(options=Mask2FormerOptions(**hyperparameters), build=build)


# For the CPU and few images, from random weights.
SMALL: dict[str, Any] = {
    "backbone": "swin_narrow",
    "hidden_dim": 64,
    "feedforward_dim": 128,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_queries": 20,
    "num_points": 2048,
}

SEGMENTERS: Mapping[str, SegmenterPreset] = {
    "fpn_r50": _fpn(),
    "fpn_swin_t": _fpn(backbone="swin_tiny_patch4_window7_224", norm="default"),
    "fpn_r18_small": _fpn(backbone="resnet18", norm="bn", channels=64, head_norm="bn"),
    "mask2former_swin_t": _mask2former(backbone="swin_t"),
    "mask2former_swin_s": _mask2former(backbone="swin_s"),
    "mask2former_swin_b": _mask2former(backbone="swin_b"),
    "mask2former_swin_l": _mask2former(backbone="swin_l"),  # of VISION'23's second place
    "mask2former_r50": _mask2former(backbone="resnet50"),
    "mask2former_small": _mask2former(**SMALL),
}


class SegmenterConfig(NamedConfig):
    """A named segmenter and what is different from it: the options of its method, beside `name`, `init` and `planes`.

    Attributes:
        name: Key of `SEGMENTERS`.
        init: Where the weights come from: `random`; `pretrained` (timm's published backbone; needs a network unless it
            was fetched before); a checkpoint of a segmenter or a detector of ours, of transformers' Mask2Former, a file
            with a backbone's weights, a folder that holds one of these, a URL, or a hub id (`hf-hub:OWNER/NAME`).
        planes: What is told apart: `foreground`, objects of whatever category from the ground (published), or
            `categories`.
    """

    SECTION: ClassVar[str] = "segmenter"

    name: str = DEFAULT
    planes: Literal["foreground", "categories"] = "foreground"

    @classmethod
    def presets(cls) -> Mapping[str, BaseModel]:
        """The options of every segmenter of `SEGMENTERS`."""
        return {name: preset.options for name, preset in SEGMENTERS.items()}

    def weights_file(self) -> Path | None:
        """The local file that weights come from, fetched if it has to be; None for random ones and timm's.

        Raises:
            CheckpointError: There is no such file, or it cannot be fetched.
        """
        if self.init in _NO_FILE:
            return None
        folder = Path(self.init)
        if (folder / HUB_FILE).is_file():  # as transformers saves one
            return folder / HUB_FILE
        try:
            if self.init.startswith(HUB) and isinstance(self.preset_options(), Mask2FormerOptions):
                fetch_from_hub(self.init.removeprefix(HUB).partition("@")[0], CONFIG)  # next to the weights
            return find_weights(self.init, self.name)
        except CheckpointError as error:
            raise CheckpointError(f"segmenter.init: {error.message}", hint=error.hint) from error


def build_segmenter(config: SegmenterConfig, num_classes: int, class_names: Sequence[str] = ()) -> Segmenter:
    """Build a named segmenter with a recipe's changes; weights are random unless `init` names a source.

    Args:
        config: Name and changes.
        num_classes: Foreground categories K, at least 1.
        class_names: Their names in label order; rows of a classifier are taken over from an equal list only.

    Raises:
        CheckpointError: The initial weights are not there or damaged.
        ConfigError: Unknown name, a library is missing, or the initial weights are another network's.
    """
    unchanged = config.preset_options()
    by_category = config.planes == "categories"
    options = unchanged.model_copy(update=config.options)
    model = SEGMENTERS[config.name].build(
        options, num_classes if by_category else 1, by_category, config.init == "pretrained"
    )
    file = config.weights_file()
    if file is not None:
        log.info("%s", _take(model, file, class_names))
    return model


def check_segmenter(config: SegmenterConfig, num_classes: int) -> None:
    """See whether a segmenter can be built, and its file of weights used; nothing is trained or written.

    Raises:
        CheckpointError: As `build_segmenter`.
        ConfigError: As `build_segmenter`.
    """
    with torch.device("meta"):  # shapes only
        model = build_segmenter(config.model_copy(update={"init": "random"}), num_classes)
    file = config.weights_file()
    if file is not None:
        _fitting(model, file, ())


def _take(model: Segmenter, file: Path, class_names: Sequence[str]) -> str:
    """Put into a model what fits of a file, and say what became of it."""
    found = _fitting(model, file, class_names)
    own = model.state_dict()
    model.load_state_dict(own | found)
    fresh = sorted({key.partition(".")[0] for key in own.keys() - found.keys()})
    return f"started from {file}: {len(found)} of {len(own)} tensors" + (
        f"; with weights of their own: {', '.join(fresh)}" if fresh else ""
    )


def _fitting(model: Segmenter, file: Path, class_names: Sequence[str]) -> dict[str, Tensor]:
    """What of a file fits a model, by the model's own names.

    Raises:
        ConfigError: The backbone is another one.
    """
    own, names = model.state_dict(), tuple[str, ...]()
    if isinstance(model, Mask2Former) and is_transformers(file):
        weights = read_transformers(file)
    else:
        start = read_start(file)
        weights, names = start.weights, start.class_names
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, Backbone):  # whole, or refused
            weights = weights | {f"backbone.body.{k}": v for k, v in backbone.fitting(weights).items()}
    same_planes = not model.by_category or tuple(class_names) == names
    found = {
        key: value
        for key, value in weights.items()
        if key in own and own[key].shape == value.shape and (same_planes or not key.startswith(_BY_CLASS))
    }
    needed = [key for key in own if key.startswith("backbone.") and not key.endswith(("_index", "_tracked"))]
    missing = [key for key in needed if key not in found and ".out_norms." not in f".{key}"]
    if missing:
        told = f"{len(missing)} of {len(needed)} weights of the backbone are missing or have another shape"
        hint = "Choose the named segmenter, or the option `backbone`, that the weights were made with."
        raise ConfigError(f"segmenter.init: {file}: {told}, first {missing[:3]}", hint=hint)
    return found

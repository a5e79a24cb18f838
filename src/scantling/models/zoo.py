"""Every named model with its numbers: `name -> Preset(options, build)`.

A recipe's `model:` is a `ModelConfig`: a name from `MODELS`, `init`, and any of the options of that model's method,
each documented beside the method (`two_stage.TwoStageOptions` and those that add to it). Options left out keep the
named model's number, which stands below or is the method's default.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from scantling.errors import CheckpointError, ConfigError
from scantling.models.cascade_rcnn import CascadeMaskRCNNOptions, CascadeRCNN, CascadeRCNNOptions
from scantling.models.contract import Detector
from scantling.models.double_head import DoubleHeadRCNN, DoubleHeadRCNNOptions
from scantling.models.faster_rcnn import FasterRCNN, FasterRCNNOptions, MaskRCNNOptions
from scantling.models.htc import HTC, HTCOptions
from scantling.models.mask_heads import MaskOptions
from scantling.models.named import NamedConfig
from scantling.models.scnet import SCNet, SCNetOptions
from scantling.models.weights.published import recommended
from scantling.models.weights.sources import find_weights
from scantling.models.weights.start import Start, read_start, require_fit, take

log = logging.getLogger(__name__)

INIT_PRETRAIN = "pretrain"
"""The `init` that stands for the weights of the run's own pretraining."""

NO_FILE = ("random", "pretrained", INIT_PRETRAIN)
"""Values of `init` that name no file."""


DEFAULT = "cascade_rcnn_r50"
"""The model of a section that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named model.

    Attributes:
        options: Its numbers; those that a recipe changes are checked against their type.
        build: The detector, given the options, the number of foreground classes K, and whether timm's published weights
            of the backbone are fetched.
    """

    options: BaseModel
    build: Callable[[Any, int, bool], Detector]


def _faster_rcnn(options: FasterRCNNOptions, num_classes: int, pretrained: bool) -> FasterRCNN:  # noqa: FBT001
    return FasterRCNN(options.config(pretrained=pretrained), num_classes)


def _cascade_rcnn(options: CascadeRCNNOptions, num_classes: int, pretrained: bool) -> CascadeRCNN:  # noqa: FBT001
    return CascadeRCNN(options.config(pretrained=pretrained), num_classes)


def _double_head(options: DoubleHeadRCNNOptions, num_classes: int, pretrained: bool) -> DoubleHeadRCNN:  # noqa: FBT001
    return DoubleHeadRCNN(options.config(pretrained=pretrained), num_classes)


def _hybrid_task_cascade(options: HTCOptions, num_classes: int, pretrained: bool) -> HTC:  # noqa: FBT001
    return HTC(options.config(pretrained=pretrained), num_classes)


def _sample_consistency(options: SCNetOptions, num_classes: int, pretrained: bool) -> SCNet:  # noqa: FBT001
    return SCNet(options.config(pretrained=pretrained), num_classes)


def _faster(**hyperparameters: Any) -> Preset:
    return Preset(options=FasterRCNNOptions(**hyperparameters), build=_faster_rcnn)


def _mask(**hyperparameters: Any) -> Preset:
    return Preset(options=MaskRCNNOptions(**hyperparameters), build=_faster_rcnn)


def _cascade(**hyperparameters: Any) -> Preset:
    return Preset(options=CascadeRCNNOptions(**hyperparameters), build=_cascade_rcnn)


def _cascade_mask(**hyperparameters: Any) -> Preset:
    return Preset(options=CascadeMaskRCNNOptions(**hyperparameters), build=_cascade_rcnn)


def _double(**hyperparameters: Any) -> Preset:
    return Preset(options=DoubleHeadRCNNOptions(**hyperparameters), build=_double_head)


def _htc(**hyperparameters: Any) -> Preset:
    return Preset(options=HTCOptions(**hyperparameters), build=_hybrid_task_cascade)


def _scnet(**hyperparameters: Any) -> Preset:
    return Preset(options=SCNetOptions(**hyperparameters), build=_sample_consistency)


# Backbones. ResNets keep BatchNorm's running statistics fixed (`bn_eval`) unless said otherwise.
SWIN_T: dict[str, Any] = {
    "backbone": "swin_tiny_patch4_window7_224",
    "norm": "default",
    "drop_path": 0.2,
}
SWIN_B: dict[str, Any] = {
    "backbone": "swin_base_patch4_window7_224",
    "norm": "default",
    "drop_path": 0.3,
}
CONVNEXT_T: dict[str, Any] = {"backbone": "convnext_tiny", "norm": "default", "drop_path": 0.4}
X101: dict[str, Any] = {"backbone": "resnext101_64x4d"}
DCN: dict[str, Any] = {"deform": (2, 3, 4)}

# Four convolutions and one fully connected layer with their own BatchNorm, GIoU on decoded boxes.
CONV_GIOU: dict[str, Any] = {
    "head": "conv_fc",
    "head_norm": "bn",
    "mask_norm": "none",
    "box_loss": "giou",
    "box_loss_weight": 10.0,
}
SYNC_GIOU: dict[str, Any] = {**CONV_GIOU, "head_norm": "sync_bn", "class_agnostic": False}

# HTC on CBNetV2 as its authors train it: two Swins, no semantic branch.
HTC_CB: dict[str, Any] = {**CONV_GIOU, "head_norm": "sync_bn", "semantic": False, "composite": True}

# Detectors as torchvision trains them; their published weights mean nothing with other samples or anchors.
TORCHVISION: dict[str, Any] = {
    "norm": "frozen_bn",
    "roi_aligned": False,
    "anchors_rounded": True,
    "smooth_l1_beta": 1 / 9,
    "rpn_beta": 1 / 9,
    "num_train_proposals": 2000,
}
TORCHVISION_V2: dict[str, Any] = {
    **TORCHVISION,
    "norm": "bn",
    "neck_norm": "bn",
    "head": "conv_fc",
    "head_norm": "bn",
    "rpn_convs": 2,
}

# For CPUs and few images: ResNet-18, narrow pyramid and heads, few RoIs. BatchNorm, also with two images a step: two
# painted images are learned to AP 0.89 (Faster) and 0.97 (Cascade) in 100 steps, with GroupNorm and all else equal to
# 0.57 and 0.72 (2026-11-21). The 32 groups have but two channels each in a pyramid this narrow; wider groups helped in
# one run, residual branches that start at 1 did not (bench/README.md).
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "norm": "bn",
    "fpn_channels": 64,
    "fc_channels": 256,
    "anchor_scales": (4.0, 8.0),
    "num_train_proposals": 300,
    "num_test_proposals": 200,
    "num_rois": 64,
    "smooth_l1_beta": 0.1,
    "rpn_beta": 1 / 9,
}
SMALL_MASK: dict[str, Any] = {**SMALL, "mask_convs": 2, "mask_channels": 64}

MODELS: Mapping[str, Preset] = {
    "faster_rcnn_r50": _faster(),
    "faster_rcnn_swin_t": _faster(**SWIN_T),
    # one box for all classes: AP 0.482 on bccd, 300 steps, three seeds; a box per class 0.474 (2026-11-26)
    "faster_rcnn_r18_small": _faster(**SMALL, class_agnostic=True),
    "faster_rcnn_cb_r50": _faster(composite=True, pruned_stages=1),
    "cascade_rcnn_r50": _cascade(),
    "cascade_rcnn_r50_dcn_gn": _cascade(**DCN, norm="gn"),  # the DelftBikes detector (CS21)
    "cascade_rcnn_x101_64x4d": _cascade(**X101),
    "cascade_rcnn_r18_small": _cascade(**SMALL),
    "double_head_rcnn_r50": _double(),
    "double_head_rcnn_r50_dcn_gn": _double(**DCN, norm="gn"),  # the second one of CS21
    "double_head_rcnn_r18_small": _double(**SMALL),
    "mask_rcnn_r50": _mask(),
    "mask_rcnn_swin_t": _mask(**SWIN_T),
    "mask_rcnn_r18_small": _mask(**SMALL_MASK, class_agnostic=True),
    "cascade_mask_rcnn_r50": _cascade_mask(),
    "cascade_mask_rcnn_r50_giou": _cascade_mask(**CONV_GIOU),
    "cascade_mask_rcnn_x101_64x4d_dcn": _cascade_mask(**X101, **DCN),
    "cascade_mask_rcnn_swin_t": _cascade_mask(**SWIN_T, **SYNC_GIOU),
    "cascade_mask_rcnn_convnext_t": _cascade_mask(**CONVNEXT_T, **SYNC_GIOU),
    "cascade_mask_rcnn_r18_small": _cascade_mask(**SMALL_MASK),
    "htc_r50": _htc(),
    "htc_without_semantic_r50": _htc(semantic=False),
    "htc_without_semantic_r50_giou": _htc(semantic=False, **CONV_GIOU),  # the heads of HTC on CBNetV2
    "htc_x101_64x4d_dcn": _htc(**X101, **DCN),
    "htc_cb_swin_t": _htc(**SWIN_T, **HTC_CB),
    "htc_cb_swin_b": _htc(**SWIN_B, **HTC_CB),  # the VISION'23 detector (Aoi-overfitting-Team)
    "htc_cb_r18_small": _htc(**SMALL_MASK, semantic_convs=2, composite=True),
    "htc_r18_small": _htc(**SMALL_MASK, semantic_convs=2),
    "scnet_r50": _scnet(),
    "scnet_r50_dcn_seesaw": _scnet(
        **DCN, class_loss="seesaw"
    ),  # the DeepSportRadar detector (RalleyTheValley)
    "scnet_x101_64x4d": _scnet(**X101),
    "scnet_r18_small": _scnet(**SMALL_MASK, semantic_convs=2, context_convs=2),
    "torchvision_faster_rcnn_r50": _faster(**TORCHVISION),
    "torchvision_faster_rcnn_r50_v2": _faster(**TORCHVISION_V2),
    "torchvision_mask_rcnn_r50": _mask(**TORCHVISION),
    "torchvision_mask_rcnn_r50_v2": _mask(**TORCHVISION_V2),
}


class ModelConfig(NamedConfig):
    """A named model and what is different from it: the options of its method, beside `name` and `init`.

    Attributes:
        name: Key of `MODELS`.
        init: Where the weights come from: `random`; `pretrained` (the published ones recommended for the model; needs a
            network unless they were fetched before); `pretrain` (learned from the data set's own crops by the run, see
            its section `pretrain`); the folder of a run, an import or a pretraining, a checkpoint, a file with a
            backbone's weights, a URL, or a hub id (`hf-hub:OWNER/NAME`).
    """

    name: str = DEFAULT

    @property
    def is_published_detector(self) -> bool:
        """Whether the weights recommended for the model are a whole detector's, not its backbone's alone."""
        return recommended(self.name, self.hyperparameters["backbone"]).is_detector

    def weights_file(self) -> Path | None:
        """The local file that weights come from, fetched if it has to be; None for random ones and timm's.

        Raises:
            CheckpointError: There is no such file, or it cannot be fetched.
        """
        if self.init == "pretrained" and self.is_published_detector:
            return recommended(self.name, self.hyperparameters["backbone"]).fetch()
        if self.init in NO_FILE:
            return None
        with _told():
            return find_weights(self.init, self.name)

    def start(self) -> Start | None:
        """What is in that file; None where there is none.

        Raises:
            CheckpointError: It is missing, damaged, or holds something else.
        """
        file = self.weights_file()
        if file is None:
            return None
        with _told():
            return read_start(file)

    @property
    def has_masks(self) -> bool:
        """Whether the model draws masks, and learns them from masks; of an unknown model, which cannot be built, no."""
        return self.name in MODELS and isinstance(MODELS[self.name].options, MaskOptions)

    @classmethod
    def presets(cls) -> Mapping[str, BaseModel]:
        """The options of every model of `MODELS`."""
        return {name: preset.options for name, preset in MODELS.items()}


def build_model(config: ModelConfig, num_classes: int, class_names: Sequence[str] = ()) -> Detector:
    """Build a named model with a recipe's changes; weights are random unless `init` names a source.

    Args:
        config: Name and changes.
        num_classes: Foreground classes K, at least 1.
        class_names: Their names in label order, by which a trained detector's classifier is taken over.

    Raises:
        ConfigError: Unknown name, or initial weights that are not there.
    """
    if num_classes < 1:
        raise ConfigError(f"a detector needs at least one category, found {num_classes}")
    unchanged = config.preset_options()
    if config.init == INIT_PRETRAIN:
        hint = "Outside of a run give the file: the `backbone.safetensors` of `scantling pretrain`."
        raise ConfigError(f"model.init is {INIT_PRETRAIN!r}, which only a run can fill in", hint=hint)
    start = config.start()
    options = unchanged.model_copy(update=config.options)
    model = MODELS[config.name].build(options, num_classes, start is None and config.init == "pretrained")
    if start is not None:
        with _told(start.path):
            log.info("%s", take(model, start, class_names).to_text())
    return model


def check_initial_weights(config: ModelConfig, num_classes: int) -> None:
    """Open the file that `init` names, if it names one, and see whether it fits; nothing is trained or written.

    Published weights are fetched if they are wanted and not here yet.

    Args:
        config: As for `build_model`.
        num_classes: Foreground classes K.

    Raises:
        CheckpointError: The file is missing, damaged, or no file of weights, or cannot be fetched.
        ConfigError: It does not fit the model, or the model cannot be built.
    """
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        model = build_model(config.model_copy(update={"init": "random"}), num_classes)
    if config.init == "pretrained":
        published = recommended(config.name, config.hyperparameters["backbone"])
        log.info("%s", published.to_text())
        published.fetch()
    start = config.start()
    if start is not None:
        with _told(start.path):
            require_fit(model, start)


@contextmanager
def _told(path: Path | None = None) -> Iterator[None]:
    """Messages about weights name the setting and the file."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        named = error.message if path is None or str(path) in error.message else f"{path}: {error.message}"
        raise type(error)(f"model.init: {named}", hint=error.hint) from error

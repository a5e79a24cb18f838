"""Every named model with its numbers, and the flat options a recipe may change.

A recipe's `model:` is a `ModelConfig`: a name from `MODELS`, and any of its other fields. Fields left out keep the
named model's number; the builder functions below are the one place where these numbers stand.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scantling.errors import CheckpointError, ConfigError
from scantling.models.anchors import AnchorConfig
from scantling.models.assign import SampleConfig
from scantling.models.backbone import Backbone, BackboneConfig, Stage
from scantling.models.box_heads import BoxHeadConfig
from scantling.models.cascade_rcnn import CascadeRCNN, CascadeRCNNConfig, published_stages
from scantling.models.double_head import DoubleHeadConfig, DoubleHeadRCNN, DoubleHeadRCNNConfig
from scantling.models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from scantling.models.layers import NormKind
from scantling.models.losses import BoxLossConfig, BoxLossKind
from scantling.models.neck import FPNConfig
from scantling.models.rpn import RPNConfig
from scantling.models.two_stage import PIXEL_MEAN, PIXEL_STD, Detector, TwoStageDetector
from scantling.models.weights.opener import read_weights

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


INIT_PRETRAIN = "pretrain"
"""The `init` that stands for the weights of the run's own pretraining."""


class ModelConfig(BaseModel):
    """A named model and what is different from it.

    Attributes:
        name: Key of `MODELS`.
        backbone: timm model name.
        norm: Normalisation of the backbone; `gn` and `sync_bn` also go into the pyramid and the heads'
            convolutions.
        frozen_stages: Stem and this many backbone stages are not trained.
        deform: Stages (1..4) with deformable convolution.
        deform_version: 1 or 2.
        drop_path: Stochastic depth rate of the backbone.
        init: Where the backbone's weights come from: `random`, `pretrained` (timm's published weights; needs a
            network), `pretrain` (learned from the data set's own crops by the run, see its section `pretrain`) or
            the path of a local file.
        fpn_channels: Width of the pyramid.
        head: `shared_fc` or `conv_fc`; Double-Head has one of each kind and takes no other.
        fc_channels: Width of the heads' fully connected layers.
        class_agnostic: One box for all classes, or one per class.
        box_loss: Regression loss of the box heads.
        box_loss_weight: Its factor.
        smooth_l1_beta: Where smooth L1 turns linear; 0 is plain L1. Smaller values keep pulling on boxes that are
            nearly right.
        roi_samples: Samples per cell and direction of RoIAlign; 0 adapts to the RoI's size, which weights trained in
            MMDetection expect.
        anchor_scales: Side of the anchors in strides of their level.
        anchor_ratios: Height over width.
        num_train_proposals: Proposals per image in training.
        num_test_proposals: Proposals per image at test time.
        num_rois: RoIs per image that enter a box head's loss.
        pixel_mean: Subtracted from RGB values in 0..255.
        pixel_std: What they are then divided by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "cascade_rcnn_r50"
    backbone: str | None = None
    norm: Literal["default", "bn", "bn_eval", "frozen_bn", "sync_bn", "gn"] | None = None
    frozen_stages: Annotated[int, Field(ge=0, le=4)] | None = None
    deform: tuple[Stage, ...] | None = None
    deform_version: Literal[1, 2] | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    init: str = "random"
    fpn_channels: Count | None = None
    head: Literal["shared_fc", "conv_fc"] | None = None
    fc_channels: Count | None = None
    class_agnostic: bool | None = None
    box_loss: BoxLossKind | None = None
    box_loss_weight: Annotated[float, Field(ge=0)] | None = None
    smooth_l1_beta: Annotated[float, Field(ge=0)] | None = None
    roi_samples: Annotated[int, Field(ge=0)] | None = None
    anchor_scales: tuple[Positive, ...] | None = None
    anchor_ratios: tuple[Positive, ...] | None = None
    num_train_proposals: Count | None = None
    num_test_proposals: Count | None = None
    num_rois: Count | None = None
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = PIXEL_STD

    @property
    def init_file(self) -> Path | None:
        """The local file that the backbone's weights come from; None where `init` is one of the words."""
        return None if self.init in ("random", "pretrained", INIT_PRETRAIN) else Path(self.init)


class Numbers(BaseModel):
    """The numbers of a named model; what `ModelConfig` may change. Defaults are the common R50-FPN ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "resnet50"
    norm: Literal["default", "bn", "bn_eval", "frozen_bn", "sync_bn", "gn"] = "bn_eval"
    frozen_stages: int = 0
    deform: tuple[int, ...] = ()
    deform_version: Literal[1, 2] = 1
    drop_path: float | None = None
    fpn_channels: int = 256
    head: Literal["shared_fc", "conv_fc"] = "shared_fc"
    fc_channels: int = 1024
    class_agnostic: bool = False
    box_loss: BoxLossKind = "smooth_l1"
    box_loss_weight: float = 1.0
    smooth_l1_beta: float = 1.0
    rpn_beta: float = 1 / 9
    roi_samples: int = 2
    anchor_scales: tuple[float, ...] = (8.0,)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    num_train_proposals: int = 1000
    num_test_proposals: int = 1000
    num_rois: int = 512


def _faster_rcnn(config: ModelConfig, num_classes: int, numbers: Numbers) -> FasterRCNN:
    chosen = _chosen(config, numbers)
    return FasterRCNN(FasterRCNNConfig(head=_head(chosen), **_shared(config, chosen)), num_classes)


def _cascade_rcnn(config: ModelConfig, num_classes: int, numbers: Numbers) -> CascadeRCNN:
    chosen = _chosen(config, numbers)
    stages = published_stages(_head(chosen))
    return CascadeRCNN(CascadeRCNNConfig(stages=stages, **_shared(config, chosen)), num_classes)


def _double_head_rcnn(config: ModelConfig, num_classes: int, numbers: Numbers) -> DoubleHeadRCNN:
    if config.head is not None:
        raise ConfigError(
            f"model.head: {config.name} has a head of each kind, found {config.head!r}", hint="Leave it out."
        )
    chosen = _chosen(config, numbers)
    norm = _head_norm(chosen)
    head = DoubleHeadConfig(
        fc_channels=chosen.fc_channels,
        conv_channels=4 * chosen.fpn_channels,
        norm="bn" if norm == "none" else norm,
        pool_samples=chosen.roi_samples,
        class_agnostic=chosen.class_agnostic,
        box_loss=_box_loss(chosen),
    )
    return DoubleHeadRCNN(DoubleHeadRCNNConfig(head=head, **_shared(config, chosen)), num_classes)


def faster_rcnn_r50(config: ModelConfig, num_classes: int) -> Detector:
    """Faster R-CNN, ResNet-50 + FPN, BatchNorm statistics fixed, class-specific boxes trained with plain L1."""
    return _faster_rcnn(config, num_classes, Numbers(smooth_l1_beta=0.0))


def faster_rcnn_swin_t(config: ModelConfig, num_classes: int) -> Detector:
    """Faster R-CNN, Swin-T + FPN, class-specific boxes trained with plain L1."""
    backbone = {"backbone": "swin_tiny_patch4_window7_224", "norm": "default", "drop_path": 0.2}
    return _faster_rcnn(config, num_classes, Numbers(smooth_l1_beta=0.0).model_copy(update=backbone))


def faster_rcnn_r18_small(config: ModelConfig, num_classes: int) -> Detector:
    """Faster R-CNN for CPUs and few images: ResNet-18 with BatchNorm, narrow pyramid and heads, few RoIs.

    One box for all classes: on bccd, 300 steps, three seeds, that reached AP 0.482, a box per class 0.474 (2026-11-26).
    """
    return _faster_rcnn(config, num_classes, SMALL.model_copy(update={"class_agnostic": True}))


def cascade_rcnn_r50(config: ModelConfig, num_classes: int) -> Detector:
    """Cascade R-CNN, ResNet-50 + FPN, BatchNorm statistics fixed, class-agnostic boxes."""
    return _cascade_rcnn(config, num_classes, Numbers(class_agnostic=True))


def cascade_rcnn_r50_dcn_gn(config: ModelConfig, num_classes: int) -> Detector:
    """The DelftBikes detector (CS21): ResNet-50 with deformable convolution in stages 2-4, GroupNorm throughout."""
    return _cascade_rcnn(config, num_classes, Numbers(class_agnostic=True, norm="gn", deform=(2, 3, 4)))


def cascade_rcnn_x101_64x4d(config: ModelConfig, num_classes: int) -> Detector:
    """Cascade R-CNN, ResNeXt-101 64x4d + FPN, BatchNorm statistics fixed."""
    return _cascade_rcnn(config, num_classes, Numbers(class_agnostic=True, backbone="resnext101_64x4d"))


def cascade_rcnn_r18_small(config: ModelConfig, num_classes: int) -> Detector:
    """Cascade R-CNN for CPUs and few images: ResNet-18 with BatchNorm, narrow pyramid and heads, few RoIs."""
    return _cascade_rcnn(config, num_classes, SMALL.model_copy(update={"class_agnostic": True}))


def double_head_rcnn_r50(config: ModelConfig, num_classes: int) -> Detector:
    """Double-Head Faster R-CNN, ResNet-50 + FPN, BatchNorm statistics fixed in the backbone, class-specific boxes."""
    return _double_head_rcnn(config, num_classes, DOUBLE)


def double_head_rcnn_r50_dcn_gn(config: ModelConfig, num_classes: int) -> Detector:
    """The second DelftBikes detector (CS21): Double-Head on the first one's backbone and pyramid."""
    return _double_head_rcnn(
        config, num_classes, DOUBLE.model_copy(update={"norm": "gn", "deform": (2, 3, 4)})
    )


def double_head_rcnn_r18_small(config: ModelConfig, num_classes: int) -> Detector:
    """Double-Head for CPUs and few images: ResNet-18 with BatchNorm, narrow pyramid and heads, few RoIs."""
    return _double_head_rcnn(config, num_classes, SMALL.model_copy(update={"box_loss_weight": 2.0}))


DOUBLE = Numbers(box_loss_weight=2.0, rpn_beta=0.0)

# BatchNorm, also with two images a step: two painted images are learned to AP 0.89 (Faster) and 0.97 (Cascade) in 100
# steps, with GroupNorm and all else equal to 0.57 and 0.72 (2026-11-21). The 32 groups have but two channels each in a
# pyramid this narrow; wider groups helped in one run, residual branches that start at 1 did not (bench/README.md).
SMALL = Numbers(
    backbone="resnet18",
    norm="bn",
    fpn_channels=64,
    fc_channels=256,
    anchor_scales=(4.0, 8.0),
    num_train_proposals=300,
    num_test_proposals=200,
    num_rois=64,
    smooth_l1_beta=0.1,
)

MODELS: Mapping[str, Callable[[ModelConfig, int], Detector]] = {
    "faster_rcnn_r50": faster_rcnn_r50,
    "faster_rcnn_swin_t": faster_rcnn_swin_t,
    "faster_rcnn_r18_small": faster_rcnn_r18_small,
    "cascade_rcnn_r50": cascade_rcnn_r50,
    "cascade_rcnn_r50_dcn_gn": cascade_rcnn_r50_dcn_gn,
    "cascade_rcnn_x101_64x4d": cascade_rcnn_x101_64x4d,
    "cascade_rcnn_r18_small": cascade_rcnn_r18_small,
    "double_head_rcnn_r50": double_head_rcnn_r50,
    "double_head_rcnn_r50_dcn_gn": double_head_rcnn_r50_dcn_gn,
    "double_head_rcnn_r18_small": double_head_rcnn_r18_small,
}


def build_model(config: ModelConfig, num_classes: int) -> Detector:
    """Build a named model with a recipe's changes; weights are random unless `init` names a source.

    Args:
        config: Name and changes.
        num_classes: Foreground classes K, at least 1.

    Raises:
        ConfigError: Unknown name, a change the model cannot take, or initial weights that are not there.
    """
    if config.name not in MODELS:
        near = difflib.get_close_matches(config.name, MODELS, n=1)
        known = ", ".join(MODELS)
        hint = f"Did you mean {near[0]!r}? Known: {known}" if near else f"Known: {known}"
        raise ConfigError(f"model.name: unknown model {config.name!r}", hint=hint)
    if num_classes < 1:
        raise ConfigError(f"a detector needs at least one category, found {num_classes}")
    if config.init == INIT_PRETRAIN:
        hint = "Outside of a run give the file: the `backbone.safetensors` of `scantling pretrain`."
        raise ConfigError(f"model.init is {INIT_PRETRAIN!r}, which only a run can fill in", hint=hint)
    model = MODELS[config.name](config, num_classes)
    if config.init_file is not None and isinstance(model, TwoStageDetector):
        model.backbone.body.load_state_dict(_fitting(model.backbone, config.init_file))
    return model


def check_initial_weights(config: ModelConfig, num_classes: int) -> None:
    """Open the file that `init` names, if it names one, and see whether it fits; nothing is trained or written.

    Args:
        config: As for `build_model`.
        num_classes: Foreground classes K.

    Raises:
        CheckpointError: The file is missing, damaged, or no file of weights.
        ConfigError: It does not fit the model, or the model cannot be built.
    """
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        model = build_model(config.model_copy(update={"init": "random"}), num_classes)
    if config.init_file is not None and isinstance(model, TwoStageDetector):
        _fitting(model.backbone, config.init_file)


def _fitting(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    try:
        weights, _ = backbone.fitting(read_weights(path))
    except ConfigError as error:
        raise ConfigError(f"model.init: {path}: {error.message}", hint=error.hint) from error
    except CheckpointError as error:
        raise CheckpointError(f"model.init: {error.message}", hint=error.hint) from error
    return weights


def _chosen(config: ModelConfig, numbers: Numbers) -> Numbers:
    """The named model's numbers with the recipe's changes."""
    changes = config.model_dump(exclude_none=True)
    return numbers.model_copy(update={k: v for k, v in changes.items() if k in Numbers.model_fields})


def _head(chosen: Numbers) -> BoxHeadConfig:
    return BoxHeadConfig(
        kind=chosen.head,
        fc_channels=chosen.fc_channels,
        conv_channels=chosen.fpn_channels,
        norm=_head_norm(chosen),
        pool_samples=chosen.roi_samples,
        class_agnostic=chosen.class_agnostic,
        box_loss=_box_loss(chosen),
    )


def _box_loss(chosen: Numbers) -> BoxLossConfig:
    return BoxLossConfig(kind=chosen.box_loss, beta=chosen.smooth_l1_beta, weight=chosen.box_loss_weight)


def _head_norm(chosen: Numbers) -> NormKind:
    shared: dict[str, NormKind] = {"gn": "gn", "sync_bn": "sync_bn"}
    return shared.get(chosen.norm, "none")


def _shared(config: ModelConfig, chosen: Numbers) -> dict[str, Any]:
    """The parts all two-stage detectors have in common."""
    return {
        "backbone": BackboneConfig(
            name=chosen.backbone,
            norm=chosen.norm,
            frozen_stages=chosen.frozen_stages,
            deform=chosen.deform,
            deform_version=chosen.deform_version,
            drop_path=chosen.drop_path,
            pretrained=config.init == "pretrained",
        ),
        "neck": FPNConfig(channels=chosen.fpn_channels, norm=_head_norm(chosen)),
        "rpn": RPNConfig(
            anchors=AnchorConfig(scales=chosen.anchor_scales, ratios=chosen.anchor_ratios),
            loss=BoxLossConfig(beta=chosen.rpn_beta),
            train_per_level=2 * chosen.num_train_proposals,
            train_proposals=chosen.num_train_proposals,
            test_per_level=chosen.num_test_proposals,
            test_proposals=chosen.num_test_proposals,
        ),
        "sample": SampleConfig(num=chosen.num_rois),
        "pixel_mean": config.pixel_mean,
        "pixel_std": config.pixel_std,
    }

"""Box heads: pooled RoI features in, class logits and box deltas out; their targets and losses.

    (R, C, S, S) ── shared_fc:  flatten ── fc ── ReLU ── fc ── ReLU ──┬── fc ──► logits (R, L)
                 └─ conv_fc:    4 x (3x3 conv, norm, ReLU) ── fc ── ReLU ─┴── fc ──► deltas (R, 4) or (R, 4K)

`RoiSamples` is what one image or a whole batch contributes to a stage. The number L of logits and their meaning are the
class loss's. Dims: R RoIs, P positives, K classes, L logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.assign import AssignConfig, SampleConfig, assign, sample
from scantling.models.class_losses import (
    ClassifierKind,
    ClassLoss,
    ClassLossKind,
    make_class_loss,
    make_classifier,
)
from scantling.models.layers import ConvBlock, NormKind, init_conv
from scantling.models.losses import BoxLossConfig, box_regression_loss
from scantling.ops.boxes import decode_boxes
from scantling.settings.fields import Count
from scantling.structures.instances import Instances

Stds = tuple[float, float, float, float]


class BoxHeadConfig(BaseModel):
    """Shape and losses of one box head.

    Attributes:
        kind: `shared_fc` (two fully connected layers) or `conv_fc` (four convolutions and one).
        fc_channels: Width of the fully connected layers.
        conv_channels: Width of the convolutions.
        norm: Normalisation of the convolutions.
        pool_side: Cells per side of the pooled RoI.
        pool_samples: Samples per cell and direction; see `layers.RoiPool`.
        aligned: Whether RoIs are pooled to half a cell; see `layers.RoiPool`.
        class_agnostic: One box for all classes, or one per class.
        stds: Scale of the deltas (Girshick 2015).
        class_loss: What the logits mean and how they are trained; see `class_losses`.
        classifier: The layer that makes the logits; see `class_losses.make_classifier`.
        spare_logits: Rows of the classifier that stand for no class; see `class_losses.SoftmaxLoss`.
        class_weight: Factor of the classification loss.
        box_loss: Regression loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["shared_fc", "conv_fc"] = "shared_fc"
    fc_channels: Count = 1024
    conv_channels: Count = 256
    norm: NormKind = "none"
    pool_side: Count = 7
    pool_samples: Annotated[int, Field(ge=0)] = 2
    aligned: bool = True
    class_agnostic: bool = False
    stds: Stds = (0.1, 0.1, 0.2, 0.2)
    class_loss: ClassLossKind = "softmax"
    classifier: ClassifierKind = "linear"
    spare_logits: Annotated[int, Field(ge=0)] = 0
    class_weight: Annotated[float, Field(ge=0)] = 1.0
    box_loss: BoxLossConfig = BoxLossConfig()


class LossSettings(Protocol):
    """The settings of any box head that its losses depend on; see `BoxHeadConfig`."""

    @property
    def stds(self) -> Stds:
        """Scale of the deltas."""

    @property
    def class_weight(self) -> float:
        """Factor of the classification loss."""

    @property
    def box_loss(self) -> BoxLossConfig:
        """Regression loss."""


class BoxHead(nn.Module):
    """Classifies pooled RoIs and regresses their boxes.

    Args:
        in_channels: Width of the pooled features.
        num_classes: Foreground classes K.
        config: Shape and losses.
    """

    def __init__(self, in_channels: int, num_classes: int, config: BoxHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.trunk = _trunk(in_channels, config)
        self.class_loss = make_class_loss(config.class_loss, num_classes, config.spare_logits)
        num_logits = self.class_loss.num_logits(num_classes)
        self.logits = make_classifier(config.classifier, config.fc_channels, num_logits)
        self.deltas = nn.Linear(config.fc_channels, 4 if config.class_agnostic else 4 * num_classes)
        init_conv(self.deltas, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, S, S) -> logits (R, L), deltas (R, 4) or (R, K, 4)."""
        return self.predict(self.trunk(pooled))

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the head says of its own features (R, F), `trunk(pooled)`; see `forward`."""
        deltas = self.deltas(hidden)
        return self.logits(hidden), deltas if self.config.class_agnostic else deltas.view(
            -1, self.num_classes, 4
        )

    def decode(self, rois: Tensor, deltas: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Boxes in the image; see `decode_deltas`."""
        return decode_deltas(rois, deltas, self.config.stds, size_hw)

    def losses(self, logits: Tensor, deltas: Tensor, samples: RoiSamples) -> dict[str, Tensor]:
        """Those of the class loss, and `box`; see `head_losses`."""
        return head_losses(logits, deltas, samples, self.class_loss, self.config)


def decode_deltas(rois: Tensor, deltas: Tensor, stds: Stds, size_hw: tuple[int, int]) -> Tensor:
    """Boxes a head predicts.

    Args:
        rois: (R, 4) xyxy.
        deltas: (R, 4) shared by all classes, or (R, K, 4) one per class.
        stds: Scale of the deltas.
        size_hw: The image's size; boxes are clipped to it.

    Returns:
        (R, 4) or (R, K, 4) xyxy, as the deltas are.
    """
    references = rois if deltas.dim() == 2 else rois[:, None]
    return decode_boxes(references, deltas.float(), stds, size_hw)


def head_losses(
    logits: Tensor, deltas: Tensor, samples: RoiSamples, class_loss: ClassLoss, config: LossSettings
) -> dict[str, Tensor]:
    """Classification and regression losses, all divided by the number of RoIs.

    Args:
        logits: (R, L).
        deltas: (R, 4) or (R, K, 4).
        samples: Targets of the same R RoIs.
        class_loss: What the logits mean.
        config: Scale of the deltas, factors, regression loss.

    Returns:
        Those of the class loss, and `box`.
    """
    positive = (samples.labels < class_loss.num_classes).nonzero().squeeze(1)
    own = deltas[positive] if deltas.dim() == 2 else deltas[positive, samples.labels[positive]]
    box = box_regression_loss(
        samples.boxes[positive], own, samples.truths[positive], config.stds, config.box_loss
    )
    found = class_loss.losses(logits, samples.labels)
    weighted = {name: config.class_weight * loss for name, loss in found.items()}
    return {**weighted, "box": box / max(len(samples.labels), 1)}


def _trunk(in_channels: int, config: BoxHeadConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = in_channels
    if config.kind == "conv_fc":
        for _ in range(4):
            layers.append(ConvBlock(width, config.conv_channels, 3, config.norm))
            width = config.conv_channels
    layers.append(nn.Flatten())
    width *= config.pool_side**2
    for _ in range(2 if config.kind == "shared_fc" else 1):
        layers += [nn.Linear(width, config.fc_channels), nn.ReLU(inplace=True)]
        width = config.fc_channels
    trunk = nn.Sequential(*layers)
    for layer in trunk.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            init_conv(layer)
    return trunk


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiSamples:
    """RoIs of a training step and what they should become.

    Attributes:
        boxes: (R, 4) xyxy in the image's frame.
        labels: (R,) 0..K, K being background.
        truths: (R, 4) matched ground truth; the RoI itself where it is background.
        matched: (R,) row of the matched ground truth among its image's instances, -1 for background.
        is_truth: (R,) whether the RoI is a ground-truth box that was added to the proposals.
    """

    boxes: Tensor
    labels: Tensor
    truths: Tensor
    matched: Tensor
    is_truth: Tensor

    @staticmethod
    def cat(samples: Sequence[RoiSamples]) -> RoiSamples:
        """Samples of several images, one after the other; `matched` still counts within each image."""
        return RoiSamples(
            boxes=torch.cat([s.boxes for s in samples]),
            labels=torch.cat([s.labels for s in samples]),
            truths=torch.cat([s.truths for s in samples]),
            matched=torch.cat([s.matched for s in samples]),
            is_truth=torch.cat([s.is_truth for s in samples]),
        )


@torch.no_grad()
def sample_rois(
    proposals: Tensor,
    truth: Instances,
    num_classes: int,
    assign_config: AssignConfig,
    sample_config: SampleConfig,
) -> RoiSamples:
    """Assign and sample the RoIs of one image; the ground-truth boxes join the proposals.

    Args:
        proposals: (N, 4) xyxy; may be empty.
        truth: Ground truth of the image; crowd regions are never targets.
        num_classes: K, the label of background.
        assign_config: Overlaps.
        sample_config: Numbers.

    Returns:
        At most `sample_config.num` RoIs, positives first.
    """
    is_crowd = truth.is_crowd
    targets = truth.boxes if is_crowd is None else truth.boxes[~is_crowd]
    boxes = torch.cat([targets, proposals.to(targets.dtype)])
    matched = assign(boxes, truth.boxes, assign_config, is_crowd)
    chosen = sample(matched, sample_config)
    matched = matched[chosen]
    labels = matched.new_full(matched.shape, num_classes)
    truths = boxes[chosen]
    positive = matched >= 0
    labels[positive] = truth.labels[matched[positive]]
    truths = (
        torch.where(positive[:, None], truth.boxes[matched.clamp(min=0)], truths) if len(truth) else truths
    )
    return RoiSamples(
        boxes=boxes[chosen],
        labels=labels,
        truths=truths,
        matched=matched,
        is_truth=chosen < len(targets),
    )

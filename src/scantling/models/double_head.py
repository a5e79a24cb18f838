"""Double-Head Faster R-CNN (Wu et al. 2020): fully connected layers classify, convolutions find the box.

    images (B, 3, H, W) ── Normalise ── Backbone ── FPN ── RPN ──► p2..p6, proposals [(R, 4)]
    proposals ───────────────── RoiPool ──► (R, C, 7, 7)
        ── flatten ── 2 x (fc, ReLU) ── fc ──────────────────────────────────► logits (R, K + 1)
    proposals enlarged 1.3 x ── RoiPool ──► (R, C, 7, 7)
        ── residual (3x3, 1x1) ──► (R, 4C, 7, 7) ── 4 x residual (1x1, 3x3, 1x1)
        ── mean over the cells ──► (R, 4C) ── fc ────────────────────────────► deltas (R, K, 4)
    training:  assign IoU 0.5, sample 512 ──► 2 x cross-entropy + 2 x smooth L1
    test:      softmax, decode the proposals ──► (box, class) candidates ── NMS ──► detections

The enlarged RoI only informs the regression: deltas are relative to the proposal itself, and its features are those of
the proposal's level. Structure and numbers are MMDetection's (`tests/golden/double_head_r50.json`), whose convolution
head leaves out the paper's non-local blocks; the paper's extension, in which each head also does the other's task, is
left out as well.

Dims: B images, C channels, R RoIs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.assign import AssignConfig
from scantling.models.box_heads import RoiSamples, Stds, decode_deltas, head_losses, sample_rois
from scantling.models.class_losses import ClassifierKind, ClassLossKind, make_class_loss, make_classifier
from scantling.models.contract import CandidateLimits, Encoded
from scantling.models.layers import ConvBlock, NormKind, Residual, RoiPool, init_conv
from scantling.models.losses import BoxLossConfig
from scantling.models.two_stage import TwoStageConfig, TwoStageDetector, TwoStageOptions, top_candidates
from scantling.settings.fields import Count
from scantling.structures.instances import Instances


class DoubleHeadConfig(BaseModel):
    """Shape and losses of the two heads.

    Attributes:
        fc_channels: Width of the fully connected layers.
        conv_channels: Width between the residual blocks; inside them it is a quarter.
        num_blocks: Residual blocks after the one that widens the pooled features.
        norm: Normalisation of the convolutions.
        enlarge: Factor by which a RoI grows before the convolutions see it.
        pool_side: Cells per side of the pooled RoI.
        pool_samples: Samples per cell and direction; see `layers.RoiPool`.
        aligned: Whether RoIs are pooled to half a cell; see `layers.RoiPool`.
        class_agnostic: One box for all classes, or one per class.
        stds: Scale of the deltas.
        class_loss: What the logits mean and how they are trained; see `class_losses`.
        classifier: The layer that makes the logits; see `class_losses.make_classifier`.
        spare_logits: Rows of the classifier that stand for no class; see `class_losses.SoftmaxLoss`.
        class_weight: Factor of the classification loss.
        box_loss: Regression loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fc_channels: Count = 1024
    conv_channels: Annotated[int, Field(ge=4, multiple_of=4)] = 1024
    num_blocks: Annotated[int, Field(ge=0)] = 4
    norm: NormKind = "bn"
    enlarge: Annotated[float, Field(gt=0)] = 1.3
    pool_side: Count = 7
    pool_samples: Annotated[int, Field(ge=0)] = 2
    aligned: bool = True
    class_agnostic: bool = False
    stds: Stds = (0.1, 0.1, 0.2, 0.2)
    class_loss: ClassLossKind = "softmax"
    classifier: ClassifierKind = "linear"
    spare_logits: Annotated[int, Field(ge=0)] = 0
    class_weight: Annotated[float, Field(ge=0)] = 2.0
    box_loss: BoxLossConfig = BoxLossConfig(weight=2.0)


class DoubleHeadRCNNConfig(TwoStageConfig):
    """All numbers of a Double-Head Faster R-CNN; defaults are those published for R50-FPN.

    Attributes:
        head: Both heads.
        assign: Overlaps of their positives and negatives.
    """

    head: DoubleHeadConfig = DoubleHeadConfig()
    assign: AssignConfig = AssignConfig()


class DoubleHeadRCNNOptions(TwoStageOptions):
    """What a recipe may change in a Double-Head Faster R-CNN.

    Its convolution head has BatchNorm where neither its own normalisation nor the backbone's says otherwise.
    """

    smooth_l1_beta: Annotated[float, Field(ge=0)] = 1.0
    box_loss_weight: Annotated[float, Field(ge=0)] = 2.0

    def config(self, *, pretrained: bool) -> DoubleHeadRCNNConfig:
        """All numbers."""
        shared_norm = "bn" if self.shared_norm == "none" else self.shared_norm
        head = DoubleHeadConfig(
            fc_channels=self.fc_channels,
            conv_channels=4 * self.fpn_channels,
            norm=self.head_norm or shared_norm,
            pool_samples=self.roi_samples,
            aligned=self.roi_aligned,
            class_agnostic=self.class_agnostic,
            class_loss=self.class_loss,
            classifier=self.classifier,
            spare_logits=self.spare_logits,
            box_loss=self.box_loss_config(),
        )
        return DoubleHeadRCNNConfig(head=head, **self.shared(pretrained=pretrained))


class DoubleHeadRCNN(TwoStageDetector):
    """The detector; `TwoStageDetector` makes the features and the proposals.

    Args:
        config: All its numbers.
        num_classes: Foreground classes K.
    """

    config: DoubleHeadRCNNConfig

    def __init__(self, config: DoubleHeadRCNNConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        head = config.head
        self.pool = RoiPool(self.backbone.strides, head.pool_side, head.pool_samples, aligned=head.aligned)
        self.head = DoubleHead(self.neck.channels, num_classes, config.head)

    def roi_losses(self, encoded: Encoded, truths: Sequence[Instances]) -> dict[str, Tensor]:
        """Losses of both heads on sampled proposals."""
        config = self.config
        samples = [
            sample_rois(p, t, self.num_classes, config.assign, config.sample)
            for p, t in zip(encoded.proposals, truths, strict=True)
        ]
        logits, deltas = self.run_heads(encoded.levels, [s.boxes for s in samples])
        joined = RoiSamples.cat(samples)
        losses = head_losses(logits, deltas, joined, self.head.class_loss, config.head)
        return {f"box_head/{name}": value for name, value in losses.items()}

    def roi_candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """Candidates of each image for its proposals."""
        proposals, stds = encoded.proposals, self.config.head.stds
        logits, deltas = self.run_heads(encoded.levels, proposals)
        counts = [len(p) for p in proposals]
        scores = torch.split(self.head.class_loss.probabilities(logits), counts)
        parts = zip(proposals, torch.split(deltas, counts), scores, encoded.sizes_hw, strict=True)
        return [
            top_candidates(decode_deltas(rois, d, stds, size), s, size, limits) for rois, d, s, size in parts
        ]

    def run_heads(self, features: Sequence[Tensor], rois: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """RoIs [(R_i, 4)] of each image -> logits (R, L), deltas (R, 4) or (R, K, 4), image after image."""
        pooled = self.pool(features, rois)
        surrounded = self.pool(features, rois, enlarge=self.config.head.enlarge)
        logits, deltas = self.head(pooled, surrounded)
        return logits, deltas


class DoubleHead(nn.Module):
    """The two heads, which share no weight.

    Args:
        in_channels: Width of the pooled features.
        num_classes: Foreground classes K.
        config: Shape.
    """

    def __init__(self, in_channels: int, num_classes: int, config: DoubleHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.fc_trunk = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * config.pool_side**2, config.fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(config.fc_channels, config.fc_channels),
            nn.ReLU(inplace=True),
        )
        width, norm = config.conv_channels, config.norm
        self.widen = widening_block(in_channels, width, norm)
        self.blocks = nn.Sequential(*(bottleneck_block(width, norm) for _ in range(config.num_blocks)))
        self.class_loss = make_class_loss(config.class_loss, num_classes, config.spare_logits)
        num_logits = self.class_loss.num_logits(num_classes)
        self.logits = make_classifier(config.classifier, config.fc_channels, num_logits)
        self.deltas = nn.Linear(width, 4 if config.class_agnostic else 4 * num_classes)
        self._initialise()

    def forward(self, pooled: Tensor, surrounded: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features of both heads.

        Args:
            pooled: (R, C, S, S) of the RoIs, for the classes.
            surrounded: (R, C, S, S) of the enlarged RoIs, for the boxes.

        Returns:
            Logits (R, L), L being the class loss's; deltas (R, 4) or (R, K, 4).
        """
        logits = self.logits(self.fc_trunk(pooled))
        deltas = self.deltas(self.blocks(self.widen(surrounded)).mean(dim=(2, 3)))
        return logits, deltas if self.config.class_agnostic else deltas.view(-1, self.num_classes, 4)

    def _initialise(self) -> None:
        for layer in self.fc_trunk:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        init_conv(self.widen)
        init_conv(self.blocks)
        init_conv(self.deltas, std=0.001)


def widening_block(in_channels: int, out_channels: int, norm: NormKind) -> Residual:
    """3x3 at the width that comes in, 1x1 to that which goes out; a 1x1 convolution as the shortcut."""
    branch = nn.Sequential(
        ConvBlock(in_channels, in_channels, 3, norm),
        ConvBlock(in_channels, out_channels, 1, norm, relu=False),
    )
    return Residual(branch, ConvBlock(in_channels, out_channels, 1, norm, relu=False))


def bottleneck_block(channels: int, norm: NormKind) -> Residual:
    """1x1 to a quarter of the width, 3x3, 1x1 back (He et al. 2016)."""
    inner = channels // 4
    branch = nn.Sequential(
        ConvBlock(channels, inner, 1, norm),
        ConvBlock(inner, inner, 3, norm),
        ConvBlock(inner, channels, 1, norm, relu=False),
    )
    return Residual(branch, nn.Identity())

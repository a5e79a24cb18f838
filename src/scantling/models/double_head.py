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
from scantling.models.layers import ConvBlock, NormKind, RoiPool, init_conv
from scantling.models.losses import BoxLossConfig
from scantling.models.two_stage import TwoStageConfig, TwoStageDetector, top_candidates
from scantling.structures.instances import Instances

Count = Annotated[int, Field(ge=1)]


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
        class_agnostic: One box for all classes, or one per class.
        stds: Scale of the deltas.
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
    class_agnostic: bool = False
    stds: Stds = (0.1, 0.1, 0.2, 0.2)
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


class DoubleHeadRCNN(TwoStageDetector):
    """The detector; `TwoStageDetector` makes the features and the proposals.

    Args:
        config: All its numbers.
        num_classes: Foreground classes K.
    """

    config: DoubleHeadRCNNConfig

    def __init__(self, config: DoubleHeadRCNNConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.pool = RoiPool(self.backbone.strides, config.head.pool_side, config.head.pool_samples)
        self.head = DoubleHead(self.neck.channels, num_classes, config.head)

    def roi_losses(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], truths: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Losses of both heads on sampled proposals [(R_i, 4)] of each image."""
        config = self.config
        per_image = [
            sample_rois(p, t, self.num_classes, config.assign, config.sample)
            for p, t in zip(proposals, truths, strict=True)
        ]
        logits, deltas = self.run_heads(features, [s.boxes for s in per_image])
        losses = head_losses(
            logits,
            deltas,
            RoiSamples.cat(per_image),
            config.head.stds,
            class_weight=config.head.class_weight,
            box_loss=config.head.box_loss,
        )
        return {f"box_head/{name}": value for name, value in losses.items()}

    def roi_candidates(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Candidates of each image for given proposals [(R_i, 4)]."""
        logits, deltas = self.run_heads(features, proposals)
        counts = [len(p) for p in proposals]
        probabilities = torch.split(logits.float().softmax(dim=1), counts)
        stds, parts = self.config.head.stds, torch.split(deltas, counts)
        return [
            top_candidates(decode_deltas(rois, d, stds, size), p, size, self.suppression, self.class_names)
            for rois, d, p, size in zip(proposals, parts, probabilities, sizes_hw, strict=True)
        ]

    def run_heads(self, features: Sequence[Tensor], rois: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """RoIs [(R_i, 4)] of each image -> logits (R, K + 1), deltas (R, 4) or (R, K, 4), image after image."""
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
        self.logits = nn.Linear(config.fc_channels, num_classes + 1)
        self.deltas = nn.Linear(width, 4 if config.class_agnostic else 4 * num_classes)
        self._initialise()

    def forward(self, pooled: Tensor, surrounded: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features of both heads.

        Args:
            pooled: (R, C, S, S) of the RoIs, for the classes.
            surrounded: (R, C, S, S) of the enlarged RoIs, for the boxes.

        Returns:
            Logits (R, K + 1); deltas (R, 4) or (R, K, 4).
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
        init_conv(self.logits, std=0.01)
        init_conv(self.deltas, std=0.001)


class Residual(nn.Module):
    """ReLU of a branch's output added to a shortcut's.

    Args:
        branch: Convolutions.
        shortcut: The identity, or a convolution to the branch's width.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, C', S, S)."""
        return torch.relu(self.branch(x) + self.shortcut(x))


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

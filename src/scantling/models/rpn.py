"""Region proposal network over a pyramid (Ren et al. 2015; Lin et al. 2017).

    p2..p6 ── 3x3 conv + ReLU ──┬── 1x1 ──► objectness logits (B, A, H, W)
                                └── 1x1 ──► deltas (B, 4A, H, W)
    best of each level ── decode, clip ── NMS per level ──► proposals [(R, 4)]
    sampled anchors ── the same head on their cells only ──► losses

The loss reads a few hundred anchors of a hundred thousand, so almost all of the head's gradient is zero. The pass over
the whole maps therefore runs without gradients, and the head is evaluated again at the cells of the sampled anchors:
the same losses and gradients up to rounding, without the backward pass of a convolution over every level.

With `num_convs` 2, as torchvision's second generation has it, another 3x3 conv + ReLU comes before, over whole maps.

Dims: B images, C channels, A anchors per cell, N anchors of all levels, M sampled anchors, R proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scantling.models.anchors import AnchorCache, AnchorConfig
from scantling.models.assign import IGNORED, AssignConfig, SampleConfig, assign, sample
from scantling.models.layers import ConvBlock, cell_patches, init_conv
from scantling.models.losses import BoxLossConfig, box_regression_loss, objectness_loss
from scantling.ops.boxes import decode_boxes
from scantling.ops.nms import batched_nms
from scantling.settings.fields import Count
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch

STDS = (1.0, 1.0, 1.0, 1.0)


class RPNConfig(BaseModel):
    """Settings of the proposal network; defaults are MMDetection's for Faster R-CNN with FPN.

    Attributes:
        anchors: Anchor shapes.
        num_convs: 3x3 convolutions before the two predictions.
        assign: Overlaps of positive and negative anchors.
        sample: Anchors per image that enter the loss.
        allowed_border: Anchors reaching further than this many pixels out of the image are not trained;
            None trains all.
        loss: Regression loss.
        train_per_level: Best anchors of each level that are decoded in training.
        train_proposals: Proposals per image after NMS in training.
        test_per_level: The same at test time.
        test_proposals: The same at test time.
        iou_threshold: Overlap of the NMS within each level.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchors: AnchorConfig = AnchorConfig()
    num_convs: Count = 1
    assign: AssignConfig = AssignConfig(positive_iou=0.7, negative_iou=0.3, low_quality_iou=0.3)
    sample: SampleConfig = SampleConfig(num=256, positive_fraction=0.5)
    allowed_border: float | None = None
    loss: BoxLossConfig = BoxLossConfig(beta=0.0)
    train_per_level: Count = 2000
    train_proposals: Count = 1000
    test_per_level: Count = 1000
    test_proposals: Count = 1000
    iou_threshold: Annotated[float, Field(ge=0, le=1)] = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class RPNOutput:
    """Predictions of all levels, flattened in the order of the anchors, and what they were made from.

    Attributes:
        logits: Per level (B, H · W · A), without gradients.
        deltas: Per level (B, H · W · A, 4), without gradients.
        anchors: Per level (H · W · A, 4) xyxy in image pixels.
        features: Per level (B, C, H, W), with gradients: what the last 3x3 convolution reads.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    features: Sequence[Tensor]


class RPN(nn.Module):
    """One small head shared by all levels.

    Args:
        channels: Width of the pyramid.
        strides: Stride of each level.
        config: Settings.
    """

    def __init__(self, channels: int, strides: Sequence[int], config: RPNConfig) -> None:
        super().__init__()
        self.config = config
        num_anchors = config.anchors.num_anchors
        self.earlier = nn.Sequential(*(ConvBlock(channels, channels, 3) for _ in range(config.num_convs - 1)))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        self.grid = AnchorCache(config.anchors, strides)
        init_conv(self, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> RPNOutput:
        """Pyramid levels [(B, C, H, W)] -> flattened predictions with their anchors."""
        features = [self.earlier(f) for f in features]
        with torch.no_grad():
            hidden = [self.conv(f).relu_() for f in features]  # (B, C, H, W) each
            return RPNOutput(
                logits=[self.objectness(h).permute(0, 2, 3, 1).flatten(1) for h in hidden],
                deltas=[self.deltas(h).permute(0, 2, 3, 1).reshape(len(h), -1, 4) for h in hidden],
                anchors=self.grid.levels(features),
                features=features,
            )

    def train_proposals(self, output: RPNOutput, sizes_hw: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Proposals of each image for a training step; see `propose`."""
        config = self.config
        return propose(
            output, sizes_hw, (config.train_per_level, config.train_proposals), config.iou_threshold
        )[0]

    def test_proposals(self, output: RPNOutput, sizes_hw: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Proposals of each image at test time; see `propose`."""
        config = self.config
        return propose(
            output, sizes_hw, (config.test_per_level, config.test_proposals), config.iou_threshold
        )[0]

    def losses(self, output: RPNOutput, batch: Batch) -> dict[str, Tensor]:
        """Objectness and regression loss, both divided by the number of sampled anchors of the batch."""
        anchors = torch.cat(output.anchors)  # (N, 4)
        picks = [
            self._targets(anchors, truth, size)
            for truth, size in zip(batch.instances, batch.sizes_hw, strict=True)
        ]
        chosen = torch.cat([rows for rows, _ in picks])  # (M,) of all images
        image = torch.cat([torch.full_like(rows, number) for number, (rows, _) in enumerate(picks)])  # (M,)
        truths = torch.cat(
            [
                truth.boxes[matched[matched >= 0]]
                for truth, (_, matched) in zip(batch.instances, picks, strict=True)
            ]
        )  # (P, 4)
        is_object = torch.cat([matched >= 0 for _, matched in picks])  # (M,)
        logits, deltas = self._predict_at(output, image, chosen)  # (M,), (M, 4)
        box = box_regression_loss(
            anchors[chosen[is_object]], deltas[is_object], truths, STDS, self.config.loss
        )
        return {
            "rpn/objectness": objectness_loss(logits, is_object),
            "rpn/box": box / max(len(is_object), 1),
        }

    def _predict_at(self, output: RPNOutput, image: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M,) and deltas (M, 4), with gradients, of anchors `chosen` (M,) of images `image` (M,)."""
        per_cell = self.config.anchors.num_anchors
        counts = torch.tensor([len(a) for a in output.anchors], device=chosen.device)
        ends = counts.cumsum(0)  # (L,)
        level_of = torch.searchsorted(ends, chosen, right=True)  # (M,)
        cells = (chosen - (ends - counts)[level_of]) // per_cell  # (M,)
        members = [(level_of == level).nonzero().squeeze(1) for level in range(len(counts))]
        patches = torch.cat(
            [cell_patches(f, image[m], cells[m]) for f, m in zip(output.features, members, strict=True)]
        )  # (M, kernel cells · C), level by level
        hidden = _linear(patches, self.conv).relu()[torch.cat(members).argsort()]  # (M, C)
        own = torch.arange(len(chosen), device=chosen.device), chosen % per_cell
        return (
            _linear(hidden, self.objectness)[own],
            _linear(hidden, self.deltas).view(-1, per_cell, 4)[own],
        )

    def _targets(self, anchors: Tensor, truth: Instances, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Sampled anchors of one image and what each is matched to (index of a truth, or negative)."""
        inside = inside_image(anchors, size_hw, self.config.allowed_border)
        if inside is None:
            matched = assign(anchors, truth.boxes, self.config.assign, truth.is_crowd)
        else:  # anchors left out must not claim a truth as its best box
            matched = anchors.new_full((len(anchors),), IGNORED, dtype=torch.int64)
            matched[inside] = assign(anchors[inside], truth.boxes, self.config.assign, truth.is_crowd)
        chosen = sample(matched, self.config.sample)
        return chosen, matched[chosen]


def _linear(patches: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a convolution at single cells: its neighbourhoods (M, kernel cells · C), channels last -> (M, C')."""
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def inside_image(anchors: Tensor, size_hw: tuple[int, int], border: float | None) -> Tensor | None:
    """Which anchors (N, 4) reach at most `border` pixels out of the image, (N,) bool; None for no limit."""
    if border is None:
        return None
    height, width = size_hw
    x1, y1, x2, y2 = anchors.unbind(1)
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)


@torch.no_grad()
def propose(
    output: RPNOutput, sizes_hw: Sequence[tuple[int, int]], limits: tuple[int, int], iou_threshold: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Decode the best anchors of each level and suppress overlapping ones within the level.

    Args:
        output: The head's predictions.
        sizes_hw: Unpadded size of each image; proposals are clipped to it.
        limits: Anchors decoded per level, proposals kept per image.
        iou_threshold: Overlap of the NMS.

    Returns:
        Per image (R, 4) boxes and (R,) objectness scores, best first.
    """
    per_level, per_image = limits
    logits, deltas, anchors, levels = [], [], [], []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(
        zip(output.logits, output.deltas, output.anchors, strict=True)
    ):
        best, index = level_logits.float().topk(min(per_level, level_logits.shape[1]), dim=1)  # (B, n)
        logits.append(best)
        deltas.append(level_deltas.float().gather(1, index[..., None].expand(-1, -1, 4)))  # (B, n, 4)
        anchors.append(level_anchors[index])  # (B, n, 4)
        levels.append(torch.full_like(index[0], level))
    level_of = torch.cat(levels)  # (sum of n,)
    pooled = zip(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors, 1), sizes_hw, strict=True)
    found = [
        _suppress(decode_boxes(a, d, STDS, size), s, level_of, (iou_threshold, per_image))
        for s, d, a, size in pooled
    ]
    return [boxes for boxes, _ in found], [scores for _, scores in found]


def _suppress(
    boxes: Tensor, logits: Tensor, levels: Tensor, limits: tuple[float, int]
) -> tuple[Tensor, Tensor]:
    iou_threshold, per_image = limits
    sound = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero().squeeze(1)
    boxes, logits, levels = boxes[sound], logits[sound], levels[sound]
    keep = batched_nms(boxes, logits, levels, iou_threshold)[:per_image]
    return boxes[keep], logits[keep].sigmoid()

"""Which ground truth a box should learn, and which boxes take part in a step.

`assign` gives each reference box (anchor or proposal) the index of a ground-truth box, NEGATIVE (background) or
IGNORED; `sample` draws a bounded number of them.
Dims: N reference boxes, G ground-truth boxes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scantling.ops.boxes import box_area, pairwise_intersection, pairwise_iou
from scantling.settings.fields import Fraction

NEGATIVE = -1
IGNORED = -2
CROWD_COVER = 0.5


class AssignConfig(BaseModel):
    """Overlaps that make a reference box positive or negative.

    Attributes:
        positive_iou: At or above it a box is positive.
        negative_iou: Below it a box is negative; between the two it is ignored.
        low_quality_iou: If given, each truth also claims its best boxes (ties included) when their overlap
            reaches this value; None claims nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.5
    low_quality_iou: Fraction | None = None


class SampleConfig(BaseModel):
    """How many assigned boxes enter a step.

    Attributes:
        num: Boxes per image; None takes all.
        positive_fraction: Upper bound of the positives' share of `num`; negatives fill the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num: Annotated[int, Field(ge=1)] | None = 512
    positive_fraction: Fraction = 0.25


def assign(
    references: Tensor, truths: Tensor, config: AssignConfig, is_crowd: Tensor | None = None
) -> Tensor:
    """Match each reference box to a ground-truth box by overlap.

    A reference box that would be negative but lies by more than half inside a crowd region is ignored; crowd
    regions are never matched.

    Args:
        references: (N, 4) xyxy.
        truths: (G, 4) xyxy in the same frame.
        config: Thresholds.
        is_crowd: (G,) bool, or None for no crowd.

    Returns:
        (N,) int64: index into `truths`, NEGATIVE, or IGNORED. With G = 0 all are NEGATIVE.

    Source:
        Ren et al. 2015, section 3.1.2 (low-quality matches included); where two truths claim the same best
        box, the later one gets it, as in MMDetection.
    """
    index = torch.full((len(references),), NEGATIVE, dtype=torch.int64, device=references.device)
    if len(truths) == 0 or len(references) == 0:
        return index
    if is_crowd is None or not bool(is_crowd.any()):
        return _match(pairwise_iou(references, truths), config)
    if not bool(is_crowd.all()):
        plain = (~is_crowd).nonzero().squeeze(1)
        matched = _match(pairwise_iou(references, truths[plain]), config)
        index = torch.where(matched >= 0, plain[matched.clamp(min=0)], matched)
    inside = pairwise_intersection(references, truths[is_crowd]).amax(1) > CROWD_COVER * box_area(references)
    return index.masked_fill(inside & (index == NEGATIVE), IGNORED)


def _match(iou: Tensor, config: AssignConfig) -> Tensor:
    best, truth = iou.max(dim=1)
    index = torch.where(best >= config.positive_iou, truth, IGNORED)
    index = index.masked_fill(best < config.negative_iou, NEGATIVE)
    if config.low_quality_iou is None:
        return index
    best_of_truth = iou.amax(dim=0)
    claimed = (iou == best_of_truth) & (best_of_truth >= config.low_quality_iou) & (best_of_truth > 0)
    order = torch.arange(1, iou.shape[1] + 1, device=iou.device)
    last_claim = (claimed * order).amax(dim=1)
    return torch.where(last_claim > 0, last_claim - 1, index)


def sample(index: Tensor, config: SampleConfig) -> Tensor:
    """Draw boxes for one training step from torch's global random state.

    Args:
        index: (N,) as `assign` returns it.
        config: Numbers.

    Returns:
        Positions (M,) into `index`, positives first; IGNORED boxes never.
    """
    positive = (index >= 0).nonzero().squeeze(1)
    negative = (index == NEGATIVE).nonzero().squeeze(1)
    if config.num is None:
        return torch.cat([positive, negative])
    positive = _draw(positive, int(config.num * config.positive_fraction))
    return torch.cat([positive, _draw(negative, config.num - len(positive))])


def _draw(positions: Tensor, num: int) -> Tensor:
    if len(positions) <= num:
        return positions
    return positions[torch.randperm(len(positions), device=positions.device)[:num]]

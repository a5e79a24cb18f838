"""RoIAlign (He et al. 2017), with a backward pass of our own on the CPU.

    (B, C, H, W), R boxes ── torchvision's kernel ──► (R, C, P, P)
    gradient of a box (C, P, P) ── rows^T gradient columns ──► (C, h, w), added where the box lies in (B, C, H, W)

The average of bilinear samples on a grid is separable: pooled = rows @ cells @ columns^T, with rows (P, h) and columns
(P, w) the shares of the feature cells in each bin. Its gradient is two matrix products per box, where torchvision adds
up sample by sample and channel by channel (on a CPU a fifth of a training step with mask heads; `bench/roi_align.py`).

Dims: B images, C channels, H W cells of the map, h w cells that a box covers, R boxes, P bins per side, S samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align


def roi_align(
    features: Tensor, rois: Tensor, side: int, scale: float, samples: int, *, aligned: bool = True
) -> Tensor:
    """Average features over the bins of boxes, each read at bilinearly interpolated samples.

    Args:
        features: (B, C, H, W).
        rois: (R, 5): index of the image, then xyxy in image pixels. No gradient reaches them.
        side: Bins per side, P.
        scale: Feature cells per image pixel.
        samples: Per bin and direction; 0 takes as many as the bin has feature cells.
        aligned: Whether pixel centres lie half a cell inwards, as in Detectron2; False is the first version, which
            also widens boxes under a cell to one.

    Returns:
        (R, C, P, P); samples more than a cell outside of the map count as 0.
    """
    if features.device.type == "cpu" and features.requires_grad and torch.is_grad_enabled():
        learned: Tensor = _RoiAlign.apply(features, rois, side, scale, samples, aligned)
        return learned
    pooled: Tensor = torchvision_roi_align(features, rois, (side, side), scale, samples, aligned)
    return pooled


class _RoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rois: Tensor, side: int, scale: float, samples: int, aligned: bool
    ) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.options = features.shape, (side, scale, samples, aligned)
        pooled: Tensor = torchvision_roi_align(features, rois, (side, side), scale, samples, aligned)
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        return (_features_gradient(gradient, rois, ctx.shape, *ctx.options), None, None, None, None, None)


def _features_gradient(
    gradient: Tensor, rois: Tensor, shape: torch.Size, side: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """Gradient (B, C, H, W) of the features from that of what was pooled of them, (R, C, P, P)."""
    count, channels, height, width = shape
    edges = rois[:, 1:].to(gradient.dtype) * scale - (0.5 if aligned else 0.0)
    rows, tops, bottoms = _shares(edges[:, 1], edges[:, 3], side, samples, height, aligned=aligned)
    columns, lefts, rights = _shares(edges[:, 0], edges[:, 2], side, samples, width, aligned=aligned)
    found = gradient.new_zeros(count, channels, height, width)
    images = rois[:, 0].long().tolist()
    for roi, (image, bins) in enumerate(zip(images, gradient.contiguous(), strict=True)):
        y, x = slice(tops[roi], bottoms[roi]), slice(lefts[roi], rights[roi])
        over_columns = (bins.view(-1, side) @ columns[roi, :, x]).view(channels, side, -1)  # (C, P, w)
        found[image, :, y, x] += rows[roi, :, y].T @ over_columns  # (C, h, w)
    return found


def _shares(
    begin: Tensor, end: Tensor, side: int, samples: int, cells: int, *, aligned: bool
) -> tuple[Tensor, list[int], list[int]]:
    """How much each cell of an axis counts in each bin of boxes (R,) that reach from `begin` to `end`, in cells.

    Returns:
        (R, P, cells) shares; for each box the first cell that has one, and the one behind the last.
    """
    extent = end - begin if aligned else (end - begin).clamp(min=1)
    per_bin = extent / side
    number = (
        torch.full_like(extent, samples) if samples else per_bin.ceil().clamp(min=0)
    )  # (R,) samples per bin
    most = int(number.max()) if len(number) else 0
    steps = torch.arange(most, device=begin.device)
    within = (steps + 0.5) / number.clamp(min=1)[:, None]  # (R, S) in bins
    places = torch.arange(side, device=begin.device)[None, :, None] + within[:, None]  # (R, P, S) in bins
    at = begin[:, None, None] + places * per_bin[:, None, None]  # in cells
    counted = (steps < number[:, None])[:, None] & (at >= -1) & (at <= cells)
    at = at.clamp(0, cells - 1)
    low = at.floor()
    share = counted / number.clamp(min=1)[:, None, None]
    shares = begin.new_zeros(len(begin), side, cells + 1)  # behind the last cell one that gets a share of 0
    shares.scatter_add_(2, low.long(), (1 - at + low) * share)
    shares.scatter_add_(2, low.long() + 1, (at - low) * share)
    shares = shares[..., :cells]
    covered = shares.any(1).int()  # (R, cells)
    first, after = covered.argmax(1), covered.flip(1).argmax(1)
    behind = torch.where(covered.any(1), cells - after, 0)  # a box outside of the map has no cells
    return shares, first.tolist(), behind.tolist()

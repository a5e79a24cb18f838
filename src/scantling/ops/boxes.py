"""Box algebra: areas, overlaps, regression targets and coordinate changes. Pure functions, no state.

Boxes are absolute `xyxy` with continuous edges: a box covering exactly the first pixel is (0, 0, 1, 1), width is
x2 - x1, and pixel centres lie at half-integers. Every function takes N = 0 and returns the empty result of the
right shape and dtype. N, M: numbers of boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IouKind = Literal["iou", "giou", "diou", "ciou"]

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest change of log width or log height that `decode_boxes` follows: a factor of 62.5 either way."""

MIN_UNION = 1e-9
"""What an area is divided by at least: below that of any real box, in square pixels or relative to a crop."""

_MIN_SIDE = 1e-6  # a degenerate reference or target is encoded as if it had this width


def box_area(boxes: Tensor) -> Tensor:
    """Area of each box; a reversed box (x2 < x1) has area 0, never negative.

    Args:
        boxes: (..., 4) xyxy.

    Returns:
        (...,) in squared units of the boxes.
    """
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection area of every box of `a` with every box of `b`.

    Args:
        a: (N, 4) xyxy.
        b: (M, 4) xyxy, in the same frame.

    Returns:
        (N, M); (0, M) or (N, 0) when a side is empty.
    """
    width = torch.minimum(a[:, None, 2], b[None, :, 2]) - torch.maximum(a[:, None, 0], b[None, :, 0])
    height = torch.minimum(a[:, None, 3], b[None, :, 3]) - torch.maximum(a[:, None, 1], b[None, :, 1])
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of `a` with every box of `b`; 0 where both are without area.

    Args:
        a: (N, 4) xyxy.
        b: (M, 4) xyxy, in the same frame.

    Returns:
        (N, M) in [0, 1], at least float32.
    """
    a, b = _at_least_float32(a), _at_least_float32(b)
    inter = pairwise_intersection(a, b)
    union = (box_area(a)[:, None] + box_area(b)[None, :]).sub_(inter)
    return inter.div_(union.clamp_(min=MIN_UNION))


def paired_iou(a: Tensor, b: Tensor, kind: IouKind = "iou") -> Tensor:
    """Overlap of box i of `a` with box i of `b`; differentiable in both, with finite gradients.

    Args:
        a: (..., 4) xyxy; the prediction where the measure is not symmetric (none is, up to gradients).
        b: (..., 4) xyxy, same shape and frame.
        kind: `iou` in [0, 1]; `giou` in [-1, 1]; `diou` in [-1, 1]; `ciou` in [-2, 1].

    Returns:
        (...,), at least float32; (0,) for no boxes.

    Raises:
        ValueError: Shapes differ or `kind` is unknown.

    Source:
        GIoU: Rezatofighi et al. 2019, eq. 2-3. DIoU and CIoU: Zheng et al. 2020, eq. 7 and 10-11. As in CIoU's
        paper, the trade-off weight alpha is a constant for the gradient.
    """
    if a.shape != b.shape or a.shape[-1] != 4:
        raise ValueError(
            f"paired_iou: expected two (..., 4) of equal shape, found {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if kind not in ("iou", "giou", "diou", "ciou"):
        raise ValueError(f"paired_iou: expected kind iou, giou, diou or ciou, found {kind!r}")
    a, b = _at_least_float32(a), _at_least_float32(b)
    inter = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    )
    union = box_area(a) + box_area(b) - inter
    iou = inter / union.clamp(min=MIN_UNION)
    if kind == "iou":
        return iou
    hull_wh = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "giou":
        hull = hull_wh.clamp(min=0).prod(-1)
        return iou - (hull - union) / hull.clamp(min=MIN_UNION)
    diou = iou - _centre_distance(a, b) / hull_wh.square().sum(-1).clamp(min=MIN_UNION)
    return diou if kind == "diou" else diou - _aspect_penalty(a, b, iou)


def _centre_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of the centres, (...,)."""
    return ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)


def _aspect_penalty(a: Tensor, b: Tensor, iou: Tensor) -> Tensor:
    """CIoU's alpha * v: how much the aspect ratios differ, weighted by how well the boxes overlap."""
    wa, ha = (a[..., 2:] - a[..., :2]).clamp(min=_MIN_SIDE).unbind(-1)
    wb, hb = (b[..., 2:] - b[..., :2]).clamp(min=_MIN_SIDE).unbind(-1)
    v = (4 / math.pi**2) * (torch.atan(wb / hb) - torch.atan(wa / ha)).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp(min=MIN_UNION)
    return alpha * v


def encode_boxes(references: Tensor, targets: Tensor, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Regression deltas that take each reference box to its target.

    Args:
        references: (..., 4) xyxy: anchors or proposals.
        targets: (..., 4) xyxy, same frame, broadcastable.
        stds: What dx, dy, dw, dh are divided by, so that all have about unit variance.

    Returns:
        (..., 4) dx, dy (shift of the centre in reference sizes), dw, dh (log of the size ratio), each / std. Always
        finite: a side without length counts as 1e-6.

    Source:
        Girshick et al. 2014 (R-CNN), appendix C.
    """
    size, centre = _size_and_centre(references)
    target_size, target_centre = _size_and_centre(targets)
    size, target_size = size.clamp(min=_MIN_SIDE), target_size.clamp(min=_MIN_SIDE)
    deltas = torch.cat([(target_centre - centre) / size, torch.log(target_size / size)], dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode_boxes(
    references: Tensor,
    deltas: Tensor,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    size_hw: tuple[int, int] | None = None,
) -> Tensor:
    """Apply regression deltas to reference boxes: the inverse of `encode_boxes`.

    Args:
        references: (..., 4) xyxy: anchors or proposals.
        deltas: (..., 4) as from `encode_boxes`, broadcastable (K classes: (N, K, 4) on references (N, 1, 4)).
        stds: The ones used to encode.
        size_hw: Clip the result into this frame; None leaves it unclipped.

    Returns:
        (..., 4) xyxy. The log sizes are clamped to +-`MAX_LOG_SCALE` first, so wild deltas cannot overflow.
    """
    deltas = deltas * deltas.new_tensor(stds)
    size, centre = _size_and_centre(references)
    centre = centre + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    boxes = torch.cat([centre - half, centre + half], dim=-1)
    return boxes if size_hw is None else clip_boxes(boxes, size_hw)


def _size_and_centre(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2) width and height, (..., 2) centre x and y."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return high - low, (low + high) * 0.5


def clip_boxes(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Cut boxes off at the borders of their image.

    Args:
        boxes: (..., 4) xyxy.
        size_hw: Height and width of the frame in pixels.

    Returns:
        (..., 4) with x in [0, width] and y in [0, height]; a box wholly outside ends with no area.
    """
    height, width = size_hw
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def enlarge_boxes(boxes: Tensor, factor: float) -> Tensor:
    """Multiply width and height by `factor`, the centre staying; (..., 4) xyxy in and out, not clipped."""
    size, centre = _size_and_centre(boxes)
    half = size * (0.5 * factor)
    return torch.cat([centre - half, centre + half], dim=-1)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Mirror boxes left to right in a frame of this width; (..., 4) xyxy in and out; its own inverse."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def transform_boxes(boxes: Tensor, matrix: Tensor | NDArray[np.float64]) -> Tensor:
    """Axis-aligned hull of boxes under an affine map.

    Args:
        boxes: (..., 4) xyxy.
        matrix: (2, 3) affine map of continuous coordinates: x' = m00 x + m01 y + m02.

    Returns:
        (..., 4) xyxy in the target frame, in the dtype of `boxes` (computed in float64). Tight for scale, shift,
        flip and right angles; a hull otherwise.
    """
    affine = torch.as_tensor(matrix, dtype=torch.float64, device=boxes.device)
    low, high = boxes[..., None, :2].double(), boxes[..., None, 2:].double()
    ends = torch.stack([affine[:, :2] * low, affine[:, :2] * high])  # (2, ..., 2 outputs, 2 inputs)
    lower = ends.amin(dim=0).sum(-1) + affine[:, 2]
    upper = ends.amax(dim=0).sum(-1) + affine[:, 2]
    return torch.cat([lower, upper], dim=-1).to(boxes.dtype)


def _at_least_float32(boxes: Tensor) -> Tensor:
    """Areas of large boxes overflow half precision (65504) and integers do not divide."""
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()

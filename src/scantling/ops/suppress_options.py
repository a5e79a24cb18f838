"""What can be set about suppression, for all categories or for each. N: boxes; K: categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

SuppressMethod = Literal["hard", "soft_linear", "soft_gaussian", "none"]
METHODS: tuple[SuppressMethod, ...] = get_args(SuppressMethod)


class SuppressOptions(TypedDict, total=False):
    """How boxes suppress each other: each one value for all categories, or one for each in label order.

    method: `hard`: a box goes when a better one overlaps it by more than the threshold. `soft_linear`: its score
        falls instead, s *= 1 - IoU. `soft_gaussian`: s *= exp(-IoU² / sigma) for every overlap. `none`: nothing
        happens. Default `hard`.
    iou_threshold: In [0, 1], for `hard` and `soft_linear`; a tensor (K,) for one each. Default 0.5.
    sigma: Above 0, for `soft_gaussian`; or (K,). Default 0.5.
    min_score: The soft methods drop what falls below, and what falls to 0; or (K,). Default 0.001.
    """

    method: SuppressMethod | Sequence[SuppressMethod]
    iou_threshold: float | Tensor
    sigma: float | Tensor
    min_score: float | Tensor


def methods_of(labels: Tensor, method: SuppressMethod | Sequence[SuppressMethod]) -> Tensor:
    """Position in `METHODS` of the method of each box, int64 (N,).

    Args:
        labels: (N,) int64.
        method: One, or one for each category.

    Raises:
        ValueError: Unknown method.
    """
    names = [method] if isinstance(method, str) else list(method)
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"suppress: expected method {', '.join(METHODS)}, found {unknown[0]!r}")
    positions = torch.tensor([METHODS.index(name) for name in names], device=labels.device)
    return positions.expand_as(labels) if isinstance(method, str) else positions[labels]


def values_of(labels: Tensor, value: float | Tensor) -> Tensor:
    """The value for each box, float32 (N,).

    Args:
        labels: (N,) int64.
        value: One, or (K,) one for each category.
    """
    table = torch.as_tensor(value, dtype=torch.float32, device=labels.device)
    return table[labels] if table.ndim else table.expand(len(labels))

"""RoIAlign's own backward pass: torchvision's gradient, for every option and place of a box."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from scantling.ops.roi_align import roi_align

SCALE = 0.25
BOXES = {
    "inside": (10.0, 12.0, 61.0, 48.0),
    "of a pixel": (30.0, 30.0, 31.0, 31.0),
    "without area": (30.0, 30.0, 30.0, 30.0),
    "turned inside out": (40.0, 40.0, 20.0, 10.0),
    "over the edges": (-30.0, -7.0, 150.0, 95.0),
    "in the last cells": (112.0, 71.0, 120.0, 80.0),
    "long and flat": (0.0, 33.0, 120.0, 36.0),
    "outside": (400.0, 300.0, 500.0, 360.0),
}  # in an image of 120 x 80


def gradients(
    rois: torch.Tensor, side: int, samples: int, *, aligned: bool, channels_last: bool = False
) -> list[torch.Tensor]:
    """Of features (2, 3, 20, 30) by ours and by torchvision's, float64."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 3, 20, 30, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(len(rois), 3, side, side, dtype=torch.float64, generator=generator)
    if channels_last:
        weights = weights.contiguous(memory_format=torch.channels_last)
    ours = roi_align(features, rois, side, SCALE, samples, aligned=aligned)
    theirs = torchvision_roi_align(features, rois, (side, side), SCALE, samples, aligned)
    assert torch.equal(ours, theirs)
    return [torch.autograd.grad(pooled, features, weights)[0] for pooled in (ours, theirs)]


@pytest.mark.parametrize(("side", "samples", "aligned"), list(product([7, 14], [0, 1, 2], [True, False])))
def test_gradients_are_torchvisions(side: int, samples: int, aligned: bool) -> None:
    for image, (name, box) in enumerate(BOXES.items()):
        rois = torch.tensor([[image % 2, *box]], dtype=torch.float64)
        ours, theirs = gradients(rois, side, samples, aligned=aligned)
        torch.testing.assert_close(ours, theirs, msg=lambda told, name=name: f"{name}: {told}")
    every = torch.tensor([[i % 2, *box] for i, box in enumerate(BOXES.values())], dtype=torch.float64)
    torch.testing.assert_close(*gradients(every, side, samples, aligned=aligned))
    torch.testing.assert_close(*gradients(every, side, samples, aligned=aligned, channels_last=True))


def test_no_boxes_leave_a_gradient_of_zero() -> None:
    ours, theirs = gradients(torch.zeros(0, 5, dtype=torch.float64), 7, 0, aligned=True)
    assert ours.shape == theirs.shape
    assert not ours.any()


def test_gradients_are_the_slopes() -> None:
    rois = torch.tensor([[0, *BOXES["inside"]], [1, *BOXES["over the edges"]]], dtype=torch.float64)
    features = torch.randn(
        2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda given: roi_align(given, rois, 3, SCALE / 4, 2), [features])

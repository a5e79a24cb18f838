"""The gradient of RoIAlign on the CPU, ours and torchvision's.

    python bench/roi_align.py [--threads 1] [--rounds 7]

Boxes of random place and size on one level of a pyramid of two images; the gradient of the features alone is timed,
in turns, and the shortest of all rounds counts. Their largest difference is told as a share of the largest gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from scantling.ops.roi_align import roi_align

STRIDE = 4
CASES = {
    "tiny masks": (16, 32, 14, (32, 40), (20, 60)),
    "masks-cpu, masks": (32, 64, 14, (72, 96), (20, 120)),
    "masks-cpu, boxes": (128, 64, 7, (72, 96), (20, 120)),
    "R50 at 1200 x 800, masks": (64, 256, 14, (200, 304), (30, 200)),
    "R50 at 1200 x 800, boxes": (512, 256, 7, (200, 304), (30, 200)),
}
"""Boxes, channels, bins per side, size of the map in cells, sides of the boxes in pixels."""


def boxes_on(size_hw: tuple[int, int], count: int, sides: tuple[int, int]) -> Tensor:
    """(R, 5) index of one of two images and a box inside of it."""
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([size_hw[1], size_hw[0]]) * STRIDE
    size = torch.rand(count, 2, generator=generator) * (sides[1] - sides[0]) + sides[0]
    corner = torch.rand(count, 2, generator=generator) * (extent - size).clamp(min=0)
    image = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([image, corner, torch.minimum(corner + size, extent)], dim=1)


def seconds_and_gradient(pool: Callable[[Tensor], Tensor], features: Tensor) -> tuple[float, Tensor]:
    pooled = pool(features)
    weights = torch.ones_like(pooled)
    begin = time.perf_counter()
    (gradient,) = torch.autograd.grad(pooled, features, weights)
    return time.perf_counter() - begin, gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| gradient of | samples per bin | torchvision ms | ours ms | ratio | largest difference |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (count, channels, side, size_hw, sides) in CASES.items():
        rois = boxes_on(size_hw, count, sides)
        features = torch.randn(2, channels, *size_hw, requires_grad=True)
        for samples in (2, 0):
            options = (side, 1 / STRIDE, samples)
            pools: list[Callable[[Tensor], Tensor]] = [
                lambda x, rois=rois, o=options: torchvision_roi_align(
                    x, rois, (o[0], o[0]), o[1], o[2], True
                ),
                lambda x, rois=rois, o=options: roi_align(x, rois, *o),
            ]
            rounds = [[seconds_and_gradient(pool, features) for pool in pools] for _ in range(given.rounds)]
            theirs, ours = (
                1000 * min(seconds for seconds, _ in column) for column in zip(*rounds, strict=True)
            )
            (_, expected), (_, found) = rounds[0]
            apart = float((found - expected).abs().max() / expected.abs().max())
            told = samples or "as cells"
            print(f"| {name} | {told} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} | {apart:.0e} |")


if __name__ == "__main__":
    main()

"""The gradient of RoIAlign on the CPU, ours and torchvision's.

    python bench/roi_align.py [--threads 1] [--rounds 7]

Boxes of random place and size on one level of a pyramid of two images; the gradient of the features alone is timed,
in turns, and the shortest of all rounds counts. Their largest difference is told as a share of the largest gradient.
Then a step (losses and gradients of two images of 288 x 384 with six objects each) of models with mask heads, with the
one and the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from scantling.models import layers
from scantling.models.contract import Detector, total_loss
from scantling.models.zoo import ModelConfig, build_model
from scantling.ops.roi_align import roi_align
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Batch, Frame, Sample

STRIDE = 4
SIZE_HW = (288, 384)
MODELS: dict[str, dict[str, Any]] = {
    "cascade_mask_rcnn_r18_small": {"backbone": "resnet10t", "anchor_scales": [4.0, 8.0], "num_rois": 64},
    "scnet_r18_small": {},
    "mask_rcnn_r50": {},
}
"""The first as in the recipe masks-cpu."""
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


def batch_of_ellipses() -> Batch:
    """Two images with six objects and their masks."""
    generator = torch.Generator().manual_seed(0)
    height, width = SIZE_HW
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    samples = []
    for number in range(2):
        size = torch.randint(20, 100, (6, 2), generator=generator)
        centre = torch.rand(6, 2, generator=generator) * (torch.tensor([width, height]) - size) + size / 2
        x, y, w, h = (column[:, None, None] for column in (*centre.T, *size.T))
        masks = ((xs - x) / w * 2) ** 2 + ((ys - y) / h * 2) ** 2 < 1
        truth = Instances(
            size_hw=SIZE_HW,
            boxes=torch.cat([centre - size / 2, centre + size / 2], dim=1),
            labels=torch.arange(6) % 2,
            masks=ImageMasks.from_dense(masks.to(torch.uint8)),
        )
        image = (masks.any(0) * 120 + 60).to(torch.uint8).expand(3, -1, -1).contiguous().numpy()
        samples.append(Sample(image=image, instances=truth, frame=Frame.identity(SIZE_HW), image_id=number))
    return Batch.collate(samples)


def seconds_of_step(model: Detector, batch: Batch) -> float:
    torch.manual_seed(0)
    model.zero_grad()
    begin = time.perf_counter()
    total_loss(model.losses(batch)).backward()
    return time.perf_counter() - begin


def theirs_in_a_model(
    features: Tensor, rois: Tensor, side: int, scale: float, samples: int, *, aligned: bool = True
) -> Tensor:
    pooled: Tensor = torchvision_roi_align(features, rois, (side, side), scale, samples, aligned)
    return pooled


def compare_steps(rounds: int) -> None:
    batch = batch_of_ellipses()
    print("| step of | torchvision s | ours s | ratio |")
    print("|---|---:|---:|---:|")
    for name, options in MODELS.items():
        torch.manual_seed(0)
        model = build_model(ModelConfig(name=name, **options), 2).train()
        taken: dict[str, list[float]] = {"torchvision": [], "ours": []}
        for _ in range(rounds):
            for kind, pool in (("torchvision", theirs_in_a_model), ("ours", roi_align)):
                layers.roi_align = pool
                taken[kind].append(seconds_of_step(model, batch))
        theirs, ours = (min(seconds) for seconds in taken.values())
        print(f"| {name} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} |")


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
    print()
    compare_steps(given.rounds)


if __name__ == "__main__":
    main()

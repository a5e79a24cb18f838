"""Two small painted images with masks, for networks that learn masks of pixels."""

from __future__ import annotations

import numpy as np
import torch

from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Batch, Frame, Sample

SIDE = 64


def painted(size_hw=(SIDE, SIDE), seed=0) -> Sample:
    """A bright disc (label 0) and a dark square (label 1) on noise."""
    rng = np.random.default_rng(seed)
    h, w = size_hw
    rows, columns = np.mgrid[:h, :w]
    y, x = rng.integers(11, h - 11), rng.integers(11, w // 2 - 10)
    disc = (rows - y) ** 2 + (columns - x) ** 2 <= 100
    y, x = rng.integers(1, h - 16), rng.integers(w // 2 + 1, w - 16)
    square = (rows >= y) & (rows < y + 16) & (columns >= x) & (columns < x + 16)
    image = rng.integers(100, 140, (3, h, w))
    image[:, disc], image[:, square] = image[:, disc] + 90, image[:, square] - 90
    masks = ImageMasks.from_dense(np.stack([disc, square]))
    instances = Instances(size_hw=size_hw, boxes=masks.boxes(), labels=torch.tensor([0, 1]), masks=masks)
    frame = Frame.identity(size_hw)
    return Sample(image=image.astype(np.uint8), instances=instances, frame=frame, image_id=seed)


def painted_batch(*sizes_hw) -> Batch:
    """As many images as there are sizes, padded to one."""
    return Batch.collate([painted(size, seed) for seed, size in enumerate(sizes_hw)])

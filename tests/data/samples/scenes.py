"""Small scenes with known masks, and a bank of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Frame, Sample

Box = tuple[int, int, int, int]


def scene(
    boxes: Sequence[Box],
    size_hw: tuple[int, int] = (60, 80),
    *,
    labels: Sequence[int] | None = None,
    crowd: Sequence[bool] | None = None,
    masks: bool = True,
    seed: int = 0,
    image_id: int = 1,
) -> Sample:
    """Rectangles on noise, each of a grey of its own, none of whose pixels belongs to two: the later are below."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (*size_hw, 3)).astype(np.uint8)
    taken = np.zeros(size_hw, dtype=bool)
    dense = np.zeros((len(boxes), *size_hw), dtype=bool)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        dense[row, y1:y2, x1:x2] = True
        dense[row] &= ~taken
        taken |= dense[row]
        image[dense[row]] = 100 + 10 * row
    drawn = ImageMasks.from_dense(dense)
    instances = Instances(
        size_hw=size_hw,
        boxes=drawn.boxes(),
        labels=torch.tensor(labels if labels is not None else [0] * len(boxes), dtype=torch.int64),
        masks=drawn if masks else None,
        is_crowd=torch.tensor(crowd if crowd is not None else [False] * len(boxes), dtype=torch.bool),
        ids=torch.arange(len(boxes)) + 100 * image_id,
    )
    if masks:
        instances = instances[drawn.areas() > 0]
    return Sample(
        image=image.transpose(2, 0, 1),
        instances=instances,
        frame=Frame.identity(size_hw),
        image_id=image_id,
    )


class Scenes:
    """A bank of scenes that remembers which were asked for."""

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        self.asked.append(index)
        return self.samples[index]


def is_sound(instances: Instances) -> bool:
    """Whether boxes are the tight boxes of masks that share no pixel, and none is empty."""
    masks = instances.masks
    assert isinstance(masks, ImageMasks)
    tight = bool((instances.boxes == masks.boxes()).all())
    disjoint = not len(masks) or int(masks.to_dense().sum(dim=0).max()) <= 1
    return tight and disjoint and bool((masks.areas() > 0).all())


def same(first: Sample, second: Sample) -> bool:
    """Whether two samples have the same pixels, boxes, labels, ids and masks."""
    if first.size_hw != second.size_hw or len(first.instances) != len(second.instances):
        return False
    pairs = (
        (getattr(first.instances, name), getattr(second.instances, name))
        for name in ("boxes", "labels", "ids")
    )
    masks = [s.instances.masks.to_rles() if s.instances.masks is not None else [] for s in (first, second)]
    return (
        bool((first.image == second.image).all())
        and all(torch.equal(a, b) for a, b in pairs)
        and masks[0] == masks[1]
    )

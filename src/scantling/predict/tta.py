"""Test-time augmentation: one image seen several times, its candidates mapped back to its original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scantling.structures.instances import Instances
from scantling.structures.sample import Batch, Frame


def flip_horizontally(batch: Batch) -> Batch:
    """The images of a batch with left and right exchanged; padding stays at the right and bottom.

    Args:
        batch: On any device; its ground truth is left out.
    """
    images = batch.images.clone()
    frames = []
    for image, frame, (height, width) in zip(images, batch.frames, batch.sizes_hw, strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
        frames.append(frame.then(np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]]), (height, width)))
    instances = [Instances.empty(size_hw, scored=False) for size_hw in batch.sizes_hw]
    return replace(batch, images=images, frames=frames, instances=instances)


def in_original_pixels(seen: Sequence[tuple[Frame, Instances]]) -> list[Instances]:
    """The candidates of each view of one image, mapped back to its original pixels, in main memory.

    Args:
        seen: For each view its frame and the scored candidates in it.
    """
    return [frame.invert(found.to("cpu")) for frame, found in seen]

"""What the rules behind auto look at: facts about the data set and the machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from scantling.data.coco import CocoDataset
from scantling.data.coco.records import labels_by_name
from scantling.train.devices import ALONE, Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What the rules look at.

    Attributes:
        num_images: Training images.
        median_hw: Median height and width of the training images, pixels.
        small_object: Tenth percentile of the objects' sizes (square root of the box area), pixels; None
            without objects.
        device: `cpu`, `cuda` or `mps`.
        memory_gib: Memory of the GPU; None on a CPU.
        cpu_count: Processor cores.
        class_counts: Training objects by category.
        max_objects: Most objects in one training image.
        bf16: The GPU computes in bfloat16.
        processes: How many train together, each with its own batches.
        has_masks: Every annotation of the training images has a mask.
    """

    num_images: int
    median_hw: tuple[int, int]
    small_object: float | None
    device: str
    memory_gib: float | None
    cpu_count: int
    class_counts: Mapping[str, int] = field(default_factory=dict)
    max_objects: int = 0
    bf16: bool = False
    processes: int = 1
    has_masks: bool = False


def measure(train: CocoDataset, device: torch.device, processes: Processes = ALONE) -> DataFacts:
    """Facts for the rules that decide `auto`.

    Args:
        train: At least one image.
        device: Where the run computes.
        processes: Those that train together; each gets its part of the machine's cores.
    """
    objects = [[a for a in annotations if a.is_object] for annotations in train.annotations]
    sizes = [(a.box_xywh[2] * a.box_xywh[3]) ** 0.5 for annotations in objects for a in annotations]
    labels = Counter(a.label for annotations in objects for a in annotations)
    heights, widths = zip(*(record.size_hw for record in train.images), strict=True)
    gpu = device.type == "cuda"
    return DataFacts(
        num_images=len(train),
        median_hw=(int(np.median(heights)), int(np.median(widths))),
        small_object=float(np.percentile(sizes, 10)) if sizes else None,
        device=device.type,
        memory_gib=torch.cuda.get_device_properties(device).total_memory / 2**30 if gpu else None,
        cpu_count=max(1, (os.cpu_count() or 1) // processes.on_machine),
        processes=processes.world,
        class_counts={name: labels[label] for name, label in labels_by_name(train.class_names).items()},
        max_objects=max(map(len, objects)),
        bf16=gpu and torch.cuda.is_bf16_supported(),
        has_masks=any(objects)
        and all(a.segmentation is not None for part in train.annotations for a in part),
    )

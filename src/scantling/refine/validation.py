"""How well a refiner undoes a known error: labelled boxes, moved by a fixed jitter, refined, compared with the labels.

    labels ── jitter by (image id, box) alone ──► boxes as a detector gives them ── refine ──► IoU with the labels

N: boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.data.samples.dataset import draw_key, rng_for
from scantling.ops.overlaps import paired_iou
from scantling.refine.apply import NOT_KNOWN, ApplyConfig, labels_for, refine_rows
from scantling.refine.bbrefinement import Refiner
from scantling.refine.crops import Boxes
from scantling.refine.training_data import LabelledBoxes

JITTER = 0.15
"""Largest move of each edge relative to the box's side: the boxes then overlap with theirs by 0.75 on average."""
MAX_BOXES = 1000

_GOOD = 0.75


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JitteredBoxes:
    """Labelled boxes and what a detector might have made of them.

    Attributes:
        dataset: Where the images are.
        images: (N,) position of each box's image.
        labels: (N,) label in the data set.
        truth: (N, 4) xyxy as labelled.
        boxes: (N, 4) xyxy, jittered and clipped to the image.
    """

    dataset: CocoDataset
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    truth: Boxes
    boxes: Boxes

    def __len__(self) -> int:
        return len(self.images)


def jittered_boxes(
    labelled: LabelledBoxes, *, jitter: float = JITTER, max_boxes: int | None = MAX_BOXES, seed: int = 0
) -> JitteredBoxes:
    """Every usable box of a data set (or a random part of them), jittered in the same way each time.

    Args:
        labelled: The boxes.
        jitter: See `jitter_box`.
        max_boxes: No more than so many, drawn by image id; None for all.
        seed: Of the jitter.
    """
    keyed = [
        (draw_key(seed, place, record.id, "validation box"), index, place)
        for index, record in enumerate(labelled.coco.images)
        for place in range(len(labelled.usable[index].boxes))
    ]
    chosen = sorted((index, place) for _, index, place in sorted(keyed)[:max_boxes])
    truth, moved, labels = [np.zeros((0, 4))], [np.zeros((0, 4))], []
    for index, place in chosen:
        record, usable = labelled.coco.images[index], labelled.usable[index]
        rng = rng_for(seed, 0, record.id, f"validation jitter {place}")
        truth.append(usable.boxes[place : place + 1])
        moved.append(jitter_box(usable.boxes[place], jitter, record.size_hw, rng)[None])
        labels.append(int(usable.labels[place]))
    return JitteredBoxes(
        dataset=labelled.coco,
        images=np.array([index for index, _ in chosen], dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        truth=np.concatenate(truth),
        boxes=np.concatenate(moved),
    )


def jitter_box(
    box: NDArray[np.float64], jitter: float, size_hw: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Move each edge of a box (4,) by up to `jitter` of the box's side, and clip it to the image."""
    width, height = box[2:] - box[:2]
    moved = box + rng.uniform(-jitter, jitter, 4) * [width, height, width, height]
    clipped: NDArray[np.float64] = np.clip(moved, 0, np.array(size_hw[::-1] * 2))
    return clipped


def measure_undoing(
    refiner: Refiner, jittered: JitteredBoxes, config: ApplyConfig
) -> dict[str, float | None]:
    """Mean overlap with the labels after and before refining.

    Args:
        refiner: In evaluation mode. Boxes of categories that it does not know count as they are.
        jittered: What to refine.
        config: How.

    Returns:
        `iou` and `iou_before`, their means; `good` and `good_before`, the shares with IoU >= 0.75; None for no boxes.
    """
    labels = labels_for(refiner, jittered.dataset)[jittered.labels]
    rows = np.flatnonzero(labels != NOT_KNOWN)
    refined = jittered.boxes.copy()
    refined[rows] = refine_rows(
        jittered.dataset, jittered.images[rows], labels[rows], jittered.boxes[rows], refiner, config
    )
    metrics: dict[str, float | None] = {}
    for suffix, boxes in (("", refined), ("_before", jittered.boxes)):
        iou = paired_iou(boxes, jittered.truth)
        metrics[f"iou{suffix}"] = float(iou.mean()) if len(iou) else None
        metrics[f"good{suffix}"] = float((iou >= _GOOD).mean()) if len(iou) else None
    return metrics

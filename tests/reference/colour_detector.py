"""A detector that can be trusted: it finds rectangles of pure colour, exactly."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from scantling.models.contract import CandidateLimits, Detector, Encoded
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch

CLASS_NAMES = ("red", "green", "blue")


class ColourDetector(Detector):
    """Finds red, green and blue rectangles on black to a small fraction of a pixel, if `sees` admits them.

    Each is reported twice, the second time a little shifted and less sure, as a real detector does.
    """

    def __init__(self, sees: Callable[[list[float], tuple[int, int]], bool] = lambda _box, _hw: True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.num_classes = 3
        self.sees = sees
        self.seen: list[tuple[int, int]] = []
        self.notes: list[tuple[bool, bool, torch.dtype]] = []

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def encode(self, batch: Batch) -> Encoded:
        return Encoded(levels=[batch.images], sizes_hw=batch.sizes_hw, proposals=[])

    def candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        assert not self.training
        self.notes.append(
            (
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.get_autocast_dtype("cpu"),
            )
        )
        return [
            self._find(image[:, :height, :width].numpy(), (height, width), limits)
            for image, (height, width) in zip(encoded.levels[0], encoded.sizes_hw, strict=True)
        ]

    def _find(self, image: np.ndarray, size_hw: tuple[int, int], limits: CandidateLimits) -> Instances:
        self.seen.append(size_hw)
        boxes, labels, scores = [], [], []
        for label, channel in enumerate(image):
            for box in rectangles(channel):
                if self.sees(box, size_hw):
                    boxes += [box, [value + 0.02 * (box[2] - box[0]) for value in box]]
                    labels += [label, label]
                    scores += [0.9, 0.6]
        order = torch.tensor(scores).argsort(descending=True, stable=True)[: limits.max_candidates]
        return Instances(
            size_hw=size_hw,
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)[order],
            labels=torch.tensor(labels, dtype=torch.int64)[order],
            scores=torch.tensor(scores, dtype=torch.float32)[order],
        )


def rectangles(channel: np.ndarray) -> list[list[float]]:
    """Boxes of bright rectangles: their width is the light in a row, their middle its centre of mass."""
    count, _, stats, _ = cv2.connectedComponentsWithStats((channel > 0).astype(np.uint8))
    boxes = []
    for x, y, w, h, _ in stats[1:count]:
        part = channel[y : y + h, x : x + w].astype(float) / 255
        sides = []
        for profile, start in ((part[h // 2], x), (part[:, w // 2], y)):
            length = profile.sum()
            middle = start + (profile * (np.arange(len(profile)) + 0.5)).sum() / length
            sides.append((middle - length / 2, middle + length / 2))
        boxes.append([sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
    return boxes

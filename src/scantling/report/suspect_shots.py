"""Pictures of suspicious labels: a part of the image, with what is labelled and what is suggested drawn over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scantling.audit.suspects import REMOVES, Suspect
from scantling.data.coco import CocoDataset
from scantling.data.images.open import open_image
from scantling.data.truths import Truths, truths_of
from scantling.errors import DataError
from scantling.ops.overlaps import from_corners
from scantling.report.draw import Rectangle
from scantling.report.gallery import window_around
from scantling.report.overlays import Excerpt, score_text
from scantling.structures.detections import Detections

MAX_DETECTIONS, MAX_OTHERS = 12, 40
"""Detections drawn on one picture, the best; and further labels, the nearest."""

_LEAST_SCORE = 0.1

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A box on a picture.

    Attributes:
        role: `label` (the suspect as labelled), `suggestion`, `other` (further labels), `detection`.
        box_xywh: Relative to the window.
        caption: Category, or category and score.
    """

    role: str
    box_xywh: tuple[float, float, float, float]
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """What to show of one suspect.

    Attributes:
        window: Part of the image.
        pixels: That part, RGB; None if the image cannot be opened.
        before: What is drawn over it as it is labelled.
        after: As it would be after the repair.
    """

    window: Excerpt
    pixels: Pixels | None
    before: tuple[Mark, ...]
    after: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Camera:
    """Takes pictures of the suspects of one data set.

    Attributes:
        dataset: Images and names.
        labels: Of the data set, as columns.
        detections: Drawn on the pictures; may be none.
    """

    dataset: CocoDataset
    labels: Truths
    detections: Detections

    @classmethod
    def on(cls, dataset: CocoDataset, detections: Detections | None) -> Camera:
        """A camera for a data set and detections on it, if there are any."""
        found = Detections.empty() if detections is None else detections.by_score()
        return cls(dataset=dataset, labels=truths_of(dataset), detections=found)

    def shoot(self, suspect: Suspect) -> Shot:
        """The part of the image around a suspect, with its surroundings."""
        record = self.dataset.images[suspect.image]
        window = window_around(_hull(suspect), record.size_hw)
        others = tuple(self._others(suspect, window))
        return Shot(
            window=window,
            pixels=self._pixels(suspect.image, window),
            before=(*others, *_label(suspect, window)),
            after=(*self._detected(suspect, window), *others, *_suggestion(suspect, window)),
        )

    def _pixels(self, image: int, window: Excerpt) -> Pixels | None:
        record = self.dataset.images[image]
        try:
            pixels = _open(str(record.path), record.size_hw, record.white)
        except DataError:
            return None
        return pixels[window.top : window.top + window.height, window.left : window.left + window.width]

    def _others(self, suspect: Suspect, window: Excerpt) -> Iterator[Mark]:
        """Further labels that the window shows."""
        rows = np.flatnonzero(self.labels.images == suspect.image)
        rows = rows[np.argsort(_distances(self.labels.boxes[rows], window), kind="stable")]
        others = [row for row in rows if self.labels.ids[row] != suspect.annotation_id]
        shown = [row for row in others if _reaches_into(self.labels.boxes[row], window)]
        for row in shown[:MAX_OTHERS]:
            name = self.dataset.class_names[self.labels.labels[row]]
            yield Mark(role="other", box_xywh=_relative(self.labels.boxes[row], window), caption=name)

    def _detected(self, suspect: Suspect, window: Excerpt) -> Iterator[Mark]:
        """The best detections that the window shows."""
        found = self.detections
        rows = np.flatnonzero((found.images == suspect.image) & (found.scores >= _LEAST_SCORE))
        shown = [row for row in rows if _reaches_into(found.boxes[row], window)]
        for row in shown[:MAX_DETECTIONS]:
            name = self.dataset.class_names[found.labels[row]]
            caption = f"{name} {score_text(float(found.scores[row]))}"
            yield Mark(role="detection", box_xywh=_relative(found.boxes[row], window), caption=caption)


@lru_cache(maxsize=8)
def _open(path: str, size_hw: tuple[int, int], white: int | None) -> Pixels:
    return open_image(path, size_hw=size_hw, white=white)


def _hull(suspect: Suspect) -> Rectangle:
    """The smallest box around what is labelled and what is suggested."""
    boxes = np.array([box for box in (suspect.box, suspect.suggested_box) if box is not None])
    x1, y1 = boxes[:, :2].min(axis=0).tolist()
    x2, y2 = boxes[:, 2:].max(axis=0).tolist()
    return (x1, y1, x2, y2)


def _label(suspect: Suspect, window: Excerpt) -> Iterator[Mark]:
    if suspect.box is not None:
        yield Mark(role="label", box_xywh=_relative(suspect.box, window), caption=suspect.category)


def _suggestion(suspect: Suspect, window: Excerpt) -> Iterator[Mark]:
    """The label as it would be; nothing where it is to go."""
    box = suspect.suggested_box or suspect.box
    if suspect.reason not in REMOVES and box is not None:
        caption = suspect.suggested_category or suspect.category
        yield Mark(role="suggestion", box_xywh=_relative(box, window), caption=caption)


def _relative(
    box: Sequence[float] | NDArray[np.float64], window: Excerpt
) -> tuple[float, float, float, float]:
    x, y, width, height = from_corners([float(edge) for edge in box])
    return (round(x - window.left, 1), round(y - window.top, 1), round(width, 1), round(height, 1))


def _distances(boxes: NDArray[np.float64], window: Excerpt) -> NDArray[np.float64]:
    """(N,) how far the middle of each box is from that of the window."""
    middle = np.array([window.left + window.width / 2, window.top + window.height / 2])
    return np.asarray(np.hypot(*((boxes[:, :2] + boxes[:, 2:]) / 2 - middle).T), dtype=np.float64)


def _reaches_into(box: NDArray[np.float64], window: Excerpt) -> bool:
    x1, y1, x2, y2 = box
    right, bottom = window.left + window.width, window.top + window.height
    return bool(x2 > window.left and x1 < right and y2 > window.top and y1 < bottom)

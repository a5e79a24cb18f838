"""Truths and predictions of one image turned into what is drawn over a window of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.truths import Truths
from scantling.evaluate.matching import ImageMatch
from scantling.evaluate.pairs import NONE
from scantling.ops.overlaps import corners, from_corners
from scantling.ops.rle import RLE, rle_to_patch
from scantling.report.content import Overlay
from scantling.report.draw import Rectangle, place_tags
from scantling.structures.detections import Detections

LOWEST_SCORE = 0.05
MAX_PREDICTIONS = 80
_CHARACTER_WIDTH = 0.64  # of the font size, in a sans serif
_OUTLINE_TOLERANCE = 0.7  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """A part of an image: left, top, width and height in its pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageOverlays:
    """One image's outcome and how to speak about it.

    Attributes:
        match: Truths, predictions and who found whom.
        accepted: (N,) which predictions reach their category's threshold.
        class_names: In label order.
        subject_truth: The truth the picture is about.
        subject_prediction: The prediction the picture is about.
    """

    match: ImageMatch
    accepted: NDArray[np.bool_]
    class_names: Sequence[str]
    subject_truth: int | None = None
    subject_prediction: int | None = None


def overlays_in(window: Excerpt, scene: ImageOverlays, font_size: float) -> tuple[Overlay, ...]:
    """Everything of the scene that the window shows, the picture's subjects on top, captions laid out.

    Args:
        window: Part of the image; boxes are given relative to it.
        scene: What is there. Predictions that score less than 0.05 and are not accepted either are left out, and
            so are all but the 80 best.
        font_size: Of the captions, in image pixels.
    """
    drawn = [*_truths(window, scene), *_predictions(window, scene)]
    first = sorted(drawn, key=lambda overlay: (not overlay.is_subject, not overlay.is_accepted))
    places = place_tags(
        [corners(overlay.box_xywh) for overlay in first],
        [(len(overlay.caption) * font_size * _CHARACTER_WIDTH, font_size * 1.3) for overlay in first],
        (window.height, window.width),
    )
    labelled = [_label(overlay, place, font_size) for overlay, place in zip(first, places, strict=True)]
    return tuple(reversed(labelled))


def score_text(score: float) -> str:
    """Two decimals, but never zero for what is not."""
    return "<0.01" if 0 < score < 0.005 else f"{score:.2f}"


def _truths(window: Excerpt, scene: ImageOverlays) -> list[Overlay]:
    truths, found_by = scene.match.truths, scene.match.prediction_of
    overlays = []
    for index in _visible(truths, window):
        found = found_by[index] != NONE and scene.accepted[found_by[index]]
        role = "crowd" if not truths.is_object[index] else "truth" if found else "missed"
        overlays.append(
            Overlay(
                role=role,
                caption=scene.class_names[truths.labels[index]],
                is_subject=index == scene.subject_truth,
                **_geometry(truths, index, window),
            )
        )
    return overlays


def _predictions(window: Excerpt, scene: ImageOverlays) -> list[Overlay]:
    predictions, overlays = scene.match.predictions, []
    shown = scene.accepted | (predictions.scores >= LOWEST_SCORE)
    visible = [index for index in _visible(predictions, window) if shown[index]]
    for rank, index in enumerate(visible):
        if rank >= MAX_PREDICTIONS and index != scene.subject_prediction:
            continue
        score = float(predictions.scores[index])
        overlays.append(
            Overlay(
                role="prediction" if scene.match.kinds[index] is None else "false",
                caption=f"{scene.class_names[predictions.labels[index]]} {score_text(score)}",
                is_subject=index == scene.subject_prediction,
                score=score,
                is_accepted=bool(scene.accepted[index]),
                **_geometry(predictions, index, window),
            )
        )
    return overlays


def _visible(shapes: Truths | Detections, window: Excerpt) -> list[int]:
    """Positions of the shapes whose boxes reach into the window."""
    x1, y1, x2, y2 = shapes.boxes.T
    right, bottom = window.left + window.width, window.top + window.height
    inside = (x2 > window.left) & (x1 < right) & (y2 > window.top) & (y1 < bottom)
    return [int(index) for index in np.flatnonzero(inside)]


def _geometry(shapes: Truths | Detections, index: int, window: Excerpt) -> Mapping[str, Any]:
    x, y, width, height = from_corners(shapes.boxes[index].tolist())
    box_xywh = (round(x - window.left, 1), round(y - window.top, 1), round(width, 1), round(height, 1))
    mask = None if shapes.masks is None else shapes.masks[index]
    return {
        "box_xywh": box_xywh,
        "label_at": (0.0, 0.0),
        "mask": None if mask is None else outline(mask, window),
    }


def outline(mask: RLE, window: Excerpt) -> str | None:
    """SVG path around a compressed RLE, relative to the window; None for an empty mask."""
    patch, (x, y) = rle_to_patch(mask)
    contours, _ = cv2.findContours(patch, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    shift = np.asarray([x - window.left + 0.5, y - window.top + 0.5])
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, _OUTLINE_TOLERANCE, True)[:, 0] + shift
        parts.append("M" + "L".join(f"{px:g} {py:g}" for px, py in points) + "Z")
    return "".join(parts) or None


def _label(overlay: Overlay, place: Rectangle, font_size: float) -> Overlay:
    baseline = place[3] - font_size * 0.3
    return replace(overlay, label_at=(round(place[0], 1), round(baseline, 1)))

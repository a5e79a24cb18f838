"""Labels as an annotator would give them: exact, or wrong in known ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.ops.overlaps import corners, paired_iou
from scantling.synth.layout import CATEGORY_IDS
from scantling.synth.scene import Box, LabelNoise, Part, Scene, State

Kind = Literal["box_jitter", "wrong_class", "missing", "spurious"]
TRIES = 24
JITTER_IOU = (
    0.25,
    0.92,
)  # a moved box overlaps the true one this much: wrong for sure, but about the same thing
STRAY_IOU = 0.15  # a spurious label overlaps no true one of its category more


class Label(NamedTuple):
    """One annotation before it has an id.

    Attributes:
        category: Category name.
        patch: (h, w) bool, the mask inside its tight box.
        at: Column and row of the patch's upper left pixel.
        state: State of the part; None for surface defects.
    """

    category: str
    patch: NDArray[np.bool_]
    at: tuple[int, int]
    state: State | None

    @property
    def xywh(self) -> tuple[int, int, int, int]:
        """The tight box of the mask."""
        return (*self.at, self.patch.shape[1], self.patch.shape[0])


class Corruption(NamedTuple):
    """One error put into the labels of a scene.

    Attributes:
        kind: What kind of error.
        position: Index of the true label concerned; None for a spurious one.
        label: The label as it is written; None when it is left out.
    """

    kind: Kind
    position: int | None
    label: Label | None


def true_labels(scene: Scene) -> list[Label]:
    """The exact labels of everything a detector has to find."""
    return [_label(part) for part in scene.targets]


def _label(part: Part) -> Label:
    return Label(part.category, part.patch(), (int(part.box[0]), int(part.box[1])), part.state)


def corrupt(
    truth: Sequence[Label], noise: LabelNoise, size_hw: tuple[int, int], rng: np.random.Generator
) -> list[Corruption]:
    """Decide which labels are wrong and how; empty for no labels."""
    errors = []
    for position, label in enumerate(truth):
        draw = rng.random()
        if draw < noise.missing:
            errors.append(Corruption("missing", position, None))
        elif draw < noise.missing + noise.wrong_class:
            others = [name for name in CATEGORY_IDS if name != label.category]
            errors.append(
                Corruption("wrong_class", position, label._replace(category=str(rng.choice(others))))
            )
        elif draw < noise.missing + noise.wrong_class + noise.box_jitter:
            errors.append(
                Corruption("box_jitter", position, _jitter(label, noise.box_jitter_scale, size_hw, rng))
            )
    for _ in range(int(rng.binomial(len(truth), noise.spurious))):
        stray = _stray(truth, size_hw, rng)
        errors += [Corruption("spurious", None, stray)] if stray else []
    return errors


def _jitter(label: Label, scale: float, size_hw: tuple[int, int], rng: np.random.Generator) -> Label:
    """Move every edge; try again until the box is noticeably wrong but not elsewhere."""
    sides = np.tile(label.xywh[2:], 2)
    for attempt in range(TRIES):
        edges = np.array(corners(label.xywh)) + rng.normal(0, scale * (1 + attempt / 8), 4) * sides
        moved = _stretch(label, edges, size_hw)
        if moved and JITTER_IOU[0] <= _iou(moved.xywh, label.xywh) <= JITTER_IOU[1]:
            return moved
    return label._replace(
        patch=label.patch[:1, :1] | True
    )  # a thing of a few pixels: one pixel is what is left


def _stretch(label: Label, edges: NDArray[np.float64], size_hw: tuple[int, int]) -> Label | None:
    """The label's mask resized into new edges (xyxy) and clipped to the picture; None if nothing is left."""
    x1, y1, x2, y2 = (round(float(edge)) for edge in edges)
    if x2 - x1 < 1 or y2 - y1 < 1:
        return None
    patch = cv2.resize(label.patch.astype(np.uint8), (x2 - x1, y2 - y1), interpolation=cv2.INTER_NEAREST)
    left, top = max(-x1, 0), max(-y1, 0)
    patch = patch[top : max(size_hw[0] - y1, 0), left : max(size_hw[1] - x1, 0)]
    x, y, width, height = cv2.boundingRect(patch) if patch.size else (0, 0, 0, 0)
    if not width:
        return None
    tight = patch[y : y + height, x : x + width].astype(bool)
    return label._replace(patch=tight, at=(x1 + left + x, y1 + top + y))


def _stray(truth: Sequence[Label], size_hw: tuple[int, int], rng: np.random.Generator) -> Label | None:
    """A label like one of the scene's, where there is nothing of its category."""
    for _ in range(TRIES):
        model = truth[int(rng.integers(len(truth)))]
        width, height = (np.array(model.xywh[2:]) * rng.uniform(0.7, 1.4)).tolist()
        x = float(rng.uniform(0, max(size_hw[1] - width, 1)))
        y = float(rng.uniform(0, max(size_hw[0] - height, 1)))
        stray = _stretch(model, np.array(corners([x, y, width, height])), size_hw)
        rivals = [label.xywh for label in truth if label.category == model.category]
        if stray and max(_iou(stray.xywh, rival) for rival in rivals) < STRAY_IOU:
            return stray
    return None


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over union of two xywh boxes."""
    return float(paired_iou(np.array([corners(a)]), np.array([corners(b)]))[0])


# ---------------------------------------------------------------------------------------------------------------
# DelftBikes: one entry per part name, so the same errors take another form
# ---------------------------------------------------------------------------------------------------------------


class DelftPart(NamedTuple):
    """A part in DelftBikes' annotation: whole extent, whatever covers it, also when absent."""

    state: State
    box: Box


class EntryCorruption(NamedTuple):
    """One error put into a DelftBikes annotation."""

    kind: Kind
    name: str
    entry: DelftPart


def true_entries(scene: Scene) -> dict[str, DelftPart]:
    """The exact entries of all parts, by part name."""
    return {part.name: DelftPart(part.state or "intact", part.full_box) for part in scene.parts}


def corrupt_entries(
    truth: Mapping[str, DelftPart], noise: LabelNoise, size_hw: tuple[int, int], rng: np.random.Generator
) -> list[EntryCorruption]:
    """Decide which entries are wrong and how.

    A missing label reads `absent`, a spurious one calls an absent part `intact`, a wrong class gives the part the
    box of another part.
    """
    errors = []
    for name, entry in truth.items():
        draw = rng.random()
        if entry.state == "absent":
            if draw < noise.spurious:
                errors.append(EntryCorruption("spurious", name, entry._replace(state="intact")))
        elif draw < noise.missing:
            errors.append(EntryCorruption("missing", name, entry._replace(state="absent")))
        elif draw < noise.missing + noise.wrong_class:
            other = str(rng.choice([key for key in truth if key != name]))
            errors.append(EntryCorruption("wrong_class", name, entry._replace(box=truth[other].box)))
        elif draw < noise.missing + noise.wrong_class + noise.box_jitter:
            errors.append(
                EntryCorruption(
                    "box_jitter", name, _jitter_entry(entry, noise.box_jitter_scale, size_hw, rng)
                )
            )
    return errors


def _jitter_entry(
    entry: DelftPart, scale: float, size_hw: tuple[int, int], rng: np.random.Generator
) -> DelftPart:
    x1, y1, x2, y2 = (int(edge) for edge in entry.box)
    whole = Label("", np.ones((y2 - y1, x2 - x1), np.bool_), (x1, y1), None)
    left, top, right, bottom = map(float, corners(_jitter(whole, scale, size_hw, rng).xywh))
    return entry._replace(box=(left, top, right, bottom))

"""Pictures of errors: parts of images at useful zoom, with truth and predictions to be drawn over them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, zip_longest

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset
from scantling.data.images.open import open_image
from scantling.errors import DataError
from scantling.evaluate.breakdown import Breakdown, ErrorCase, ImageSummary, break_down
from scantling.evaluate.matching import ErrorKind
from scantling.report.content import Gallery, GalleryItem, Picture
from scantling.report.draw import Rectangle
from scantling.report.overlays import Excerpt, ImageOverlays, overlays_in, score_text

_JPEG_QUALITY = 82
_ASPECT = 4 / 3
_CONTEXT = 1.9
_MIN_WINDOW = 96.0

_TEXTS: dict[ErrorKind, tuple[str, str]] = {
    ErrorKind.MISSED: (
        "Missed",
        "Objects that no accepted prediction of their category found, the largest first.",
    ),
    ErrorKind.BACKGROUND: ("Background", "Predictions where no object is labelled, the surest first."),
    ErrorKind.CLASS: ("Wrong class", "Predictions on an object that is labelled as another category."),
    ErrorKind.LOCALISATION: ("Badly placed", "The right category, but too little overlap with the object."),
    ErrorKind.BOTH: ("Class and place", "Another category, and too little overlap with the object."),
    ErrorKind.DUPLICATE: ("Duplicate", "Further predictions of an object that a better one has found."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryLimits:
    """How much the galleries show.

    Attributes:
        cases: Pictures of each kind of error.
        per_image: Of them from one image.
        images: Whole images.
        case_side: Longest side of a picture of an error, pixels.
        image_side: Longest side of a whole image, pixels.
    """

    cases: int = 12
    per_image: int = 2
    images: int = 8
    case_side: int = 480
    image_side: int = 800


def error_galleries(
    dataset: CocoDataset, breakdown: Breakdown, limits: GalleryLimits | None = None
) -> tuple[Gallery, ...]:
    """One gallery for each kind of error that occurs, then the images with most errors.

    An image that cannot be opened leaves its picture blank; what is drawn over it is shown all the same.

    Args:
        dataset: Images and category names.
        breakdown: Of results on that data set. Without errors there are no galleries.
        limits: How much to show.
    """
    camera = _Camera(dataset=dataset, breakdown=breakdown, limits=limits or GalleryLimits())
    galleries = [_case_gallery(camera, kind) for kind in _TEXTS]
    galleries.append(_image_gallery(camera))
    return tuple(gallery for gallery in galleries if gallery.total)


def sample_pictures(
    dataset: CocoDataset, *, count: int = 6, limits: GalleryLimits | None = None
) -> tuple[GalleryItem, ...]:
    """Images of a data set with their labels, evenly spread over it; none of an empty data set."""
    camera = _Camera(dataset=dataset, breakdown=break_down(dataset, []), limits=limits or GalleryLimits())
    spread = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
    return tuple(_sample_item(camera, round(float(index))) for index in spread)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Camera:
    """Takes pictures of the images of one breakdown."""

    dataset: CocoDataset
    breakdown: Breakdown
    limits: GalleryLimits

    def names(self) -> Sequence[str]:
        return self.dataset.class_names

    def size_hw(self, image: int) -> tuple[int, int]:
        return self.dataset.images[image].size_hw

    def scene(self, image: int, truth: int | None = None, prediction: int | None = None) -> ImageOverlays:
        return ImageOverlays(
            match=self.breakdown.matches[image],
            accepted=self.breakdown.accepted(image),
            class_names=self.names(),
            subject_truth=truth,
            subject_prediction=prediction,
        )

    def shoot(self, image: int, window: Excerpt, scene: ImageOverlays, side: int) -> Picture:
        font_size = round(window.width / (26 if side == self.limits.case_side else 44), 1)
        return Picture(
            jpeg=self._encode(image, window, side),
            size_wh=(window.width, window.height),
            font_size=font_size,
            overlays=overlays_in(window, scene, font_size),
        )

    def _encode(self, image: int, window: Excerpt, side: int) -> bytes | None:
        record = self.dataset.images[image]
        try:
            pixels = _open(str(record.path), record.size_hw, record.white)
        except DataError:
            return None
        part = pixels[window.top : window.top + window.height, window.left : window.left + window.width]
        return encode_jpeg(part, side)


@lru_cache(maxsize=4)
def _open(path: str, size_hw: tuple[int, int], white: int | None) -> NDArray[np.uint8]:
    return open_image(path, size_hw=size_hw, white=white)


def encode_jpeg(pixels: NDArray[np.uint8], side: int) -> bytes:
    """JPEG of an (H, W, 3) RGB image, shrunk (never enlarged) so that its longest side is at most `side`."""
    scale = min(1.0, side / max(pixels.shape[:2]))
    if scale < 1:
        size_wh = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(encoded)


def window_around(box: Rectangle, size_hw: tuple[int, int]) -> Excerpt:
    """A 4:3 part of the image around a box, with as much again of its surroundings, inside the image.

    Args:
        box: xyxy in image pixels.
        size_hw: Height and width of the image; where it is smaller than the part, its full side is taken.
    """
    x1, y1, x2, y2 = box
    width = max((x2 - x1) * _CONTEXT, (y2 - y1) * _CONTEXT * _ASPECT, _MIN_WINDOW)
    sides = (min(round(width), size_hw[1]), min(round(width / _ASPECT), size_hw[0]))
    left = min(max(round((x1 + x2 - sides[0]) / 2), 0), size_hw[1] - sides[0])
    top = min(max(round((y1 + y2 - sides[1]) / 2), 0), size_hw[0] - sides[1])
    return Excerpt(left=left, top=top, width=sides[0], height=sides[1])


# ---------------------------------------------------------------- errors


def _case_gallery(camera: _Camera, kind: ErrorKind) -> Gallery:
    cases = camera.breakdown.errors(kind)
    title, explanation = _TEXTS[kind]
    return Gallery(
        key=kind.value,
        title=title,
        explanation=explanation,
        total=len(cases),
        items=tuple(_case_item(camera, case) for case in choose(cases, camera.limits)),
    )


def choose(cases: Iterable[ErrorCase], limits: GalleryLimits) -> list[ErrorCase]:
    """The first cases, the categories taking turns and no image more often than the limits allow."""
    by_label: dict[int, list[ErrorCase]] = defaultdict(list)
    for case in cases:
        by_label[case.label].append(case)
    turns = chain.from_iterable(zip_longest(*by_label.values()))
    return list(_few_per_image((case for case in turns if case), limits))


def _few_per_image(cases: Iterable[ErrorCase], limits: GalleryLimits) -> Iterator[ErrorCase]:
    taken: Counter[int] = Counter()
    for case in cases:
        if taken.total() == limits.cases:
            return
        if taken[case.image] < limits.per_image:
            taken[case.image] += 1
            yield case


def _case_item(camera: _Camera, case: ErrorCase) -> GalleryItem:
    match = camera.breakdown.matches[case.image]
    box = case.box
    if case.truth is not None and case.prediction is not None:
        box = _hull(match.predictions.boxes[case.prediction], match.truths.boxes[case.truth])
    window = window_around(box, camera.size_hw(case.image))
    scene = camera.scene(case.image, case.truth, case.prediction)
    name = camera.names()[case.label]
    is_wrong = case.kind is not ErrorKind.MISSED
    return GalleryItem(
        picture=camera.shoot(case.image, window, scene, camera.limits.case_side),
        title=f"{name} {score_text(case.score)}" if case.score is not None and is_wrong else name,
        note=_note(camera, case),
        file_name=camera.dataset.images[case.image].file_name,
        class_name=name,
    )


def _hull(box: NDArray[np.float64], other: NDArray[np.float64]) -> Rectangle:
    x1, y1 = np.minimum(box[:2], other[:2])
    x2, y2 = np.maximum(box[2:], other[2:])
    return (float(x1), float(y1), float(x2), float(y2))


def _note(camera: _Camera, case: ErrorCase) -> str:
    """Why this is an error, in a few words."""
    if case.kind is ErrorKind.MISSED:
        return _miss_note(camera, case)
    if case.kind is ErrorKind.BACKGROUND or case.truth is None:
        return "no object labelled here"
    truths = camera.breakdown.matches[case.image].truths
    truth_name, overlap = camera.names()[truths.labels[case.truth]], f"{case.overlap:.2f}"
    return {
        ErrorKind.CLASS: f"labelled {truth_name}; overlap {overlap}",
        ErrorKind.LOCALISATION: f"overlap only {overlap}",
        ErrorKind.BOTH: f"nearest is {truth_name}, overlap only {overlap}",
        ErrorKind.DUPLICATE: f"already found; overlap {overlap}",
    }[case.kind]


def _miss_note(camera: _Camera, case: ErrorCase) -> str:
    if case.score is not None:
        threshold = camera.breakdown.points[case.label].threshold
        return f"found at score {score_text(case.score)}, below the threshold {score_text(threshold)}"
    if case.prediction is None:
        return "no prediction near it"
    label = camera.breakdown.matches[case.image].predictions.labels[case.prediction]
    name, overlap = camera.names()[label], f"{case.overlap:.2f}"
    return f"nearest prediction is {'the same category' if label == case.label else name}, overlap {overlap}"


# ---------------------------------------------------------------- whole images


def _image_gallery(camera: _Camera) -> Gallery:
    worst = camera.breakdown.worst_images()
    return Gallery(
        key="images",
        title="Worst images",
        explanation="Images with most errors, misses and false positives together.",
        total=len(worst),
        items=tuple(_image_item(camera, summary) for summary in worst[: camera.limits.images]),
    )


def _image_item(camera: _Camera, summary: ImageSummary) -> GalleryItem:
    record = camera.dataset.images[summary.image]
    whole = Excerpt(left=0, top=0, width=record.size_hw[1], height=record.size_hw[0])
    scene = camera.scene(summary.image)
    return GalleryItem(
        picture=camera.shoot(summary.image, whole, scene, camera.limits.image_side),
        title=f"{summary.num_errors} errors",
        note=f"{summary.hits} of {summary.num_truths} found, {summary.false_positives} false positives",
        file_name=record.file_name,
    )


def _sample_item(camera: _Camera, image: int) -> GalleryItem:
    record = camera.dataset.images[image]
    whole = Excerpt(left=0, top=0, width=record.size_hw[1], height=record.size_hw[0])
    picture = camera.shoot(image, whole, camera.scene(image), camera.limits.case_side)
    labels = camera.breakdown.matches[image].truths.labels
    counts = [(name, int((labels == label).sum())) for label, name in enumerate(camera.names())]
    return GalleryItem(
        picture=replace(
            picture, overlays=tuple(replace(o, role=_as_truth(o.role)) for o in picture.overlays)
        ),
        title=record.file_name,
        note=", ".join(f"{count} {name}" for name, count in counts if count) or "no objects",
        file_name=record.file_name,
    )


def _as_truth(role: str) -> str:
    """A label in a sample is not an error because nothing was predicted."""
    return "truth" if role == "missed" else role

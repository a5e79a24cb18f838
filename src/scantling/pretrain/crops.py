"""What to cut out of which image: objects with some context, whole images, or random parts of images.

    CocoDatasets ── object_crops ──┐
    image records ── image_crops ──┴──► CropPlan ── cut ──► pixels of one crop, reduced to what training can use

A plan is plain data made from records alone; no image is read for it, and its fingerprint changes with anything that
changes a crop. `data.crop_store` keeps what a plan describes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from scantling.data.coco import CocoDataset, ImageId, ImageRecord
from scantling.data.coco.records import clipped_xyxy
from scantling.data.samples.dataset import rng_for

Pixels = NDArray[np.uint8]
PixelBox = tuple[int, int, int, int]

NO_LABEL = -1
"""Label of a crop without a category."""
_RANDOM_AREA = (0.1, 0.5)
_RANDOM_ASPECT = (0.75, 4 / 3)


class CropFileConfig(BaseModel):
    """Which objects are cut out, and with how much around them.

    Attributes:
        context: Margin on each side, as a share of the box's width or height.
        min_side: Objects whose box has a shorter side than this are left out and counted; pixels.
        quality: Of the stored JPEGs, 1 to 100.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: Annotated[float, Field(ge=0, le=4)] = 0.1
    min_side: Annotated[int, Field(ge=1, le=4096)] = 8
    quality: Annotated[int, Field(ge=1, le=100)] = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class CropWindow:
    """One crop of an image.

    Attributes:
        crop_id: Unique in the plan, and the same whatever the order of the records.
        label: Position in the plan's class names, or `NO_LABEL`.
        box: Left, top, right, bottom in whole pixels, inside the image.
    """

    crop_id: str
    label: int
    box: PixelBox


@dataclass(frozen=True, slots=True, kw_only=True)
class CutImage:
    """An image and the windows to cut out of it.

    Attributes:
        name: File name; crops of one image stay together by it.
        path: Of the file.
        size_hw: Frame in which the windows live.
        windows: At least one.
        white: Of its pixels, where they have 16 bits; see `ImageRecord`.
    """

    name: str
    path: Path
    size_hw: tuple[int, int]
    windows: tuple[CropWindow, ...]
    white: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CropPlan:
    """Every crop of a data set.

    Attributes:
        images: In order of name.
        class_names: Of the labels; empty without categories.
        left_out: Objects that make no crop: crowds, and boxes that are too small.
    """

    images: tuple[CutImage, ...]
    class_names: tuple[str, ...] = ()
    left_out: int = 0

    def __len__(self) -> int:
        return sum(len(image.windows) for image in self.images)

    def fingerprint(self, config: CropFileConfig, max_pixels: int) -> str:
        """SHA-256 of all that decides the crops' pixels: windows, settings, and each file's length and time."""
        digest = hashlib.sha256(json.dumps([config.model_dump(), max_pixels, self.class_names]).encode())
        for image in self.images:
            status = image.path.stat()
            facts: list[object] = [image.name, status.st_size, status.st_mtime_ns, image.size_hw]
            facts += [] if image.white is None else [image.white]
            digest.update(json.dumps([*facts, [asdict(window) for window in image.windows]]).encode())
        return digest.hexdigest()


def object_crops(splits: Mapping[str, CocoDataset], config: CropFileConfig) -> CropPlan:
    """One crop per labelled object.

    Args:
        splits: Data sets by name; equal category names are one category.
        config: Margin, and the smallest object.

    Returns:
        The plan. Images without an object that is large enough have no part in it; crowds make no crop.
    """
    class_names = tuple(dict.fromkeys(name for dataset in splits.values() for name in dataset.class_names))
    images, total = [], 0
    for split, dataset in splits.items():
        total += dataset.num_annotations
        for index, record in enumerate(dataset.images):
            windows = _object_windows(split, dataset, index, config, class_names)
            images += [_cut_image(record, windows)] if windows else []
    kept = sum(len(image.windows) for image in images)
    return CropPlan(images=_ordered(images), class_names=class_names, left_out=total - kept)


def image_crops(
    splits: Mapping[str, Sequence[ImageRecord]], *, random_per_image: int = 0, seed: int = 0
) -> CropPlan:
    """Crops of images whatever is marked in them, without a category.

    Args:
        splits: Images by the name of their split.
        random_per_image: Random parts of each image, of 10 to 50 % of its area; 0 takes the image as a whole.
        seed: Of the random parts.
    """
    images = [
        _cut_image(record, _image_windows(split, record, random_per_image, seed))
        for split, records in splits.items()
        for record in records
    ]
    return CropPlan(images=_ordered(images))


def stored_pixels(side: int, min_scale: float) -> int:
    """The most pixels a stored crop needs.

    A view shows at least `min_scale` of a crop's area and is resized to `side` x `side`. A crop of
    side² / min_scale pixels gives even the smallest view as many pixels as it is shown with; more would be thrown
    away in every view.
    """
    return math.ceil(side * side / min_scale)


def padded_box(box: Sequence[float], context: float, size_hw: tuple[int, int]) -> PixelBox:
    """A box with its margin, in whole pixels and inside the image.

    Args:
        box: xyxy in pixels, inside the image.
        context: Margin on each side, as a share of width or height.
        size_hw: Of the image.

    Returns:
        Rounded outwards, so at least one pixel wide and high for a box that is not empty.
    """
    left, top, right, bottom = map(float, box)
    across, down = context * (right - left), context * (bottom - top)
    height, width = size_hw
    return (
        max(0, math.floor(left - across)),
        max(0, math.floor(top - down)),
        min(width, math.ceil(right + across)),
        min(height, math.ceil(bottom + down)),
    )


def cut(pixels: Pixels, box: PixelBox, max_pixels: int) -> Pixels:
    """A window of an image, reduced to at most `max_pixels` with its aspect kept; never enlarged.

    Args:
        pixels: (H, W, 3) uint8.
        box: Left, top, right, bottom in whole pixels, inside the image.
        max_pixels: See `stored_pixels`.
    """
    left, top, right, bottom = box
    window = pixels[top:bottom, left:right]
    height, width = window.shape[:2]
    if height * width <= max_pixels:
        return window
    scale = math.sqrt(max_pixels / (height * width))
    size_wh = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
    reduced: Pixels = cv2.resize(window, size_wh, interpolation=cv2.INTER_AREA)
    return reduced


def _object_windows(
    split: str, dataset: CocoDataset, index: int, config: CropFileConfig, class_names: Sequence[str]
) -> tuple[CropWindow, ...]:
    annotations, size_hw = dataset.annotations[index], dataset.images[index].size_hw
    boxes = clipped_xyxy([annotation.box_xywh for annotation in annotations], size_hw)
    return tuple(
        CropWindow(
            crop_id=json.dumps([split, annotation.id]),
            label=class_names.index(dataset.class_names[annotation.label]),
            box=padded_box(box, config.context, size_hw),
        )
        for annotation, box in zip(annotations, boxes, strict=True)
        if annotation.is_object and min(box[2] - box[0], box[3] - box[1]) >= config.min_side
    )


def _image_windows(split: str, record: ImageRecord, count: int, seed: int) -> tuple[CropWindow, ...]:
    height, width = record.size_hw
    boxes = [_random_box(seed, record.id, number, record.size_hw) for number in range(count)]
    return tuple(
        CropWindow(crop_id=json.dumps([split, "image", record.id, number]), label=NO_LABEL, box=box)
        for number, box in enumerate(boxes or [(0, 0, width, height)])
    )


def _random_box(seed: int, image_id: ImageId, number: int, size_hw: tuple[int, int]) -> PixelBox:
    share, aspect, left, top = rng_for(seed, 0, image_id, f"part {number}").random(4)
    height, width = size_hw
    area = height * width * (_RANDOM_AREA[0] + share * (_RANDOM_AREA[1] - _RANDOM_AREA[0]))
    ratio = _RANDOM_ASPECT[0] + aspect * (_RANDOM_ASPECT[1] - _RANDOM_ASPECT[0])
    across = min(width, max(1, round(math.sqrt(area * ratio))))
    down = min(height, max(1, round(math.sqrt(area / ratio))))
    x, y = math.floor(left * (width - across + 1)), math.floor(top * (height - down + 1))
    return x, y, x + across, y + down


def _cut_image(record: ImageRecord, windows: tuple[CropWindow, ...]) -> CutImage:
    return CutImage(
        name=record.file_name, path=record.path, size_hw=record.size_hw, windows=windows, white=record.white
    )


def _ordered(images: Sequence[CutImage]) -> tuple[CutImage, ...]:
    return tuple(sorted(images, key=lambda image: (image.name, image.windows[0].crop_id)))

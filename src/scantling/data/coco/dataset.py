"""A checked COCO data set in memory.

K: number of categories, N: objects of an image.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scantling.data.coco.records import (
    Annotation,
    Category,
    Extra,
    ImageId,
    ImageRecord,
    area_of,
    clipped_xyxy,
    fits_int64,
    id_order,
    segmentation_json,
    to_rle,
)
from scantling.errors import Finding, UsageError

if TYPE_CHECKING:
    from scantling.structures.instances import Instances
    from scantling.structures.masks import ImageMasks


@dataclass(frozen=True, kw_only=True)
class CocoDataset:
    """A checked COCO file.

    Attributes:
        file: Where it came from.
        image_root: Folder to which file names are relative.
        images: Sorted by id.
        annotations: For each image its objects, sorted by id.
        categories: Sorted by id; the position of a category is its label.
        findings: Warnings and notes made while reading.
        extra: Further top-level keys, such as `info`.
        set_aside: Image files that are named here, or lie here, and are not among `images`; a finding says why.
        counted_ids: Ids of the categories that no file gives: the reader of a format without ids counted them.
        listed_in: Split file that lists the images, where they are some of those in `file`.
    """

    file: Path
    image_root: Path
    images: tuple[ImageRecord, ...]
    annotations: tuple[tuple[Annotation, ...], ...]
    categories: tuple[Category, ...]
    findings: tuple[Finding, ...] = ()
    extra: Extra = field(default_factory=dict)
    set_aside: tuple[Path, ...] = ()
    counted_ids: frozenset[int] = frozenset()
    listed_in: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_annotations(self) -> int:
        """Number of annotations: objects, crowd regions and ignored objects."""
        return sum(map(len, self.annotations))

    @property
    def num_objects(self) -> int:
        """Number of objects to be learned and found."""
        return sum(annotation.is_object for annotations in self.annotations for annotation in annotations)

    @property
    def num_crowd(self) -> int:
        """Number of crowd regions."""
        return sum(annotation.is_crowd for annotations in self.annotations for annotation in annotations)

    @property
    def num_ignored(self) -> int:
        """Number of single objects that count neither way."""
        return self.num_annotations - self.num_objects - self.num_crowd

    def counts_text(self) -> str:
        """`8 images, 14 objects, 2 crowd regions`; what there is none of, but images and objects, is left out."""
        return f"{len(self)} images, {objects_text(self.num_objects, self.num_crowd, self.num_ignored)}"

    def objects_by_class(self) -> list[int]:
        """Objects of each class, in label order."""
        counts = [0] * len(self.categories)
        for annotation in itertools.chain.from_iterable(self.annotations):
            counts[annotation.label] += annotation.is_object
        return counts

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the position is the label."""
        return tuple(category.name for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The file's category ids; the position is the label."""
        return tuple(category.id for category in self.categories)

    @cached_property
    def index_of(self) -> Mapping[ImageId, int]:
        """Image id -> position in `images`."""
        return {image.id: index for index, image in enumerate(self.images)}

    @cached_property
    def instance_ids(self) -> tuple[tuple[int, ...], ...]:
        """For each image the 64-bit numbers of its objects: their ids, or 1, 2, ... if one id does not fit."""
        ids = [annotation.id for annotations in self.annotations for annotation in annotations]
        numbers = iter(ids if all(map(fits_int64, ids)) else range(1, len(ids) + 1))
        return tuple(tuple(int(next(numbers)) for _ in annotations) for annotations in self.annotations)

    def instances(self, index: int, masks: bool = False) -> Instances:
        """The objects of one image.

        Args:
            index: Position of the image.
            masks: Rasterise the masks too.

        Returns:
            Boxes absolute xyxy in the image's frame and clipped to it; labels, ids, and crowd flags, which ignored
            objects have too. With no object, fields of length 0.

        Raises:
            UsageError: Masks are wanted and an annotation has none.
        """
        import torch  # here, because what only reads or checks labels shall start without it

        from scantling.structures.instances import Instances

        size_hw = self.images[index].size_hw
        annotations = self.annotations[index]
        boxes = clipped_xyxy([annotation.box_xywh for annotation in annotations], size_hw)
        return Instances(
            size_hw=size_hw,
            boxes=torch.from_numpy(boxes),
            labels=torch.tensor([annotation.label for annotation in annotations], dtype=torch.int64),
            masks=self._masks(index) if masks else None,
            is_crowd=torch.tensor([not annotation.is_object for annotation in annotations], dtype=torch.bool),
            ids=torch.tensor(self.instance_ids[index], dtype=torch.int64),
        )

    def _masks(self, index: int) -> ImageMasks:
        from scantling.structures.masks import ImageMasks

        size_hw = self.images[index].size_hw
        rles = []
        for annotation in self.annotations[index]:
            if annotation.segmentation is None:
                hint = "Read the file with task='segmentation' to find all of these."
                raise UsageError(f"{self.file}: annotation {annotation.id!r} has no mask", hint=hint)
            rles.append(to_rle(annotation.segmentation, size_hw))
        return ImageMasks.from_rles(rles, size_hw=size_hw)

    def subset(self, image_ids: Iterable[ImageId]) -> CocoDataset:
        """The data set with only these images and their annotations, in the order of the data set.

        Raises:
            UsageError: An id is not in the data set.
        """
        wanted = set(image_ids)
        unknown = wanted - self.index_of.keys()
        if unknown:
            listed = ", ".join(sorted(map(repr, unknown))[:10])
            raise UsageError(f"{self.file}: no images with the ids {listed}")
        kept = [index for index, image in enumerate(self.images) if image.id in wanted]
        images = tuple(self.images[index] for index in kept)
        return replace(self, images=images, annotations=tuple(self.annotations[index] for index in kept))

    def to_coco(self) -> dict[str, Any]:
        """The data set as COCO's plain lists and dicts, with the file's own ids and further keys.

        Boxes are written as found in the file, missing areas are computed.
        """
        return {
            **self.extra,
            "images": [_image_json(image) for image in self.images],
            "annotations": [
                self._annotation_json(image, annotation)
                for image, annotations in zip(self.images, self.annotations, strict=True)
                for annotation in annotations
            ],
            "categories": [category.to_coco() for category in self.categories],
        }

    def _annotation_json(self, image: ImageRecord, annotation: Annotation) -> dict[str, object]:
        record: dict[str, object] = {
            "id": annotation.id,
            "image_id": image.id,
            "category_id": self.categories[annotation.label].id,
            "bbox": list(annotation.box_xywh),
            "area": area_of(annotation, image.size_hw),
            "iscrowd": int(annotation.is_crowd),
        }
        if annotation.segmentation is not None:
            record["segmentation"] = segmentation_json(annotation.segmentation)
        return record | dict(annotation.extra)


def joined(parts: Sequence[CocoDataset]) -> CocoDataset:
    """Several data sets as one.

    Ids stay what they are where no two images and no two annotations share one; otherwise all are numbered anew, from 1
    in the order given, in which their files' positions follow each other. Names of images become relative to the folder
    that all have in common.

    Args:
        parts: At least one, all with the same names of classes in the same order; categories are those of the first.

    Raises:
        ValueError: Other classes.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.class_names != first.class_names for part in parts):
        raise ValueError(f"{first.file}: joined with data sets of other classes")
    root = Path(os.path.commonpath([part.image_root.absolute() for part in parts]))
    images: list[ImageRecord] = []
    for part in parts:
        before = max((image.position + 1 for image in images), default=0)
        for image in part.images:
            name = Path(os.path.relpath(image.path.absolute(), root)).as_posix()
            images.append(replace(image, file_name=name, position=before + image.position))
    annotations = [list(own) for part in parts for own in part.annotations]
    if len({image.id for image in images}) < len(images):
        images = [replace(image, id=number) for number, image in enumerate(images, start=1)]
    ids = [annotation.id for own in annotations for annotation in own]
    if len(set(ids)) < len(ids):
        numbers = itertools.count(1)
        annotations = [[replace(each, id=next(numbers)) for each in own] for own in annotations]
    order = sorted(range(len(images)), key=lambda index: id_order(images[index].id))
    return replace(
        first,
        file=Path(" + ".join(str(part.file) for part in parts)),
        image_root=root,
        images=tuple(images[index] for index in order),
        annotations=tuple(tuple(annotations[index]) for index in order),
        findings=tuple(finding for part in parts for finding in part.findings),
        set_aside=tuple(path for part in parts for path in part.set_aside),
    )


def objects_text(num_objects: int, num_crowd: int, num_ignored: int) -> str:
    """`14 objects, 2 crowd regions, 1 difficult or ignored`: the last two only where there are any."""
    parts = [f"{num_objects} objects"]
    parts += [f"{num_crowd} crowd regions"] if num_crowd else []
    parts += [f"{num_ignored} difficult or ignored"] if num_ignored else []
    return ", ".join(parts)


def _image_json(image: ImageRecord) -> dict[str, object]:
    height, width = image.size_hw
    return {"id": image.id, "file_name": image.file_name, "width": width, "height": height, **image.extra}

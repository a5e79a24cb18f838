"""What flows through training and prediction: `Frame` (where the pixels came from), `Sample`, `Batch`.

B: images of a batch; H, W: size after padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scantling.ops.boxes import clip_boxes, transform_boxes
from scantling.structures.instances import Instances
from scantling.structures.masks import ImageMasks, RoiMasks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """How the current pixels lie in the original image: one affine map and both sizes.

    Attributes:
        matrix: (2, 3) float64, continuous coordinates, original -> current: x' = m00 x + m01 y + m02.
        original_hw: Height and width of the image file.
        size_hw: Height and width of the current image.
    """

    matrix: NDArray[np.float64]
    original_hw: tuple[int, int]
    size_hw: tuple[int, int]

    def __post_init__(self) -> None:
        if (
            self.matrix.shape != (2, 3)
            or self.matrix.dtype != np.float64
            or not np.isfinite(self.matrix).all()
        ):
            found = f"{self.matrix.dtype} {self.matrix.shape}"
            raise ValueError(
                f"Frame.matrix: expected finite float64 (2, 3), found {found}: {self.matrix.tolist()}"
            )
        if not abs(np.linalg.det(self.matrix[:, :2])) > 0:
            raise ValueError(f"Frame.matrix: expected an invertible map, found {self.matrix.tolist()}")

    @classmethod
    def identity(cls, size_hw: tuple[int, int]) -> Self:
        """The frame of an image as read."""
        return cls(matrix=np.eye(2, 3), original_hw=size_hw, size_hw=size_hw)

    def then(self, matrix: NDArray[np.float64], size_hw: tuple[int, int]) -> Self:
        """This frame followed by another step.

        Args:
            matrix: (2, 3) map current -> next.
            size_hw: Height and width after the step.
        """
        step = np.asarray(matrix, dtype=np.float64)
        return replace(self, matrix=step[:, :2] @ self.matrix + step * [0, 0, 1], size_hw=size_hw)

    def inverse(self) -> NDArray[np.float64]:
        """(2, 3) map current -> original."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return np.hstack([linear, -linear @ self.matrix[:, 2:]])

    def apply_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy of the original image in the current one; the hull if rotated; not clipped."""
        return transform_boxes(boxes, self.matrix)

    def invert_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy of the current image in original pixels, clipped to the original image."""
        return clip_boxes(transform_boxes(boxes, self.inverse()), self.original_hw)

    def invert(self, instances: Instances) -> Instances:
        """Instances of the current image in original pixels: boxes clipped, image masks moved, the rest unchanged.

        Raises:
            ValueError: The instances live in another frame, or have box-frame masks and the map turns them.
        """
        if instances.size_hw != self.size_hw:
            raise ValueError(
                f"Frame.invert: expected instances of size_hw {self.size_hw}, found {instances.size_hw}"
            )
        masks = instances.masks
        if isinstance(masks, ImageMasks):
            masks = masks.warp(self.inverse(), self.original_hw)
        elif isinstance(masks, RoiMasks):
            masks = self._unflip(masks)
        return instances.replace(
            size_hw=self.original_hw, boxes=self.invert_boxes(instances.boxes), masks=masks
        )

    def _unflip(self, masks: RoiMasks) -> RoiMasks:
        """Box-frame masks follow their boxes through scale and shift by themselves, but not through a mirror."""
        if self.matrix[0, 1] != 0 or self.matrix[1, 0] != 0:
            raise ValueError(
                f"Frame.invert: box-frame masks cannot be turned back, matrix {self.matrix.tolist()}"
            )
        flipped_axes = [axis for axis, scale in ((2, self.matrix[0, 0]), (1, self.matrix[1, 1])) if scale < 0]
        return RoiMasks(probabilities=masks.probabilities.flip(flipped_axes)) if flipped_axes else masks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Sample:
    """One image with what is in it.

    Attributes:
        image: uint8 (3, H, W) RGB; may be a transposed view of (H, W, 3).
        instances: Ground truth, in the frame of `image`.
        frame: The map that says where `image` lies in the original.
        image_id: The image's id in the data set, unchanged.
    """

    image: NDArray[np.uint8]
    instances: Instances
    frame: Frame
    image_id: int | float | str

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"Sample.image: expected uint8 (3, H, W), found {self.image.dtype} {self.image.shape}"
            )
        size_hw = self.size_hw
        if self.instances.size_hw != size_hw or self.frame.size_hw != size_hw:
            raise ValueError(
                f"Sample: expected instances and frame of the image's size_hw {size_hw}, "
                f"found {self.instances.size_hw} and {self.frame.size_hw}"
            )

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def hwc(self) -> NDArray[np.uint8]:
        """The image as (H, W, 3), not copied."""
        return self.image.transpose(1, 2, 0)

    def __repr__(self) -> str:
        return f"Sample(image_id={self.image_id!r}, size_hw={self.size_hw}, instances={self.instances!r})"

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed; unknown names and sizes that disagree fail here."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Batch:
    """Images of one step, padded at the right and bottom to a common size.

    Attributes:
        images: uint8 (B, 3, H, W) RGB, 0 where padded; normalised by the model, so that a quarter of the bytes travels.
        sizes_hw: B sizes without padding: the frames of the instances.
        instances: Ground truth of each of the B images, in the frame of its pixels here.
        frames: For each of the B images, where it lies in its original.
        image_ids: Ids of the B images in the data set.
        is_padding: Whether the images are only repeated so that a training process is not idle; then they do not count.
        left_out: Names of images that could not be read so far and were replaced by others, each with the reason.
    """

    images: Tensor
    sizes_hw: list[tuple[int, int]]
    instances: list[Instances]
    frames: list[Frame]
    image_ids: list[int | float | str]
    is_padding: bool = False
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.images)
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise ValueError(f"Batch.images: expected uint8 (B, 3, H, W), found {found}")
        lengths = [len(part) for part in (self.sizes_hw, self.instances, self.frames, self.image_ids)]
        if lengths != [count] * 4:
            raise ValueError(f"Batch: expected {count} sizes, instances, frames and ids, found {lengths}")

    @classmethod
    def collate(cls, samples: Sequence[Sample], size_divisor: int = 32) -> Self:
        """Put samples side by side.

        Args:
            samples: At least one.
            size_divisor: The padded height and width are multiples of this.

        Raises:
            ValueError: No samples.
        """
        if not samples:
            raise ValueError("Batch.collate: expected at least one sample, found none")
        sizes = [sample.size_hw for sample in samples]
        height, width = (-(-max(sides) // size_divisor) * size_divisor for sides in zip(*sizes, strict=True))
        images = np.zeros((len(samples), 3, height, width), dtype=np.uint8)
        for padded, sample, (h, w) in zip(images, samples, sizes, strict=True):
            padded[:, :h, :w] = sample.image
        return cls(
            images=torch.from_numpy(images),
            sizes_hw=sizes,
            instances=[sample.instances for sample in samples],
            frames=[sample.frame for sample in samples],
            image_ids=[sample.image_id for sample in samples],
        )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Batch(images={tuple(self.images.shape)}, image_ids={self.image_ids})"

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on another device."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, instances=[part.to(device) for part in self.instances])

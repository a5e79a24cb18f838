"""What a segmenter says about an image: which pixels belong to objects, and how surely; not to which object.

    planes (P, h, w) at the segmenter's own resolution ── frame ──► any box of the image, in original pixels

A map is small (a quarter of the input's side is usual) and is looked at through a window, so that an image of
2600 x 2600 pixels with 300 objects never exists as a full array per object or category. P: planes; h, w: of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scantling.ops.masks import Patch, pixels_in, seen_through
from scantling.structures.sample import Frame

CERTAIN = 255
"""Value of a pixel that surely belongs to an object."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ScoreMap:
    """Scores of an image's pixels, one plane for each category, or one for all together.

    Attributes:
        planes: uint8 (P, h, w); 255 is certain. A score of 0.5 or less says that the pixel is none of its category.
        labels: For each plane its category 0..K-1; a category without a plane has no pixel in the image. None: the
            only plane tells objects of whatever category from the ground.
        frame: Where the map lies in the original image; its `size_hw` is (h, w).
    """

    planes: NDArray[np.uint8]
    labels: tuple[int, ...] | None
    frame: Frame

    def __post_init__(self) -> None:
        planes = self.planes
        if planes.ndim != 3 or planes.dtype != np.uint8 or planes.shape[1:] != self.frame.size_hw:
            raise ValueError(
                f"ScoreMap.planes: expected uint8 (P, *{self.frame.size_hw}), found {planes.dtype} {planes.shape}"
            )
        count = 1 if self.labels is None else len(set(self.labels))
        if count != len(planes) or (self.labels is not None and count != len(self.labels)):
            raise ValueError(f"ScoreMap: expected one label per plane, found {self.labels} for {len(planes)}")

    @classmethod
    def from_scores(cls, scores: Tensor | NDArray[Any], frame: Frame, *, by_category: bool) -> Self:
        """From scores in [0, 1].

        Args:
            scores: (K, h, w) by label, or (1, h, w) of all categories together.
            frame: Where the map lies in the original image.
            by_category: Whether the planes are categories; those without any score above 0 take no memory.
        """
        given = torch.as_tensor(scores).detach().float().cpu()
        planes = (given * CERTAIN).round().clamp(0, CERTAIN).to(torch.uint8).numpy()
        if not by_category:
            return cls(planes=planes, labels=None, frame=frame)
        shown = np.flatnonzero(planes.any(axis=(1, 2)))
        return cls(planes=planes[shown], labels=tuple(shown.tolist()), frame=frame)

    @classmethod
    def mean(cls, maps: Sequence[ScoreMap]) -> Self:
        """What several segmenters, or views, say together, each with the same weight.

        Args:
            maps: At least one; of one image, one size, and all by category or none.

        Raises:
            ValueError: They lie differently in the image, or are of different kinds.
        """
        first = maps[0]
        kinds = {one.labels is None for one in maps}
        alike = all(np.array_equal(one.frame.matrix, first.frame.matrix) for one in maps)
        if len(kinds) > 1 or not alike or len({one.planes.shape[1:] for one in maps}) > 1:
            raise ValueError("ScoreMap.mean: expected maps of one kind that lie alike in one image")
        labels = (
            None if first.labels is None else tuple(sorted({k for one in maps for k in one.labels or ()}))
        )
        planes = np.zeros((1 if labels is None else len(labels), *first.planes.shape[1:]), dtype=np.uint8)
        for number, label in enumerate((0,) if labels is None else labels):
            total = np.zeros(planes.shape[1:], dtype=np.float32)
            for one in maps:
                if (plane := one.plane(label)) is not None:
                    total += plane
            planes[number] = np.rint(total / len(maps))
        return cls(planes=planes, labels=labels, frame=first.frame)

    def __repr__(self) -> str:
        return f"ScoreMap(planes={self.planes.shape}, labels={self.labels}, image_hw={self.image_hw})"

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the original image."""
        return self.frame.original_hw

    def plane(self, label: int) -> NDArray[np.uint8] | None:
        """What is said about a category (h, w), or about all of them; None where it has no pixel."""
        if self.labels is not None and label not in self.labels:
            return None
        plane: NDArray[np.uint8] = self.planes[0 if self.labels is None else self.labels.index(label)]
        return plane

    def scores(self, label: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.uint8]:
        """Scores of a part of the image, in original pixels.

        Args:
            label: Category 0..K-1; of no effect where one plane is of all.
            window: Whole pixels x1, y1, x2, y2 inside the image; None for all of it.

        Returns:
            (y2 - y1, x2 - x1) uint8, 255 is certain; bilinear between the centres of the map's cells.
        """
        shown = window or (0, 0, *self.image_hw[::-1])
        plane = self.plane(label)
        if plane is None:
            return np.zeros((max(0, shown[3] - shown[1]), max(0, shown[2] - shown[0])), dtype=np.uint8)
        return seen_through(plane, self.frame.matrix, shown)

    def foreground(
        self, label: int, box: ArrayLike | None = None, threshold: float = 0.5
    ) -> tuple[Patch, tuple[int, int]]:
        """The pixels of a category whose centre lies in a box.

        Args:
            label: Category 0..K-1.
            box: (4,) xyxy in original pixels; what leaves the image is cut off. None for the whole image.
            threshold: A pixel belongs to the category where its score is above it.

        Returns:
            uint8 (h, w) of 0 and 1, and the column and row of its upper left pixel; 0 x 0 at (0, 0) for a box that
            holds no pixel's centre. It is what `ImageMasks.from_patches` takes.
        """
        height, width = self.image_hw
        whole = (0.0, 0.0, float(width), float(height))
        x1, y1, x2, y2 = whole if box is None else np.asarray(box, dtype=np.float64).tolist()
        left, top, right, bottom = pixels_in((x1, y1, x2, y2), self.image_hw)
        if right <= left or bottom <= top:
            return np.zeros((0, 0), dtype=np.uint8), (0, 0)
        seen = self.scores(label, (left, top, right, bottom))
        return (seen > threshold * CERTAIN).astype(np.uint8), (left, top)


@dataclass(frozen=True, slots=True)
class ScoreMaps:
    """The score maps of a data set's images, by the image's position; each is read when it is asked for.

    Attributes:
        count: Images of the data set.
        read: Position -> the image's map; None for an image without one.
    """

    count: int
    read: Callable[[int], ScoreMap | None]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> ScoreMap | None:
        """The map of the image at a position; None where the image has none."""
        if not 0 <= position < self.count:
            raise IndexError(f"ScoreMaps: expected a position in 0..{self.count - 1}, found {position}")
        return self.read(position)

    def __iter__(self) -> Iterator[ScoreMap | None]:
        """The maps of all images, in the data set's order; one at a time is in memory."""
        return (self[position] for position in range(self.count))

"""Copy-paste: objects of one training image laid onto another.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021.

    Sample ─────────────────────────────────────────────────────────────────► pasted ──► Sample
    another image ── some of its objects ── scaled, flipped, placed ── lay ──► Layers ──┘

As published, another image, here one with objects, is chosen at random, scaled by 0.1 to 2 and flipped, and a random
part of its objects goes where it comes to lie (`place: scene`). Two further rules place each object by itself:
`anywhere`, and `learned`, which takes the place and size of a random training object of the same category and moves
it a little; so players stand on the floor, small where they are far away (the idea of location-aware copy-paste,
arXiv 2211.11282; how places are learned is our own). Deviations:

* The image below is not jittered here: `short_side` and `crop` do that for the whole afterwards.
* Objects that the border of their image cuts are not taken, as they would be cut in the middle of the other.
* Scales refer to the image below: another of other size is first brought to its long side.
* Objects without masks are taken with their boxes, whose edges fade in; the paper has masks.
* Edges are soft by half a pixel; the paper found that smoothing them more makes no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from scantling.data.coco.dataset import CocoDataset
from scantling.data.samples.geometry import Matrix
from scantling.data.samples.paste import Layer, cut_sides, lay, pasted, solid_masks
from scantling.data.samples.transforms import Bank
from scantling.data.truths import truths_of
from scantling.settings.fields import Count, Fraction, Positive
from scantling.settings.section import Section
from scantling.structures.instances import Instances
from scantling.structures.sample import Sample

_SITE_SCALE = 1.25  # an object at another's place is larger or smaller than that one by so much at most
_FEWEST_PIXELS = 16


class CopyPasteConfig(Section):
    """Objects of another training image laid onto an image.

    Attributes:
        probability: Of an image to have something laid onto it.
        max_objects: Most objects laid onto an image; how many, from one on, is drawn.
        place: `scene`: where they lie in their own image once that is scaled and shifted at random. `anywhere`: each
            by itself, anywhere in the image. `learned`: each by itself where a training object of its category lies,
            and as large as that one.
        spread: Of `learned`, how far from that place at most, as a share of the image's sides.
        pick: Which image they come from: any, with equal chances (`images`), or one with an object of a category drawn
            with equal chances, which makes rare ones as frequent as others (`classes`); then objects of that category
            are taken first.
        min_scale: Smallest factor by which they change their size; of no meaning to `learned`.
        max_scale: Largest such factor.
        flip: Probability that left and right of what is laid are exchanged.
        feather: Width of the soft edge of an object without a mask, as a share of its shorter side.
    """

    probability: Fraction = 0.5
    max_objects: Count = 10
    place: Literal["scene", "anywhere", "learned"] = "scene"
    spread: Fraction = 0.02
    pick: Literal["images", "classes"] = "images"
    min_scale: Annotated[Positive, Field(le=10)] = 0.1
    max_scale: Annotated[Positive, Field(le=10)] = 2.0
    flip: Fraction = 0.5
    feather: Annotated[Fraction, Field(le=0.5)] = 0.1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is larger than max_scale {self.max_scale}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Occurrences:
    """Where the objects of each category occur in a data set; N: its objects.

    Attributes:
        labels: (N,) int64.
        images: (N,) int64, position of the image.
        sites: (N, 3) float64: centre x and y as shares of the image's sides, and the root of the share of its area.
    """

    labels: NDArray[np.int64]
    images: NDArray[np.int64]
    sites: NDArray[np.float64]

    @classmethod
    def of(cls, dataset: CocoDataset) -> Occurrences:
        """Those of a data set, crowd regions and ignored objects left out; may be none."""
        truths = truths_of(dataset)
        truths = truths[truths.is_object]
        sizes_hw = np.array([image.size_hw for image in dataset.images], dtype=np.float64).reshape(-1, 2)
        sides = sizes_hw[truths.images][:, ::-1]
        starts, ends = truths.boxes[:, :2] / sides, truths.boxes[:, 2:] / sides
        size = np.sqrt(np.prod(ends - starts, axis=1, keepdims=True))
        sites = np.concatenate([(starts + ends) / 2, size], axis=1)
        return cls(labels=truths.labels, images=truths.images, sites=sites)


@dataclass(frozen=True, slots=True)
class CopyPaste:
    """See the module.

    Attributes:
        config: What is laid, and how.
        occurrences: Of the training set.
        min_visibility: Share of its area that an object must keep to stay, of those laid and of those below.
    """

    config: CopyPasteConfig
    occurrences: Occurrences
    min_visibility: float

    def __call__(self, sample: Sample, bank: Bank, rng: np.random.Generator, /) -> Sample:
        """The sample with objects of another one on it; without any, as it is."""
        config = self.config
        if rng.random() >= config.probability or not len(self.occurrences.labels):
            return sample
        source, label = self._source(bank, rng)
        rows = _takeable(source.instances)
        rng.shuffle(rows)
        if label is not None:  # those of the category first, each part in its random order
            rows = rows[np.argsort(source.instances.labels.numpy()[rows] != label, kind="stable")]
        if not len(rows):
            return sample
        rows = rows[: int(rng.integers(1, min(len(rows), config.max_objects) + 1))]
        matrices = self._placed(source, rows, sample.size_hw, rng)
        layers = [
            self._layer(source, row, matrix, sample.size_hw)
            for row, matrix in zip(rows.tolist(), matrices, strict=True)
        ]
        found = [layer for layer in layers if layer is not None]
        return pasted(sample, found, min_visibility=self.min_visibility)

    def _source(self, bank: Bank, rng: np.random.Generator) -> tuple[Sample, int | None]:
        """Another image, and the category that it was chosen for."""
        labels, label = np.unique(self.occurrences.labels), None
        images = np.unique(self.occurrences.images)
        if self.config.pick == "classes":
            label = int(labels[rng.integers(len(labels))])
            images = np.unique(self.occurrences.images[self.occurrences.labels == label])
        return bank.sample(int(images[rng.integers(len(images))])), label

    def _placed(
        self, source: Sample, rows: NDArray[np.int64], size_hw: tuple[int, int], rng: np.random.Generator
    ) -> list[Matrix]:
        """For each object the map from its image to the one below."""
        config = self.config
        alike = max(size_hw) / max(source.size_hw)
        if config.place == "scene":
            scale = alike * _between(config.min_scale, config.max_scale, rng.random())
            flipped, (u, v) = rng.random() < config.flip, rng.random(2)
            (height, width), (shown_h, shown_w) = size_hw, (side * scale for side in source.size_hw)
            corner = np.array([u * (width - shown_w), v * (height - shown_h)])
            return [_map(scale, flipped, (shown_w / 2, shown_h / 2), corner, (0.0, 0.0))] * len(rows)
        return [self._by_itself(source.instances, row, alike, size_hw, rng) for row in rows.tolist()]

    def _by_itself(
        self,
        instances: Instances,
        row: int,
        alike: float,
        size_hw: tuple[int, int],
        rng: np.random.Generator,
    ) -> Matrix:
        """The map of an object that is placed by itself; the number of draws is always the same."""
        config, label = self.config, int(instances.labels[row])
        x1, y1, x2, y2 = instances.boxes[row].tolist()
        size, mirror, pick, u, v = rng.random(5)
        height, width = size_hw
        sites = self.occurrences.sites[self.occurrences.labels == label]
        if config.place == "learned" and len(sites):
            x, y, root = sites[int(pick * len(sites))]
            wanted = root * math.sqrt(height * width) * _between(1 / _SITE_SCALE, _SITE_SCALE, size)
            scale = wanted / math.sqrt(max((x2 - x1) * (y2 - y1), 1.0))
            centre = np.array(
                [(x + config.spread * (2 * u - 1)) * width, (y + config.spread * (2 * v - 1)) * height]
            )
        else:
            scale = alike * _between(config.min_scale, config.max_scale, size)
            half_w, half_h = ((x2 - x1) * scale / 2, (y2 - y1) * scale / 2)
            centre = np.array([half_w + u * (width - 2 * half_w), half_h + v * (height - 2 * half_h)])
        return _map(scale, mirror < config.flip, (0.0, 0.0), centre, ((x1 + x2) / 2, (y1 + y2) / 2))

    def _layer(self, source: Sample, row: int, matrix: Matrix, size_hw: tuple[int, int]) -> Layer | None:
        """The object where it goes; None where the border leaves too little of it, or it is too small to be seen."""
        layer = lay(source, torch.tensor([row]), matrix, size_hw, feather=self.config.feather)
        if layer is None:
            return None
        scale = abs(float(np.linalg.det(matrix[:, :2])))
        whole = scale * float(solid_masks(source.instances)[slice(row, row + 1)].areas())
        seen = float(solid_masks(layer.instances).areas())
        return layer if seen >= max(self.min_visibility * whole, _FEWEST_PIXELS) else None


def _between(low: float, high: float, share: float) -> float:
    """Evenly on a logarithmic scale, so that halving is as likely as doubling."""
    return float(low * (high / low) ** share)


def _map(
    scale: float,
    flipped: bool,
    middle: tuple[float, float],
    goal: NDArray[np.float64],
    anchor: tuple[float, float],
) -> Matrix:
    """(2, 3) map that scales about an anchor, flips about a vertical line, and brings the anchor to its goal.

    Args:
        scale: Factor.
        flipped: Whether left and right are exchanged.
        middle: x of that line after scaling, from the anchor; y is not looked at.
        goal: Where the anchor goes, unless the flip moves it.
        anchor: x and y in the old frame.
    """
    sign = -1.0 if flipped else 1.0
    linear = np.array([[sign * scale, 0.0], [0.0, scale]])
    shift = goal - linear @ np.asarray(anchor)
    if flipped:
        shift = shift + np.array([2 * middle[0], 0.0])
    return np.column_stack([linear, shift])


def _takeable(instances: Instances) -> NDArray[np.int64]:
    """Rows of the objects that can be laid elsewhere: whole, with pixels, no crowd regions."""
    masks = solid_masks(instances)
    whole = ~cut_sides(masks.boxes(), instances.size_hw).any(axis=1)
    found = whole & (masks.areas() > 0).numpy()
    if instances.is_crowd is not None:
        found &= ~instances.is_crowd.numpy()
    return np.flatnonzero(found)

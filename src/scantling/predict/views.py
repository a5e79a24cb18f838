"""The views in which a few images are predicted, and what a detector has computed of each.

records ── Load ──► Loaded: a Batch for each test size ── Views (sizes, flipped ones) ── encode ──► Encoded
once, where it fits into memory
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from scantling.data.coco import ImageRecord
from scantling.data.images.open import open_image
from scantling.data.samples.geometry import View, render
from scantling.errors import DataError
from scantling.models.contract import CandidateLimits, Detector, Encoded
from scantling.structures.instances import Instances
from scantling.structures.masks import RoiMasks
from scantling.structures.sample import Batch, Frame, Sample

KEPT_BYTES = {"cpu": 1 << 29, "cuda": 1 << 31}
"""Features that are kept between boxes and masks; what is beyond is computed again."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A few images at every size, and those that could not be read."""

    records: tuple[ImageRecord, ...]
    batches: tuple[Batch, ...]
    failures: tuple[DataError, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Records -> `Loaded`, in whatever process.

    Attributes:
        sizes_for: The sizes (h, w) at which an image of a size is predicted, as many for every image.
    """

    sizes_for: Callable[[tuple[int, int]], Sequence[tuple[int, int]]]

    def __call__(self, records: Sequence[ImageRecord]) -> Loaded:
        """The images that can be read at every size, and the faults of the others."""
        readable, failures, views = [], [], []
        for record in records:
            try:
                sample = read_sample(record)
            except DataError as error:
                failures.append(error)
                continue
            readable.append(record)
            sizes = self.sizes_for(record.size_hw)
            views.append([render(sample, View.of(sample).resized(size_hw)) for size_hw in sizes])
        batches = tuple(Batch.collate(samples) for samples in zip(*views, strict=True))
        return Loaded(tuple(readable), batches, tuple(failures))


def read_sample(record: ImageRecord) -> Sample:
    """An image without ground truth.

    Raises:
        DataError: The image cannot be read, or is not of its record's size.
    """
    pixels = open_image(record.path, size_hw=record.size_hw, white=record.white)
    return Sample(
        image=pixels.transpose(2, 0, 1),
        instances=Instances.empty(record.size_hw, scored=False),
        frame=Frame.identity(record.size_hw),
        image_id=record.id,
    )


@contextmanager
def inference(device: torch.device, precision: str) -> Iterator[None]:
    """Without gradients, in a number format: `fp32`, `bf16` or `fp16`."""
    dtype = _DTYPES.get(precision)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A detector without gradients, in some number format; in evaluation mode by whoever uses it.

    Attributes:
        model: On the device.
        device: Where it computes.
        precision: `fp32`, `bf16` or `fp16`.
    """

    model: Detector
    device: torch.device
    precision: str = "fp32"

    def encode(self, batch: Batch) -> Encoded:
        """See `Detector.encode`."""
        with self._inference():
            return self.model.encode(batch)

    def candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:
        """See `Detector.candidates`."""
        with self._inference():
            return self.model.candidates(encoded, limits)

    def masks(self, encoded: Encoded, instances: Sequence[Instances]) -> list[RoiMasks]:
        """See `Detector.masks`."""
        with self._inference():
            return self.model.masks(encoded, instances)

    def mask_ious(
        self, encoded: Encoded, instances: Sequence[Instances], masks: Sequence[RoiMasks]
    ) -> list[Tensor] | None:
        """See `Detector.mask_ious`; None of a detector that does not rank by masks."""
        if not self.model.ranks_by_masks:
            return None
        with self._inference():
            return self.model.mask_ious(encoded, instances, masks)

    def _inference(self) -> AbstractContextManager[None]:
        return inference(self.device, self.precision)


@dataclass(slots=True, kw_only=True)
class Views:
    """Batches that show the same images, each in another view, and what was computed of them so far.

    Attributes:
        network: Who computes.
        batches: On the device.
        budget: Bytes of features that are kept for the next round.
    """

    network: Network
    batches: Sequence[Batch]
    budget: int
    _kept: dict[int, Encoded] = field(default_factory=dict)

    def encoded(self) -> Iterator[tuple[Batch, Encoded]]:
        """Each view with its features, kept ones as they are."""
        for index, batch in enumerate(self.batches):
            features = self._kept.get(index)
            if features is None:
                features = self.network.encode(batch)
                if (size := _bytes_of(features)) <= self.budget:
                    self._kept[index] = features
                    self.budget -= size
            yield batch, features

    def candidates(self, limits: CandidateLimits) -> list[list[tuple[Frame, Instances]]]:
        """For each image the frames and candidates of all views."""
        seen = [
            list(zip(batch.frames, self.network.candidates(features, limits), strict=True))
            for batch, features in self.encoded()
        ]
        return [list(views) for views in zip(*seen, strict=True)]


def _bytes_of(value: Any) -> int:
    """Memory of all tensors in a dataclass of tensors and lists of tensors."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    if isinstance(value, Encoded):
        return sum(_bytes_of(getattr(value, each.name)) for each in fields(value))
    return 0

"""A labelled data set as samples, and the one source of randomness for everything done to them.

All randomness of the data path comes from (seed, epoch, image id, purpose) and nothing else, so it is the same
whatever the number of workers, the order of records in the file, or the step at which a run was resumed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np

from scantling.data.coco import CocoDataset, ImageId
from scantling.data.images.open import open_image
from scantling.data.samples.transforms import Closing, Transform
from scantling.errors import DataError
from scantling.structures.sample import Frame, Sample


def draw_key(seed: int, epoch: int, image_id: ImageId, purpose: str) -> bytes:
    """Sixteen bytes that look random and depend on the four arguments only; the ids 1 and "1" differ."""
    text = json.dumps([seed, epoch, image_id, purpose])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def rng_for(seed: int, epoch: int, image_id: ImageId, purpose: str) -> np.random.Generator:
    """A generator that depends on the four arguments only.

    Args:
        seed: Of the run.
        epoch: Counted from 0.
        image_id: As in the annotation file; type and value both count.
        purpose: What is drawn, so that unlike uses are independent.
    """
    return np.random.Generator(
        np.random.PCG64(int.from_bytes(draw_key(seed, epoch, image_id, purpose), "little"))
    )


@dataclass(frozen=True, slots=True)
class DetectionDataset:
    """Images with instances, raw and augmented.

    Attributes:
        coco: Records and annotations.
        transforms: Applied by `get`.
        closing: What is applied in their place in the last epochs; None for the same to the end.
        seed: Of the run.
        masks: Whether samples carry masks.
        skip_invalid: An image that cannot be read is replaced by the next one that can, instead of stopping.
        left_out: Names of the images that were replaced in this process, and why.
    """

    coco: CocoDataset
    transforms: Transform
    seed: int = 0
    closing: Closing | None = None
    masks: bool = False
    skip_invalid: bool = False
    left_out: dict[str, str] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.coco)

    def sample(self, index: int) -> Sample:
        """The image and its instances as they are on disk.

        Raises:
            DataError: The image cannot be read; with `skip_invalid`, none can.
        """
        if not self.skip_invalid:
            return self._read(index)
        for position in (*range(index, len(self)), *range(index)):
            name = self.coco.images[position].file_name
            if name in self.left_out:
                continue
            try:
                return self._read(position)
            except DataError as error:
                self.left_out[name] = str(error.findings[0]) if error.findings else str(error)
        raise DataError(f"{self.coco.file}: none of its {len(self)} images can be read")

    def _read(self, index: int) -> Sample:
        record = self.coco.images[index]
        pixels = open_image(record.path, size_hw=record.size_hw, white=record.white)
        return Sample(
            image=pixels.transpose(2, 0, 1),
            instances=self.coco.instances(index, masks=self.masks),
            frame=Frame.identity(record.size_hw),
            image_id=record.id,
        )

    def get(self, index: int, epoch: int, repeat: int = 0) -> Sample:
        """The augmented sample; equal arguments give equal pixels.

        Args:
            index: Position of the image record.
            epoch: Counted from 0.
            repeat: How often the image has been shown in the epoch before.
        """
        raw, closing = self.sample(index), self.closing
        transforms = self.transforms
        if closing is not None and epoch >= closing.first_epoch:
            transforms = closing.transforms
        return transforms(raw, self, rng_for(self.seed, epoch, raw.image_id, f"augment {repeat}"))

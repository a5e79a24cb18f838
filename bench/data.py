"""Images per second of training-data preparation on one core, against torchvision's v2 transforms on the same files.

    python bench/data.py [FOLDER] [--images 24] [--rounds 5]

Both sides read a JPEG, decode it to RGB, resize it to a random short side, flip it, change its colours, move its
boxes along, and end with a contiguous uint8 tensor (3, H, W). Without a FOLDER the JPEGs are generated. Time is
processor time of this process with one thread per library, so that other work on the machine does not count; sides
take turns, and the median over rounds is shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from scantling.data.images.open import list_images, open_image
from scantling.data.samples.augmentation import AugmentConfig, SideRange, build_transforms
from scantling.data.samples.dataset import rng_for
from scantling.structures.instances import Instances
from scantling.structures.sample import Frame, Sample

SHORT_SIDES = (480, 800)
LONG_SIDE = 1333
GENERATED_HW = (960, 1280)
NUM_BOXES = 10
FULL = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}
JOBS: dict[str, dict[str, float] | None] = {
    "decode + resize + flip + brightness, contrast, saturation, hue": FULL,
    "decode + resize + flip + brightness, contrast, saturation": {
        k: v for k, v in FULL.items() if k != "hue"
    },
    "decode + resize + flip": {},
    "decode": None,
}

Prepare = Callable[[Path, int], Tensor]


class NoOtherImages:
    """The bank of transforms that look at one image only."""

    def __len__(self) -> int:
        return 0

    def sample(self, index: int) -> Sample:
        """There is none."""
        raise IndexError(index)


def ours(colours: dict[str, float] | None) -> Prepare:
    """The job as scantling does it."""
    if colours is None:
        return lambda path, _: torch.from_numpy(np.ascontiguousarray(open_image(path).transpose(2, 0, 1)))
    sides = SideRange(min=SHORT_SIDES[0], max=SHORT_SIDES[1])
    transforms = build_transforms(
        AugmentConfig.model_validate({"short_side": sides, "long_side": LONG_SIDE, **colours})
    )

    def prepare(path: Path, epoch: int) -> Tensor:
        pixels = open_image(path)
        size_hw = pixels.shape[0], pixels.shape[1]
        sample = Sample(
            image=pixels.transpose(2, 0, 1),
            instances=Instances(
                size_hw=size_hw, boxes=boxes_in(size_hw), labels=torch.zeros(NUM_BOXES, dtype=torch.int64)
            ),
            frame=Frame.identity(size_hw),
            image_id=path.name,
        )
        done = transforms(sample, NoOtherImages(), rng_for(0, epoch, path.name, "augment 0"))
        return torch.from_numpy(np.ascontiguousarray(done.image))

    return prepare


def theirs(colours: dict[str, float] | None) -> Prepare:
    """The job as torchvision's v2 transforms do it."""
    if colours is None:
        return lambda path, _: decode_image(read_file(str(path)), ImageReadMode.RGB).contiguous()
    sides = list(range(SHORT_SIDES[0], SHORT_SIDES[1] + 1))
    steps = [v2.RandomShortestSize(sides, LONG_SIDE), v2.RandomHorizontalFlip()]
    if colours:
        steps.append(v2.ColorJitter(**colours))
    transforms = v2.Compose(steps)

    def prepare(path: Path, _: int) -> Tensor:
        image = tv_tensors.Image(decode_image(read_file(str(path)), ImageReadMode.RGB))
        size_hw = image.shape[-2], image.shape[-1]
        boxes = tv_tensors.BoundingBoxes(boxes_in(size_hw), format="XYXY", canvas_size=size_hw)
        done: Tensor = transforms(image, boxes)[0]
        return done.contiguous()

    return prepare


def boxes_in(size_hw: tuple[int, int]) -> Tensor:
    """Ten boxes inside an image."""
    corners = torch.linspace(0, 0.5, NUM_BOXES)[:, None] * torch.tensor([size_hw[1], size_hw[0]])
    return torch.cat([corners, corners + 40], dim=1)


def generate(folder: Path, count: int) -> None:
    """Write JPEGs with the detail of photographs: smooth shapes, edges, sensor noise."""
    rng = np.random.default_rng(0)
    height, width = GENERATED_HW
    for index in range(count):
        coarse = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(60):
            x, y, radius = (int(v) for v in rng.integers(10, [width, height, 90]))
            cv2.circle(pixels, (x, y), radius, rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
        noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.jpg"), noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])


def seconds_per_image(prepare: Prepare, paths: list[Path], epoch: int) -> float:
    started = time.process_time()
    for path in paths:
        prepare(path, epoch)
    return (time.process_time() - started) / len(paths)


def compare(colours: dict[str, float] | None, paths: list[Path], rounds: int) -> tuple[float, float]:
    """Median processor seconds per image, torchvision's and ours, taken in turns after a warm-up."""
    sides = theirs(colours), ours(colours)
    for prepare in sides:
        seconds_per_image(prepare, paths[:3], 0)
    times = [[seconds_per_image(prepare, paths, epoch) for prepare in sides] for epoch in range(rounds)]
    their_times, our_times = zip(*times, strict=True)
    return statistics.median(their_times), statistics.median(our_times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", nargs="?", type=Path, help="images to use; generated when left out")
    parser.add_argument("--images", type=int, default=24, help="number of images")
    parser.add_argument("--rounds", type=int, default=5, help="passes over the images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if options.folder is None:
            generate(folder, options.images)
        paths = list_images(folder)[: options.images]
        write("| job | torchvision, images/s | scantling, images/s | ratio |\n|---|---:|---:|---:|")
        for name, colours in JOBS.items():
            their_time, our_time = compare(colours, paths, options.rounds)
            write(f"| {name} | {1 / their_time:.0f} | {1 / our_time:.0f} | {their_time / our_time:.1f} |")


def write(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What refining costs: cutting the crops of one image, and the whole refinement against the network alone.

    python bench/refine.py [--rounds 15] [--device cpu] [--precision fp32] [--backbones efficientnet_b0 efficientnet_b1]

Decoded 640x480 images with 10 boxes of 40 to 400 pixels each. Crops: scantling's `crop_windows` + `cut` against
cropping and resizing box by box with Pillow (its default filter, bicubic, and bilinear), both from the decoded array to
a uint8 batch, S = 224, 16 images in a row, milliseconds of one. Refinement, of one image: `refine_boxes` (crops,
network, boxes back in the image) against the network's bare forward pass on the same crops, already normalised. On the
CPU, one thread and processor time, so that other work on the machine does not count; on a GPU, wall time with
synchronisation. Sides take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from scantling.refine.apply import ApplyConfig, refine_boxes
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.refine.crops import crop_windows, cut, cut_on_device

IMAGE_HW, NUM_BOXES, SIDE, PADDING = (480, 640), 10, 224, 0.2
NUM_IMAGES = 16
TARGET_MS = {"preparation": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--backbones", nargs="*", default=["efficientnet_b0", "efficientnet_b1"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pixels, boxes = picture()
    say(f"{NUM_BOXES} boxes, {IMAGE_HW[1]}x{IMAGE_HW[0]}, {options.device}, torch {torch.__version__}\n")
    say("| | median ms | compared with | ratio |\n|---|---:|---|---:|")
    if options.device == "cpu":
        compare_preparation([picture(seed) for seed in range(NUM_IMAGES)], options.rounds)
    else:
        windows = crop_windows(boxes, PADDING, SIDE)
        on_device = torch.from_numpy(pixels).to(options.device).permute(2, 0, 1)
        (spent,) = medians([lambda: cut_on_device(on_device, windows, SIDE)], options.rounds, options.device)
        say(f"| crops, RoIAlign on the device | {spent:.2f} | | |")
    for name in options.backbones:
        compare_refinement(name, pixels, boxes, options)


def picture(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """An image with the detail of a photograph, and ten boxes inside it."""
    rng = np.random.default_rng(seed)
    height, width = IMAGE_HW
    coarse = rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)
    sides = np.geomspace(40, 400, NUM_BOXES)[:, None] * rng.uniform(0.8, 1.1, (NUM_BOXES, 2))
    sides = np.minimum(sides, [width - 1, height - 1])
    corners = rng.random((NUM_BOXES, 2)) * ([width, height] - sides)
    return pixels, np.concatenate([corners, corners + sides], axis=1)


def compare_preparation(
    pictures: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64]]], rounds: int
) -> None:
    def ours() -> None:
        for pixels, boxes in pictures:
            cut(pixels, crop_windows(boxes, PADDING, SIDE), SIDE)

    def pillow(resample: Image.Resampling) -> Callable[[], None]:
        def prepare() -> None:
            for pixels, boxes in pictures:
                image = Image.fromarray(pixels)
                windows = crop_windows(boxes, PADDING).tolist()
                crops = [image.crop(window).resize((SIDE, SIDE), resample) for window in windows]
                torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))

        return prepare

    sides = [ours, pillow(Image.Resampling.BICUBIC), pillow(Image.Resampling.BILINEAR)]
    spent, *theirs = (ms / len(pictures) for ms in medians(sides, rounds, "cpu"))
    say(f"| crops, scantling | {spent:.2f} | at most {TARGET_MS['preparation']:g} ms | |")
    for name, other in zip(("bicubic, its default", "bilinear"), theirs, strict=True):
        say(f"| crops, Pillow ({name}) | {other:.2f} | scantling | {other / spent:.1f} |")


def compare_refinement(
    name: str, pixels: NDArray[np.uint8], boxes: NDArray[np.float64], options: argparse.Namespace
) -> None:
    config = RefinerConfig(backbone=name, padding=PADDING)
    refiner = Refiner(config, [str(number) for number in range(80)]).to(options.device).eval()
    labels = np.arange(NUM_BOXES) % 80
    apply = ApplyConfig(precision=options.precision)
    crops = cut(pixels, crop_windows(boxes, PADDING, config.crop_side), config.crop_side).to(options.device)
    normalised = (crops.float() - refiner.mean) * refiner.scale
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]

    @torch.inference_mode()
    def bare() -> object:
        with torch.autocast(torch.device(options.device).type, dtype=dtype, enabled=dtype is not None):
            return refiner.backbone(normalised)

    def whole() -> object:
        return refine_boxes(pixels, boxes, labels, refiner, apply)

    network, refined = medians([bare, whole], options.rounds, options.device)
    where = f"{name}, {config.crop_side} px, {options.precision}"
    say(f"| {where}: network alone | {network:.1f} | | |")
    say(f"| {where}: refinement | {refined:.1f} | network alone, at most 1.15 | {refined / network:.2f} |")


def medians(sides: Sequence[Callable[[], object]], rounds: int, device: str) -> list[float]:
    """Median milliseconds of each side, taken in turns after a warm-up."""
    times: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 2):
        for side, spent in zip(sides, times, strict=True):
            started = now(device)
            side()
            if number >= 2:
                spent.append(now(device) - started)
    return [statistics.median(spent) * 1e3 for spent in times]


def now(device: str) -> float:
    """Processor seconds of this process, or wall seconds when the device has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def say(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

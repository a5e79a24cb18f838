"""Crops per second of pretraining's input pipeline, and of the step it feeds.

    python bench/pretrain.py [--crops 64] [--rounds 3] [--side 224] [--batch 8]

Input: two MoCo v2 views of a stored crop, on one core, against torchvision's v2 transforms with the same settings on
the same JPEGs. Step: ResNet-50 with GroupNorm, forward of both encoders, backward and update. Crops are generated with
the detail of photographs, 500 x 500 pixels: the largest that the store keeps for views of 224. Time is processor time
of one thread, so that other work on the machine does not count; the median over rounds is shown.
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
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from scantling.data.health.images import images_of_folder
from scantling.pretrain.crop_store import CropStore, open_store
from scantling.pretrain.crops import CropFileConfig, image_crops, stored_pixels
from scantling.pretrain.moco import MoCo, MocoConfig
from scantling.pretrain.views import BuildViews, ViewConfig, ViewTask

CROP_SIDE = 500
QUEUE = 4096


def generate(folder: Path, count: int) -> None:
    """Write pictures with smooth shapes, edges and sensor noise."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_CUBIC)
        for _ in range(30):
            x, y, radius = (int(v) for v in rng.integers(10, [CROP_SIDE, CROP_SIDE, 70]))
            cv2.circle(pixels, (x, y), radius, rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
        noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), noisy)


def theirs(store: CropStore, side: int) -> Callable[[int], None]:
    """Both views of a crop as torchvision makes them, from the same bytes."""
    config = ViewConfig()
    data = torch.from_file(str(store.file), size=int(store.ends[-1]), dtype=torch.uint8)
    starts = [0, *store.ends[:-1].tolist()]
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    view = v2.Compose(
        [
            v2.RandomResizedCrop(side, (config.min_scale, 1.0), antialias=True),
            v2.RandomApply([jitter], config.jitter),
            v2.RandomGrayscale(config.gray),
            v2.RandomApply([v2.GaussianBlur(23, (config.min_sigma, config.max_sigma))], config.blur),
            v2.RandomHorizontalFlip(config.horizontal_flip),
        ]
    )

    def prepare(index: int) -> None:
        encoded = data[starts[index] : int(store.ends[index])].clone()
        crop = decode_image(encoded, ImageReadMode.RGB)
        torch.stack([view(crop), view(crop)])

    return prepare


def crops_per_second(prepare: Callable[[int], object], count: int) -> float:
    started = time.process_time()
    for index in range(count):
        prepare(index)
    return count / (time.process_time() - started)


def measured_input(store: CropStore, side: int, rounds: int) -> tuple[float, float]:
    """Crops per second, torchvision's and ours, taken in turns after a warm-up."""
    build = BuildViews(store=store, side=side, config=ViewConfig(), seed=0)
    sides = theirs(store, side), lambda index: build(ViewTask(0, (index,)))
    for prepare in sides:
        crops_per_second(prepare, 4)
    speeds = [[crops_per_second(prepare, len(store)) for prepare in sides] for _ in range(rounds)]
    their_speeds, our_speeds = zip(*speeds, strict=True)
    return statistics.median(their_speeds), statistics.median(our_speeds)


def measured_step(store: CropStore, side: int, batch_size: int, rounds: int) -> float:
    """Crops per second of a training step whose batch is there."""
    model = MoCo(MocoConfig(backbone="resnet50", norm="gn", queue=QUEUE, momentum=0.999))
    optimizer = torch.optim.SGD(model.query.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
    build = BuildViews(store=store, side=side, config=ViewConfig(), seed=0)
    batches = [build(ViewTask(number, tuple(range(batch_size)))) for number in range(2)]
    speeds = []
    for number in range(rounds + 1):
        started = time.process_time()
        optimizer.zero_grad()
        model(batches[number % 2])["info_nce"].backward()
        optimizer.step()
        speeds.append(batch_size / (time.process_time() - started))
    return statistics.median(speeds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        pictures.mkdir()
        generate(pictures, options.crops)
        plan = image_crops({"generated": images_of_folder(pictures).records})
        limit = stored_pixels(options.side, ViewConfig().min_scale)
        store = open_store(Path(scratch) / "store", plan, CropFileConfig(), max_pixels=limit)
        their_speed, our_speed = measured_input(store, options.side, options.rounds)
        step = measured_step(store, options.side, options.batch, options.rounds)
    sys.stdout.write(
        f"| {options.side} px, one core | crops/s | ratio |\n|---|---:|---:|\n"
        f"| two views, torchvision v2 | {their_speed:.1f} | 1 |\n"
        f"| two views, scantling | {our_speed:.1f} | {our_speed / their_speed:.1f} |\n"
        f"| step, ResNet-50 GN, batch {options.batch} | {step:.2f} | input is {our_speed / step:.0f} x as fast |\n"
    )


if __name__ == "__main__":
    main()

"""InstaBoost against the PyPI package `instaboostfast`, and what strong augmentation adds to loading an image.

    python bench/paste.py [--data FOLDER] [--images 10] [--rounds 3] [--sheet FILE]

FOLDER is a COCO data set with masks (`annotations/train.json`); without one, scenes are generated. Both sides move the
objects of the same images by the published settings. The peer is left out where it cannot be imported
(`pip install instaboostfast scikit-image`). Time is processor time of this process with one thread; sides take turns,
and the median over rounds is shown. `--sheet` draws twelve augmented images of generated scenes with their masks and
boxes instead, and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.stats import spearmanr

from scantling.data.coco import CocoDataset, read_coco
from scantling.data.samples.augmentation import AugmentConfig, build_transforms
from scantling.data.samples.dataset import DetectionDataset, rng_for
from scantling.data.samples.heat_map import bands, distances, heat_map
from scantling.data.samples.instaboost import InstaBoost, InstaBoostConfig, touching_groups, without
from scantling.data.samples.paste import cover_of, solid_masks
from scantling.data.samples.transforms import Compose
from scantling.structures.sample import Sample
from scantling.synth.synth import SynthConfig, write_synth

PEER = "instaboostfast"
ALWAYS = {"probability": 1.0}
LOADING: dict[str, dict[str, Any]] = {
    "read, resize, flip": {},
    "with InstaBoost": {"instaboost": ALWAYS},
    "with copy-paste": {"copy_paste": ALWAYS},
    "with copy-paste, learned places": {"copy_paste": {**ALWAYS, "place": "learned"}},
    "with mosaic": {"mosaic": ALWAYS},
    "with mixup": {"mixup": ALWAYS},
    "with all of them, each half of the time": {
        name: {"probability": 0.5} for name in ("instaboost", "copy_paste", "mosaic", "mixup")
    },
}
SHEET: tuple[dict[str, Any], ...] = (
    {"instaboost": {**ALWAYS, "shift": 0.3}},
    {"instaboost": {**ALWAYS, "shift": 0.3, "angle": 10.0}},
    {"copy_paste": {**ALWAYS, "min_scale": 0.5}},
    {"copy_paste": {**ALWAYS, "place": "anywhere", "min_scale": 0.5}},
    {"copy_paste": {**ALWAYS, "place": "learned"}},
    {"copy_paste": {**ALWAYS, "place": "anywhere", "min_scale": 0.8, "max_scale": 1.2}},
    {"mosaic": ALWAYS},
    {"mosaic": ALWAYS},
    {"mosaic": {**ALWAYS, "max_scale": 0.6}},
    {"mixup": ALWAYS},
    {"mixup": ALWAYS, "mosaic": ALWAYS},
    {"instaboost": ALWAYS, "copy_paste": ALWAYS, "mosaic": ALWAYS},
)
SHEET_BOXES = 5
"""The panel that is pasted without masks."""


def peer_of(coco: CocoDataset, *, guided: bool) -> Callable[[Sample], Any]:
    """The package's augmentation of a sample, by the same settings."""
    module, creator = importlib.import_module(PEER), importlib.import_module(f"{PEER}.pycococreater")
    creator.measure = _OldContours(importlib.import_module("skimage.measure"))
    config = module.InstaBoostConfig(color_prob=0.5, heatmap_flag=guided)
    annotations: dict[Any, list[dict[str, Any]]] = {}
    for record in coco.to_coco()["annotations"]:
        if not record["iscrowd"]:
            annotations.setdefault(record["image_id"], []).append(record)

    def augment(sample: Sample) -> Any:
        pixels = np.ascontiguousarray(sample.hwc[..., ::-1])
        return module.get_new_data(annotations[sample.image_id], pixels, config)

    return augment


class _OldContours:
    """skimage.measure for the peer, which needs contours of unlike lengths as NumPy before 1.24 put them together."""

    def __init__(self, measure: Any) -> None:
        self.approximate_polygon = measure.approximate_polygon
        self._find = measure.find_contours

    def find_contours(self, mask: np.ndarray, level: float) -> np.ndarray:
        found = self._find(mask, level)
        together = np.empty(len(found), dtype=object)
        together[:] = found
        return together


def ours(*, guided: bool) -> Callable[[Sample], Any]:
    """Our augmentation of a sample."""
    step = InstaBoost(InstaBoostConfig(probability=1.0, consistent=guided), 0.1)
    bank = _NoOthers()
    return lambda sample: step(sample, bank, rng_for(0, 0, sample.image_id, "bench"))


class _NoOthers:
    def __len__(self) -> int:
        return 0

    def sample(self, index: int) -> Sample:
        raise IndexError(index)


def seconds_per_image(augment: Callable[[Any], Any], things: list[Any]) -> float:
    started = time.process_time()
    for thing in things:
        augment(thing)
    return (time.process_time() - started) / len(things)


def medians(sides: list[Callable[[Any], Any]], things: list[Any], rounds: int) -> list[float]:
    """Median processor seconds of each side per image, taken in turns after a warm-up."""
    for side in sides:
        seconds_per_image(side, things[:1])
    times = [[seconds_per_image(side, things) for side in sides] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def compare_with_peer(coco: CocoDataset, samples: list[Sample], rounds: int) -> None:
    write(f"| InstaBoost, {len(samples)} images | {PEER}, images/s | scantling, images/s | ratio |")
    write("|---|---:|---:|---:|")
    for name, guided in (("places from the heat map", True), ("random places", False)):
        sides: list[Callable[[Any], Any]] = [ours(guided=guided)]
        if importlib.util.find_spec(PEER) is not None:
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002 - the peer draws from it
            sides.append(peer_of(coco, guided=guided))
        mine, *theirs = medians(sides, samples, rounds)
        shown = (
            f"{1 / theirs[0]:.2f} | {1 / mine:.2f} | {theirs[0] / mine:.1f}"
            if theirs
            else f"not installed | {1 / mine:.2f} | "
        )
        write(f"| {name} | {shown} |")


def compare_distances(samples: list[Sample]) -> None:
    """How much the heat map changes by the distance being squared."""
    ranks, shares = [], []
    for sample in samples:
        masks = solid_masks(sample.instances)
        movable = torch.arange(len(masks))
        if not len(movable):
            continue
        groups = touching_groups(masks, movable)
        background = without(sample.hwc, masks, groups, np.zeros(sample.size_hw, dtype=np.uint8))
        for rows in groups:
            boxes = masks[rows].boxes()
            x1, y1 = (int(v) for v in boxes[:, :2].amin(dim=0).tolist())
            x2, y2 = (int(v) for v in boxes[:, 2:].amax(dim=0).tolist())
            reach = (x2 - x1) // 15, (y2 - y1) // 15
            margin = 12 + max(reach)
            inside = (
                min(x1, y1) >= margin
                and x2 + margin <= sample.size_hw[1]
                and y2 + margin <= sample.size_hw[0]
            )
            if min(reach) < 2 or not inside:
                continue
            patch = cover_of(masks[rows], (x1, y1, x2, y2))
            squared = distances(sample.hwc, background, patch, (x1, y1), reach)
            plain = euclidean(sample.hwc, background, patch, (x1, y1), reach)
            ranks.append(spearmanr(squared.ravel(), plain.ravel()).statistic)
            shares.append(np.minimum(heat_map(squared), heat_map(plain)).sum())
    if ranks:
        write(
            f"\nHeat maps of {len(ranks)} objects, squared against plain Euclidean distance: rank correlation "
            f"{statistics.median(ranks):.3f} (median; least {min(ranks):.3f}), probability in common "
            f"{statistics.median(shares):.1%} (least {min(shares):.1%})"
        )


def euclidean(
    image: np.ndarray,
    background: np.ndarray,
    patch: np.ndarray,
    corner: tuple[int, int],
    reach: tuple[int, int],
) -> np.ndarray:
    """The sum with the Euclidean distance of colours, place by place, of an object far from the border."""
    weights = bands(patch)
    rows, columns = np.nonzero(weights)
    here = image[rows + corner[1] - 12, columns + corner[0] - 12].astype(np.float64)
    result = np.zeros((2 * reach[1] + 1, 2 * reach[0] + 1))
    for y, x in np.ndindex(result.shape):
        there = background[rows + corner[1] - 12 + y - reach[1], columns + corner[0] - 12 + x - reach[0]]
        result[y, x] = (weights[rows, columns] * np.linalg.norm(here - there, axis=1)).sum()
    return result


def compare_loading(coco: CocoDataset, count: int, rounds: int) -> None:
    height, width = coco.images[0].size_hw
    size = {"short_side": min(height, width), "long_side": max(height, width)}
    datasets = [
        DetectionDataset(
            coco, build_transforms(AugmentConfig.model_validate({**size, **settings}), coco), masks=True
        )
        for settings in LOADING.values()
    ]
    sides = [lambda index, dataset=dataset: dataset.get(index, 0) for dataset in datasets]
    times = medians(sides, list(range(count)), rounds)
    write(
        f"\n| loading {count} images of {width} x {height} with masks | images/s | time, against plain loading |"
    )
    write("|---|---:|---:|")
    for name, seconds in zip(LOADING, times, strict=True):
        write(f"| {name} | {1 / seconds:.1f} | {seconds / times[0]:.2f} |")


def contact_sheet(coco: CocoDataset, seed: int) -> np.ndarray:
    """Twelve augmented images, four in a row, with their masks outlined and their boxes drawn; RGB."""
    panels = []
    for number, settings in enumerate(SHEET):
        config = AugmentConfig.model_validate({"short_side": 180, "long_side": 240, "flip": 0.0, **settings})
        dataset = DetectionDataset(
            coco, build_transforms(config, coco), seed=seed, masks=number != SHEET_BOXES
        )
        panels.append(draw(dataset.get(number % len(coco), 0)))
    return np.concatenate([np.concatenate(panels[row : row + 4], axis=1) for row in (0, 4, 8)])


def draw(sample: Sample) -> np.ndarray:
    image = sample.hwc.copy()
    for row, (patch, (x, y)) in enumerate(solid_masks(sample.instances)):
        colour = np.array(
            [int(c) for c in cv2.applyColorMap(np.uint8([[row * 83 % 256]]), cv2.COLORMAP_HSV)[0, 0]]
        )
        inner = cv2.erode(patch, np.ones((3, 3), dtype=np.uint8), borderValue=0)
        below = image[y : y + patch.shape[0], x : x + patch.shape[1]]
        below[(patch > 0) & (inner == 0)] = colour
    for x1, y1, x2, y2 in sample.instances.boxes.round().int().tolist():
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), (255, 255, 255), 1)
    return cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0, 0, 0))


def generated(folder: Path, count: int, size_hw: tuple[int, int]) -> CocoDataset:
    config = SynthConfig(size_hw=size_hw, occluders=0.3, absent_rate=0.3)
    return read_coco(write_synth(folder / "scenes", config, splits={"train": count}, seed=7)["train"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, help="data set with masks; generated when left out")
    parser.add_argument("--images", type=int, default=10, help="number of images")
    parser.add_argument("--rounds", type=int, default=3, help="passes over the images")
    parser.add_argument(
        "--sheet", type=Path, help="write the contact sheet to this file, and measure nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if options.sheet is not None:
            sheet = contact_sheet(generated(Path(scratch), len(SHEET), (180, 240)), seed=1)
            cv2.imwrite(str(options.sheet), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
            return
        coco = (
            read_coco(options.data / "annotations" / "train.json", task="segmentation")
            if options.data
            else generated(Path(scratch), options.images, (480, 640))
        )
        raw = DetectionDataset(coco, Compose(()), masks=True)
        found = [raw.sample(index) for index in range(min(options.images, len(coco)))]
        samples = [replace(sample) for sample in found if len(sample.instances)]
        compare_with_peer(coco, samples, options.rounds)
        compare_distances(samples)
        compare_loading(coco, len(found), options.rounds)


def write(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Does strong augmentation help on a small data set? AP with and without each kind, at equal cost.

    python bench/augment.py DATA [--steps 400] [--side 160] [--seeds 3] [--only none,mosaic] [--out runs.jsonl]

DATA is a COCO data set (annotations/train.json, val.json, test.json, images/). Every run trains the same small Mask
R-CNN (Faster R-CNN where there are no masks) from random weights for as many steps of two images; what differs is
what the images go through beside resizing, flips and brightness. `best` is all that gained on val, mean over the
seeds, together. Mosaic ends a fifth before the end of training. AP (of masks where there are some) on test, mean and
95 % interval (Student's t) over the seeds, and of the paired difference from none; val is only what `best` is chosen
by. Each run is kept in the file `--out`, and not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import torch

from scantling.data.coco import CocoDataset, read_coco, to_results
from scantling.data.samples.augmentation import AugmentConfig, build_transforms, closing_of
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import LoaderConfig, TrainLoader
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.contract import Detector
from scantling.models.suppression import SuppressConfig
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig, Predictor
from vs_torchvision import BATCH, OURS, fit_batches, interval

CLOSED = 0.2
SINGLE: dict[str, dict[str, Any]] = {
    "none": {},
    "instaboost": {"instaboost": {}},
    "copy_paste": {"copy_paste": {}},
    "learned": {"copy_paste": {"place": "learned"}},
    "mosaic": {"mosaic": {}},
}
BEST = "best"
PLACES = {"copy_paste", "learned"}
"""Of these two the better one is in `best`."""

Row = dict[str, Any]


def has_masks(coco: CocoDataset) -> bool:
    return all(each.segmentation is not None for many in coco.annotations for each in many)


def train_one(train: CocoDataset, settings: dict[str, Any], seed: int, steps: int, side: int) -> Detector:
    """A detector after so many steps; what is drawn depends on the seed and the settings only."""
    masks = has_masks(train)
    torch.manual_seed(seed)
    model = build_model(
        ModelConfig(name="mask_rcnn_r18_small" if masks else "faster_rcnn_r18_small", **OURS),
        len(train.categories),
    ).train()
    steps_per_epoch = math.ceil(len(train) / BATCH)
    epochs = math.ceil(steps / steps_per_epoch)
    sides = {"min": round(0.85 * side), "max": round(1.15 * side)}
    config = AugmentConfig.model_validate(
        {
            "short_side": sides,
            "long_side": 2 * side,
            "vertical_flip": 0.5,
            "brightness": 0.2,
            "close_epochs": min(max(1, round(CLOSED * epochs)), epochs - 1),
            **settings,
        }
    )
    dataset = DetectionDataset(
        train,
        build_transforms(config, train),
        seed=seed,
        closing=closing_of(config, epochs, train),
        masks=masks,
    )
    fit_batches(model, TrainLoader(dataset, LoaderConfig(batch_size=BATCH)), steps)
    return model


def judge(model: Detector, dataset: CocoDataset, side: int) -> float:
    """AP of masks where the data set has some, else of boxes."""
    suppress = SuppressConfig(score_threshold=0.01, iou_threshold=0.5, max_per_image=100)
    config = PredictConfig(scales=side, long_side=2 * side, batch_size=4, tile=None, suppress=suppress)
    predictor = Predictor(model, config, dataset.class_names, torch.device("cpu"))
    results = [
        result
        for record, found in predictor.predict_records(dataset.images)
        for result in to_results(record.id, found, dataset.categories)
    ]
    kind = "segm" if has_masks(dataset) else "bbox"
    return float(evaluate_results(dataset, results, iou_type=kind).metrics["AP"] or 0)


class Runs:
    """What was run on a data set, and what is run when it is asked for."""

    def __init__(self, splits: dict[str, CocoDataset], options: argparse.Namespace) -> None:
        self._splits, self._options = splits, options
        self._key = {"data": options.data.name, "steps": options.steps, "side": options.side}
        lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
        rows: list[Row] = [json.loads(line) for line in lines]
        self._done = [row for row in rows if all(row[name] == value for name, value in self._key.items())]

    def of(self, settings: dict[str, Any], seed: int) -> Row:
        """AP on val and test, and the processor seconds."""
        for row in self._done:
            if row["settings"] == settings and row["seed"] == seed:
                return row
        started = time.process_time()
        model = train_one(self._splits["train"], settings, seed, self._options.steps, self._options.side)
        trained = time.process_time()
        found = {split: judge(model, self._splits[split], self._options.side) for split in ("val", "test")}
        seconds = {"train_s": round(trained - started, 1), "judge_s": round(time.process_time() - trained, 1)}
        row = {**self._key, "settings": settings, "seed": seed, **found, **seconds}
        with self._options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._done.append(row)
        return row


def best_of(rows: dict[str, list[Row]]) -> dict[str, Any]:
    """The settings of everything that gained on val, together; of the two kinds of copy-paste the better one."""
    means = {name: statistics.mean(row["val"] for row in found) for name, found in rows.items()}
    gained = [name for name in rows if name != "none" and means[name] > means["none"]]
    places = sorted(PLACES & set(gained), key=means.__getitem__)
    settings: dict[str, Any] = {}
    for name in gained:
        if name not in places[:-1]:
            settings |= SINGLE[name]
    return settings


def report(name: str, rows: dict[str, list[Row]], settings: dict[str, Any]) -> None:
    say(f"\n| {name} | val AP | test AP | test, against none | processor s |\n|---|---:|---:|---:|---:|")
    for kind, found in rows.items():
        val, test = ([row[split] for row in found] for split in ("val", "test"))
        gains = [row["test"] - plain["test"] for row, plain in zip(found, rows["none"], strict=False)]
        told = f"{kind} ({', '.join(settings) or 'nothing gained'})" if kind == BEST else kind
        seconds = statistics.median(row["train_s"] for row in found)
        say(f"| {told} | {interval(val)} | {interval(test)} | {interval(gains)} | {seconds:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--side", type=int, default=160, help="short side of images, pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="kinds to run, with commas; all and the best together when left out")
    parser.add_argument("--out", type=Path, default=Path("augment.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    root = options.data
    splits = {s: read_coco(root / f"annotations/{s}.json", root / "images") for s in ("train", "val", "test")}
    runs = Runs(splits, options)
    kinds = options.only.split(",") if options.only else list(SINGLE)
    if not has_masks(splits["train"]):
        kinds = [kind for kind in kinds if kind != "instaboost"]
    rows: dict[str, list[Row]] = {kind: [] for kind in kinds}
    for seed in range(options.seeds):  # seed by seed, so that what is there so far can be compared
        for kind, found in rows.items():
            found.append(runs.of(SINGLE[kind], seed))
            row = found[-1]
            say(f"seed {seed} {kind}: val {row['val']:.3f}, test {row['test']:.3f}, {row['train_s']:.0f} s")
    settings: dict[str, Any] = {}
    if options.only is None:
        settings = best_of(rows)
        rows[BEST] = [runs.of(settings, seed) for seed in range(options.seeds)]
    report(f"{root.name}, {options.steps} steps, {options.side} px", rows, settings)


def say(line: str) -> None:
    """A line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

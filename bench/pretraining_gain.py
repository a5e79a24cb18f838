"""What pretraining on a data set's own crops gives: k-NN accuracy of its crops, and AP of a detector from there.

    python bench/pretraining_gain.py DATA [--seeds 3] [--steps 300] [--crops-shown 40000 | --weights FILE]

DATA is a COCO data set (annotations/train.json, val.json, images/). A ResNet-10-T with BatchNorm is pretrained once on
the crops of train, or its weights are given. k-NN accuracy is that of the crops of val, told by those of train, before
and after. The detector is trained on train from these weights and from random ones: same seeds, batches, steps and
learning rate; AP on val, mean and 95 % interval (Student's t) over the seeds, and of the paired difference.
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
from scantling.data.crop_store import open_store
from scantling.data.crops import CropConfig, stored_pixels
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.backbone import Backbone, BackboneConfig, read_weights
from scantling.models.two_stage import PIXEL_MEAN, PIXEL_STD, Normalise
from scantling.models.zoo import ModelConfig, build_model
from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.knn import KnnScore, KnnSplit, knn_score
from scantling.pretrain.run import PretrainRun, pretrain
from scantling.pretrain.source import plan_crops
from vs_torchvision import BATCH, detect, fit_steps, interval

BACKBONE = {"backbone": "resnet10t", "norm": "bn"}
CPU = torch.device("cpu")


def pretrained(train: CocoDataset, out: Path, options: argparse.Namespace) -> Path:
    """Pretrain on the crops of train; returns the weights."""
    plan = plan_crops({"train": train}, PretrainConfig())
    epochs = max(1, round(options.crops_shown / len(plan)))
    config = PretrainConfig(**BACKBONE, side=options.side, epochs=epochs, knn_every=epochs)
    return pretrain(plan, config, out, run=PretrainRun(device="cpu", console=Console(stderr=True))).weights


@torch.no_grad()
def crop_score(splits: dict[str, CocoDataset], weights: Path | None, folder: Path, side: int) -> KnnScore:
    """How well the categories of val's crops are told by train's."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name=BACKBONE["backbone"], norm=BACKBONE["norm"])).eval()
    if weights is not None:
        backbone.load(read_weights(weights))
    normalise = Normalise(PIXEL_MEAN, PIXEL_STD)
    plan = plan_crops(splits, PretrainConfig())
    store = open_store(folder, plan, CropConfig(), max_pixels=stored_pixels(side, 0.2))
    asked = torch.tensor([crop_id.startswith('["val"') for crop_id in store.ids])
    split = KnnSplit(known=(~asked).nonzero().flatten().numpy(), asked=asked.nonzero().flatten().numpy())

    def describe(views: torch.Tensor) -> torch.Tensor:
        images = normalise(views.permute(0, 3, 1, 2), [(side, side)] * len(views))
        return backbone(images)[-1].mean(dim=(2, 3))

    return knn_score(store, split, describe, side=side, neighbours=20, device=CPU)


def detector_ap(splits: dict[str, CocoDataset], init: str, seed: int, options: argparse.Namespace) -> float:
    """AP on val after some steps on train."""
    train, val = splits["train"], splits["val"]
    torch.manual_seed(seed)
    config = ModelConfig(name=f"{options.model}_rcnn_r18_small", num_rois=128, init=init, **BACKBONE)
    model = build_model(config, len(train.categories)).train()
    torch.manual_seed(seed + 1000)  # the same sampling of anchors and RoIs, whatever the initialisation drew
    fit_steps(model, train, seed, options.steps)
    return float(evaluate_results(val, detect(model, val)).metrics["AP"] or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crops-shown", type=int, default=40_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--weights", type=Path, help="a backbone.safetensors to take instead of pretraining")
    parser.add_argument("--model", choices=("faster", "cascade"), default="faster")
    parser.add_argument("--images", type=int, help="use only the first images of each split")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    splits = {
        name: read_coco(options.data / f"annotations/{name}.json", options.data / "images")
        for name in ("train", "val")
    }
    if options.images:
        splits = {
            name: dataset.subset([record.id for record in dataset.images[: options.images]])
            for name, dataset in splits.items()
        }
    with tempfile.TemporaryDirectory() as scratch:
        started = time.process_time()
        weights = options.weights or pretrained(splits["train"], Path(scratch) / "pretrained", options)
        seconds = time.process_time() - started
        scores = [crop_score(splits, file, Path(scratch) / "crops", options.side) for file in (None, weights)]
        aps: dict[str, list[float]] = {"random": [], str(weights): []}
        for seed in range(options.seeds):
            for init, found in aps.items():
                found.append(detector_ap(splits, init, seed, options))
                sys.stderr.write(f"seed {seed}, {Path(init).name}: AP {found[-1]:.3f}\n")
    report(scores, list(aps.values()), seconds, options)


def report(
    scores: list[KnnScore], aps: list[list[float]], seconds: float, options: argparse.Namespace
) -> None:
    gains = [after - before for before, after in zip(*aps, strict=True)]
    learned = f"{options.crops_shown} crops of {options.side} px shown in {seconds:.0f} processor seconds"
    if options.weights:
        learned = f"weights {options.weights.name}"
    lines = [
        f"{options.data.name}: {learned}; {options.model}, {options.steps} steps of {BATCH} images, "
        f"{options.seeds} seeds\n",
        "| backbone | k-NN accuracy | balanced | AP | gain |\n|---|---:|---:|---:|---:|",
        f"| random | {scores[0].accuracy:.3f} | {scores[0].balanced:.3f} | {interval(aps[0])} | |",
        f"| own crops | {scores[1].accuracy:.3f} | {scores[1].balanced:.3f} | {interval(aps[1])} | {interval(gains)} |",
        f"| always the most frequent | {scores[0].majority:.3f} | | | |",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

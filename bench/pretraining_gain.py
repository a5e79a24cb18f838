"""What pretraining on a data set's own crops gives: k-NN accuracy of its crops, and AP of a detector from there.

    python bench/pretraining_gain.py DATA [--seeds 3] [--steps 300] [--crops-shown 20000 | --weights FILE]

DATA is a COCO data set (annotations/train.json, val.json, images/). For every seed a ResNet-10-T with BatchNorm is
pretrained on the crops of train, or its weights are given. k-NN accuracy is that of the crops of val, told by those of
train: of random weights as a detector starts from them, of the same with the means and variances of BatchNorm measured
on the crops of train (what a network gains by that alone is not learned), and after pretraining. The detector is
trained on train from these weights and from random ones: same seeds, batches, steps and learning rate; AP on val. Mean
and 95 % interval (Student's t) over the seeds, and of the paired difference.
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
from rich.console import Console
from torch import Tensor, nn

from scantling.data.coco import CocoDataset, read_coco
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.normalise import PIXEL_MEAN, PIXEL_STD, Normalise
from scantling.models.weights.opener import read_weights
from scantling.models.zoo import ModelConfig, build_model
from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.crop_store import CropStore, open_store
from scantling.pretrain.crops import CropFileConfig, stored_pixels
from scantling.pretrain.knn import KnnScore, KnnSplit, knn_score
from scantling.pretrain.run import PretrainRun, pretrain
from scantling.pretrain.source import plan_crops
from scantling.pretrain.views import resized
from vs_torchvision import BATCH, detect, fit_steps, interval

BACKBONE = {"backbone": "resnet10t", "norm": "bn"}
CPU = torch.device("cpu")


def pretrained(train: CocoDataset, out: Path, seed: int, options: argparse.Namespace) -> Path:
    """Pretrain on the crops of train; returns the weights."""
    plan = plan_crops({"train": train}, PretrainConfig())
    epochs = max(1, round(options.crops_shown / len(plan)))
    config = PretrainConfig(**BACKBONE, side=options.side, epochs=epochs, knn_every=epochs)
    return pretrain(
        plan, config, out, run=PretrainRun(seed=seed, device="cpu", console=Console(stderr=True))
    ).weights


@torch.no_grad()
def crop_score(store: CropStore, backbone: Backbone, side: int) -> KnnScore:
    """How well the categories of val's crops are told by train's."""
    backbone.eval()
    asked = torch.tensor([crop_id.startswith('["val"') for crop_id in store.ids])
    split = KnnSplit(known=(~asked).nonzero().flatten().numpy(), asked=asked.nonzero().flatten().numpy())

    def describe(views: Tensor) -> Tensor:
        return features(backbone, views).mean(dim=(2, 3))

    return knn_score(store, split, describe, side=side, neighbours=20, device=CPU)


def features(backbone: Backbone, views: Tensor) -> Tensor:
    """The last stage's cells for crops (B, S, S, 3)."""
    sizes = [(views.shape[1], views.shape[2])] * len(views)
    return backbone(Normalise(PIXEL_MEAN, PIXEL_STD)(views.permute(0, 3, 1, 2), sizes))[-1]


def random_backbone(seed: int) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(BackboneConfig(name=BACKBONE["backbone"], norm=BACKBONE["norm"]))


@torch.no_grad()
def with_statistics(backbone: Backbone, store: CropStore, side: int) -> Backbone:
    """The same weights, with BatchNorm's statistics measured on up to 1024 crops of train."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    known = [index for index, crop_id in enumerate(store.ids) if not crop_id.startswith('["val"')]
    chosen = np.array(known)[np.linspace(0, len(known) - 1, min(1024, len(known))).astype(int)]
    for start in range(0, len(chosen), 64):
        crops = [resized(store.read(int(index)), side) for index in chosen[start : start + 64]]
        features(backbone.train(), torch.from_numpy(np.stack(crops)))
    return backbone


def knn_rows(
    splits: dict[str, CocoDataset], weights: list[Path], folder: Path, side: int
) -> dict[str, list[KnnScore]]:
    """k-NN scores of random weights (with and without statistics) and of the pretrained ones, by seed."""
    plan = plan_crops(splits, PretrainConfig())
    store = open_store(folder, plan, CropFileConfig(), max_pixels=stored_pixels(side, 0.2))
    rows: dict[str, list[KnnScore]] = {"random": [], "random, statistics measured": [], "own crops": []}
    for seed, file in enumerate(weights):
        rows["random"].append(crop_score(store, random_backbone(seed), side))
        measured = with_statistics(random_backbone(seed), store, side)
        rows["random, statistics measured"].append(crop_score(store, measured, side))
        trained = random_backbone(seed)
        trained.load(read_weights(file))
        rows["own crops"].append(crop_score(store, trained, side))
    return rows


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
    parser.add_argument("--crops-shown", type=int, default=20_000)
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
        weights = [
            options.weights or pretrained(splits["train"], Path(scratch) / f"pretrained{seed}", seed, options)
            for seed in range(options.seeds)
        ]
        seconds = (time.process_time() - started) / options.seeds
        scores = knn_rows(splits, weights, Path(scratch) / "crops", options.side)
        report_scores(scores, seconds, options)
        aps: dict[str, list[float]] = {"random": [], "own crops": []}
        for seed, file in enumerate(weights):
            for name, init in (("random", "random"), ("own crops", str(file))):
                aps[name].append(detector_ap(splits, init, seed, options))
                say(f"seed {seed}, {name}: AP {aps[name][-1]:.3f}")
    report_ap(aps, options)


def report_scores(scores: dict[str, list[KnnScore]], seconds: float, options: argparse.Namespace) -> None:
    learned = f"{options.crops_shown} crops of {options.side} px shown in {seconds:.0f} processor seconds"
    if options.weights:
        learned = f"weights {options.weights.name}"
    say(f"{options.data.name}: {learned}, {options.seeds} seeds\n")
    say("| backbone | k-NN accuracy | balanced |\n|---|---:|---:|")
    for name, found in scores.items():
        say(f"| {name} | {interval([s.accuracy for s in found])} | {interval([s.balanced for s in found])} |")
    say(f"| always the most frequent | {scores['random'][0].majority:.3f} | |\n")


def report_ap(aps: dict[str, list[float]], options: argparse.Namespace) -> None:
    gains = [after - before for before, after in zip(*aps.values(), strict=True)]
    say(f"\n{options.model}, {options.steps} steps of {BATCH} images, {options.seeds} seeds\n")
    say("| detector from | AP | gain |\n|---|---:|---:|")
    say(f"| random weights | {interval(aps['random'])} | |")
    say(f"| own crops | {interval(aps['own crops'])} | {interval(gains)} |")


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What our detectors reach against torchvision's Faster R-CNN on real images, at equal cost.

    python bench/vs_torchvision.py DATA [--steps 300] [--seeds 3]

DATA is a COCO data set (annotations/train.json, val.json, images/). All three detectors get the same backbone and
pyramid (ResNet-10-T with BatchNorm, 64 channels, random weights), the same image sizes, augmentations, batches in
the same order, optimiser, schedule, steps, numbers of proposals and RoIs, and test settings; what differs is what each
project calls a Faster R-CNN (head, losses, initialisation) and our cascade. AP on val, mean and 95 % interval
(Student's t) over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from scantling.data.coco import CocoDataset, read_coco, to_results
from scantling.data.samples.augmentation import AugmentConfig, build_transforms
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import LoaderConfig, TrainLoader
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.contract import CandidateLimits, Detector, Encoded, total_loss
from scantling.models.neck import FPN, FPNConfig
from scantling.models.normalise import PIXEL_MEAN, PIXEL_STD, Normalise
from scantling.models.suppression import SuppressConfig
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.structures.instances import Instances
from scantling.structures.sample import Batch

SHORT, LONG, BATCH, LR = 256, 384, 2, 1e-3
SUPPRESS = SuppressConfig(score_threshold=0.01, iou_threshold=0.5, max_per_image=100)
LEVELS = ("0", "1", "2", "3", "pool")
OURS = {"backbone": "resnet10t", "norm": "bn", "num_rois": 128}


class Peer(Detector):
    """torchvision's RPN and RoI heads on our backbone and pyramid."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalise = Normalise(PIXEL_MEAN, PIXEL_STD)
        self.backbone = Backbone(BackboneConfig(name="resnet10t", norm="bn"))
        self.neck = FPN(self.backbone.channels, self.backbone.strides, FPNConfig(channels=64))
        sizes = tuple((4 * s, 8 * s) for s in self.neck.strides)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        before, after = {"training": 600, "testing": 200}, {"training": 300, "testing": 200}
        self.rpn = RegionProposalNetwork(anchors, RPNHead(64, 6), 0.7, 0.3, 256, 0.5, before, after, 0.7)
        self.heads = RoIHeads(
            MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 0),
            TwoMLPHead(64 * 49, 256),
            FastRCNNPredictor(256, num_classes + 1),
            0.5, 0.5, 128, 0.25, None,
            SUPPRESS.score_threshold, SUPPRESS.iou_threshold, SUPPRESS.max_per_image,
        )  # fmt: skip

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The four losses torchvision names."""
        targets = [{"boxes": i.boxes, "labels": i.labels + 1} for i in batch.instances]
        images, features = self._features(batch)
        proposals, rpn_losses = self.rpn(images, features, targets)
        _, losses = self.heads(features, proposals, images.image_sizes, targets)
        return rpn_losses | losses

    def encode(self, batch: Batch) -> Encoded:
        """Levels and proposals."""
        images, features = self._features(batch)
        proposals = self.rpn(images, features)[0]
        return Encoded(levels=list(features.values()), sizes_hw=batch.sizes_hw, proposals=proposals)

    def candidates(self, encoded: Encoded, limits: CandidateLimits) -> list[Instances]:  # noqa: ARG002
        """What torchvision's own suppression leaves; another of the same kind then changes nothing."""
        features = OrderedDict(zip(LEVELS, encoded.levels, strict=True))
        found, _ = self.heads(features, encoded.proposals, list(encoded.sizes_hw))
        return [
            Instances(size_hw=size, boxes=f["boxes"], labels=f["labels"] - 1, scores=f["scores"])
            for size, f in zip(encoded.sizes_hw, found, strict=True)
        ]

    def _features(self, batch: Batch) -> tuple[ImageList, OrderedDict[str, Tensor]]:
        pixels = self.normalise(batch.images, batch.sizes_hw)
        levels = self.neck(self.backbone(pixels))
        return ImageList(pixels, list(batch.sizes_hw)), OrderedDict(zip(LEVELS, levels, strict=True))


def build(name: str, num_classes: int) -> Detector:
    if name == "torchvision":
        return Peer(num_classes)
    return build_model(ModelConfig(name=f"{name}_rcnn_r18_small", **OURS), num_classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    train, val = (
        read_coco(arguments.data / f"annotations/{split}.json", arguments.data / "images")
        for split in ("train", arguments.split)
    )
    rows: dict[str, list[tuple[float, float, float]]] = {"torchvision": [], "faster": [], "cascade": []}
    for seed in range(arguments.seeds):
        for name, found in rows.items():
            found.append(run(name, seed, arguments.steps, train, val))
            print(f"seed {seed} {name}: AP {found[-1][0]:.3f}, {found[-1][2]:.0f} s", flush=True)
    report(rows, arguments.steps)


def run(name: str, seed: int, steps: int, train: CocoDataset, val: CocoDataset) -> tuple[float, float, float]:
    """AP, AP75 and seconds of training."""
    torch.manual_seed(seed)
    model = build(name, len(train.categories)).train()
    seconds = fit_steps(model, train, seed, steps)
    metrics = evaluate_results(val, detect(model, val)).metrics
    return float(metrics["AP"] or 0), float(metrics["AP75"] or 0), seconds


def fit_steps(model: Detector, train: CocoDataset, seed: int, steps: int) -> float:
    """Train a detector; the batches depend on the seed only. Returns seconds."""
    augment = AugmentConfig(
        short_side={"min": 224, "max": 288}, long_side=LONG, vertical_flip=0.5, brightness=0.2
    )
    dataset = DetectionDataset(train, build_transforms(augment), seed=seed)
    return fit_batches(model, TrainLoader(dataset, LoaderConfig(batch_size=BATCH)), steps)


def fit_batches(
    model: Detector,
    loader: TrainLoader,
    steps: int,
    *,
    lr: float = LR,
    cycle_momentum: bool = False,
    step_seed: int | None = None,
) -> float:
    """Train a detector on the batches of a loader, epoch after epoch. Returns seconds.

    Args:
        model: In training mode.
        loader: Its batches, in its order.
        steps: One batch each.
        lr: Highest learning rate, after a tenth of the steps.
        cycle_momentum: Whether AdamW's first beta moves against the learning rate.
        step_seed: The n-th step draws (anchors, RoIs) from torch's random state of this number plus n; None goes on
            with the state there is.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=max(2, steps), pct_start=0.1, cycle_momentum=cycle_momentum
    )
    start = time.perf_counter()
    for step in range(steps):
        epoch, place = divmod(step, loader.steps_per_epoch)
        if place == 0:
            batches = loader.epoch(epoch)
        if step_seed is not None:
            torch.manual_seed(step_seed + step)
        optimizer.zero_grad()
        total_loss(model.losses(next(batches))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


def detect(model: Detector, dataset: CocoDataset) -> list[dict[str, object]]:
    """COCO results of all images."""
    config = PredictConfig(scales=SHORT, long_side=LONG, batch_size=4, tile=None, suppress=SUPPRESS)
    predictor = Predictor(model, config, dataset.class_names, torch.device("cpu"))
    return [
        result
        for record, found in predictor.predict_records(dataset.images)
        for result in to_results(record.id, found, dataset.categories)
    ]


def report(rows: dict[str, list[tuple[float, float, float]]], steps: int) -> None:
    print(
        f"\n{steps} steps of {BATCH} images, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| | AP | AP75 | against torchvision | s |\n|---|---:|---:|---:|---:|")
    for name, found in rows.items():
        aps, ap75s, seconds = zip(*found, strict=True)
        gains = [ap - peer[0] for ap, peer in zip(aps, rows["torchvision"], strict=True)]
        print(
            f"| {name} | {interval(aps)} | {interval(ap75s)} | {interval(gains)} | {statistics.median(seconds):.0f} |"
        )


def interval(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()

"""What ranking by the predicted IoU of masks changes, on generated scenes.

    python bench/mask_iou.py [--model mask_rcnn_r18_small] [--steps 240] [--seeds 3]

Scenes of 120 x 160, 80 to train on and 60 to measure. Two detectors of the same seed, batches and steps, one with a
MaskIoU head. The one with it is measured twice on the same boxes and masks: by its class scores, and by the product.
AP of masks and of boxes, mean and 95 % interval (Student's t) over the seeds, and of the paired differences.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from scantling.data.coco import CocoDataset, read_coco, to_results
from scantling.data.samples.augmentation import AugmentConfig, build_transforms
from scantling.data.samples.dataset import DetectionDataset
from scantling.data.samples.loader import LoaderConfig, TrainLoader
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.contract import Detector
from scantling.models.suppression import SuppressConfig
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.synth.scene import SynthConfig
from scantling.synth.synth import write_synth
from vs_torchvision import fit_batches, interval

SHORT, LONG, LR = 120, 160, 2e-3
SMALLER = {
    "backbone": "resnet10t", "num_rois": 32, "num_train_proposals": 100, "num_test_proposals": 60,
    "mask_channels": 32, "fpn_channels": 48, "fc_channels": 128,
}  # fmt: skip


def trained(train: CocoDataset, name: str, seed: int, steps: int, *, judging: bool) -> Detector:
    """A detector after some steps of two images."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(name=name, mask_iou=judging, **SMALLER), len(train.categories)).train()
    augment = AugmentConfig(short_side=SHORT, long_side=LONG, vertical_flip=0.5)
    dataset = DetectionDataset(train, build_transforms(augment), seed=seed, masks=True)
    loader = TrainLoader(dataset, LoaderConfig(batch_size=2))
    fit_batches(model, loader, steps, lr=LR, cycle_momentum=True, step_seed=1000 * seed)
    return model


def measured(model: Detector, val: CocoDataset) -> tuple[float, float]:
    """AP of masks and of boxes."""
    suppress = SuppressConfig(score_threshold=0.01)
    config = PredictConfig(scales=SHORT, long_side=LONG, batch_size=4, tile=None, suppress=suppress)
    found = Predictor(model, config, val.class_names).predict_records(val.images)
    results = [r for record, each in found for r in to_results(record.id, each, val.categories)]
    masks, boxes = (evaluate_results(val, results, iou_type=kind).metrics["AP"] for kind in ("segm", "bbox"))
    return float(masks or 0), float(boxes or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="mask_rcnn_r18_small")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[tuple[float, float]]] = {"without the head": [], "class score": [], "product": []}
    with tempfile.TemporaryDirectory() as folder:
        files = write_synth(
            Path(folder) / "set", SynthConfig(size_hw=(SHORT, LONG)), splits={"train": 80, "val": 60}, seed=0
        )
        train, val = (read_coco(file, Path(folder) / "set/images") for file in files.values())
        for seed in range(options.seeds):
            for judging in (False, True):
                model = trained(train, options.model, seed, options.steps, judging=judging)
                if judging:
                    rows["product"].append(measured(model, val))
                    model.ranks_by_masks = False
                rows["class score" if judging else "without the head"].append(measured(model, val))
            say(f"seed {seed}: { ({name: found[-1] for name, found in rows.items()}) }")
    say(f"\n{options.model}, {options.steps} steps of 2 images, torch {torch.__version__}\n")
    say("| scores | AP of masks | against class score | AP of boxes | against class score |")
    say("|---|---:|---:|---:|---:|")
    for name, found in rows.items():
        cells = []
        for kind in range(2):
            own, peer = ([ap[kind] for ap in each] for each in (found, rows["class score"]))
            cells += [interval(own), interval([a - b for a, b in zip(own, peer, strict=True)])]
        say(f"| {name} | {' | '.join(cells)} |")


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

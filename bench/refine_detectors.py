"""What refining does to the AP of detectors: a small one of our own, and one whose boxes are deliberately coarse.

    python bench/refine_detectors.py DATA [--steps 300] [--refiner-epochs 20] [--seeds 3]
    python bench/refine_detectors.py DATA --results VAL.json TEST.json

DATA is a COCO data set (annotations/train.json, val.json, test.json, images/). For every seed a small Faster R-CNN and
a refiner (small CPU settings of `refine_gain.py`) are trained on train; a gate is measured on val; AP and AP75 are of
test. With --results those files are used instead of a detector of our own. `coarse`: the same boxes with every edge
rounded to a grid of 16 px. Mean and 95 % interval (Student's t) over the seeds, of AP and of what refining changes.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from scipy import stats

from scantling.data.coco import CocoDataset, read_coco, read_results, to_results
from scantling.data.coco_results import Result
from scantling.data.dataset import DetectionDataset
from scantling.data.loader import LoaderConfig, TrainLoader
from scantling.data.transforms import AugmentConfig, build_transforms
from scantling.draft import Draft
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.two_stage import total_loss
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.refine.apply import ApplyConfig, load_refiner, refine_results
from scantling.refine.bbrefinement import Refiner
from scantling.refine.gate import GateConfig, RefineGate, tune_gate
from scantling.refine.train import RefineConfig, RefinerRun, train_refiner

SHORT, LONG, BATCH, LR, GRID = 256, 384, 2, 1e-3, 16
SUPPRESS = {"score_threshold": 0.01, "iou_threshold": 0.5, "max_per_image": 100}
MODEL = {"name": "faster_rcnn_r18_small", "backbone": "resnet10t", "norm": "bn", "num_rois": 128}
APPLY = ApplyConfig(min_score=0.05)

Rows = dict[tuple[str, str], list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="of the detector")
    parser.add_argument("--refiner-epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, nargs=2, metavar=("VAL", "TEST"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    splits = {
        split: read_coco(options.data / f"annotations/{split}.json", options.data / "images")
        for split in ("train", "val", "test")
    }
    rows: Rows = {}
    for seed in range(options.seeds):
        started = time.process_time()
        if options.results:
            val, test = (
                read_results(p, splits[s]) for p, s in zip(options.results, ("val", "test"), strict=True)
            )
        else:
            val, test = detect(splits, options.steps, seed)
        refiner = trained_refiner(splits, options.refiner_epochs, seed)
        for name, change in (("own", list), ("coarse", coarse)):
            measure(rows, name, splits, (change(val), change(test)), refiner)
        print(f"seed {seed}: {(time.process_time() - started) / 60:.1f} CPU minutes", flush=True)
    report(rows)


def detect(splits: dict[str, CocoDataset], steps: int, seed: int) -> tuple[list[Result], list[Result]]:
    """Train a small detector; its results on val and test."""
    torch.manual_seed(seed)
    train = splits["train"]
    model = build_model(ModelConfig.model_validate(MODEL), len(train.categories)).train()
    augment = AugmentConfig(
        short_side={"min": 224, "max": 288}, long_side=LONG, vertical_flip=0.5, brightness=0.2
    )
    loader = TrainLoader(
        DetectionDataset(train, build_transforms(augment), seed=seed), LoaderConfig(batch_size=BATCH)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    batches = iter(())
    for step in range(steps):
        if step % loader.steps_per_epoch == 0:
            batches = loader.epoch(step // loader.steps_per_epoch)
        optimizer.zero_grad()
        total_loss(model.losses(next(batches))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    config = PredictConfig.model_validate(
        {"scales": SHORT, "long_side": LONG, "batch_size": 4, "tile": None, "suppress": SUPPRESS}
    )
    predictor = Predictor(model, config, train.class_names, torch.device("cpu"))
    val, test = (
        [
            result
            for record, found in predictor.predict_records(splits[split].images)
            for result in to_results(record.id, found, splits[split].categories)
        ]
        for split in ("val", "test")
    )
    return val, test


def trained_refiner(splits: dict[str, CocoDataset], epochs: int, seed: int) -> Refiner:
    small = {**small_settings().SMALL}
    small["train"] = {**small["train"], "epochs": epochs, "repeats": "auto"}
    config = Draft(RefineConfig, small, {}, "small CPU settings").check()
    with tempfile.TemporaryDirectory() as folder:
        run = RefinerRun(out=Path(folder) / "refiner", device="cpu", seed=seed)
        result = train_refiner(splits["train"], splits["val"], config, run)
        print(f"seed {seed}: jittered boxes of val {result.metrics}", flush=True)
        return load_refiner(result.best, "cpu")


def small_settings() -> ModuleType:
    """The bench script beside this one."""
    spec = importlib.util.spec_from_file_location("refine_gain", Path(__file__).with_name("refine_gain.py"))
    if spec is None or spec.loader is None:
        raise ImportError("refine_gain.py is not beside this script")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def coarse(results: list[Result]) -> list[Result]:
    """The same results with every edge on a grid of 16 px, at least one cell wide and high."""
    changed = []
    for result in results:
        x, y, width, height = result["bbox"]
        low = np.round(np.array([x, y]) / GRID)
        high = np.maximum(np.round(np.array([x + width, y + height]) / GRID), low + 1)
        changed.append({**result, "bbox": [*(low * GRID).tolist(), *((high - low) * GRID).tolist()]})
    return changed


def measure(
    rows: Rows,
    name: str,
    splits: dict[str, CocoDataset],
    pair: tuple[list[Result], list[Result]],
    refiner: Refiner,
) -> None:
    """Add AP and AP75 on test before refining, after it, and after it with a gate from val."""
    val, test = pair
    gate = tune_gate(val, splits["val"], refiner, GateConfig(apply=APPLY), refiner_sha="")
    print(gate.to_text(), flush=True)
    variants: tuple[tuple[str, RefineGate | None], ...] = (("refined", None), ("refined, gate", gate))
    found = {"before": test} | {
        label: refine_results(test, splits["test"], refiner, APPLY, gate=chosen)[0]
        for label, chosen in variants
    }
    for label, results in found.items():
        metrics = evaluate_results(splits["test"], results).metrics
        rows.setdefault((name, label), []).append((metrics["AP"] or 0.0, metrics["AP75"] or 0.0))


def report(rows: Rows) -> None:
    print("\n| detector | boxes | AP | AP75 | change of AP | change of AP75 |\n|---|---|---:|---:|---:|---:|")
    for (name, label), values in rows.items():
        before = np.array(rows[name, "before"])
        columns = [*np.array(values).T, *(np.array(values) - before).T]
        print(f"| {name} | {label} | " + " | ".join(interval(column.tolist()) for column in columns) + " |")


def interval(values: list[float]) -> str:
    """Mean and, of several seeds, half the width of its interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()

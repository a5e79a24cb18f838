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
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from refine_gain import SMALL
from scantling.data.coco import CocoDataset, read_coco, read_results
from scantling.data.coco.results import Result
from scantling.evaluate.coco_eval import evaluate_results
from scantling.refine.apply import ApplyConfig, load_refiner, refine_results
from scantling.refine.bbrefinement import Refiner
from scantling.refine.gate import GateConfig, RefineGate
from scantling.refine.gate_tuning import tune_gate
from scantling.refine.train import RefineConfig, RefinerRun, train_refiner
from scantling.settings.draft import Draft
from vs_torchvision import build, detect, fit_steps, interval

GRID = 16
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
            val, test = detections_of_own(splits, options.steps, seed)
        refiner = trained_refiner(splits, options.refiner_epochs, seed)
        for name, change in (("own", list), ("coarse", coarse)):
            measure(rows, name, splits, (change(val), change(test)), refiner)
        print(f"seed {seed}: {(time.process_time() - started) / 60:.1f} CPU minutes", flush=True)
    report(rows)


def detections_of_own(
    splits: dict[str, CocoDataset], steps: int, seed: int
) -> tuple[list[Result], list[Result]]:
    """Train a small Faster R-CNN; its results on val and test."""
    torch.manual_seed(seed)
    model = build("faster", len(splits["train"].categories)).train()
    fit_steps(model, splits["train"], seed, steps)
    val, test = (detect(model, splits[split]) for split in ("val", "test"))
    return val, test


def trained_refiner(splits: dict[str, CocoDataset], epochs: int, seed: int) -> Refiner:
    small = {**SMALL}
    small["train"] = {**small["train"], "epochs": epochs, "repeats": "auto"}
    config = Draft(RefineConfig, small, {}, "small CPU settings").check()
    with tempfile.TemporaryDirectory() as folder:
        run = RefinerRun(out=Path(folder) / "refiner", device="cpu", seed=seed)
        result = train_refiner(splits["train"], splits["val"], config, run)
        print(f"seed {seed}: jittered boxes of val {result.metrics}", flush=True)
        return load_refiner(result.best, "cpu")


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
    gate = tune_gate(val, splits["val"], refiner, GateConfig(), APPLY, refiner_sha="")
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


if __name__ == "__main__":
    main()

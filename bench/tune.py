"""A search over suppression settings against evaluating every setting with pycocotools.

    python bench/tune.py [--images 60] [--candidates 100] [--rounds 3]

22 categories, one object of each per image, and so many candidates around each object. `tune_suppression` also
cross-validates, for all categories and for each, with 1000 resamples. Both suppress with `suppress_detections`. Time is
processor time of this process with one thread per library; the median over rounds is shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from scantling.combine.tune import Option, TuneConfig, tune_suppression
from scantling.data.coco import CocoDataset, ReadOptions, parse_coco
from scantling.data.detections import results_of
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.suppression import SuppressConfig, suppress_detections
from scantling.structures.detections import Detections

NUM_CATEGORIES = 22
NAMES = [f"part{label}" for label in range(NUM_CATEGORIES)]


def generate(num_images: int, num_candidates: int) -> tuple[CocoDataset, Detections]:
    """Truth and candidates."""
    rng = np.random.default_rng(0)
    count = num_images * NUM_CATEGORIES
    corners, sides = rng.uniform(0, 500, (count, 2)), rng.uniform(20, 120, (count, 2))
    images, labels = np.divmod(np.arange(count), NUM_CATEGORIES)
    annotations = [
        {"id": n, "image_id": int(image), "category_id": int(label), "bbox": [*map(float, (*corner, *side))]}
        for n, (image, label, corner, side) in enumerate(zip(images, labels, corners, sides, strict=True))
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 640, "height": 640} for i in range(num_images)
        ],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES)],
    }
    row = np.repeat(np.arange(count), num_candidates)
    shift = rng.normal(0, 0.15, (len(row), 4))
    boxes = np.concatenate([corners, corners + sides], axis=1)[row] + shift * np.tile(sides, 2)[row]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
    scores = np.exp(-3 * np.abs(shift).sum(axis=1)) * rng.uniform(0.2, 1, len(row))
    found = Detections(images=images[row], labels=labels[row], scores=scores, boxes=boxes)
    return parse_coco(content, Path("bench.json"), Path(), ReadOptions()), found


def evaluated(dataset: CocoDataset, candidates: Detections, options: list[Option]) -> list[float | None]:
    """AP with every setting, as the verbs predict and evaluate would have it."""
    found = []
    for option in options:
        field = "sigma" if option.method == "soft_gaussian" else "iou_threshold"
        config = SuppressConfig.model_validate(
            {"method": option.method, field: option.value, "score_threshold": 0.0}
        )
        rows, scores = suppress_detections(candidates, config, NAMES)
        kept = replace(candidates[rows], scores=scores)
        evaluation = evaluate_results(dataset, results_of(kept, dataset), backend="pycocotools")
        found.append(evaluation.metrics["AP"])
    return found


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    dataset, candidates = generate(given.images, given.candidates)
    options = TuneConfig().options()
    base = SuppressConfig(score_threshold=0.0)
    jobs = {
        "evaluate every setting": lambda: evaluated(dataset, candidates, options),
        "tune_suppression": lambda: tune_suppression(candidates, dataset, base, TuneConfig()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    results = {}
    for _ in range(given.rounds):
        for name, job in jobs.items():
            begun = time.process_time()
            results[name] = job()
            seconds[name].append(time.process_time() - begun)
    first = statistics.median(seconds["evaluate every setting"])
    lines = [f"| {len(candidates)} candidates, {len(options)} settings | s | ratio |", "|---|---:|---:|"]
    lines += [
        f"| {n} | {statistics.median(s):.2f} | {statistics.median(s) / first:.2f} |"
        for n, s in seconds.items()
    ]
    best = options[int(np.argmax(results["evaluate every setting"]))]
    told = f"best by evaluation: {best}; by tuning: {results['tune_suppression'].rows[0].setting}"
    sys.stdout.write("\n".join([*lines, "", told]) + "\n")


if __name__ == "__main__":
    main()

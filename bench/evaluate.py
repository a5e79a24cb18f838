"""Evaluation of 40,000 detections against pycocotools' own, and the bootstrap as a multiple of one evaluation.

    python bench/evaluate.py [--images 2000] [--rounds 3] [--resamples 1000]

2000 generated images, 80 categories, about 14,000 truths (2 % crowd regions) and 40,000 detections. Each side gets
the same records in memory and ends with the twelve COCO numbers; ours also checks every record and gives numbers by
category. Time is processor time of this process with one thread per library; the median over rounds is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scantling.data.coco import CocoDataset, read_coco
from scantling.evaluate.coco_eval import evaluate_results

NUM_CATEGORIES = 80
SIZE_WH = (640, 480)
Records = list[dict[str, Any]]


def generate(num_images: int) -> tuple[dict[str, Records], Records]:
    """Truths of all sizes, and for each about two displaced detections, some of another category, and false ones."""
    rng = np.random.default_rng(0)
    truths: Records = []
    detections: Records = []
    for image in range(1, num_images + 1):
        for _ in range(rng.poisson(7)):
            width, height = np.exp(rng.uniform(np.log(8), np.log(300), 2))
            x, y = rng.uniform(0, SIZE_WH[0] - width), rng.uniform(0, SIZE_WH[1] - height)
            category = int(rng.integers(1, NUM_CATEGORIES + 1))
            truth = record(image, category, (x, y, width, height))
            truths.append(
                {**truth, "id": len(truths) + 1, "area": width * height, "iscrowd": int(rng.random() < 0.02)}
            )
            for _ in range(2):
                shift = rng.normal(0, 0.08, 2) * (width, height)
                found = category if rng.random() < 0.9 else int(rng.integers(1, NUM_CATEGORIES + 1))
                box = (x + shift[0], y + shift[1], width, height)
                detections.append({**record(image, found, box), "score": float(rng.random())})
        for _ in range(6):
            false = record(image, int(rng.integers(1, NUM_CATEGORIES + 1)), (*rng.uniform(0, 300, 2), 50, 60))
            detections.append({**false, "score": float(rng.random() * 0.5)})
    width, height = SIZE_WH
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i in range(1, num_images + 1)
    ]
    categories = [{"id": k, "name": f"category {k}"} for k in range(1, NUM_CATEGORIES + 1)]
    return {"images": images, "annotations": truths, "categories": categories}, detections


def record(image: int, category: int, box: tuple[float, ...]) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [float(value) for value in box]}


def pycocotools(truth: dict[str, Records], detections: Records) -> list[float]:
    """The twelve numbers as pycocotools' own documentation computes them."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = truth
        dataset.createIndex()
        evaluator = COCOeval(dataset, dataset.loadRes([dict(found) for found in detections]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats]


def ours(dataset: CocoDataset, detections: Records, backend: Any, bootstrap: int = 0) -> list[float]:
    """The same twelve numbers from scantling."""
    evaluation = evaluate_results(dataset, detections, backend=backend, bootstrap=bootstrap)
    return [-1.0 if value is None else value for value in evaluation.metrics.values()]


def seconds(job: Callable[[], list[float]], rounds: int) -> tuple[float, list[float]]:
    """Median processor seconds of a job, and what it gives."""
    times, numbers = [], []
    for _ in range(rounds):
        started = time.process_time()
        numbers = job()
        times.append(time.process_time() - started)
    return statistics.median(times), numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=2000, help="number of images; 20 detections each")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side evaluates")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    options = parser.parse_args()
    truth, detections = generate(options.images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.json"
        file.write_text(json.dumps(truth), encoding="utf-8")
        dataset = read_coco(file, folder)
    their_time, theirs = seconds(lambda: pycocotools(truth, detections), 1)
    write(f"| {len(detections):,} detections | seconds | against pycocotools | largest difference |")
    write("|---|---:|---:|---:|")
    write(f"| pycocotools | {their_time:.2f} | 1 | |")
    for name in ("pycocotools", "hotcoco"):
        our_time, numbers = seconds(lambda name=name: ours(dataset, detections, name), options.rounds)  # type: ignore[misc]
        difference = max(abs(a - b) for a, b in zip(theirs, numbers, strict=True))
        write(f"| scantling, {name} | {our_time:.2f} | {our_time / their_time:.3f} | {difference:.0e} |")
    full_time, _ = seconds(lambda: ours(dataset, detections, "hotcoco", options.resamples), options.rounds)
    extra = full_time - our_time
    name = f"bootstrap, {options.resamples} resamples"
    write(
        f"| {name} | {extra:.2f} | {extra / their_time:.2f}; {extra / our_time:.1f} × our evaluation with hotcoco | |"
    )


def write(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What cross-category elimination does to AP, on predictions of a simulated detector, and how long it takes.

    python bench/eliminate.py [FOLDER ...] [--seeds 5] [--scenes 150]

For every FOLDER with a data set in COCO's layout, and for generated scenes in two layouts, the second time with bad
labels in `train`: relations are learned from `train`; predictions are made up from the truth of `val`. A detector
finds 92 % of the objects at sides displaced by 5 %, some twice, takes a part of them for another category as well
(with a score that is usually but not always lower), and sees things anywhere. `wrong` counts the objects that were
found (IoU 0.5) and no longer are. Time is processor time of this process with one thread per library.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from scantling.combine.eliminate import EliminateConfig, eliminate, learn_relations
from scantling.data.coco import CocoDataset
from scantling.data.detections import results_of
from scantling.data.formats.locations import read_location
from scantling.evaluate.compare import compare_results
from scantling.evaluate.inputs import EvalInputs
from scantling.evaluate.outcomes import PairedInputs
from scantling.structures.detections import Detections
from scantling.synth.synth import LabelNoise, SynthConfig, write_synth

SCENES = (
    ("scenes, coco", "coco", LabelNoise()),
    ("scenes, delftbikes", "delftbikes", LabelNoise()),
    ("scenes, bad labels", "coco", LabelNoise(box_jitter=0.2, wrong_class=0.05, missing=0.2, spurious=0.1)),
)


def simulate(dataset: CocoDataset, seed: int) -> Detections:
    """Predictions on a data set."""
    rng = np.random.default_rng(seed)
    num_classes = len(dataset.categories)
    sizes = [each.box_xywh[2:] for objects in dataset.annotations for each in objects]
    rows: list[tuple[int, int, float, np.ndarray]] = []
    for image, objects in enumerate(dataset.annotations):
        for annotation in objects:
            x, y, width, height = annotation.box_xywh
            box, sides = np.array([x, y, x + width, y + height]), np.array([width, height] * 2)
            score = float(rng.beta(5, 2))
            if rng.random() < 0.92:
                rows.append((image, annotation.label, score, box + sides * rng.normal(0, 0.05, 4)))
            if rng.random() < 0.2:
                rows.append(
                    (
                        image,
                        annotation.label,
                        score * rng.uniform(0.2, 0.9),
                        box + sides * rng.normal(0, 0.12, 4),
                    )
                )
            if rng.random() < 0.2:
                other = int(rng.integers(num_classes))
                rows.append(
                    (
                        image,
                        other,
                        min(1.0, score * rng.uniform(0.1, 1.2)),
                        box + sides * rng.normal(0, 0.07, 4),
                    )
                )
        for _ in range(10):
            corner = rng.uniform(0, dataset.images[image].size_hw[::-1])
            size = np.array(sizes[int(rng.integers(len(sizes)))])
            rows.append(
                (
                    image,
                    int(rng.integers(num_classes)),
                    float(rng.beta(1, 6)),
                    np.concatenate([corner - size / 2, corner + size / 2]),
                )
            )
    images, labels, scores, boxes = (np.array(column) for column in zip(*rows, strict=True))
    return Detections(images=images, labels=labels, scores=scores, boxes=boxes)


def rows_for(name: str, train: CocoDataset, val: CocoDataset, seeds: int) -> list[str]:
    """One line of the table for each seed."""
    lines = []
    for seed in range(seeds):
        detections = simulate(val, seed)
        begun = time.process_time()
        found = eliminate(detections, learn_relations(train, EliminateConfig()), EliminateConfig())
        seconds = time.process_time() - begun
        results = [results_of(each, val) for each in (detections, detections[found.keep])]
        change = compare_results(val, *results, bootstrap=1000).overall[0]
        outcomes = PairedInputs.of(EvalInputs.over(detections, val)).outcomes(
            np.arange(len(detections)), detections.scores
        )
        hits = outcomes.is_hit[:, 0, 0].sum()
        kept = detections[found.keep]
        left = (
            PairedInputs.of(EvalInputs.over(kept, val))
            .outcomes(np.arange(len(kept)), kept.scores)
            .is_hit[:, 0, 0]
            .sum()
        )
        low, high = change.interval or (0.0, 0.0)
        lines.append(
            f"| {name} | {seed} | {len(detections)} | {len(found.removed)} | {hits - left} | {change.first:.4f} "
            f"| {change.second:.4f} | {change.difference:+.4f} | [{low:+.4f}, {high:+.4f}] | {seconds:.2f} |"
        )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scenes", type=int, default=150)
    given = parser.parse_args()
    lines = []
    for folder in given.folders:
        lines += rows_for(
            folder.name, *(read_location(f"{folder}:{split}") for split in ("train", "val")), given.seeds
        )
    with tempfile.TemporaryDirectory() as temporary:
        for name, layout, noise in SCENES:
            out = Path(temporary) / name.replace(" ", "-")
            splits = {"train": given.scenes, "val": given.scenes // 2}
            write_synth(
                out, SynthConfig(size_hw=(96, 128), noise=noise), splits=splits, seed=0, layout=layout
            )
            lines += rows_for(name, *(read_location(f"{out}:{split}") for split in splits), given.seeds)
    head = "| data | seed | predictions | removed | wrong | AP | AP after | change | 95 % interval | s |"
    sys.stdout.write("\n".join([head, "|---|" + "---:|" * 9, *lines]) + "\n")


if __name__ == "__main__":
    main()

"""Soft-NMS with one threshold per category, over 9 pooled test scales, against a plain loop and against hard NMS.

    python bench/suppress.py [--rounds 7] [--images 50] [--device cuda]

22 categories, 9 scales x 1000 candidates of one image. `clustered`: what pooled scales give, jittered copies of one
object of each category and of 40 places that resemble one; three in ten have some other category. `random`: boxes
anywhere, of any category. Settings are the published ones: linear decay, score threshold 1e-7; the IoU thresholds run
from 0.3 to 0.7 over the categories. The loop is Algorithm 1 of team CS21 as it stands, in torch; hard NMS is
torchvision's `batched_nms` at 0.5, which has no end and no thresholds by category.
Medians of one thread: processor time, and time on the clock. On a GPU only the latter means anything.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from scantling.models.suppression import SuppressConfig, suppress_detections
from scantling.ops.nms import suppress
from scantling.structures.detections import Detections

NUM_CATEGORIES, SCALES, PER_SCALE, PLACES = 22, 9, 1000, 40
WIDTH, HEIGHT = 1600, 1200
THRESHOLDS = torch.linspace(0.3, 0.7, NUM_CATEGORIES)
MIN_SCORE = 1e-7
Scene = tuple[Tensor, Tensor, Tensor]
Kept = tuple[Tensor, Tensor]


def clustered(seed: int) -> Scene:
    """Boxes (N, 4), scores and labels (N,): copies of objects, jittered by a tenth of their sides."""
    rng = np.random.default_rng(seed)
    places, count = NUM_CATEGORIES + PLACES, SCALES * PER_SCALE
    sides = np.exp(rng.uniform(np.log(40), np.log(600), (places, 1)) + rng.normal(0, 0.25, (places, 2)))
    centres = rng.uniform(0, (WIDTH, HEIGHT), (places, 2))
    categories = np.concatenate([np.arange(NUM_CATEGORIES), rng.integers(0, NUM_CATEGORIES, PLACES)])
    certainty = np.concatenate([rng.beta(4, 1, NUM_CATEGORIES), 10 ** rng.uniform(-4, -1, PLACES)])
    of, jitter = rng.integers(0, places, count), rng.normal(0, 0.1, (count, 4))
    middle, half = centres[of] + jitter[:, :2] * sides[of], sides[of] * np.exp(jitter[:, 2:]) / 2
    own = rng.random(count) < 0.7
    labels = np.where(own, categories[of], rng.integers(0, NUM_CATEGORIES, count))
    likely = certainty[of] * np.exp(-4 * np.abs(jitter).sum(axis=1))
    scores = np.where(own, likely, 10 ** rng.uniform(-7, -1.5, count)).clip(MIN_SCORE, 1)
    return _tensors(np.concatenate([middle - half, middle + half], axis=1), scores, labels)


def random(seed: int) -> Scene:
    """Boxes (N, 4), scores and labels (N,), all at random."""
    rng = np.random.default_rng(seed)
    count = SCALES * PER_SCALE
    half = np.exp(rng.uniform(np.log(20), np.log(500), (count, 2))) / 2
    middle = rng.uniform(0, (WIDTH, HEIGHT), (count, 2))
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    return _tensors(boxes, rng.random(count), rng.integers(0, NUM_CATEGORIES, count))


def _tensors(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Scene:
    return torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(labels)


def loop(boxes: Tensor, scores: Tensor, labels: Tensor) -> Kept:
    """Algorithm 1: category by category, the best box, its overlap with the others, their decay."""
    keep, found = [], []
    for category, threshold in enumerate(THRESHOLDS.tolist()):
        rows = (labels == category).nonzero()[:, 0]
        mine, left = boxes[rows], scores[rows]
        while len(left):
            best = int(left.argmax())
            keep.append(rows[best])
            found.append(left[best])
            overlap = box_iou(mine[best : best + 1], mine)[0]
            left = torch.where(overlap > threshold, left * (1 - overlap), left)
            waits = left >= MIN_SCORE
            waits[best] = False
            rows, mine, left = rows[waits], mine[waits], left[waits]
    return torch.stack(keep), torch.stack(found)


def hard(boxes: Tensor, scores: Tensor, labels: Tensor) -> Kept:
    """NMS of torchvision within each category."""
    keep = batched_nms(boxes, scores, labels, 0.5)
    return keep, scores[keep]


def ours(boxes: Tensor, scores: Tensor, labels: Tensor, method: str, max_per_image: int | None) -> Kept:
    """The same as the loop, unless it is `soft_gaussian`, or all but the best of the image are left out."""
    thresholds = THRESHOLDS.to(boxes.device)
    return suppress(
        boxes,
        scores,
        labels,
        max_per_image=max_per_image,
        method=method,
        iou_threshold=thresholds,
        min_score=MIN_SCORE,
    )


JOBS: dict[str, Callable[..., Kept]] = {
    "loop in torch, soft linear": loop,
    "torchvision batched_nms, hard": hard,
    "ours, soft linear, best 100": partial(ours, method="soft_linear", max_per_image=100),
    "ours, soft linear, all": partial(ours, method="soft_linear", max_per_image=None),
    "ours, soft gaussian, best 100": partial(ours, method="soft_gaussian", max_per_image=100),
    "ours, soft gaussian, all": partial(ours, method="soft_gaussian", max_per_image=None),
}


def timed(job: Callable[[], object], device: str) -> tuple[float, float]:
    """Milliseconds of processor and clock."""
    started, clock = time.process_time(), time.perf_counter()
    job()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.process_time() - started) * 1e3, (time.perf_counter() - clock) * 1e3


def compare(name: str, scene: Scene, options: argparse.Namespace) -> None:
    """Rows of one kind of boxes; each job runs once in every round."""
    inputs = [column.to(options.device) for column in scene]
    kept = {job: run(*inputs) for job, run in JOBS.items()}
    check_same(kept["loop in torch, soft linear"], kept["ours, soft linear, all"])
    times: dict[str, list[tuple[float, float]]] = {job: [] for job in JOBS}
    for _ in range(options.rounds):
        for job, run in JOBS.items():
            times[job].append(timed(partial(run, *inputs), options.device))
    medians = {
        job: tuple(statistics.median(column) for column in zip(*pairs, strict=True))
        for job, pairs in times.items()
    }
    which = 0 if options.device == "cpu" else 1
    slow, fast = (medians[job][which] for job in list(JOBS)[:2])
    for job, (processor, clock) in medians.items():
        mine = medians[job][which]
        write(
            f"| {name}, {options.device} | {job} | {len(kept[job][0])} | {processor:.1f} | {clock:.1f} "
            f"| {slow / mine:.1f} | {mine / fast:.2f} |"
        )


def check_same(expected: Kept, found: Kept) -> None:
    """Both keep the same boxes, with scores equal to a few units in the last place.

    Raises:
        SystemExit: They do not.
    """
    places = [kept[0].argsort() for kept in (expected, found)]
    rows, scores = (
        [kept[i][place] for kept, place in zip((expected, found), places, strict=True)] for i in (0, 1)
    )
    if rows[0].tolist() != rows[1].tolist() or not torch.allclose(*scores, rtol=1e-5, atol=0):
        raise SystemExit("the loop and ours do not agree")


def whole_set(options: argparse.Namespace) -> None:
    """Many images in one call, with settings as a user gives them."""
    scenes = [clustered(seed) for seed in range(options.images)]
    boxes, scores, labels = (torch.cat(column) for column in zip(*scenes, strict=True))
    images = np.repeat(np.arange(options.images), SCALES * PER_SCALE)
    detections = Detections(
        images=images, labels=labels.numpy(), scores=scores.double().numpy(), boxes=boxes.double().numpy()
    )
    names = [f"part {k}" for k in range(NUM_CATEGORIES)]
    config = SuppressConfig(
        method="soft_linear",
        iou_threshold=dict(zip(names, THRESHOLDS.tolist(), strict=True)),
        score_threshold=0.99 * MIN_SCORE,
        min_score=MIN_SCORE,
    )
    jobs = {
        "torchvision batched_nms, hard, image by image": lambda: [hard(*scene) for scene in scenes],
        "ours, suppress_detections, best 100": lambda: suppress_detections(detections, config, names),
    }
    medians = {}
    for job, run in jobs.items():
        pairs = [timed(run, "cpu") for _ in range(3)]
        medians[job] = [statistics.median(column) for column in zip(*pairs, strict=True)]
    for job, (processor, clock) in medians.items():
        ratio = processor / medians["torchvision batched_nms, hard, image by image"][0]
        write(
            f"| {options.images} images, clustered, cpu | {job} | | {processor:.0f} | {clock:.0f} | | {ratio:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=7, help="times that each job runs")
    parser.add_argument("--images", type=int, default=50, help="of the last rows")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    write("| boxes | | kept | processor ms | clock ms | times faster than the loop | ratio to hard NMS |")
    write("|---|---|---:|---:|---:|---:|---:|")
    for scene in (clustered, random):
        compare(scene.__name__, scene(0), options)
    whole_set(options)


def write(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

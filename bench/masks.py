"""Masks from the network's squares to COCO's numbers: memory of pasting, mask overlaps, evaluation.

    python bench/masks.py [--rounds 5] [--images 1000]

Paste: 100 soft masks of 28 x 28, seen at seven test sizes, averaged and laid over a picture of 2624 x 2624 as run
lengths; the peer pastes full frames with torchvision's `paste_masks_in_image` and encodes with pycocotools. Overlap:
300 detections against 300 detections of one picture of 1024 x 1024, as columns of run lengths; the peer is
pycocotools' C code on the same run lengths. Evaluation: `--images` pictures with 100 detections and about 10 truths.
Ensemble: three models with 300 instances each in every one of `--ensemble-images` pictures of 1024 x 1024, of five
categories, most of them found by all three with masks moved by some pixels; matched by masks. What it needs is told for
a fifth of the pictures and for all, the outcome's own columns (about 70 bytes an instance) included. Head: the layers
of a mask head on 200 RoIs, as `models/mask_heads.py` runs them and with RoIs in the layout that they are pooled in.
Memory is what a fresh process needs beyond its imports and inputs (peak resident set); time is processor time of one
thread, the median of the rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from scantling.combine.ensemble import EnsembleConfig, EnsembleMethod, ensemble_detections
from scantling.combine.mask_ensemble import MASK_METHODS
from scantling.data.coco import ReadOptions, parse_coco
from scantling.evaluate.coco_eval import evaluate_results
from scantling.models.mask_heads import MaskHead, MaskHeadConfig
from scantling.ops.masks import paste_masks
from scantling.ops.overlaps import find_pairs
from scantling.ops.rle import patch_to_rle
from scantling.structures.detections import Detections, object_column

INSTANCES, SCALES, SIDE, PICTURE = 100, 7, 28, (2624, 2624)


def soft_masks(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft masks (S, N, M, M) of every test size, blobs with soft edges, and boxes (N, 4)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1
    radius = rng.uniform(0.6, 1.0, (SCALES, INSTANCES, 1, 1))
    soft = 1 / (1 + np.exp(8 * (np.hypot(x, y)[None, None] - radius)))
    sides = np.exp(rng.uniform(np.log(40), np.log(1600), (INSTANCES, 2)))
    corner = rng.uniform(0, 1, (INSTANCES, 2)) * (np.array(PICTURE) - sides)
    boxes = np.concatenate([corner, corner + sides], axis=1)
    return torch.from_numpy(soft).float(), torch.from_numpy(boxes).float()


def ours_pasted() -> list[dict[str, object]]:
    """Run lengths by way of patches."""
    soft, boxes = soft_masks()
    return paste_masks(soft.mean(dim=0), boxes, PICTURE)


def full_frames_pasted() -> list[dict[str, object]]:
    """Run lengths by way of one full frame per instance and test size, averaged."""
    soft, boxes = soft_masks()
    frames = torch.stack([paste_masks_in_image(s[:, None], boxes, PICTURE)[:, 0] for s in soft[:1]])
    return [coco_mask.encode(np.asfortranarray((f >= 0.5).numpy().astype(np.uint8))) for f in frames.mean(0)]


def peak_of(work: Callable[[], object]) -> float:
    """MiB a fresh process needs for this beyond what it had before."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (work,))


def _measured(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def blobs(rng: np.random.Generator, number: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Run lengths of ellipses."""
    rles = []
    for _ in range(number):
        h, w = (int(side) for side in np.exp(rng.uniform(np.log(20), np.log(250), 2)))
        y, x = np.mgrid[:h, :w]
        patch = (2 * y / h - 1) ** 2 + (2 * x / w - 1) ** 2 <= 1
        corner = int(rng.integers(0, size_hw[1] - w)), int(rng.integers(0, size_hw[0] - h))
        rles.append(patch_to_rle(patch, corner, size_hw))
    return object_column(rles)


def overlap_seconds(rounds: int) -> tuple[float, float, float]:
    """Processor seconds of ours and of pycocotools' code, and the largest difference."""
    rng = np.random.default_rng(1)
    ours, theirs = (blobs(rng, 300, (1024, 1024)) for _ in range(2))
    keys = np.zeros(300, dtype=np.int64)
    crowd = [0] * 300
    spent: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        begin = time.process_time()
        found = find_pairs(keys, ours, keys, theirs)
        spent["ours"].append(time.process_time() - begin)
        begin = time.process_time()
        table = np.asarray(coco_mask.iou(ours.tolist(), theirs.tolist(), crowd))
        spent["peer"].append(time.process_time() - begin)
    dense = np.zeros_like(table)
    dense[found.first, found.second] = found.iou
    own, peer = (statistics.median(spent[name]) for name in ("ours", "peer"))
    return own, peer, float(np.abs(dense - table).max())


def evaluated(images: int = 1000) -> None:
    """Mask AP and AR with intervals of many pictures; inputs are made here too and count as input, not as need."""
    rng = np.random.default_rng(2)
    size_hw = (512, 512)
    shapes = blobs(rng, 400, size_hw).tolist()
    boxes = np.asarray(coco_mask.toBbox(shapes)).tolist()
    records = [{"id": i, "file_name": f"{i}.jpg", "width": 512, "height": 512} for i in range(images)]
    truth = [
        {
            "id": n,
            "image_id": n % images,
            "category_id": 1 + s % 5,
            "bbox": boxes[s],
            "segmentation": shapes[s],
        }
        for n, s in enumerate(rng.integers(0, 400, 10 * images).tolist(), 1)
    ]
    categories = [{"id": k, "name": str(k)} for k in range(1, 6)]
    content = {"images": records, "annotations": truth, "categories": categories}
    dataset = parse_coco(content, Path("truth.json"), Path(), ReadOptions(task="segmentation"))
    results = [
        {
            "image_id": n % images,
            "category_id": 1 + s % 5,
            "score": float(score),
            "bbox": boxes[s],
            "segmentation": shapes[s],
        }
        for n, (s, score) in enumerate(
            zip(rng.integers(0, 400, 100 * images).tolist(), rng.random(100 * images), strict=True)
        )
    ]
    evaluate_results(dataset, results, iou_type="segm", bootstrap=1000)


def three_models(images: int, instances: int = 300) -> dict[str, Detections]:
    """Three models' instances in the same images; two of three are of an object that all of them find."""
    rng, size_hw, places = np.random.default_rng(3), (1024, 1024), 600
    patches, corners = [], []
    for _ in range(places):
        h, w = (int(side) for side in np.exp(rng.uniform(np.log(20), np.log(250), 2)))
        y, x = np.mgrid[:h, :w]
        patches.append((2 * y / h - 1) ** 2 + (2 * x / w - 1) ** 2 <= 1)
        corners.append(rng.integers(8, [size_hw[1] - w - 8, size_hw[0] - h - 8]))
    seen = [rng.choice(places, instances, replace=False) for _ in range(40)]
    members = {}
    for name in ("first", "second", "third"):
        moved = [tuple((corner + rng.integers(-4, 5, 2)).tolist()) for corner in corners]
        masks = object_column([patch_to_rle(*each, size_hw) for each in zip(patches, moved, strict=True)])
        boxes = np.array(
            [(x, y, x + p.shape[1], y + p.shape[0]) for (x, y), p in zip(moved, patches, strict=True)]
        )
        own = np.concatenate(
            [
                np.where(
                    rng.random(instances) < 2 / 3, seen[image % len(seen)], rng.integers(0, places, instances)
                )
                for image in range(images)
            ]
        )
        members[name] = Detections(
            images=np.repeat(np.arange(images), instances),
            labels=own % 5,
            scores=rng.uniform(0.01, 1, len(own)),
            boxes=boxes[own].astype(np.float64),
            masks=masks[own],
        )
    return members


def ensembled(method: EnsembleMethod, images: int) -> tuple[float, float, int]:
    """Processor seconds, MiB needed beyond the inputs, and instances that come out."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_ensembled, (method, images))


def _ensembled(method: EnsembleMethod, images: int) -> tuple[float, float, int]:
    members, names = three_models(images), [str(label) for label in range(5)]
    config = EnsembleConfig(method=method, weights={"first": 1.0, "second": 0.8, "third": 0.7})
    ensemble_detections(
        {name: member[:300] for name, member in members.items()}, config, names
    )  # imports, caches
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = ensemble_detections(members, config, names)
    spent = time.process_time() - begin
    return spent, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, len(found)


def print_ensembles(images: int, methods: Sequence[EnsembleMethod]) -> None:
    """A row for each method of masks."""
    for method in methods:
        spent, need, count = ensembled(method, images)
        few = ensembled(method, images // 5)
        print(f"ensemble, {method}, 3 x 300 instances x {images} images: {spent:.1f} s, {need:.0f} MiB;")
        print(f"  {images // 5} images: {few[0]:.1f} s, {few[1]:.0f} MiB; {3 * 300 * images} become {count}")


def head_seconds(channels: int, convs: int, rounds: int) -> tuple[float, float]:
    """Processor seconds of a mask head on 200 RoIs: as it is, and without a change of layout."""
    head = MaskHead(channels, (4,), 5, MaskHeadConfig(channels=channels, num_convs=convs)).eval()
    pooled = torch.randn(200, channels, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    ways = (lambda: head.draw(head.features(pooled)), lambda: head.draw(head.convs(pooled)))
    spent: tuple[list[float], ...] = ([], [])
    with torch.no_grad():
        for _ in range(rounds):
            for way, seconds in zip(ways, spent, strict=True):
                begin = time.process_time()
                way()
                seconds.append(time.process_time() - begin)
    return statistics.median(spent[0]), statistics.median(spent[1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--ensemble-images", type=int, default=500)
    parser.add_argument("--methods", nargs="+", default=MASK_METHODS, choices=MASK_METHODS)
    parser.add_argument("--only", choices=["ensemble", "head"], help="Leave the other rows out.")
    arguments = parser.parse_args()
    if arguments.only != "ensemble":
        for channels, convs in ((64, 2), (256, 4)):
            own, plain = head_seconds(channels, convs, arguments.rounds)
            told = f"{own * 1000:.0f} ms, in the layout of pooling {plain * 1000:.0f} ms, ratio {own / plain:.2f}"
            print(f"head of {convs} x {channels} channels on 200 RoIs: {told}")
    if arguments.only == "head":
        return
    print_ensembles(arguments.ensemble_images, arguments.methods)
    if arguments.only == "ensemble":
        return
    ours, peer = peak_of(ours_pasted), peak_of(full_frames_pasted)
    print(
        f"paste, {INSTANCES} instances on {PICTURE[0]} x {PICTURE[1]}: {ours:.0f} MiB; full frames of one of"
    )
    print(f"  the {SCALES} sizes: {peer:.0f} MiB, {peer / max(ours, 1):.1f} x")
    own, theirs, difference = overlap_seconds(arguments.rounds)
    print(
        f"mask IoU 300 x 300: {own * 1000:.1f} ms, pycocotools {theirs * 1000:.1f} ms, ratio {own / theirs:.2f},"
    )
    print(f"  largest difference {difference:g}")
    begin = time.process_time()
    need = _measured(lambda: evaluated(arguments.images))
    print(
        f"evaluation of {arguments.images} images x 100 masks with intervals, inputs included: {need:.0f} MiB,"
    )
    print(f"  {time.process_time() - begin:.0f} s")


if __name__ == "__main__":
    main()

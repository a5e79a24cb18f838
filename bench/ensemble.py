"""Fusion of results files against `ensemble-boxes`, and how it scales to files of COCO's size.

    python bench/ensemble.py [--images 500] [--peer-images 50] [--rounds 3] [--large 5000]

Five members find the same generated objects with errors of their own. The first table: 300 boxes per image and member,
22 categories. The peer is called once per image as its documentation says, on boxes already divided by the image's
size; what numba compiles is compiled before. It is timed on some of the images, spread over all, and scaled to all of
them. Ours takes the columns of all images and gives columns. Time is processor time of this process with one thread per
library; the median over rounds is shown. "Files to file" is the verb `ensemble` without its start: five JSON files
read and checked, fused, written. A box differs if it is off by more than 1e-6 of the image's side, or its score by as
much. The peer rounds the boxes of its clusters to single precision while it goes on comparing with them, and may
therefore put a box into the other of two clusters that it overlaps almost equally; so the largest difference is that to
the same peer in double precision.

The second table: 80 categories, 100 boxes per image and member, a process for each number of images. Memory is what
resident memory rises to above where it stood before, the boxes of all members being loaded: for the fusion that
includes the result, for "files to file" the largest file as it was parsed and the columns of all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from scantling.combine.ensemble import EnsembleConfig, ensemble_detections
from scantling.combine.members import EnsembleSummary, NamedFile, ensemble_files
from scantling.data.coco import read_coco
from scantling.data.coco.dataset import CocoDataset
from scantling.data.coco.results import write_results
from scantling.data.detections import results_of
from scantling.settings.paths import ResultsFile
from scantling.structures.detections import Detections

SIDE = 1024.0
IOU_THRESHOLD = 0.55
NUM_MEMBERS = 5
TOLERANCE = 1e-6
Members = dict[str, Detections]
Rows = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def generate(num_images: int, num_categories: int, per_image: int) -> Members:
    """Boxes of five members: each finds objects, some of them several times, displaced by about a tenth."""
    rng = np.random.default_rng(0)
    num_objects = per_image // 3
    centres = rng.uniform(0, SIDE, (num_images, num_objects, 2))
    sizes = np.exp(rng.uniform(np.log(16), np.log(300), (num_images, num_objects, 2)))
    labels = rng.integers(0, num_categories, (num_images, num_objects))
    members = {}
    for name in "abcde"[:NUM_MEMBERS]:
        image = np.repeat(np.arange(num_images), per_image)
        seen = rng.integers(0, num_objects, len(image))
        size = sizes[image, seen] * np.exp(rng.normal(0, 0.12, (len(image), 2)))
        centre = centres[image, seen] + rng.normal(0, 0.1, (len(image), 2)) * size
        boxes = np.clip(np.concatenate([centre - size / 2, centre + size / 2], axis=1), 0, SIDE)
        real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        members[name] = Detections(
            images=image[real],
            labels=labels[image, seen][real],
            scores=(1e-3 + 0.999 * rng.beta(0.6, 2.0, len(image)))[
                real
            ],  # no ties: the peer's order has none
            boxes=boxes[real],
        )
    return members


def peer_inputs(members: Members, image: int) -> list[list[NDArray[np.float64]]]:
    """Boxes, scores and labels of one image, each a list over members."""
    found = [member[member.images == image] for member in members.values()]
    return [[f.boxes / SIDE for f in found], [f.scores for f in found], [f.labels for f in found]]


def run_peer(function: Callable[..., Rows], inputs: list[list[list[NDArray[np.float64]]]]) -> list[Rows]:
    return [function(*lists, iou_thr=IOU_THRESHOLD) for lists in inputs]


def differences(ours: Detections, theirs: list[Rows], images: list[int]) -> NDArray[np.float64]:
    """Of each of the peer's boxes to the most alike of ours in label, score and relative coordinates.

    Infinite in an image in which the two have unequally many.
    """
    parts = []
    for image, (boxes, scores, labels) in zip(images, theirs, strict=True):
        own = ours[ours.images == image]
        table = np.column_stack([labels, scores, boxes])
        mine = np.column_stack([own.labels, own.scores, own.boxes / SIDE])
        nearest = np.abs(table[:, None] - mine[None]).max(axis=2).min(axis=1)
        parts.append(nearest if len(mine) == len(table) else np.full(len(table), np.inf))
    return np.concatenate(parts)


class DoubleNumpy:
    """NumPy for a module that should compute in double precision where it asks for single."""

    float32 = np.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def in_double(function: Callable[..., Rows], inputs: list[list[list[NDArray[np.float64]]]]) -> list[Rows]:
    """What the peer gives if it does not round the boxes of its clusters to single precision."""
    modules = [sys.modules[f"ensemble_boxes.ensemble_boxes_{name}"] for name in ("wbf", "nmw")]
    for module in modules:
        module.np = DoubleNumpy()  # type: ignore[attr-defined]
    rows = run_peer(function, inputs)
    for module in modules:
        module.np = np  # type: ignore[attr-defined]
    return rows


def seconds(job: Callable[[], object], rounds: int) -> float:
    """Median processor seconds."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        job()
        times.append(time.process_time() - started)
    return statistics.median(times)


def data_set(folder: Path, num_images: int, names: list[str]) -> CocoDataset:
    """The images and categories that the boxes are of, without labels."""
    side = int(SIDE)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": side, "height": side} for i in range(num_images)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    file = folder / "data.json"
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return read_coco(file, folder)


def write_files(folder: Path, members: Members, dataset: CocoDataset) -> list[NamedFile]:
    """The members as results files."""
    files = [NamedFile(name, ResultsFile(folder / f"{name}.json")) for name in members]
    for (_, file), member in zip(files, members.values(), strict=True):
        write_results(results_of(member, dataset), file.path, dataset)
    return files


def files_to_file(members: Members, num_images: int, names: list[str]) -> float:
    """Seconds from results files to a results file."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = data_set(folder, num_images, names)
        files = write_files(folder, members, dataset)
        return seconds(lambda: ensemble_files(files, dataset, EnsembleConfig(), folder / "fused.json"), 1)


def against_peer(num_images: int, peer_images: int, rounds: int) -> None:
    """The first table."""
    import ensemble_boxes  # not for the second table: numba needs much memory

    num_categories = 22
    names = [f"category {k}" for k in range(num_categories)]
    members = generate(num_images, num_categories, 300)
    images = np.linspace(0, num_images - 1, min(peer_images, num_images)).round().astype(int).tolist()
    inputs = [peer_inputs(members, image) for image in images]
    title = f"{NUM_MEMBERS} x 300 boxes, {num_images} images"
    write(f"| {title} | seconds | times as fast | differing boxes | largest difference, peer in double |")
    write("|---|---:|---:|---:|---:|")
    for method, function in (
        ("wbf", ensemble_boxes.weighted_boxes_fusion),
        ("nmw", ensemble_boxes.non_maximum_weighted),
        ("nms", ensemble_boxes.nms),
        ("soft_linear", partial(ensemble_boxes.soft_nms, method=1)),
    ):
        run_peer(function, inputs[:1])
        measured = seconds(lambda f=function: run_peer(f, inputs), rounds)  # type: ignore[misc]
        theirs = measured * num_images / len(images)
        config = EnsembleConfig(method=method, iou_threshold=IOU_THRESHOLD, own_duplicates="keep")
        ours = seconds(lambda c=config: ensemble_detections(members, c, names), rounds)  # type: ignore[misc]
        shown = " | "  # the peer's soft-NMS gives scores before their decay
        if method != "soft_linear":
            found = ensemble_detections(members, config, names)
            single = differences(found, run_peer(function, inputs), images)
            double = differences(found, in_double(function, inputs), images)
            shown = f"{(single > TOLERANCE).sum()} of {len(single)} | {double.max():.0e}"
        write(f"| {method}: ensemble-boxes, {len(images)} images scaled | {theirs:.2f} | 1 | | |")
        write(f"| {method}: scantling | {ours:.2f} | **{theirs / ours:.1f}** | {shown} |")
        if method == "wbf":
            config = EnsembleConfig(iou_threshold=IOU_THRESHOLD)
            ours = seconds(lambda c=config: ensemble_detections(members, c, names), rounds)  # type: ignore[misc]
            write(f"| wbf: scantling, own duplicates dropped | {ours:.2f} | **{theirs / ours:.1f}** | | |")
    whole = files_to_file(members, num_images, names)
    write(f"| wbf: scantling, files to file | {whole:.1f} | | | |")


def measure_large(num_images: int) -> None:
    """Print the numbers of one row of the second table."""
    num_categories, per_image = 80, 100
    members = generate(num_images, num_categories, per_image)
    names = [f"category {k}" for k in range(num_categories)]
    config = EnsembleConfig()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = data_set(folder, num_images, names)
        files = write_files(folder, members, dataset)
        found, seconds_fusing, grown_fusing = watched(lambda: ensemble_detections(members, config, names))
        num_boxes = sum(map(len, members.values()))
        members.clear()
        _, seconds_files, grown_files = watched(
            lambda: ensemble_files(files, dataset, config, folder / "fused.json")
        )
    numbers = num_boxes, len(found), seconds_fusing, grown_fusing, seconds_files, grown_files
    write(json.dumps(numbers))


def watched(job: Callable[[], Detections | EnsembleSummary]) -> tuple[Any, float, float]:
    """What a job gives, its processor seconds, and by how many MiB resident memory rose at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = memory_mib("VmRSS"), time.process_time()
    result = job()
    return result, time.process_time() - started, memory_mib("VmHWM") - before


def memory_mib(name: str) -> float:
    """`VmRSS`, resident memory, or `VmHWM`, its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def large_rows(largest: int) -> None:
    """The second table."""
    write("\n| images | boxes | fused | seconds | MiB | files to file, seconds | MiB |")
    write("|---:|---:|---:|---:|---:|---:|---:|")
    for num_images in (largest // 4, largest // 2, largest):
        command = [sys.executable, __file__, "--measure", str(num_images)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        boxes, fused, *costs = json.loads(done.stdout)
        shown = " | ".join(
            f"{cost:.1f}" if index % 2 == 0 else f"{cost:.0f}" for index, cost in enumerate(costs)
        )
        write(f"| {num_images} | {boxes:,} | {fused:,} | {shown} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=500, help="images of the first table")
    parser.add_argument("--peer-images", type=int, default=50, help="of these, fused by the peer")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side fuses")
    parser.add_argument("--large", type=int, default=5000, help="images of the second table; 0 leaves it out")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_large(options.measure)
    else:
        against_peer(options.images, options.peer_images, options.rounds)
        if options.large:
            large_rows(options.large)


def write(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

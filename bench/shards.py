"""Very many images on two machines that come and go, against one process: every image once, in flat memory.

    python bench/shards.py IMAGES [--images 20000] [--size 250] [--kills 2] [--alone 2000]

IMAGES is a folder of images, of which hard links are made until there are enough. A small Faster R-CNN of random
weights predicts them at 96 pixels, one thread a process. Ray simulates two machines of one processor on this one; they
are killed without a word, and others take their place, after a fifth and two fifths of the images. Alone, one process
does a part of the same images, so that both have the same processors; images a second of both, and their ratio. Memory
is the largest resident set of the processes that predict, in the first and the last quarter of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from scantling import api
from scantling.models.zoo import ModelConfig, build_model
from scantling.run.leases import read_log
from scantling.train.checkpoint import CheckpointMeta, model_tensors, save_checkpoint

SETTINGS = (
    "scales=96",
    "long_side=128",
    "batch_size=8",
    "suppress={score_threshold: 0.05, max_per_image: 20}",
)
STORE = 100 * 2**20


def write_links(source: Path, folder: Path, number: int) -> None:
    """So many images, in folders of a thousand."""
    images = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for index in range(number):
        image = images[index % len(images)]
        place = folder / f"{index // 1000:03d}" / f"{index:06d}{image.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(image, place)
        except OSError:  # another file system
            place.write_bytes(image.read_bytes())


def write_detector(path: Path) -> None:
    """A detector that has learned nothing, which costs as much as one that has."""
    torch.manual_seed(0)
    config = ModelConfig(name="faster_rcnn_r18_small", backbone="resnet10t", num_test_proposals=100)
    meta = CheckpointMeta(
        kind="detector", class_names=("a", "b"), category_ids=(1, 2), model=config.model_dump(mode="json")
    )
    save_checkpoint(path, model_tensors(build_model(config, 2)), meta)


def count_done(folder: Path) -> int:
    """Images of the shards that are done."""
    return sum(json.loads(path.read_text())["images"] for path in folder.glob("shards/*/*/summary.json"))


class Watch:
    """Resident memory of the processes that do tasks, once a second."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(1.0):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    name = (status.parent / "cmdline").read_bytes().split(b"\0")[0]
                    if name.startswith(b"ray::shards"):
                        rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
                        self.samples.append((time.time(), int(rows["VmRSS"].split()[0])))
                except (OSError, ValueError, KeyError):
                    continue

    def largest(self) -> tuple[float, float]:
        """MiB in the first and in the last quarter of the time."""
        times = [when for when, _ in self.samples]
        start, end = min(times), max(times)
        quarter = (end - start) / 4
        first = max(size for when, size in self.samples if when <= start + quarter)
        last = max(size for when, size in self.samples if when >= end - quarter)
        return first / 1024, last / 1024


def on_two_machines(images: Path, out: Path, weights: Path, size: int, kills: int) -> tuple[float, Watch]:
    """Seconds of the prediction on a cluster whose machines are killed, and its memory."""
    from scantling.run.engines.ray import require_ray

    ray = require_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    total = sum(1 for _ in images.rglob("*.*"))
    failed = list[BaseException]()

    def predict() -> None:
        try:
            api.predict_shards(
                images,
                api.Shards(folder=out, size=size),
                checkpoint=weights,
                overrides=SETTINGS,
                device="cpu",
                jobs=api.Engine(name="ray", patience=20.0),
            )
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failed.append(error)

    killed, driver = 0, threading.Thread(target=predict)
    began = time.perf_counter()
    with Watch() as watch:
        driver.start()
        while driver.is_alive():
            if killed < kills and count_done(out) > total * (killed + 1) / 5:
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                cluster.add_node(num_cpus=1, object_store_memory=STORE)
                killed += 1
            time.sleep(1.0)
    seconds = time.perf_counter() - began
    ray.shutdown()
    cluster.shutdown()
    if failed:
        raise failed[0]
    if killed < kills:
        sys.stderr.write(f"only {killed} machines were killed\n")
    return seconds, watch


def check(out: Path, number: int) -> dict[str, Any]:
    """What came of it: images, and how often each shard was done."""
    done = Counter(entry["stage"] for entry in read_log(out) if entry["event"] == "done")
    over = sum(entry["event"] == "taken over" for entry in read_log(out))
    merged = api.merge(out, out.with_suffix(".jsonl"))
    return {
        "images": count_done(out),
        "missing": number - count_done(out),
        "shards done once": sum(count == 1 for count in done.values()),
        "shards done more than once": sum(count > 1 for count in done.values()),
        "taken over": over,
        "merged": merged.to_text(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="images")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=250, help="images of a shard")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--alone", type=int, default=2000, help="images that one process predicts")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_links(arguments.folder, root / "images", arguments.images)
        write_links(arguments.folder, root / "few", arguments.alone)
        write_detector(root / "weights.safetensors")
        began = time.perf_counter()
        api.predict_shards(
            root / "few",
            api.Shards(folder=root / "alone", size=arguments.size),
            checkpoint=root / "weights.safetensors",
            overrides=SETTINGS,
            device="cpu",
        )
        alone = arguments.alone / (time.perf_counter() - began)
        seconds, watch = on_two_machines(
            root / "images", root / "out", root / "weights.safetensors", arguments.size, arguments.kills
        )
        both = arguments.images / seconds
        first, last = watch.largest()
        rows = check(root / "out", arguments.images)
    sys.stdout.write(
        f"one process: {alone:.1f} images/s; two machines: {both:.1f} images/s, {both / alone:.2f} times\n"
    )
    sys.stdout.write(f"largest process, first quarter: {first:.0f} MiB; last quarter: {last:.0f} MiB\n")
    for title, value in rows.items():
        sys.stdout.write(f"{title}: {value}\n")


if __name__ == "__main__":
    main()

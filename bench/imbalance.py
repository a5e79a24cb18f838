"""What Seesaw loss and sampling give a class that is thirty times as rare as another, on generated scenes.

    python bench/imbalance.py [--seeds 3] [--train 200] [--val 400] [--epochs 5]

Every scene is noise with four to eight discs and squares in any colour. A disc has a dot in it, or, once for every
thirty with a dot, a bar: the rare class. Training and validation images have the same frequencies. A small Faster R-CNN
learns the scenes of a seed, made and trained with it, plainly, with Seesaw loss (without and with the normalised
classifier), with repeat-factor and with class-aware sampling: one `ablate` call per seed, which prints the paired
intervals over the images. At the end stand AP of the rare class and of all, means over the seeds, and their differences
to plain with 95 % intervals (Student's t over the seeds). A pass of repeat-factor sampling is longer; by how much is
printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from scantling import api
from scantling.data.coco import read_coco
from scantling.data.io import write_json
from scantling.data.samples.sampling import Sampler, SamplingConfig, labels_of
from vs_torchvision import interval

SIZE_HW = (96, 128)
CLASSES = ("dotted", "square", "barred")
FREQUENT_TO_RARE = 30
THRESHOLD = 0.5
FACTORS = {
    "seesaw": {"model.class_loss": "seesaw"},
    "seesaw-normalised": {"model.class_loss": "seesaw", "model.classifier": "normalised"},
    "repeat-factor": {"sampling.method": "repeat_factor", "sampling.threshold": THRESHOLD},
    "class-aware": {"sampling.method": "class_aware"},
}


def scene(rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[tuple[int, list[int]]]]:
    """A picture (H, W, 3), and class and box (xywh) of each object; objects do not touch."""
    height, width = SIZE_HW
    image = rng.normal(rng.uniform(60, 190), 12, (height, width, 3)).clip(0, 255).astype(np.uint8)
    objects: list[tuple[int, list[int]]] = []
    taken = np.zeros(SIZE_HW, bool)
    for _ in range(rng.integers(4, 9)):
        side = int(rng.integers(14, 31))
        x, y = int(rng.integers(1, width - side - 1)), int(rng.integers(1, height - side - 1))
        if taken[y - 1 : y + side + 1, x - 1 : x + side + 1].any():
            continue
        taken[y : y + side, x : x + side] = True
        # of 62 objects 31 are squares, 30 dotted discs and one is barred
        label = 1 if rng.random() < 0.5 else 2 * int(rng.random() < 1 / (FREQUENT_TO_RARE + 1))
        draw(image, label, x, y, side, rng)
        objects.append((label, [x, y, side, side]))
    return image, objects


def draw(image: NDArray[np.uint8], label: int, x: int, y: int, side: int, rng: np.random.Generator) -> None:
    """Paint one object over its box."""
    body, mark = (tuple(map(int, rng.integers(0, 256, 3))) for _ in range(2))
    if label == 1:
        cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), body, -1)
        return
    centre, radius = (x + side // 2, y + side // 2), side // 2 - 1
    cv2.circle(image, centre, radius, body, -1)
    if label == 0:
        cv2.circle(image, centre, max(2, side // 6), mark, -1)
        return
    angle = rng.uniform(0, np.pi)
    reach = 0.7 * radius * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple(map(int, np.round(np.array(centre) + sign * reach))) for sign in (-1, 1)]
    cv2.line(image, ends[0], ends[1], mark, max(2, side // 8))


def write_scenes(root: Path, counts: dict[str, int], seed: int) -> dict[str, list[int]]:
    """A COCO data set; for each split the objects of each class."""
    found = {}
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            image, objects = scene(rng)
            name = f"{split}_{index}.png"
            (root / "images").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "images" / name), image)
            images.append({"id": index, "file_name": name, "height": SIZE_HW[0], "width": SIZE_HW[1]})
            for label, box in objects:
                one = {"id": len(annotations) + 1, "image_id": index, "category_id": label, "bbox": box}
                annotations.append({**one, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"{split}.json", document)
        labels = [one["category_id"] for one in annotations]
        found[split] = [labels.count(label) for label in range(len(CLASSES))]
    return found


def recipe(epochs: int, bootstrap: int) -> dict[str, Any]:
    """A small Faster R-CNN and the factors; JSON is YAML."""
    detector = {
        "model": {"name": "faster_rcnn_r18_small", "backbone": "resnet10t"},
        "augment": {"short_side": SIZE_HW[0], "long_side": SIZE_HW[1], "vertical_flip": 0.5},
        "train": {
            "epochs": epochs,
            "batch_size": 4,
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup_steps": 20,
            "validate_every": epochs,
            "workers": 0,
        },
        "predict": {"scales": SIZE_HW[0], "long_side": SIZE_HW[1], "suppress": {"score_threshold": 0.001}},
    }
    return {
        "members": {"detector": detector},
        "evaluate": {"bootstrap": bootstrap},
        "ablation": {"factors": FACTORS},
    }


def measure(folder: Path, options: argparse.Namespace, seed: int) -> dict[str, tuple[float, float]]:
    """AP of the rare class and of all, by combination; what the images say about it is printed."""
    data, out, file = folder / "data", folder / "out", folder / "recipe.yaml"
    counts = write_scenes(data, {"train": options.train, "val": options.val}, seed)
    file.write_text(json.dumps(recipe(options.epochs, options.bootstrap)))
    summary = api.ablate(data, file, out, overrides=[f"seed={seed}"], device="cpu")
    dataset = read_coco(data / "annotations/train.json")
    ids = [image.id for image in dataset.images]
    config = SamplingConfig(method="repeat_factor", threshold=THRESHOLD)
    length = Sampler(config, ids, labels_of(dataset), seed=seed).length / len(ids)
    say(f"seed {seed}: objects {counts}; a pass of repeat-factor sampling is {length:.2f} times as long")
    say(summary.text + "\n")
    found = {}
    for path in sorted((out / "combinations").iterdir()):
        metrics = json.loads((path / "metrics.json").read_text())
        rare = metrics["categories"][CLASSES[2]]["bbox/AP"]
        found[path.name] = (float(rare or 0), float(metrics["bbox/AP"] or 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--val", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--bootstrap", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    rounds = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(Path(folder), options, seed))
    say(f"{'':18} {'AP rare':>8} {'difference':>22} {'AP':>8} {'difference':>22}")
    for name in ("base", *FACTORS):
        cells = []
        for place in (0, 1):
            values = [one[name][place] for one in rounds]
            differences = [one[name][place] - one["base"][place] for one in rounds]
            gain = "" if name == "base" else interval(differences)
            cells += [f"{np.mean(values):8.3f}", f"{gain:>22}"]
        say(f"{name:18} {' '.join(cells)}")
    say(f"{time.process_time() - started:.0f} s of processor time")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

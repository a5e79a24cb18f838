"""Label audit on generated scenes of which 10 % of the labels are wrong: does the ranking put those first?

python bench/audit.py                       simulated refiner and detector, several seeds
python bench/audit.py --refined F --predictions F --data FOLDER     a real refiner's and detector's output
python bench/audit.py --real --seeds 1      trains a small refiner and small cascades on three folds first
python bench/audit.py --real --device cuda --zoom 2 --batch 4 --epochs 25 --workers 1    on a GPU, images enlarged

What is ranked: every label (by its likeliest reason) and every detection that no label explains (`missing`). Faulty
are the labels that were changed or added, and the objects whose label was removed; a removed label that nothing
points at counts as ranked last. "precision at k": among the first k suspects, k the number of faults.
"""  # noqa: D208

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from refine_gain import SMALL
from scantling import api
from scantling.audit.suspects import AuditConfig, find_suspects
from scantling.data.coco import CocoDataset, read_coco, read_results
from scantling.data.detections import detections_of
from scantling.data.truths import truths_of
from scantling.ops.overlaps import pairwise_iou
from scantling.refine.apply import ApplyConfig, load_refiner, refine_truth
from scantling.settings import yaml as strict_yaml
from scantling.structures.detections import Detections
from scantling.synth.synth import LabelNoise, SynthConfig, write_synth

NOISE = LabelNoise(box_jitter=0.04, wrong_class=0.02, missing=0.02, spurious=0.02, splits=("train", "val"))
REASON_OF = {"box_jitter": "loose", "wrong_class": "class", "missing": "missing", "spurious": "spurious"}
EVERYTHING = AuditConfig(min_score=0.0)
MEMBER = "cascade"
TRAIN_SIDES, TEST_SIDES, LONG_SIDE = (208, 272), (208, 240, 288), 360
"""Short and long sides of what the detector is shown of images of 240 x 320, before `--zoom`."""
RECIPE = {
    "about": "A small cascade on three folds and a small refiner, for the audit of generated scenes.",
    "members": {
        MEMBER: {
            "model": {
                "name": "cascade_rcnn_r18_small",
                "backbone": "resnet10t",
                "anchor_scales": [2.5, 5.0],
                "num_rois": 128,
            },
            "augment": {"brightness": 0.2},
            "train": {
                "optimizer": "adamw",
                "lr": 1e-3,
                "weight_decay": 0.05,
                "schedule": "cosine",
                "warmup_steps": 30,
                "validate_every": 1000,
            },
            "predict": {
                "batch_size": 4,
                "suppress": {"score_threshold": 0.001},
            },
        }
    },
    "refine": {**SMALL, "gate": None},
    "audit": {},
    "evaluate": {"bootstrap": 0},
}
"""What `--real` runs: everything from random weights."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """Labels with known faults."""

    given: CocoDataset
    clean: CocoDataset
    faults: list[dict[str, Any]]


def make_scenes(folder: Path, count: int, seed: int, noise: LabelNoise = NOISE) -> Scenes:
    """Write scenes with faulty labels, and read them."""
    file = folder / "annotations" / "train.json"
    if not file.is_file():
        write_synth(folder, SynthConfig(noise=noise), splits={"train": count, "val": 30}, seed=seed)
    return Scenes(
        given=read_coco(file, folder / "images"),
        clean=read_coco(file.with_name("train_clean.json"), folder / "images"),
        faults=json.loads(file.with_name("train_corruptions.json").read_text(encoding="utf-8")),
    )


# ---------------------------------------------------------------- simulated refiner and detector


def simulate_refiner(scenes: Scenes, rng: np.random.Generator) -> Floats:
    """Refined boxes of all labels: mean IoU with the truth about 0.9, drawn a little towards a wrong label."""
    labels, truth = truths_of(scenes.given), _truth_boxes(scenes)
    sides = np.tile(labels.boxes[:, 2:] - labels.boxes[:, :2], 2)
    has_object = np.isfinite(truth).all(axis=1)
    noise = _hardness(labels.ids)[:, None] * rng.normal(0, 0.02, (len(labels), 4)) + _shared(labels.ids)
    refined = np.where(has_object[:, None], truth + 0.15 * (labels.boxes - truth) + noise * sides, 0)
    astray = labels.boxes + rng.normal(0, 0.12, (len(labels), 4)) * sides
    return np.where(has_object[:, None], refined, astray)


def simulate_detector(scenes: Scenes, rng: np.random.Generator) -> Detections:
    """Detections with misses (more of some categories), confusions, false positives and inexact boxes."""
    truth = truths_of(scenes.clean)
    sides = np.tile(truth.boxes[:, 2:] - truth.boxes[:, :2], 2)
    num_classes = len(scenes.clean.categories)
    recall = 0.97 - 0.25 * (truth.labels % 4 == 0)
    found = rng.random(len(truth)) < recall
    strength = np.where(found, rng.normal(2.0, 1.2, len(truth)), rng.normal(-2.5, 0.8, len(truth)))
    noise = _hardness(truth.ids)[:, None] * rng.normal(0, 0.03, (len(truth), 4)) + _shared(truth.ids)
    confused = rng.random(len(truth)) < 0.03
    seen = Detections(
        images=truth.images,
        labels=np.where(confused, (truth.labels + 1) % num_classes, truth.labels),
        scores=1 / (1 + np.exp(-np.where(confused, strength - 1.5, strength))),
        boxes=truth.boxes + noise * sides,
    )
    second = seen[confused]
    own = Detections(
        images=second.images,
        labels=truth.labels[confused],
        scores=second.scores * rng.uniform(0.05, 0.9, len(second)),
        boxes=second.boxes,
    )
    model = rng.integers(len(truth), size=len(scenes.clean))
    stray = truth.boxes[model] + np.tile(rng.uniform(-60, 60, (len(model), 2)), 2)
    false = Detections(
        images=np.arange(len(model)),
        labels=truth.labels[model],
        scores=1 / (1 + np.exp(-rng.normal(-1.5, 1.2, len(model)))),
        boxes=np.clip(stray, 0, 320),
    )
    return Detections.cat([seen, own, false])


def _truth_boxes(scenes: Scenes) -> Floats:
    """(N, 4) box of the object of every label, NaN for labels of nothing."""
    clean = truths_of(scenes.clean)
    at = {identifier: row for row, identifier in enumerate(clean.ids)}
    boxes = np.concatenate([clean.boxes, np.full((1, 4), np.nan)])
    return boxes[[at.get(identifier, -1) for identifier in truths_of(scenes.given).ids]]


def _hardness(ids: tuple[Any, ...]) -> Floats:
    """How ill-defined the extent of each object is, the same for refiner and detector."""
    return np.array([np.random.default_rng([7, int(i)]).lognormal(0, 0.5) for i in ids])


def _shared(ids: tuple[Any, ...]) -> Floats:
    """Error that refiner and detector have in common, as a share of the sides."""
    return np.array([np.random.default_rng([8, int(i)]).normal(0, 0.015, 4) for i in ids]).reshape(-1, 4)


# ---------------------------------------------------------------- the measurement


def measure(scenes: Scenes, refined: Floats | None, detections: Detections | None) -> dict[str, float]:
    """Area under the ROC, overall and by kind of fault, and precision among the first k."""
    audit = find_suspects(scenes.given, refined, detections, EVERYTHING)
    labels = truths_of(scenes.given)
    best = {s.annotation_id: s.score for s in audit.suspects if s.annotation_id is not None}
    kind_of = {f["annotation_id"]: f["kind"] for f in scenes.faults if f["kind"] != "missing"}
    objects = [i for i, is_object in zip(labels.ids, labels.is_object, strict=True) if is_object]
    scores = np.array([best.get(i, 0.0) for i in objects])
    kinds = np.array([kind_of.get(i, "") for i in objects])
    found, false = _missing_scores(scenes, [s for s in audit.suspects if s.reason == "missing"])
    good = np.concatenate([scores[kinds == ""], false])
    result = {"overall": auc(np.concatenate([scores[kinds != ""], found]), good)}
    result |= {
        kind: auc(scores[kinds == kind], scores[kinds == ""]) for kind in REASON_OF if kind != "missing"
    }
    result["missing"] = auc(found, good)
    faults = [1] * int((kinds != "").sum()) + [1] * int((found > 0).sum())
    every = sorted(
        [*zip(scores, kinds != "", strict=True), *((s, True) for s in found), *((s, False) for s in false)],
        key=lambda pair: -pair[0],
    )
    number = len(scenes.faults)
    result["precision at k"] = float(np.mean([is_fault for _, is_fault in every[:number]]))
    return result | {"faults": float(number), "labels": float(len(labels)), "pointed at": float(len(faults))}


def _missing_scores(scenes: Scenes, suspects: list[Any]) -> tuple[Floats, Floats]:
    """Score of the suspect at every removed label (0 for none), and of the suspects where nothing was removed."""
    removed = [fault for fault in scenes.faults if fault["kind"] == "missing"]
    found, used = np.zeros(len(removed)), set()
    for number, fault in enumerate(removed):
        x, y, w, h = fault["clean"]["bbox"]
        for index, suspect in enumerate(suspects):
            if suspect.image_id == fault["image_id"] and index not in used:
                box = np.array([[x, y, x + w, y + h]], dtype=float)
                if pairwise_iou(box, np.array([suspect.suggested_box]))[0, 0] >= 0.5:
                    found[number] = suspect.score
                    used.add(index)
                    break
    return found, np.array([s.score for index, s in enumerate(suspects) if index not in used])


def auc(positives: Floats, negatives: Floats) -> float:
    """Probability that a positive outranks a negative; ties count half."""
    if not len(positives) or not len(negatives):
        return float("nan")
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left") + np.searchsorted(
        ordered, positives, side="right"
    )
    return float(below.mean() / (2 * len(negatives)))


# ---------------------------------------------------------------- a real refiner and detectors


def write_recipe(folder: Path, given: argparse.Namespace, seed: int) -> tuple[Path, list[str]]:
    """The recipe of `--real`, and what is set in it."""
    member = f"members.{MEMBER}"
    low, high, *test_sides = (round(given.zoom * side) for side in (*TRAIN_SIDES, *TEST_SIDES))
    long_side = round(given.zoom * LONG_SIDE)
    settings = [
        f"{member}.train.epochs={given.epochs}",
        f"{member}.train.batch_size={given.batch}",
        f"{member}.train.workers={given.workers}",
        f"{member}.augment.short_side={{min: {low}, max: {high}}}",
        f"{member}.augment.long_side={long_side}",
        f"{member}.predict.scales={test_sides}",
        f"{member}.predict.long_side={long_side}",
        f"refine.train.epochs={given.refiner_epochs}",
        f"refine.train.workers={given.workers}",
        f"data.folds={given.folds}",
        f"seed={seed}",
    ]
    recipe = folder / "audit.yaml"
    recipe.write_text(strict_yaml.dump(RECIPE), encoding="utf-8")
    return recipe, [*settings, *given.overrides]


def run_recipe(folder: Path, given: argparse.Namespace, seed: int) -> tuple[Floats, Detections]:
    """What a run with folds and a refiner says of its own faulty training labels."""
    out = folder / "run"
    recipe, settings = write_recipe(folder, given, seed)
    api.run(recipe, folder, out, overrides=settings, device=given.device)
    scenes = make_scenes(folder, given.images, seed)
    refiner = load_refiner(out / "refine" / "refiner" / "best.safetensors", given.device)
    refined = refine_truth(scenes.given, refiner, ApplyConfig(iterations=EVERYTHING.iterations))
    found = read_results(out / "members" / MEMBER / "out-of-fold.json", scenes.given)
    return refined, detections_of(found, scenes.given)


def evidence(given: argparse.Namespace, folder: Path, scenes: Scenes, seed: int) -> tuple[Floats, Detections]:
    """Refined boxes and detections: of files, of trainings, or simulated."""
    rng = np.random.default_rng(seed)
    if given.real:
        return run_recipe(folder, given, seed)
    refined = load_file(given.refined)["boxes"] if given.refined else simulate_refiner(scenes, rng)
    if given.predictions is None:
        return refined, simulate_detector(scenes, rng)
    return refined, detections_of(read_results(given.predictions, scenes.given), scenes.given)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--data", type=Path, help="folder of the scenes, made if need be; else a temporary one"
    )
    parser.add_argument(
        "--refined", type=Path, help="safetensors with `boxes` (N, 4): refine_truth of the labels"
    )
    parser.add_argument("--predictions", type=Path, help="COCO results on the labelled images, out of fold")
    parser.add_argument("--real", action="store_true", help="train a refiner and detectors")
    parser.add_argument("--epochs", type=int, default=20, help="of the detectors")
    parser.add_argument("--batch", type=int, default=2, help="images of a step of the detectors")
    parser.add_argument(
        "--zoom", type=float, default=1.0, help="by how much the detectors see the images enlarged"
    )
    parser.add_argument("--refiner-epochs", type=int, default=120)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY.PATH=VALUE")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    given = parse()
    columns = ("overall", *REASON_OF, "precision at k", "faults", "labels")
    print(f"| evidence | seed | {' | '.join(columns)} |")  # noqa: T201 - a script
    print("|---|---|" + "---:|" * len(columns))  # noqa: T201
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        folder = given.data or Path(tempfile.mkdtemp()) / "scenes"
        scenes = make_scenes(folder, given.images, seed)
        refined, found = evidence(given, folder, scenes, seed)
        for name, pair in {
            "both": (refined, found),
            "refiner": (refined, None),
            "detector": (None, found),
        }.items():
            row = measure(scenes, *pair)
            cells = [f"{row[c]:.0f}" if c in ("faults", "labels") else f"{row[c]:.3f}" for c in columns]
            print(f"| {name} | {seed} | {' | '.join(cells)} |")  # noqa: T201


if __name__ == "__main__":
    main()

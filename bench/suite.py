"""What seven test sizes cost a detector of masks, and what a suite costs beyond the runs of its sets.

    python bench/suite.py [--rounds 3] [--only sizes|suite]

Test sizes: a small HTC with random weights on pictures of 512 x 640, at the seven sizes of the VISION solution divided
by four (256 to 1024, boxes merged, the masks of the 100 best averaged), against 512 alone. Suite: what it adds to the
runs of its sets, and what it costs when there is nothing to do. Memory is what a fresh process needs beyond its imports
(peak resident set); time is processor time of one thread, of the suite the median of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from masks import peak_of
from scantling.data.coco import ImageRecord
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig, Predictor
from scantling.recipe.recipe import parse_recipe
from scantling.recipe.suite import Suite
from scantling.run.pipeline import run_recipe
from scantling.run.suite import run_suite
from scantling.synth.synth import SynthConfig, write_synth

SEVEN, ONE = (256, 384, 512, 640, 768, 896, 1024), (512,)
SUITE_RECIPE = """
members:
  tiny:
    model: {name: mask_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16, num_rois: 16}
    augment: {short_side: 96, long_side: 128}
    train: {epochs: 1, batch_size: 4, workers: 0}
    predict: {scales: 96, long_side: 128, suppress: {score_threshold: 0.0}}
  other:
    model: {name: mask_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16, num_rois: 16}
    augment: {short_side: 96, long_side: 128}
    train: {epochs: 1, batch_size: 4, workers: 0}
    predict: {scales: 96, long_side: 128, suppress: {score_threshold: 0.0}}
combine: {ensemble: {}}
"""


def predicted(scales: Sequence[int], images: int = 2) -> float:
    """Processor seconds for each picture at some test sizes; its 100 best boxes get masks."""
    torch.manual_seed(0)
    names = ("a", "b", "c")
    model = build_model(ModelConfig(name="htc_r18_small", backbone="resnet10t"), len(names))
    suppress = {"method": "soft_linear", "min_score": 1e-4, "score_threshold": 1e-5}
    config = PredictConfig.model_validate({"scales": tuple(scales), "long_side": 2048, "suppress": suppress})
    pixels = np.random.default_rng(0).integers(0, 255, (512, 640, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.png"
        Image.fromarray(pixels).save(path)
        records = [
            ImageRecord(id=n, file_name=path.name, path=path, size_hw=(512, 640)) for n in range(images)
        ]
        predictor = Predictor(model, config, names)
        begin = time.process_time()
        found = dict(predictor.predict_records(records))
        spent = (time.process_time() - begin) / images
    if min(len(each) for each in found.values()) < 100:
        raise RuntimeError("fewer than 100 boxes: the numbers are of less work")
    return spent


def suite_seconds(sets: int, rounds: int) -> tuple[float, float, float]:
    """Processor seconds for each set: of its run alone, of what the suite adds, and of a suite with nothing to do."""
    recipe = parse_recipe(SUITE_RECIPE, file="suite.yaml")
    alone, added, idle = list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(sets):
            splits = {"train": 4, "val": 8}
            write_synth(
                root / "sets" / f"{number}", SynthConfig(size_hw=(96, 128)), splits=splits, seed=number
            )
        run_recipe(recipe.on(data=root / "sets" / "0"), root / "warm", device="cpu")  # what is loaded once
        for turn in range(rounds):
            begin = time.process_time()
            for number in range(sets):
                own = recipe.on(data=root / "sets" / f"{number}")
                run_recipe(own, root / f"runs-{turn}" / f"{number}", device="cpu")
            middle = time.process_time()
            begun = partial(
                run_suite, Suite(name="bench", recipe=recipe), root / "sets", root / f"suite-{turn}"
            )
            begun(device="cpu")
            end = time.process_time()
            begun(device="cpu")
            alone.append((middle - begin) / sets)
            added.append((end - middle) / sets - alone[-1])
            idle.append((time.process_time() - end) / sets)
    return statistics.median(alone), statistics.median(added), statistics.median(idle)


def print_test_sizes() -> None:
    """Seven test sizes against one: time and memory."""
    small, large = (
        peak_of(partial(predicted, scales)) for scales in (ONE, SEVEN)
    )  # before this process is large
    one, seven = predicted(ONE), predicted(SEVEN)
    pixels = sum(scale**2 for scale in SEVEN) / ONE[0] ** 2
    print(
        f"one test size: {one:.2f} s and {small:.0f} MiB for an image; seven: {seven:.2f} s and {large:.0f} MiB,"
    )
    print(f"  time {seven / one:.1f} x for {pixels:.1f} x the pixels, memory {large / small:.1f} x")


def print_suite(rounds: int) -> None:
    """What a suite adds to its runs."""
    alone, added, idle = suite_seconds(3, rounds)
    print(
        f"a set alone: {alone:.2f} s; the suite adds {added:.2f} s for each; with nothing to do {idle:.2f} s for each"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("sizes", "suite"), help="One part alone.")
    arguments = parser.parse_args()
    if arguments.only != "suite":
        print_test_sizes()
    if arguments.only != "sizes":
        print_suite(arguments.rounds)


if __name__ == "__main__":
    main()

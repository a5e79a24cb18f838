"""Training a refiner: it undoes a known jitter, it resumes, and `auto` means what is documented."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from refine.conftest import SIZE_HW, TINY
from scantling.errors import DataError
from scantling.ops.overlaps import paired_iou
from scantling.refine.apply import ApplyConfig, load_refiner
from scantling.refine.train import (
    RefineConfig,
    RefinerRun,
    initial_refiner,
    resolve_training,
    train_refiner,
)
from scantling.refine.training_data import LabelledBoxes
from scantling.refine.validation import JITTER, jitter_box, jittered_boxes, measure_undoing
from scantling.train.checkpoint import load_checkpoint
from scantling.train.devices import ALONE

QUIET = Console(quiet=True)
SHORT = {
    "model": TINY,
    "train": {"epochs": 3, "repeats": 2, "batch_size": 4, "checkpoint_every": 2, "log_every": 1},
}


def run(out, **changes) -> RefinerRun:
    return RefinerRun(**{"out": out, "device": "cpu", "console": QUIET, **changes})


@pytest.mark.timeout(0)  # bounded by its steps; the clock also measures what else the machine does
@pytest.mark.slow
def test_a_refiner_undoes_a_known_jitter(painted, tmp_path):
    train, val = painted(40, seed=10), painted(15, seed=11)
    config = RefineConfig.model_validate(
        {
            "model": {"backbone": "test_resnet", "side": 64, "pooling": "flatten", "hidden": 32},
            "train": {
                "epochs": 2,
                "repeats": 20,
                "optimizer": "adamw",
                "lr": 3e-3,
                "schedule": "cosine",
                "warmup_steps": 10,
            },
        }
    )
    result = train_refiner(train, val, config, run(tmp_path / "refiner"))
    assert result.metrics["iou_before"] < 0.8
    assert result.metrics["iou"] > 0.9
    refiner = load_refiner(result.best, "cpu")
    judged = jittered_boxes(LabelledBoxes(val, 4), seed=5)  # another jitter than the one it was chosen by
    found = measure_undoing(refiner, judged, ApplyConfig())
    assert found["iou"] > found["iou_before"] + 0.1
    assert found["good"] > found["good_before"]


def test_a_stopped_training_goes_on_and_ends_the_same(slabs, tmp_path, monkeypatch):
    config = RefineConfig.model_validate(SHORT)
    whole = train_refiner(slabs, slabs, config, run(tmp_path / "whole"))

    class PulledPlugError(BaseException):
        pass

    steps = []

    def stop(self, *_):
        steps.append(1)
        if len(steps) == 6:
            raise PulledPlugError

    with monkeypatch.context() as patched:
        patched.setattr("scantling.train.loop._Training._leave_if_asked", stop)
        with pytest.raises(PulledPlugError):
            train_refiner(slabs, slabs, config, run(tmp_path / "parts"))
    resumed = train_refiner(slabs, slabs, config, run(tmp_path / "parts"))
    assert resumed.history == whole.history
    ours, theirs = (load_checkpoint(result.last).tensors for result in (whole, resumed))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    meta = load_checkpoint(whole.best).meta
    assert (meta.kind, meta.class_names) == ("refiner", slabs.class_names)
    assert set(whole.metrics) == {"iou", "iou_before", "good", "good_before"}


def test_auto_is_resolved_as_documented(slabs):
    labelled = LabelledBoxes(slabs, 4)
    device = torch.device("cpu")
    train = resolve_training(RefineConfig(), labelled, device, ALONE).train
    assert (train.epochs, train.repeats, train.batch_size, train.workers) == (90, 171, 16, 0)  # 6 images
    every = RefineConfig.model_validate({"crops": {"all_boxes": True}, "train": {"epochs": 5}})
    train = resolve_training(every, labelled, device, ALONE).train
    assert (train.epochs, train.repeats) == (5, 86)  # 12 boxes
    assert (train.optimizer, train.lr, train.schedule, train.gamma, train.patience) == (
        "adadelta",
        1.0,
        "plateau",
        0.5,
        2,
    )


def test_the_first_weights_depend_on_the_seed_only():
    config = RefineConfig.model_validate({"model": TINY}).model
    torch.manual_seed(1)
    first = initial_refiner(config, ("a",), 0).state_dict()
    torch.manual_seed(2)
    again, other = (initial_refiner(config, ("a",), seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_jittered_box_overlaps_with_its_own_by_three_quarters():
    box = np.array([30.0, 20.0, 70.0, 60.0])
    moved = np.array([jitter_box(box, JITTER, SIZE_HW, np.random.default_rng(i)) for i in range(2000)])
    iou = paired_iou(moved, np.tile(box, (2000, 1)))
    assert iou.mean() == pytest.approx(0.75, abs=0.01)
    assert np.abs(moved - box).max() <= JITTER * 40
    at_border = jitter_box(np.array([0.0, 0.0, 50.0, 96.0]), 0.4, SIZE_HW, np.random.default_rng(0))
    assert at_border.min() >= 0
    assert at_border[3] <= SIZE_HW[0]


def test_validation_boxes_are_the_same_each_time_and_limited(slabs):
    labelled = LabelledBoxes(slabs, 4)
    first, again = jittered_boxes(labelled), jittered_boxes(labelled)
    assert np.array_equal(first.boxes, again.boxes)
    assert len(first) == 12
    few = jittered_boxes(labelled, max_boxes=5)
    assert len(few) == 5
    rows = {tuple(row) for row in first.boxes.tolist()}
    assert all(tuple(row) in rows for row in few.boxes.tolist())
    untrained = initial_refiner(
        RefineConfig.model_validate({"model": TINY}).model, slabs.class_names, 0
    ).eval()
    metrics = measure_undoing(untrained, first, ApplyConfig())
    assert metrics["iou"] == pytest.approx(metrics["iou_before"], abs=0.02)  # windows are rounded outwards


def test_no_box_to_judge_by_is_refused_before_anything_is_written(slabs, tmp_path):
    empty = replace(slabs, annotations=tuple(() for _ in slabs.images))
    with pytest.raises(DataError, match="no box to judge the refiner by"):
        train_refiner(slabs, empty, RefineConfig.model_validate(SHORT), run(tmp_path / "out"))
    assert not (tmp_path / "out").exists()

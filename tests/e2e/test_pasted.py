"""Training images that objects are moved in and pasted on: the run goes on as if it had never been killed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from reference.masked_parts import write_masked_parts

RECIPE = """
members:
  tiny:
    model: {name: mask_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16, mask_channels: 8,
            mask_convs: 1, num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64, instaboost: {}, copy_paste: {probability: 1.0}}
    train: {epochs: 3, batch_size: 2, workers: 1, validate_every: 3, warmup_steps: 2, log_every: 1,
            checkpoint_every: 2}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 5}}
evaluate: {bootstrap: 0}
"""
PATIENCE = 150.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    world = tmp_path_factory.mktemp("pasted")
    write_masked_parts(world / "parts", {"train": 6, "val": 2})
    (world / "tiny.yaml").write_text(RECIPE)
    return world


def losses(run: Path) -> list[float]:
    lines = (run / "members/tiny/metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for line in lines if "loss" in (entry := json.loads(line))]


def test_killed_and_resumed_with_moved_and_pasted_objects_equals_a_run_that_was_not(world, command, start):
    arguments = ("train", world / "parts", "--recipe", world / "tiny.yaml", "--device", "cpu", "--out")
    killed, whole = world / "killed", world / "whole"
    process = start(*arguments, killed)
    lines, deadline = killed / "members/tiny/metrics.jsonl", time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if (
            lines.is_file() and lines.read_text().count("\n") >= 4
        ):  # in the second of three epochs of three steps
            break
        time.sleep(0.005)
    process.kill()
    process.wait(PATIENCE)
    assert 4 <= lines.read_text().count("\n") < 10
    for out in (killed, whole):
        done = command(*arguments, out)
        assert done.exit_code == 0, done.output
    assert losses(killed) == losses(whole)
    for name in ("last.safetensors", "best.safetensors", "predictions.json", "metrics.jsonl"):
        ours, theirs = (run / "members/tiny" / name for run in (killed, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.parametrize("kind", ["instaboost", "copy_paste"])
def test_each_of_the_two_changes_what_is_learned(world, command, kind):
    """Else the run that was killed would say nothing about it."""
    arguments = ("train", world / "parts", "--recipe", world / "tiny.yaml", "--device", "cpu")
    short = (
        "members.tiny.train.epochs=1",
        "members.tiny.train.workers=0",
        "members.tiny.train.validate_every=1",
    )
    found = []
    for number, more in enumerate(([], [f"members.tiny.augment.{kind}=null"])):
        options = [text for setting in (*short, *more) for text in ("--set", setting)]
        done = command(*arguments, "--out", world / f"{kind}-{number}", *options)
        assert done.exit_code == 0, done.output
        found.append(losses(world / f"{kind}-{number}"))
    assert len(found[0]) == len(found[1]) == 3
    assert found[0] != found[1]

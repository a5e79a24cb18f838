"""Trained on everything, to the end of a fixed schedule: what such a run does, and what it says it cannot do."""

from __future__ import annotations

import json

import pytest
import torch

from scantling.api import predict
from scantling.errors import ConfigError, UsageError
from scantling.recipe.recipe import parse_recipe
from scantling.run.pipeline import run_recipe
from scantling.run.without_val import check_without_val
from scantling.synth.synth import SynthConfig, write_synth
from scantling.train.checkpoint import load_checkpoint

RECIPE = """
seed: 3
data: {train: [train, val]}
evaluate: {split: test, bootstrap: 0}
members:
  one:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16, num_rois: 16}
    augment: {short_side: 96, long_side: 128}
    train: {epochs: 2, batch_size: 1, repeats: 2, workers: 0, warmup_steps: 2, milestones: [1]}
    predict: {scales: 96, long_side: 128}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_synth(root, SynthConfig(size_hw=(96, 128)), splits={"train": 3, "val": 2, "test": 2}, seed=0)
    return root


def recipe_with(*changes: str, text: str = RECIPE):
    return parse_recipe(text, file="r.yaml", overrides=changes)


def test_a_run_trains_on_all_and_keeps_the_weights_of_the_last_step(scenes, tmp_path):
    out = tmp_path / "run"
    summary = run_recipe(recipe_with().on(data=scenes), out, device="cpu")
    assert summary.metrics["split"] == "test"
    best, last = (load_checkpoint(out / f"members/one/{name}.safetensors") for name in ("best", "last"))
    assert best.meta.step == last.meta.step == 2 * (3 + 2) * 2  # epochs, images of both splits, repeats
    for key, value in best.tensors.items():
        assert torch.equal(value, last.tensors[key])
    assert "val" not in json.loads((out / "data.json").read_text())
    history = [json.loads(line) for line in (out / "members/one/metrics.jsonl").read_text().splitlines()]
    assert not any(key.startswith("val/") for entry in history for key in entry)
    predict(scenes / "annotations/test.json", run=out, out=tmp_path / "again.json", device="cpu")
    again, first = (
        json.loads(f.read_text()) for f in (tmp_path / "again.json", out / "members/one/predictions.json")
    )
    assert again == first
    before = (out / "members/one/best.safetensors").stat().st_mtime_ns
    run_recipe(recipe_with().on(data=scenes), out, device="cpu")
    assert (out / "members/one/best.safetensors").stat().st_mtime_ns == before


def test_all_that_cannot_be_done_is_told_at_once(scenes, tmp_path):
    wanted = recipe_with(
        "combine.tune={}",
        "refine={}",
        "members.one.train.early_stopping=2",
        "members.one.train.schedule=plateau",
    )
    with pytest.raises(ConfigError, match=r"no validation split \(data\.val\)") as caught:
        run_recipe(wanted.on(data=scenes), tmp_path / "run", device="cpu")
    told = caught.value.message
    for part in ("combine.tune", "refine", "members.one.train.early_stopping", "members.one.train.schedule"):
        assert part in told
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="audit: names labels by the ids of one file"):
        check_without_val(recipe_with("audit={}"))
    with pytest.raises(UsageError, match=r"evaluate\.split is `val`"):
        run_recipe(recipe_with("evaluate.split=val").on(data=scenes), tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        ["data.folds=2", "combine.tune={}"],
        ["data.folds=2", "members.one.train.early_stopping=2"],
        ["data.train=train", "combine.tune={}", "refine={}", "audit={}"],
        ["data.train=[train]", "members.one.train.schedule=plateau"],
    ],
)
def test_what_has_images_to_choose_on_is_not_refused(changes):
    check_without_val(recipe_with(*changes))

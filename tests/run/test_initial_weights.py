"""Initial weights are looked at before anything is written; every kind of backbone is trained by the command."""

from __future__ import annotations

import pytest
import timm
import torch
from typer.testing import CliRunner

from scantling.cli.app import app
from scantling.synth.synth import SynthConfig, write_synth
from scantling.train.checkpoint import load_checkpoint

NARROW = (
    "members.detector.model.fpn_channels=16",
    "members.detector.model.fc_channels=16",
    "members.detector.model.num_rois=8",
    "members.detector.train.epochs=1",
    "members.detector.train.repeats=1",
    "members.detector.train.workers=0",
    "members.detector.augment.short_side=48",
    "members.detector.augment.long_side=64",
    "members.detector.predict.scales=48",
    "members.detector.predict.long_side=64",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_synth(root, SynthConfig(size_hw=(64, 96)), splits={"train": 2, "val": 1}, seed=0)
    return root


def train(scenes, out, *overrides: str):
    options = [part for text in (*NARROW, *overrides) for part in ("--set", text)]
    return CliRunner().invoke(app, ["train", str(scenes), "--out", str(out), "--device", "cpu", *options])


@pytest.mark.parametrize("name", ["faster_rcnn_swin_t"])
def test_a_transformer_is_trained_by_the_command(name, scenes, tmp_path):
    done = train(scenes, tmp_path / "run", f"members.detector.model.name={name}")
    assert done.exit_code == 0, done.output
    best = load_checkpoint(tmp_path / "run/members/detector/best.safetensors")
    assert best.meta.model["name"] == name


def test_weights_that_do_not_fit_are_told_before_the_run_folder_is_made(scenes, tmp_path):
    file = tmp_path / "resnet34.pth"
    torch.save(timm.create_model("resnet34").state_dict(), file)
    done = train(scenes, tmp_path / "run", f"members.detector.model.init={file}")
    assert done.exit_code == 2
    assert "resnet34.pth" in done.output.replace("\n", "")
    assert "do not fit backbone 'resnet" in done.output
    assert not (tmp_path / "run").exists()


def test_plain_weights_train_a_deformable_model(scenes, tmp_path):
    file = tmp_path / "resnet10t.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    model = "members.detector.model."
    settings = [
        f"{model}backbone=resnet10t",
        f"{model}deform=[3,4]",
        f"{model}norm=bn_eval",
        f"{model}init={file}",
    ]
    done = train(scenes, tmp_path / "run", *settings)
    assert done.exit_code == 0, done.output

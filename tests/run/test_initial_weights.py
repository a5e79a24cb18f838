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


def train(scenes, out, *overrides: str, more=()):
    options = [part for text in (*NARROW, *overrides) for part in ("--set", text)]
    return CliRunner().invoke(
        app, ["train", str(scenes), "--out", str(out), "--device", "cpu", *more, *options]
    )


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


def test_a_run_starts_from_an_earlier_run_and_says_what_it_took(scenes, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done = train(scenes, first, "members.detector.model.backbone=resnet10t")
    assert done.exit_code == 0, done.output
    best = load_checkpoint(first / "members/detector/best.safetensors")
    # at this rate nothing moves: what comes out is what went in, all of it
    still = ("members.detector.train.lr=1e-30", "members.detector.model.norm=bn_eval")
    done = train(scenes, second, *still, more=["--init", str(first)])
    assert done.exit_code == 0, done.output
    again = load_checkpoint(second / "members/detector/best.safetensors")
    assert again.meta.model["backbone"] == "resnet10t"  # brought along
    assert again.meta.model["init"] == str(first)
    assert again.tensors.keys() == best.tensors.keys()
    for key, value in best.tensors.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(again.tensors[key], value, rtol=0, atol=1e-12)
    told = (second / "run.log").read_text(encoding="utf-8")
    assert "neck 16 of 16 tensors; RPN 6 of 6 tensors; box heads 24 of 24 tensors; " in told
    assert "classifier: 15 of 15 categories by name\n" in told
    assert "from a trained detector" in told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--init", "nowhere"], "there is no such file"),
        (["--init", "a.pth", "--pretrained"], "either --init or --pretrained"),
        (["--init", "."], "holds no weights"),
    ],
)
@pytest.mark.parametrize("recipe", [(), ("--recipe", "bccd-cpu")])
def test_a_wrong_start_is_told_before_the_run_folder_is_made(
    more, words, recipe, scenes, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = ["train", str(scenes), "--out", str(tmp_path / "run"), "--device", "cpu", *recipe, *more]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert words in done.output
    assert not (tmp_path / "run").exists()

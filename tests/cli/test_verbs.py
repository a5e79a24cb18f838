"""Verbs that need no training: recipes, synth, import-weights, and the command itself."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from scantling import __version__
from scantling.cli.app import app
from scantling.cli.data_verbs import parse_counts
from scantling.models.zoo import ModelConfig, build_model
from scantling.recipe.recipe import parse_recipe
from scantling.recipe.shipped import shipped_recipes, shipped_suites
from scantling.recipe.suite import is_suite


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_what_it_can():
    done = run("--help")
    assert done.exit_code == 0
    for verb in (
        "run",
        "demo",
        "train",
        "predict",
        "evaluate",
        "report",
        "synth",
        "import-weights",
        "recipes",
    ):
        assert verb in done.stdout
    assert run("--version").stdout == f"{__version__}\n"


def test_recipes_are_listed_one_a_line_and_shown_as_written():
    done = run("recipes", "list")
    assert done.exit_code == 0
    everything = shipped_recipes() | shipped_suites()
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(everything)
    assert list(json.loads(run("recipes", "list", "--json").stdout)) == list(everything)
    for name, path in everything.items():
        shown = run("recipes", "show", name).stdout
        assert shown == path.read_text()
        assert is_suite(shown, file=name) or parse_recipe(shown, file=name).about


def test_scenes_are_written_as_asked(tmp_path):
    arguments = (
        "synth",
        tmp_path / "a b",
        "--split",
        "train=2",
        "--split",
        "val=1",
        "--set",
        "size_hw=[96, 128]",
    )
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)
    assert {name: len(json.loads(Path(file).read_text())["images"]) for name, file in files.items()} == {
        "train": 2,
        "val": 1,
    }
    again = run(*arguments)
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    assert run(*arguments, "--overwrite").stdout.splitlines() == list(files.values())


def test_counts():
    assert parse_counts(["train=3", "my-split=0"]) == {"train": 3, "my-split": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locale")
def test_a_plain_locale_and_an_unwritable_home_are_enough(tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "HOME": str(tmp_path / "nowhere"), "PYTHONIOENCODING": ""}
    out = tmp_path / "ä b"
    command = [
        sys.executable,
        "-m",
        "scantling",
        "synth",
        str(out),
        "--split",
        "val=1",
        "--set",
        "size_hw=[96, 128]",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "annotations" / "val.json").is_file()


SMALL = (
    "--model",
    "faster_rcnn_r50",
    "--set",
    "backbone=resnet18",
    "--set",
    "fpn_channels=16",
    "--set",
    "fc_channels=16",
)


def mmdet_faster_rcnn_r18(num_classes: int) -> dict[str, torch.Tensor]:
    """State dict of MMDetection's Faster R-CNN with ResNet-18, a pyramid of 16 and heads of 16 channels."""
    shapes: dict[str, tuple[int, ...]] = {"backbone.conv1.weight": (64, 3, 7, 7)}
    norms = {"backbone.bn1": 64}
    for layer, (before, width) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], start=1):
        for block in (0, 1):
            prefix = f"backbone.layer{layer}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (width, before if block == 0 else width, 3, 3)
            shapes[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            norms |= {f"{prefix}.bn1": width, f"{prefix}.bn2": width}
        if before != width:
            shapes[f"backbone.layer{layer}.0.downsample.0.weight"] = (width, before, 1, 1)
            norms[f"backbone.layer{layer}.0.downsample.1"] = width
    for level, width in enumerate([64, 128, 256, 512]):
        for kind, shape in (("lateral", (16, width, 1, 1)), ("fpn", (16, 16, 3, 3))):
            shapes[f"neck.{kind}_convs.{level}.conv.weight"] = shape
            shapes[f"neck.{kind}_convs.{level}.conv.bias"] = (16,)
    linear = {
        "rpn_head.rpn_conv": (16, 16, 3, 3),
        "rpn_head.rpn_cls": (3, 16, 1, 1),
        "rpn_head.rpn_reg": (12, 16, 1, 1),
        "roi_head.bbox_head.shared_fcs.0": (16, 16 * 49),
        "roi_head.bbox_head.shared_fcs.1": (16, 16),
        "roi_head.bbox_head.fc_cls": (num_classes + 1, 16),
        "roi_head.bbox_head.fc_reg": (4 * num_classes, 16),
    }
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    weights = {
        name: 0.05 * torch.randn(shape, generator=torch.manual_seed(0)) for name, shape in shapes.items()
    }
    for name, width in norms.items():
        weights |= {f"{name}.{part}": torch.ones(width) for part in ("weight", "running_var")}
        weights |= {f"{name}.{part}": torch.zeros(width) for part in ("bias", "running_mean")}
    return weights


def test_a_foreign_checkpoint_is_imported_accounted_for_and_predicts(tmp_path):
    weights = mmdet_faster_rcnn_r18(num_classes=2)
    surplus = "roi_head.mask_head.convs.0.conv.weight"  # a detector of boxes has no place for masks
    content = {"state_dict": {**weights, surplus: torch.ones(1)}, "meta": {"CLASSES": ("bolt", "gear")}}
    torch.save(content, tmp_path / "theirs.pth")
    done = run("import-weights", tmp_path / "theirs.pth", *SMALL, "--out", tmp_path / "ours")
    assert done.exit_code == 0, done.output
    assert f"{len(weights)} keys used, 1 unused, none missing" in done.stdout
    account = json.loads((tmp_path / "ours/import.json").read_text())
    assert account["used"].keys() == weights.keys()
    assert (account["unused"], account["missing"]) == ([surplus], [])
    assert account["class_names"] == ["bolt", "gear"]
    run("synth", tmp_path / "scenes", "--split", "val=1", "--set", "size_hw=[96, 128]")
    settings = ("--set", "scales=64", "--set", "suppress.score_threshold=0")
    found = run(
        "predict",
        tmp_path / "scenes/images",
        "--checkpoint",
        tmp_path / "ours/weights.safetensors",
        *settings,
    )
    assert found.exit_code == 0, found.output
    assert {result["category_id"] for result in json.loads(found.stdout)} <= {1, 2}
    begun = ModelConfig(
        name="faster_rcnn_r50", backbone="resnet18", init=str(tmp_path / "ours/weights.safetensors")
    )
    stem = build_model(begun, 5).state_dict()["backbone.body.conv1.weight"]
    assert torch.equal(stem, weights["backbone.conv1.weight"])
    again = run("import-weights", tmp_path / "theirs.pth", *SMALL, "--out", tmp_path / "ours")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


def test_a_checkpoint_that_does_not_fit_lists_the_differences(tmp_path):
    weights = mmdet_faster_rcnn_r18(num_classes=2)
    del weights["neck.fpn_convs.0.conv.bias"]
    weights["rpn_head.rpn_cls.weight"] = torch.zeros(9, 16, 1, 1)
    torch.save({"state_dict": weights}, tmp_path / "theirs.pth")
    done = run("import-weights", tmp_path / "theirs.pth", *SMALL, "--out", tmp_path / "ours")
    assert done.exit_code == 2
    assert "1 weights are missing, first ['neck.outputs.0.0.bias']" in done.stderr
    assert "rpn.objectness.weight: model (3, 16, 1, 1), checkpoint (9, 16, 1, 1)" in done.stderr
    assert not (tmp_path / "ours").exists()


class Malicious:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("verb", ["import-weights", "predict"])
def test_nothing_in_a_checkpoint_is_run(tmp_path, verb):
    mark = tmp_path / "mark"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Malicious(mark)}))
    if verb == "predict":
        done = run("predict", tmp_path, "--checkpoint", tmp_path / "evil.pth")
    else:
        done = run("import-weights", tmp_path / "evil.pth", *SMALL, "--out", tmp_path / "ours")
    assert done.exit_code == 2
    assert "evil.pth" in done.stderr
    assert not mark.exists()

"""The verbs that refine boxes, from labels to refined results."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from reference.tiny_refiner import TINY_REFINER
from scantling.cli.app import app
from scantling.recipe.shipped import find_refiner, read_recipe
from scantling.settings import yaml as strict_yaml
from scantling.synth.synth import SynthConfig, write_synth
from scantling.train.checkpoint import load_checkpoint


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Generated scenes in `parts`, a refiner in `refiner`, and results with string-free ids in `results.json`."""
    root = tmp_path_factory.mktemp("refine")
    write_synth(root / "parts", SynthConfig(size_hw=(96, 128)), splits={"train": 4, "val": 3}, seed=0)
    settings = [part for value in TINY_REFINER for part in ("--set", value)]
    done = run("refine", "train", root / "parts", "--out", root / "refiner", *settings, "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["checkpoint"] == str(root / "refiner" / "best.safetensors")
    assert set(summary["metrics"]) == {"iou", "iou_before", "good", "good_before"}
    labels = json.loads((root / "parts/annotations/val.json").read_text())
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.1 + 0.02 * (i % 40)}
        for i, a in enumerate(labels["annotations"])
    ]
    (root / "results.json").write_text(json.dumps(results))
    return root


def apply(world, *more: object):
    return run(
        "refine", "apply", world / "results.json", f"{world / 'parts'}:val", "--refiner",
        world / "refiner/best.safetensors", "--out", world / "refined.json", *more,
    )  # fmt: skip


def test_results_are_refined_into_another_file(world):
    before = (world / "results.json").read_bytes()
    done = apply(world, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    given, found = (json.loads((world / name).read_text()) for name in ("results.json", "refined.json"))
    assert told["counts"]["refined"] > 0
    assert told["num_results"] == len(found) == sum(told["counts"].values())
    assert all(r.pop("file_name").endswith(".jpg") and r.pop("category_name") for r in found)
    assert [{**r, "bbox": 0} for r in found] == [{**r, "bbox": 0} for r in given]
    moved = sum(a["bbox"] != b["bbox"] for a, b in zip(given, found, strict=True))
    assert moved == told["counts"]["refined"]
    assert (world / "results.json").read_bytes() == before
    assert "refined" in apply(world).stdout


def test_a_gate_is_measured_and_obeyed(world):
    done = run(
        "refine", "tune", world / "results.json", f"{world / 'parts'}:val", "--refiner",
        world / "refiner/best.safetensors", "--out", world / "gate.yaml", "--set", "bands=[0.5]", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["cells"]
    assert set(told["ap"]) == {"before", "refined", "gated"}
    obeyed = apply(world, "--gate", world / "gate.yaml", "--json")
    counts = json.loads(obeyed.stdout)["counts"]
    closed = sum(not cell["open"] for cell in told["cells"])
    assert (counts["gated"] > 0) == (closed > 0)
    other = apply(world, "--gate", world / "gate.yaml", "--set", "iterations=2")
    assert other.exit_code == 2
    assert "measured with iterations 1, not 2" in other.stderr
    text = (world / "gate.yaml").read_text().replace("refiner: ", "refiner: x")
    (world / "foreign.yaml").write_text(text)
    foreign = apply(world, "--gate", world / "foreign.yaml")
    assert foreign.exit_code == 2
    assert "measured with another refiner" in foreign.stderr
    (world / "wrong.yaml").write_text("cells: 3")
    assert apply(world, "--gate", world / "wrong.yaml").exit_code == 2


@pytest.mark.slow
def test_an_ablation_writes_tables_and_plots_and_is_kept(world):
    changes = [f"refine.{value}" for value in TINY_REFINER] + [
        "mixtures=[none,both]",
        "sides=[40]",
        "shifts=[0,8]",
    ]
    changes += ["wrong_classes=[0,1]", "refine.train.lr=0.01"]
    settings = [part for value in changes for part in ("--set", value)]
    settings += ["--config", "small-cpu", "--json"]
    arguments = ("refine", "ablate", world / "parts", "--out", world / "ablation", *settings)
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = {(row["kind"], row["value"]): row["iou"] for row in found["rows"]}
    assert list(rows) == [
        ("mixture", "none"), ("mixture", "both"), ("side", 32), ("side", 40),
        ("shift", 0), ("shift", 8), ("wrong_classes", 0), ("wrong_classes", 1),
    ]  # fmt: skip
    assert rows["side", 32] == rows["mixture", "both"]
    assert rows["shift", 0] == rows["wrong_classes", 0]
    assert rows["shift", 8] != rows["shift", 0]
    assert rows["wrong_classes", 1] != rows["wrong_classes", 0]
    assert json.loads((world / "ablation/ablation.json").read_text()) == found
    assert "| both |" in (world / "ablation/ablation.md").read_text()
    assert (world / "ablation/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (world / "ablation/curves.svg").read_text()
    assert load_checkpoint(world / "ablation/both-40-0/best.safetensors").meta.model["pooling"] == "flatten"
    before = (world / "ablation/both-40-0/best.safetensors").stat().st_mtime_ns
    assert json.loads(run(*arguments).stdout) == found
    assert (world / "ablation/both-40-0/best.safetensors").stat().st_mtime_ns == before


def test_shipped_settings_are_taken_by_name(world, tmp_path):
    smaller = [part for value in (*TINY_REFINER, "train.repeats=2") for part in ("--set", value)]
    done = run(
        "refine",
        "train",
        world / "parts",
        "--out",
        tmp_path / "r",
        "--config",
        "small-cpu",
        *smaller,
        "--json",
    )
    assert done.exit_code == 0, done.output
    shipped = strict_yaml.parse(read_recipe(find_refiner("small-cpu")), file="small-cpu").value
    model = load_checkpoint(tmp_path / "r/best.safetensors").meta.model
    assert (model["pooling"], model["side"]) == (shipped["model"]["pooling"], 32)
    unknown = run("refine", "train", world / "parts", "--out", tmp_path / "s", "--config", "small-cp")
    assert unknown.exit_code == 2
    assert "did you mean 'small-cpu'?" in unknown.stderr
    assert not (tmp_path / "s").exists()


def test_mistakes_are_told_with_exit_code_2(world):
    wrong = apply(world, "--set", "iteration=2")
    assert wrong.exit_code == 2
    assert "iterations" in wrong.stderr
    missing = run(
        "refine", "apply", world / "results.json", f"{world / 'parts'}:val",
        "--refiner", world / "none.safetensors", "--out", world / "x.json",
    )  # fmt: skip
    assert missing.exit_code == 2
    assert "there is no such refiner" in missing.stderr
    other = run("refine", "train", world / "parts", "--out", world / "refiner", "--set", "train.epochs=2")
    assert other.exit_code == 2
    assert "belongs to another run" in other.stderr


def test_a_training_with_other_validation_boxes_or_another_way_to_apply_is_another_one(world, tmp_path):
    shutil.copytree(world / "parts", tmp_path / "parts")
    shutil.copytree(world / "refiner", tmp_path / "refiner")
    settings = [part for value in TINY_REFINER for part in ("--set", value)]
    again = ("refine", "train", tmp_path / "parts", "--out", tmp_path / "refiner", *settings)
    assert run(*again).exit_code == 0
    done = run(*again, "--set", "apply.iterations=3")
    assert done.exit_code == 2
    assert "a setting outside the model's and the training's own" in done.stderr
    val = tmp_path / "parts/annotations/val.json"
    labels = json.loads(val.read_text())
    labels["annotations"][0]["bbox"][2] -= 1
    val.write_text(json.dumps(labels))
    done = run(*again)
    assert done.exit_code == 2
    assert "the images or annotations have changed" in done.stderr


def test_all_unreadable_images_are_named_at_once_and_only_those_that_are_needed(world, tmp_path):
    shutil.copytree(world / "parts", tmp_path / "parts")
    pictures = sorted((tmp_path / "parts/images").glob("val*"))
    for picture in pictures[:2]:
        picture.write_bytes(b"no image")
    refiner = ("--refiner", world / "refiner/best.safetensors", "--out", tmp_path / "out")
    for verb in (("refine", "apply"), ("refine", "tune")):
        done = run(*verb, world / "results.json", f"{tmp_path / 'parts'}:val", *refiner)
        assert done.exit_code == 2
        assert all(picture.name in done.stderr for picture in pictures[:2])
    done = run("audit", f"{tmp_path / 'parts'}:val", *refiner)
    assert done.exit_code == 2
    assert all(picture.name in done.stderr for picture in pictures[:2])
    assert not (tmp_path / "out").exists()
    third = json.loads((tmp_path / "parts/annotations/val.json").read_text())["images"][2]["id"]
    results = [r for r in json.loads((world / "results.json").read_text()) if r["image_id"] == third]
    (tmp_path / "third.json").write_text(json.dumps(results))
    done = run("refine", "apply", tmp_path / "third.json", f"{tmp_path / 'parts'}:val", *refiner)
    assert done.exit_code == 0, done.output

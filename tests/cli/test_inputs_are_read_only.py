"""No verb writes onto what it reads, onto labels, or onto a file of another kind than its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from reference.faulty_labels import make_faulty
from reference.tiny_refiner import TINY_REFINER
from scantling import api
from scantling.cli.app import app
from scantling.data.coco import write_results
from scantling.data.detections import results_of
from scantling.errors import UsageError
from scantling.settings.paths import require_output
from scantling.synth.synth import SynthConfig, write_synth


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A data set with images, a refiner, a gate's place, results of it, decisions, and the same data set as VOC."""
    root = tmp_path_factory.mktemp("world")
    faulty = make_faulty(root / "data", pixels=True)
    write_results(results_of(faulty.detections, faulty.dataset), root / "found.json", faulty.dataset)
    write_synth(root / "parts", SynthConfig(size_hw=(96, 128)), splits={"train": 2, "val": 2}, seed=0)
    api.refine_train(root / "parts", root / "refiner", overrides=TINY_REFINER, device="cpu")
    labels = json.loads((root / "parts/annotations/val.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    results = [{key: a[key] for key in keys} | {"score": 0.5} for a in labels["annotations"]]
    (root / "results.json").write_text(json.dumps(results))
    write_masks(root, labels)
    api.audit(faulty.dataset.file, root / "audit", predictions=root / "found.json")
    api.convert(root / "parts", "voc", root / "voc")
    api.split(faulty.dataset.file, root / "lists", ratios={"train": 0.8, "val": 0.2})
    return root


def write_masks(root: Path, labels: dict) -> None:
    """The labels' own masks as results, and maps in which all is ground."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    masked = [{key: a[key] for key in keys} | {"score": 0.5} for a in labels["annotations"]]
    (root / "masked.json").write_text(json.dumps(masked))
    (root / "maps").mkdir()
    for image in labels["images"]:
        ground = np.zeros((image["height"], image["width"]), dtype=np.float32)
        np.save(root / "maps" / f"{Path(image['file_name']).stem}.npy", ground)


REFINER = "refiner/best.safetensors"
ONTO = ["results.json", "parts/annotations/val.json", "parts/annotations/train.json", REFINER]
ONTO += ["parts/images/val_000000.jpg"]
VERBS = {
    "refine apply": ("refine", "apply", "results.json", "parts:val", "--refiner", REFINER),
    "refine tune": ("refine", "tune", "results.json", "parts:val", "--refiner", REFINER),
    "ensemble": ("ensemble", "results.json", "--data", "parts:val"),
    "tune": ("tune", "results.json", "--data", "parts:val"),
    "fuse-semantic": ("fuse-semantic", "masked.json", "--data", "parts:val", "--maps", "maps"),
    "tune-semantic": ("tune-semantic", "masked.json", "--data", "parts:val", "--maps", "maps"),
    "eliminate": ("eliminate", "results.json", "--train", "parts:train", "--data", "parts:val"),
    "evaluate": ("evaluate", "results.json", "--data", "parts:val"),
}


def run(world: Path, *arguments: object, monkeypatch):
    monkeypatch.chdir(world)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="scantling")


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


PREDICT = {
    "predict": ("predict", "parts:val", "--checkpoint", REFINER)
}  # refused before a detector is loaded


@pytest.mark.parametrize("onto", ONTO)
@pytest.mark.parametrize("name", VERBS | PREDICT)
def test_it_refuses_and_nothing_changes(world, name, onto, monkeypatch):
    if name in ("predict", "fuse-semantic") and onto == "results.json":
        return  # an earlier results file, which it does not read
    before = contents(world)
    done = run(world, *(VERBS | PREDICT)[name], "--out", world / onto, monkeypatch=monkeypatch)
    assert done.exit_code == 2, done.output
    assert "Nothing was changed" in done.stderr
    assert Path(onto).name in done.stderr
    assert contents(world) == before


@pytest.mark.parametrize("name", VERBS)
def test_its_own_earlier_output_is_replaced(world, name, tmp_path, monkeypatch):
    for _ in range(2):
        done = run(world, *VERBS[name], "--out", tmp_path / "out", monkeypatch=monkeypatch)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("data", "onto"),
    [
        ("data/labels.json", "data/labels.json"),
        ("data/labels.json", "audit/suspects.json"),
        ("lists/train.json", "lists/train.json"),
    ],
)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_repair_refuses_the_labels_and_what_it_reads(world, data, onto, overwrite, monkeypatch):
    data = data.replace("labels.json", next((world / "data").rglob("*.json")).name)
    onto = onto.replace("labels.json", next((world / "data").rglob("*.json")).name)
    before = contents(world)
    rules = ("--suspects", "audit/suspects.json", "--accept", "loose>0.8")
    done = run(world, "repair", data, *rules, "--out", onto, *overwrite, monkeypatch=monkeypatch)
    assert done.exit_code == 2, done.output
    assert contents(world) == before


def test_repair_replaces_an_earlier_copy_when_told_to(world, tmp_path, monkeypatch):
    out = tmp_path / "copy.json"
    data = next((world / "data").rglob("*.json"))
    rules = ("repair", data, "--suspects", "audit/suspects.json", "--accept", "loose>0.8", "--out", out)
    assert run(world, *rules, monkeypatch=monkeypatch).exit_code == 0
    again = run(world, *rules, monkeypatch=monkeypatch)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert run(world, *rules, "--overwrite", monkeypatch=monkeypatch).exit_code == 0


def test_repair_never_touches_the_files_of_a_data_set_in_a_folder(world):
    label = next((world / "voc").rglob("*.xml"))
    before = label.read_bytes()
    with pytest.raises(UsageError, match="a file of the data set"):
        api.repair(
            world / "voc:train",
            label,
            suspects=world / "audit/suspects.json",
            accept=["loose>0"],
            overwrite=True,
        )
    assert label.read_bytes() == before


def test_the_same_file_by_another_path_is_the_same_file(tmp_path):
    results = tmp_path / "results.json"
    results.write_text("[]")
    link = tmp_path / "link.json"
    link.symlink_to(results)
    with pytest.raises(UsageError, match="this is read"):
        require_output(link, "results file", [results])
    require_output(results, "results file", [None, tmp_path / "other.json"])
    with pytest.raises(UsageError, match="this is a folder"):
        require_output(tmp_path, "results file", [])

"""`--skip-invalid`: one faulty record of labels or results stops no verb that reads them, and is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reference.tiny_refiner import TINY_REFINER
from scantling import api
from scantling.cli.app import app
from scantling.synth.synth import SynthConfig, write_synth

REFINER = "refiner/best.safetensors"
VERBS = {
    "refine train": ("refine", "train", "parts", "--out", "again", *(f"--set={setting}" for setting in TINY_REFINER)),
    "refine apply": ("refine", "apply", "results.json", "parts:val", "--refiner", REFINER, "--out", "refined.json"),
    "refine tune": ("refine", "tune", "results.json", "parts:val", "--refiner", REFINER, "--out", "gate.yaml"),
    "audit": ("audit", "parts:val", "--predictions", "results.json", "--out", "audit"),
    "evaluate": ("evaluate", "results.json", "--data", "parts:val"),
    "compare": ("compare", "results.json", "results.json", "--data", "parts:val", "--bootstrap", "5"),
    "ensemble": ("ensemble", "results.json", "results.json", "--data", "parts:val", "--out", "fused.json"),
    "tune": ("tune", "results.json", "--data", "parts:val", "--out", "tuned.yaml"),
    "eliminate": (
        "eliminate", "results.json", "--train", "parts:train", "--data", "parts:val", "--out", "left.json",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A refiner, and a data set of which one box of val, and one of its results, has a negative width."""
    root = tmp_path_factory.mktemp("world")
    write_synth(root / "parts", SynthConfig(size_hw=(96, 128)), splits={"train": 2, "val": 2}, seed=0)
    api.refine_train(root / "parts", root / "refiner", overrides=TINY_REFINER, device="cpu")
    file = root / "parts/annotations/val.json"
    labels = json.loads(file.read_text())
    keys = ("image_id", "category_id", "bbox")
    results = [{key: a[key] for key in keys} | {"score": 0.5} for a in labels["annotations"]]
    for boxes in (labels["annotations"], results):
        x, y, width, height = boxes[0]["bbox"]
        boxes[0]["bbox"] = [x, y, -width, height]
    file.write_text(json.dumps(labels))
    (root / "results.json").write_text(json.dumps(results))
    return root


@pytest.mark.parametrize("name", VERBS)
def test_a_faulty_record_stops_the_verb_unless_it_is_to_be_left_out(world, name, monkeypatch):
    monkeypatch.chdir(world)
    refused = CliRunner().invoke(app, [*VERBS[name]])
    assert refused.exit_code == 2, refused.output
    assert "bbox" in refused.stderr
    done = CliRunner().invoke(app, [*VERBS[name], "--skip-invalid"])
    assert done.exit_code == 0, done.output
    assert "bbox" in done.stderr
    assert "annotations are not used" in done.stderr


def test_a_faulty_mask_costs_no_box_and_labels_nothing_twice(tmp_path):
    write_synth(tmp_path / "parts", SynthConfig(size_hw=(96, 128)), splits={"val": 6}, seed=3)
    file = tmp_path / "parts/annotations/val.json"
    labels = json.loads(file.read_text())
    keys = ("image_id", "category_id", "bbox")
    results = [{key: a[key] for key in keys} | {"score": 0.9} for a in labels["annotations"]]
    for annotation in labels["annotations"][::4]:
        annotation["segmentation"] = [[1, 2, 3, 4]]
    file.write_text(json.dumps(labels))
    (tmp_path / "results.json").write_text(json.dumps(results))
    data = f"{tmp_path / 'parts'}:val"
    audited = {"predictions": tmp_path / "results.json", "overrides": ["min_score=0"], "skip_invalid": True}
    assert api.evaluate(tmp_path / "results.json", data, skip_invalid=True).metrics["AP"] == pytest.approx(1)
    api.audit(data, tmp_path / "audit", **audited)
    suspects = json.loads((tmp_path / "audit/suspects.json").read_text())["suspects"]
    assert [s for s in suspects if s["reason"] == "missing"] == []
    labels["annotations"] = [a for n, a in enumerate(labels["annotations"]) if n % 4]
    file.write_text(json.dumps(labels))
    api.audit(data, tmp_path / "gone", **audited)
    suspects = json.loads((tmp_path / "gone/suspects.json").read_text())["suspects"]
    assert "missing" in {s["reason"] for s in suspects}

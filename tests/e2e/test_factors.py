"""`ablate` with factors: tiny runs of all combinations, models shared, and the table over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference.forked import fork_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FACTORS = """
evaluate: {bootstrap: 20}
ablation:
  design: full
  factors:
    seesaw: {model.class_loss: seesaw}
    few: {predict.suppress.max_per_image: 2}
"""


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def factors(tmp_path_factory, recipe) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "factors.yaml"
    path.write_text(recipe.read_text().replace("epochs: 4", "epochs: 1") + FACTORS)
    return path


def test_factors_are_compared_and_models_are_shared(command, scenes, factors, tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    out = tmp_path / "out"
    arguments = ("ablate", scenes, "--recipe", factors, "--out", out)
    done = command(*arguments, "--jobs", 2)
    assert done.exit_code == 0, done.output
    runs = out / "combinations"
    assert {path.name for path in runs.iterdir()} == {"base", "seesaw", "few", "seesaw+few"}
    weights = {path.name: (path / "members/tiny/best.safetensors").read_bytes() for path in runs.iterdir()}
    assert weights["base"] == weights["few"]
    assert weights["seesaw"] == weights["seesaw+few"]
    assert weights["base"] != weights["seesaw"]
    stages = {path.name: read(path / "status.json")["stages"] for path in runs.iterdir()}
    assert [stages[name]["members/tiny/train"] for name in ("base", "seesaw")] == ["done", "done"]
    assert [stages[name]["members/tiny/train"] for name in ("few", "seesaw+few")] == ["shared", "shared"]

    found = read(out / "ablation.json")
    assert [(row["name"], row["base"]) for row in found["rows"]] == [
        ("base", None),
        ("seesaw", "base"),
        ("few", "base"),
        ("seesaw + few", "base"),
    ]
    for row in found["rows"]:
        run = read(runs / row["name"].replace(" ", "") / "metrics.json")
        assert row["metrics"]["AP"] == pytest.approx(run["bbox/AP"])
        if row["base"] is not None:
            assert len(row["difference"]["interval"]) == 2
    aps = [row["metrics"]["AP"] for row in found["rows"]]
    effect = {each["factor"]: each["difference"]["difference"] for each in found["effects"]}
    assert effect["seesaw"] == pytest.approx((aps[1] + aps[3] - aps[0] - aps[2]) / 2)
    assert effect["few"] == pytest.approx((aps[2] + aps[3] - aps[0] - aps[1]) / 2)
    assert "over all settings of the others" in done.stdout
    again = command(*arguments)
    assert again.stdout == done.stdout
    for path in runs.iterdir():
        assert set(read(path / "status.json")["stages"].values()) == {"kept"}


def test_what_cannot_be_is_refused_before_anything_is_written(command, scenes, factors, tmp_path):
    out, file = tmp_path / "out", tmp_path / "w.safetensors"
    file.write_bytes(b"")
    refused = command("ablate", scenes, "--recipe", factors, "--out", out, "--init", file)
    assert refused.exit_code == 2
    assert "none of the recipe's factors" in refused.output
    option = "ablation={factors: {x: {model.no_such: 1}}}"
    refused = command("ablate", scenes, "--recipe", factors, "--out", out, "--set", option)
    assert refused.exit_code == 2
    assert "ablation.factors.x" in refused.output
    assert not out.exists()

"""Which rule opens a gate: planted categories and sizes of which all but one gain, too few results each to say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scantling.data.coco import CocoDataset, ReadOptions, parse_coco
from scantling.evaluate.compare import compare_results
from scantling.refine import gate_tuning
from scantling.refine.apply import ApplyConfig
from scantling.refine.gate import GateConfig, RefineGate
from scantling.refine.gate_tuning import tune_gate

NAMES = ("axle", "bolt", "cap", "disc", "ear", "foil")
NUM_IMAGES = 30
CONFIG = GateConfig(bootstrap=200)


@pytest.fixture(scope="module")
def labels() -> CocoDataset:
    """One object of every category in every image, half of them small and half of medium size."""
    rng = np.random.default_rng(1)
    images = [
        {"id": image, "file_name": f"{image}.png", "width": 700, "height": 200} for image in range(NUM_IMAGES)
    ]
    annotations = []
    for image in range(NUM_IMAGES):
        for label in range(len(NAMES)):
            side = float(rng.choice([24.0, 60.0]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [100.0 * label + 10, 50.0, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return parse_coco(content, Path("planted.json"), Path(), ReadOptions())


def moved(dataset: CocoDataset, reach, rng: np.random.Generator) -> list[dict]:
    """Every label as a detection that lies elsewhere by up to `reach(label, side)` of its width."""
    return [
        {
            "image_id": image.id,
            "category_id": annotation.label + 1,
            "bbox": [
                x + float(rng.uniform(-1, 1)) * reach(annotation.label, w) * w, y, w, h
            ],
            "score": 0.0,
        }
        for image, annotations in zip(dataset.images, dataset.annotations, strict=True)
        for annotation in annotations
        for x, y, w, h in [annotation.box_xywh]
    ]  # fmt: skip


def gate_over(monkeypatch, dataset, reach, config=CONFIG, seed: int = 0) -> tuple[RefineGate, list, list]:
    """The gate of a refiner whose boxes are off by up to `reach`, where the detector's are by 0.35; and both."""
    rng = np.random.default_rng(seed)
    before, after = moved(dataset, lambda *_: 0.35, rng), moved(dataset, reach, rng)
    for first, second in zip(before, after, strict=True):
        first["score"] = second["score"] = float(rng.uniform(0.1, 1))
    monkeypatch.setattr(gate_tuning, "refine_results", lambda *_, **__: (after, {}))
    gate = tune_gate(before, dataset, None, config, ApplyConfig(), refiner_sha="abc")
    return gate, before, after


def open_share(gate: RefineGate, attribute: str) -> dict[str, float]:
    """Share of the matched results in open cells, by category or by size."""
    found: dict[str, list[float]] = {}
    for cell in gate.cells:
        found.setdefault(getattr(cell, attribute), []).append(cell.matches * np.array([cell.open, 1]))
    return {name: float(rows[0] / rows[1]) for name, rows in ((n, sum(r)) for n, r in found.items())}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_all_but_one_category_gain_the_gate_opens_those(labels, monkeypatch, seed):
    gate, _, _ = gate_over(monkeypatch, labels, lambda label, _: 0.55 if label == 5 else 0.22, seed=seed)
    sure = [cell for cell in gate.cells if cell.matches >= 20 and cell.gain[1] > 0]
    assert sum(cell.matches for cell in sure) < 0.2 * sum(cell.matches for cell in gate.cells)
    shares = open_share(gate, "category")
    assert shares.pop("foil") == 0
    assert min(shares.values()) > 0.8
    assert gate.rule in ("category", "cell")
    assert gate.ap["gated"] > gate.ap["refined"] + 0.01 > gate.ap["before"]


def test_where_small_objects_lose_in_every_category_they_stay_closed(labels, monkeypatch):
    gate, _, _ = gate_over(monkeypatch, labels, lambda _, side: 0.8 if side < 32 else 0.15)
    assert gate.rule in ("size", "cell")
    by_rule = {found.rule: found.gain[0] for found in gate.rules}
    assert by_rule["size"] > by_rule["all"] + 0.01
    shares = open_share(gate, "size")
    assert shares["small"] < 0.1
    assert shares["medium"] > 0.9
    assert gate.ap["gated"] > max(gate.ap["refined"], gate.ap["before"]) + 0.02


def test_what_refining_gives_without_a_gate_is_told(labels, monkeypatch):
    gate, before, after = gate_over(monkeypatch, labels, lambda label, _: 0.55 if label == 5 else 0.22)
    wanted = compare_results(labels, before, after, bootstrap=CONFIG.bootstrap).overall[0]
    told = next(found for found in gate.rules if found.rule == "all")
    assert told.gain == pytest.approx((wanted.difference, *wanted.interval))
    assert told.opened == len(gate.cells)
    text = gate.to_text()
    assert f"  no gate      {told.gain[0]:+.3f} [{told.gain[1]:+.3f}, {told.gain[2]:+.3f}]" in text
    assert [line.split()[1] for line in text.splitlines() if line.endswith("  used")] == [gate.rule]
    alone, _, _ = gate_over(monkeypatch, labels, lambda *_: 0.22, CONFIG.model_copy(update={"pool": False}))
    assert [found.rule for found in alone.rules] == ["all", "cell"]


def test_a_rule_is_judged_on_images_that_it_has_not_looked_at(labels, monkeypatch):
    """Refining changes nothing on average; what is chosen on the images themselves seems to help."""
    gates = [gate_over(monkeypatch, labels, lambda *_: 0.35, seed=10 + seed)[0] for seed in range(4)]
    assert np.mean([found.gain[0] for gate in gates for found in gate.rules if found.rule != "all"]) < 0.01
    assert sum(gate.rule is not None for gate in gates) <= 1

"""A category whose id is 0 is one like any other: every verb finds what it finds where the id is 1."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reference.faulty_labels import make_faulty
from reference.tiny_refiner import TINY_REFINER
from scantling import api
from scantling.combine.tuned import read_tuned
from scantling.data.coco import write_results
from scantling.data.detections import results_of

OTHER = 90
SEARCH = ("search.bootstrap=20", "search.folds=2")


class World(NamedTuple):
    """One data set with one id for its first category: a folder, the labels, and two detectors' results."""

    id: int
    root: Path
    labels: Path
    results: Path
    poorer: Path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> list[World]:
    """The same with id 0 and with id 1."""
    given = make_faulty(tmp_path_factory.mktemp("given") / "data", pixels=True)
    folder = given.dataset.file.parent
    better = given.detections
    poorer = better.replace(boxes=better.boxes + 4, scores=better.scores[::-1].copy())
    made = []
    for number in (0, 1):
        root = tmp_path_factory.mktemp(f"id{number}")
        shutil.copytree(folder, root, dirs_exist_ok=True)
        world = World(number, root, root / "labels.json", root / "found.json", root / "poorer.json")
        renumber(world.labels, {3: number, OTHER: OTHER})
        for detections, file in ((better, world.results), (poorer, world.poorer)):
            write_results(results_of(detections, given.dataset), file, given.dataset)
            renumber(file, {3: number, OTHER: OTHER})
        made.append(world)
    return made


def renumber(file: Path, ids: dict[int, int]) -> None:
    content = read(file)
    for each in content if isinstance(content, list) else content["annotations"]:
        each["category_id"] = ids[each["category_id"]]
    for each in content["categories"] if isinstance(content, dict) else []:
        each["id"] = ids[each["id"]]
    file.write_text(json.dumps(content), encoding="utf-8")


def compared(worlds: list[World], file: str, rows: str | None = None) -> list[dict[str, Any]]:
    """Rows of a file of the first world, which are those of the second but for the id."""
    zero, one = (
        read(world.root / file) if rows is None else read(world.root / file)[rows] for world in worlds
    )
    assert {each["category_id"] for each in zero} == {0, OTHER}
    assert [each | {"category_id": each["category_id"] or 1} for each in zero] == one
    return zero


def test_numbers_and_intervals_are_the_same(worlds):
    evaluations = [api.evaluate(world.results, world.labels) for world in worlds]
    assert [evaluation.per_category[0].category_id for evaluation in evaluations] == [0, 1]
    assert evaluations[0].metrics == evaluations[1].metrics
    assert 0.3 < evaluations[0].metrics["AP"] < 1
    zero, one = (
        [asdict(category) | {"category_id": None} for category in each.per_category] for each in evaluations
    )
    assert zero == one
    comparisons = [
        api.compare(world.results, world.poorer, world.labels, bootstrap=30).to_dict() for world in worlds
    ]
    assert comparisons[0] == comparisons[1]
    assert comparisons[0]["overall"][0]["difference"] != 0


def test_settings_are_tuned_alike_and_used(worlds):
    for world in worlds:
        data, methods = world.labels, [*SEARCH, "search.methods=[hard]"]
        api.tune([world.results], data, world.root / "suppress.yaml", overrides=methods)
        api.tune([world.results, world.poorer], data, world.root / "weights.yaml", overrides=SEARCH)
        api.ensemble(
            [world.results, world.poorer], data, world.root / "fused.json", tuned=world.root / "weights.yaml"
        )
    for file in ("suppress.yaml", "weights.yaml"):
        zero, one = (read_tuned(world.root / file) for world in worlds)
        assert zero == one
    compared(worlds, "fused.json")


def test_what_contradicts_is_eliminated_alike(worlds):
    told = []
    for world in worlds:
        done = api.eliminate(world.poorer, world.labels, world.labels, world.root / "left.json").to_dict()
        told.append({name: value for name, value in done.items() if name != "out"})
    assert told[0] == told[1]
    assert 0 < len(compared(worlds, "left.json")) <= len(read(worlds[0].poorer))


def test_labels_are_audited_and_repaired_alike(worlds):
    for world in worlds:
        api.audit(world.labels, world.root / "audit", predictions=world.results)
        suspects = world.root / "audit/suspects.json"
        everything = [f"{kind}>0" for kind in ("loose", "missing", "spurious", "class", "duplicate")]
        done = api.repair(world.labels, world.root / "repaired.json", suspects=suspects, accept=everything)
        assert done.done == {"loose": 1, "missing": 1, "spurious": 1, "class": 1, "duplicate": 1}
    assert (
        len(compared(worlds, "repaired.json", "annotations"))
        == len(read(worlds[0].labels)["annotations"]) - 1
    )
    categories = read(worlds[0].root / "repaired.json")["categories"]
    assert [category["id"] for category in categories] == [0, OTHER]
    zero, one = (read(world.root / "audit/suspects.json")["suspects"] for world in worlds)
    ids = {each.pop("suggested_category_id") for each in zero}
    assert {each.pop("suggested_category_id") for each in one} == {id if id != 0 else 1 for id in ids}
    assert 0 in ids
    assert zero == one
    assert len(zero) == 5


def test_boxes_are_refined_alike_by_a_refiner_of_either(worlds):
    """The refiner was trained where the id is 0; it knows categories by their names."""
    zero = worlds[0]
    for split in ("train", "val"):
        file = zero.root / f"annotations/{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(zero.labels.read_text())
    api.refine_train(zero.root, zero.root / "refiner", overrides=TINY_REFINER, device="cpu")
    counts = []
    for world in worlds:
        refiner = zero.root / "refiner/best.safetensors"
        refined = api.refine_apply(
            world.results, world.labels, refiner, out=world.root / "refined.json", device="cpu"
        )
        counts.append(dict(refined.counts))
    assert counts[0] == counts[1]
    assert counts[0]["refined"] > 100
    moved = compared(worlds, "refined.json")
    assert sum(a["bbox"] != b["bbox"] for a, b in zip(moved, read(zero.results), strict=True)) > 100

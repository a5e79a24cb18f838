"""From a run folder to what its report says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime

import pytest

from report.conftest import measured
from scantling.errors import DataError
from scantling.evaluate.saved import kinds_of
from scantling.evaluate.variants import Variant, compare_variants
from scantling.refine.apply import ApplyConfig
from scantling.refine.gate import GateCell, RefineGate, RuleGain
from scantling.report.build import RunFacts, build_content, flatten, read_run
from scantling.report.dataset_facts import describe_dataset
from scantling.report.html import render


@pytest.fixture
def run_dir(tmp_path, results):
    run_dir = tmp_path / "run"
    for stage in ("members/zeta", "members/alpha", "ensemble", "eliminate"):
        (run_dir / stage).mkdir(parents=True)
    (run_dir / "members" / "zeta" / "metrics.jsonl").write_text(
        '{"step": 5, "loss": 1.0}\n', encoding="utf-8"
    )
    (run_dir / "members" / "unfinished").mkdir()
    (run_dir / "recipe.yaml").write_text("members: {}\n", encoding="utf-8")
    (run_dir / "env.json").write_text(
        '{"seed": 3, "versions": {"torch": "2.15"}, "gpu": null}', encoding="utf-8"
    )
    return run_dir


def test_a_run_folder_is_read(run_dir):
    run = read_run(run_dir, commands=["scantling run x"])
    curves = {history.name: history.losses for history in run.histories}
    assert curves["zeta"][0].points == ((5, 1.0),)
    assert curves["alpha"] == ()
    assert run.environment == {"seed": "3", "versions.torch": "2.15"}
    assert (run.recipe, run.commands) == ("members: {}\n", ("scantling run x",))


def test_what_each_step_gave_and_the_curves_of_folds_are_read(run_dir, dataset, results):
    table = compare_variants(
        dataset,
        [Variant(name="one", results=results[:1]), Variant(name="both", results=results, base="one")],
        bootstrap=20,
    )
    (run_dir / "evaluate").mkdir()
    (run_dir / "evaluate" / "ingredients.json").write_text(json.dumps(table.to_dict()), encoding="utf-8")
    fold = run_dir / "members" / "alpha" / "fold-0"
    fold.mkdir()
    (fold / "metrics.jsonl").write_text('{"step": 7, "loss": 2.0}\n', encoding="utf-8")
    run = read_run(run_dir)
    one, both = run.step_gains
    assert (one.base, one.difference, both.base) == (None, None, "one")
    assert both.difference == table.rows[1].difference.difference
    assert both.difference_interval == table.rows[1].difference.interval
    assert {history.name for history in run.histories} == {"alpha, fold-0", "unfinished", "zeta"}
    run = replace(run, **measured(dataset, {"both": results}))
    page = render(build_content("t", {"val": dataset}, run))
    assert "What each step gave" in page


def test_the_reasons_of_the_chosen_settings_are_shown(run_dir, dataset):
    assert "Why these settings" not in render(build_content("t", {"val": dataset}, read_run(run_dir)))
    (run_dir / "reasons.json").write_text('["epochs 12: 3 images & a CPU"]', encoding="utf-8")
    page = render(build_content("t", {"val": dataset}, read_run(run_dir)))
    assert "Why these settings" in page
    assert "<li>epochs 12: 3 images &amp; a CPU</li>" in page


def test_what_tuning_chose_and_elimination_removed_is_shown(run_dir, dataset, results):
    (run_dir / "tune").mkdir()
    (run_dir / "tune" / "alpha.txt").write_text("crack 0.5 -> 0.7 <sure>", encoding="utf-8")
    removed = {
        "num_results": 5000,
        "num_removed": 54,
        "pairs": [{"weaker": "dent", "stronger": "crack", "reason": "overlap", "count": 54}],
    }
    (run_dir / "eliminate" / "removed.json").write_text(json.dumps(removed), encoding="utf-8")
    run = replace(read_run(run_dir), **measured(dataset, {"eliminate": results[:2]}))
    page = " ".join(render(build_content("t", {"val": dataset}, run)).split())
    assert "What tuning chose for alpha" in page
    assert "crack 0.5 -&gt; 0.7 &lt;sure&gt;" in page
    assert "Contradictions: 54 of 5 000 predictions removed" in page
    assert '<th scope="row">dent</th><td>crack</td><td>overlap</td>' in page


def write_refinement(run_dir, *, gate):
    cell = GateCell(
        category="crack",
        size="large",
        band=(0.3, 0.6),
        open=True,
        matches=31,
        images=9,
        gain=(0.05, 0.01, 0.09),
    )
    shut = cell.model_copy(update={"category": "dent", "open": False, "gain": None})
    measured = RefineGate(
        refiner="0" * 64,
        apply=ApplyConfig(),
        ap={"before": 0.4, "refined": 0.41, "gated": 0.45},
        rule="category",
        rules=(
            RuleGain(rule="all", opened=2, gain=(0.01, -0.01, 0.03)),
            RuleGain(rule="category", opened=1, gain=(0.05, 0.02, 0.07)),
        ),
        cells=(cell, shut),
    )
    folder = run_dir / "refine"
    (folder / "refiner").mkdir(parents=True)
    (folder / "counts.json").write_text('{"refined": 1234, "gated": 5, "too_small": 0}', encoding="utf-8")
    (folder / "refiner" / "metrics.jsonl").write_text('{"step": 3, "val/iou": 0.8}\n', encoding="utf-8")
    if gate:
        (folder / "gate.yaml").write_text(measured.to_yaml(), encoding="utf-8")
    return measured


def test_the_gate_of_a_run_and_what_it_let_through_are_shown(run_dir, dataset):
    measured = write_refinement(run_dir, gate=True)
    run = read_run(run_dir)
    assert run.refinement.gate == measured
    moco = run_dir / "pretrain" / "moco" / "train"
    moco.mkdir(parents=True)
    (moco / "metrics.jsonl").write_text('{"step": 2, "val/knn_accuracy": 0.7}\n', encoding="utf-8")
    first = read_run(run_dir).histories[0]
    assert (first.name, first.metrics[0].points) == ("pretraining", ((2, 0.7),))
    refiner = next(history for history in run.histories if history.name == "refiner")
    assert refiner.metrics[0].points == ((3, 0.8),)
    page = " ".join(render(build_content("t", {"val": dataset}, run)).split())
    assert "1 234 refined, 5 kept by the gate." in page
    assert "too small" not in page
    assert "0.400 before, 0.410 with every box refined, and 0.450 with this gate" in page
    assert "<li>no gate +0.010 [-0.010, +0.030], 2 cells</li>" in page
    assert "<li>by category +0.050 [+0.020, +0.070], 1 cells used</li>" in page
    rows = [row.split("</tr>")[0] for row in page.split("<tr>") if '<th scope="row">crack' in row]
    assert any("refined" in row and "+0.050" in row and "+0.010 – +0.090" in row for row in rows)
    assert any('<th scope="row">dent' in row and "kept" in row for row in page.split("<tr>"))


def test_a_run_without_a_gate_says_so(run_dir, dataset):
    write_refinement(run_dir, gate=False)
    page = render(build_content("t", {"val": dataset}, read_run(run_dir)))
    assert "There is no gate" in page


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("refine/gate.yaml", "cells: 3\n"),
        ("refine/counts.json", "[1]"),
        ("eliminate/removed.json", "{}"),
        ("eliminate/removed.json", '{"num_results": 1, "num_removed": 1, "pairs": [{"weak": 1}]}'),
        ("audit/suspects.json", '{"counts": {}}'),
    ],
)
def test_a_damaged_file_is_named(run_dir, dataset, file, content):
    write_refinement(run_dir, gate=False)
    (run_dir / file).parent.mkdir(exist_ok=True)
    (run_dir / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(file)):
        read_run(run_dir)


def test_the_audit_of_a_run_is_counted_and_linked(run_dir, dataset):
    assert 'href="#refinement"' not in render(build_content("t", {"val": dataset}, read_run(run_dir)))
    (run_dir / "audit").mkdir()
    found = {"data": {"num_labels": 60}, "counts": {"loose": 3, "missing": 0, "class": 1}, "suspects": []}
    (run_dir / "audit" / "suspects.json").write_text(json.dumps(found), encoding="utf-8")
    page = render(build_content("t", {"val": dataset}, read_run(run_dir)))
    assert "4 suspects among 60 training labels: 3 loose, 1 class." in page
    assert '<a href="audit/audit.html">' in page


def test_an_empty_folder_is_a_run_without_results(tmp_path, dataset):
    assert read_run(tmp_path) == RunFacts(stages={})


def test_the_last_stage_is_what_the_report_is_about(run_dir, dataset, results):
    stages = {"zeta": results[:1], "alpha": results[1:], "ensemble": results, "eliminate": results[:2]}
    run = replace(read_run(run_dir), **measured(dataset, stages))
    content = build_content("t", {"val": dataset}, run, created=datetime(2026, 11, 21, 9, 5))
    assert content.created == "21 November 2026, 09:05"
    assert [stage.name for stage in content.stages] == ["zeta", "alpha", "ensemble", "eliminate"]
    assert content.stages[-1].evaluations[0].per_category[0].num_predictions == 2
    assert sum(point.hits for point in content.points) == 1
    assert {gallery.key for gallery in content.galleries} == {"missed", "images"}


def test_masks_are_evaluated_where_both_sides_have_them(dataset, results):
    square = {"size": [120, 160], "counts": [0, 19200]}
    masked = [{**result, "segmentation": square} for result in results]
    assert kinds_of(dataset, masked) == ["bbox"]
    content = build_content("t", {"val": dataset}, RunFacts(**measured(dataset, {"a": masked})))
    assert [e.iou_type for e in content.stages[0].evaluations] == ["bbox"]


def test_the_data_set_page_counts_splits_by_name(dataset):
    bare = replace(
        dataset, annotations=((), dataset.annotations[1][-1:])
    )  # nothing, and only the crowd region
    facts = describe_dataset({"train": dataset, "val": dataset.subset([2]), "bare": bare})
    train, val, bare_facts = facts.splits
    assert (bare_facts.num_objects, bare_facts.num_crowd, bare_facts.num_empty_images) == (0, 1, 2)
    assert (train.num_images, train.num_objects, train.num_crowd, train.num_empty_images) == (2, 3, 1, 0)
    assert (val.num_images, val.num_objects, val.num_crowd, val.per_category) == (1, 1, 1, (1, 0))
    assert sum(facts.sizes.counts) == 4


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": "1", "a.c.d": "[1, 2]"}

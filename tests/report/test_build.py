"""From a run folder to what its report says."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime

import pytest

from scantling.errors import DataError
from scantling.evaluate.variants import Variant, compare_variants
from scantling.report.build import RunFacts, build_content, flatten, read_run
from scantling.report.dataset_facts import describe_dataset
from scantling.report.html import render


@pytest.fixture
def run_dir(tmp_path, results):
    run_dir = tmp_path / "run"
    stages = {
        "members/zeta": results[:1],
        "members/alpha": results[1:],
        "ensemble": results,
        "eliminate": results[:2],
    }
    for age, (stage, found) in enumerate(stages.items()):
        folder = run_dir / stage
        folder.mkdir(parents=True)
        (folder / "predictions.json").write_text(json.dumps(found), encoding="utf-8")
        os.utime(folder / "predictions.json", (1000 + age, 1000 + age))
    (run_dir / "members" / "zeta" / "metrics.jsonl").write_text(
        '{"step": 5, "loss": 1.0}\n', encoding="utf-8"
    )
    (run_dir / "members" / "unfinished").mkdir()
    (run_dir / "recipe.yaml").write_text("members: {}\n", encoding="utf-8")
    (run_dir / "env.json").write_text(
        '{"seed": 3, "versions": {"torch": "2.15"}, "gpu": null}', encoding="utf-8"
    )
    return run_dir


def test_a_run_folder_is_read_in_the_order_of_the_run(run_dir, dataset, results):
    run = read_run(run_dir, dataset, commands=["scantling run x"])
    assert list(run.stages) == ["alpha", "zeta", "ensemble", "eliminate"]
    assert list(run.stages["ensemble"]) == results
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
    run = read_run(run_dir, dataset)
    one, both = run.ingredients
    assert (one.base, one.difference, both.base) == (None, None, "one")
    assert both.difference == table.rows[1].difference.difference
    assert both.difference_interval == table.rows[1].difference.interval
    assert {history.name for history in run.histories} == {"alpha, fold-0", "unfinished", "zeta"}
    page = render(build_content("t", {"val": dataset}, run))
    assert "What each step gave" in page


def test_an_empty_folder_is_a_run_without_results(tmp_path, dataset):
    assert read_run(tmp_path, dataset) == RunFacts(stages={})


def test_predictions_of_another_data_set_are_refused(run_dir, dataset):
    foreign = [{"image_id": 99, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}]
    (run_dir / "ensemble" / "predictions.json").write_text(json.dumps(foreign), encoding="utf-8")
    with pytest.raises(DataError):
        read_run(run_dir, dataset)


def test_the_last_stage_is_what_the_report_is_about(run_dir, dataset):
    content = build_content(
        "t", {"val": dataset}, read_run(run_dir, dataset), created=datetime(2026, 11, 21, 9, 5)
    )
    assert content.created == "21 November 2026, 09:05"
    assert [stage.name for stage in content.stages] == ["alpha", "zeta", "ensemble", "eliminate"]
    assert content.stages[-1].evaluations[0].per_category[0].num_predictions == 2
    assert sum(point.hits for point in content.points) == 1
    assert {gallery.key for gallery in content.galleries} == {"missed", "images"}


def test_masks_are_evaluated_where_both_sides_have_them(dataset, results):
    square = {"size": [120, 160], "counts": [0, 19200]}
    masked = [{**result, "segmentation": square} for result in results]
    content = build_content("t", {"val": dataset}, RunFacts(stages={"a": masked}))
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

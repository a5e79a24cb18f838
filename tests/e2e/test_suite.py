"""A recipe on a folder of data sets: every set an ordinary run, one table over all, and nothing lost on the way."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from reference.masked_parts import write_masked_parts
from reference.vision_layout import write_vision_set

MODEL = (
    "{name: mask_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16, num_train_proposals: 50,"
    " num_test_proposals: 30, num_rois: 16, mask_channels: 8, mask_convs: 1}"
)
MEMBER = f"""
    model: {MODEL}
    augment: {{short_side: 48, long_side: 64}}
    train: {{epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2, log_every: 1, lr: 0.05}}
    predict: {{scales: 48, long_side: 72, suppress: {{score_threshold: 0.0, max_per_image: 6}}}}
"""
SEGMENTER = """
    segmenter: {name: fpn_r18_small, backbone: test_resnet, channels: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2, log_every: 1}
    predict: {scales: 48, long_side: 72}
"""
RECIPE = f"members:\n  a:{MEMBER}  b:{MEMBER}  light:{SEGMENTER}" + (
    "combine: {ensemble: {}, semantic: {}, eliminate: {}}\nevaluate: {bootstrap: 20}\n"
)
TABLES = ["Score maps of the segmenters", "Members", "Step after step"]
GROWN = ["a", "a + semantic fusion"]
GROWN += [f"{GROWN[-1]} + elimination", f"{GROWN[-1]} + elimination + b"]
OWN = {"env.json", "run.log", "status.json", "report.html", "report/done.json"}
"""Files of a run that tell when and how it was done."""
PATIENCE = 150.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A recipe and three data sets: one with all labels, one in VISION's layout, one whose labels are cut off."""
    world = tmp_path_factory.mktemp("suite")
    (world / "tiny.yaml").write_text(RECIPE)
    write_masked_parts(world / "sets/alpha", {"train": 6, "val": 3, "test": 2}, seed=0)
    write_vision_set(world / "sets/Vision_1", {"train": 5, "val": 4, "inference": 2}, seed=1)
    write_masked_parts(world / "sets/broken", {"train": 2, "val": 2}, seed=2)
    (world / "sets/broken/annotations/val.json").write_text('{"images": [')
    (world / "sets/readme").mkdir()
    return world


@pytest.fixture(scope="module")
def finished(command, world) -> tuple[Path, str]:
    """The folder of a suite, and what was printed."""
    done = command("suite", world / "tiny.yaml", "--data", world / "sets", "--out", world / "out", "--quiet")
    assert done.exit_code == 2, done.output
    return world / "out", done.output


def tables_of(out: Path) -> dict:
    return read(out / "suite.json")["tables"]


def test_a_set_that_fails_is_in_the_table_and_costs_no_other(finished):
    out, told = finished
    sets = read(out / "suite.json")["sets"]
    assert list(sets) == ["Vision_1", "alpha", "broken"]
    assert [name for name, one in sets.items() if one["failure"]] == ["broken"]
    assert "json-syntax" in sets["broken"]["failure"]
    assert sets["broken"]["log"] == str(out / "run.log")
    assert sets["broken"]["failure"] in (out / "run.log").read_text()
    assert "error: 1 of 3 data sets failed: broken" in told
    assert f"broken failed: {sets['broken']['failure']}" in told
    assert "passed over: readme" in told
    assert "training" not in told, "--quiet"
    assert read(out / "status.json")["stages"] == {"Vision_1": "done", "alpha": "done", "broken": "failed"}
    for table in tables_of(out).values():
        assert table["sets"] == list(sets)
        assert all(set(row["num_sets"].values()) == {2} for row in table["rows"])
    assert (out / "suite.md").read_text() in told + "\n"


def test_the_tables_are_those_of_the_runs_and_their_means(finished):
    out, _ = finished
    tables = tables_of(out)
    assert list(tables) == TABLES
    segmenters, members, steps = (tables[title]["rows"] for title in TABLES)
    assert [row["name"] for row in members] == ["a", "b"]
    assert [row["name"] for row in steps] == GROWN
    outcomes = {"a": members[0], "b": members[1], "eliminate": steps[-1]}
    values = []
    for name in ("Vision_1", "alpha"):
        metrics = read(out / name / "metrics.json")
        assert metrics["stage"] == "eliminate"
        for member, row in outcomes.items():
            own = metrics["members"][member]
            for metric, key in (("mAP", "segm/AP"), ("mAR", "segm/AR100")):
                value, interval = row["sets"][metric][name]
                assert value == pytest.approx(own[key], abs=1e-12)
                assert interval == pytest.approx(own[f"{key}_interval"], abs=1e-12)
        own = metrics["members"]["eliminate"]
        values.append((own["segm/AP"], own["segm/AR100"]))
    assert steps[-1]["mean"]["half-sum"][0] == pytest.approx(sum(map(sum, values)) / 4)
    assert steps[0]["sets"] == members[0]["sets"]
    (light,) = segmenters
    for name in ("Vision_1", "alpha"):
        metrics = read(out / name / "metrics.json")
        assert light["sets"]["mIoU"][name] == [metrics["semantic"]["light"]["semantic/mIoU"], None]


def test_a_set_is_an_ordinary_run(finished, command, world, tmp_path):
    out, _ = finished
    recipe, data = world / "tiny.yaml", world / "sets/Vision_1"
    done = command("run", recipe, "--data", data, "--out", tmp_path / "run", "--quiet")
    assert done.exit_code == 0, done.output
    ours, theirs = (
        {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        for root in (out / "Vision_1", tmp_path / "run")
    )
    added = {"suite/rows.json", "suite/draws.npz", "suite/done.json"}
    assert ours.keys() - theirs.keys() == added | {"submission/predictions.json", "submission/done.json"}
    assert theirs.keys() - ours.keys() == set()
    changed = {name for name, path in theirs.items() if path.read_bytes() != ours[name].read_bytes()}
    assert changed <= OWN
    page = command("report", out / "Vision_1")
    assert page.exit_code == 0, page.output


def test_results_to_hand_in_are_of_the_split_without_labels(finished, command, world, tmp_path):
    out, _ = finished
    handed = read(out / "Vision_1/submission/predictions.json")
    images = read(world / "sets/Vision_1/inference/_annotations.coco.json")["images"]
    assert {result["image_id"] for result in handed} == {image["id"] for image in images}
    assert {result["category_id"] for result in handed} <= {3, 8}
    assert all(result["segmentation"]["size"] == [48, 60] for result in handed)
    source = f"{world / 'sets/Vision_1'}:inference"
    done = command("predict", source, "--run", out / "Vision_1", "--out", tmp_path / "again.json", "--quiet")
    assert done.exit_code == 0, done.output
    assert read(tmp_path / "again.json") == handed
    alpha = read(world / "sets/alpha/annotations/test.json")["images"]
    assert {result["image_id"] for result in read(out / "alpha/submission/predictions.json")} <= {
        image["id"] for image in alpha
    }


def test_killed_and_given_again_it_does_what_is_missing_to_the_same_tables(
    finished, start, command, world, tmp_path
):
    """Killed in the second of two sets, while its second member is trained."""
    out, again = finished[0], tmp_path / "again"
    shutil.copytree(out, again, ignore=shutil.ignore_patterns("alpha", "suite.*"))
    options = (
        "suite",
        world / "tiny.yaml",
        "--data",
        world / "sets",
        "--out",
        again,
        "--sets",
        "alpha,Vision_1",
    )
    process = start(*options)
    begun, deadline = again / "alpha/members/b", time.monotonic() + PATIENCE
    while not begun.is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    assert begun.is_dir()
    assert not (again / "alpha/metrics.json").exists()
    assert not (again / "suite.json").exists()
    kept = [again / "Vision_1/members/b/best.safetensors", again / "alpha/members/a/best.safetensors"]
    before = [path.stat().st_mtime_ns for path in kept]
    done = command(*options)
    assert done.exit_code == 0, done.output
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert "members/a/train: already done, kept" in done.output
    ours, theirs = tables_of(again), tables_of(out)
    for title in TABLES:
        assert ours[title].pop("sets") == ["Vision_1", "alpha"]
        del theirs[title]["sets"]
        assert ours[title] == theirs[title]
    planned = command(*options, "--plan", "--json", "--quiet")
    actions = [stage["action"] for plan in json.loads(planned.stdout).values() for stage in plan["stages"]]
    assert set(actions) == {"keep"}


def test_the_page_leads_to_every_set(finished):
    out, _ = finished
    page = (out / "suite.html").read_text()
    assert "<script" not in page
    for name in ("alpha", "Vision_1"):
        for file in ("report.html", "submission/predictions.json", "run.log"):
            assert f'href="{name}/{file}"' in page
            assert (out / name / file).is_file()
    assert 'href="run.log"' in page
    assert "Failed: error [json-syntax]" in page
    assert "1 of 3 data sets failed" in page
    for name in GROWN:
        assert f">{name}</th>" in page


def test_a_plan_tells_of_every_set_and_writes_nothing(command, world):
    done = command("suite", world / "tiny.yaml", "--data", world / "sets", "--out", world / "none", "--plan")
    assert done.exit_code == 2, done.output
    assert "1 of 3 data sets cannot be done: broken" in done.stderr
    assert "alpha\ndo        members/a/train" in done.stdout
    assert "json-syntax" in done.stdout
    assert not (world / "none").exists()


MISTAKES = {
    "no such set": ("--sets alfa", "there is no data set 'alfa'; did you mean 'alpha'?"),
    "a data set itself": ("--data {sets}/alpha", "It is a data set itself: `scantling run RECIPE --data"),
    "no data sets": ("--data {sets}/readme", "no data sets in there"),
    "no folder": ("--data {sets}/alpha/annotations/val.json", "a folder of data sets is a folder"),
    "the folder of a run": ("--out {out}/alpha", "is the folder of a single run"),
    "other things": ("--out {sets}", "is not a run of scantling"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_and_nothing_is_written(finished, command, world, name, tmp_path):
    given, words = MISTAKES[name]
    values = {"sets": world / "sets", "out": world / "out"}
    options = dict(zip(*[iter(given.format(**values).split())] * 2, strict=True))
    options = {"--data": str(world / "sets"), "--out": str(tmp_path / "out"), **options}
    before = sorted(path for path in world.rglob("*"))
    done = command("suite", world / "tiny.yaml", *[text for pair in options.items() for text in pair])
    assert done.exit_code == 2
    assert words in done.output
    assert sorted(path for path in world.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_a_bug_is_told_as_one_and_costs_no_other_set(world, command, monkeypatch, tmp_path, finished):
    from scantling.run.stages import suite as stages

    out = shutil.copytree(finished[0], tmp_path / "out")
    told = stages.set_result

    def write(context) -> None:
        if context.root.name == "alpha":
            raise ZeroDivisionError("by nothing")
        write_rows(context)

    write_rows = stages._write_rows
    monkeypatch.setattr(stages, "_write_rows", write)
    options = ["--set", "evaluate.bootstrap=10", "--sets", "alpha,Vision_1"]
    done = command("suite", world / "tiny.yaml", "--data", world / "sets", "--out", out, *options)
    assert done.exit_code == 1
    assert "this is a bug in scantling" in done.output
    assert "Traceback" in (out / "run.log").read_text()
    sets = read(out / "suite.json")["sets"]
    assert sets["alpha"]["failure"] == "ZeroDivisionError: by nothing"
    assert sets["alpha"]["log"] == str(out / "alpha/run.log")
    assert sets["Vision_1"]["failure"] is None
    assert len(told(out / "Vision_1", "x").rows[0].average_precision) == 11

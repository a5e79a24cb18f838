"""From labelled images to a report with the command line, and what happens when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from scantling.evaluate.coco_eval import evaluate_results
from scantling.recipe.recipe import load_recipe
from scantling.train.checkpoint import load_checkpoint

STAGES = ["members/tiny/train", "members/tiny/predict", "members/tiny/detect", "evaluate", "report"]


def read(path: Path):
    return json.loads(path.read_text())


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def copy_of(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def test_a_run_leaves_what_it_promises(trained, scenes):
    assert read(trained / "status.json")["state"] == "done"
    assert read(trained / "status.json")["stages"] == dict.fromkeys(STAGES, "done")
    metrics = read(trained / "metrics.json")
    assert 0 <= metrics["bbox/AP"] <= metrics["bbox/AP50"] <= 1
    assert (metrics["split"], metrics["member"]) == ("val", "tiny")
    names = [c["name"] for c in read(scenes / "annotations/val.json")["categories"]]
    assert [c["name"] for c in read(trained / "categories.json")] == names
    assert list(metrics["categories"]) == names
    facts = read(trained / "data.json")
    assert (facts["train"]["num_images"], facts["val"]["num_images"]) == (4, 2)
    page = (trained / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "tiny" in page
    recipe = load_recipe(trained / "recipe.yaml")
    assert recipe.members["tiny"].train.epochs == 4
    assert load_checkpoint(trained / "members/tiny/best.safetensors").meta.class_names == tuple(names)
    log = (trained / "run.log").read_text()
    assert f"train: 4 images, {facts['train']['num_annotations']} objects" in log
    assert "members.tiny.train.milestones = " in log


def test_what_is_done_is_not_done_again(trained, scenes, recipe, command, tmp_path):
    run = copy_of(trained, tmp_path)
    before = files_in(run)
    done = command("train", scenes, "--recipe", recipe, "--out", run)
    assert done.exit_code == 0
    assert read(run / "status.json")["stages"] == dict.fromkeys(STAGES, "kept")
    assert "members/tiny/train: already done, kept" in done.stderr
    changed = {name for name, content in files_in(run).items() if before.get(name) != content}
    assert changed <= {"status.json", "env.json", "run.log"}


def test_other_settings_of_prediction_keep_the_training(trained, scenes, recipe, command, tmp_path):
    run = copy_of(trained, tmp_path)
    change = "members.tiny.predict.suppress.max_per_image=3"
    done = command("train", scenes, "--recipe", recipe, "--out", run, "--set", change)
    assert done.exit_code == 0
    expected = ["kept", "kept", "done", "done", "done"]
    assert read(run / "status.json")["stages"] == dict(zip(STAGES, expected, strict=True))
    assert len(read(run / "members/tiny/predictions.json")) <= 6


def test_other_settings_of_training_are_refused_by_name(trained, scenes, recipe, command, tmp_path):
    run = copy_of(trained, tmp_path)
    before = files_in(run)
    done = command("train", scenes, "--recipe", recipe, "--out", run, "--set", "members.tiny.train.lr=0.5")
    assert done.exit_code == 2
    assert "train.lr: was 0.0025, is now 0.5" in done.stderr
    assert files_in(run) == before
    again = ("--set", "members.tiny.train.epochs=1", "--overwrite")
    done = command("train", scenes, "--recipe", recipe, "--out", run, *again)
    assert done.exit_code == 0
    assert load_recipe(run / "recipe.yaml").members["tiny"].train.epochs == 1
    assert read(run / "status.json")["stages"] == dict.fromkeys(STAGES, "done")


def test_predicting_and_evaluating_give_the_numbers_of_the_run(trained, scenes, command, tmp_path):
    truth, results = scenes / "annotations/val.json", tmp_path / "results.json"
    done = command("predict", truth, "--run", trained, "--out", results)
    assert done.exit_code == 0, done.output
    assert read(results) == read(trained / "members/tiny/predictions.json")
    table = command("evaluate", results, "--data", truth)
    assert table.exit_code == 0
    assert table.stdout == (trained / "evaluate/table.txt").read_text()
    again = ("evaluate", results, "--data", truth, "--bootstrap", 1000)  # the run's own number of resamples
    numbers = command(*again, "--json", "--out", tmp_path / "numbers.json")
    metrics = read(trained / "metrics.json")
    assert json.loads(numbers.stdout) == read(tmp_path / "numbers.json")
    assert {key: metrics[key] for key in json.loads(numbers.stdout)} == json.loads(numbers.stdout)


def test_a_folder_is_predicted_by_file_name_and_drawn(trained, scenes, command, tmp_path):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    images = sorted((scenes / "images").iterdir())[:2]
    shutil.copy(images[0], photos / "a.jpg")
    shutil.copy(images[1], photos / "sub" / "b.jpg")
    (photos / "README.txt").write_text("notes")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    before = files_in(photos)
    done = command("predict", photos, "--run", trained, "--overlays", tmp_path / "drawn")
    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout)
    ids = {c["id"] for c in read(scenes / "annotations/val.json")["categories"]}
    assert {r["image_id"] for r in results} == {"a.jpg", "sub/b.jpg"}
    assert {r["category_id"] for r in results} <= ids
    assert {p.relative_to(tmp_path / "drawn").as_posix() for p in (tmp_path / "drawn").rglob("*.jpg")} == {
        "a.jpg",
        "sub/b.jpg",
    }
    assert "broken.jpg" in done.stderr
    assert "README.txt" in done.stderr
    refused = command("predict", photos, "--run", trained, "--overlays", photos)
    assert refused.exit_code == 2
    assert files_in(photos) == before


def test_a_checkpoint_predicts_without_its_run(trained, scenes, command, tmp_path):
    checkpoint = shutil.copy(trained / "members/tiny/best.safetensors", tmp_path / "weights.safetensors")
    image = sorted((scenes / "images").iterdir())[0]
    found = command("predict", image, "--checkpoint", checkpoint, "--set", "suppress.max_per_image=2")
    assert found.exit_code == 0, found.stderr
    assert len(json.loads(found.stdout)) == 2
    wrong = command("predict", image, "--checkpoint", checkpoint, "--set", "suppress.max=2")
    assert wrong.exit_code == 2
    assert "did you mean 'max_per_image'" in wrong.stderr


def test_category_ids_are_those_of_the_file_that_is_predicted(trained, scenes, command, tmp_path):
    content = read(scenes / "annotations/val.json")
    content["annotations"] = []
    for category in content["categories"]:
        category["id"] = 1000 - 7 * category["id"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(scenes / "images")
    done = command("predict", other, "--run", trained)
    assert done.exit_code == 0, done.stderr
    before = read(trained / "members/tiny/predictions.json")
    assert [r["category_id"] for r in json.loads(done.stdout)] == [
        1000 - 7 * r["category_id"] for r in before
    ]


def test_the_report_can_be_written_anew(trained, command, tmp_path):
    run = copy_of(trained, tmp_path)
    (run / "report.html").unlink()
    done = command("report", run)
    assert (done.exit_code, done.stdout.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").stat().st_size > 10_000


def test_a_report_measures_nothing_again_unless_a_run_of_an_earlier_version_kept_no_curves(
    trained, command, tmp_path, monkeypatch
):
    run = copy_of(trained, tmp_path)
    measured: list[str] = []

    def evaluate(*arguments, **options):
        measured.append(options["iou_type"])
        return evaluate_results(*arguments, **options)

    monkeypatch.setattr("scantling.run.stages.evaluation.evaluate_results", evaluate)
    pages = []
    for again in (False, True):
        if again:
            shutil.rmtree(run / "evaluate/results")
        assert command("report", run).exit_code == 0
        page = (run / "report.html").read_text()
        pages.append(re.sub(r"\d+ \w+ \d{4}, \d\d:\d\d", "", page))
        assert measured == (["bbox"] if again else [])
    assert pages[0] == pages[1]


def test_a_report_of_a_run_whose_recipe_was_changed_since_is_refused(trained, command, tmp_path):
    run = copy_of(trained, tmp_path)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("\n  tiny:", "\n  other:"))
    done = command("report", run)
    assert done.exit_code == 2
    assert "the recipe was changed since the run was evaluated" in done.stderr


@pytest.mark.parametrize("out", ["new", "trained"])
def test_a_plan_says_what_would_be_done_and_does_nothing(trained, scenes, recipe, command, tmp_path, out):
    run = copy_of(trained, tmp_path) if out == "trained" else tmp_path / "new"
    before = files_in(tmp_path)
    given = ("train", scenes, "--recipe", recipe, "--out", run, "--plan")
    change = ("--set", "members.tiny.predict.suppress.max_per_image=3")
    done = command(*given, *change)
    assert done.exit_code == 0, done.stderr
    told = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()[: len(STAGES)]}
    expected = ["keep", "keep", "redo", "redo", "redo"] if out == "trained" else ["do"] * 5
    assert told == dict(zip(STAGES, expected, strict=True))
    if out == "trained":
        assert "suppress.max_per_image: was 20, is now 3" in done.stdout
        refused = command(*given, "--set", "members.tiny.train.lr=0.5", "--json")
        (first, *_) = json.loads(refused.stdout)["stages"]
        assert (first["action"], first["reasons"]) == ("refuse", ["train.lr: was 0.0025, is now 0.5"])
    assert files_in(tmp_path) == before


def test_a_broken_annotation_file_is_told_whole_and_nothing_is_written(scenes, recipe, command, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    content = read(data / "annotations/train.json")
    first, second, third = content["annotations"][:3]
    first["bbox"], second["category_id"], third["image_id"] = [0, 0, -4, 4], 999, "1"
    (data / "annotations/train.json").write_text(json.dumps(content))
    before = files_in(data)
    done = command("train", data, "--recipe", recipe, "--out", tmp_path / "run")
    assert done.exit_code == 2
    for code, annotation in (("box-size", first), ("category-unknown", second), ("image-unknown", third)):
        (line,) = [line for line in done.stderr.splitlines() if f"[{code}]" in line]
        assert f"id {annotation['id']}: " in line
        assert "train.json" in line
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()
    assert files_in(data) == before


def test_with_skip_invalid_the_rest_is_used_and_the_loss_is_counted(scenes, recipe, command, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    content = read(data / "annotations/train.json")
    content["annotations"][0]["bbox"] = [0, 0, -4, 4]
    (data / "annotations/train.json").write_text(json.dumps(content))
    epochs = ("--set", "members.tiny.train.epochs=1")
    done = command("train", data, "--recipe", recipe, "--out", tmp_path / "run", "--skip-invalid", *epochs)
    assert done.exit_code == 0, done.stderr
    assert "[box-size]" in done.stderr
    assert read(tmp_path / "run/data.json")["train"]["findings_by_code"]["box-size"] == 1
    assert "box-size" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_goes_on_and_ends_like_an_uninterrupted_one(
    trained, scenes, recipe, start, command, tmp_path, workers
):
    """With workers, they are sent the signal, too, as `timeout` and schedulers do."""
    out = tmp_path / "run"
    loading = ("--set", f"members.tiny.train.workers={workers}")
    process = start("train", scenes, "--recipe", recipe, "--out", out, *loading, start_new_session=True)
    lines = out / "members/tiny/metrics.jsonl"
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        if lines.is_file() and lines.read_text().count("\n") >= 3:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    saved = load_checkpoint(out / "members/tiny/last.safetensors").meta.step
    assert f"stopped by SIGTERM after step {saved};" in told
    assert read(out / "status.json")["state"] == "interrupted"
    expected = {STAGES[0]: "interrupted"} | dict.fromkeys(STAGES[1:], "waiting")
    assert read(out / "status.json")["stages"] == expected
    done = command("train", scenes, "--recipe", recipe, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert lines.read_text() == (trained / "members/tiny/metrics.jsonl").read_text()
    ours, theirs = (load_checkpoint(run / "members/tiny/best.safetensors").tensors for run in (out, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read(out / "metrics.json") == read(trained / "metrics.json")


@pytest.mark.parametrize("place", ["file", "full folder"])
def test_an_output_folder_that_is_taken_stays_as_it_is(scenes, recipe, command, tmp_path, place):
    out = tmp_path / "out"
    if place == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    done = command("train", scenes, "--recipe", recipe, "--out", out)
    assert done.exit_code == 2
    assert str(out) in done.stderr
    assert (out if place == "file" else out / "mine.txt").read_text() == "mine"

"""Prediction in shards: the same as in one go, each image once, whatever fails, stops or comes later."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from reference.forked import fork_workers
from run.shards.conftest import NUM_PHOTOS, colour_detector, write_photos
from scantling import api
from scantling.cli.app import app
from scantling.errors import DataError, Interrupted, UsageError
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict import listing
from scantling.run.predictions import predict_source
from scantling.run.shards import plan as plans
from scantling.run.shards import predict, stages
from scantling.run.shards.plan import images_of, read_plan, shard_folder
from scantling.train.checkpoint import CheckpointMeta, model_tensors, save_checkpoint
from scantling.train.rundir import FolderInUseError


def read(path):
    return json.loads(Path(path).read_text())


def in_shards(source, folder, weights=None, *, size=3, device="cpu", **options):
    names = {"overrides", "skip_invalid", "jobs"}
    given = {name: options.pop(name) for name in names & options.keys()}
    shards = api.Shards.in_folder(folder, size=size, **options)
    return api.predict_shards(source, shards, checkpoint=weights, device=device, **given)


@pytest.fixture
def done(monkeypatch):
    """How often each shard was predicted."""
    counts = Counter()
    original = stages.predict_shard

    def counted(context, index):
        counts[index] += 1
        original(context, index)

    monkeypatch.setattr(stages, "predict_shard", counted)
    return counts


@pytest.mark.parametrize("size", [1, 4, 100])
def test_merged_shards_are_the_file_of_a_prediction_in_one_go_to_the_bit(
    photos, weights, tmp_path, size, done
):
    whole = predict_source(photos, colour_detector(), out=tmp_path / "whole.json")
    summary = in_shards(photos, tmp_path / "out", weights, size=size)
    api.merge(tmp_path / "out", tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert len(whole.results) == summary.objects >= NUM_PHOTOS - 1
    assert (summary.predicted, summary.unreadable, summary.missing) == (NUM_PHOTOS - 1, 1, ())
    assert done == dict.fromkeys(range(-(-NUM_PHOTOS // size)), 1)


def test_a_shard_of_damaged_images_alone_is_done_and_tells_them(photos, weights, tmp_path):
    for name in ("1.png", "2.png"):
        (photos / name).write_bytes(b"nothing")
    summary = in_shards(photos, tmp_path / "out", weights, size=3)
    first = tmp_path / "out" / shard_folder(0)
    assert [image.id for image in images_of(read_plan(tmp_path / "out").lines(tmp_path / "out", 0))] == [
        "1.png",
        "10.png",
        "2.png",
    ]
    assert summary.missing == ()
    told = read(first / "summary.json")
    assert (told["images"], told["predicted"], told["unreadable"]) == (3, 1, 2)
    assert [finding["id"] for finding in told["findings"]] == ["1.png", "2.png"]
    (photos / "10.png").write_bytes(b"nothing")
    in_shards(photos, tmp_path / "other", weights, size=3)
    assert (tmp_path / "other" / shard_folder(0) / "predictions.jsonl").read_bytes() == b""


def test_without_one_image_that_can_be_read_a_prediction_in_one_go_fails_and_shards_count(weights, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"nothing")
    (tmp_path / "list.txt").write_text("photos/a.png\n")
    with pytest.raises(DataError, match="none of the images") as caught:
        predict_source(tmp_path / "list.txt", colour_detector())
    assert [finding.code for finding in caught.value.findings] == ["image-format"]
    assert in_shards(tmp_path / "photos", tmp_path / "out", weights).unreadable == 1


def test_a_shard_whose_images_are_all_away_is_not_done_and_the_same_command_does_it(
    photos, weights, tmp_path, done
):
    (tmp_path / "list.txt").write_text("".join(f"photos/{n}.png\n" for n in (1, 2, 3, 10)))
    photos.rename(tmp_path / "away")
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "away" / "10.png", photos)
    summary = in_shards(tmp_path / "list.txt", tmp_path / "out", weights, size=2)
    assert (summary.missing, summary.predicted, summary.unreadable) == ((0,), 1, 1)
    told = "not one of its 2 images is there; photos/1.png: there is no such image file"
    assert summary.failures == {shard_folder(0): told}
    with pytest.raises(UsageError, match="1 of 2 shards are missing"):
        api.merge(tmp_path / "out", tmp_path / "out.json")
    shutil.copytree(tmp_path / "away", photos, dirs_exist_ok=True)
    summary = in_shards(tmp_path / "list.txt", tmp_path / "out", weights, size=2)
    assert (summary.missing, summary.predicted, summary.unreadable) == ((), 3, 1)
    assert done == {0: 2, 1: 1}
    merged = api.merge(tmp_path / "out", tmp_path / "out.json")
    assert "2 of 2 shards (images that could not be read: 1) in" in merged.to_text()
    assert merged.to_dict()["num_unusable"] == 1


def test_what_could_not_be_read_is_looked_at_again_when_that_is_asked_for(photos, weights, tmp_path, done):
    whole = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(b"nothing")
    summary = in_shards(photos, tmp_path / "out", weights, size=4)
    (photos / "2.png").write_bytes(whole)
    again = next(line for line in summary.to_text().splitlines() if "look again" in line).partition(": ")[2]
    program, verb, *arguments = shlex.split(again)
    assert (program, verb) == ("scantling", "predict")
    before = dict(done)
    assert CliRunner().invoke(app, [verb, *arguments]).exit_code == 0
    redone = {index for index, count in done.items() if count > before.get(index, 0)}
    lost = {
        index
        for index in before
        if any(
            image.id in ("2.png", "damaged.png")
            for image in images_of(read_plan(tmp_path / "out").lines(tmp_path / "out", index))
        )
    }
    assert redone == lost != set(before)
    assert in_shards(photos, tmp_path / "out", weights, size=4).unreadable == summary.unreadable - 1


def test_the_same_command_does_what_is_missing_or_was_changed_and_nothing_else(
    photos, weights, tmp_path, done
):
    out = tmp_path / "out"
    in_shards(photos, out, weights)
    done.clear()
    in_shards(photos, out, weights)
    assert done == {}
    (out / shard_folder(1) / "summary.json").unlink()
    with (out / shard_folder(2) / "predictions.jsonl").open("a") as stream:
        stream.write("{}\n")
    assert in_shards(photos, out, weights, size=None).missing == ()
    assert done == {1: 1, 2: 1}


def test_resume_asks_for_nothing_and_lists_nothing(photos, weights, tmp_path, done, monkeypatch):
    out = tmp_path / "out"
    in_shards(photos, out, weights, overrides=["scales=40"])
    (out / shard_folder(3) / "done.json").unlink()
    done.clear()
    monkeypatch.setattr(predict, "list_source", lambda *_, **__: pytest.fail("the images were listed anew"))
    (photos / "new.png").write_bytes(b"nothing")
    assert in_shards(None, out, size=None, resume=True).missing == ()
    assert done == {3: 1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"overrides": ["scales=50"]}, 'settings: was [], is now ["scales=50"]'),
        ({"size": 4}, "shard_size: was 3, is now 4"),
        ({"skip_invalid": True}, "skip_invalid: was false, is now true"),
        ("image", "num_images: was 11, is now 12"),
        ("weights", "files.checkpoint: was"),
    ],
)
def test_another_prediction_in_the_folder_is_refused_with_what_differs(
    photos, weights, tmp_path, change, told
):
    out, options = tmp_path / "out", change if isinstance(change, dict) else {}
    in_shards(photos, out, weights)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if change == "image":
        (photos / "new.png").write_bytes(b"nothing")
    if change == "weights":
        weights.write_bytes(b"others")
    with pytest.raises(UsageError) as caught:
        in_shards(photos, out, weights, **options)
    assert told in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_resuming_with_changed_weights_is_refused_too(photos, weights, tmp_path):
    in_shards(photos, tmp_path / "out", weights)
    weights.write_bytes(b"others")
    with pytest.raises(UsageError, match=r"files\.checkpoint"):
        in_shards(None, tmp_path / "out", size=None, resume=True)
    weights.unlink()
    with pytest.raises(UsageError, match=r"weights\.safetensors: there is no such file"):
        in_shards(None, tmp_path / "out", size=None, resume=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"overrides": ["scales=50"]}, 'settings: was [], is now ["scales=50"]'),
        ({"size": 4}, "shard_size: was 3, is now 4"),
        ({"skip_invalid": True}, "skip_invalid: was false, is now true"),
    ],
)
def test_resuming_with_what_was_not_planned_is_refused_and_resume_is_not_advised(
    photos, weights, tmp_path, change, told
):
    in_shards(photos, tmp_path / "out", weights)
    with pytest.raises(UsageError) as caught:
        in_shards(None, tmp_path / "out", weights, resume=True, **{"size": None, **change})
    assert told in str(caught.value)
    assert "leave out what differs" in caught.value.hint
    assert "--resume" not in caught.value.hint


def test_an_engine_that_cannot_be_used_is_refused_before_anything_is_written(
    photos, weights, tmp_path, monkeypatch
):
    with pytest.raises(
        UsageError, match="--engine shared is for run, train, suite and ablate, not for predict"
    ):
        in_shards(photos, tmp_path / "out", weights, jobs=api.Engine(name="shared"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="Ray, which is not installed"):
        in_shards(photos, tmp_path / "out", weights, jobs=api.Engine(name="ray"))
    assert not (tmp_path / "out").exists()


def test_machines_share_the_shards_out(photos, weights, tmp_path, done):
    """The second sees the photos under another path, as on a drive that is mounted elsewhere."""
    out = tmp_path / "out"
    first = in_shards(photos, out, weights, part="1/2")
    assert (done, first.missing, first.unfinished) == ({0: 1, 2: 1}, (1, 3), ())
    assert "others are not: 00001, 00003" in first.to_text()
    (tmp_path / "mounted").symlink_to(tmp_path)
    second = in_shards(tmp_path / "mounted" / "photos", out, weights, part="2/2")
    assert (done, second.missing) == (dict.fromkeys(range(4), 1), ())
    assert read(out / "parts" / "2-of-2" / "status.json")["images_done"] == 5


def test_other_processes_are_given_the_model_by_its_absolute_path(photos, weights, tmp_path, monkeypatch):
    told = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "do_with", lambda _, context, *rest: told.append(context.model))
    in_shards(photos, tmp_path / "out", weights.name)
    assert [model.paths for model in told] == [{"checkpoint": weights}]


def test_who_comes_second_waits_for_the_plan_of_the_first(photos, weights, tmp_path, monkeypatch):
    claim, tried = predict.claim_folder, []

    def taken(folder, **options):
        tried.append(folder)
        if len(tried) < 3:
            raise FolderInUseError("in use")
        return claim(folder, **options)

    monkeypatch.setattr(predict, "claim_folder", taken)
    monkeypatch.setattr(predict, "_WAIT_SECONDS", 0.01)
    assert in_shards(photos, tmp_path / "out", weights).missing == ()
    assert len(tried) == 3


def test_a_shard_that_fails_costs_no_other(photos, weights, tmp_path, monkeypatch):
    original = stages.opened_images

    def broken(images, root):
        if images[0].id == "5.png":
            raise MemoryError("no memory for this one")
        if images[0].id == "sub/3.png":
            raise ZeroDivisionError("odd")
        return original(images, root)

    monkeypatch.setattr(stages, "opened_images", broken)
    out = tmp_path / "out"
    summary = in_shards(photos, out, weights, size=2)
    failed = [shard_folder(index) for index in summary.missing]
    assert list(summary.failures) == failed
    assert len(failed) == 2
    assert summary.bugs == (failed[1],)
    assert f"scantling predict --shards {out} --resume" in summary.to_text()
    assert read(out / "parts" / "1-of-1" / "status.json")["state"] == "failed"
    monkeypatch.undo()
    monkeypatch.setattr("scantling.run.shards.model.ChosenModel.load", lambda self, device: colour_detector())
    assert in_shards(None, out, size=None, resume=True).missing == ()


def test_what_was_done_before_a_signal_stays(photos, weights, tmp_path, monkeypatch):
    original = stages.predict_shard

    def interrupted(context, index):
        if index == 2:
            raise Interrupted(signal.SIGTERM, "interrupted")
        original(context, index)

    monkeypatch.setattr(stages, "predict_shard", interrupted)
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        in_shards(photos, out, weights)
    assert read(out / "parts" / "1-of-1" / "status.json")["state"] == "interrupted"
    assert sorted(path.parent.name for path in out.rglob("done.json")) == ["00000", "00001"]


def test_a_file_that_a_killed_process_left_is_removed(photos, weights, tmp_path):
    folder = tmp_path / "out" / shard_folder(0)
    in_shards(photos, tmp_path / "out", weights)
    (folder / "done.json").unlink()
    (folder / ".predictions.jsonl.7.abc.tmp").write_text("half")
    in_shards(photos, tmp_path / "out", weights)
    assert sorted(path.name for path in folder.iterdir()) == [
        "done.json",
        "predictions.jsonl",
        "summary.json",
    ]


def test_images_are_listed_without_opening_one(photos, weights, tmp_path, monkeypatch):
    """And a shard reads no more of the list than its own lines."""
    monkeypatch.setattr(listing, "begins_as_image", lambda path: pytest.fail(f"{path} was opened"))
    (photos / "notes.txt").write_text("no image")
    in_shards(photos, tmp_path / "out", weights)
    out = tmp_path / "out"
    plan = read_plan(out)
    assert (plan.num_images, plan.num_shards) == (NUM_PHOTOS, 4)
    assert ["not-an-image" in finding for finding in plan.findings] == [True]
    parts = [plan.lines(out, index) for index in range(4)]
    assert [len(images_of(lines)) for lines in parts] == [3, 3, 3, 2]
    assert b"".join(parts) == (out / plans.IMAGES).read_bytes()


def test_a_folder_that_is_something_else_is_left_alone(photos, weights, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        in_shards(photos, tmp_path / "taken", weights)
    with pytest.raises(UsageError, match="no prediction to go on with"):
        in_shards(None, tmp_path / "nowhere", size=None, resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_progress_says_speed_and_time_left(photos, weights, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    in_shards(photos, tmp_path / "out", weights)
    told = [record.getMessage() for record in caplog.records if "images/s" in record.getMessage()]
    assert "shards/00/00000: 3 images, 3 objects; 3 of 11 images, " in told[0]
    assert told[0].endswith(" left")
    assert len(told) == 4


@pytest.mark.parametrize("given", [{"size": 0}, {"part": "0/2"}, {"part": "3/2"}, {"part": "half"}])
def test_numbers_that_cannot_be_are_refused(photos, weights, tmp_path, given):
    with pytest.raises(UsageError, match=str(next(iter(given.values())))):
        in_shards(photos, tmp_path / "out", weights, **given)


def test_nothing_is_written_where_a_prediction_cannot_begin(photos, weights, tmp_path):
    content = {"images": [{"id": 1, "file_name": "1.png", "width": 60, "height": 40}], "annotations": []}
    (photos / "val.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "red"}]}))
    with pytest.raises(UsageError, match="green, blue"):
        in_shards(photos / "val.json", tmp_path / "out", weights)
    with pytest.raises(UsageError, match="no file fits"):
        in_shards(f"{photos}/*.jpg", tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()
    found = in_shards(photos / "val.json", tmp_path / "out", weights, skip_invalid=True)
    assert (found.objects, found.left_out) == (0, {"green": 1})
    assert in_shards(None, tmp_path / "out", size=None, resume=True).left_out == {"green": 1}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_side_by_side_with_a_process_that_is_killed_every_image_comes_once(tmp_path, monkeypatch):
    """A real checkpoint, as each process loads it for itself."""
    fork_workers(monkeypatch)
    torch.manual_seed(0)
    config = ModelConfig(
        name="faster_rcnn_r18_small",
        backbone="resnet10t",
        init="random",
        fpn_channels=16,
        fc_channels=16,
        num_test_proposals=10,
    )
    settings = {"scales": 32, "long_side": 48, "suppress": {"score_threshold": 0.0, "max_per_image": 2}}
    meta = CheckpointMeta(
        kind="detector",
        model=config.model_dump(mode="json"),
        class_names=("bolt",),
        category_ids=(1,),
        predict=settings,
    )
    weights, out = tmp_path / "weights.safetensors", tmp_path / "out"
    save_checkpoint(weights, model_tensors(build_model(config, 1)), meta)
    photos = write_photos(tmp_path / "photos", 24)

    def kill_one() -> None:
        while not list(out.rglob("summary.json")):
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    in_shards(photos, out, weights, size=2, jobs=2)
    killer.join(10)
    summary = in_shards(None, out, size=None, resume=True)
    assert (summary.missing, summary.predicted, summary.unreadable) == ((), 23, 1)
    api.merge(out, tmp_path / "merged.json")
    api.predict(photos, checkpoint=weights, out=tmp_path / "whole.json", device="cpu")
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()

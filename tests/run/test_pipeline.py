"""A run's data, what its stages depend on, and what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from scantling.data.health.check import check_data
from scantling.data.splits import DataConfig, describe_run_data, locate_split, read_run_data
from scantling.errors import CheckpointError, ConfigError, DataError, UsageError
from scantling.models.suppression import SuppressConfig
from scantling.predict.whole_set import predict_dataset
from scantling.recipe.facts import measure
from scantling.recipe.recipe import parse_recipe
from scantling.report.dataset_facts import describe_dataset
from scantling.run.context import RunContext, TrainingJob
from scantling.run.pipeline import run_recipe
from scantling.run.predictions import overlay_path
from scantling.run.stage import hash_of
from scantling.run.stages.detecting import _tune, suppression_of
from scantling.run.stages.training import check_detectors, initial_model, train_stage
from scantling.synth.synth import SynthConfig, write_synth
from scantling.train.checkpoint import CheckpointMeta, save_checkpoint

RECIPE = """
seed: 3
members:
  one: {model: {name: faster_rcnn_r18_small, fpn_channels: 16, fc_channels: 16}}
  two: {model: {name: faster_rcnn_r18_small, fpn_channels: 16, fc_channels: 16}}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_synth(root, SynthConfig(size_hw=(96, 128)), splits={"train": 3, "val": 2, "test": 2}, seed=0)
    return root


def edited(scenes: Path, tmp_path: Path, split: str, edit) -> Path:
    """A copy of the annotations, one split changed, with the images of the original."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(scenes / "images")
    for name in ("train", "val"):
        content = json.loads((scenes / "annotations" / f"{name}.json").read_text())
        if name == split:
            edit(content)
        (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def context_for(root: Path, out: Path, *changes: str) -> RunContext:
    recipe = parse_recipe(RECIPE, file="r.yaml", overrides=changes).on(data=root)
    data = read_run_data(recipe.data, recipe.evaluate.split)
    return RunContext(
        root=out, recipe=recipe, data=data, device=torch.device("cpu"), console=Console(quiet=True)
    )


def test_splits_are_found_by_name_or_as_files(scenes):
    by_name = locate_split(DataConfig(root=str(scenes)), "val")
    assert by_name == (scenes / "annotations/val.json", scenes / "images")
    entries = DataConfig(root=str(scenes), val="annotations/test.json", images="images")
    assert locate_split(entries, *entries.entries("val")) == (
        scenes / "annotations/test.json",
        scenes / "images",
    )
    assert locate_split(entries, "test")[0] == scenes / "annotations/test.json"


def test_the_evaluated_split_may_be_another_one(scenes):
    data = read_run_data(DataConfig(root=str(scenes)), "test")
    assert list(data.splits) == ["train", "val", "test"]
    assert data.target.file.name == "test.json"
    assert len({*data.hashes.values()}) == 3


def test_no_data_set(tmp_path):
    with pytest.raises(UsageError, match="no data set is given"):
        read_run_data(DataConfig(), "val")
    with pytest.raises(DataError):
        read_run_data(DataConfig(root=str(tmp_path / "nowhere")), "val")


def test_all_splits_are_told_at_once(scenes, tmp_path):
    def spoil(content):
        content["annotations"][0]["bbox"] = [0, 0, -5, 5]
        content["images"][0]["file_name"] = "gone.jpg"

    root = edited(scenes, tmp_path, "val", spoil)
    (root / "annotations/train.json").write_text("{")
    with pytest.raises(DataError) as caught:
        read_run_data(DataConfig(root=str(root)), "val")
    codes = {(Path(f.file or "").name, f.code) for f in caught.value.findings}
    assert ("train.json", "json-syntax") in codes
    assert ("val.json", "box-size") in codes


def test_categories_that_differ_are_an_error_and_leaks_a_warning(scenes, tmp_path):
    def rename(content):
        content["categories"][0]["name"] = "other"
        train = json.loads((scenes / "annotations/train.json").read_text())
        content["images"][0]["file_name"] = train["images"][0]["file_name"]

    root = edited(scenes, tmp_path, "val", rename)
    with pytest.raises(DataError) as caught:
        read_run_data(DataConfig(root=str(root)), "val")
    severities = {finding.code: finding.severity for finding in caught.value.findings}
    assert severities["split-categories-differ"] == "error"
    assert severities["split-same-file"] == "warning"


@pytest.mark.parametrize(
    ("decode", "codes"),
    [(None, {"split-same-pixels", "split-near-pixels"}), (False, set())],
    ids=["looked at", "not looked at"],
)
def test_a_run_finds_the_leaks_that_check_finds(scenes, tmp_path, decode, codes):
    """A picture of training stored anew in val; unless the user says that pixels are not looked at."""

    def leak(content):
        train = json.loads((scenes / "annotations/train.json").read_text())
        (tmp_path / "images").unlink()
        shutil.copytree(scenes / "images", tmp_path / "images")
        with Image.open(scenes / "images" / train["images"][0]["file_name"]) as picture:
            picture.save(tmp_path / "images" / "copy.png", compress_level=1)
        content["images"][0]["file_name"] = "copy.png"

    root = edited(scenes, tmp_path, "val", leak)
    data = read_run_data(DataConfig(root=str(root), decode=decode), "val")
    assert leaks_among(data.val.findings) == codes
    assert leaks_among(describe_dataset(data.splits).findings) == codes
    if codes:
        assert leaks_among(check_data(str(root)).findings) == codes
    assert leaks_among(read_run_data(DataConfig(root=str(scenes)), "val").val.findings) == set()


def leaks_among(findings):
    return {f.code for f in findings} & {"split-same-file", "split-same-pixels", "split-near-pixels"}


def test_what_is_left_out_is_counted(scenes, tmp_path):
    def spoil(content):
        for annotation in content["annotations"][:2]:
            annotation["bbox"] = [0, 0, -5, 5]

    root = edited(scenes, tmp_path, "train", spoil)
    data = read_run_data(DataConfig(root=str(root), skip_invalid=True), "val")
    record = describe_run_data(data)["train"]
    whole = read_run_data(DataConfig(root=str(scenes)), "val").train.num_annotations
    assert record["findings_by_code"]["box-size"] == 2
    assert record["num_annotations"] == whole - 2
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_facts_are_those_of_the_training_images(scenes):
    train = read_run_data(DataConfig(root=str(scenes)), "val").train
    facts = measure(train, torch.device("cpu"))
    sizes = sorted((a.box_xywh[2] * a.box_xywh[3]) ** 0.5 for group in train.annotations for a in group)
    assert (facts.num_images, facts.median_hw, facts.device, facts.memory_gib) == (3, (96, 128), "cpu", None)
    assert facts.small_object is not None
    assert sum(size < facts.small_object for size in sizes) <= 0.1 * len(sizes)
    assert sum(size <= facts.small_object for size in sizes) >= 0.1 * len(sizes)


def test_training_depends_on_data_and_settings_but_not_on_prediction(scenes, tmp_path):
    def inputs(*changes: str) -> str:
        return hash_of(train_stage(context_for(scenes, tmp_path, *changes), TrainingJob("one")).inputs())

    base = inputs()
    same = [
        "members.one.predict.scales=64",
        "members.one.train.workers=1",
        "about=other",
        "members.two.train.lr=1",
    ]
    other = [
        "members.one.train.lr=1",
        "members.one.augment.flip=0",
        "seed=4",
        "members.one.model.fc_channels=8",
    ]
    for change in same:
        assert inputs(change) == base, change
    for change in other:
        assert inputs(change) != base, change


def test_random_weights_depend_on_seed_and_member_only(scenes, tmp_path):
    def weights(name: str, *changes: str) -> torch.Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())
        model = initial_model(context_for(scenes, tmp_path, *changes), TrainingJob(name))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    base = weights("one")
    assert torch.equal(base, weights("one", "members.one.train.lr=1"))
    assert not torch.equal(base, weights("two"))
    assert not torch.equal(base, weights("one", "seed=4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("members.two.model.name=cascade", "members.two: model.name: unknown model 'cascade'"),
        (
            "members.two.predict.suppress.iou_threshold={nothing: 0.4}",
            "members.two: iou_threshold: unknown categories",
        ),
        ("members.two.model.backbone=resnet19", "members.two: backbone 'resnet19'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(scenes, tmp_path, change, message):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=message):
        check_detectors(context_for(scenes, out, change), begun=True)
    recipe = parse_recipe(RECIPE, file="r.yaml", overrides=[change]).on(data=scenes)
    with pytest.raises(ConfigError, match=message):
        run_recipe(recipe, out)
    assert not out.exists()


def test_an_unknown_device_is_refused_with_those_there_are(scenes, tmp_path):
    with pytest.raises(UsageError, match=r"'tpu' is not available here\nAvailable: .*cpu"):
        run_recipe(parse_recipe(RECIPE, file="r.yaml").on(data=scenes), tmp_path / "out", device="tpu")
    assert not (tmp_path / "out").exists()


def test_results_come_in_the_order_of_the_images(scenes, tmp_path):
    context = context_for(scenes, tmp_path, "members.one.predict={scales: 64, long_side: 96}")
    member = context.recipe.members["one"]
    config = member.predict.model_copy(
        update={"suppress": member.predict.suppress.model_copy(update={"score_threshold": 0})}
    )
    model = initial_model(context, TrainingJob("one"))
    results = predict_dataset(model, config, context.data.train, context.device)
    order = list(dict.fromkeys(result["image_id"] for result in results))
    assert order == [record.id for record in context.data.train.images]


def test_overlays_keep_the_name_and_become_jpegs(scenes):
    record = read_run_data(DataConfig(root=str(scenes)), "val").val.images[0]
    assert overlay_path(Path("o"), record) == Path("o") / record.file_name
    png = type(record)(id=1, file_name="sub/a.png", path=Path("a.png"), size_hw=(1, 1))
    assert overlay_path(Path("o"), png) == Path("o/sub/a.png.jpg")


def missing(path: Path) -> None:
    """A typing mistake."""


def damaged(path: Path) -> None:
    save_checkpoint(path, {"model.weight": torch.arange(40.0)}, CheckpointMeta())
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))


@pytest.mark.parametrize(
    ("make", "words"), [(missing, "there is no such file"), (damaged, "the checksum does not fit")]
)
@pytest.mark.parametrize(
    ("place", "key"),
    [("members.one.model.init", "members.one: model.init"), ("refine.model.weights", "refine.model.weights")],
)
def test_a_file_of_weights_is_opened_before_anything_is_written(scenes, tmp_path, make, words, place, key):
    weights, out = tmp_path / "weights.safetensors", tmp_path / "run"
    make(weights)
    only = RECIPE.replace("  two:", "  #two:")
    recipe = parse_recipe(only, file="r.yaml", overrides=[f"{place}={weights}"]).on(data=scenes)
    with pytest.raises(CheckpointError) as caught:
        run_recipe(recipe, out, device="cpu")
    assert str(weights) in str(caught.value)
    assert key in str(caught.value)
    assert words in str(caught.value)
    assert not out.exists()


def test_suppression_stays_as_it_is_where_there_is_nothing_to_tune_it_on(scenes, tmp_path, caplog):
    root = edited(scenes, tmp_path, "val", lambda content: content.update(annotations=[]))
    changes = ("combine={tune: {}, members: [one]}", "members.one.predict.suppress={iou_threshold: 0.35}")
    context = context_for(root, tmp_path / "run", *changes)
    _tune(context, "one")
    assert suppression_of(context, "one") == SuppressConfig(iou_threshold=0.35)
    assert "one: there are no objects to tune suppression on" in caplog.text

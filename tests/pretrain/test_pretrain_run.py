"""Whole pretrainings: what they leave, how they go on, what they refuse, and that they learn."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from painted import SIDE, TINY, painted_plan, painted_store, write_painted
from PIL import Image
from rich.console import Console

from scantling import api
from scantling.errors import CheckpointError, ConfigError, DataError, Interrupted, UsageError
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.weights.opener import read_weights
from scantling.models.zoo import ModelConfig, build_model
from scantling.pretrain import run as module
from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.crop_store import CropStore
from scantling.pretrain.moco import MoCo
from scantling.pretrain.run import PretrainRun, initial_moco, pretrain
from scantling.pretrain.source import read_crops
from scantling.pretrain.views import BuildViews, ViewConfig, ViewTask
from scantling.train.checkpoint import load_checkpoint

SETS = [f"{key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def finished(plan, tmp_path_factory):
    """A pretraining of two epochs of six steps."""
    config = PretrainConfig(**TINY, lr=0.03, momentum=0.9)
    run = PretrainRun(device="cpu", console=Console(quiet=True))
    return pretrain(plan, config, tmp_path_factory.mktemp("pretraining") / "out", run=run)


def state(folder) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "train" / "last.safetensors").tensors


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_pretraining_leaves(finished, plan):
    metrics = json.loads((finished.out / "metrics.json").read_text())
    assert metrics == finished.metrics
    assert metrics["crops"] == len(plan) == 48
    assert set(metrics["knn"]) == set(metrics["knn_untrained"]) == {"accuracy", "balanced", "majority"}
    entries = [
        json.loads(line) for line in (finished.out / "train" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {"val/queue_accuracy", "val/knn_accuracy", "val/knn_balanced_accuracy"} <= entries[-1].keys()
    assert entries[-1]["val/knn_accuracy"] == metrics["knn"]["accuracy"]
    assert "auto" not in (finished.out / "pretrain.yaml").read_text().replace("source: auto", "")
    assert str(finished.weights) in finished.to_text()


def test_the_exported_backbone_is_the_query_encoders_and_loads_strictly(finished):
    checkpoint = load_checkpoint(finished.weights)
    assert checkpoint.meta.kind == "backbone"
    config = BackboneConfig.model_validate(checkpoint.meta.model)
    backbone = Backbone(config)
    assert backbone.load(read_weights(finished.weights)) == []
    trained = {
        name.removeprefix("model.query.backbone."): tensor
        for name, tensor in state(finished.out).items()
        if name.startswith("model.query.backbone.")
    }
    assert same(backbone.state_dict(), trained)
    detector = build_model(
        ModelConfig(
            name="faster_rcnn_r18_small", backbone=config.name, norm="gn", init=str(finished.weights)
        ),
        2,
    )
    assert same(detector.backbone.state_dict(), trained)
    with pytest.raises(ConfigError, match="do not fit"):
        Backbone(BackboneConfig(name="resnet18")).load(read_weights(finished.weights))


def test_the_queue_is_full_of_keys_when_training_ends(finished):
    tensors = state(finished.out)
    assert tensors["model.queue_crops"].min() >= 0
    assert torch.allclose(tensors["model.queue"].norm(dim=1), torch.ones(16))
    assert int(tensors["model.place"]) == 12 * 8 % 16


@pytest.mark.parametrize("stop_at", [3, 8])
def test_stopped_and_resumed_equals_never_stopped(
    finished, plan, config, quiet, tmp_path, monkeypatch, stop_at
):
    """Queue, both encoders, optimiser and history: bit for bit."""
    original, steps = module.MoCo.losses, []

    def losses(self, batch):
        steps.append(1)
        if len(steps) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(module.MoCo, "losses", losses)
    with pytest.raises(Interrupted):
        pretrain(plan, config, tmp_path / "out", run=quiet)
    assert not (tmp_path / "out" / "backbone.safetensors").exists()
    kept = state(tmp_path / "out")
    assert (kept["model.queue_crops"] >= 0).sum() == min(16, 8 * stop_at)
    summary = pretrain(plan, config, tmp_path / "out", run=quiet)
    assert len(steps) == 12
    assert same(state(tmp_path / "out"), state(finished.out))
    assert summary.metrics == finished.metrics
    for name in ("train/metrics.jsonl", "backbone.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (finished.out / name).read_bytes()


def test_a_finished_pretraining_is_not_done_again(finished, plan, config, quiet, monkeypatch):
    monkeypatch.setattr(module.MoCo, "losses", lambda *_: pytest.fail("trained again"))
    assert pretrain(plan, config, finished.out, run=quiet).metrics == finished.metrics


def test_workers_change_nothing(finished, plan, config, quiet, tmp_path):
    changed = config.model_copy(update={"workers": 2})
    pretrain(plan, changed, tmp_path / "out", run=quiet)
    assert same(state(tmp_path / "out"), state(finished.out))


def test_other_settings_or_data_are_refused_and_nothing_is_lost(
    finished, plan, config, quiet, painted, tmp_path
):
    before = (finished.out / "train" / "last.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"temperature: was 0.2, is now 0.1"):
        pretrain(plan, config.model_copy(update={"temperature": 0.1}), finished.out, run=quiet)
    other = painted_plan(write_painted(tmp_path / "other", images=3, categories=3, seed=9))
    with pytest.raises(CheckpointError, match="data"):
        pretrain(other, config, finished.out, run=quiet)
    assert (finished.out / "train" / "last.safetensors").read_bytes() == before


def test_a_folder_with_other_files_is_refused(plan, config, quiet, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        pretrain(plan, config, tmp_path, run=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_too_few_crops_and_batches_are_said(painted, config, quiet, tmp_path):
    plan = read_crops(
        painted,
        config.model_copy(update={"crops": {"min_side": 1000}}).model_validate(
            {**config.model_dump(), "crops": {"min_side": 1000}}
        ),
    )
    with pytest.raises(DataError, match="0 crops.*48 objects were left out"):
        pretrain(plan, config, tmp_path / "out", run=quiet)
    assert not (tmp_path / "out").exists()


def test_images_without_labels(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(9):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.jpg")
    summary = api.pretrain(
        tmp_path / "photos",
        tmp_path / "out",
        overrides=[*SETS, "queue=4", "batch_size=4", "epochs=1"],
        device="cpu",
    )
    assert summary.metrics["crops"] == 9
    assert summary.metrics["knn"] is None
    assert summary.weights.is_file()
    parts = read_crops(tmp_path / "photos", PretrainConfig(source="random", random_per_image=3))
    assert len(parts) == 27
    with pytest.raises(DataError, match="format"):
        read_crops(tmp_path / "photos", PretrainConfig(source="objects"))


def test_splits_are_found_in_any_naming(painted, tmp_path):
    assert len(read_crops(painted, PretrainConfig())) == 48  # the only split there is
    both = write_painted(tmp_path / "both", images=2)
    write_painted(both, images=1, split="val", seed=1)
    assert len(read_crops(both, PretrainConfig())) == 48
    assert len(read_crops(f"{both}:val", PretrainConfig())) == 16
    assert len(read_crops(both, PretrainConfig(splits=("train",), source="images"))) == 2
    with pytest.raises(DataError, match="test"):
        read_crops(both, PretrainConfig(splits=("train", "test")))


def told_apart(moco: MoCo, store: CropStore, augment: ViewConfig) -> tuple[float, float]:
    """How often the nearest of all keys is a query's own, and one of its own category."""
    views = BuildViews(store=store, side=SIDE, config=augment, seed=9)(ViewTask(0, tuple(range(len(store)))))
    with torch.no_grad():
        queries, keys = (moco.eval().query(moco.normalise(v)) for v in (views.queries, views.keys))
    nearest, labels = (queries @ keys.T).argmax(dim=1), torch.from_numpy(store.labels)
    own = nearest == torch.arange(len(store))
    return float(own.double().mean()), float((labels[nearest] == labels).double().mean())


def test_views_of_crops_it_has_never_seen_are_told_apart_better(tmp_path, quiet):
    learned = painted_plan(write_painted(tmp_path / "learned", images=12, categories=24))
    unseen = painted_store(
        write_painted(tmp_path / "unseen", images=8, categories=24, seed=5), tmp_path / "store"
    )
    augment = ViewConfig(jitter=0.5, gray=0.0, blur=0.0, min_scale=0.4)
    settings = {**TINY, "batch_size": 32, "epochs": 10, "queue": 64, "embedding": 32, "knn_every": 10}
    config = PretrainConfig(**settings, augment=augment, optimizer="adamw", lr=1e-3, momentum=0.9)
    done = pretrain(learned, config, tmp_path / "out", run=quiet)
    moco = initial_moco(config, quiet.seed)
    own, category = told_apart(moco, unseen, augment)
    tensors = load_checkpoint(done.out / "train" / "last.safetensors").tensors
    parts = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    moco.load_state_dict(parts, strict=False)
    own_after, category_after = told_apart(moco, unseen, augment)
    assert own_after >= own + 0.1, (own, own_after)
    assert category_after >= category + 0.2, (category, category_after)

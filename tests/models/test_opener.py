"""Whatever is given as a file of weights is verified or refused by name, with nothing in it run."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from scantling.errors import CheckpointError, ConfigError
from scantling.models.weights.foreign import describe_foreign
from scantling.models.weights.mmdet import read_mmdet_checkpoint
from scantling.models.weights.opener import read_pytorch, read_weights
from scantling.models.zoo import ModelConfig, build_model, check_initial_weights
from scantling.predict.loaded import load_detector
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.refine.bbrefinement import check_initial_weights as check_refiner_weights
from scantling.train.checkpoint import CheckpointMeta, model_tensors, save_checkpoint

WEIGHTS = {"a.weight": torch.arange(600.0).reshape(20, 30), "b": torch.tensor([3, 4])}
SMALL = ModelConfig(name="faster_rcnn_r18_small", backbone="resnet10t", fpn_channels=16, fc_channels=16)
UNSAFE_ADVICE = ("weights_only", "torch.load", "trust", "safe_globals")


def ours(path: Path) -> None:
    tensors = {f"model.{name}": value for name, value in WEIGHTS.items()}
    save_checkpoint(path, {**tensors, "optimizer.step.b": torch.ones(2)}, CheckpointMeta())


def theirs(path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, path)


def new_pytorch(path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "meta": {"epoch": np.float64(3)}}, path)


def old_pytorch(path: Path) -> None:
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)


def wrapped(path: Path) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in WEIGHTS.items()}}, path)


MAKERS: list[Callable[[Path], None]] = [ours, theirs, new_pytorch, old_pytorch, wrapped]


def told(path: Path) -> str | None:
    """The refusal, which names the file and never advises to open it unsafely; None if the right weights came."""
    try:
        found = read_weights(path)
    except CheckpointError as error:
        message = str(error)
        assert str(path) in message
        assert not [advice for advice in UNSAFE_ADVICE if advice in message]
        return message
    assert set(found) == set(WEIGHTS)
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    return None


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w"])
def test_every_kind_of_file_is_told_by_its_content(tmp_path, make, name):
    make(tmp_path / name)
    assert told(tmp_path / name) is None


@pytest.mark.parametrize("make", MAKERS)
def test_a_file_cut_short_is_refused(tmp_path, make):
    path = tmp_path / "w.pth"
    make(path)
    content = path.read_bytes()
    for length in [*range(0, len(content), 151), len(content) - 1]:
        path.write_bytes(content[:length])
        assert told(path)


@pytest.mark.parametrize("make", [ours, new_pytorch])
def test_flipped_bits_and_zeroed_places_never_become_weights(tmp_path, make):
    path = tmp_path / "w.pth"
    make(path)
    content, choose = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        place, broken = choose.randrange(len(content)), bytearray(content)
        if choose.random() < 0.5:
            broken[place] ^= 1 << choose.randrange(8)
        else:
            broken[place : place + 64] = bytes(len(broken[place : place + 64]))
        path.write_bytes(broken)
        refused += told(path) is not None  # `told` fails on other weights than those saved
    assert refused > 100


def junk(path: Path) -> None:
    path.write_bytes(bytes(range(128, 256)) * 8)


class Attack:
    """Pickles to a call that leaves a mark when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def attacking_zip(path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "hook": Attack(path.with_name("ran"))}, path)


def attacking_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Attack(path.with_name("ran"))))


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def without_tensors(path: Path) -> None:
    torch.save({"epoch": 3}, path)


def a_list(path: Path) -> None:
    torch.save([torch.ones(2)], path)


def not_finite(path: Path) -> None:
    torch.save({"a.weight": torch.tensor([1.0, float("nan")])}, path)


REFUSED = {
    (lambda path: None): "no such file",
    Path.touch: "empty",
    Path.mkdir: "folder",
    (lambda path: path.write_text("lr: 0.1")): "a text file",
    (lambda path: path.write_text("<!DOCTYPE html><html>404")): "an HTML page",
    (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid")): "Git-LFS pointer",
    (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))): "a PNG image",
    junk: "binary data",
    plain_zip: "a zip archive",
    attacking_zip: "needs code to be executed",
    attacking_pickle: "needs code to be executed",
    without_tensors: "no state_dict with tensors",
    a_list: "no state_dict with tensors",
    not_finite: "not finite",
}


@pytest.mark.parametrize(("make", "words"), REFUSED.items())
@pytest.mark.parametrize("way", ["init", "refiner", "import"])
def test_every_verb_refuses_what_is_no_file_of_weights(tmp_path, make, words, way):
    path = tmp_path / "w.pth"
    make(path)
    open_it = {
        "init": lambda: check_initial_weights(SMALL.model_copy(update={"init": str(path)}), 2),
        "refiner": lambda: check_refiner_weights(RefinerConfig(backbone="resnet10t", weights=str(path))),
        "import": lambda: read_mmdet_checkpoint(path),
    }
    with pytest.raises(CheckpointError) as caught:
        open_it[way]()
    message = str(caught.value)
    assert str(path) in message
    assert words in message
    assert not [advice for advice in UNSAFE_ADVICE if advice in message]
    assert not (tmp_path / "ran").exists()


def test_an_import_needs_a_pytorch_file(tmp_path):
    theirs(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="not a PyTorch file: it looks like a safetensors file"):
        read_pytorch(tmp_path / "w.safetensors")


def test_weights_for_another_model_name_the_file(tmp_path):
    path = tmp_path / "theirs.safetensors"
    theirs(path)
    with pytest.raises(ConfigError, match=r"model\.init: .*theirs\.safetensors: weights do not fit"):
        check_initial_weights(SMALL.model_copy(update={"init": str(path)}), 2)
    with pytest.raises(ConfigError, match=r"model\.weights: .*theirs\.safetensors does not fit"):
        check_refiner_weights(RefinerConfig(backbone="resnet10t", weights=str(path)))


def test_what_the_check_lets_through_is_loaded(tmp_path):
    source, path = build_model(SMALL, 2), tmp_path / "last.safetensors"
    save_checkpoint(path, model_tensors(source), CheckpointMeta())
    config = SMALL.model_copy(update={"init": str(path)})
    check_initial_weights(config, 5)
    loaded = build_model(config, 5)
    assert torch.equal(
        loaded.state_dict()["backbone.body.conv1.0.weight"],
        source.state_dict()["backbone.body.conv1.0.weight"],
    )


def test_a_refiner_is_no_detector(tmp_path):
    refiner = Refiner(RefinerConfig(backbone="resnet10t"), ("bolt",))
    path = tmp_path / "refiner.safetensors"
    save_checkpoint(path, model_tensors(refiner), CheckpointMeta(kind="refiner", class_names=("bolt",)))
    with pytest.raises(
        CheckpointError, match="expected a detector's checkpoint, found that of a refiner"
    ) as caught:
        load_detector(path, device="cpu")
    assert "scantling refine apply" in str(caught.value)


def test_old_and_new_format_differ():
    """The makers above really make files of both formats."""
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(WEIGHTS, old, _use_new_zipfile_serialization=False)
    torch.save(WEIGHTS, new)
    assert old.getvalue()[:1] == b"\x80"
    assert new.getvalue()[:2] == b"PK"


@pytest.mark.parametrize("beginning", [b"\x80\x02", b"\x80\x04", b"BM", b"\x1f\x8b", b"%P", b"#!"])
def test_the_length_of_a_header_is_no_mark_of_another_kind(tmp_path, beginning):
    """The first bytes of a safetensors file are its header's length: one of 640 bytes begins as a pickle does."""
    path = tmp_path / "weights.safetensors"
    wanted = int.from_bytes(beginning, "little")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    padded = header + b" " * (wanted - len(header))
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + torch.arange(3.0).numpy().tobytes())
    assert path.read_bytes()[:2] == beginning
    assert describe_foreign(path) is None
    assert read_weights(path)["weight"].tolist() == [0.0, 1.0, 2.0]

"""The checkpoint file: what goes in comes out, and everything else is refused by name, never opened."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from scantling.errors import CheckpointError, TrainingError
from scantling.models.weights.container import non_finite
from scantling.train import checkpoint as module
from scantling.train.checkpoint import (
    FORMAT_VERSION,
    CheckpointMeta,
    class_differences,
    keep_previous,
    load_checkpoint,
    load_weights,
    model_tensors,
    save_checkpoint,
    weights_in,
)

META = CheckpointMeta(
    kind="detector",
    class_names=("Kratzer", "傷", 'with "quotes"'),
    category_ids=(3, "b", 90),
    model={"name": "cascade_rcnn", "deform": [2, 3, 4], "nested": {"dropout": 0.1, "init": None}},
    recipe_hash="abc",
    data_hash="def",
    step=12,
    epoch=3,
    metrics={"bbox/AP": 0.1 + 0.2, "bbox/APs": None},
    training={"state": {"best": 1e-300}},
)


def tensors_of_every_kind() -> dict[str, torch.Tensor]:
    numbers = torch.arange(-6, 6)
    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    )
    found = {f"model.{kind}".replace("torch.", ""): numbers.to(kind).reshape(3, 4) for kind in kinds}
    found |= {
        "model.int8": numbers.to(torch.int8),
        "model.uint8": torch.arange(5, dtype=torch.uint8),
        "model.bool": numbers > 0,
        "model.scalar": torch.tensor(0.1),
        "model.empty": torch.zeros(0, 4),
        "model.strided": torch.arange(6.0).reshape(2, 3).t(),
        "ema.weight": torch.tensor([float.fromhex("0x1.fffffep127"), -0.0]),
    }
    return found


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"model.weight": torch.linspace(-1, 1, 50), "model.count": torch.tensor(7)}, META)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- round trip


def test_round_trip(tmp_path):
    path = tmp_path / "a b" / "größe.safetensors"
    tensors = tensors_of_every_kind()
    save_checkpoint(path, tensors, META)
    loaded, meta = load_checkpoint(path)
    assert meta == META.model_copy(update={"sha256": meta.sha256})
    assert len(meta.sha256) == 64
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(loaded[name], tensor)


def test_other_programs_read_it_as_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = tensors_of_every_kind()
    save_checkpoint(path, tensors, META)
    theirs = safetensors.torch.load_file(path)
    assert set(theirs) == set(tensors)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())


def test_loaded_tensors_outlive_the_file(saved):
    tensors, _ = load_checkpoint(saved)
    saved.write_bytes(b"overwritten")
    assert torch.equal(tensors["model.weight"], torch.linspace(-1, 1, 50))


def test_the_same_content_gives_the_same_bytes(tmp_path):
    tensors = tensors_of_every_kind()
    save_checkpoint(tmp_path / "a", tensors, META)
    save_checkpoint(tmp_path / "b", dict(reversed(tensors.items())), META)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(saved, monkeypatch, number):
    before = saved.read_bytes()
    write = module.write_container

    def fill(stream: io.BufferedWriter, *arguments: object) -> None:
        write(stream, *arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "write_container", fill)
    with pytest.raises(TrainingError, match="no space left"):
        save_checkpoint(saved, {"model.weight": torch.zeros(99)}, META)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_rename_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(TrainingError, match="cannot be written"):
        save_checkpoint(saved, {"model.weight": torch.zeros(99)}, META)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_weights_that_are_not_finite_are_not_saved(saved):
    before = saved.read_bytes()
    with pytest.raises(TrainingError, match="not saved, because model.bad holds values that are not finite"):
        save_checkpoint(
            saved, {"model.good": torch.ones(2), "model.bad": torch.tensor([1.0, float("nan")])}, META
        )
    assert saved.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_are_finite_however_large_their_sum(dtype):
    inf, largest = float("inf"), torch.finfo(dtype).max
    finite = {"none": [], "one": [1.0], "large": [largest] * 3, "balanced": [largest, largest, -largest]}
    broken = {
        "nan": [1.0, inf - inf],
        "inf": [inf, 1.0],
        "both": [inf, -inf],
        "mixed": [largest, largest, -inf],
    }
    tensors = {name: torch.tensor(values, dtype=dtype) for name, values in (finite | broken).items()}
    assert non_finite(tensors | {"whole": torch.tensor([1])}) == list(broken)


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_the_previous_file_is_kept(saved, monkeypatch, links):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    previous = saved.with_name("previous.safetensors")
    for step in (1, 2, 3):
        keep_previous(saved, previous)
        save_checkpoint(saved, {"model.weight": torch.tensor(step)}, META.model_copy(update={"step": step}))
    assert (load_checkpoint(saved).meta.step, load_checkpoint(previous).meta.step) == (3, 2)
    keep_previous(saved, previous)
    keep_previous(saved, previous)  # both names are the same file now
    assert sorted(path.name for path in saved.parent.iterdir()) == [saved.name, previous.name]


# ---------------------------------------------------------------- foreign files (rows 66 and 69)


def text_file(path: Path) -> None:
    path.write_text("epoch 1 loss 0.5\n")


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def damaged_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(200))


def json_file(path: Path) -> None:
    path.write_text(json.dumps({"weights": [1, 2]}))


def other_safetensors(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("make", "looks"),
    [
        (lambda path: None, "there is no such file"),
        (Path.touch, "the file is empty"),
        (Path.mkdir, "it is a folder"),
        (text_file, "it looks like a text file"),
        (json_file, "it looks like a JSON document"),
        (lfs_pointer, "it looks like a Git-LFS pointer"),
        (foreign_zip, "it looks like a zip archive"),
        (damaged_zip, "it looks like a damaged zip archive"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), "it looks like a PNG image"),
        (lambda path: path.write_text("<!DOCTYPE html><html>404"), "it looks like an HTML page"),
        (lambda path: path.write_bytes(bytes(range(128, 256)) * 8), "it looks like binary data"),
        (other_safetensors, "it looks like a safetensors file of another program"),
    ],
)
def test_a_foreign_file_is_named(tmp_path, make, looks):
    path = tmp_path / "model.safetensors"
    make(path)
    message = refusal(path)
    assert "is not a scantling checkpoint" in message
    assert looks in message


class Attack:
    """Pickles to a call that leaves a mark when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def in_tar(payload: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(payload)
        archive.addfile(member, io.BytesIO(payload))
    return stream.getvalue()


@pytest.mark.parametrize(
    "name", ["model.pth", "model.ckpt", "model.pt", "model.tar", "model.safetensors", "model.json"]
)
@pytest.mark.parametrize("kind", ["torch", "pickle", "pickle0", "tar"])
def test_a_pickle_is_never_opened(tmp_path, name, kind):
    marker, path = tmp_path / "marker", tmp_path / name
    attack = Attack(marker)
    match kind:
        case "torch":
            torch.save({"state_dict": attack}, path)
        case "pickle":
            path.write_bytes(pickle.dumps(attack))
        case "pickle0":
            path.write_bytes(pickle.dumps(attack, protocol=0))
        case "tar":
            path.write_bytes(in_tar(pickle.dumps(attack)))
    message = refusal(path)
    assert "is not a scantling checkpoint" in message
    if kind in ("torch", "pickle"):
        assert "pickle" in message
        assert "import-weights" in message
    assert not marker.exists()
    pickle.loads(pickle.dumps(attack))
    assert marker.exists()  # the attack is real


# ---------------------------------------------------------------- damage (rows 67 and 70)


def test_every_truncation_is_noticed(saved):
    content = saved.read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        saved.write_bytes(content[:length])
        message = refusal(saved)
        assert "damaged" in message or "not a scantling checkpoint" in message


def test_a_zeroed_tail_is_noticed(saved):
    content = saved.read_bytes()
    saved.write_bytes(content[:-16] + bytes(16))
    assert "is damaged (checksum or structure): the checksum does not fit" in refusal(saved)


def test_every_flipped_bit_is_noticed(saved):
    content = saved.read_bytes()
    choose = random.Random(0)
    places = [choose.randrange(len(content)) for _ in range(250)] + list(range(12))
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << choose.randrange(8)
        saved.write_bytes(flipped)
        message = refusal(saved)
        assert "damaged" in message or "not a scantling checkpoint" in message or "format version" in message


def test_a_damaged_checkpoint_suggests_the_ones_beside_it(saved):
    other = saved.with_name("last.previous.safetensors")
    other.write_bytes(saved.read_bytes())
    saved.write_bytes(saved.read_bytes()[:-1])
    assert "Other checkpoints beside it: last.previous.safetensors." in refusal(saved)


def with_header(header: object, payload: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def entry(shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        with_header({}, length=2**62),
        with_header({}, length=2**64 - 1),
        with_header({}, length=99_000_000),
        with_header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        with_header({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)),
        with_header({"a": entry([2**31], 0, 2**33)}, bytes(8)),
        with_header({"a": entry([-1], 0, 8)}, bytes(8)),
        with_header(b'{"a":' * 50_000),
        with_header({"__metadata__": {"scantling": "[" * 100_000}}),
        with_header({"__metadata__": {"scantling": "[1, 2]"}}),
        with_header({"__metadata__": {"scantling": "{}"}}),
        with_header({"__metadata__": {"scantling": 5}}),
    ],
    ids=lambda content: f"{content[:8].hex()}-{len(content)}",
)
def test_a_hostile_header_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "is damaged" in refusal(path)


def test_a_number_format_no_checkpoint_uses(tmp_path):
    path = tmp_path / "model.safetensors"
    header = {
        "__metadata__": {"scantling": "{}"},
        "a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
    }
    path.write_bytes(with_header(header, bytes(2)))
    assert "number format" in refusal(path)


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(module, "non_finite", lambda tensors: [])
        save_checkpoint(path, {"model.bad": torch.tensor([1.0, float("inf")])}, META)
    assert "model.bad holds values that are not finite" in refusal(path)


def test_a_newer_format_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {}, META.model_copy(update={"format_version": FORMAT_VERSION + 1}))
    assert "Install a newer scantling" in refusal(path)


# ---------------------------------------------------------------- the wrong model (row 68)


def net(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_weights_go_into_an_equal_model(saved):
    source, target = net(), net()
    load_weights(target, weights_in(model_tensors(source)), source=saved)
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_the_average_is_what_predicts(saved):
    tensors = {
        "model.a": torch.tensor(1.0),
        "ema.a": torch.tensor(2.0),
        "optimizer.step.a": torch.tensor(3.0),
    }
    assert weights_in(tensors) == {"a": torch.tensor(2.0)}
    assert weights_in({"model.a": torch.tensor(1.0)}) == {"a": torch.tensor(1.0)}


def test_differences_are_listed_and_nothing_is_changed(saved):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {f"extra.{number}": torch.ones(1) for number in range(12)}
    weights |= {name: tensor + 1 for name, tensor in model.state_dict().items() if name != "0.bias"}
    weights["0.weight"] = torch.zeros(5, 2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, source=saved)
    message = str(caught.value)
    assert "1 missing: 0.bias" in message
    assert "12 unexpected: extra.0, " in message
    assert "extra.9 and 2 more" in message
    assert "1 of another shape: 0.weight (5, 2) instead of (3, 2)" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("saved_names", "wanted", "expected"),
    [
        ("ab", "ab", []),
        ("ab", "abc", ["2 classes instead of 3", "not in the checkpoint: c"]),
        ("ab", "ax", ["only in the checkpoint: b", "not in the checkpoint: x"]),
        ("ab", "ba", ["another order: a, b instead of b, a"]),
        ("", "a", ["0 classes instead of 1", "not in the checkpoint: a"]),
    ],
)
def test_classes_are_compared_by_name(saved_names, wanted, expected):
    assert class_differences(tuple(saved_names), tuple(wanted)) == expected

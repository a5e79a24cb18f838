"""What the command sets for the libraries it loads, unless the user has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from scantling.cli import main
from scantling.data.io import json_text
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig
from scantling.train.checkpoint import CheckpointMeta, load_checkpoint, model_tensors, save_checkpoint


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_give_way_soon_unless_the_user_says_otherwise(monkeypatch, capsys, given, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["scantling", "--version"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit):
        main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert capsys.readouterr().out
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def start(*arguments: object, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "scantling", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """A detector, and a folder of pictures two of which have names in Latin-1."""
    root = tmp_path_factory.mktemp("strange")
    config = ModelConfig(name="faster_rcnn_r18_small", backbone="resnet10t", fpn_channels=16, fc_channels=16)
    meta = CheckpointMeta(
        class_names=("löcher",),
        category_ids=(1,),
        model=config.model_dump(mode="json"),
        predict=PredictConfig(scales=64, long_side=96).model_dump(mode="json"),
    )
    save_checkpoint(root / "detector.safetensors", model_tensors(build_model(config, 1)), meta)
    for name in (b"a.png", b"l\xf6ch.png", b"d\xfcr/b.png", "füße/c.png".encode()):
        path = Path(os.fsdecode(os.fsencode(root / "pictures") + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 64), "gray").save(path, format="PNG")
    return root


def test_no_name_and_no_locale_loses_predictions(strange, tmp_path):
    options = ["--checkpoint", strange / "detector.safetensors", "--device", "cpu"]
    files = ["--out", tmp_path / "ö.json", "--overlays", tmp_path / "füße"]
    ran = start(
        "predict", strange / "pictures", *options, *files, folder=tmp_path, LC_ALL="C", PYTHONUTF8="0"
    )
    _, errors = ran.communicate(timeout=250)
    assert ran.returncode == 0, errors
    found = {result["image_id"] for result in json.loads((tmp_path / "ö.json").read_bytes())}
    assert found == {os.fsdecode(name) for name in (b"a.png", b"l\xf6ch.png", b"d\xfcr/b.png")} | {
        "füße/c.png"
    }
    assert len(list((tmp_path / "füße").rglob("*.jpg"))) == 4


def test_what_standard_output_cannot_express_is_escaped():
    value = {"name": "l\udcf6ch", "class": "Löcher"}
    assert json_text(value, encoding="utf-8").isascii()  # the name is no text in any encoding
    assert json_text({"class": "Löcher"}) == '{"class":"Löcher"}'
    for encoding in ("ascii", "latin-1", "utf-8", None):
        assert json.loads(json_text(value, encoding=encoding)) == value


def test_a_checkpoint_in_a_folder_of_another_encoding_is_read(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xfcn"))
    save_checkpoint(folder / "w.safetensors", {"model.a": torch.arange(3.0)}, CheckpointMeta())
    assert torch.equal(load_checkpoint(folder / "w.safetensors").tensors["model.a"], torch.arange(3.0))


IMPORTING = "import os, signal, sys; sys.argv = ['scantling', 'check', '.']; import scantling.cli as c; "


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("while_importing", ["typer", "scantling.cli.app", "scantling.api.data", "numpy"])
def test_a_signal_during_the_start_ends_it_without_a_traceback(tmp_path, signum, while_importing):
    """The signal arrives exactly when a certain module begins to be imported."""
    hook = (
        "import importlib.abc\n"
        "class Hook(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {while_importing!r}: os.kill(os.getpid(), {int(signum)})\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    code = IMPORTING + "\n" + hook + "c.main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (128 + signum, "", "interrupted\n")


def test_nothing_is_left_in_the_folder_for_temporary_files(tmp_path):
    (tmp_path / "tmp").mkdir()
    code = "import sys; sys.argv = ['scantling', 'recipes', 'list']; from scantling.cli import main\n"
    code += "try: main()\nexcept SystemExit: import torch._dynamo"  # what torchvision does
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        timeout=200,
        check=True,
    )
    assert ran.returncode == 0
    assert list((tmp_path / "tmp").iterdir()) == []

"""`predict --shards` on the command line: what goes together, and how it ends."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from run.shards.conftest import photos as photos  # noqa: PLC0414 - the fixture
from run.shards.conftest import weights as weights  # noqa: PLC0414 - the fixture
from scantling.cli.app import app
from scantling.run.shards import stages


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(line: str):
        return CliRunner().invoke(app, line.split(), prog_name="scantling")

    return run


BEGIN = "predict photos --checkpoint weights.safetensors --shards out --shard-size 4 --device cpu"


def test_from_the_first_shard_to_the_merged_file(photos, weights, command):
    first = command(f"{BEGIN} --shard 2/2 --json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["missing"] == ["shards/00/00000", "shards/00/00002"]
    second = command("predict --shards out --resume --device cpu")
    assert second.exit_code == 0, second.output
    assert "10 objects in 10 images, 1 could not be read; 3 of 3 shards" in second.stdout
    status = command("status out")
    assert status.exit_code == 2
    assert "`scantling predict --shards out --resume`" in status.stderr
    done = command("merge out --out found.jsonl")
    assert done.exit_code == 0, done.output
    assert "10 objects of 3 of 3 shards (images that could not be read: 1) in found.jsonl" in done.stdout


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{BEGIN} --out found.json", "scantling merge out --out found.json"),
        (f"{BEGIN} --maps maps", "--maps"),
        (f"{BEGIN} --overlays drawn", "--overlays"),
        (f"{BEGIN} --shard 3/2", "--shard 3/2"),
        (BEGIN.replace("--shards out", "--shards s3://bucket/out"), "a folder on this machine"),
        (f"{BEGIN} --run runs/x", "either --run DIR or --checkpoint FILE"),
        ("predict photos --checkpoint weights.safetensors --jobs 2", "--shards FOLDER"),
        ("predict photos --checkpoint weights.safetensors --retry-unread", "--shards FOLDER"),
        ("predict --checkpoint weights.safetensors", "SOURCE is missing"),
        ("predict photos --shards out", "scantling predict --shards out --resume"),
        ("predict --shards out --resume --set flip=true", "settings belong"),
        ("predict nowhere --shards out --checkpoint weights.safetensors", "nowhere"),
    ],
)
def test_what_does_not_go_together_is_refused(photos, weights, command, line, told, tmp_path):
    done = command(line)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("error", "code"), [(MemoryError("full"), 2), (ZeroDivisionError("odd"), 1)])
def test_a_shard_that_failed_shows_in_the_exit_code(photos, weights, command, monkeypatch, error, code):
    original = stages.predict_shard

    def failing(context, index):
        if index == 1:
            raise error
        original(context, index)

    monkeypatch.setattr(stages, "predict_shard", failing)
    done = command(BEGIN)
    assert done.exit_code == code
    assert "1 of 3 shards failed, such as shards/00/00001" in done.stderr
    assert "missing: 00001; to go on: scantling predict --shards out --resume" in done.stdout

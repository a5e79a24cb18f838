"""Mistakes with `scantling pretrain`: exit code 2, a message to act on, nothing written."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from scantling.cli.app import app
from scantling.synth.synth import SynthConfig, write_synth


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrain") / "parts"
    write_synth(root, SynthConfig(size_hw=(64, 64)), splits={"train": 2}, seed=0)
    return root


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--set", "temprature=0.1"), "did you mean 'temperature'"),
        (("--backbone", "resnet5"), "resnet50"),
        (("--norm", "group"), "'gn'"),
        (("--deform", "7"), "less than or equal to 4"),
        (("--set", "queue=100000"), "there are only"),
        (("--set", "crops.min_side=4000"), "were left out"),
        (("--set", "splits=[train,test]", "--device", "cuda:9"), "not available"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(parts, tmp_path, options, told):
    arguments = ["pretrain", str(parts), "--out", str(tmp_path / "out"), *options]
    done = CliRunner().invoke(app, arguments, prog_name="scantling")
    assert done.exit_code == 2, done.output
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_not_there(tmp_path):
    done = CliRunner().invoke(app, ["pretrain", str(tmp_path / "prats"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "no such data set" in done.stderr

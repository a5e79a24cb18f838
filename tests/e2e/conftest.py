"""A tiny data set, a tiny recipe, and the command line in this process and in one of its own."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reference.forked import Forked
from scantling.cli.app import app
from scantling.synth.synth import SynthConfig, write_synth

SOURCE = Path(__file__).parents[2] / "src"
RECIPE = """
about: A few steps with a tiny detector.
members:
  tiny:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 4, batch_size: 1, workers: 0, validate_every: 2, warmup_steps: 2, log_every: 1}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 20}}
"""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_synth(root, SynthConfig(size_hw=(96, 128)), splits={"train": 4, "val": 2}, seed=0)
    return root


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of processes of their own. What they leave in the temporary folder (torchrun: its logs) is pytest's to remove."""
    paths = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    temporary = str(tmp_path_factory.mktemp("temporary"))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": temporary}


@pytest.fixture
def start(environment, tmp_path_factory):
    """Start the command in a process of its own."""
    begun: list[Forked] = []

    def run(*arguments: object, start_new_session: bool = False) -> Forked:
        folder, command = tmp_path_factory.mktemp("said"), [str(argument) for argument in arguments]
        own = Forked(command, folder, environment=environment, start_new_session=start_new_session)
        begun.append(own)
        return own

    yield run
    for process in begun:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def command():
    """Run the command in this process; leaves logging and signals as they were."""

    def run(*arguments: object):
        with unchanged_process():
            return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="scantling")

    return run


class unchanged_process:  # noqa: N801 - reads as a statement
    """Put back what a verb sets for its process."""

    def __enter__(self) -> None:
        package = logging.getLogger("scantling")
        self.state = (package.handlers, package.propagate, package.level)
        self.handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR2)}

    def __exit__(self, *_: object) -> None:
        package = logging.getLogger("scantling")
        package.handlers, package.propagate, package.level = self.state
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)


@pytest.fixture(scope="session")
def trained(command, scenes, recipe, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = command("train", scenes, "--recipe", recipe, "--out", out)
    assert done.exit_code == 0, done.output
    assert "bbox/AP" in done.stdout
    return out

"""Several processes do one run, and it comes out as if one had done it.

torchrun itself starts those that are stopped and those of which one fails, as what it does about it counts there (and
those of the page `several-gpus`); the others are told what it tells its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from e2e.process_driver import drive
from reference.forked import Forked
from scantling.synth.synth import SynthConfig, write_synth
from scantling.train.checkpoint import load_checkpoint

DRIVER = Path(__file__).with_name("process_driver.py")
SETTINGS = (
    "model.norm=gn",
    "model.class_loss=seesaw",
    "train.epochs=2",
    "train.validate_every=1",
    "train.checkpoint_every=1",
    "train.ema=0.9",
)
PATIENCE = 240  # seconds for one start, run and end; some ten where the machine is free
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE + 60)]


class Launcher:
    """Starts the command: with torchrun in two processes, or in forked ones, as many as torchrun would tell them."""

    def __init__(self, folder: Path, environment: dict[str, str], recipe: Path) -> None:
        self.folder, self.environment, self.recipe = folder, environment, recipe

    def torchrun(
        self, data: Path, out: str, *, slow: bool = False, more: tuple[str, ...] = ()
    ) -> subprocess.Popen:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.Popen(
            [sys.executable, *torchrun, DRIVER, *self._command(data, out, 2, more)],
            cwd=self.folder,
            env=self._environment(slow=slow),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fork(self, data: Path, out: str, *, world: int, slow: bool = False) -> list[Forked]:
        """One process for each rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        begun = []
        for rank in range(world):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            told = address | sizes | ranks if world > 1 else {}
            said = Path(tempfile.mkdtemp(dir=self.folder))
            environment = self._environment(slow=slow) | told
            command = self._command(data, out, world, ())
            begun.append(Forked(command, said, environment=environment, program=drive, cwd=self.folder))
        return begun

    def finish(self, process: subprocess.Popen) -> tuple[int, str, str]:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return process.returncode, out, err

    def finish_all(self, processes: list[Forked]) -> tuple[list[int | None], str, str]:
        """Exit codes, and what all of them have said."""
        try:
            said = [process.communicate(timeout=PATIENCE) for process in processes]
        finally:
            for process in processes:
                process.kill()
        out, errors = ("".join(each) for each in zip(*said, strict=True))
        return [process.returncode for process in processes], out, errors

    def codes(self) -> list[str]:
        return [(self.folder / f"code-{rank}").read_text() for rank in (0, 1)]

    def _command(self, data: Path, out: str, world: int, more: tuple[str, ...]) -> list[str]:
        options = [*SETTINGS, f"train.batch_size={2 // world}"]
        sets = [text for option in options for text in ("--set", f"members.tiny.{option}")]
        sets += [text for option in more for text in ("--set", option)]
        command = ["train", data, "--recipe", self.recipe, "--out", out, "--device", "cpu", *sets]
        return [str(text) for text in command]

    def _environment(self, *, slow: bool) -> dict[str, str]:
        return {**self.environment, "SECONDS_PER_DRAW": "0.2" if slow else "0"}


@pytest.fixture(scope="module")
def launcher(tmp_path_factory, environment, recipe) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("processes"), environment, recipe)


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    """Five images: the last of three batches of two has one, so the second process has none of its own."""
    root = tmp_path_factory.mktemp("data") / "five"
    write_synth(root, SynthConfig(size_hw=(96, 128)), splits={"train": 5, "val": 3}, seed=0)
    return root


def read(path: Path):
    return json.loads(path.read_text())


def history(run: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (run / "members/tiny/metrics.jsonl").read_text().splitlines()]


def wait_for_lines(process: subprocess.Popen | Forked, run: Path, count: int) -> None:
    """Until the training has written this many lines of its history, or ended."""
    lines, deadline = run / "members/tiny/metrics.jsonl", time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if lines.is_file() and lines.read_text().count("\n") >= count:
            break
        time.sleep(0.05)


def test_two_processes_stopped_and_resumed_equal_one_that_was_not(launcher, five):
    stopped = launcher.torchrun(five, "two", slow=True)
    two = launcher.folder / "two"
    wait_for_lines(stopped, two, 2)
    stopped.send_signal(signal.SIGTERM)
    code, _, told = launcher.finish(stopped)
    assert code == 1, told  # torchrun's own, whatever its processes ended with
    assert launcher.codes() == ["143", "143"], told
    assert "stopped by SIGTERM" in told
    assert read(two / "status.json")["state"] == "interrupted"

    codes, out, told = launcher.finish_all(launcher.fork(five, "two", world=2))
    assert codes == [0, 0], told
    assert launcher.codes() == ["0", "0"]
    assert "training goes on" in told
    assert out.count("bbox/AP ") == told.count("predicting the 3 images") == 1  # one process speaks for both

    codes, _, told = launcher.finish_all(launcher.fork(five, "one", world=1))
    assert codes == [0], told
    one = launcher.folder / "one"
    assert len(history(two)) == len(history(one)) == 2 * (3 + 1)
    for ours, theirs in zip(history(two), history(one), strict=True):
        assert set(ours) == set(theirs)
        assert {k: v for k, v in ours.items() if v is not None} == pytest.approx(
            {k: v for k, v in theirs.items() if v is not None}, rel=1e-3, abs=1e-5
        )
    ours, theirs = (read(run / "members/tiny/predictions.json") for run in (two, one))
    assert [result["image_id"] for result in ours] == [result["image_id"] for result in theirs]
    assert [result["score"] for result in ours] == pytest.approx([r["score"] for r in theirs], rel=1e-3)
    two_counts, one_counts = (
        load_checkpoint(run / "members/tiny/last.safetensors").tensors["model.head.class_loss.counts"]
        for run in (two, one)
    )
    assert two_counts.tolist() == pytest.approx(
        one_counts.tolist(), rel=0.02
    )  # a padding image would be 1/6 more
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert read(two / "status.json")["state"] == "done"


def test_two_processes_killed_and_resumed_equal_two_that_were_not(launcher, five):
    killed = launcher.fork(five, "killed", world=2, slow=True)
    wait_for_lines(killed[0], launcher.folder / "killed", 5)  # one step past the first epoch's checkpoint
    assert [process.poll() for process in killed] == [None, None]
    for process in killed:  # what no process can prepare for
        process.kill()
    assert launcher.finish_all(killed)[0] == [-signal.SIGKILL, -signal.SIGKILL]
    assert len(history(launcher.folder / "killed")) < 2 * (3 + 1)
    told = []
    for out in ("killed", "whole"):
        codes, _, said = launcher.finish_all(launcher.fork(five, out, world=2))
        assert codes == [0, 0], said
        told.append(said)
    assert ["training goes on" in said for said in told] == [True, False]
    killed_run, whole = (launcher.folder / out / "members/tiny" for out in ("killed", "whole"))
    for name in ("predictions.json", "best.safetensors", "last.safetensors"):
        assert (killed_run / name).read_bytes() == (whole / name).read_bytes(), name
    assert history(killed_run.parents[1]) == history(whole.parents[1])


def test_a_failure_of_one_process_ends_both_and_is_told(launcher, five, tmp_path):
    data = tmp_path / "broken"
    data.mkdir()
    (data / "annotations").symlink_to(five / "annotations")
    (data / "images").mkdir()
    for image in (five / "images").rglob("*.*"):
        (data / image.relative_to(five)).parent.mkdir(parents=True, exist_ok=True)
        (data / image.relative_to(five)).symlink_to(image)
    broken = data / "images" / read(five / "annotations/train.json")["images"][0]["file_name"]
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[: len(content) // 2])  # its header is as it was
    with Image.open(broken) as header:
        assert header.size == (128, 96)
    unseen = ("data.decode=false",)  # else found before anything is trained
    code, out, told = launcher.finish(launcher.torchrun(data, "failed", more=unseen))
    assert code == 1
    assert out == ""
    assert told.count(f"{broken.name}") >= 1, told
    assert "this is a bug" not in told
    assert read(launcher.folder / "failed/status.json")["state"] in {"failed", "interrupted"}

"""An output folder belongs to one run, and nothing in it is lost."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scantling.errors import TrainingError, UsageError
from scantling.train.rundir import LOCK_NAME, claim_folder, explained_writes, share_folder

HOLD = """
import sys, time
from scantling.train.rundir import claim_folder
with claim_folder(sys.argv[1], resume=True):
    print("claimed", flush=True)
    sys.stdin.read()
"""

SHARE = """
import sys
from pathlib import Path
from scantling.train.rundir import share_folder
with share_folder(sys.argv[1]) as claim:
    print(claim.alone, flush=True)
    sys.stdin.readline()
    (Path(sys.argv[1]) / "facts").touch()
    claim.let_others_in()
    print("open", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that has a folder, and goes on when it is told to."""

    def __init__(self, code: str, folder: Path) -> None:
        command = [sys.executable, "-c", code, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> str:
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_created_with_its_parents(tmp_path):
    with claim_folder(tmp_path / "a" / "b c") as folder:
        assert folder.is_dir()
        owner = json.loads((folder / LOCK_NAME).read_text())
        assert owner == {"pid": os.getpid(), "host": socket.gethostname()}
    assert list(folder.iterdir()) == []


def test_a_folder_with_files_needs_permission(tmp_path):
    (tmp_path / "best.safetensors").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(UsageError, match=r"not empty \(it holds best\.safetensors, notes\.txt\)"),
        claim_folder(tmp_path),
    ):
        pytest.fail("it was given away")
    with claim_folder(tmp_path, resume=True):
        assert (tmp_path / "best.safetensors").read_text() == "old"
    with claim_folder(tmp_path, overwrite=True, known=("best.safetensors", "last.safetensors")):
        assert names(tmp_path) == [LOCK_NAME, "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_a_killed_write_left_is_removed(tmp_path):
    (tmp_path / ".last.safetensors.123.abcd.tmp").write_text("half")
    (tmp_path / ".gitignore").write_text("*")
    with claim_folder(tmp_path, resume=True):
        assert names(tmp_path) == [".gitignore", LOCK_NAME]


def test_a_file_or_a_place_below_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"), claim_folder(tmp_path / "file"):
        pytest.fail("it was given away")
    with pytest.raises(UsageError, match="cannot be created"), claim_folder(tmp_path / "file" / "run"):
        pytest.fail("it was given away")
    assert (tmp_path / "file").read_text() == "x"


def test_one_of_two_runs_survives_and_death_gives_the_folder_back(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "claimed\n"
    with pytest.raises(UsageError, match=f"in use by another run \\(process {holder.pid} on "):
        claim_folder(tmp_path, resume=True).__enter__()
    holder.kill()
    holder.communicate()
    assert (tmp_path / LOCK_NAME).exists()  # the dead owner could not tidy up
    with claim_folder(tmp_path, resume=True):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path, number):
    with (
        pytest.raises(TrainingError, match=r"last\.safetensors: no space left"),
        explained_writes(tmp_path / "last.safetensors"),
    ):
        raise OSError(number, os.strerror(number))


def test_other_failures_to_write_keep_their_reason(tmp_path):
    with (
        pytest.raises(TrainingError, match=r"x: cannot be written: Input/output error"),
        explained_writes("x"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_full_disk_leaves_no_empty_lock(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("scantling.train.rundir.json.dump", full)
    with pytest.raises(TrainingError, match="no space left"), claim_folder(tmp_path / "out"):
        pytest.fail("it was claimed")
    assert list((tmp_path / "out").iterdir()) == []


def test_processes_that_share_a_folder_keep_other_runs_out_until_the_last_has_left(tmp_path):
    other = Holder(SHARE, tmp_path)
    assert other.says() == "True"
    other.go_on()
    assert other.says() == "open"
    with share_folder(tmp_path) as claim:
        assert not claim.alone
        other.end()
        assert (tmp_path / LOCK_NAME).exists()
        third = Holder(SHARE, tmp_path)
        assert third.says() == "False"
    with (
        pytest.raises(UsageError, match=r"in use by another run \(of several processes\)") as caught,
        claim_folder(tmp_path, resume=True),
    ):
        pytest.fail("it was given away")
    assert "--engine shared" in str(caught.value.hint)
    third.end()
    assert not (tmp_path / LOCK_NAME).exists()
    with claim_folder(tmp_path, resume=True):
        pass


def test_who_comes_later_waits_for_what_the_first_has_to_write(tmp_path):
    first = Holder(SHARE, tmp_path)
    assert first.says() == "True"
    threading.Timer(0.3, first.go_on).start()
    with share_folder(tmp_path) as claim:
        assert (claim.alone, (tmp_path / "facts").exists()) == (False, True)
    first.end()


def test_a_run_that_is_not_shared_is_not_joined(tmp_path):
    other = Holder(HOLD, tmp_path)
    assert other.says() == "claimed"
    with (
        pytest.raises(UsageError, match=f"process {other.process.pid} on .*, which does not share it"),
        share_folder(tmp_path),
    ):
        pytest.fail("it was given away")
    other.end()


def test_what_a_killed_write_left_is_removed_by_the_first_alone(tmp_path):
    (tmp_path / ".status.json.123.abcd.tmp").touch()
    with share_folder(tmp_path) as claim:
        assert claim.alone
        assert names(tmp_path) == [LOCK_NAME]
        claim.let_others_in()
        (tmp_path / ".status.json.123.abcd.tmp").touch()
        other = Holder(SHARE, tmp_path)
        assert other.says() == "False"
        assert names(tmp_path) == [LOCK_NAME, ".status.json.123.abcd.tmp"]
        other.end()

"""Commands in processes of their own that need not load torch first: a server that has loaded it forks them.

To load torch and what a training needs takes more processor time than the trainings of these tests. The server has
used nothing of what it loaded, so a process forked from it is as one that has just loaded the same. It is stopped,
killed and waited for like any other, and runs what the command line runs. What is said of the start itself is tested
with interpreters of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from scantling.cli import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["accelerate", "pytest", "torch.distributed.fsdp", "scantling.api.run", "scantling.cli.app"]
)


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those who do stages side by side be forked, too, where another test has them start as they do for users."""
    as_asked = multiprocessing.get_context
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda kind: SERVER if kind == "spawn" else as_asked(kind)
    )


class Forked:
    """As much of `subprocess.Popen` as the tests ask for.

    Args:
        program: What to do; a function of a module that can be imported by its name.
        arguments: Of the command line.
        folder: An own one, for what is said on standard output and standard error.
        environment: All of it.
        cwd: Where the program is at home; where the tests are when left out.
        start_new_session: As `subprocess.Popen` has it.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        *,
        environment: Mapping[str, str],
        program: Callable[[], None] = main,
        cwd: Path | None = None,
        start_new_session: bool = False,
    ) -> None:
        self._said = tuple(folder / name for name in ("stdout", "stderr"))
        given = (program, arguments, self._said, dict(environment), cwd, start_new_session)
        self._process = SERVER.Process(target=_begin, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._said[0]), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What was said on standard output and on standard error, once it has ended."""
        self.wait(timeout)
        out, errors = (file.read_text() if file.exists() else "" for file in self._said)
        return out, errors

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _begin(
    program: Callable[[], None],
    arguments: list[str],
    said: tuple[Path, Path],
    environment: dict[str, str],
    cwd: Path | None,
    own_session: bool,
) -> None:
    """What the system does for a new process, and then the program."""
    if own_session:
        os.setsid()
    for number, file in enumerate(said, 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # asked for anew
    if cwd is not None:
        os.chdir(cwd)
    import torch  # not loaded by those who begin this

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    sys.argv = ["scantling", *arguments]
    program()

"""The command line: one function per verb, which parses, calls the function of that name in `api`, and prints."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = (
    False  # as `typing` has it, whose import would take a third of the time until signals are heard
)
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

__all__ = ["leave_at_once", "main"]

_SPINS = "10000"  # GNU OpenMP's own value is 300,000
_NEW_OBJECTS = 50_000  # Python's own value is 700


def main() -> None:
    """Entry point of the command `scantling`."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, leave_at_once)
    _understand_names()
    _give_way_soon()
    _tidy_up_less_often()
    _leave_no_cache_folder()
    from scantling.cli.app import app

    app(prog_name="scantling")


def leave_at_once(signum: int, _frame: FrameType | None) -> NoReturn:
    """Answer a signal that comes before anything is begun: there is nothing to save and nothing to tidy up."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signum)


def _understand_names() -> None:
    """Make every file name usable and every message printable, whatever the locale.

    Where the locale knows ASCII only and UTF-8 mode is switched off, Python can open no file with another letter in
    its name: the command starts again in UTF-8 mode. What a terminal cannot show is written as an escape.
    """
    if sys.getfilesystemencoding() == "ascii" and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave_no_cache_folder() -> None:
    """Name torch's compiler a cache folder that exists; else its mere import makes an empty one that stays.

    Nothing is compiled, so nothing is ever written there. What the user set stays.
    """
    import tempfile

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())


def _tidy_up_less_often() -> None:
    """Let Python look for unused cycles of objects less often: loading torch makes a million that are all in use.

    Looking at them again and again took an eighth of the time that a command needs to start (4.6 s of a processor
    instead of 4.1 s, 2026-11-30). What is in no cycle, such as tensors, is freed at once as ever.
    """
    import gc

    _, *older = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS, *older)


def _give_way_soon() -> None:
    """Shorten how long threads of one computation spin while they wait for each other; before torch is loaded.

    Where another program runs on the same cores, the thread waited for is often the one that has no core, and spinning
    takes it away for longer: training with two threads became ten times slower (`bench/README.md`). What the user set
    stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)

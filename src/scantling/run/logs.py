"""Where what is said during a run is kept: in a file of each open folder; of several runs, in that of the one meant."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

_told_of: ContextVar[Path | None] = ContextVar("told_of", default=None)
"""The folder of the run that this thread works for, where several are open."""


@contextmanager
def telling_of(path: Path) -> Iterator[None]:
    """What is logged meanwhile is told in the log of this folder, and of those that it lies in, alone.

    Args:
        path: The open folder of a run, or of several.
    """
    token = _told_of.set(path)
    try:
        yield
    finally:
        _told_of.reset(token)


def _is_told_in(folder: Path, record: logging.LogRecord) -> bool:  # noqa: ARG001 - whatever it says
    """Whether an entry is for the log of a folder."""
    place = _told_of.get()
    return place is None or place.is_relative_to(folder)


@contextmanager
def log_file(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Send everything scantling logs to a file as well, whatever is shown on the terminal.

    Args:
        path: The file.
        folder: What is told of another folder (`telling_of`) is left out; None: that of the file.
    """
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    handler.addFilter(partial(_is_told_in, folder or path.parent))
    package = logging.getLogger("scantling")
    level = package.level
    package.addHandler(handler)
    package.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()

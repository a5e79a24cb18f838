"""An output folder belongs to one run at a time, and nothing in it is lost by mistake."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scantling.errors import TrainingError, UsageError

LOCK_NAME = ".lock"
_SHOWN = 5
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderInUseError(UsageError):
    """Another process holds the folder."""


@contextmanager
def claim_folder(
    folder: Path | str, *, resume: bool = False, overwrite: bool = False, known: Collection[str] = ()
) -> Iterator[Path]:
    """Create or take over an output folder and keep other runs out of it until the block ends.

    The operating system holds the lock, on the file `.lock` that names process and machine, so it ends with the
    process, however that ends. It is a POSIX record lock: loader processes do not inherit it, and it does not keep a
    process from claiming a folder twice. Temporary files that a killed run left behind are removed.

    Args:
        folder: Created with its parents if need be.
        resume: Accept what an earlier run left.
        overwrite: Remove the files in `known` first; every other file stays.
        known: Names of files in the folder that belong to the caller.

    Raises:
        UsageError: It is a file, cannot be written to, holds files and neither `resume` nor `overwrite` is given, or
            another run uses it (`FolderInUseError`).
    """
    folder = Path(folder)
    _create(folder)
    with _locked(folder):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not (resume or overwrite):
            _require_empty(folder)
        for name in known if overwrite else ():
            (folder / name).unlink(missing_ok=True)
        yield folder


@contextmanager
def explained_writes(path: Path | str) -> Iterator[None]:
    """Turn a failure to write into a message that names the file and the cause.

    Raises:
        TrainingError: No space is left, the folder is gone, or the file cannot be written for another reason.
    """
    try:
        yield
    except UsageError as error:
        raise TrainingError(error.message, hint=error.hint) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            hint = "Free some space and resume the run."
            raise TrainingError(f"{path}: no space left to write it", hint=hint) from error
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error


def _create(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the output needs a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: the output folder cannot be created: {error.strerror}") from error


def _require_empty(folder: Path) -> None:
    present = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK_NAME)
    if present:
        shown = ", ".join(present[:_SHOWN]) + (
            f" and {len(present) - _SHOWN} more" if len(present) > _SHOWN else ""
        )
        raise UsageError(
            f"{folder} is not empty (it holds {shown})",
            hint="Resume the run in it, allow it to be overwritten, or give another folder.",
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK_NAME
    with _open_lock(path) as stream:
        try:
            stream.seek(0)
            stream.truncate()
            with explained_writes(path):
                json.dump({"pid": os.getpid(), "host": socket.gethostname()}, stream)
                stream.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_lock(path: Path) -> IO[str]:
    """Open and lock the file; a file that its last owner removed in between is tried again."""
    while True:
        try:
            stream = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{path.parent}: the output folder cannot be written to: {error.strerror}"
            ) from error
        if not _lock(stream):
            stream.seek(0)
            owner = _owner(stream.read())
            stream.close()
            raise FolderInUseError(
                f"{path.parent} is in use by another run ({owner})",
                hint="Wait for it, or give another folder.",
            )
        if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            return stream
        stream.close()


def _lock(stream: IO[str]) -> bool:
    """Take the lock if nobody has it; where the system knows no such lock, go without."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.lockf(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # anything else: a file system without locks
    return True


def _owner(text: str) -> str:
    try:
        record = json.loads(text)
        return f"process {record['pid']} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return "process unknown"

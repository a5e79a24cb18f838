"""An output folder belongs to one run at a time, of one process or of several, and nothing in it is lost by mistake."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scantling.errors import TrainingError, UsageError

LOCK_NAME = ".lock"
_SHOWN = 5
_BEGIN_SECONDS = 60.0
"""How long the first of several processes may take to begin, before the others give up."""
_UNSURE_SECONDS = 1.0
"""How long a lock may be held before the file says by whom."""
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
        _remove_leftovers(folder)
        if not (resume or overwrite):
            _require_empty(folder)
        for name in known if overwrite else ():
            (folder / name).unlink(missing_ok=True)
        yield folder


class SharedClaim:
    """A folder that this process and others work in.

    Attributes:
        alone: Whether nobody else is in it; nobody comes in then before `let_others_in` is called.
    """

    def __init__(self, stream: IO[str], *, alone: bool) -> None:
        self._stream, self.alone = stream, alone

    def let_others_in(self) -> None:
        """What the others have to find in the folder is there."""
        _lock(self._stream, exclusive=False)


@contextmanager
def share_folder(folder: Path | str) -> Iterator[SharedClaim]:
    """Work in an output folder together with other processes that do the same run, and keep every other run out of it.

    The lock is that of `claim_folder`, shared by all who call this. Where a file system knows no locks, every process
    is taken for the first.

    Args:
        folder: Created with its parents if need be; an earlier run in it is gone on with.

    Raises:
        UsageError: It is a file, cannot be written to, or a run that does not share it uses it.
    """
    folder = Path(folder)
    _create(folder)
    path = folder / LOCK_NAME
    stream, alone = _open_shared(path)
    with stream:
        try:
            if alone:
                _write_owner(stream, path, shared=True)
                _remove_leftovers(folder)
            yield SharedClaim(stream, alone=alone)
        finally:
            if _lock(stream, exclusive=True):  # the last one
                path.unlink(missing_ok=True)


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


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(".*.tmp"):
        if not leftover.is_dir():  # what another verb began here
            leftover.unlink(missing_ok=True)


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
            _write_owner(stream, path, shared=False)
            yield
        finally:
            path.unlink(missing_ok=True)


def _write_owner(stream: IO[str], path: Path, *, shared: bool) -> None:
    stream.seek(0)
    stream.truncate()
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    with explained_writes(path):
        json.dump({**owner, "shared": True} if shared else owner, stream)
        stream.flush()


def _open_lock(path: Path) -> IO[str]:
    """Open and lock the file; a file that its last owner removed in between is tried again."""
    while True:
        stream = _open(path)
        if not _lock(stream, exclusive=True):
            owner, shared = _owner(stream)
            stream.close()
            hint = "Wait for it, or give another folder."
            if shared:
                owner, hint = "of several processes", f"Join them with --engine shared. {hint}"
            raise FolderInUseError(f"{path.parent} is in use by another run ({owner})", hint=hint)
        if _is_still_there(stream, path):
            return stream
        stream.close()


def _open_shared(path: Path) -> tuple[IO[str], bool]:
    """Open and lock the file together with others; True with it if there are none."""
    began = time.monotonic()
    while True:
        stream = _open(path)
        alone = _lock(stream, exclusive=True)
        if alone or _lock(stream, exclusive=False):
            if _is_still_there(stream, path):
                return stream, alone
            stream.close()
            continue
        owner, shared = _owner(stream)
        stream.close()
        if time.monotonic() - began > (_BEGIN_SECONDS if shared else _UNSURE_SECONDS):
            raise UsageError(
                f"{path.parent} is in use by another run ({owner}), which does not share it",
                hint="Wait for it to end: a run is shared by processes all begun with --engine shared.",
            )
        time.sleep(0.1)


def _open(path: Path) -> IO[str]:
    try:
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path.parent}: the output folder cannot be written to: {error.strerror}"
        ) from error


def _is_still_there(stream: IO[str], path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat())


def _lock(stream: IO[str], *, exclusive: bool) -> bool:
    """Take the lock if nobody has it, or share it; where the system knows no such lock, go without."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.lockf(stream.fileno(), kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # anything else: a file system without locks
    return True


def _owner(stream: IO[str]) -> tuple[str, bool]:
    """Who holds the lock, and whether others may share it."""
    stream.seek(0)
    try:
        record = json.loads(stream.read())
        return f"process {record['pid']} on {record['host']}", bool(record.get("shared"))
    except (ValueError, KeyError, TypeError):
        return "process unknown", False

"""Which exit code and which words an exception deserves."""

from __future__ import annotations

import errno
import signal

from scantling.errors import MEMORY_REMEDY, Interrupted, ScantlingError, is_out_of_memory

BUG, BAD_INPUT = 1, 2

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_BAD_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


def describe(error: BaseException) -> tuple[int, str]:
    """Exit code and message for an exception that ends a verb.

    What the user or the machine caused (a full disk, no memory, a closed pipe) is told as such; everything
    else is a bug and asks to be reported.
    """
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, Interrupted):
        return 128 + error.signum, str(error)
    if isinstance(error, ScantlingError):
        return error.exit_code, f"error: {error}"
    cause = _machine_cause(error)
    if cause:
        return BAD_INPUT, f"error: {cause}"
    kind = type(error).__name__
    advice = "Please report it with the output of the same command with --debug."
    return BUG, f"this is a bug in scantling: {kind}: {error}\n{advice}"


def _machine_cause(error: BaseException) -> str | None:
    if _is_broken_installation(error):
        return f"a library cannot be loaded: {error}\nRun `scantling doctor`: it says what to install."
    if type(error).__module__.split(".")[0] in _NETWORK:
        return f"a download failed: {str(error).splitlines()[0]}\n{_NETWORK_REMEDY}"
    if isinstance(error, BrokenPipeError):
        return "standard output was closed before everything was written"
    if is_out_of_memory(error):
        return f"out of memory: {str(error).splitlines()[0] if str(error) else 'no details'}\n{MEMORY_REMEDY}"
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        place = (
            error.filename2 or error.filename or "the disk"
        )  # of a copy, what was to be written is the second
        return f"{place}: no space left; free some and run the same command again"
    if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _is_broken_installation(error: BaseException) -> bool:
    """Whether another library is missing, or torchvision does not belong to torch."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("scantling")
    return isinstance(error, RuntimeError) and "torchvision::nms does not exist" in str(error)


_NETWORK = {"huggingface_hub", "httpx", "requests", "urllib3"}
_NETWORK_REMEDY = (
    "Published weights are fetched only because the recipe says init: pretrained. Try again with a network, name a "
    "local file there, or start from random weights: --set members.NAME.model.init=random."
)

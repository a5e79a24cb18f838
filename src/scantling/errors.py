"""What goes wrong, told so that a person can act on it.

A mistake of the user (bad input, bad option, damaged file) is a `ScantlingError`; the command line prints its
message without a traceback and exits with its `exit_code`. Any other exception is a bug in scantling.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Severity(StrEnum):
    """How much a finding matters: errors stop the work, warnings are counted and reported."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about the user's input that needs attention.

    Attributes:
        code: Stable, documented name such as `box-outside-image`; what a script may match on.
        severity: Whether work can go on.
        message: What was found, in one sentence.
        file: File in which it was found.
        path: Place inside the file: a JSON path (`annotations[17].bbox`) or a recipe key path.
        id: Id of the annotation, image or category concerned, unchanged from the file.
        value: The offending value as found.
        hint: What to do about it.
        id_of: What the id is that of, where it is not the record's own: `image` for predictions, which have none.
    """

    code: str
    severity: Severity
    message: str
    file: str | None = None
    path: str | None = None
    id: int | str | float | None = None
    value: object = None
    hint: str | None = None
    id_of: str | None = None

    def __str__(self) -> str:
        record = f"{self.id_of or 'id'} {self.id!r}" if self.id is not None else None
        place = ": ".join(part for part in (self.file, self.path, record) if part)
        value = f" (found {self.value!r:.80})" if self.value is not None else ""
        hint = f". {self.hint}" if self.hint else ""
        told = f"{place}: {self.message}" if place else self.message
        return f"{self.severity.value} [{self.code}] {told}{value}{hint}"


class ScantlingError(Exception):
    """Base of every error that is the input's fault, not the program's."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(ScantlingError):
    """A command was given options or paths that cannot work."""


class ConfigError(ScantlingError):
    """A recipe or an override is wrong; the message names file, key path, value and the nearest valid key."""


class CheckpointError(ScantlingError):
    """A checkpoint is missing, damaged, foreign, or made for another model or class table."""


class TrainingError(ScantlingError):
    """Training cannot go on: a non-finite loss, a dead worker, no space left."""


class DataError(ScantlingError):
    """A data set or a predictions file cannot be used; carries every finding, not only the first."""

    def __init__(self, message: str, *, findings: Iterable[Finding] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)

    def __str__(self) -> str:
        shown = [str(f) for f in self.findings[:50]]
        more = [f"... and {len(self.findings) - 50} more"] if len(self.findings) > 50 else []
        return "\n".join([super().__str__(), *shown, *more])


class Interrupted(ScantlingError):  # noqa: N818 - a request, not an error
    """A signal asked to end and the state was saved; exit code 128 + signal number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class PeerFailed(ScantlingError):  # noqa: N818 - what happened to this process is another one's error
    """Another process of the same training failed, so this one cannot go on; the other one says why."""


FOR_THE_FILE = "scantling_for_the_file"
"""Marks a log record that belongs into `run.log` alone: on the terminal the command tells it in its own words."""

MEMORY_REMEDY = (
    "In training lower the batch or the images: --set members.NAME.train.batch_size=1 (and train.accumulate up as "
    "much), --set members.NAME.augment.short_side=480; a refiner: --set train.batch_size=8. In prediction: "
    "--set batch_size=1, one scale instead of several, or --tile 1024 for large images. Fewer workers take less, too."
)
"""What to lower where memory does not suffice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, whichever library raised it, says that memory did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "cannot allocate memory",
    "out of memory",  # CUDA and cuDNN outside of torch's allocator
    "insufficient memory",  # OpenCV
    "failed to allocate",  # OpenCV, cuBLAS
    "std::bad_alloc",
)


def is_known(error: BaseException) -> bool:
    """Whether an error is the input's or the machine's fault, not the program's."""
    return isinstance(error, ScantlingError | OSError) or is_out_of_memory(error)


def in_a_line(error: BaseException) -> str:
    """Why something failed, in one short line: of several findings, or of a list below its headline, the first."""
    findings = error.findings if isinstance(error, DataError) else ()
    told = str(error) if isinstance(error, ScantlingError) else f"{type(error).__name__}: {error}"
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        told = f"{findings[0]}{more}"
    headline, _, rest = told.partition("\n")
    if headline.endswith(":"):
        headline = f"{headline} {rest.partition(chr(10))[0]}"
    return " ".join(headline.split())[:_REASON_LENGTH]


_REASON_LENGTH = 300


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message that suggests the nearest of some names; empty when none is near."""
    known = list(names)
    near = [name for name in known if word and name.startswith(word)]
    near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""

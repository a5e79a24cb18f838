"""The other end of `local`: a process that does stages by their titles and tells how it goes.

It ends when it is told to, after a failure or a signal, and when the main process is gone, whatever became of it.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from types import FrameType
from typing import IO, TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar, cast

import torch
from rich.console import Console

from scantling.errors import Interrupted, ScantlingError
from scantling.train.progress import Facts, watched_by
from scantling.train.signals import SIGNALS

if TYPE_CHECKING:  # the order brings what it needs
    from scantling.run.context import Workplace
    from scantling.run.stage import Stage

W = TypeVar("W", bound="Workplace")


class Done(NamedTuple):
    """The stage is done."""


class LogLine(NamedTuple):
    """A line of progress."""

    text: str


class LogEntry(NamedTuple):
    """An entry for the log of the run."""

    logger: str
    level: int
    text: str


class Progress(NamedTuple):
    """How the stage comes along; see `train/progress.py`."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class Failed:
    """What ended the stage.

    Attributes:
        error: Raised by the stage; None for a signal.
        signum: The signal.
        text: Its words.
    """

    error: BaseException | None
    signum: int
    text: str

    def as_error(self) -> Exception:
        """What ended the stage in the other process, to be raised or noted in this one.

        Raises:
            Interrupted: It was a signal.
        """
        if isinstance(self.error, Exception):
            return self.error
        if self.error is not None:
            raise self.error
        raise Interrupted(self.signum, self.text)


Message: TypeAlias = Done | LogLine | LogEntry | Progress | Failed


class WorkerOrder(NamedTuple, Generic[W]):
    """What a worker starts with.

    Attributes:
        context: Where stages are done, with the worker's own device.
        build: Lists the stages.
        threads: PyTorch's, as in the main process: sums of two are not those of one.
        log_level: Of the package's log.
        quiet: Nobody wants to see progress.
    """

    context: W
    build: Callable[[W], Sequence[Stage]]
    threads: int
    log_level: int
    quiet: bool


def work(connection: Connection, order: WorkerOrder[W]) -> None:
    """Do the stages whose titles arrive, until None does.

    Args:
        connection: To the main process.
        order: What is to be known for it.
    """
    channel = _Channel(connection)
    for signum in SIGNALS:
        signal.signal(signum, channel.interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _listen(channel, order)
    except (Interrupted, OSError, EOFError):  # told to end, or nobody is there any more
        return


def _listen(channel: _Channel, order: WorkerOrder[W]) -> None:
    torch.set_num_threads(order.threads)
    package = logging.getLogger("scantling")
    package.handlers, package.propagate = [_Sending(channel)], False
    package.setLevel(order.log_level)
    console = Console(file=cast("IO[str]", _Lines(channel)), quiet=order.quiet, force_terminal=False)
    stages = {stage.title: stage for stage in order.build(replace(order.context, console=console))}
    while (title := channel.receive()) is not None:
        try:
            with watched_by(channel.tell):
                stages[title].action()
        except BaseException as error:  # noqa: BLE001 - told to the main process, which raises it
            channel.send(failure_of(error))
            return
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch says nothing of its type
            torch.cuda.empty_cache()  # others on this GPU need it meanwhile
        channel.send(Done())


class _Channel:
    """The way to the main process, on which a signal leaves no half of a message."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.RLock()
        self._is_busy, self._signum = False, 0

    def receive(self) -> str | None:
        """Title of the next stage."""
        title: str | None = self._connection.recv()
        return title

    def send(self, message: Message) -> None:
        """Send from whatever thread.

        Raises:
            Interrupted: A signal arrived meanwhile.
        """
        is_main = threading.current_thread() is threading.main_thread()
        with self._lock:
            self._is_busy = is_main
            try:
                self._connection.send(message)
            finally:
                self._is_busy = False
        if is_main and self._signum:
            signum, self._signum = self._signum, 0
            raise Interrupted(signum, "interrupted")

    def tell(self, facts: Facts) -> None:
        """Send how the stage comes along; where nobody is there any more, something else ends this process."""
        with suppress(OSError):
            self.send(Progress(facts))

    def interrupt(self, signum: int, _frame: FrameType | None) -> None:
        """Answer a signal: what is under way ends here, or after the message that is being sent."""
        if self._is_busy:
            self._signum = signum
        else:
            raise Interrupted(signum, "interrupted")


def failure_of(error: BaseException) -> Failed:
    """What is to be told of an error: itself where it can travel, else its words."""
    if isinstance(error, Interrupted):
        return Failed(None, error.signum, error.message)
    error.add_note("in another process:\n" + "".join(traceback.format_exception(error)))
    travels = isinstance(error, ScantlingError) or type(error).__module__ in ("builtins", "torch")
    known = error if travels else RuntimeError(f"{type(error).__name__}: {error}")
    known.__cause__ = known.__context__ = None
    return Failed(known, 0, "")


def _end_with_parent() -> None:
    """Wait for the main process to end without a word, killed say, and then stop as a signal would stop this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Sending(logging.Handler):
    """Sends the log to the main process."""

    def __init__(self, channel: _Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(LogEntry(record.name, record.levelno, record.getMessage()))


class _Lines(io.TextIOBase):
    """Sends what is printed to the main process, line by line."""

    def __init__(self, channel: _Channel) -> None:
        self._channel, self._rest = channel, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._channel.send(LogLine(line.rstrip()))
        return len(text)

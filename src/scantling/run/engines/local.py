"""Stages side by side on one machine: each in a process of its own, and on a GPU of its own where there are several.

    stages ── whatever needs nothing that is not there yet ──► workers (action) ──► files
                 ▲                                                │
                 └── run folder: records, status, log ◄── messages ┘

The main process alone holds the run folder, decides what is done, and writes records and status; a worker does nothing
but the action of a stage, as the main process would. So the files are the same to the bit, with as many threads. A
signal ends all workers as it would end a run: what trains saves its state first. What a failure means the folder says:
in that of a run it ends the others in the same way, in that of a suite they go on.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import torch

from scantling.errors import Interrupted, TrainingError, UsageError
from scantling.run.engines.worker import Done, Failed, LogEntry, LogLine, Message, WorkerOrder, work
from scantling.run.plan import makers_of
from scantling.run.stage import Stage
from scantling.train.signals import SignalGuard, StopRequested

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from scantling.run.context import Workplace

W = TypeVar("W", bound="Workplace")

_GRACE_SECONDS = 300.0
"""How long workers may take to save their state before they are killed."""
_STOPPED = "stopped by {}; what trained has saved its state, resume the run to go on from there"


class Records(Protocol):
    """What is written down of the stages: the folder of a run, or that of a suite."""

    def begin(self, stage: Stage) -> bool:
        """Note the start of a stage that is to be done; False where it is done already."""

    def end(self, stage: Stage) -> None:
        """Note what a stage left."""

    def fail(self, stage: Stage, error: Exception) -> None:
        """Note that a stage could not be done; raises the error where the others are nothing without it."""


def do_here(run: Records, stage: Stage) -> None:
    """Do a stage that was begun, in this process.

    Raises:
        Interrupted: A signal arrived.
        Exception: What the stage raised, where `run` does not go on without it.
    """
    try:
        stage.action()
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - the folder says what it means
        run.fail(stage, error)
    else:
        run.end(stage)


def do_side_by_side(context: W, run: Records, build: Callable[[W], Sequence[Stage]], jobs: int) -> None:
    """Do all stages, up to `jobs` at a time.

    Args:
        context: Where they are done, in the only process that does so.
        run: The folder in which it is written down.
        build: Lists the stages, in an order in which they can be done; a function of a module.
        jobs: Number of processes.

    Raises:
        UsageError: Several processes do this run together already.
        Interrupted: A signal arrived here or at a worker; what trained has saved its state.
        Exception: Whatever a stage raised, where `run` does not go on without it; `TrainingError` if its worker died.
    """
    check_jobs(context, jobs)
    crew = _Crew(context, build, jobs)
    with crew.at_work():
        _do_all(crew, run, list(build(context)))


def check_jobs(context: Workplace, jobs: int) -> None:
    """Refuse to share out the stages of a run whose processes do each stage together.

    Raises:
        UsageError: There are several processes already.
    """
    if jobs > 1 and context.processes.world > 1:
        raise UsageError("--jobs does not go with torchrun, whose processes do each stage together")


def _do_all(crew: _Crew[W], run: Records, waiting: list[Stage]) -> None:
    """Begin stages as soon as they can be, in their order, until all are done."""
    makers, by_title = makers_of(waiting), {stage.title: stage for stage in waiting}
    while waiting or crew.busy:
        undone = {stage.title for stage in waiting} | crew.busy.keys()
        ready = [stage for stage in waiting if not any(makers.get(need) in undone for need in stage.needs)]
        if not ready or not crew.is_free:
            ended = crew.ended()
            for title in ended.done:
                run.end(by_title[title])
            for title, error in ended.failed.items():
                run.fail(by_title[title], error)
            continue
        stage = ready[0]
        waiting.remove(stage)
        if not run.begin(stage):
            continue
        if len(ready) > 1 or crew.busy:
            crew.start(stage.title)
        else:  # a process of its own would have no company
            do_here(run, stage)


class _Ended(NamedTuple):
    """Titles of the stages that are done, and of those that are not, with what ended them."""

    done: list[str]
    failed: dict[str, Exception]


@dataclass(slots=True, eq=False)
class _Worker:
    """A process that does one stage after the other.

    Attributes:
        process: Of its own interpreter.
        connection: To it.
        title: The stage it is doing; None while it waits.
    """

    process: SpawnProcess
    connection: Connection
    title: str | None = None


class _Crew(Generic[W]):
    """The workers: started when they are first needed, each with its device.

    Args:
        context: Where stages are done.
        build: Lists the stages.
        jobs: How many workers at most.
    """

    def __init__(self, context: W, build: Callable[[W], Sequence[Stage]], jobs: int) -> None:
        self._context, self._build, self._jobs = context, build, jobs
        self._workers: list[_Worker] = []

    @property
    def busy(self) -> dict[str, _Worker]:
        """Workers by the title of what they do."""
        return {worker.title: worker for worker in self._workers if worker.title is not None}

    @property
    def is_free(self) -> bool:
        """Whether one more stage can be begun."""
        return len(self.busy) < self._jobs

    def start(self, title: str) -> None:
        """Let a worker do a stage: one that waits, or a new one."""
        for worker in [one for one in self._workers if one.title is None]:
            with suppress(OSError):
                worker.connection.send(title)
                worker.title = title
                return
            self._leave(worker)  # it died while it waited
        worker = self._hire()
        worker.title = title
        worker.connection.send(title)

    def ended(self) -> _Ended:
        """Wait for something to happen; the stages that have ended by then.

        Raises:
            Interrupted: A signal arrived here or at a worker.
        """
        ended = _Ended([], {})
        with SignalGuard() as guard:  # so that no message is read by half
            try:
                with guard.interruptible():
                    ready = wait([worker.connection for worker in self._workers])
            except StopRequested:
                ready = []
            for worker in [one for one in self._workers if one.connection in ready]:
                title = worker.title
                try:
                    message = self._receive(worker)
                except TrainingError as error:  # its process is gone
                    if title is not None:
                        ended.failed[title] = error
                    continue
                if isinstance(message, Done) and title is not None:
                    ended.done.append(title)
                    worker.title = None
                elif isinstance(message, Failed):
                    ended.failed[str(title)] = message.as_error()
                    self._leave(worker)
        if guard.signum is not None:
            raise Interrupted(guard.signum, _STOPPED.format(signal.Signals(guard.signum).name))
        return ended

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Workers end with this block: at once when they have nothing to do, else as a signal would end them."""
        try:
            yield
        finally:
            try:
                self._dismiss()
            except BaseException:
                for worker in self._workers:
                    worker.process.kill()
                raise
            finally:
                for worker in self._workers:
                    worker.process.join()
                    worker.connection.close()

    def _hire(self) -> _Worker:
        context, number = self._context, len(self._workers)
        devices = context.devices or (context.device,)
        ours, theirs = multiprocessing.Pipe()
        given = replace(context, device=devices[number % len(devices)])
        order = WorkerOrder(
            given,
            self._build,
            threads=torch.get_num_threads(),
            log_level=logging.getLogger("scantling").getEffectiveLevel(),
            quiet=context.console.quiet,
        )
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(theirs, order), name=f"scantling worker {number + 1}"
        )
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _receive(self, worker: _Worker) -> Message:
        """A message; what is only to be told is told."""
        try:
            message: Message = worker.connection.recv()
        except (EOFError, OSError):
            self._mourn(worker)
        if isinstance(message, LogEntry):
            told = f"{worker.title}: {message.text}" if worker.title else message.text
            logging.getLogger(message.logger).log(message.level, "%s", told)
        elif isinstance(message, LogLine):
            line = f"{worker.title}: {message.text}"
            self._context.console.print(line, highlight=False, markup=False, soft_wrap=True)
        return message

    def _leave(self, worker: _Worker) -> None:
        """Forget a worker whose process has ended, or is about to."""
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)

    def _mourn(self, worker: _Worker) -> NoReturn:
        self._leave(worker)
        code = worker.process.exitcode or 0
        raise TrainingError(
            f"{worker.title or 'a waiting process'}: its process ended "
            + (f"by signal {-code}" if code < 0 else f"with exit code {code}"),
            hint="Most often memory ran out. Use fewer --jobs; the same command goes on where this one stopped.",
        )

    def _dismiss(self) -> None:
        """Tell all to end, and hear what they have to say until they have; a second Ctrl-C ends them at once."""
        with SignalGuard():
            self._tell_to_end()
            self._hear_out()

    def _tell_to_end(self) -> None:
        for worker in self._workers:
            with suppress(OSError):
                if worker.title is None:
                    worker.connection.send(None)
                else:
                    worker.process.terminate()

    def _hear_out(self) -> None:
        deadline = time.monotonic() + _GRACE_SECONDS
        speaking = [worker for worker in self._workers if worker.process.exitcode is None]
        while speaking and time.monotonic() < deadline:
            ready = wait([one.connection for one in speaking], 1.0)
            for worker in [one for one in speaking if one.connection in ready]:
                try:
                    self._receive(worker)
                except TrainingError:  # it is gone, as it was told
                    speaking.remove(worker)
        for worker in speaking:
            log.warning("%s: did not end within %.0f seconds, killed", worker.title, _GRACE_SECONDS)
            worker.process.kill()

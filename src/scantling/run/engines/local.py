"""Stages side by side on one machine: each in a process of its own, and on a GPU of its own where there are several.

    stages ── whatever needs nothing that is not there yet ──► workers (action) ──► files
                 ▲                                                │
                 └── run folder: records, status, log ◄── messages ┘

The main process alone holds the run folder, decides what is done, and writes records and status; a worker does nothing
but the action of a stage, as the main process would. So the files are the same to the bit, with as many threads. A
signal ends all workers as it would end a run: what trains saves its state first.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

import torch

from scantling.errors import Interrupted, TrainingError
from scantling.run.engines.schedule import GRACE_SECONDS, STOPPED, Ended, Records, do_all
from scantling.run.engines.worker import (
    Done,
    Failed,
    LogEntry,
    LogLine,
    Message,
    Progress,
    WorkerOrder,
    work,
)
from scantling.run.stage import Stage
from scantling.train.progress import Facts
from scantling.train.signals import SignalGuard, StopRequested

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from scantling.run.context import Workplace

W = TypeVar("W", bound="Workplace")


def do_side_by_side(context: W, run: Records, build: Callable[[W], Sequence[Stage]], jobs: int) -> None:
    """Do all stages, up to `jobs` at a time.

    Args:
        context: Where they are done, in the only process that does so.
        run: The folder in which it is written down.
        build: Lists the stages, in an order in which they can be done; a function of a module.
        jobs: Number of processes.

    Raises:
        Interrupted: A signal arrived here or at a worker; what trained has saved its state.
        ScantlingError: A stage cannot be begun. What it raised, or `TrainingError` if its worker died, is noted.
    """
    stages, crew = build(context), _Crew(context, build, jobs, run.about)
    try:
        with crew.at_work():
            do_all(stages, run, crew)
            crew.require_no_signal()
    finally:
        for stage in [stage for stage in stages if stage.title in crew.done_late]:
            run.end(stage)


@dataclass(slots=True, eq=False)
class _Worker:
    """A process that does one stage after the other.

    Attributes:
        process: Of its own interpreter.
        connection: To it.
        device: On which it computes.
        title: The stage it is doing; None while it waits.
    """

    process: SpawnProcess
    connection: Connection
    device: torch.device
    title: str | None = None


class _Crew(Generic[W]):
    """The workers: started when they are first needed, each with its device.

    Args:
        context: Where stages are done.
        build: Lists the stages.
        jobs: How many workers at most.
        about: What is logged meanwhile is about a stage.

    Attributes:
        done_late: Titles of stages that were done by the time their workers were told to end.
    """

    def __init__(
        self,
        context: W,
        build: Callable[[W], Sequence[Stage]],
        jobs: int,
        about: Callable[[Stage], AbstractContextManager[object]],
    ) -> None:
        self._context, self._build, self._jobs, self._about = context, build, jobs, about
        self._stages: dict[str, Stage] = {}
        self._workers: list[_Worker] = []
        self._signal: Interrupted | None = None
        self.done_late: set[str] = set()

    @property
    def busy(self) -> dict[str, _Worker]:
        """Workers by the title of what they do."""
        return {worker.title: worker for worker in self._workers if worker.title is not None}

    @property
    def is_free(self) -> bool:
        """Whether one more stage can be begun."""
        return len(self.busy) < self._jobs and self._signal is None

    def wants(self, *, company: bool) -> bool:
        """A stage without company is done in the main process: a worker would only cost its start."""
        return company

    def start(self, stage: Stage) -> None:
        """Let a worker do a stage: one that waits, or a new one."""
        title = stage.title
        self._stages[title] = stage
        for worker in [one for one in self._workers if one.title is None]:
            with suppress(OSError):
                worker.connection.send(title)
                worker.title = title
                return
            self._leave(worker)  # it died while it waited
        worker = self._hire()
        worker.title = title
        worker.connection.send(title)

    def ended(self) -> Ended:
        """Wait for something to happen; the stages that have ended by then, and what the others tell.

        Raises:
            Interrupted: A signal arrived here or at a worker, and what had ended by then was told.
        """
        self.require_no_signal()
        told = dict[str, Facts]()
        ended = Ended([], {}, told)
        with SignalGuard() as guard:  # so that no message is read by half
            connections = [worker.connection for worker in self._workers]
            try:
                with guard.interruptible():
                    ready = wait(connections)
            except StopRequested:
                ready = wait(connections, 0)
            for worker in [one for one in self._workers if one.connection in ready]:
                self._hear(worker, ended, told)
        if guard.signum is not None:
            self._signal = Interrupted(guard.signum, STOPPED.format(signal.Signals(guard.signum).name))
        if not ended.done and not ended.failed:
            self.require_no_signal()
        return ended

    def require_no_signal(self) -> None:
        """Stop where one arrived.

        Raises:
            Interrupted: It did, here or at a worker.
        """
        if self._signal is not None:
            raise self._signal

    def _hear(self, worker: _Worker, ended: Ended, told: dict[str, Facts]) -> None:
        """Take note of what a worker tells."""
        title = worker.title
        try:
            message = self._receive(worker)
        except TrainingError as error:  # its process is gone
            if title is not None:
                ended.failed[title] = error
            return
        if isinstance(message, Done) and title is not None:
            ended.done.append(title)
            worker.title = None
        elif isinstance(message, Progress) and title is not None:
            where = {"host": socket.gethostname(), "pid": worker.process.pid}
            told[title] = {"where": where, **message.facts}
        elif isinstance(message, Failed):
            try:
                ended.failed[str(title)] = message.as_error()
            except Interrupted as error:
                self._signal = error
            self._leave(worker)

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
        """A new worker, on the device that the fewest of the others have."""
        context, number = self._context, len(self._workers)
        taken = Counter(worker.device for worker in self._workers)
        device = min(context.devices or (context.device,), key=lambda each: taken[each])
        ours, theirs = multiprocessing.Pipe()
        given = replace(context, device=device)
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
        worker = _Worker(process, ours, device)
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
            with self._about(self._stages[worker.title]) if worker.title else nullcontext():
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
        deadline = time.monotonic() + GRACE_SECONDS
        speaking = list(self._workers)
        while speaking and time.monotonic() < deadline:
            silent = [worker for worker in speaking if worker.process.exitcode is not None]
            ready = wait([one.connection for one in speaking], 1.0)
            for worker in [one for one in speaking if one.connection in ready]:
                try:
                    message = self._receive(worker)
                except TrainingError:  # it is gone, as it was told
                    speaking.remove(worker)
                    continue
                if isinstance(message, Done) and worker.title is not None:
                    self.done_late.add(worker.title)
                    worker.title = None
            speaking = [one for one in speaking if one not in silent or one.connection in ready]
        for worker in speaking:
            log.warning("%s: did not end within %.0f seconds, killed", worker.title, GRACE_SECONDS)
            worker.process.kill()

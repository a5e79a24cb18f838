"""Stages as tasks of a Ray cluster: on this machine, or on as many as the cluster has.

    stages ── whatever needs nothing that is not there yet ──► tasks, anywhere in the cluster (remote.py) ──► files
                 ▲                                                │
                 └── run folder: records, status, log ◄── how it went

The driver only schedules, decides and reports. Ray starts a task again whose machine is gone; the lease on the stage
keeps it from being done twice at a time. The run folder and the data must be seen by all machines under the same path.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from scantling.errors import Interrupted, TrainingError, UsageError
from scantling.run.engines.nodes import (
    REMEDY,
    SHARED_FOLDER,
    ask_as_before,
    asking_nobody,
    largest_node,
    require_answer,
)
from scantling.run.engines.remote import RemoteOrder, Workshop
from scantling.run.engines.schedule import GRACE_SECONDS, STOPPED, Ended, Records, do_all
from scantling.run.engines.worker import Done, Failed
from scantling.run.leases import PATIENCE_SECONDS, Leases
from scantling.run.running import SIGHT_SECONDS, log_of_stage
from scantling.run.stage import Stage
from scantling.train.progress import Facts
from scantling.train.signals import SignalGuard

if TYPE_CHECKING:
    from scantling.run.context import Workplace

W = TypeVar("W", bound="Workplace")

_MOST_TASKS = 1000
"""Tasks that Ray is given at a time; a cluster that grows with what waits sees enough of it."""
_RETRIES = 10
"""Times that a stage is begun again whose machine is gone, or asked it to end."""
_WAIT_SECONDS, _GLANCE_SECONDS = 1.0, 0.1
_GOES_ON = "The same command goes on where this one stopped."
_LOOK_SECONDS, _LOOK_SHARE = 5.0, 20
"""Time between two looks at the leases, at least; and as a multiple of how long a look takes."""

log = logging.getLogger(__name__)


def require_ray() -> Any:  # noqa: ANN401 - a module
    """Ray, told to send no statistics of its use.

    Raises:
        UsageError: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        hint = "Install it: pip install 'scantling[ray]'. --engine local --jobs N needs nothing."
        raise UsageError("--engine ray needs Ray, which is not installed", hint=hint) from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, in contact with a cluster; one that is started here ends with the block.

    Args:
        address: `HOST:PORT`, `auto`, or None: the cluster this process belongs to, else a new one on this machine.

    Raises:
        UsageError: There is no cluster at that address.
    """
    ray = require_ray()
    if ray.is_initialized():  # by the program that calls this
        yield ray
        return
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    require_answer(found)
    options = {"include_dashboard": False} if found == "local" else {}
    try:
        with asking_nobody():
            ray.init(
                address=found,
                configure_logging=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="scantling",
                **options,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster answers at {found}: {error}", hint=REMEDY) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def do_on_ray(
    context: W,
    records: Records,
    build: Callable[[W], Sequence[Stage]],
    address: str | None = None,
    *,
    patience: float = PATIENCE_SECONDS,
    gpus: int = 1,
) -> None:
    """Do all stages on a Ray cluster.

    Args:
        context: Where they are done; its folder is one that all machines see.
        records: What is done already, and where it is written down.
        build: Lists the stages, in an order in which they can be done; a function of a module.
        address: As in `connected`.
        patience: Seconds after which a silent holder of a lease is taken for dead.
        gpus: Of one machine, on which a model is trained, each with a process of its own.

    Raises:
        UsageError: Ray is not installed, does not answer, or no machine has what a stage needs.
        Interrupted: A signal arrived; what trained has saved its state.
        ScantlingError: A stage cannot be begun. What a stage raised is noted.
    """
    with connected(address) as ray:
        crew = RayCrew(ray, context, build, patience, gpus)
        with crew.at_work(records):
            do_all(build(context), records, crew)


class RayCrew(Generic[W]):
    """Tasks of a Ray cluster, one for each stage that is being done.

    Args:
        ray: The module, in contact with a cluster.
        context: Where stages are done.
        build: Lists the stages.
        patience: As in `do_on_ray`.
        gpus: As in `do_on_ray`.
    """

    def __init__(
        self,
        ray: Any,
        context: W,
        build: Callable[[W], Sequence[Stage]],
        patience: float = PATIENCE_SECONDS,
        gpus: int = 1,
    ) -> None:
        self._ray, self._context = ray, context
        self._largest = largest_node(ray)
        order = RemoteOrder.of(context, build, patience=patience, gpus=gpus)
        self._withdraw = order.withdraw
        self._order = [ray.put(order)]  # in a list: fetched once by each process, not for each task
        self._key = f"{context.root.absolute()} {self._order[0].hex()}"
        self._task = ray.remote(max_retries=_RETRIES, max_calls=0)(do_stage)
        self._gpus = gpus
        self._open: dict[str, Stage] = {}
        self._titles: dict[Any, str] = {}
        self._unseen: dict[str, float] = {}
        self._again = Counter[str]()
        self._signum: int | None = None
        self._leases = Leases(root=context.root, patience=patience)
        self._look_from = 0.0

    @property
    def busy(self) -> Collection[str]:
        """Titles of the stages that are being done, or wait for a machine."""
        return self._open

    @property
    def is_free(self) -> bool:
        """Whether Ray is to be given one more task; none after a signal."""
        return len(self._open) < _MOST_TASKS and self._signum is None

    def wants(self, *, company: bool) -> bool:  # noqa: ARG002 - alone or not
        """The driver does no stage itself."""
        return True

    def start(self, stage: Stage) -> None:
        """Give Ray the task."""
        self._open[stage.title] = stage
        task = self._task.options(name=stage.title, **self._resources(stage))
        lacking = stage.missing(self._context.root)
        self._titles[task.remote(self._order, self._key, stage.title, lacking)] = stage.title

    def ended(self) -> Ended:
        """Wait until a task has ended, or some seconds; the stages that have ended by then, and what others tell.

        Raises:
            Interrupted: A signal arrived here; what had ended by then was told before.
        """
        self._require_no_signal()
        ended = Ended([], {}, self._told())
        with SignalGuard() as guard:
            for task in self._wait(guard):
                outcome = self._outcome(task)
                self._note(ended, self._titles.pop(task), outcome, is_last=guard.signum is not None)
            self._look_for_files(ended)
        self._signum = guard.signum
        for title in (*ended.done, *ended.failed):
            del self._open[title]
        if not (ended.done or ended.failed):
            self._require_no_signal()
        return ended

    def _require_no_signal(self) -> None:
        if self._signum is not None:
            raise Interrupted(self._signum, STOPPED.format(signal.Signals(self._signum).name))

    def _wait(self, guard: SignalGuard) -> list[Any]:
        """The tasks that have ended, as soon as there is one, or nothing else to wait for."""
        ready, seconds = list[Any](), _GLANCE_SECONDS if self._unseen else _WAIT_SECONDS
        while not ready and guard.signum is None and time.monotonic() < self._look_from:
            if self._titles:
                ready, _ = self._ray.wait(list(self._titles), num_returns=1, timeout=seconds)
            else:
                time.sleep(seconds)
            if self._unseen:
                break
        return self._ended_by_now()

    def _ended_by_now(self) -> list[Any]:
        waiting = list(self._titles)
        ready: list[Any] = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if waiting else []
        return ready

    def _note(self, ended: Ended, title: str, outcome: Done | Failed | Exception, *, is_last: bool) -> None:
        """Note how a task went; a stage that was stopped on its machine is begun again, unless all is to end."""
        if isinstance(outcome, Done):
            self._unseen[title] = time.monotonic()
            return
        if isinstance(outcome, Failed):
            stopped = _stopped_by(outcome)
            if stopped and is_last:
                return
            if stopped and self._again[title] < _RETRIES:
                self._again[title] += 1
                log.warning("%s: was stopped on its machine by %s, begun again", title, stopped)
                self.start(self._open[title])
                return
            times = f"{title}: was stopped {_RETRIES + 1} times on its machine, last by {stopped}"
            outcome = TrainingError(times, hint=_GOES_ON) if stopped else outcome.as_error()
        log.info("%s: its log is %s", title, log_of_stage(self._context.root, title))
        ended.failed[title] = outcome

    def _look_for_files(self, ended: Ended) -> None:
        """Note of stages that are done elsewhere that they are done, once all they have left is seen here."""
        for title, since in list(self._unseen.items()):
            if not (absent := self._absent(title)):
                ended.done.append(title)
            elif time.monotonic() - since > SIGHT_SECONDS:
                told = f"{title}: what it left is not seen by the scheduling machine: {', '.join(absent)}"
                ended.failed[title] = TrainingError(told, hint=SHARED_FOLDER)
            else:
                continue
            del self._unseen[title]

    def _absent(self, title: str) -> list[str]:
        return [name for name in self._open[title].outputs if not (self._context.root / name).is_file()]

    def _told(self) -> dict[str, Facts]:
        """What the leases say of the stages that are being done, every few seconds and in little of the time."""
        began, told = time.monotonic(), dict[str, Facts]()
        if began < self._look_from:
            return told
        for title in self._titles.values():
            state = self._leases.state(title)
            if state is not None and not self._leases.is_free(state, title):
                told[title] = {"where": {"host": state.owner.host, "pid": state.owner.pid}, **state.facts}
        took = time.monotonic() - began
        self._look_from = began + took + max(_LOOK_SECONDS, _LOOK_SHARE * took)
        return told

    @contextmanager
    def at_work(self, records: Records) -> Iterator[None]:
        """Tasks end with this block: what is under way as a signal would end it.

        Args:
            records: Where that is noted which is done all the same.

        Raises:
            Interrupted: A signal arrived with the end of the last task.
        """
        try:
            yield
            self._require_no_signal()
        finally:
            if self._open:
                with SignalGuard():
                    self._dismiss()
                    for title in self._done_late():
                        records.end(self._open[title])
            self._withdraw()

    def _done_late(self) -> list[str]:
        """Of the stages that no longer are to be done: those that are done all the same, as far as it is seen here."""
        tasks = [task for task in self._ended_by_now() if isinstance(self._outcome(task), Done)]
        done = [*self._unseen, *(self._titles[task] for task in tasks)]
        return [title for title in done if not self._absent(title)]

    def _dismiss(self) -> None:
        for task in self._titles:
            with suppress(ValueError, RuntimeError):
                self._ray.cancel(task)
        deadline, waiting = time.monotonic() + GRACE_SECONDS, dict(self._titles)
        while (
            waiting and time.monotonic() < deadline
        ):  # Ray calls a task ended that is still saving its state
            time.sleep(_GLANCE_SECONDS)
            states = {title: self._leases.state(title) for title in waiting.values()}
            free = {title for title, state in states.items() if self._leases.is_free(state, title)}
            waiting = {task: title for task, title in waiting.items() if title not in free}
        for task, title in waiting.items():
            log.warning("%s: did not end within %.0f seconds, killed", title, GRACE_SECONDS)
            with suppress(ValueError, RuntimeError):
                self._ray.cancel(task, force=True)

    def _outcome(self, task: Any) -> Done | Failed | Exception:
        """How a task went that has ended."""
        title = self._titles[task]
        try:
            outcome: Done | Failed = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # before the stage was begun
            error.add_note(f"{title}: the task could not begin")
            cause = getattr(error, "cause", None)
            return cause if isinstance(cause, Exception) else RuntimeError(str(error))
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()
            told = said[0] if said else type(error).__name__
            return TrainingError(
                f"{title}: {told}", hint=f"Most often memory ran out, or machines went away. {_GOES_ON}"
            )
        return outcome

    def _resources(self, stage: Stage) -> dict[str, float]:
        """What a stage is to have for itself.

        On a GPU, its share of the processors of the largest machine; without one, as many as it has threads.
        """
        processors, gpus = self._largest
        together = 1 if stage.alone else self._gpus
        if self._context.device.type != "cuda" or not stage.resources.gpus:
            return {"num_cpus": max(1, min(torch.get_num_threads() * together, int(processors)))}
        wanted = stage.resources.gpus * together
        if wanted > gpus:
            raise UsageError(
                f"{stage.title} needs {wanted} GPUs of one machine, and none of the cluster has as many"
            )
        return {"num_gpus": wanted, "num_cpus": max(1, int(processors / gpus) * wanted)}


_WORKSHOPS: dict[str, Workshop[Any]] = {}
"""In a process of the cluster: what it has been told of the order that it last worked on."""


def do_stage(order: list[Any], key: str, title: str, lacking: Sequence[str] = ()) -> Done | Failed:
    """The task: do a stage here, and tell how it went.

    Args:
        order: The reference of the `RemoteOrder`, alone in a list.
        key: Of the order, the same for all its stages.
        title: Of the stage.
        lacking: As in `Workshop.do`.
    """
    if key not in _WORKSHOPS:
        ask_as_before()
        import ray

        from scantling.run.engines.worker import failure_of

        _WORKSHOPS.clear()
        try:
            _WORKSHOPS[key] = Workshop(ray.get(order[0]))
        except UsageError as error:
            return failure_of(error)
    return _WORKSHOPS[key].do(title, lacking)


def _stopped_by(outcome: Failed) -> str | None:
    """What asked a stage to end on its machine; None where it failed."""
    if isinstance(outcome.error, Exception):
        return None
    return signal.Signals(outcome.signum).name if outcome.error is None else type(outcome.error).__name__

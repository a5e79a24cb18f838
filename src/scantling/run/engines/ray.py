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
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from scantling.errors import Interrupted, TrainingError, UsageError
from scantling.run.engines.remote import RemoteOrder, Workshop
from scantling.run.engines.schedule import GRACE_SECONDS, STOPPED, Ended, Records, do_all
from scantling.run.engines.worker import Done, Failed
from scantling.run.leases import PATIENCE_SECONDS, Leases
from scantling.run.running import log_of_stage
from scantling.run.stage import Stage
from scantling.train.progress import Facts
from scantling.train.signals import SignalGuard

if TYPE_CHECKING:
    from scantling.run.context import Workplace

W = TypeVar("W", bound="Workplace")

_MOST_TASKS = 1000
"""Tasks that Ray is given at a time; a cluster that grows with what waits sees enough of it."""
_RETRIES = 10
"""Times that a stage is begun again whose machine is gone."""
_WAIT_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
_PROXIES, _KEPT_PROXY = ("http_proxy", "HTTP_PROXY"), "SCANTLING_HTTP_PROXY"
_NOWHERE = "http://127.0.0.1:9"
"""The port of this machine that takes everything and keeps nothing, and is closed nearly everywhere."""
_REMEDY = "Look at it with `ray status`, or leave --address out to use this machine."
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
    _require_answer(found)
    options = {"include_dashboard": False} if found == "local" else {}
    try:
        with _asking_nobody():
            ray.init(
                address=found,
                configure_logging=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="scantling",
                **options,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster answers at {found}: {error}", hint=_REMEDY) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _asking_nobody() -> Iterator[None]:
    """Let a Ray that is started meanwhile ask no other machine.

    With its statistics switched off it still asks, over plain HTTP, whether it runs in somebody's cloud, and may report
    that they are off. What it starts inherits a way to nowhere; `do_stage` gives the work its own way back.
    """
    before = {name: os.environ.get(name) for name in _PROXIES}
    given = before["http_proxy"] or before["HTTP_PROXY"] or ""
    own = {**dict.fromkeys(_PROXIES, _NOWHERE), _KEPT_PROXY: given, "RAY_USAGE_STATS_REPORT_URL": _NOWHERE}
    before |= {name: os.environ.get(name) for name in own}
    os.environ |= own
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _ask_as_before() -> None:
    """In a process of the cluster: use the way to other machines that the driver has."""
    given = os.environ.pop(_KEPT_PROXY, None)
    if given is not None:
        for name in _PROXIES:
            os.environ.pop(name, None)
            if given:
                os.environ[name] = given


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        UsageError: Nothing does.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address}: {error}", hint=_REMEDY) from error


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
        with crew.at_work():
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
        self._largest = _largest_node(ray)
        order = RemoteOrder.of(context, build, patience=patience, gpus=gpus)
        self._withdraw = order.withdraw
        self._order = [ray.put(order)]  # in a list: fetched once by each process, not for each task
        self._key = f"{context.root.absolute()} {self._order[0].hex()}"
        self._task = ray.remote(max_retries=_RETRIES, max_calls=0)(do_stage)
        self._gpus = gpus
        self._titles: dict[Any, str] = {}
        self._leases = Leases(root=context.root)
        self._look_from = 0.0

    @property
    def busy(self) -> Collection[str]:
        """Titles of the stages that are being done, or wait for a machine."""
        return self._titles.values()

    @property
    def is_free(self) -> bool:
        """Whether Ray is to be given one more task."""
        return len(self._titles) < _MOST_TASKS

    def wants(self, *, company: bool) -> bool:  # noqa: ARG002 - alone or not
        """The driver does no stage itself."""
        return True

    def start(self, stage: Stage) -> None:
        """Give Ray the task."""
        task = self._task.options(name=stage.title, **self._resources(stage))
        self._titles[task.remote(self._order, self._key, stage.title)] = stage.title

    def ended(self) -> Ended:
        """Wait until a task has ended, or some seconds; the stages that have ended by then, and what others tell.

        Raises:
            Interrupted: A signal arrived here.
        """
        ended = Ended([], {}, self._told())
        with SignalGuard() as guard:
            ready = list[Any]()
            while not ready and guard.signum is None and time.monotonic() < self._look_from:
                waiting = list(self._titles)
                ready, _ = self._ray.wait(waiting, num_returns=1, timeout=_WAIT_SECONDS)
            if ready:
                more, _ = self._ray.wait(list(self._titles), num_returns=len(self._titles), timeout=0)
                ready = list(dict.fromkeys([*ready, *more]))
        for task in ready:
            title = self._titles.pop(task)
            outcome = self._outcome(task, title)
            if isinstance(outcome, Done):
                ended.done.append(title)
            else:
                log.info("%s: its log is %s", title, log_of_stage(self._context.root, title))
                ended.failed[title] = outcome
        if guard.signum is not None:
            raise Interrupted(guard.signum, STOPPED.format(signal.Signals(guard.signum).name))
        return ended

    def _told(self) -> dict[str, Facts]:
        """What the leases say of the stages that are being done, every few seconds and in little of the time."""
        began, told = time.monotonic(), dict[str, Facts]()
        if began < self._look_from:
            return told
        for title in self._titles.values():
            state = self._leases.state(title)
            if state is not None and state.outcome is None:
                told[title] = {"where": {"host": state.owner.host, "pid": state.owner.pid}, **state.facts}
        took = time.monotonic() - began
        self._look_from = began + took + max(_LOOK_SECONDS, _LOOK_SHARE * took)
        return told

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Tasks end with this block: what is under way as a signal would end it."""
        try:
            yield
        finally:
            if self._titles:
                with SignalGuard():
                    self._dismiss()
            self._withdraw()

    def _dismiss(self) -> None:
        for task in self._titles:
            with suppress(ValueError, RuntimeError):
                self._ray.cancel(task)
        leases = Leases(root=self._context.root)
        deadline, waiting = time.monotonic() + GRACE_SECONDS, dict(self._titles)
        while (
            waiting and time.monotonic() < deadline
        ):  # Ray calls a task ended that is still saving its state
            time.sleep(_WAIT_SECONDS / 10)
            states = {task: leases.state(title) for task, title in waiting.items()}
            waiting = {
                task: waiting[task] for task, state in states.items() if state and state.outcome is None
            }
        for task, title in waiting.items():
            log.warning("%s: did not end within %.0f seconds, killed", title, GRACE_SECONDS)
            with suppress(ValueError, RuntimeError):
                self._ray.cancel(task, force=True)

    def _outcome(self, task: Any, title: str) -> Done | Exception:
        """How a task went.

        Raises:
            Interrupted: A signal ended it.
        """
        try:
            outcome: Done | Failed = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # before the stage was begun
            error.add_note(f"{title}: the task could not begin")
            cause = getattr(error, "cause", None)
            return cause if isinstance(cause, Exception) else RuntimeError(str(error))
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()
            hint = "Most often memory ran out, or machines went away. The same command goes on where this one stopped."
            return TrainingError(f"{title}: {said[0] if said else type(error).__name__}", hint=hint)
        return outcome if isinstance(outcome, Done) else outcome.as_error()

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


def do_stage(order: list[Any], key: str, title: str) -> Done | Failed:
    """The task: do a stage here, and tell how it went.

    Args:
        order: The reference of the `RemoteOrder`, alone in a list.
        key: Of the order, the same for all its stages.
        title: Of the stage.
    """
    if key not in _WORKSHOPS:
        _ask_as_before()
        import ray

        from scantling.run.engines.worker import failure_of

        _WORKSHOPS.clear()
        try:
            _WORKSHOPS[key] = Workshop(ray.get(order[0]))
        except UsageError as error:
            return failure_of(error)
    return _WORKSHOPS[key].do(title)


def _largest_node(ray: Any) -> tuple[float, float]:
    """Processors and GPUs of the machine that has most of the latter, then of the former."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [(node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in nodes]
    gpus, processors = max(sizes, default=(0.0, 1.0))
    return processors, gpus

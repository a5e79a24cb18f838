"""A stage done by a process that shares nothing with the one that schedules but the run folder.

    order (where, what, how) ──► lease on the stage ──► work ──► outputs moved into the run folder ──► told how it went

What trains works in the run folder itself, so that its state outlives the machine. Everything else works in a folder
of its own on the local disk, and only whole files are moved to the others, the declared outputs last, and only while
the lease is held.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from rich.console import Console

from scantling.data.io import atomic_write, temporary_beside
from scantling.errors import PeerFailed, UsageError
from scantling.run.engines.nodes import version_differences, versions_here
from scantling.run.engines.worker import Done, Failed, failure_of
from scantling.run.leases import LEASES, PATIENCE_SECONDS, Lease, Leases
from scantling.run.logs import log_file
from scantling.run.running import SIGHT_SECONDS, log_of_stage
from scantling.run.stage import RECORD, Stage
from scantling.train.devices import join_processes, resolve_device
from scantling.train.launch import call_together
from scantling.train.progress import watched_by

if TYPE_CHECKING:
    from scantling.run.context import Workplace

W = TypeVar("W", bound="Workplace")

TOKENS = "tokens"
_GLANCE_SECONDS = 0.1
_SAME_FOLDER = "The folder must be the same on all machines, under the same path: on a network drive, say."

log = logging.getLogger(__name__)


class Versions(NamedTuple):
    """What must be the same wherever the stages of a run are done, for the same result; None: not installed."""

    python: str | None
    scantling: str | None
    torch: str | None
    torchvision: str | None

    @classmethod
    def here(cls) -> Versions:
        """Of this process."""
        return cls(**versions_here())

    def differences(self, other: Versions) -> list[str]:
        """Such as `torch 2.11.0, here 2.12.0`."""
        return version_differences(self._asdict(), other._asdict())


@dataclass(frozen=True, kw_only=True)
class RemoteOrder(Generic[W]):
    """What a process elsewhere has to know.

    Attributes:
        context: Where stages are done; its device is that of the scheduler.
        build: Lists the stages.
        token: Of this order alone, a file that the scheduler has left in the folder: who finds it sees the same folder.
        threads: PyTorch's, as where it is scheduled: sums of two are not those of one.
        versions: Of the scheduler.
        cwd: Where the scheduler works, and relative paths begin, such as a recipe's of files of other tools.
        patience: Seconds after which a silent holder of a lease is taken for dead.
        gpus: Processes that train a model together, each on a GPU of its own.
    """

    context: W
    build: Callable[[W], Sequence[Stage]]
    token: str
    threads: int
    versions: Versions
    cwd: Path
    patience: float = PATIENCE_SECONDS
    gpus: int = 1

    @classmethod
    def of(
        cls,
        context: W,
        build: Callable[[W], Sequence[Stage]],
        *,
        patience: float = PATIENCE_SECONDS,
        gpus: int = 1,
    ) -> RemoteOrder[W]:
        """An order from this process, for a run folder that is open."""
        return cls(
            context=replace(context, root=context.root.absolute()),
            build=build,
            token=_leave_token(context.root),
            threads=torch.get_num_threads(),
            versions=Versions.here(),
            cwd=Path.cwd(),
            patience=patience,
            gpus=gpus,
        )

    def withdraw(self) -> None:
        """Nothing is begun on this order any more."""
        _file_of(self.context.root, self.token).unlink(missing_ok=True)


class Workshop(Generic[W]):
    """Does the stages of one order, one after the other.

    Args:
        order: What was ordered.

    Raises:
        UsageError: This machine does not see the run folder, or has other versions.
    """

    def __init__(self, order: RemoteOrder[W]) -> None:
        self._order, self._root = order, order.context.root
        if differing := order.versions.differences(Versions.here()):
            raise UsageError(
                f"{socket.gethostname()}: has other versions than the machine that schedules: {'; '.join(differing)}",
                hint="Install the same on all machines: results would differ.",
            )
        _require_token(self._root, order.token)
        if order.cwd.is_dir():  # else nothing of the run should be named from it; what is, will not be found
            os.chdir(order.cwd)
        torch.set_num_threads(order.threads)
        self._leases = Leases(root=self._root, patience=order.patience)
        self._stages = {stage.title: stage for stage in self._stages_at(order.context, self._root)}

    def do(self, title: str, lacking: Sequence[str] = ()) -> Done | Failed:
        """Do a stage as soon as nobody else does it and what it needs is seen here, and tell how it went.

        Args:
            title: Of the stage.
            lacking: Those of its needs that the scheduler does not see either.
        """
        try:
            facts = dict[str, Any]()
            with (
                self._lease_of(title).kept(facts.copy) as lease,
                _log_of(self._root, title),
                watched_by(facts.update),
            ):
                _require_sight(self._root, self._stages[title], lacking)
                do_under(
                    lease, self._stages[title], partial(self._stages_at, self._order.context.only(title))
                )
        except BaseException as error:  # noqa: BLE001 - told to who ordered it, and raised there
            return failure_of(error)
        finally:
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch says nothing of its type
                torch.cuda.empty_cache()
        return Done()

    def _lease_of(self, title: str) -> Lease:
        """The lease; an earlier attempt on a machine that is gone holds it until it has been silent for long enough."""
        told = False
        while (lease := self._leases.take(title)) is None:
            if not told:
                log.info("%s: waiting for the lease", title)
                told = True
            time.sleep(min(1.0, self._order.patience / 20))
        return lease

    def _stages_at(self, given: W, root: Path) -> Sequence[Stage]:
        console = Console(file=io.StringIO(), quiet=True)
        device = _device_here(given.device)
        stages = self._order.build(replace(given, root=root, console=console, device=device, devices=()))
        if self._order.gpus == 1:
            return stages
        return [
            stage
            if stage.alone
            else replace(stage, action=partial(_do_together, self._order, stage.title, root))
            for stage in stages
        ]


def _do_together(order: RemoteOrder[Any], title: str, root: Path) -> None:
    """Do a stage in several processes of this machine, each on a GPU of its own.

    Raises:
        Exception: What the first process raised that failed by itself.
    """
    outcomes = call_together(order.gpus, do_my_part, order, title, root)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if failed:
        own = [outcome for outcome in failed if not isinstance(outcome.error, PeerFailed)]
        raise (own or failed)[0].as_error()


def do_my_part(order: RemoteOrder[Any], title: str, root: Path) -> Done | Failed:
    """In one of several processes: its part of a stage, and how it went.

    Args:
        order: As in `Workshop`.
        title: Of the stage.
        root: Where its files are: the run folder, or another one.
    """
    try:
        torch.set_num_threads(order.threads)
        device = resolve_device(order.context.device.type)
        context = replace(
            order.context.only(title),
            root=root,
            console=Console(file=io.StringIO(), quiet=True),
            device=device,
            devices=(),
            processes=join_processes(device),
        )
        with _log_of(order.context.root, title) if context.processes.is_main else nullcontext():
            {stage.title: stage for stage in order.build(context)}[title].action()
    except BaseException as error:  # noqa: BLE001 - told to the process that waits, and raised there
        return failure_of(error)
    return Done()


def _file_of(root: Path, token: str) -> Path:
    return root / LEASES / TOKENS / token


def _leave_token(root: Path) -> str:
    """Leave a file in the folder by which it can be known again; others that work on the folder have their own."""
    token = uuid.uuid4().hex
    atomic_write(_file_of(root, token), "")
    return token


def _require_token(root: Path, token: str) -> None:
    """Refuse to work where the scheduler's folder is not to be seen; a network folder may need a moment.

    Raises:
        UsageError: It is not to be seen here.
    """
    if not _is_soon(_file_of(root, token).is_file):
        told = f"{root}: {socket.gethostname()} does not see what the scheduling process writes there"
        raise UsageError(told, hint=_SAME_FOLDER)


def _require_sight(root: Path, stage: Stage, lacking: Sequence[str]) -> None:
    """Wait until all is seen here that a stage needs and the scheduler sees.

    Raises:
        UsageError: It is not.
    """
    if not _is_soon(lambda: set(stage.missing(root)) <= set(lacking)):
        unseen = ", ".join(name for name in stage.missing(root) if name not in lacking)
        told = f"{stage.title}: {socket.gethostname()} does not see what it needs: {unseen}"
        raise UsageError(told, hint=_SAME_FOLDER)


def _is_soon(condition: Callable[[], bool]) -> bool:
    """Whether something is so before the time is over in which a network folder shows what was written elsewhere."""
    deadline = time.monotonic() + SIGHT_SECONDS
    while not (is_so := condition()) and time.monotonic() < deadline:
        time.sleep(_GLANCE_SECONDS)
    return is_so


def do_under(lease: Lease, stage: Stage, stages_at: Callable[[Path], Sequence[Stage]]) -> None:
    """Do a stage where several processes share the run folder: in it, or in a folder of its own on the local disk.

    Args:
        lease: On the stage; its folder is where the outputs go.
        stage: In the run folder.
        stages_at: The same stages in another folder.

    Raises:
        LeaseLost: Another process has taken the stage over; what it has written stays as it is.
    """
    root = lease.leases.root
    if stage.in_place:
        stage.action()
        return
    with tempfile.TemporaryDirectory(prefix="scantling-") as name:
        scratch = Path(name)
        _mirror(root, scratch, stage)
        own = {each.title: each for each in stages_at(scratch)}[stage.title]
        own.action()
        lease.require()
        _move_out(scratch, root, last=stage.outputs)


def _log_of(root: Path, title: str) -> AbstractContextManager[None]:
    path = log_of_stage(root, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    return log_file(path, root)


def _device_here(device: torch.device) -> torch.device:
    """The scheduler's kind of device: of the GPUs a process is given, it sees no others."""
    return torch.device("cuda:0") if device.type == "cuda" else device


def _mirror(root: Path, scratch: Path, stage: Stage) -> None:
    """Let the files of the run folder be seen under another folder, but for what the stage leaves itself."""
    own = {*stage.outputs, *stage.working_files}
    wanted = [name for name in stage.needs if (root / name).is_file() and not Path(name).is_absolute()]
    wanted += [entry.name for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    for name in wanted:
        if name not in own:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                (scratch / name).symlink_to((root / name).absolute())
    (scratch / stage.folder).mkdir(parents=True, exist_ok=True)


def _move_out(scratch: Path, root: Path, *, last: Sequence[str]) -> None:
    """Move what was made into the run folder, each file at once, those in `last` after all others."""
    made = {
        path.relative_to(scratch).as_posix(): path
        for path in sorted(scratch.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    for name in [*(name for name in made if name not in last), *(name for name in last if name in made)]:
        if Path(name).name == RECORD:
            continue
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(target)
        shutil.copyfile(made[name], temporary)
        temporary.replace(target)

"""An array of Slurm jobs that do a run, a suite or an ablation together (shared.py), submitted by submitit.

    recipe and data, checked ──► OUT/slurm: what is submitted, logs ──► N units, each: stages until none is left
    SIGUSR2 (the machine is wanted, or the time is up) ──► state saved, lease given back ──► the unit is requeued

What a unit that is requeued was doing, another may go on with meanwhile.
"""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from types import FrameType
from typing import Any, Literal, NoReturn, TypeAlias, get_args

from scantling.errors import Interrupted, UsageError, did_you_mean
from scantling.run.engines.choice import Engine
from scantling.train.signals import SIGNALS

ExecutorName: TypeAlias = Literal["slurm", "local", "debug"]
JOBS = "slurm"
_SAVE_SECONDS = 120
"""Between the signal and the end of a job: a step is finished, and the state written."""
_MOST_TIMEOUTS = 1000
"""Times that a job is begun again whose time was up."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What each unit of an array is given.

    Attributes:
        partition: Of the cluster; None: its default.
        gpus: 0 or 1: a unit does one stage at a time.
        cpus: Processor cores.
        memory: GB; None: the cluster's default.
        hours: After which a unit is ended, and begun again.
        options: `KEY=VALUE` texts, further options of `sbatch`.
        executor: `slurm`; or submitit's `local`, processes of this machine, and `debug`, this process.
    """

    partition: str | None = None
    gpus: int = 1
    cpus: int = 4
    memory: float | None = None
    hours: float = 24.0
    options: tuple[str, ...] = ()
    executor: ExecutorName = "slurm"

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: An option has no value, or there is no such executor.
        """
        if self.executor not in get_args(ExecutorName):
            near = did_you_mean(self.executor, get_args(ExecutorName))
            raise UsageError(f"there is no executor {self.executor!r}{near}")
        if self.gpus not in (0, 1):
            hint = "Ask for more --units: each does one stage at a time, on one GPU."
            raise UsageError(f"a unit uses one GPU or none, not {self.gpus}", hint=hint)
        if wrong := [text for text in self.options if not text.partition("=")[2]]:
            hint = "They are options of sbatch: --slurm account=NAME"
            raise UsageError(f"--slurm {wrong[0]}: KEY=VALUE is needed", hint=hint)

    def parameters(self, units: int) -> dict[str, Any]:
        """For submitit."""
        further = dict(text.split("=", 1) for text in self.options)
        wanted = {
            "name": "scantling",
            "timeout_min": max(1, round(60 * self.hours)),
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
            "slurm_partition": self.partition,
            "slurm_array_parallelism": units,
            "slurm_signal_delay_s": _SAVE_SECONDS,
            "slurm_additional_parameters": {"requeue": True, **further},
        }
        return {name: value for name, value in wanted.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the jobs do together.

    Attributes:
        out: Its folder.
        do: Does it; takes the folder by its full path, and by name `device` and `engine`. Can be sent elsewhere.
        check: Raises where it cannot work, and writes nothing; by name `device` and `elsewhere`, as in `check_run`.
    """

    out: Path
    do: Callable[..., object]
    check: Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One job of an array: takes part until nothing is left to do.

    Attributes:
        do: As in `Work`.
        out: The folder, by its full path.
        device: As in `run`.
        launch: The same for all units of an array.
    """

    do: Callable[..., object]
    out: Path
    device: str
    launch: str

    def __call__(self) -> str:
        """`done`, or `stopped` where there is nothing that would begin the unit again.

        Raises:
            Interrupted: A signal asked for the end of the job, and everything is saved.
            Exception: What the first stage raised that failed.
        """
        with _asked_to_end() as before, _told_on_standard_error():
            try:
                self.do(self.out, device=self.device, engine=Engine(name="shared", launch=self.launch))
            except Interrupted as error:
                if error.signum != getattr(signal, "SIGUSR2", None):
                    raise
                log.warning("%s", error.message)
                signum = error.signum
            else:
                return "done"
        if callable(
            requeue := before.get(signum)
        ):  # submitit's: it has the unit begun again, and ends the process
            requeue(signum, None)
        return "stopped"

    def checkpoint(self) -> Any:  # noqa: ANN401 - a class of submitit
        """What submitit begins again: the same, as the state is in the run folder."""
        return require_submitit().helpers.DelayedSubmission(self)


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What was submitted.

    Attributes:
        out: Run folder.
        jobs: What the cluster calls them.
        executor: Who does them.
    """

    out: Path
    jobs: tuple[str, ...]
    executor: str

    def to_text(self) -> str:
        """For people."""
        how = {"slurm": "Slurm has", "local": "started on this machine:", "debug": "done in this process:"}
        return "\n".join(
            [
                f"{how[self.executor]} {len(self.jobs)} jobs: {', '.join(self.jobs)}",
                f"logs: {self.out / JOBS}",
                f"how the run stands: scantling status {self.out}",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "out": str(self.out),
            "jobs": list(self.jobs),
            "logs": str(self.out / JOBS),
            "executor": self.executor,
        }


def require_submitit() -> Any:  # noqa: ANN401 - a module
    """Submitit.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        hint = "Install it: pip install 'scantling[slurm]'. --engine shared needs nothing."
        raise UsageError("launch slurm needs submitit, which is not installed", hint=hint) from error
    return submitit


def submit(work: Work, *, units: int, device: str, allocation: Allocation) -> Launched:
    """Check what is to be done, and have it done by an array of jobs.

    Args:
        work: In a folder that all machines see under this path; so the data.
        units: Jobs in the array.
        device: As in `run`.
        allocation: What each of them is given.

    Raises:
        ScantlingError: The data, a setting or the folder cannot be used, or Slurm is not here or refuses; then nothing
            was written.
    """
    submitit, out = require_submitit(), work.out.absolute()
    if allocation.executor == "slurm" and shutil.which("sbatch") is None:
        hint = "Give the command on a machine that submits jobs. --executor local starts them on this one."
        raise UsageError("there is no Slurm here: sbatch is not found", hint=hint)
    if device == "auto" and not allocation.gpus:
        device = "cpu"  # whatever the machine has besides belongs to others
    work.check(device=device, elsewhere=allocation.executor == "slurm" and allocation.gpus > 0)
    if device == "auto" and allocation.executor == "slurm" and allocation.gpus:
        device = "cuda"  # no unit falls back on its processor
    unit = Unit(do=work.do, out=out, device=device, launch=uuid.uuid4().hex[:12])
    with _prepared(out):
        folder = out / JOBS
        executor = submitit.AutoExecutor(
            folder, cluster=allocation.executor, slurm_max_num_timeout=_MOST_TIMEOUTS
        )
        try:
            executor.update_parameters(**allocation.parameters(units))
            with executor.batch():
                jobs = [executor.submit(unit) for _ in range(units)]
        except (RuntimeError, ValueError, CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise UsageError(f"Slurm does not take the jobs: {said}") from error
    if allocation.executor == "debug":
        for job in jobs:
            if (raised := job.exception()) is not None:
                raise raised
    return Launched(out=out, jobs=tuple(job.job_id for job in jobs), executor=allocation.executor)


@contextmanager
def _prepared(out: Path) -> Iterator[None]:
    """Have the folder's status say that the run is queued; as it was, where the block fails."""
    from scantling.data.io import atomic_write
    from scantling.run.running import STATUS

    was_there, had_jobs, file = out.exists(), (out / JOBS).exists(), out / STATUS
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    out.mkdir(parents=True, exist_ok=True)
    is_noted = _note_queued(out)
    try:
        yield
    except BaseException:
        if not had_jobs:
            shutil.rmtree(out / JOBS, ignore_errors=True)
        if is_noted and before is not None:
            atomic_write(file, before)
        elif is_noted:
            file.unlink(missing_ok=True)
        if not was_there:
            with suppress(OSError):
                out.rmdir()
        raise


def _note_queued(out: Path) -> bool:
    """Write that a run is queued, and what is done of it; False where others are at work in its folder."""
    from scantling.run.folder import RunFolder
    from scantling.run.running import QUEUED, RUNNING, WAITING
    from scantling.run.status import FINISHED, read_status

    stages: dict[str, str] = {}
    with suppress(UsageError):  # nothing was there, or nothing that can be read
        earlier = read_status(out)
        if earlier.state == RUNNING:
            return False
        stages = {title: now if now in FINISHED else WAITING for title, now in earlier.stages.items()}
    RunFolder(out, stages=stages).write_status(QUEUED)
    return True


@contextmanager
def _asked_to_end() -> Iterator[dict[int, Any]]:
    """Take signals for requests to end, whatever submitit does with them; gives who answered them before."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.signal(signum, _end) for signum in SIGNALS}
    try:
        yield before
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end(signum: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}; what trained has saved its state")


@contextmanager
def _told_on_standard_error() -> Iterator[None]:
    """Send the package's log there, unless somebody listens to it already."""
    package = logging.getLogger("scantling")
    if package.handlers:
        yield
        return
    handler, level = logging.StreamHandler(sys.stderr), package.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)

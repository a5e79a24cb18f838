"""The folder of a run: made safely, held by one process at a time, and always saying how the run stands.

    recipe.yaml  env.json  categories.json  data.json  run.log  status.json
    STAGE/...    each stage's outputs, and done.json: what every step there was computed from
    metrics.json  report.html

All files are written under a temporary name and renamed, so what is there is complete.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import torch

from scantling import __version__
from scantling.data.io import is_temporary, write_json
from scantling.errors import (
    FOR_THE_FILE,
    Interrupted,
    ScantlingError,
    TrainingError,
    UsageError,
    in_a_line,
    is_known,
)
from scantling.report.build import REASONS
from scantling.run.leases import LEASES
from scantling.run.logs import log_file, telling_of
from scantling.run.running import (
    ENVIRONMENT,
    LEFT,
    LOG,
    LOGS,
    RUNNING,
    SIGHT_SECONDS,
    STATUS,
    WAITING,
    Running,
    describe_failures,
    describe_process,
    go_on,
    now,
)
from scantling.run.stage import Inputs, Stage, remove_recorded
from scantling.run.throttle import Throttle
from scantling.train.devices import ALONE, Processes, describe_device
from scantling.train.progress import Facts, watched_by
from scantling.train.rundir import LOCK_NAME, claim_folder

RECIPE, METRICS, REPORT, CATEGORIES, DATA = (
    "recipe.yaml",
    "metrics.json",
    "report.html",
    "categories.json",
    "data.json",
)
_TOP_FILES = (RECIPE, STATUS, ENVIRONMENT, METRICS, REPORT, CATEGORIES, DATA, LOG, REASONS)
_DISTRIBUTIONS = (
    "scantling",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "pycocotools",
    "hotcoco",
)

log = logging.getLogger(__name__)


@dataclass
class RunFolder:
    """An open run folder; see `open_run`.

    Attributes:
        path: The folder.
        stages: State of each stage: `waiting`, `running`, `done`, `kept` (done earlier and unchanged), `shared` (taken
            over from another run), `failed`, `left` (not begun, as it needs what failed) or `interrupted`.
        started: When this process began, ISO 8601 in UTC.
        processes: Those that do the run together; only the main one writes.
        lenders: Folders of runs whose finished work is taken over, where a stage there had the same inputs.
        failures: What each stage raised that could not be done, by its title.
    """

    ends_at_refusal: ClassVar[bool] = True
    path: Path
    stages: dict[str, str] = field(default_factory=dict)
    started: str = field(default_factory=now)
    processes: Processes = ALONE
    lenders: tuple[Path, ...] = ()
    failures: dict[str, Exception] = field(default_factory=dict)
    _begun: dict[str, Inputs] = field(default_factory=dict, repr=False)
    _running: Running = field(default_factory=Running, repr=False)
    _throttle: Throttle = field(default_factory=Throttle, repr=False)

    def do(self, stage: Stage) -> None:
        """Do a stage, unless it was done with the same inputs and its outputs are intact.

        Args:
            stage: The same on every process; what it needs exists.

        Raises:
            ConfigError: The stage is costly and was done, or begun, with other inputs.
            PeerFailed: Another process could not do its part.
        """
        on_main = self.processes.on_main
        if on_main(partial(self.begin, stage)):
            with watched_by(partial(self.progress, stage.title), stage.title):
                if stage.alone:
                    on_main(partial(_act, stage))
                else:
                    stage.action()
            on_main(partial(self.end, stage))

    def expect(self, titles: Sequence[str]) -> None:
        """Note which stages there are, in the order in which they are listed."""
        self.stages = {title: self.stages.get(title, WAITING) for title in titles} | self.stages
        self._throttle.soon(partial(self.write_status, RUNNING))

    def begin(self, stage: Stage) -> bool:
        """Record the start of a stage that is to be done; False where it is done already.

        Raises:
            ConfigError: The stage is costly and was done, or begun, with other inputs.
        """
        inputs = stage.inputs()
        if stage.is_done(self.path, inputs):
            log.info("%s: already done, kept", stage.title)
            self.note(stage.title, "kept")
            return False
        if (lender := stage.lent_by(self.lenders, inputs)) is not None:
            log.info("%s: taken over from %s", stage.title, lender.name)
            with self.writing(stage):
                stage.take_over(lender, self.path, inputs)
            self.note(stage.title, "shared")
            return False
        self._begun[stage.title] = inputs
        self.note(stage.title, RUNNING)
        with self.writing(stage):
            stage.note_start(self.path, inputs)
        return True

    def end(self, stage: Stage) -> None:
        """Record what a stage left."""
        with self.writing(stage):
            stage.note_end(self.path, self._begun.pop(stage.title))
        self.note(stage.title, "done")

    def fail(self, stage: Stage, error: Exception) -> None:
        """Note what a stage raised; those that do not need it go on."""
        self.failures[stage.title] = error
        log.error("%s failed: %s", stage.title, in_a_line(error))
        if not is_known(error):
            log.error("%s", type(error).__name__, exc_info=error, extra={FOR_THE_FILE: True})
        self.note(stage.title, "failed")

    def leave(self, stage: Stage, cause: Stage) -> None:
        """Note that a stage is not begun, as it needs what another would have left."""
        log.warning("%s: not begun, it needs what %s would have left", stage.title, cause.title)
        self.note(stage.title, LEFT)

    def about(self, stage: Stage) -> AbstractContextManager[object]:  # noqa: ARG002 - whichever stage
        """What is logged meanwhile is told in the log of this folder."""
        return telling_of(self.path)

    def progress(self, title: str, facts: Facts) -> None:
        """Note how a stage comes along that is being done; seen in the status a moment later."""
        self._running.tell(title, facts)
        self._throttle.later(partial(self.write_status, RUNNING))

    def require_all(self) -> None:
        """End a run of which not every stage could be done, after those that could.

        Raises:
            Exception: What the first stage raised that failed.
        """
        left = [title for title, state in self.stages.items() if state == LEFT]
        if left and not self.failures:  # what they need is another run's
            why = f"{len(left)} stages were left, as they need what another run would have made"
            raise TrainingError(f"{self.path}: {why}: {', '.join(left)}", hint=go_on())
        if not self.failures:
            return
        told = [f"{len(self.failures)} of {len(self.stages)} stages failed: {', '.join(self.failures)}"]
        if left:
            told.append(f"{len(left)} were left, as they need what these would have made: {', '.join(left)}")
        log.error("%s", "; ".join(told))
        for title, failure in describe_failures(self.path, self.failures, self.log_path).items():
            log.error("%s: %s (log: %s)", title, failure["reason"], self.path / failure["log"])
        log.error("%s", go_on())
        raise next(iter(self.failures.values()))

    def writing(self, stage: Stage) -> AbstractContextManager[object]:  # noqa: ARG002 - whichever stage
        """While the record of a stage's folder is read, changed and written: this process alone does so."""
        return nullcontext()

    @property
    def log_path(self) -> Path:
        """The log of this process."""
        return self.path / LOG

    def note(self, title: str, state: str) -> None:
        """Note how a stage stands, or a run of several, for whoever looks at the folder meanwhile."""
        self.stages[title] = state
        if state == RUNNING:
            self._running.begin(title)
        else:
            self._running.end(title)
        self._throttle.soon(partial(self.write_status, RUNNING))

    def interrupt(self, state: str) -> None:
        """Note that what is being done is not done any more."""
        for title in [title for title, old in self.stages.items() if old == RUNNING]:
            self.stages[title] = state
            self._running.end(title)

    def end_with(self, state: str, message: str | None = None) -> None:
        """Write the last status."""
        self._throttle.now(partial(self.write_status, state, message))

    def write_status(self, state: str, message: str | None = None) -> None:
        """Write `status.json`: what a person or a script looks at to see how the run stands."""
        if not self.processes.is_main:
            return
        write_json(self.path / STATUS, self.status(state, message), indent=2)

    def status(self, state: str, message: str | None = None) -> dict[str, Any]:
        """What `status.json` says."""
        stages = dict(self.stages)  # another thread may write it while this one goes on
        return {
            "state": state,
            "stages": stages,
            **self._running.describe(stages),
            "failures": describe_failures(self.path, self.failures, self.log_path),
            "message": message,
            "started": self.started,
            "updated": now(),
            **describe_process(),
        }


def _act(stage: Stage) -> None:
    """The work alone: what it returns is not sent to other processes."""
    stage.action()


@contextmanager
def open_run(path: Path, *, overwrite: bool = False, processes: Processes = ALONE) -> Iterator[RunFolder]:
    """Hold a run folder: create or continue it, keep its log, and write how the run ended.

    Args:
        path: The folder; created if need be. The folder of an earlier run is continued.
        overwrite: Remove an earlier run's files first (files that scantling did not write stay).
        processes: Those that do the run together; all must call this.

    Raises:
        UsageError: The path cannot be a run folder, another run is working in it, or not all processes see it.
    """
    run = RunFolder(path, processes=processes)
    with ExitStack() as stack:
        with processes.together():
            if processes.is_main:
                _take(run, stack, overwrite=overwrite)
        try:
            run.write_status(RUNNING)
            started = processes.from_main(run.started)
            with processes.together():
                _require_sight(path, started)
            yield run
        except BaseException as error:
            note_failure(run, error)
            raise
        run.end_with("done")


def _take(run: RunFolder, stack: ExitStack, *, overwrite: bool) -> None:
    """Keep the folder, and its log, until the stack is unwound."""
    check_run_folder(run.path)
    stack.enter_context(claim_folder(run.path, resume=True))
    if overwrite:
        _remove_run(run.path)
    stack.enter_context(log_file(run.path / LOG))


def _require_sight(path: Path, started: str) -> None:
    """Refuse to work where the main process' folder is not to be seen; a network folder may need a moment.

    Args:
        path: The folder of a run.
        started: When the run began, as the main process wrote it there.

    Raises:
        UsageError: It is not to be seen here.
    """
    deadline = time.monotonic() + SIGHT_SECONDS
    while not (is_run_folder(path) and read_started(path) == started):
        if time.monotonic() > deadline:
            raise UsageError(
                f"{path}: {socket.gethostname()} does not see what the main process writes there",
                hint="The run folder must be the same on all machines, on a network drive for example.",
            )
        time.sleep(0.1)


def read_started(path: Path) -> str | None:
    """When the run in a folder began, from its status."""
    try:
        status = json.loads((path / STATUS).read_bytes())
    except (OSError, ValueError):
        return None
    started: str | None = status.get("started")
    return started


def check_run_folder(path: Path) -> None:
    """Refuse a place where a run cannot be; nothing is created.

    Raises:
        UsageError: It is a file, or a folder that holds something else than a run.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; a run needs a folder", hint="Choose another --out.")
    if path.is_dir():
        own = {LOCK_NAME, LEASES, LOGS, *_TOP_FILES}
        others = sorted({e.name for e in path.iterdir() if not is_temporary(e.name)} - own)
        if others and not is_run_folder(path):  # in this order: who begins a run writes its status first
            found = f"it holds {', '.join(others[:3])} and is not a run of scantling"
            raise UsageError(f"{path}: {found}", hint="Nothing was changed. Choose another --out.")


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (path / STATUS).is_file()


def write_environment(path: Path, *, device: torch.device) -> None:
    """Write `env.json`: versions, machine and command, for reproducing the run."""
    environment = {
        "command": shlex.join(["scantling", *sys.argv[1:]]),
        "time": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": describe_device(device),
        "scantling": __version__,
        "packages": {name: version for name in _DISTRIBUTIONS if (version := _version(name))},
    }
    write_json(path / ENVIRONMENT, environment, indent=2)


def note_failure(run: RunFolder, error: BaseException) -> None:
    """Write the last status of a run that an error ends."""
    interrupted = isinstance(error, KeyboardInterrupt | Interrupted)
    if not interrupted and not isinstance(error, ScantlingError) and error not in run.failures.values():
        log.error("%s: %s", type(error).__name__, error, exc_info=error, extra={FOR_THE_FILE: True})
    state = "interrupted" if interrupted else "failed"
    run.interrupt(state)
    try:
        run.end_with(state, str(error) or type(error).__name__)
    except UsageError as problem:  # a full disk, say: the first error is the one to tell
        log.warning("status.json could not be written: %s", problem)


def _remove_run(path: Path) -> None:
    """Remove what a run wrote: what its stages recorded and its own files, nothing else."""
    remove_recorded(path)
    for name in _TOP_FILES:
        (path / name).unlink(missing_ok=True)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None

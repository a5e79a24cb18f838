"""What is being done at the moment, where the log of a stage is, and the command that a run goes on with.

Nothing heavy is imported here: whoever only looks at a run folder (`run/status.py`) needs it, too.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scantling.errors import TrainingError, in_a_line
from scantling.run.owner import Owner

STATUS, ENVIRONMENT, LOG, LOGS = "status.json", "env.json", "run.log", "logs"
COMBINATIONS = "combinations"
QUEUED, WAITING, RUNNING, LEFT = "queued", "waiting", "running", "left"
SIGHT_SECONDS = 60.0
"""How late a network folder may show what another machine has written."""


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Running:
    """What is known of the stages that are being done.

    A stage that is handed to somebody else has no place until that one has told something.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Mapping[str, Any]] = {}

    def begin(self, title: str) -> None:
        """A stage is to be done now."""
        self._facts[title] = {"where": None, "since": now()}

    def tell(self, title: str, facts: Mapping[str, Any]) -> None:
        """Take note of how a stage comes along; nothing that is told of one that has ended.

        Args:
            title: Of the stage.
            facts: As in `train/progress.py`; with `where` (host and pid) if it is done by another process.
        """
        before = self._facts.get(title)
        if before is not None:
            here = {"host": socket.gethostname(), "pid": os.getpid()}
            told = {"where": here, "since": before["since"], **facts, "updated": now()}
            self._facts[title] = told

    def end(self, title: str) -> None:
        """A stage is not being done any more."""
        self._facts.pop(title, None)

    def describe(self, stages: Mapping[str, str]) -> dict[str, Any]:
        """What `status.json` says of it.

        Args:
            stages: State of each stage of the run.
        """
        facts = dict(self._facts)  # another thread may write it down while this one goes on
        return {"running": facts, "eta_seconds": seconds_left(facts.values(), stages.values())}


def seconds_left(running: Iterable[Mapping[str, Any]], states: Iterable[str]) -> float | None:
    """Seconds until a run is done; None where that is not known, as a stage has yet to begin, or is itself a run.

    Args:
        running: Facts of the stages that are being done.
        states: Of all stages.
    """
    left = [None if "stage" in facts else facts.get("eta_seconds") for facts in running]
    known = [float(seconds) for seconds in left if seconds is not None]
    is_known = bool(known) and len(known) == len(left) and WAITING not in set(states)
    return max(known) if is_known else None


class FailedElsewhereError(TrainingError):
    """What another process of the same run could not do.

    Args:
        message: What it told.
        log: Where it tells more, relative to the run folder.
    """

    def __init__(self, message: str, *, log: str) -> None:
        super().__init__(message)
        self.log = log


def describe_failures(root: Path, failures: Mapping[str, Exception], log: Path) -> dict[str, dict[str, str]]:
    """Why stages failed, in a line, and the log that tells more, relative to the run folder; by title.

    Args:
        root: The run folder.
        failures: What each stage raised.
        log: Of this process.
    """
    logs = {
        title: error.log
        if isinstance(error, FailedElsewhereError)
        else log_to_read(root, title, log).relative_to(root).as_posix()
        for title, error in dict(failures).items()
    }
    return {title: {"reason": in_a_line(failures[title]), "log": name} for title, name in logs.items()}


def describe_process() -> dict[str, Any]:
    """Who writes the status, and the command that it goes on with."""
    owner = Owner.here()
    return {
        "pid": owner.pid,
        "host": owner.host,
        "process": {"space": owner.space, "began": owner.began},
        "command": command_to_go_on(),
        "directory": str(Path.cwd()),
    }


def go_on() -> str:
    """A sentence on how a run goes on of which something is missing."""
    command = command_to_go_on()
    said = "The same command given again does only what is missing"
    return f"{said}: {command}" if command else f"{said}."


def command_to_go_on() -> str | None:
    """The command that began this process, without what would start the run over; None where it was no command.

    Processes of `torchrun` know only their own part of it.
    """
    program = Path(sys.argv[0])
    is_ours = program.stem == "scantling" or (program.name, program.parent.name) == (
        "__main__.py",
        "scantling",
    )
    if not is_ours or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    return shlex.join(["scantling", *(each for each in sys.argv[1:] if each != "--overwrite")])


def log_of_stage(root: Path, title: str) -> Path:
    """Where a stage that is done elsewhere keeps its log."""
    return root / LOGS / f"{title.replace('/', '.')}.log"


def log_to_read(root: Path, title: str, log: Path) -> Path:
    """Where it is told what happened to a stage: its own log, that of the run that it stands for, or the process' one.

    Args:
        root: The run folder.
        title: Of the stage.
        log: Of this process.
    """
    own = log_of_stage(root, title)
    part = run_of_stage(root, title)
    if own.is_file():
        return own
    return part / LOG if part is not None and (part / LOG).is_file() else log


def run_of_stage(root: Path, title: str) -> Path | None:
    """The folder of the run that a stage of a suite, or of an ablation, stands for; None for any other stage."""
    if title.startswith(f"{COMBINATIONS}/"):
        found = [(root / title).parent]
    else:
        found = [] if "/" in title else [root / title, root / COMBINATIONS / title]
    return next((path for path in found if (path / STATUS).is_file()), None)

"""How a run stands, for whoever looks at its folder meanwhile: read from its status and from its leases.

    status.json ── stages, what runs, failures, command ──┐
    leases/STAGE ── who holds it, since when it is silent ─┼──► RunStatus ──► text, JSON
    SET/status.json ── of the runs that it consists of ────┘

Nothing heavy is imported here, and nothing is written.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from scantling.errors import UsageError
from scantling.run.leases import LEASES, PATIENCE_SECONDS, Leases
from scantling.run.owner import Owner
from scantling.run.running import LEFT, QUEUED, RUNNING, STATUS, WAITING, run_of_stage
from scantling.settings.shards import Shards

KILLED = "killed"
FINISHED = ("done", "kept", "shared")
_ORDER = ("done", "kept", RUNNING, WAITING, "failed", LEFT, "interrupted")
_METRICS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """How a stage comes along that is being done.

    Attributes:
        host: Where it is done; None where it waits for a machine.
        pid: The process there.
        since: When it was begun, ISO 8601 in UTC.
        facts: What its process told last; see `train/progress.py`.
        silent_seconds: Since the last sign of life of the one who holds its lease, by the clocks of both machines; None
            where it has no lease.
        is_gone: Whether it is certain that this process has ended.
    """

    host: str | None
    pid: int | None
    since: str | None
    facts: Mapping[str, Any]
    silent_seconds: float | None = None
    is_gone: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether the holder of its lease is to be taken for alive."""
        return not self.is_gone and (self.silent_seconds or 0.0) <= PATIENCE_SECONDS

    def to_lines(self, title: str) -> Iterator[str]:
        """Where it is done and for how long, and how far it has come."""
        place = f"process {self.pid} on {self.host}"
        lasted = f", for {_duration(_age(self.since))}" if self.since else ""
        if self.is_gone:
            place += ", which is gone"
        elif self.silent_seconds is not None:
            place += f", last sign of life {_duration(self.silent_seconds)} ago"
        stage = f" ({self.facts['stage']})" if "stage" in self.facts else ""
        yield f"  {title}{stage}: {place}{lasted}"
        if told := ", ".join(_told(self.facts)):
            yield f"    {told}"
        metrics: Mapping[str, float | None] = self.facts.get("metrics") or {}
        if metrics:
            shown = [f"{name} {_number(value)}" for name, value in list(metrics.items())[: _METRICS + 1]]
            yield f"    {', '.join(shown)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How a run stands.

    Attributes:
        path: Its folder.
        state: `queued` (submitted, not begun), `running`, `done`, `failed`, `interrupted`, or `killed`: its processes
            have ended without a word.
        stages: State of each stage; see `RunFolder`.
        running: Those that are being done.
        failures: Reason and log (a file in the folder) of each stage that failed.
        message: What ended it.
        eta_seconds: Seconds until it is done, where that is known.
        command: The one that began it, and goes on with it; None where it was none.
        directory: Where that was given.
        started: When its process began, ISO 8601 in UTC.
        updated: When the status was written.
        host: Of the process that writes the status.
        pid: Its number there.
        parts: The runs that it consists of, by stage: those of a suite or an ablation.
    """

    path: Path
    state: str
    stages: Mapping[str, str]
    running: Mapping[str, StageStatus]
    failures: Mapping[str, Mapping[str, str]]
    message: str | None
    eta_seconds: float | None
    command: str | None
    directory: str | None
    started: str | None
    updated: str | None
    host: str | None
    pid: int | None
    parts: Mapping[str, RunStatus] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be expected of its processes."""
        return self.state not in (QUEUED, RUNNING)

    @property
    def counts(self) -> dict[str, int]:
        """How many stages there are in each state, those that were taken over among the kept ones."""
        states = Counter("kept" if state == "shared" else state for state in self.stages.values())
        return {state: states[state] for state in _ORDER if states[state]}

    def news(self) -> object:
        """What is worth another look when it changes: not the clocks."""
        told = [
            (title, stage.host, int(stage.facts.get("epoch") or 0), _validation(stage.facts), stage.is_gone)
            for title, stage in self.running.items()
        ]
        return self.state, self.stages, self.failures, told, [part.news() for part in self.parts.values()]

    def to_text(self) -> str:
        """For people."""
        return "\n".join(
            [
                *self._headline(),
                *self._told_parts(),
                *self._told_running(),
                *self._told_failures(),
                *self._told_end(),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        plain = {name: getattr(self, name) for name in RunStatus.__slots__}
        return plain | {
            "path": str(self.path),
            "counts": self.counts,
            "stages": dict(self.stages),
            "running": {title: asdict(stage) for title, stage in self.running.items()},
            "failures": {title: dict(failure) for title, failure in self.failures.items()},
            "parts": {title: part.to_dict() for title, part in self.parts.items()},
        }

    def counted(self) -> str:
        """Such as `5 of 11 stages: 3 done, 2 kept; 1 running, 5 waiting`."""
        finished = sum(state in FINISHED for state in self.stages.values())
        shares = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        return f"{finished} of {len(self.stages)} stages done ({shares})" if self.stages else "no stage begun"

    def _headline(self) -> Iterator[str]:
        who = f", process {self.pid} on {self.host}" if self.host else ""
        when = f", started {_clock(self.started)}, last word {_ago(self.updated)}" if self.updated else ""
        yield f"{self.path}: {self.state}{who}{when}"
        left = f", {_duration(self.eta_seconds)} left" if self.eta_seconds is not None else ""
        yield f"{self.counted()}{left}"

    def _told_parts(self) -> Iterator[str]:
        for title, part in self.parts.items():
            yield f"  {title}: {part.state}, {part.counted()}"

    def _told_running(self) -> Iterator[str]:
        """Of a suite the stages of its runs; of any other run its own."""
        placed = {title: stage for title, stage in self.running.items() if stage.host is not None}
        inside = {
            f"{title}: {name}": stage
            for title, part in self.parts.items()
            for name, stage in part.running.items()
            if not part.has_ended and stage.host is not None
        }
        own = {title: stage for title, stage in placed.items() if title not in self.parts}
        if shown := own | inside:
            yield RUNNING
        for title, stage in shown.items():
            yield from stage.to_lines(title)
        if waiting := len(self.running) - len(placed):
            yield f"handed out, waiting for a machine or just begun: {waiting}"

    def _told_failures(self) -> Iterator[str]:
        if self.failures:
            yield "failed"
        for title, failure in self.failures.items():
            yield f"  {title}: {failure['reason']}"
            yield f"    log: {self.path / failure['log']}"
        if left := [title for title, state in self.stages.items() if state == LEFT]:
            yield f"left, as they need what these would have made: {', '.join(left)}"

    def _told_end(self) -> Iterator[str]:
        if self.state == KILLED:
            yield "Its process has ended without a word: it was killed, or its machine went down."
        elif self.has_ended and self.message and not self.failures:
            yield self.message
        if (
            self.state in ("done", QUEUED) or self.command is None
        ):  # the command would submit the jobs once more
            return
        elsewhere = self.directory if self.directory != str(Path.cwd()) else None
        place = f" (in {elsewhere})" if elsewhere else ""
        does = "The same command does only what is missing" if self.has_ended else "Command"
        yield f"{does}{place}: {self.command}"


def read_status(path: Path) -> RunStatus:
    """How the run in a folder stands, that of a single recipe, of a suite or of an ablation.

    Raises:
        UsageError: There is no run in it, or its status cannot be read.
    """
    file = path / STATUS
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        hint = "Give the folder that --out named; a run writes the file at its beginning."
        from scantling.run.shards.plan import PLAN

        if (path / PLAN).is_file():
            hint = f"It is a prediction in shards: `{Shards(folder=path).command}` does what is missing and tells."
        raise UsageError(f"{path}: no run in there (no {STATUS})", hint=hint) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise UsageError(f"{file}: says nothing of stages, so it is no status of a run")
    state, stages = str(content.get("state")), dict[str, str](content["stages"])
    found = {title: run_of_stage(path, title) for title in stages}
    held = _held(path, stages) if state == RUNNING else {}
    running = _told_by_run(content.get("running") or {})
    is_gone = state == RUNNING and _is_gone(content)
    if is_gone:  # of processes that share a run, the one that wrote last need not be the last
        state = RUNNING if any(each.is_alive for each in held.values()) else KILLED
        held, running = {title: each for title, each in held.items() if not each.is_gone}, {}
        stages = {title: "interrupted" if each == RUNNING else each for title, each in stages.items()}
    parts = {title: read_status(part) for title, part in found.items() if part is not None}
    message = content.get("message")
    if any(part.state == RUNNING for part in parts.values()):
        state, message = RUNNING, None  # one of several processes has ended, another goes on
    return RunStatus(
        path=path,
        state=state,
        stages={title: RUNNING if title in held else each for title, each in stages.items()},
        running=running | held,
        failures=content.get("failures") or {},
        message=message,
        eta_seconds=content.get("eta_seconds") if state == RUNNING and not is_gone else None,
        command=content.get("command"),
        directory=content.get("directory"),
        started=content.get("started"),
        updated=content.get("updated"),
        host=content.get("host"),
        pid=content.get("pid"),
        parts=parts,
    )


def _is_gone(content: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status has certainly ended."""
    process: Mapping[str, str] = content.get("process") or {}
    owner = Owner(
        host=str(content.get("host")),
        pid=int(content.get("pid") or 0),
        space=process.get("space", ""),
        began=process.get("began", ""),
        token="",
    )
    return owner.is_gone()


def _told_by_run(running: Mapping[str, Mapping[str, Any]]) -> dict[str, StageStatus]:
    found = dict[str, StageStatus]()
    for title, facts in running.items():
        where = facts.get("where") or {}
        rest = {name: value for name, value in facts.items() if name not in ("where", "since")}
        found[title] = StageStatus(
            host=where.get("host"), pid=where.get("pid"), since=facts.get("since"), facts=rest
        )
    return found


def _held(root: Path, stages: Mapping[str, str]) -> dict[str, StageStatus]:
    """What the leases say of those that are held on stages that are not done."""
    found = dict[str, StageStatus]()
    if not (root / LEASES).is_dir():
        return found
    leases = Leases(root=root)
    for title in (title for title, state in stages.items() if state in (RUNNING, WAITING)):
        state = leases.state(title)
        if state is None or state.outcome is not None:
            continue
        told = state.facts.get("updated")
        found[title] = StageStatus(
            host=state.owner.host,
            pid=state.owner.pid,
            since=state.facts.get("since"),
            facts={name: value for name, value in state.facts.items() if name != "since"},
            silent_seconds=round(_age(told)) if told else None,
            is_gone=state.owner.is_gone(),
        )
    return found


def _told(facts: Mapping[str, Any]) -> Iterator[str]:
    """How far a stage has come."""
    if facts.get("epochs"):
        yield f"epoch {facts['epoch']:.2f} of {facts['epochs']}"
    for name, total in (("step", "total_steps"), ("images", "total_images")):
        if facts.get(total):
            yield f"{name} {facts[name]} of {facts[total]}"
    if facts.get("images_per_second") is not None:
        yield f"{facts['images_per_second']:.1f} images/s"
    if facts.get("eta_seconds") is not None:
        yield f"{_duration(facts['eta_seconds'])} left"


def _validation(facts: Mapping[str, Any]) -> dict[str, Any]:
    metrics: Mapping[str, Any] = facts.get("metrics") or {}
    return {name: value for name, value in metrics.items() if name != "loss"}


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _age(moment: str) -> float:
    """Seconds since a moment in ISO 8601."""
    return max(0.0, time.time() - datetime.fromisoformat(moment).timestamp())


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _clock(moment: str | None) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M:%S} UTC" if moment else "at an unknown time"


def _ago(moment: str | None) -> str:
    return f"{_duration(_age(moment))} ago" if moment else "never"

"""Who does a stage, where several machines share a run folder: a lease, kept alive while the work goes on.

    leases/STAGE/0001.json   who holds it, and a number that goes up as long as the holder lives
    leases/log/OWNER.jsonl   what each process took, gave back, took over and lost
    leases/.NAME/0001.json   of a file that one process at a time may change; not of a stage, so in no list or log

A lease is taken by making the file of the next generation, under a name that only one process can make. A holder whose
number stands still for longer than a patience is taken for dead, by the clock of the one who waits, so clocks need not
agree; on the same machine a process that is gone is seen at once. A holder that wakes up late, and finds a newer
generation, has lost the lease and must stop.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scantling.data.io import atomic_write, temporary_beside
from scantling.errors import Interrupted, ScantlingError
from scantling.run.owner import Owner

LEASES = "leases"
PATIENCE_SECONDS = 90.0
"""How long a holder may be silent. Network folders may show a file of another machine half a minute late."""
_BEATS = 6
"""Signs of life in that time."""
_SHORT_SECONDS = 0.05

log = logging.getLogger(__name__)


class LeaseLost(ScantlingError):  # noqa: N818 - what happened, no mistake
    """Another process has taken a stage over, since this one was silent for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """What a lease's newest file says.

    Attributes:
        generation: How often the stage has been taken.
        owner: Who holds it, or held it.
        beat: Goes up as long as the holder lives.
        outcome: None while it is held; then `done`, `failed` or `stopped`.
        facts: What the holder tells of its progress; `since` and `updated`, ISO 8601 in UTC by the holder's clock,
            when it took the lease and gave its last sign of life.
    """

    generation: int
    owner: Owner
    beat: int = 0
    outcome: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As a file."""
        owner = {name: getattr(self.owner, name) for name in Owner.__slots__}
        state = {"owner": owner, "beat": self.beat, "outcome": self.outcome, "facts": dict(self.facts)}
        return json.dumps(state)

    @classmethod
    def read(cls, path: Path) -> LeaseState | None:
        """From a file; None where it is gone or damaged."""
        try:
            content = json.loads(path.read_bytes())
            owner = Owner(**content.pop("owner"))
            return cls(generation=int(path.stem), owner=owner, **content)
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(kw_only=True)
class Leases:
    """The leases of a run folder, as one process sees them.

    Attributes:
        root: The run folder.
        patience: Seconds after which a silent holder is taken for dead.
        owner: This process.
    """

    root: Path
    patience: float = PATIENCE_SECONDS
    owner: Owner = field(default_factory=Owner.here)
    _seen: dict[str, tuple[int, int, float]] = field(default_factory=dict, repr=False)

    def state(self, title: str) -> LeaseState | None:
        """How the lease of a stage stands; None where it was never taken."""
        names = sorted(_generations(self.root, title))
        return LeaseState.read(names[-1]) if names else None

    def is_free(self, state: LeaseState | None, title: str) -> bool:
        """Whether nobody holds a lease: given back, or its holder is gone or has been silent for too long."""
        if state is None or state.outcome is not None or state.owner.is_gone():
            return True
        now = time.monotonic()
        generation, beat, since = self._seen.get(title, (0, 0, now))
        if (generation, beat) != (state.generation, state.beat):
            since = now
        self._seen[title] = (state.generation, state.beat, since)
        return now - since > self.patience

    def take(self, title: str, facts: Mapping[str, Any] | None = None) -> Lease | None:
        """The lease of a stage; None where another process holds it, or was faster.

        Args:
            title: Of the stage.
            facts: What is to be known of the holder from the start.
        """
        folder = self.root / LEASES / title
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(_generations(self.root, title))
        state = LeaseState.read(files[-1]) if files else None
        if files and state is None and not self._has_stood_still(files[-1], title):
            return None
        if not self.is_free(state, title):
            return None
        generation = int(files[-1].stem) + 1 if files else 1
        told = {"since": _now(), "updated": _now(), **(facts or {})}
        own = LeaseState(generation=generation, owner=self.owner, facts=told)
        lease = Lease(path=folder / f"{generation:04d}.json", title=title, state=own, leases=self)
        if not _make(lease.path, own.to_json()):
            return None
        self._seen.pop(title, None)
        for older in files:
            older.unlink(missing_ok=True)
        was_held = state is not None and state.outcome is None
        self.note(
            lease, "taken over" if was_held else "taken", state.owner.title if was_held and state else None
        )
        return lease

    @contextmanager
    def only_here(self, name: str) -> Iterator[None]:
        """Keep the other processes out of this block, which is short: a file is read, changed and written.

        Args:
            name: Of what only one process may do at a time.
        """
        while (lease := self.take(f".{name}")) is None:
            time.sleep(min(_SHORT_SECONDS, self.patience / 20))
        with lease.kept():
            yield
            lease.require()

    def note(self, lease: Lease, event: str, other: str | None = None) -> None:
        """Write down what happened to the lease of a stage."""
        if lease.title.startswith("."):
            return
        entry = {
            "time": _now("microseconds"),
            "stage": lease.title,
            "generation": lease.state.generation,
            "event": event,
            "owner": self.owner.title,
            **({"from": other} if other else {}),
        }
        path = self.root / LEASES / "log" / f"{self.owner.host}-{self.owner.pid}-{self.owner.token}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def _has_stood_still(self, path: Path, title: str) -> bool:
        """Whether a file that cannot be read has been like that for longer than the patience."""
        now = time.monotonic()
        generation, beat, since = self._seen.get(title, (0, 0, now))
        if (generation, beat) != (int(path.stem), -1):
            since = now
        self._seen[title] = (int(path.stem), -1, since)
        return now - since > self.patience


@dataclass(kw_only=True)
class Lease:
    """A lease that this process has taken.

    Attributes:
        path: Its file.
        title: Of the stage.
        state: What the file says.
        leases: Whose it is one of.
    """

    path: Path
    title: str
    state: LeaseState
    leases: Leases

    def require(self) -> None:
        """Make sure that the lease is still held.

        Raises:
            LeaseLost: Another process has taken the stage over.
        """
        files = sorted(_generations(self.leases.root, self.title))
        if not files or int(files[-1].stem) != self.state.generation:
            self.leases.note(self, "lost")
            raise LeaseLost(
                f"{self.title}: taken over by another process, as this one was silent for too long"
            )

    def beat(self, facts: Mapping[str, Any] | None = None) -> None:
        """Give a sign of life, with what is to be known of the progress.

        Raises:
            LeaseLost: Another process has taken the stage over.
        """
        self.require()
        self._write(facts)

    def give_back(self, outcome: str, facts: Mapping[str, Any] | None = None) -> None:
        """Let others have the stage, and tell them how it went: `done`, `failed` or `stopped`.

        Args:
            outcome: One of them.
            facts: What is to be known of it; None: what was told last.

        Raises:
            LeaseLost: Another process has taken the stage over.
        """
        self.require()
        self._write(facts, outcome)
        self.leases.note(self, outcome)

    @contextmanager
    def kept(self, facts: Callable[[], Mapping[str, Any]] | None = None) -> Iterator[Lease]:
        """Give signs of life during the block, and give the lease back afterwards.

        When the lease is lost, the process is ended at once, so that nothing more is written into a folder that another
        process works in.

        Args:
            facts: What is to be known of the progress; None: what was told when it was taken.
        """
        ended, facts = threading.Event(), facts or (lambda: self.state.facts)
        heart = threading.Thread(target=self._keep, args=(ended, facts), name=f"lease of {self.title}")
        heart.daemon = True
        heart.start()
        outcome = "failed"
        try:
            yield self
            outcome = "done"
        except BaseException as error:
            asked_to_end = isinstance(error, Interrupted) or not isinstance(error, Exception)
            outcome = "stopped" if asked_to_end else "failed"
            raise
        finally:
            ended.set()
            heart.join()
            with suppress(LeaseLost):
                self.give_back(outcome, facts())

    def _keep(self, ended: threading.Event, facts: Callable[[], Mapping[str, Any]]) -> None:
        while not ended.wait(self.leases.patience / _BEATS):
            try:
                self.beat({**facts(), "since": self.state.facts.get("since"), "updated": _now()})
            except LeaseLost as error:
                log.error("%s", error.message)  # noqa: TRY400 - no bug, so no traceback
                _end_process()
                return
            except OSError as error:  # a network folder that is away for a moment
                log.warning("%s: no sign of life could be written: %s", self.title, error)

    def _write(self, facts: Mapping[str, Any] | None, outcome: str | None = None) -> None:
        told = self.state.facts if facts is None else facts
        self.state = replace(self.state, beat=self.state.beat + 1, outcome=outcome, facts=told)
        atomic_write(self.path, self.state.to_json())


def current_leases(root: Path) -> dict[str, LeaseState]:
    """How the lease of every stage of a run folder stands, by the stage's title."""
    found: dict[str, Path] = {}
    for path in sorted((root / LEASES).rglob("[0-9]*.json")):
        title = path.parent.relative_to(root / LEASES).as_posix()
        if not title.startswith("."):
            found[title] = path
    states = {title: LeaseState.read(path) for title, path in found.items()}
    return {title: state for title, state in states.items() if state is not None}


def read_log(root: Path) -> list[dict[str, Any]]:
    """What happened to the leases of a run folder, in the order of time."""
    lines = [
        line
        for path in sorted((root / LEASES / "log").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return sorted((json.loads(line) for line in lines), key=lambda entry: entry["time"])


def _generations(root: Path, title: str) -> list[Path]:
    return list((root / LEASES / title).glob("[0-9]*.json"))


def _make(path: Path, content: str) -> bool:
    """Make a file with its content at once; False where there is one already."""
    temporary = temporary_beside(path)
    temporary.write_text(content, encoding="utf-8")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without second names
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(content)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _now(precision: str = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=precision)


def _end_process() -> None:
    os._exit(75)

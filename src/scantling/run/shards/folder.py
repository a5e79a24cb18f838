"""What is written down while shards are predicted: by each machine its own status and log, of each shard its record.

FOLDER/plan.json  images.jsonl
FOLDER/shards/00/00012/    predictions.jsonl  summary.json  done.json
FOLDER/parts/1-of-4/       status.json  run.log
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

from scantling.data.io import read_json, write_json
from scantling.errors import FOR_THE_FILE, DataError, Interrupted, ScantlingError, in_a_line, is_known
from scantling.run.logs import log_file
from scantling.run.running import LOG, STATUS
from scantling.run.shards.plan import ShardPlan
from scantling.run.shards.stages import SUMMARY
from scantling.run.stage import Inputs, Stage
from scantling.settings.shards import PartOfShards, Shards
from scantling.train.progress import Facts, Pace
from scantling.train.rundir import claim_folder

_LINE_SECONDS = 10.0
_STATUS_SECONDS = 5.0
_STALE_SECONDS = 300.0
"""What has said nothing for so long is taken to have ended."""

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class ShardFolder:
    """The open folder of a prediction in shards; a shard that fails is noted, and the others go on.

    Attributes:
        root: The folder.
        plan: What is predicted.
        part: The shards that are done here.
        retry_unread: Do those again some of whose images could not be read.
        failures: Why a shard could not be done, by its title.
        bugs: Titles of those whose failure is nobody's mistake but scantling's.
    """

    ends_at_refusal: ClassVar[bool] = False
    root: Path
    plan: ShardPlan
    part: PartOfShards
    retry_unread: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    bugs: list[str] = field(default_factory=list)
    _begun: dict[str, Inputs] = field(default_factory=dict)
    _images: int = 0
    _kept: int = 0
    _pace: Pace = field(init=False)
    _told: float = 0.0
    _written: float = 0.0

    def __post_init__(self) -> None:
        self._pace = Pace(total=sum(map(self.plan.images_in, self.part.of(self.plan.num_shards))), start=0)
        self._images = self._pace.total

    def begin(self, stage: Stage) -> bool:
        """Whether a shard is to be done; it is not where it was done as planned, and its files are whole."""
        inputs = stage.inputs()
        if stage.is_done(self.root, inputs) and not (self.retry_unread and self._count(stage, "unreadable")):
            count = self._count(stage, "images")
            self._kept += count
            self._pace.total -= count
            return False
        self._begun[stage.title] = inputs
        return True

    def end(self, stage: Stage) -> None:
        """Record a shard, and say how it all comes along."""
        stage.note_end(self.root, self._begun.pop(stage.title))
        summary = _read(self.root / stage.folder / SUMMARY)
        self._pace.advance(self._pace.step + summary["images"], summary["images"])
        less = f", {summary['unreadable']} of them unreadable" if summary["unreadable"] else ""
        told = f"{stage.title}: {summary['images']} images{less}, {summary['objects']} objects; "
        now = time.monotonic()
        shown = now - self._told >= _LINE_SECONDS
        self._told = now if shown else self._told
        progress = self.describe() if shown else self._pace.describe()
        log.info("%s%s", told, progress, extra={} if shown else {FOR_THE_FILE: True})
        if now - self._written >= _STATUS_SECONDS:
            self.write_status("running")

    def fail(self, stage: Stage, error: Exception) -> None:
        """Note that a shard could not be done, and why."""
        self._begun.pop(stage.title, None)
        if not is_known(error):
            self.bugs.append(stage.title)
            log.error("%s: %s", type(error).__name__, error, exc_info=error, extra={FOR_THE_FILE: True})
        log.error(
            "%s failed: %s", stage.title, error if isinstance(error, ScantlingError) else in_a_line(error)
        )
        self.failures[stage.title] = in_a_line(error)
        self.write_status("running")

    def about(self, stage: Stage) -> AbstractContextManager[object]:  # noqa: ARG002 - whichever shard
        """There is one log for all that this process does."""
        return nullcontext()

    def expect(self, titles: Sequence[str]) -> None:
        """Nothing: the plan of the prediction says which shards there are."""

    def progress(self, title: str, facts: Facts) -> None:
        """Nothing: a shard says how it comes along when it ends."""

    def leave(self, stage: Stage, cause: Stage) -> None:
        """Shards need nothing of one another."""
        raise TypeError(f"{stage.title} needs nothing of {cause.title}")

    def describe(self) -> str:
        """How far it has come, how fast it is, and how long it will take: here, and on all machines together."""
        done = self._kept + self._pace.step
        here = f"{done} of {self._images} images, {self._pace.describe()}"
        if self.part.count == 1:
            return here
        return f"part {self.part}: {here}; all parts: {_describe_all(self._statuses(), self.plan.num_images)}"

    def write_status(self, state: str) -> None:
        """Write what other machines, and people, look at to see how this one comes along."""
        self._written = time.monotonic()
        status = {
            "state": state,
            "images": self._images,
            "images_done": self._kept + self._pace.step,
            "images_per_second": round(self._pace.images_per_second, 3),
            "failed": self.failures,
            "time": time.time(),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        write_json(_part_folder(self.root, self.part) / STATUS, status, indent=2)

    def _count(self, stage: Stage, what: str) -> int:
        return int(_read(self.root / stage.folder / SUMMARY)[what])

    def _statuses(self) -> list[dict[str, Any]]:
        """What the machines of all parts said last; this one says it now."""
        self.write_status("running")
        found = []
        for number in range(1, self.part.count + 1):
            path = _part_folder(self.root, PartOfShards(number, self.part.count)) / STATUS
            if path.is_file():
                found.append(_read(path))
        return found


@contextmanager
def open_shards(shards: Shards, plan: ShardPlan) -> Iterator[ShardFolder]:
    """Hold a part of the shards: one process at a time does it, keeps its log, and says how it ended.

    Raises:
        UsageError: Another process does this part.
    """
    own = _part_folder(shards.folder, shards.part)
    with claim_folder(own, resume=True), log_file(own / LOG):
        folder = ShardFolder(
            root=shards.folder, plan=plan, part=shards.part, retry_unread=shards.retry_unread
        )
        folder.write_status("running")
        state = "failed"
        try:
            yield folder
            state = "failed" if folder.failures else "done"
        except (KeyboardInterrupt, Interrupted):
            state = "interrupted"
            raise
        finally:
            folder.write_status(state)


def _part_folder(root: Path, part: PartOfShards) -> Path:
    return root / "parts" / f"{part.number}-of-{part.count}"


def _describe_all(statuses: list[dict[str, Any]], num_images: int) -> str:
    done = sum(status["images_done"] for status in statuses)
    alive = [
        status
        for status in statuses
        if status["state"] == "running" and time.time() - status["time"] < _STALE_SECONDS
    ]
    speed = sum(status["images_per_second"] for status in alive)
    left = f", {timedelta(seconds=round((num_images - done) / speed))} left" if speed > 0 else ""
    return f"{done} of {num_images} images, {speed:.1f} images/s{left}"


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged", hint="Remove it; the same command writes it anew.")
    return cast("dict[str, Any]", content)

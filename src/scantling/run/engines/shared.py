"""Stages that several processes do together, on one machine or on many, through nothing but the folders of their runs.

    stages ── whatever needs nothing that is not there yet ──► free, or its holder is gone: take the lease, do it
                 ▲                                         └─► another holds it: look again in a moment
                 └── done.json, leases ◄───────────────────────┘

Every process is given the same command and walks the same graph. A stage is done by whoever has its lease, and recorded
before that is given back; the others find the record. Of a process that dies, the others take over what it was doing:
a training goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch

from scantling.errors import Interrupted, in_a_line
from scantling.run.engines.remote import do_under
from scantling.run.engines.schedule import Ended, do_all
from scantling.run.engines.shared_folder import SharedFolder
from scantling.run.leases import LeaseLost
from scantling.run.running import SIGHT_SECONDS, FailedElsewhereError
from scantling.run.stage import Stage
from scantling.train.progress import Facts, watched_by

if TYPE_CHECKING:
    from scantling.run.context import Workplace

W = TypeVar("W", bound="Workplace")

_LOOK_SECONDS = 1.0
"""Between two looks at what others do."""

log = logging.getLogger(__name__)


class StagePlace(NamedTuple):
    """Where a stage is done.

    Attributes:
        run: The folder of its run, as `share_run` opens it.
        stage: As the run names it.
        stages_at: The stages of the run in another folder.
    """

    run: SharedFolder
    stage: Stage
    stages_at: Callable[[Path], Sequence[Stage]]


class SharedRecords(Protocol):
    """What is written down by each of several processes, beside what is recorded under the lease of a stage.

    Attributes:
        ends_at_refusal: Whether a stage that may not be done again ends all, as in `Records`.
    """

    ends_at_refusal: ClassVar[bool]

    def expect(self, titles: Sequence[str]) -> None:
        """Note which stages there are, before the first is begun."""

    def fail(self, stage: Stage, error: Exception) -> None:
        """Note that a stage could not be done."""

    def leave(self, stage: Stage, cause: Stage) -> None:
        """Note that a stage is not begun: it needs what a stage that failed would have left."""

    def about(self, stage: Stage) -> AbstractContextManager[object]:
        """What is logged in this block is about a stage."""

    def place_of(self, stage: Stage) -> StagePlace:
        """Where a stage is done."""

    def looked_at(self, stage: Stage) -> None:
        """Note that the run of a stage is under way."""

    def done_by_someone(self, stage: Stage) -> None:
        """Note that a stage is done, here or elsewhere."""


def do_shared(
    context: W, records: SharedFolder | SharedRecords, build: Callable[[W], Sequence[Stage]]
) -> None:
    """Do stages until none is left, together with all other processes that do the same.

    Args:
        context: Where they are done.
        records: The folder of a run as `share_run` opens it, or what is written down of several.
        build: Lists the stages, in an order in which they can be done.

    Raises:
        Interrupted: A signal arrived; what trained has saved its state, and another process may go on with it.
        ScantlingError: A stage cannot be begun. What a stage raised, here or elsewhere, is noted.
    """
    if isinstance(records, SharedFolder):
        records = _OneRun(records, lambda root: build(replace(context, root=root)))
    do_all(build(context), _Noted(records), _Member(records))


class _OneRun:
    """Stages that are all of one run.

    Args:
        run: Its folder.
        stages_at: As in `StagePlace`.
    """

    ends_at_refusal: ClassVar[bool] = True

    def __init__(self, run: SharedFolder, stages_at: Callable[[Path], Sequence[Stage]]) -> None:
        self._run, self._stages_at = run, stages_at
        self.fail, self.leave, self.expect, self.about = run.fail, run.leave, run.expect, run.about

    def place_of(self, stage: Stage) -> StagePlace:
        """Where a stage is done."""
        return StagePlace(self._run, stage, self._stages_at)

    def looked_at(self, stage: Stage) -> None:
        """The run is under way anyhow."""

    def done_by_someone(self, stage: Stage) -> None:
        """It was recorded while the lease was held."""


class _Noted:
    """The records for the walk over the graph: what is begun and done is recorded under the lease, not by the walk."""

    ends_at_refusal: ClassVar[bool] = False
    """The walk is refused nothing: what is begun is found out together with who does it."""

    def __init__(self, records: SharedRecords) -> None:
        self.fail, self.leave, self.expect, self.about = (
            records.fail,
            records.leave,
            records.expect,
            records.about,
        )
        self.end = records.done_by_someone

    def begin(self, stage: Stage) -> bool:  # noqa: ARG002 - whichever stage
        """Whether it is to be done is found out together with who does it."""
        return True

    def progress(self, title: str, facts: Facts) -> None:
        """It is told with the sign of life of who does the stage."""


class _Member:
    """This process, which does one stage at a time and waits for those that others do.

    Args:
        records: What is written down, and where stages are done.
    """

    is_free = True
    """It takes note of every stage that can be done, and does what nobody else does."""

    def __init__(self, records: SharedRecords) -> None:
        self._records = records
        self._open: dict[str, Stage] = {}
        self._unseen: dict[str, float] = {}
        self._told: set[str] = set()

    @property
    def busy(self) -> Collection[str]:
        """Titles of the stages that are neither done nor given up."""
        return self._open

    def wants(self, *, company: bool) -> bool:  # noqa: ARG002 - alone or not
        """Every stage needs its lease."""
        return True

    def start(self, stage: Stage) -> None:
        """Note that a stage can be done."""
        self._open[stage.title] = stage

    def ended(self) -> Ended:
        """Do the first stage that nobody else does, or wait until another process has done one.

        Raises:
            Interrupted: A signal arrived.
        """
        while True:
            for title, stage in list(self._open.items()):
                with self._records.about(stage):
                    ended = self._looked_after(stage, self._records.place_of(stage))
                if ended is not None:
                    del self._open[title]
                    return ended
            self._tell_of_waiting()
            patience = min(self._records.place_of(stage).run.leases.patience for stage in self._open.values())
            time.sleep(min(_LOOK_SECONDS, patience / 20))

    def _looked_after(self, stage: Stage, place: StagePlace) -> Ended | None:
        """How a stage ended, here or elsewhere; None while another process does it."""
        run, own = place.run, place.stage
        state = run.leases.state(own.title)
        if not run.leases.is_free(state, own.title):
            return None
        is_ours = state is not None and state.facts.get("launch") == run.launch
        if is_ours and state is not None and state.outcome == "failed":
            told = state.facts.get("error", "its log says why")
            failed = f"{own.title} failed in {state.owner.title}: {told}"
            return Ended([], {stage.title: FailedElsewhereError(failed, log=state.facts["log"])})
        is_unseen = bool(own.missing(run.path))
        if not is_unseen:
            try:
                is_done = own.is_done(run.path)
            except Interrupted:
                raise
            except Exception as error:
                if self._records.ends_at_refusal:
                    raise
                return Ended([], {stage.title: error})
            if is_done:
                self._records.looked_at(stage)
                log.info("%s: already done, kept", own.title)
                run.note(own.title, "kept")
                return Ended([stage.title], {})
            is_unseen = is_ours and state is not None and state.outcome == "done"
        if is_unseen:
            since = self._unseen.setdefault(stage.title, time.monotonic())
            if time.monotonic() - since < SIGHT_SECONDS:
                return None
        return self._done_here(stage, place)

    def _done_here(self, stage: Stage, place: StagePlace) -> Ended | None:
        """Do a stage under its lease, and record it; None where another process was faster, or has taken it over."""
        run, own = place.run, place.stage
        own_log = run.log_path.relative_to(run.path).as_posix()
        facts: dict[str, Any] = {"launch": run.launch, "log": own_log}
        lease = run.leases.take(own.title, facts)
        if lease is None:
            return None
        self._records.looked_at(stage)
        try:
            with lease.kept(facts.copy), watched_by(facts.update):
                try:
                    if run.begin(own):
                        do_under(lease, own, place.stages_at)
                        lease.require()
                        run.end(own)
                except Exception as error:
                    facts["error"] = in_a_line(error)
                    raise
        except LeaseLost as error:
            log.warning("%s", error.message)
            return None
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - noted; what does not need the stage goes on
            return Ended([], {stage.title: error})
        finally:
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch says nothing of its type
                torch.cuda.empty_cache()
        return Ended([stage.title], {})

    def _tell_of_waiting(self) -> None:
        for title in self._open.keys() - self._told:
            place = self._records.place_of(self._open[title])
            state = place.run.leases.state(place.stage.title)
            holder = f", which {state.owner.title} does" if state is not None else ""
            log.info("waiting for %s%s", title, holder)
        self._told |= self._open.keys()

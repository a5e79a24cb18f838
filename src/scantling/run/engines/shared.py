"""Stages of a run that several processes do together, on one machine or on many, through nothing but its folder.

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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch

from scantling.errors import Interrupted, UsageError, in_a_line
from scantling.run.engines.remote import do_under
from scantling.run.engines.schedule import Ended, Records, do_all
from scantling.run.engines.shared_folder import SharedFolder
from scantling.run.leases import LeaseLost, LeaseState
from scantling.run.running import SIGHT_SECONDS, FailedElsewhereError
from scantling.run.stage import Stage
from scantling.train.progress import Facts, watched_by

if TYPE_CHECKING:
    from scantling.run.context import Workplace

W = TypeVar("W", bound="Workplace")

_LOOK_SECONDS = 1.0
"""Between two looks at what others do."""

log = logging.getLogger(__name__)


def do_shared(context: W, run: Records, build: Callable[[W], Sequence[Stage]]) -> None:
    """Do stages until none is left, together with all other processes that do the same.

    Args:
        context: Where they are done.
        run: The folder, as `share_run` opens it.
        build: Lists the stages, in an order in which they can be done.

    Raises:
        UsageError: The folder is not shared.
        Interrupted: A signal arrived; what trained has saved its state, and another process may go on with it.
        ScantlingError: A stage cannot be begun. What a stage raised, here or elsewhere, is noted.
    """
    if not isinstance(run, SharedFolder):
        raise UsageError("--engine shared is for a single run")
    do_all(build(context), _Failures(run), _Member(context, run, build))


class _Failures:
    """The folder for the walk over the graph: what is begun and done is recorded under the lease, not by the walk."""

    ends_at_refusal: ClassVar[bool] = True

    def __init__(self, run: SharedFolder) -> None:
        self.fail, self.leave, self.expect, self.about = run.fail, run.leave, run.expect, run.about

    def begin(self, stage: Stage) -> bool:  # noqa: ARG002 - whichever stage
        """Whether it is to be done is found out together with who does it."""
        return True

    def progress(self, title: str, facts: Facts) -> None:
        """It is told with the sign of life of who does the stage."""

    def end(self, stage: Stage) -> None:
        """It was recorded while the lease was held."""


class _Member(Generic[W]):
    """This process, which does one stage at a time and waits for those that others do.

    Args:
        context: Where stages are done.
        run: The folder.
        build: Lists the stages.
    """

    is_free = True
    """It takes note of every stage that can be done, and does what nobody else does."""

    def __init__(self, context: W, run: SharedFolder, build: Callable[[W], Sequence[Stage]]) -> None:
        self._context, self._run, self._build = context, run, build
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
            ConfigError: A stage is costly and was done, or begun, with other inputs.
        """
        while True:
            for title, stage in list(self._open.items()):
                if (ended := self._looked_after(stage)) is not None:
                    del self._open[title]
                    return ended
            self._tell_of_waiting()
            time.sleep(min(_LOOK_SECONDS, self._run.leases.patience / 20))

    def _looked_after(self, stage: Stage) -> Ended | None:
        """How a stage ended, here or elsewhere; None while another process does it."""
        leases, title = self._run.leases, stage.title
        state = leases.state(title)
        if not leases.is_free(state, title):
            return None
        if self._is_of_this_launch(state) and state is not None and state.outcome == "failed":
            told = state.facts.get("error", "its log says why")
            failed = f"{title} failed in {state.owner.title}: {told}"
            return Ended([], {title: FailedElsewhereError(failed, log=state.facts["log"])})
        is_unseen = bool(stage.missing(self._run.path))
        if not is_unseen:
            if stage.is_done(self._run.path):
                log.info("%s: already done, kept", title)
                self._run.note(title, "kept")
                return Ended([title], {})
            is_unseen = self._is_of_this_launch(state) and state is not None and state.outcome == "done"
        if is_unseen:
            since = self._unseen.setdefault(title, time.monotonic())
            if time.monotonic() - since < SIGHT_SECONDS:
                return None
        return self._done_here(stage)

    def _is_of_this_launch(self, state: LeaseState | None) -> bool:
        return state is not None and state.facts.get("launch") == self._run.launch

    def _done_here(self, stage: Stage) -> Ended | None:
        """Do a stage under its lease, and record it; None where another process was faster, or has taken it over."""
        own_log = self._run.log_path.relative_to(self._run.path).as_posix()
        facts: dict[str, Any] = {"launch": self._run.launch, "log": own_log}
        lease = self._run.leases.take(stage.title, facts)
        if lease is None:
            return None
        try:
            with lease.kept(facts.copy), watched_by(facts.update):
                try:
                    if self._run.begin(stage):
                        do_under(lease, stage, self._stages_at)
                        lease.require()
                        self._run.end(stage)
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

    def _stages_at(self, root: Path) -> Sequence[Stage]:
        return self._build(replace(self._context, root=root))

    def _tell_of_waiting(self) -> None:
        for title in self._open.keys() - self._told:
            state = self._run.leases.state(title)
            holder = f", which {state.owner.title} does" if state is not None else ""
            log.info("waiting for %s%s", title, holder)
        self._told |= self._open.keys()

"""Which stage is done next, whoever does it: the graph of files, walked once.

    stages ──► Agenda: those whose needs are all there ──► this process, or a crew (processes; tasks of a cluster)
                  ▲                                              │
                  └── records (begin, end, fail, leave) ◄────────┘

A stage that fails stops none that does not need what it would have left. What is decided per stage takes the same time
however many there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

from scantling.errors import Interrupted
from scantling.run.plan import makers_of
from scantling.run.stage import Stage
from scantling.train.progress import Facts, watched_by

GRACE_SECONDS = 300.0
"""How long a crew may take to save its state after a signal, before it is killed."""
STOPPED = "stopped by {}; what trained has saved its state, resume the run to go on from there"


class Records(Protocol):
    """What is written down of the stages: the folder of a run, or that of a suite.

    Attributes:
        ends_at_refusal: A stage that cannot be begun, as it was done with other settings say, ends all: nothing else is
            to be done before a person has looked at it.
    """

    ends_at_refusal: ClassVar[bool]

    def expect(self, titles: Sequence[str]) -> None:
        """Note which stages there are, before the first is begun."""

    def begin(self, stage: Stage) -> bool:
        """Note the start of a stage that is to be done; False where it is done already."""

    def end(self, stage: Stage) -> None:
        """Note what a stage left."""

    def fail(self, stage: Stage, error: Exception) -> None:
        """Note that a stage could not be done."""

    def leave(self, stage: Stage, cause: Stage) -> None:
        """Note that a stage is not begun: it needs what a stage that failed would have left."""

    def progress(self, title: str, facts: Facts) -> None:
        """Note how a stage comes along that is being done."""

    def about(self, stage: Stage) -> AbstractContextManager[object]:
        """What is logged in this block is about a stage."""


class Ended(NamedTuple):
    """What happened to the stages that were being done.

    Attributes:
        done: Titles of those that are done.
        failed: What ended the others that have ended, by their titles.
        told: How those come along that are still being done, as far as they have told anything.
    """

    done: list[str]
    failed: dict[str, Exception]
    told: Mapping[str, Facts] = MappingProxyType({})


class Crew(Protocol):
    """Those who do stages side by side."""

    @property
    def busy(self) -> Collection[str]:
        """Titles of the stages that are being done."""

    @property
    def is_free(self) -> bool:
        """Whether one more stage can be begun."""

    def wants(self, *, company: bool) -> bool:
        """Whether they take the next stage, or it is done in this process.

        Args:
            company: Another stage is being done meanwhile, or could be.
        """

    def start(self, stage: Stage) -> None:
        """Let one of them do a stage that was begun."""

    def ended(self) -> Ended:
        """Wait for something to happen; the stages that have ended by then, and what the others tell.

        Raises:
            Interrupted: A signal arrived here or there.
        """


class Agenda:
    """The stages that are left, and which of them can be done now.

    Args:
        stages: In an order in which they can be done, which is kept among those that can be done now.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages, makers = list(stages), makers_of(stages)
        self._number = {stage.title: number for number, stage in enumerate(stages)}
        self._users: dict[str, list[int]] = {stage.title: [] for stage in stages}
        self._waiting: dict[str, list[int]] = {stage.title: [] for stage in stages}
        self._lacking: list[int] = []
        self._is_open = [True] * len(stages)
        for number, stage in enumerate(stages):
            before = {makers[need] for need in stage.needs if need in makers}
            waited = {makers[file] for file in stage.after if file in makers} - before
            self._lacking.append(len(before) + len(waited))
            for title in before:
                self._users[title].append(number)
            for title in waited:
                self._waiting[title].append(number)
        self._ready = [number for number, lacking in enumerate(self._lacking) if not lacking]

    def __bool__(self) -> bool:
        """Whether a stage can be done now."""
        return bool(self._ready)

    def take(self) -> Stage:
        """The first stage that can be done now; it is not given again."""
        number = heapq.heappop(self._ready)
        self._is_open[number] = False
        return self._stages[number]

    def stage(self, title: str) -> Stage:
        """The stage of this title."""
        return self._stages[self._number[title]]

    def note_done(self, stage: Stage) -> None:
        """What the stage leaves is there."""
        self._release([*self._users[stage.title], *self._waiting[stage.title]])

    def drop_after(self, stage: Stage) -> list[Stage]:
        """All that need what a stage would have left, directly or not; they are not given any more.

        What only waited for one of them goes on.
        """
        reached, waiting = set[int](), list(self._users[stage.title])
        while waiting:
            number = waiting.pop()
            if self._is_open[number]:
                self._is_open[number] = False
                reached.add(number)
                waiting += self._users[self._stages[number].title]
        dropped = [self._stages[number] for number in sorted(reached)]
        for one in (stage, *dropped):
            self._release(self._waiting[one.title])
        return dropped

    def _release(self, numbers: Sequence[int]) -> None:
        """Each of these stages lacks one thing less."""
        for number in numbers:
            self._lacking[number] -= 1
            if not self._lacking[number] and self._is_open[number]:
                heapq.heappush(self._ready, number)


def do_all(stages: Sequence[Stage], records: Records, crew: Crew | None = None) -> None:
    """Do all stages, each as soon as what it needs is there.

    Args:
        stages: In an order in which one process could do them.
        records: What is done already, and where it is written down.
        crew: Who does them; None: this process, one after the other.

    Raises:
        Interrupted: A signal arrived.
        ScantlingError: A stage cannot be begun, as it was done with other settings say.
    """
    agenda = Agenda(stages)
    records.expect([stage.title for stage in stages])
    while agenda or (crew is not None and crew.busy):
        if crew is not None and not (agenda and crew.is_free):
            ended = crew.ended()
            for title, facts in ended.told.items():
                records.progress(title, facts)
            for title in ended.done:
                _end(agenda, records, agenda.stage(title))
            for title, error in ended.failed.items():
                _give_up(agenda, records, agenda.stage(title), error)
            continue
        stage = agenda.take()
        try:
            is_begun = records.begin(stage)
        except Exception as error:
            if isinstance(error, Interrupted) or records.ends_at_refusal:
                raise
            _give_up(agenda, records, stage, error)
            continue
        if not is_begun:
            agenda.note_done(stage)
        elif crew is not None and crew.wants(company=bool(agenda or crew.busy)):
            crew.start(stage)
        else:
            _do_here(agenda, records, stage)


def _do_here(agenda: Agenda, records: Records, stage: Stage) -> None:
    """Do a stage that was begun, in this process."""
    try:
        with watched_by(partial(records.progress, stage.title), stage.title), records.about(stage):
            stage.action()
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - noted; what does not need the stage goes on
        _give_up(agenda, records, stage, error)
    else:
        _end(agenda, records, stage)


def _end(agenda: Agenda, records: Records, stage: Stage) -> None:
    """Record a stage whose work is done; that it left what it was to leave is found out here."""
    try:
        records.end(stage)
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - as if the work had failed
        _give_up(agenda, records, stage, error)
    else:
        agenda.note_done(stage)


def _give_up(agenda: Agenda, records: Records, stage: Stage, error: Exception) -> None:
    records.fail(stage, error)
    for later in agenda.drop_after(stage):
        records.leave(later, stage)

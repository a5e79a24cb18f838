"""Several runs as one graph: the data sets of a suite, the combinations of an ablation.

    {folder: recipe} ──► every run is prepared and checked ──► stages of all ──► any engine ──► each run's own records

Each is an ordinary run in a folder of its own. Stages of unlike runs need nothing of one another, so they are done side
by side as the stages of one run are; a training waits for the same one of a run whose model it may take over.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, cast

from scantling.errors import Interrupted
from scantling.recipe.recipe import Recipe
from scantling.run.context import RunContext, Workplace
from scantling.run.engines.choice import Engine, do_with
from scantling.run.engines.shared import StagePlace
from scantling.run.engines.shared_folder import SharedFolder, WholeTerms, share_whole
from scantling.run.folder import RunFolder, open_run
from scantling.run.leases import PATIENCE_SECONDS
from scantling.run.logs import telling_of
from scantling.run.pipeline import part_of
from scantling.run.stage import Stage
from scantling.train.progress import Facts

log = logging.getLogger(__name__)


class WholeRecords(Protocol):
    """What is written down of each run as a whole."""

    def expect(self, names: Sequence[str]) -> None:
        """Note which runs there are."""

    def begin(self, name: str) -> None:
        """Note that the first stage of a run is begun."""

    def end(self, name: str) -> None:
        """Note that all stages of a run are done."""

    def fail(self, name: str, error: Exception) -> None:
        """Note that a run could not be prepared, or that a stage failed."""

    def progress(self, name: str, facts: Facts) -> None:
        """Note how a run comes along, and which of its stages is being done."""


@dataclass(frozen=True, kw_only=True)
class RunsContext(Workplace):
    """What the stages of several runs look at.

    Attributes:
        runs: Of each run by its folder, relative to the root.
        build: Lists the stages of one run; a function of a module.
        after: For a folder those of the runs before it, whose models it may take over.
    """

    runs: Mapping[str, RunContext]
    build: Callable[[RunContext], Sequence[Stage]]
    after: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def only(self, title: str) -> RunsContext:
        """With the run alone that a stage belongs to; also where it came from another process, without a console."""
        own = copy.copy(self)
        runs = {name: run for name, run in self.runs.items() if title.startswith(f"{name}/")}
        object.__setattr__(own, "runs", runs)
        return own

    def stages_of(self, folder: str, root: Path | None = None) -> Sequence[Stage]:
        """The stages of one run as it lists them itself, in its folder or in another one."""
        own = replace(
            self.runs[folder],
            root=root or self.root / folder,
            console=self.console,
            device=self.device,
            devices=self.devices,
        )
        return self.build(own)


def stages_of_runs(context: RunsContext) -> tuple[Stage, ...]:
    """The stages of all runs, named from the root."""
    found, trained = list[Stage](), dict[tuple[str, str], tuple[str, ...]]()
    for folder in context.runs:
        for stage in context.stages_of(folder):
            named = _from_root(folder, stage)
            if stage.resources.gpus:
                lent = [trained.get((other, stage.title), ()) for other in context.after.get(folder, ())]
                named = replace(named, after=tuple(file for files in lent for file in files))
                trained[folder, stage.title] = named.outputs
            found.append(named)
    return tuple(found)


@contextmanager
def open_whole(
    place: Workplace,
    terms: WholeTerms,
    write_facts: Callable[[], None],
    *,
    engine: Engine,
    overwrite: bool,
) -> Iterator[tuple[RunFolder, Engine]]:
    """Hold the folder of what consists of several runs, alone or together with other processes.

    Args:
        place: Where it is done.
        terms: What processes have to agree on that do it together.
        write_facts: Writes what is known before the first run is begun.
        engine: Who does the stages.
        overwrite: The runs are to be started over.

    Returns:
        The folder, and who does the stages of its runs: processes that do the whole together do each run together.

    Raises:
        UsageError: The path cannot be such a folder, another run is working in it, or others do something else there.
    """
    engine.check_overwrite(overwrite=overwrite)
    if engine.name == "shared":
        patience = engine.patience or PATIENCE_SECONDS
        with share_whole(place.root, terms, write_facts, launch=engine.launch, patience=patience) as shared:
            yield shared, replace(engine, launch=shared.launch)
        return
    with open_run(place.root, processes=place.processes) as run:
        place.processes.on_main(write_facts)
        yield run, engine


def do_runs(
    whole: Workplace,
    recipes: Mapping[str, Recipe],
    records: WholeRecords,
    *,
    build: Callable[[RunContext], Sequence[Stage]],
    engine: Engine,
    overwrite: bool = False,
    after: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Do the runs of some recipes, each in its folder; one that fails costs no other that does not wait for it.

    Args:
        whole: Where; its folder is open.
        recipes: By folder, relative to that of the whole.
        records: What is noted of each run.
        build: Lists the stages of a run; a function of a module.
        engine: Who does them.
        overwrite: Start each run over.
        after: For a folder those of runs before it, whose finished work it takes over.

    Raises:
        Interrupted: A signal arrived; what trained has saved its state.
    """
    waits = after or {}
    records.expect(list(recipes))
    with telling_of(whole.root), ExitStack() as together:
        opened = dict[str, _OpenRun]()
        for folder, recipe in recipes.items():
            stack = together.enter_context(ExitStack())
            try:
                with telling_of(whole.root / folder):
                    context, run = stack.enter_context(
                        part_of(whole, recipe, whole.root / folder, overwrite=overwrite, engine=engine)
                    )
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001 - noted; the others go on
                records.fail(folder, error)
            else:
                run.lenders = tuple(whole.root / other for other in waits.get(folder, ()))
                opened[folder] = _OpenRun(context, run, stack)
        runs = {folder: one.context for folder, one in opened.items()}
        context_of_all = RunsContext(
            root=whole.root,
            device=whole.device,
            devices=whole.devices,
            console=whole.console,
            processes=whole.processes,
            runs=runs,
            build=build,
            after=waits,
        )
        if whole.processes.world > 1:
            _do_together(context_of_all, opened, records)
        else:
            notes = _Notes(context_of_all, opened, records)
            do_with(engine, context_of_all, notes, stages_of_runs)


class _OpenRun(NamedTuple):
    """A run that was prepared, and what ends it."""

    context: RunContext
    run: RunFolder
    stack: ExitStack


class _Notes:
    """Writes down what becomes of each stage in the folder of its run; a run ends with its last stage.

    A run of which a stage is refused, as it was done with other settings, costs the others nothing.
    """

    ends_at_refusal: ClassVar[bool] = False

    def __init__(self, context: RunsContext, opened: Mapping[str, _OpenRun], records: WholeRecords) -> None:
        self._opened, self._records, self._context = opened, records, context
        self._own = {
            _from_root(folder, stage).title: (folder, stage)
            for folder in opened
            for stage in context.stages_of(folder)
        }
        self._begun = set[str]()
        self._open = Counter(folder for folder, _ in self._own.values())

    def begin(self, stage: Stage) -> bool:
        """Note the start of a stage that is to be done; False where it is done already."""
        self.looked_at(stage)
        with self._run_of(stage) as (run, own):
            is_begun = run.begin(own)
        if not is_begun:
            self.done_by_someone(stage)
        return is_begun

    def looked_at(self, stage: Stage) -> None:
        """Note that the run of a stage is under way."""
        folder = self._own[stage.title][0]
        if folder not in self._begun:
            self._begun.add(folder)
            log.info("%s: begins", folder)
            self._records.begin(folder)

    def end(self, stage: Stage) -> None:
        """Note what a stage left."""
        with self._run_of(stage) as (run, own):
            run.end(own)
        self.done_by_someone(stage)

    def done_by_someone(self, stage: Stage) -> None:
        """Note that a stage is done, whoever has done it and recorded it."""
        self._count(self._own[stage.title][0])

    def place_of(self, stage: Stage) -> StagePlace:
        """Where a stage is done by one of several processes that share the folders."""
        folder, own = self._own[stage.title]
        run = cast("SharedFolder", self._opened[folder].run)
        return StagePlace(run, own, partial(self._context.stages_of, folder))

    def fail(self, stage: Stage, error: Exception) -> None:
        """Note that a stage could not be done."""
        with self._run_of(stage) as (run, own):
            run.fail(own, error)
        self._count(self._own[stage.title][0])

    def leave(self, stage: Stage, cause: Stage) -> None:
        """Note that a stage is not begun; the cause may be one of another run."""
        with self._run_of(stage) as (run, own):
            run.leave(own, cause)
        self._count(self._own[stage.title][0])

    def about(self, stage: Stage) -> AbstractContextManager[object]:
        """What is logged meanwhile is told in the log of the stage's run."""
        return telling_of(self._opened[self._own[stage.title][0]].run.path)

    def expect(self, titles: Sequence[str]) -> None:
        """Note in the folder of each run which stages it has."""
        by_folder: dict[str, list[str]] = {folder: [] for folder in self._opened}
        for folder, own in map(self._own.__getitem__, titles):
            by_folder[folder].append(own.title)
        for folder, named in by_folder.items():
            self._opened[folder].run.expect(named)

    def progress(self, title: str, facts: Facts) -> None:
        """Note how a stage comes along, in its run and in what the run is one of."""
        folder, own = self._own[title]
        self._opened[folder].run.progress(own.title, facts)
        self._records.progress(folder, {**facts, "stage": own.title})

    def _count(self, folder: str) -> None:
        """A stage of a run has ended, in whatever way; with the last of them the run ends."""
        self._open[folder] -= 1
        if not self._open[folder]:
            _close(folder, self._opened[folder], self._records)

    @contextmanager
    def _run_of(self, stage: Stage) -> Iterator[tuple[RunFolder, Stage]]:
        """The run of a stage, and the stage as the run names it; what is logged meanwhile is the run's."""
        folder, own = self._own[stage.title]
        run = self._opened[folder].run
        with telling_of(run.path):
            yield run, own


def _do_together(context: RunsContext, opened: Mapping[str, _OpenRun], records: WholeRecords) -> None:
    """One run after the other, each stage by all processes (`torchrun`); what fails ends all."""
    for folder, one in opened.items():
        log.info("%s: begins", folder)
        records.begin(folder)
        with telling_of(one.run.path):
            for stage in context.stages_of(folder):
                one.run.do(stage)
        _close(folder, one, records)


def _close(folder: str, one: _OpenRun, records: WholeRecords) -> None:
    """Write the last status of a run, and note how it went."""
    try:
        with one.stack, telling_of(one.run.path):
            one.run.require_all()
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - noted
        records.fail(folder, error)
    else:
        records.end(folder)


def _from_root(folder: str, stage: Stage) -> Stage:
    """A stage of a run, with its files named from the root of all."""

    def named(files: Sequence[str]) -> tuple[str, ...]:
        return tuple(name if Path(name).is_absolute() else f"{folder}/{name}" for name in files)

    return replace(
        stage,
        folder=f"{folder}/{stage.folder}",
        needs=named(stage.needs),
        outputs=named(stage.outputs),
        working_files=named(stage.working_files),
    )

"""A suite: the run of a recipe on every data set of a folder, and one table over all of them.

    folder of data sets ─► for each SET: the run OUT/SET ─► its rows ─┐
                                                                       ├─► suite.md  suite.json  suite.html
                           a set that fails: its reason and its log ──┘

Each set is an ordinary run folder. Sets need nothing of one another: their stages are done side by side as those of one
run are (`several.py`), and a set that fails is noted while the others go on. The same command given again does what is
missing: the stages of each run know what is done.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from scantling.data.formats.layouts import find_data_sets, is_data_set
from scantling.data.io import atomic_write, write_json
from scantling.errors import FOR_THE_FILE, ScantlingError, UsageError, did_you_mean, in_a_line, is_known
from scantling.evaluate.over_sets import SetResult
from scantling.recipe.recipe import Recipe
from scantling.recipe.suite import Suite
from scantling.report.suite_page import SetLink, SuiteContent, write_suite_page
from scantling.run.context import Workplace
from scantling.run.engines.choice import ONE_AFTER_THE_OTHER, Engine, check_engine
from scantling.run.engines.shared_folder import WholeTerms
from scantling.run.folder import (
    RECIPE,
    REPORT,
    RunFolder,
    check_run_folder,
    write_environment,
)
from scantling.run.pipeline import available_for, check_run, plan_recipe
from scantling.run.plan import Plan
from scantling.run.several import do_runs, open_whole
from scantling.run.stages.suite import SUBMITTED, set_result, stages_in_suite
from scantling.run.suite_summary import PAGE, SuitePlan, SuiteSummary, log_of
from scantling.train.devices import join_processes, resolve_device
from scantling.train.progress import Facts

TEXT, JSON = "suite.md", "suite.json"

log = logging.getLogger(__name__)


def run_suite(
    suite: Suite,
    data: Path,
    out: Path,
    *,
    sets: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    engine: Engine = ONE_AFTER_THE_OTHER,
) -> SuiteSummary:
    """Run a suite on the data sets of a folder; what is done and unchanged is kept.

    Args:
        suite: What is done on every data set.
        data: Folder of data sets.
        out: Folder for the runs, a folder for each data set, and for the tables; that of an earlier suite is continued.
        sets: Names of the data sets to take; empty takes all.
        seed: Of all randomness; None takes the recipe's own.
        device: As in `run_recipe`.
        overwrite: Start the run of every set over.
        engine: Who does the stages of all sets.

    Raises:
        ScantlingError: There is no data set, or the device or the folder cannot be used.
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
    """
    recipes = recipes_of(suite, data, sets, seed)
    _check_out(out, recipes)
    chosen = resolve_device(device)
    if join_processes(chosen).world > 1:
        raise UsageError(
            "a suite does not go with torchrun, whose processes do one run together",
            hint="Sets are done side by side with --jobs; `torchrun ... scantling run` does that of a single one.",
        )
    place = Workplace(
        root=out,
        device=chosen,
        devices=available_for(device, chosen),
        console=Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO)),
    )
    check_engine(engine, place)
    facts = partial(write_environment, out, device=chosen)
    terms = WholeTerms(recipes=recipes, device=chosen)
    with open_whole(place, terms, facts, engine=engine, overwrite=overwrite) as (run, engine_of_runs):
        folder = SuiteFolder(run)
        do_runs(place, recipes, folder, build=stages_in_suite, engine=engine_of_runs, overwrite=overwrite)
        results = tuple(folder.result_of(name) for name in recipes)
        summary = SuiteSummary(out=out, results=results, bugs=tuple(folder.bugs))
        _write(summary, suite)
    return summary


def do_suite(
    suite: Suite, data: Path, out: Path, *, seed: int | None, device: str, engine: Engine
) -> SuiteSummary:
    """`run_suite`, for whom a set that failed is a failure of the whole.

    Raises:
        ScantlingError: As there; or some sets failed.
        RuntimeError: One of them by a bug.
    """
    summary = run_suite(suite, data, out, seed=seed, device=device, engine=engine)
    summary.require_all()
    return summary


def check_suite(
    suite: Suite, data: Path, out: Path, *, seed: int | None, device: str, elsewhere: bool
) -> None:
    """Find what cannot work before a suite is begun; nothing is written. A set that cannot be used is warned of.

    Args:
        suite: As in `run_suite`.
        data: As in `run_suite`.
        out: As in `run_suite`.
        seed: As in `run_suite`.
        device: As in `run_suite`.
        elsewhere: As in `check_run`.

    Raises:
        ScantlingError: There is no data set that can be used, or the folder cannot be.
    """
    recipes = recipes_of(suite, data, (), seed)
    _check_out(out, recipes)
    check_run_folder(out)
    failures: list[ScantlingError] = []
    for name, recipe in recipes.items():
        try:
            check_run(recipe, out / name, device=device, elsewhere=elsewhere)
        except ScantlingError as error:
            log.warning("%s: %s", name, error.message)
            failures.append(error)
    if len(failures) == len(recipes):
        raise failures[0]


def plan_suite(
    suite: Suite,
    data: Path,
    out: Path,
    *,
    sets: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> SuitePlan:
    """What `run_suite` would do with the same arguments, set by set; nothing is written.

    Raises:
        ScantlingError: There is no data set, or the device or the folder cannot be used.
    """
    recipes = recipes_of(suite, data, sets, seed)
    _check_out(out, recipes)
    resolve_device(device)
    plans: dict[str, Plan | str] = {}
    for name, recipe in recipes.items():
        try:
            plans[name] = plan_recipe(
                recipe, out / name, device=device, overwrite=overwrite, build=stages_in_suite
            )
        except ScantlingError as error:
            plans[name] = str(error)
    return SuitePlan(plans=plans)


def recipes_of(suite: Suite, data: Path, sets: Sequence[str], seed: int | None) -> dict[str, Recipe]:
    """The recipe on each data set of a folder, by its name.

    Raises:
        UsageError: There is no data set, or none of a name that is asked for.
        ConfigError: What the suite says about a set does not fit the recipe.
    """
    if is_data_set(data):
        hint = f"It is a data set itself: `scantling run RECIPE --data {shlex.quote(str(data))}`."
        raise UsageError(f"{data}: a suite needs a folder of data sets", hint=hint)
    there = find_data_sets(data)
    if not there:
        hint = "Give the folder whose sub-folders are data sets."
        raise UsageError(f"{data}: no data sets in there", hint=hint)
    if unknown := [name for name in sets if name not in there]:
        near = did_you_mean(unknown[0], there)
        raise UsageError(
            f"{data}: there is no data set {unknown[0]!r}{near}", hint=f"There are {', '.join(there)}."
        )
    for name in suite.overrides.keys() - there.keys():
        log.warning("sets.%s: there is no such data set in %s%s", name, data, did_you_mean(name, there))
    chosen = {name: path for name, path in there.items() if not sets or name in sets}
    log.info("%s: %d data sets: %s", data, len(chosen), ", ".join(chosen))
    others = sorted(path.name for path in data.iterdir() if path.is_dir() and path.name not in there)
    if passed := [name for name in others if not name.startswith(".")]:
        log.warning("%s: in no known format, passed over: %s", data, ", ".join(passed))
    return {name: suite.recipe_for(name, path, seed=seed) for name, path in chosen.items()}


def _check_out(out: Path, recipes: Mapping[str, Recipe]) -> None:
    """Refuse a folder in which a suite cannot be.

    Raises:
        UsageError: It is that of a single run, or would be in the way of a set.
    """
    if (out / RECIPE).is_file():
        raise UsageError(
            f"{out}: is the folder of a single run", hint="Nothing was changed. Choose another --out."
        )
    if taken := [name for name in recipes if (out / name).is_file() or name in (TEXT, JSON, PAGE)]:
        raise UsageError(f"{out / taken[0]}: is a file; the data set of that name needs a folder there")


@dataclass
class SuiteFolder:
    """The open folder of a suite: a set that fails is noted, and the others go on.

    Attributes:
        run: Its lock, log and status.
        failures: Why a data set has no numbers, by its name.
        bugs: Names of the sets whose failure is nobody's mistake but scantling's.
    """

    run: RunFolder
    failures: dict[str, str] = field(default_factory=dict)
    bugs: list[str] = field(default_factory=list)

    def expect(self, names: Sequence[str]) -> None:
        """Note which sets there are."""
        self.run.expect(names)

    def begin(self, name: str) -> None:
        """Note that a set is begun."""
        self.run.note(name, "running")

    def end(self, name: str) -> None:
        """Note that a set is done."""
        self.run.note(name, "done")

    def fail(self, name: str, error: Exception) -> None:
        """Note that a set could not be done, and why."""
        if not is_known(error):
            self.bugs.append(name)
            log.error("%s: %s", type(error).__name__, error, exc_info=error, extra={FOR_THE_FILE: True})
        told = str(error) if isinstance(error, ScantlingError) else f"{type(error).__name__}: {error}"
        log.error("%s failed: %s", name, told)
        self.failures[name] = in_a_line(error)
        self.run.failures[name] = error
        self.run.note(name, "failed")

    def progress(self, name: str, facts: Facts) -> None:
        """Note how a set comes along, and which of its stages is being done."""
        self.run.progress(name, facts)

    def result_of(self, name: str) -> SetResult:
        """What came of a set."""
        failure = self.failures.get(name)
        return SetResult(name=name, failure=failure) if failure else set_result(self.run.path / name, name)


def _write(summary: SuiteSummary, suite: Suite) -> None:
    """The tables as text, for programs and as a page."""
    out = summary.out
    atomic_write(out / TEXT, summary.to_text() + "\n")
    write_json(out / JSON, summary.to_dict(), indent=2)
    links = {
        each.name: SetLink(
            report=f"{each.name}/{REPORT}" if (out / each.name / REPORT).is_file() else None,
            submission=f"{each.name}/{SUBMITTED}" if (out / each.name / SUBMITTED).is_file() else None,
            log=log_of(out, each.name).relative_to(out).as_posix(),
        )
        for each in summary.results
    }
    content = SuiteContent(
        title=suite.name,
        about=suite.recipe.about,
        results=summary.results,
        tables=summary.tables,
        outcome=summary.outcome,
        links=links,
    )
    write_suite_page(out / PAGE, content)

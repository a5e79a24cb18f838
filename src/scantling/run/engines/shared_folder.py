"""A folder that several processes work in, each begun with the same command: what they agree on, and its status.

    the first: recipe.yaml, env.json, ..., leases/launch.json ──► the others: the same recipe, versions and threads
    status.json: each adds how its own stages stand       logs/HOST.PID.log: what each has to say

Records and status are read, changed and written under short leases (`run/leases.py`).
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scantling.data.io import write_json
from scantling.errors import UsageError
from scantling.recipe.recipe import Recipe, load_recipe
from scantling.run.engines.remote import Versions
from scantling.run.folder import RECIPE, RunFolder, check_run_folder, note_failure, read_started
from scantling.run.leases import LEASES, PATIENCE_SECONDS, Leases, current_leases
from scantling.run.logs import log_file
from scantling.run.running import LOGS, RUNNING, STATUS, WAITING, run_of_stage
from scantling.run.stage import Stage, differences, read_json_object
from scantling.train.rundir import SharedClaim, share_folder

LAUNCH = f"{LEASES}/launch.json"

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SharedFolder(RunFolder):
    """A run folder that this process shares with others.

    Attributes:
        leases: On its stages.
        launch: What all processes have in common that were begun together; what failed for one of them has failed.
    """

    leases: Leases
    launch: str
    _told: dict[str, str] = field(default_factory=dict, repr=False)

    def writing(self, stage: Stage) -> AbstractContextManager[object]:
        """While the record of a stage's folder is read, changed and written."""
        return self.leases.only_here(f"records/{stage.folder}")

    @property
    def log_path(self) -> Path:
        """The log of this process."""
        return self.path / LOGS / f"{socket.gethostname()}.{os.getpid()}.log"

    def write_status(self, state: str, message: str | None = None) -> None:
        """Add how this process' stages stand to what the others have written.

        The run goes on as long as another process does a stage, whatever ends this one.
        """
        new = {title: now for title, now in dict(self.stages).items() if self._told.get(title) != now}
        with self.leases.only_here("status"):
            is_end = state != RUNNING or "interrupted" in new.values()
            held = self._held_by_others() if is_end else set()
            before = read_json_object(self.path / STATUS).get("stages") or {}
            stages = {
                **before,
                **{title: now for title, now in new.items() if self._is_news(title, before, held)},
            }
            if held and state != RUNNING:
                state, message = RUNNING, None
            write_json(self.path / STATUS, {**self.status(state, message), "stages": stages}, indent=2)
        self._told |= new

    def _is_news(self, title: str, before: Mapping[str, str], held: set[str]) -> bool:
        """Whether others have nothing later to say of a stage."""
        now = self.stages[title]
        if now == WAITING and title in before:
            return False
        return not (now == "kept" and before.get(title) in ("done", "shared")) and not (
            now == "interrupted" and title in held
        )

    def _held_by_others(self) -> set[str]:
        """Titles of the stages that others do at the moment; of a whole the runs that they do stages of."""
        runs = {title: run_of_stage(self.path, title) for title in dict(self.stages)}
        held = {title for title, run in runs.items() if run is not None and self._held_in(run)}
        return held | self._held_in(self.path)

    def _held_in(self, root: Path) -> set[str]:
        """Titles of the stages of one run that another process does at the moment."""
        return {
            title
            for title, state in current_leases(root).items()
            if state.outcome is None and state.owner != self.leases.owner and not state.owner.is_gone()
        }


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all processes of a shared run have to agree on.

    Attributes:
        given: The settings as this process was given them, `auto` where they are open; what is not in there is open.
        recipe: The same with a value for everything, by this process' data and device.
        device: On which this process computes.
    """

    given: Mapping[str, Any]
    recipe: Recipe
    device: torch.device

    def recorded(self, launch: str) -> dict[str, Any]:
        """As the first process writes them down."""
        return {
            "launch": launch,
            "versions": Versions.here()._asdict(),
            "threads": torch.get_num_threads(),
            "device": self.device.type,
        }

    def agreed(self, root: Path, recorded: Mapping[str, Any]) -> Recipe:
        """The recipe that is done: the first process' one; this process computes with as many threads.

        Raises:
            UsageError: Recipe, versions or kind of device are others.
        """
        theirs = load_recipe(root / RECIPE)
        own = _filled(self.given, self.recipe.to_dict(), theirs.to_dict())
        changes = list(differences(theirs.to_dict(), own))
        here = {**recorded, "versions": Versions.here()._asdict(), "device": self.device.type}
        changes += differences(recorded, here)
        if changes:
            raise _filled_otherwise(root, changes)
        torch.set_num_threads(recorded["threads"])
        return theirs


@dataclass(frozen=True, kw_only=True)
class WholeTerms:
    """What all processes have to agree on that do a suite or an ablation together.

    Attributes:
        recipes: Of the runs, by folder; one process may do fewer of them than another.
        device: On which this process computes.
        settings: Of the whole.
    """

    recipes: Mapping[str, Recipe]
    device: torch.device
    settings: Mapping[str, Any] = field(default_factory=dict)

    def recorded(self, launch: str) -> dict[str, Any]:
        """As the first process writes them down."""
        recipes = {folder: recipe.to_dict() for folder, recipe in self.recipes.items()}
        return {"launch": launch, **self._facts(), "recipes": recipes}

    def require_agreed(self, root: Path, recorded: Mapping[str, Any]) -> None:
        """Refuse to join others with other terms.

        Raises:
            UsageError: Versions, kind of device or settings are others, or the recipe of a run that both do.
        """
        changes = list(
            differences({**recorded, "recipes": None}, {**recorded, **self._facts(), "recipes": None})
        )
        theirs = recorded.get("recipes") or {}
        for folder, recipe in self.recipes.items():
            if folder in theirs:
                found = differences(theirs[folder], recipe.to_dict())
                changes += [f"{folder}: {change}" for change in found]
        if changes:
            raise _filled_otherwise(root, changes)

    def _facts(self) -> dict[str, Any]:
        versions = Versions.here()._asdict()
        return {"versions": versions, "device": self.device.type, "settings": self.settings}


def _filled_otherwise(root: Path, changes: Sequence[str]) -> UsageError:
    told = [f"{root}: is being filled by others with another recipe or other versions:", *changes]
    hint = "Nothing was changed. Begin all with the same command, or choose another --out."
    return UsageError("\n  ".join(told), hint=hint)


@contextmanager
def share_run(
    path: Path,
    terms: Terms,
    write_facts: Callable[[], None],
    *,
    launch: str | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[tuple[SharedFolder, Recipe]]:
    """Begin a run that others may join, or join it; what is begun goes on.

    Args:
        path: The folder; created if need be. An earlier run in it is continued.
        terms: What all have to agree on.
        write_facts: Writes everything that is known before the first stage; for the first process to call.
        launch: Of the processes that were begun together; None: whoever comes while others work belongs to them.
        patience: Seconds after which a silent holder of a lease is taken for dead.

    Raises:
        UsageError: The path cannot be a run folder, a run that is not shared uses it, or the terms are others.
    """
    with _shared(path, launch, patience) as (run, claim, recorded):
        if recorded is not None:
            recipe = terms.agreed(path, recorded)
        else:
            recipe = terms.recipe
            _begin(run, write_facts, terms.recorded(run.launch))
        with _noted(run, claim):
            yield run, recipe


@contextmanager
def share_whole(
    path: Path,
    terms: WholeTerms,
    write_facts: Callable[[], None],
    *,
    launch: str | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[SharedFolder]:
    """Begin what consists of several runs (a suite, an ablation), or join it; each run has terms of its own.

    The arguments and errors are those of `share_run`.
    """
    with _shared(path, launch, patience) as (run, claim, recorded):
        if recorded is None:
            _begin(run, write_facts, terms.recorded(run.launch))
        else:
            terms.require_agreed(path, recorded)
            with run.leases.only_here("launch"):  # what this process adds binds those who come later
                known = read_json_object(path / LAUNCH)
                recipes = {**terms.recorded(run.launch)["recipes"], **known["recipes"]}
                write_json(path / LAUNCH, {**known, "recipes": recipes}, indent=2)
        with _noted(run, claim):
            yield run


@contextmanager
def _shared(
    path: Path, launch: str | None, patience: float
) -> Iterator[tuple[SharedFolder, SharedClaim, dict[str, Any] | None]]:
    """Work in a folder together with others; with what the first of them has recorded, None for the first."""
    check_run_folder(path)
    with share_folder(path) as claim:
        recorded = read_json_object(path / LAUNCH)
        is_joined = bool(recorded) and (not claim.alone or recorded["launch"] == launch)
        own = recorded["launch"] if is_joined else launch or uuid.uuid4().hex[:12]
        run = SharedFolder(path, leases=Leases(root=path, patience=patience), launch=own)
        if is_joined:
            run.started = read_started(path) or run.started
        yield run, claim, recorded if is_joined else None


@contextmanager
def _noted(run: SharedFolder, claim: SharedClaim) -> Iterator[None]:
    """Let others in, keep the log of this process, and write how the run ended."""
    claim.let_others_in()
    run.log_path.parent.mkdir(exist_ok=True)
    with log_file(run.log_path, run.path):
        try:
            yield
        except BaseException as error:
            note_failure(run, error)
            raise
        run.end_with("done")


def _begin(run: SharedFolder, write_facts: Callable[[], None], recorded: Mapping[str, Any]) -> None:
    """Leave what the others have to find."""
    write_json(run.path / STATUS, run.status(RUNNING), indent=2)
    write_facts()
    write_json(run.path / LAUNCH, recorded, indent=2)


def _filled(given: Any, own: Any, theirs: Any) -> Any:
    """Settings of this process, with those of others wherever it was given none."""
    if given == "auto":
        return theirs
    if isinstance(given, Mapping) and isinstance(own, Mapping) and isinstance(theirs, Mapping):
        return {
            key: _filled(given[key], value, theirs.get(key)) if key in given else theirs.get(key)
            for key, value in own.items()
        }
    return own

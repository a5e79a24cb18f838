"""A stage of a run: a node of a graph whose edges are files.

    needs (files) ──► inputs(): what decides the result, as plain values ──► action ──► outputs (files)

Stages are declared before any of them is done, so that a run can be shown (`run/plan.py`) and shared out
(`run/engines`). A stage is done when its record (`done.json` in its folder, one entry per step there) names the same
inputs and the files it left are intact. Anything else is done again, except where that would throw away hours of work:
then the difference is told and the user decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from scantling.data.io import second_name, sha256_of, write_json
from scantling.errors import ConfigError

RECORD = "done.json"

Inputs = Mapping[str, Any]


class Resources(NamedTuple):
    """What a stage computes with.

    Attributes:
        gpus: GPUs that each of its processes uses where there are any.
        processes: Processes that do the work; None: all that do the run together (`torchrun`).
    """

    gpus: int = 0
    processes: int | None = 1


class StageState(StrEnum):
    """How a stage stands: `kept` is done and unchanged, `new` not yet begun, `begun` not finished.

    `changed` was done with other inputs, or its files are not as it left them, and is done again; `refused` is that
    where doing it again would throw away hours of work.
    """

    KEPT = "kept"
    NEW = "new"
    BEGUN = "begun"
    CHANGED = "changed"
    REFUSED = "refused"


class Standing(NamedTuple):
    """How a stage stands, and a sentence for each difference to what was recorded."""

    state: StageState
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a run.

    Attributes:
        folder: Where the record goes, relative to the run folder (`members/cascade`).
        name: The step in that folder (`train`).
        inputs: Gives the plain values that decide the result: settings, hashes of the files read. To be called when
            all of `needs` exist.
        needs: Files that are read, relative to the run folder; those from elsewhere by their full path.
        after: Files that are waited for where they are being made, and gone without where they are not: what another
            run may lend.
        outputs: Files the step leaves, relative to the run folder.
        action: The work.
        working_files: Files the step keeps for itself while it works, such as training state.
        whole_files: Every file is written under another name and moved to its own as a whole, and made anew does no
            harm; so the work needs no folder of its own where several machines share the run's.
        costly: The result is never thrown away silently: other inputs than the recorded ones are an error.
        resources: What it computes with.
    """

    folder: str
    name: str
    inputs: Callable[[], Inputs]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    action: Callable[[], object]
    working_files: tuple[str, ...] = ()
    whole_files: bool = False
    costly: bool = False
    resources: Resources = Resources()

    @property
    def title(self) -> str:
        """Name of the stage in the whole run."""
        own = self.folder == self.name or self.folder.endswith(f"/{self.name}")
        return self.folder if own else f"{self.folder}/{self.name}"

    @property
    def alone(self) -> bool:
        """Whether the main process does the work while the others wait."""
        return self.resources.processes == 1

    @property
    def in_place(self) -> bool:
        """Whether it works in the run folder itself: its state must outlive the machine, or its files come whole."""
        return bool(self.working_files) or self.whole_files

    def missing(self, root: Path) -> list[str]:
        """Those of `needs` that do not exist yet."""
        return [name for name in self.needs if not (root / name).is_file()]

    def was_begun(self, root: Path) -> bool:
        """Whether it was done, or begun, with whatever inputs."""
        return self.name in read_record(root / self.folder)

    def standing(self, root: Path, inputs: Inputs) -> Standing:
        """How the stage stands with these inputs.

        Args:
            root: The run folder.
            inputs: What `inputs()` gave.
        """
        step = read_record(root / self.folder).get(self.name)
        if step is None:
            return Standing(StageState.NEW)
        changes = list(differences(step["inputs"], _plain(inputs)))
        changes += [f"{name}: missing or changed" for name in _damaged(root, step["outputs"])]
        if changes:
            return Standing(StageState.REFUSED if self.costly else StageState.CHANGED, tuple(changes))
        return Standing(StageState.KEPT if step["outputs"] else StageState.BEGUN)

    def is_done(self, root: Path, inputs: Inputs | None = None) -> bool:
        """Whether the recorded inputs are these and every output is as it was left.

        Args:
            root: The run folder.
            inputs: What `inputs()` gave; None calls it.

        Raises:
            ConfigError: The stage is costly and was done, or begun, with other inputs; or its outputs were
                changed afterwards.
        """
        state, changes = self.standing(root, self.inputs() if inputs is None else inputs)
        if state is StageState.REFUSED:
            raise ConfigError(
                "\n  ".join([f"{root}: {self.title} was run with other settings, data or files:", *changes]),
                hint="Nothing was changed. Choose another --out, or start this run over with --overwrite"
                " (one that several processes share: by removing its folder).",
            )
        return state is StageState.KEPT

    def note_start(self, root: Path, inputs: Inputs) -> None:
        """Record the inputs before the work, so that an interrupted stage is continued only with the same."""
        self._write(root, inputs, {})

    def note_end(self, root: Path, inputs: Inputs) -> None:
        """Record what the work left."""
        self._write(root, inputs, {name: sha256_of(root / name) for name in self.outputs})

    def lent_by(self, lenders: Iterable[Path], inputs: Inputs) -> Path | None:
        """The first of some run folders in which the same stage was done with these inputs; None without one.

        Only work that a device does is worth it; what is written down of it is each run's own.
        """
        if not self.resources.gpus:
            return None
        kept = (root for root in lenders if self.standing(root, inputs).state is StageState.KEPT)
        return next(kept, None)

    def take_over(self, lender: Path, root: Path, inputs: Inputs) -> None:
        """Have what the stage left in another run folder, as a second name of the same files where that is possible."""
        for name in self.outputs:
            second_name(lender / name, root / name)
        self.note_end(root, inputs)

    def _write(self, root: Path, inputs: Inputs, outputs: Mapping[str, str]) -> None:
        step = {
            "inputs_sha256": hash_of(inputs),
            "inputs": _plain(inputs),
            "outputs": outputs,
            "files": [*self.outputs, *self.working_files],
        }
        folder = root / self.folder
        record = {**read_record(folder), self.name: step}
        write_json(folder / RECORD, dict(sorted(record.items())), indent=2)  # whichever step ended first


def hash_of(inputs: Inputs) -> str:
    """Hash of a stage's inputs, the same whatever the order of their keys."""
    return hashlib.sha256(json.dumps(_plain(inputs), sort_keys=True).encode()).hexdigest()


def hashes_of(root: Path, files: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of some files by the names they are given.

    Args:
        root: The run folder.
        files: Name -> file, relative to the run folder.
    """
    return {name: sha256_of(root / file) for name, file in files.items()}


def read_record(folder: Path) -> dict[str, Any]:
    """The steps recorded in a folder; none where the record is missing or damaged."""
    return read_json_object(folder / RECORD)


def read_json_object(path: Path) -> dict[str, Any]:
    """What a file of the program's own says; nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def recorded_hash(root: Path, file: str) -> str | None:
    """SHA-256 of a file as the stage left it that wrote it; None for a file of no stage.

    Args:
        root: The run folder.
        file: Relative to it.
    """
    for folder in (root / file).parents:
        for step in read_record(folder).values():
            if file in step["outputs"]:
                return str(step["outputs"][file])
        if folder == root:
            break
    return None


def remove_recorded(root: Path) -> None:
    """Remove every file that a stage recorded as its own, and folders that are empty then; nothing else."""
    for record in sorted(root.rglob(RECORD)):
        for step in read_record(record.parent).values():
            for name in step["files"]:
                _remove_inside(root, root / name)
        record.unlink()
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Sentences naming each key whose value differs between two nested mappings."""
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}: was {_short(old)}, is now {_short(new)}"


def _plain(inputs: Mapping[str, Any]) -> Any:
    """The inputs as they come back from a file (tuples as lists, numbers as they are written)."""
    return json.loads(json.dumps(inputs))


def _damaged(root: Path, outputs: Mapping[str, str]) -> list[str]:
    paths = {name: root / name for name in outputs}
    return [name for name, path in paths.items() if not path.is_file() or sha256_of(path) != outputs[name]]


def _remove_inside(root: Path, path: Path) -> None:
    if path.resolve().is_relative_to(root.resolve()):
        path.unlink(missing_ok=True)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""A stage of a run: what it is computed from, what it leaves behind, and the record that says so.

A stage is done when its record (`done.json` in its folder, one entry per step there) names the same
inputs and the files it left are intact. Anything else is done again, except where that would throw away
hours of work: then the difference is told and the user decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scantling.data.io import sha256_of, write_json
from scantling.errors import ConfigError

RECORD = "done.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a run.

    Attributes:
        folder: Where the record goes, relative to the run folder (`members/cascade`).
        name: The step in that folder (`train`).
        inputs: Plain values that decide the result: settings, hashes of the files read.
        outputs: Files the step leaves, relative to the run folder.
        action: The work.
        working_files: Files the step keeps for itself while it works, such as training state.
        costly: The result is never thrown away silently: other inputs than the recorded ones are an error.
    """

    folder: str
    name: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    action: Callable[[], object]
    working_files: tuple[str, ...] = ()
    costly: bool = False

    @property
    def title(self) -> str:
        """Name of the stage in the whole run."""
        return f"{self.folder}/{self.name}" if self.folder != self.name else self.name

    @property
    def inputs_sha256(self) -> str:
        """Hash of the inputs, the same whatever the order of their keys."""
        return hashlib.sha256(json.dumps(_plain(self.inputs), sort_keys=True).encode()).hexdigest()

    def is_done(self, root: Path) -> bool:
        """Whether the recorded inputs are these and every output is as it was left.

        Raises:
            ConfigError: The stage is costly and was done, or begun, with other inputs; or its outputs were
                changed afterwards.
        """
        step = read_record(root / self.folder).get(self.name)
        if step is None:
            return False
        changes = list(differences(step["inputs"], _plain(self.inputs)))
        changes += [f"{name}: missing or changed" for name in _damaged(root, step["outputs"])]
        if changes and self.costly:
            raise ConfigError(
                "\n  ".join([f"{root}: {self.title} was run with other settings, data or files:", *changes]),
                hint="Nothing was changed. Choose another --out, or start this run over with --overwrite.",
            )
        return bool(step["outputs"]) and not changes

    def note_start(self, root: Path) -> None:
        """Record the inputs before the work, so that an interrupted stage is continued only with the same."""
        self._write(root, {})

    def note_end(self, root: Path) -> None:
        """Record what the work left."""
        self._write(root, {name: sha256_of(root / name) for name in self.outputs})

    def _write(self, root: Path, outputs: Mapping[str, str]) -> None:
        step = {
            "inputs_sha256": self.inputs_sha256,
            "inputs": _plain(self.inputs),
            "outputs": outputs,
            "files": [*self.outputs, *self.working_files],
        }
        folder = root / self.folder
        write_json(folder / RECORD, {**read_record(folder), self.name: step}, indent=2)


def read_record(folder: Path) -> dict[str, Any]:
    """The steps recorded in a folder; none where the record is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


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

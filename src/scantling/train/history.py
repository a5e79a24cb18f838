"""The course of a training: losses averaged between entries, and a file of entries that survives every crash.

`metrics.jsonl` holds one JSON object per line, appended as training goes; `metrics.csv` is the same as a table,
written anew after every epoch. A checkpoint remembers how many lines there were, and resuming cuts off what came
later, so that an interrupted run leaves the same history as an uninterrupted one. Times and speeds, which no two runs
share, are shown but never recorded.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from scantling.data.io import atomic_write
from scantling.train.rundir import explained_writes

JSONL_NAME = "metrics.jsonl"
CSV_NAME = "metrics.csv"

Logged: TypeAlias = dict[str, float | int | None]


class Meter:
    """Averages the losses since the last entry, so that one noisy step does not stand for all.

    Attributes:
        sums: Sum of each value since the last entry.
        counts: Number of steps in which each value occurred.
    """

    def __init__(
        self, sums: Mapping[str, float] | None = None, counts: Mapping[str, int] | None = None
    ) -> None:
        self.sums = dict(sums or {})
        self.counts = dict(counts or {})

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the values of one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Mean of each value over the steps in which it occurred, sorted by name."""
        return {name: self.sums[name] / self.counts[name] for name in sorted(self.sums)}

    @classmethod
    def merged(cls, meters: Iterable[Meter]) -> Meter:
        """Combine the meters of several processes into one."""
        merged = cls()
        for meter in meters:
            for name, value in meter.sums.items():
                merged.sums[name] = merged.sums.get(name, 0.0) + value
                merged.counts[name] = merged.counts.get(name, 0) + meter.counts[name]
        return merged


class History:
    """The entries of one run in its folder.

    Attributes:
        lines: Number of entries written so far.
    """

    def __init__(self, folder: Path, *, lines: int = 0) -> None:
        """Open the history, keeping only its first `lines` entries."""
        self._path = folder / JSONL_NAME
        self._table = folder / CSV_NAME
        self.lines = _cut(self._path, lines)

    def append(self, entry: Mapping[str, float | int | None]) -> None:
        """Add one entry; values that are not finite become null.

        Raises:
            TrainingError: The disk is full or the file cannot be written.
        """
        finite = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in entry.items()
        }
        line = json.dumps(finite, allow_nan=False)
        with explained_writes(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self.lines += 1

    def entries(self) -> list[Logged]:
        """Read all entries back."""
        return read_history(self._path)

    def write_table(self) -> None:
        """Write `metrics.csv` anew: one row per entry, a column for every value that occurs anywhere."""
        entries = self.entries()
        columns = dict.fromkeys(name for entry in entries for name in entry)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)
        with explained_writes(self._table):
            atomic_write(self._table, text.getvalue())

    def sync(self) -> None:
        """Force the entries onto the disk, so that no checkpoint counts entries that a power cut takes away."""
        if self._path.exists():
            with self._path.open("rb") as stream:
                os.fsync(stream.fileno())


def read_history(path: Path) -> list[Logged]:
    """Read `metrics.jsonl`; a last line that a crash tore is left out, a missing file is an empty history."""
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


def _cut(path: Path, lines: int) -> int:
    """Shorten the file to its first `lines` whole lines and return how many there are."""
    if not path.exists():
        return 0
    kept = 0
    end = 0
    with path.open("rb") as stream:
        for line in stream:
            if kept == lines or not line.endswith(b"\n"):
                break
            kept, end = kept + 1, end + len(line)
    if end < path.stat().st_size:
        os.truncate(path, end)
    return kept

"""What the doctor says: one line for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report.

    Attributes:
        topic: What was looked at.
        state: `ok`, `note` (works, but worth knowing) or `wrong` (scantling cannot work).
        found: What was found.
        remedy: What to do; None where nothing is to be done.
    """

    topic: str
    state: State
    found: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All lines.

    Attributes:
        checks: In the order of the report.
    """

    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """Whether scantling can work here."""
        return not self.wrong

    @property
    def wrong(self) -> tuple[Check, ...]:
        """The lines that say that it cannot."""
        return tuple(check for check in self.checks if check.state == "wrong")

    def to_text(self) -> str:
        """For people."""
        width = max(len(check.topic) for check in self.checks)
        return "\n".join(line for check in self.checks for line in _lines(check, width))

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"usable": self.usable, "checks": [asdict(check) for check in self.checks]}


def _lines(check: Check, width: int) -> Iterator[str]:
    yield f"{check.state:<5} {check.topic:<{width}}  {check.found}"
    if check.remedy:
        yield f"{'':<5} {'':<{width}}  -> {check.remedy}"

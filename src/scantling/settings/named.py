"""Values that a person gives by name: `train=0.8,val=0.2`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from scantling.errors import UsageError

T = TypeVar("T")


def by_name(pairs: Iterable[tuple[str, T]], option: str) -> dict[str, T]:
    """Values by their names, in the order given.

    Raises:
        UsageError: A value has no name, or two have the same.
    """
    found: dict[str, T] = {}
    for name, value in pairs:
        if not name:
            raise UsageError(f"{option}: the value {value} has no name", hint="Write NAME=VALUE.")
        if name in found:
            told = f"{option}: {name} is given twice, as {found[name]} and as {value}"
            raise UsageError(told, hint="Each name takes one value.")
        found[name] = value
    return found

"""Settings that may be `auto`: a value chosen from the data and the machine, and why."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

Number = TypeVar("Number", int, float)


class Choice(NamedTuple):
    """A value for a setting, and why."""

    value: Any
    reason: str


def resolved(value: Number | str) -> Number:
    """The number that a rule has put for `auto`.

    Raises:
        TypeError: It is still `auto`.
    """
    if isinstance(value, str):
        raise TypeError(f"{value!r} was to be resolved before")
    return value

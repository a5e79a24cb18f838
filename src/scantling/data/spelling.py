"""Names of files that are nearly right: other letter case, `%20` for a space, an umlaut as one sign or as two.

Data sets travel between Windows, macOS, Linux and web pages, and each spells a name in its own way. What is alike in
this sense is one file to a person; a reader says which file it found, or offers it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar
from urllib.parse import unquote

T = TypeVar("T")


def likeness(name: str) -> str:
    """What two spellings of one name have in common; never shown, only compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", unquote(name)).casefold())


def alike(name: str, among: Iterable[str]) -> str | None:
    """The one name among others that is this one in another spelling; None if there is none, or several."""
    wanted = likeness(name)
    found = [other for other in among if likeness(other) == wanted]
    return found[0] if len(found) == 1 else None


def other_spelling(name: str, meant: str) -> str:
    """The question to ask about a name that is there in another spelling; says so where the two look the same."""
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", meant)
    note = " It looks the same: an accented letter is written as one sign in one name, as two in the other."
    return f"Did you mean {meant!r}?{note if same else ''}"


class Names(Generic[T]):
    """Things by name, found under another spelling too where only one thing is meant."""

    def __init__(self, things: Mapping[str, T]) -> None:
        self.things = things
        self._spellings: dict[str, list[str]] = {}
        for name in things:
            self._spellings.setdefault(likeness(name), []).append(name)

    def spelled(self, name: str) -> str | None:
        """The name under which it is there: this one, or the only other spelling of it."""
        if name in self.things:
            return name
        found = self._spellings.get(likeness(name), [])
        return found[0] if len(found) == 1 else None

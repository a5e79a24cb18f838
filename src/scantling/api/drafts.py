"""Settings of a verb, put together from a file of tuned ones and what is typed. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scantling.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from scantling.settings.draft import Draft
    from scantling.settings.yaml import KeyPath

    Config = TypeVar("Config", bound=BaseModel)

_APPLIED_BY = {
    "suppress": "`scantling suppress RESULTS --tuned FILE` applies it, and `predict --tuned FILE` in a detector.",
    "ensemble": "`scantling ensemble A.json B.json --tuned FILE` applies it.",
    "semantic": "`scantling fuse-semantic RESULTS --maps MAPS --tuned FILE` applies it.",
}


def draft_of(
    model: type[Config], section: str, tuned: Path | None, overrides: Iterable[str]
) -> Draft[Config]:
    """Settings as a file of tuned ones has them in a section, replaced by the overrides."""
    from scantling.settings.draft import Draft

    draft = Draft.of(model, ())
    if tuned is not None:
        value, places = _tuned_section(tuned, section)
        draft = replace(draft, value=value, places=places, file=str(tuned))
    for override in overrides:
        draft = draft.with_override(override)
    return draft


def _tuned_section(file: Path, name: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """One section of a file of tuned settings, and where each of its values stands."""
    from scantling.data.io import read_bytes
    from scantling.settings.yaml import parse

    try:
        document = parse(read_bytes(file).decode("utf-8-sig"), file=str(file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file (byte {error.start} is not UTF-8)") from error
    sections: dict[str, Any] = document.value if isinstance(document.value, dict) else {}
    section = sections.get(name)
    if not isinstance(section, dict):
        found = [other for other in _APPLIED_BY if other in sections]
        hint = f"It has a section {found[0]!r}: {_APPLIED_BY[found[0]]}" if found else ""
        written = f"`scantling {'tune-semantic' if name == 'semantic' else 'tune'}` writes such a file."
        raise ConfigError(f"{file}: expected a section {name!r}", hint=hint or written)
    lines = {path[1:]: f"{file}: line {line}" for path, line in document.lines.items() if path[0] == name}
    return section, lines

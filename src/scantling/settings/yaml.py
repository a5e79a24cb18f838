"""YAML as a configuration needs it: plain values, no surprises, and the line of every key.

PyYAML only tokenises here; the values are built by this module, so no file can name a Python object.
Differences from PyYAML's `safe_load`, each of which has bitten users of other tools:

* `1e-4` is a number (YAML 1.2), `yes`, `no`, `on` and dates are text;
* a key given twice is an error, not a silent overwrite;
* tags (`!!python/...`, `!anything`) are refused;
* nesting and the number of values (aliases counted at each use) are bounded while reading;
* every error names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from scantling.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Where a value stands: mapping keys and list indices from the top."""

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 16
MAX_VALUES = 20_000

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | float | None] = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "false": False,
    ".nan": float("nan"),
    ".inf": float("inf"),
    "+.inf": float("inf"),
    "-.inf": float("-inf"),
}


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The values of a YAML text and where each of them was written.

    Attributes:
        value: Plain dictionaries, lists, strings, numbers, booleans and None.
        lines: Line (from 1) of each key path; a mapping's entry points at its key.
        texts: Each word as it was written, where its value is another: `1.10`, `007`, `null`.
    """

    value: Any
    lines: dict[KeyPath, int]
    texts: dict[KeyPath, str] = field(default_factory=dict)


def parse(text: str, *, file: str, number_keys: bool = False) -> YamlDocument:
    """Read one YAML document.

    Args:
        text: The document; an empty one has the value None.
        file: Name used in messages.
        number_keys: Numbers as keys are taken as the text they were written in, not refused.

    Raises:
        ConfigError: The text is not YAML, repeats a key, uses a tag, or exceeds the limits of this module.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{file}: longer than {MAX_CHARACTERS:,} characters; not a configuration file")
    try:
        return _ValueBuilder(file, yaml.parse(text, Loader=yaml.SafeLoader), number_keys).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        raise ConfigError(f"{file}: {place}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{file}: line {line}: not text: {error.reason} ({error.character!r})") from error


def scalar(text: str) -> str | int | float | bool | None:
    """Value of an unquoted word by the rules of YAML 1.2's core schema (decimal numbers only)."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= 20 else float(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def dump(value: Any) -> str:
    """Write plain values so that `parse` reads an equal value back; innermost collections on one line."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )


class _Dumper(yaml.SafeDumper):
    """Quotes every string that `scalar` would read as something else (`1e-4`, `1e5`)."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if scalar(text) is text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


@dataclass
class _ValueBuilder:
    """Builds values from PyYAML's flat stream of events (so that hostile nesting never recurses)."""

    file: str
    events: Iterator[yaml.Event]
    number_keys: bool = False
    texts: dict[KeyPath, str] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    count: int = 0

    def document(self) -> YamlDocument:
        value: Any = None
        seen = False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise self.error(event, "a second document ('---'); one file holds one configuration")
                seen = True
                value = self.build(next(self.events), ())
        return YamlDocument(value, self.lines, self.texts)

    def build(self, event: yaml.Event, path: KeyPath) -> Any:
        if len(path) > MAX_DEPTH:
            raise self.error(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self.repeat(event)
        before = self.count
        value = self.build_new(event, path)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self.anchors[event.anchor] = (value, self.count - before)
        return value

    def build_new(self, event: Any, path: KeyPath) -> Any:
        self.spend(event, 1)
        if getattr(event, "tag", None) not in (None, "!"):
            raise self.error(event, f"tag {event.tag!r} is not allowed; write a plain value")
        if isinstance(event, yaml.MappingStartEvent):
            return self.build_mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.build_list(path)
        plain = event.style is None and event.tag is None
        value = scalar(event.value) if plain else event.value
        if value is not event.value:
            self.texts[path] = event.value
        return value

    def build_mapping(self, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.build_key(event, path)
            if key in mapping:
                first = self.lines[(*path, key)]
                raise self.error(event, f"key {key!r} is given twice (first in line {first})")
            self.lines[(*path, key)] = _line(event)
            mapping[key] = self.build(next(self.events), (*path, key))
        return mapping

    def build_key(self, event: yaml.Event, path: KeyPath) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise self.error(event, "a key must be one word")
        key = self.build(event, path)
        self.texts.pop(path, None)  # the key's own, not that of the value it stands in
        if self.number_keys and type(key) in (int, float):
            return str(event.value)
        if not isinstance(key, str):
            raise self.error(event, f"key {event.value!r} is not text; write it in quotes")
        return key

    def build_list(self, path: KeyPath) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            self.lines[(*path, len(values))] = _line(event)
            values.append(self.build(event, (*path, len(values))))
        return values

    def repeat(self, event: yaml.AliasEvent) -> Any:
        if event.anchor not in self.anchors:
            raise self.error(event, f"alias *{event.anchor} has no anchor &{event.anchor} before it")
        value, size = self.anchors[event.anchor]
        self.spend(event, size)
        return value

    def spend(self, event: yaml.Event, values: int) -> None:
        self.count += values
        if self.count > MAX_VALUES:
            raise self.error(event, f"holds more than {MAX_VALUES:,} values (aliases counted at each use)")

    def error(self, event: yaml.Event, message: str) -> ConfigError:
        return ConfigError(f"{self.file}: line {_line(event)}: {message}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0

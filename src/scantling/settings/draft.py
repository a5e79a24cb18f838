"""From the text of a configuration file to a checked pydantic model, with messages a person can act on.

A `Draft` remembers where each value came from (line of the file, or the `--set` option that replaced
it). What pydantic objects to is told in the user's terms: place, key path, value found, what was
expected, and for an unknown key the nearest valid name or the section it belongs to. All problems are
told at once.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scantling.errors import ConfigError, did_you_mean
from scantling.settings import yaml as strict_yaml
from scantling.settings.yaml import KeyPath

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Draft(Generic[M]):
    """Values on their way to a model.

    Attributes:
        model: What they have to become.
        value: Plain values as read.
        places: Where each key path was written.
        file: Name of the file, for what has no line of its own.
    """

    model: type[M]
    value: dict[str, Any]
    places: Mapping[KeyPath, str]
    file: str

    @classmethod
    def parse(cls, model: type[M], text: str, *, file: str) -> Draft[M]:
        """Read YAML text.

        Raises:
            ConfigError: It is not YAML, breaks a limit of `strict_yaml`, or is not a mapping.
        """
        document = strict_yaml.parse(text, file=file)
        if not isinstance(document.value, dict):
            wanted = f"a mapping with the keys {', '.join(model.model_fields)}"
            raise ConfigError(f"{file}: expected {wanted}; found {_shown(document.value)}")
        places = {path: f"{file}: line {line}" for path, line in document.lines.items()}
        return cls(model, document.value, places, file)

    @classmethod
    def of(cls, model: type[M], overrides: Iterable[str]) -> Draft[M]:
        """Draft that consists of overrides alone.

        Raises:
            ConfigError: See `with_override`.
        """
        draft = cls(model, {}, {}, "--set")
        for override in overrides:
            draft = draft.with_override(override)
        return draft

    def with_override(self, override: str) -> Draft[M]:
        """The draft with one value replaced, as `--set KEY.PATH=VALUE` does; `*` is every entry with such a section.

        Raises:
            ConfigError: The text has another form, its value is not YAML, or the path enters a value or names
                an entry (such as a member) that the file does not have.
        """
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        origin = f"--set {override}"
        if not equals or not all(path):
            raise ConfigError(f"{origin}: write it as KEY.PATH=VALUE, for example seed=1")
        new = strict_yaml.parse(text, file=origin).value
        value, places = self.value, dict(self.places)
        for own in _expanded(value, self.model, path):
            value = _replaced(value, self.model, own, new, origin)
            places = {old: place for old, place in places.items() if old[: len(own)] != own} | {own: origin}
        return replace(self, value=value, places=places)

    def check(self) -> M:
        """The model.

        Raises:
            ConfigError: With one line per wrong, unknown or missing value.
        """
        problems = [f"{self.place(path)}: not a finite number" for path in _non_finite(self.value, ())]
        if not problems:
            try:
                return self.model.model_validate_json(json.dumps(self.value), strict=True)
            except ValidationError as error:
                problems = self.explain(error.errors())
        raise ConfigError("\n".join(problems))

    def explain(self, errors: Iterable[ErrorDetails]) -> list[str]:
        """One line per place: a union's alternatives are joined, and give way to errors further inside."""
        by_path: dict[KeyPath, list[ErrorDetails]] = {}
        for error in errors:
            by_path.setdefault(_path_in(self.value, error), []).append(error)
        return [
            self.sentence(path, told) for path, told in by_path.items() if _is_innermost(path, told, by_path)
        ]

    def sentence(self, path: KeyPath, errors: list[ErrorDetails]) -> str:
        """What is wrong at one place."""
        kinds, place = {error["type"] for error in errors}, self.place(path)
        if "extra_forbidden" in kinds:
            return f"{place}: unknown key{self.key_hint(path)}"
        if "missing" in kinds:
            return f"{place}: this key is missing"
        if any("[key]" in error["loc"] for error in errors):
            return f"{place}: {_expected(errors).replace('String', 'a name here')}"
        return f"{place}: found {_shown(_value_at(self.value, path))}; {_expected(errors)}"

    def place(self, path: KeyPath) -> str:
        """File and line (or option) of a key path, of what holds it or of what it holds, then the path itself."""
        above = (path[:n] for n in range(len(path), 0, -1) if path[:n] in self.places)
        below = (place for place in self.places if place[: len(path)] == path)
        nearest = next(itertools.chain(above, below), ())
        return ": ".join(part for part in (self.places.get(nearest, self.file), _dotted(path)) if part)

    def key_hint(self, path: KeyPath) -> str:
        """What an unknown key may have meant: a similar one here, or the same one in another section."""
        annotation, section = _annotation_at(self.model, path[:-1]), _value_at(self.value, path[:-1])
        key, siblings = str(path[-1]), _keys(annotation, section)
        if key.split(":", maxsplit=1)[0] in siblings:
            return "; YAML wants a space after the colon"
        elsewhere = [name for name, keys in _sections(self.model, "") if key in keys]
        if elsewhere and key not in _keys(annotation):
            return f"; it belongs to {' or '.join(elsewhere)}"
        return f"{did_you_mean(key, siblings)} (keys here: {', '.join(siblings)})"


def _expanded(section: Mapping[str, Any], annotation: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The paths that one with `*` stands for: those of the entries whose section named after it is there, not null."""
    key, rest = path[0], path[1:]
    if not rest:
        return [path]
    keys: list[str] = [key]
    if key == "*" and _is_mapping(annotation):
        entries_of = {name: entry for name, entry in section.items() if isinstance(entry, dict)}
        keys = [name for name, entry in entries_of.items() if entry.get(rest[0]) is not None]
    found = []
    for name in keys:
        inner = section.get(name)
        entries = inner if isinstance(inner, dict) else {}
        found += [(name, *tail) for tail in _expanded(entries, _step(annotation, name), rest)]
    return found


def _replaced(
    section: Mapping[str, Any], annotation: Any, path: tuple[str, ...], new: Any, origin: str
) -> dict[str, Any]:
    """Copy of a section with one value exchanged; optional sections on the way are created."""
    key, rest = path[0], path[1:]
    if not rest:
        return {**section, key: new}
    if _is_mapping(annotation) and key not in section:
        there = ", ".join(section)
        raise ConfigError(f"{origin}: there is no {key!r}{did_you_mean(key, section)} (there is: {there})")
    inner = section.get(key)
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(f"{origin}: {key!r} is a value, not a section")
    return {**section, key: _replaced(inner or {}, _step(annotation, key), rest, new, origin)}


def _non_finite(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _non_finite(inner, (*path, key))


def _path_in(value: Any, error: ErrorDetails) -> KeyPath:
    """Where an error stands in the file: pydantic's location without the names of union alternatives."""
    path: list[str | int] = []
    for part in error["loc"]:
        in_mapping = isinstance(value, dict) and part in value
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_mapping or in_list:
            path.append(part)
            value = value[part]
    return (*path, error["loc"][-1]) if error["type"] == "missing" else tuple(path)


def _is_innermost(path: KeyPath, errors: Iterable[ErrorDetails], others: Iterable[KeyPath]) -> bool:
    """Whether no error stands further inside; an error about a key itself counts in any case."""
    about_key = any("[key]" in error["loc"] for error in errors)
    return about_key or not any(other != path and other[: len(path)] == path for other in others)


def _value_at(value: Any, path: KeyPath) -> Any:
    for part in path:
        value = value[part]
    return value


def _expected(errors: Iterable[ErrorDetails]) -> str:
    """Pydantic's wishes as one clause; a union's alternatives are joined with "or"."""
    told = dict.fromkeys(error["msg"].removeprefix("Value error, ") for error in errors)
    wanted = [text.removeprefix("Input should be ").replace("an object", "a mapping") for text in told]
    prefix = "expected " if all(text.startswith("Input should be") for text in told) else ""
    return prefix + ", or ".join(wanted)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _annotation_at(annotation: Any, path: KeyPath) -> Any:
    for part in path:
        annotation = _step(annotation, str(part))
    return annotation


def _step(annotation: Any, key: str) -> Any:
    """Type of the value under a key of a section or mapping; None where the key leads nowhere."""
    model = _model(annotation)
    if _is_mapping(annotation):
        return get_args(annotation)[1]
    return model.model_fields[key].annotation if model and key in model.model_fields else None


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model(part))), None)


def _is_mapping(annotation: Any) -> bool:
    """Whether a type is `dict[str, Section]`: entries named by the user."""
    return get_origin(annotation) is dict and _model(annotation) is not None


def _keys(annotation: Any, value: object = None) -> list[str]:
    """Keys of a section; one whose keys depend on its other values says them itself (`known_keys`)."""
    model = _model(annotation)
    known: Callable[[object], list[str]] | None = getattr(model, "known_keys", None)
    if known is not None:
        return known(value)
    return list(model.model_fields) if model else []


def _sections(annotation: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """Every section of a model with its keys; the user's names are shown as NAME."""
    if _is_mapping(annotation):
        name = f"{name}.NAME"
    model = _model(annotation)
    yield name or "the top level", _keys(annotation)
    for key, info in model.model_fields.items() if model else ():
        if _model(info.annotation):
            yield from _sections(info.annotation, f"{name}.{key}" if name else key)

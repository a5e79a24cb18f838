"""What tuning found: a table for people, and the file `tuned.yaml` that prediction and ensembles take.

    suppress: {method: ..., iou_threshold: ..., sigma: ..., min_score: ..., max_per_image: ...}
    ensemble: {method: ..., weights: ..., ...}
    semantic: {mode: ..., score_threshold: ..., ...}

Any section may be missing. The section `suppress` holds only what suppression is about: the score threshold and
the number of candidates stay those of the detector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from scantling.combine.ensemble import EnsembleConfig
from scantling.combine.selection import Selection, Verdict
from scantling.combine.semantic import SemanticConfig
from scantling.data.io import atomic_write, read_bytes
from scantling.errors import ConfigError, did_you_mean
from scantling.evaluate.bootstrap import Interval
from scantling.models.suppression import SuppressConfig
from scantling.settings import yaml as strict_yaml

Config = TypeVar("Config", bound=BaseModel)

SUPPRESS_KEYS = frozenset({"method", "iou_threshold", "sigma", "min_score", "max_per_image"})
_EQUAL = 1e-9  # AP that differs by less does not differ
_ALL = "(all)"
_COLUMNS = "{:<{width}}  {:>7}  {:>6}  {:>6}  {:>7}  {:<18}  {:<8}  {}"
_TITLES = ("category", "objects", "before", "after", "gain", "95 % interval", "decision", "best setting")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedRow:
    """One line of the table.

    Attributes:
        category: Name; None for one setting for all, by mean AP.
        num_objects: Truths.
        setting: The best one on all images, in words.
        before: AP with the setting it is compared with: the one in use, or for a category the common one.
        after: AP with the best one, on the very images that chose it.
        gain: Cross-validated difference.
        interval: 95 % interval of the gain.
        kept: Whether the best setting is used.
        reason: Why, or why not.
    """

    category: str | None
    num_objects: int
    setting: str
    before: float | None
    after: float | None
    gain: float | None
    interval: Interval | None
    kept: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(Generic[Config]):
    """Settings found, and what speaks for them.

    Attributes:
        config: To be used.
        rows: One setting for all categories first, then each category's own.
        before: Mean AP of the whole with the settings in use; None where there is no truth.
        after: The same with `config`, on the images that chose it.
    """

    config: Config
    rows: tuple[TunedRow, ...]
    before: float | None
    after: float | None

    def to_text(self) -> str:
        """A table for people."""
        width = max(len(_TITLES[0]), *(len(row.category or _ALL) for row in self.rows))
        lines = [_COLUMNS.format(*_TITLES, width=width), *(_line(row, width) for row in self.rows)]
        own = [row.category for row in self.rows if row.category is not None and row.kept]
        told = f"{len(own)} of {len(self.rows) - 1} categories have a setting of their own"
        return "\n".join([*lines, "", f"{told}; mean AP {_number(self.before)} -> {_number(self.after)}"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "config": self.config.model_dump(mode="json"),
            "rows": [asdict(row) for row in self.rows],
            "before": self.before,
            "after": self.after,
        }

    def or_base(self, base: Config) -> Tuned[Config]:
        """This, or the settings in use where all that was found is worse together than these."""
        if self.before is None or self.after is None or self.after >= self.before - _EQUAL:
            return self
        rows = [
            replace(row, kept=False, reason="worse together with the others") if row.kept else row
            for row in self.rows
        ]
        return replace(self, config=base, rows=tuple(rows), after=self.before)


def rows_of(
    selection: Selection, class_names: Sequence[str], settings: Sequence[Sequence[str]]
) -> tuple[TunedRow, ...]:
    """The table of a selection.

    Args:
        selection: About S settings.
        class_names: K category names in label order.
        settings: K + 1 times S words for the settings; the last are for all categories.
    """
    overall = _row(None, selection.overall, settings[-1])
    own = zip(class_names, selection.by_category, settings, strict=False)
    return (overall, *(_row(name, verdict, words) for name, verdict, words in own))


def _row(category: str | None, verdict: Verdict, words: Sequence[str]) -> TunedRow:
    return TunedRow(
        category=category,
        num_objects=verdict.num_objects,
        setting=words[verdict.setting],
        before=verdict.before,
        after=verdict.after,
        gain=verdict.gain,
        interval=verdict.interval,
        kept=verdict.kept,
        reason=verdict.reason,
    )


def _line(row: TunedRow, width: int) -> str:
    found = row.interval
    return _COLUMNS.format(
        row.category or _ALL,
        row.num_objects,
        _number(row.before),
        _number(row.after),
        _number(row.gain, "+"),
        "-" if found is None else f"[{found[0]:+.3f}, {found[1]:+.3f}]",
        "used" if row.kept else "not used",
        f"{row.setting} ({row.reason})",
        width=width,
    )


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


# ---------------------------------------------------------------- the file


class TunedSettings(BaseModel):
    """The content of a file of tuned settings.

    Attributes:
        suppress: Settings of suppression; those that the file does not name are the defaults and mean nothing.
        ensemble: Settings of an ensemble.
        semantic: Settings of the fusion of masks with score maps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suppress: SuppressConfig | None = None
    ensemble: EnsembleConfig | None = None
    semantic: SemanticConfig | None = None

    def suppression_over(self, base: SuppressConfig) -> SuppressConfig:
        """Settings of suppression with those that the file names replaced; without such a section as they are."""
        if self.suppress is None:
            return base
        given = {name: getattr(self.suppress, name) for name in self.suppress.model_fields_set}
        return base.model_copy(update=given)

    def suppression_overrides(self, file: str) -> list[str]:
        """The same as `KEY=VALUE` texts for settings of prediction.

        Args:
            file: Name for the message.

        Raises:
            ConfigError: The file has no section `suppress`.
        """
        if self.suppress is None:
            raise ConfigError(
                f"{file}: expected a section 'suppress'",
                hint="`scantling tune` with one file of candidates writes it; `ensemble` takes the section 'ensemble'.",
            )
        given = self.suppress.model_dump(mode="json", exclude_unset=True)
        return [f"suppress.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]


_KEYS = {
    "": tuple(TunedSettings.model_fields),
    "suppress": tuple(SuppressConfig.model_fields),
    "ensemble": tuple(EnsembleConfig.model_fields),
    "semantic": tuple(SemanticConfig.model_fields),
}


def write_tuned(
    path: Path | str,
    *,
    suppress: SuppressConfig | None = None,
    ensemble: EnsembleConfig | None = None,
    semantic: SemanticConfig | None = None,
    comment: str = "",
) -> None:
    """Write a file of tuned settings, atomically.

    Args:
        path: The YAML.
        suppress: Written without what belongs to the detector.
        ensemble: Written whole.
        semantic: Written whole.
        comment: Text for people, at the top.

    Raises:
        UsageError: The file cannot be written.
    """
    content: dict[str, Any] = {}
    if suppress is not None:
        content["suppress"] = suppress.model_dump(mode="json", include=set(SUPPRESS_KEYS))
    if ensemble is not None:
        content["ensemble"] = ensemble.model_dump(mode="json")
    if semantic is not None:
        content["semantic"] = semantic.model_dump(mode="json")
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    atomic_write(path, head + strict_yaml.dump(content))


def read_tuned(path: Path | str) -> TunedSettings:
    """Read a file of tuned settings.

    Raises:
        DataError: There is no such file, or it is not text.
        ConfigError: It is not YAML, or holds something else; with every problem.
    """
    file = str(path)
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file (byte {error.start} is not UTF-8)") from error
    document = strict_yaml.parse(text, file=file)
    if not isinstance(document.value, dict) or not document.value:
        raise ConfigError(
            f"{file}: expected the sections suppress, ensemble or semantic, found {document.value!r:.80}",
            hint="`scantling tune` writes such a file.",
        )
    try:
        return TunedSettings.model_validate(document.value)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(file, document, error))) from error


def _problems(file: str, document: strict_yaml.YamlDocument, error: ValidationError) -> list[str]:
    """One line about each wrong place: the innermost ones, where pydantic tells all alternatives of a union."""
    told: dict[strict_yaml.KeyPath, ErrorDetails] = {}
    for details in error.errors():
        told.setdefault(_path_in(document.value, details["loc"]), details)
    inner = [path for path in told if not any(other[: len(path)] == path != other for other in told)]
    return [f"{file}: line {document.lines[path]}: {_sentence(path, told[path])}" for path in inner]


def _path_in(value: Any, location: Sequence[str | int]) -> strict_yaml.KeyPath:
    """Where an error stands in the file: its location without the names of union alternatives."""
    path: list[str | int] = []
    for part in location:
        if isinstance(value, dict) and part in value:
            path.append(part)
            value = value[part]
    return tuple(path)


def _sentence(path: strict_yaml.KeyPath, details: ErrorDetails) -> str:
    key = ".".join(map(str, path))
    if details["type"] == "extra_forbidden":
        section = _KEYS.get(str(path[0]), _KEYS[""])
        return f"{key}: unknown key{did_you_mean(str(path[-1]), section)}"
    return f"{key}: found {details['input']!r:.80}; {details['msg'][0].lower()}{details['msg'][1:]}"

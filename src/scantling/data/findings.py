"""The findings of the input layer: every code, what it means, and how severe it is under which policy.

| kind | by default | with `skip_invalid` | with `strict` |
|---|---|---|---|
| structural: the file cannot be trusted | error | error | error |
| geometry: one record is unusable | error | warning, the record is dropped and counted | error |
| suspicious: usable, but probably not meant | warning | warning | error |
| note: worth knowing | info | info | info |

Codes are stable: scripts may match on them. `docs/findings.md` is this table, written by `codes_table`.
"""

from __future__ import annotations

import logging
import reprlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from scantling.data.finding_codes import CODES
from scantling.data.finding_kinds import Kind
from scantling.errors import DataError, Finding, Severity

__all__ = [
    "CODES",
    "FindingLog",
    "Kind",
    "Policy",
    "RecordLog",
    "codes_table",
    "name_some",
    "refuse",
    "summarise",
    "tell",
    "tell_warnings",
]

SHOWN_PER_CODE = 3
"""Warnings of one code that are logged one by one."""

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How findings weigh: see the table at the top of this module.

    Attributes:
        skip_invalid: Unusable records are dropped and counted instead of stopping the work.
        strict: Warnings stop the work; wins over `skip_invalid`.
    """

    skip_invalid: bool = False
    strict: bool = False

    def severity(self, kind: Kind) -> Severity:
        """Severity of a finding of this kind."""
        if kind is Kind.NOTE:
            return Severity.INFO
        lenient = kind is Kind.SUSPICIOUS or (kind is Kind.GEOMETRY and self.skip_invalid)
        return Severity.WARNING if lenient and not self.strict else Severity.ERROR


class FindingLog:
    """Collects everything there is to say about one file, then says it all at once."""

    def __init__(self, file: str, policy: Policy) -> None:
        self.file = file
        self.policy = policy
        self._findings: list[Finding] = []

    def add(  # noqa: PLR0913 - the fields of a finding
        self,
        code: str,
        message: str,
        *,
        path: str | None = None,
        id: int | str | float | None = None,  # noqa: A002 - named as in Finding
        value: object = None,
        hint: str | None = None,
        kind: Kind | None = None,
        id_of: str | None = None,
    ) -> None:
        """Record one finding.

        Args:
            code: A key of `CODES`.
            message: What was found, in one sentence, with the numbers that matter.
            path: Place inside the file.
            id: Id of the record concerned.
            value: What was found there; long values are shortened.
            hint: What to do, if more can be said than the code's general remedy.
            kind: Overrides the code's own kind where the situation decides.
            id_of: What the id is that of, if not of the record concerned.
        """
        known = CODES[code]
        finding = Finding(
            code=code,
            severity=self.policy.severity(kind or known.kind),
            message=message,
            file=self.file,
            path=path,
            id=id,
            value=_short(value),
            hint=hint or known.remedy or None,
            id_of=id_of,
        )
        self._findings.append(finding)

    def record(
        self,
        path: str,
        id: int | str | float | None = None,  # noqa: A002
        *,
        id_of: str | None = None,
    ) -> RecordLog:
        """A view for the findings of one record; the id is its own, or that of an `id_of` (`image`)."""
        return RecordLog(self, path, id, id_of)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, errors first, otherwise in the order they were made."""
        return tuple(sorted(self._findings, key=lambda finding: _ORDER[finding.severity]))

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return any(finding.severity is Severity.ERROR for finding in self._findings)

    def raise_if_failed(self) -> None:
        """Raise all findings together if one of them is an error.

        Raises:
            DataError: With every finding, errors first.
        """
        if self.failed:
            raise DataError(f"{self.file}: {summarise(self._findings)}", findings=self.findings)


class RecordLog:
    """Findings of one record: fills in its place and id, and remembers whether the record is unusable."""

    __slots__ = ("_id", "_id_of", "_log", "_path", "faulty")

    def __init__(
        self,
        log: FindingLog,
        path: str,
        id: int | str | float | None,  # noqa: A002
        id_of: str | None = None,
    ) -> None:
        self._log = log
        self._path = path
        self._id = id
        self._id_of = id_of
        self.faulty = False

    def add(
        self, code: str, message: str, *, field: str = "", value: object = None, hint: str | None = None
    ) -> None:
        """Record a finding about this record or one of its fields; see `FindingLog.add`."""
        path = f"{self._path}.{field}" if field else self._path
        self.faulty = self.faulty or CODES[code].kind in (Kind.STRUCTURAL, Kind.GEOMETRY)
        self._log.add(code, message, path=path, id=self._id, value=value, hint=hint, id_of=self._id_of)


def refuse(
    code: str,
    file: str,
    message: str,
    *,
    path: str | None = None,
    value: object = None,
    hint: str | None = None,
) -> NoReturn:
    """Raise one finding at once, where going on is impossible.

    Raises:
        DataError: Always; its only finding is an error with this code.
    """
    log = FindingLog(file, Policy())
    log.add(code, message, path=path, value=value, hint=hint, kind=Kind.STRUCTURAL)
    raise DataError(f"{file}: cannot be used", findings=log.findings) from None


def summarise(findings: tuple[Finding, ...] | list[Finding]) -> str:
    """Count findings by severity and code: `2 errors (box-size 2), 1 warning (category-unused 1)`."""
    parts = []
    for severity in Severity:
        codes = Counter(finding.code for finding in findings if finding.severity is severity)
        if codes:
            plural = "s" if codes.total() > 1 and severity is not Severity.INFO else ""
            listed = ", ".join(f"{code} {count}" for code, count in codes.most_common())
            parts.append(f"{codes.total()} {severity.value}{plural} ({listed})")
    return ", ".join(parts) or "no findings"


def name_some(names: list[str] | list[int | str | float], limit: int = _MAX_NAMED) -> str:
    """The first few of a list for a message: `a.jpg, b.jpg and 17 more`."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def tell(findings: Iterable[Finding | str], logger: logging.Logger) -> None:
    """Log every finding once, at the level of its severity; as text, it is what `str` makes of one."""
    for finding in findings:
        severity, _, text = str(finding).partition(" ")
        if severity == Severity.INFO.value:
            logger.info("%s", text)
        else:
            logger.warning("%s", text if severity == Severity.WARNING.value else finding)


def tell_warnings(findings: Iterable[Finding], logger: logging.Logger, *, rest: str) -> None:
    """Log warnings, a few of each code; `rest` says where the others are to be seen."""
    told: Counter[str] = Counter()
    for finding in findings:
        if finding.severity is Severity.WARNING:
            told[finding.code] += 1
            if told[finding.code] <= SHOWN_PER_CODE:
                tell([finding], logger)
    for code, count in told.items():
        if count > SHOWN_PER_CODE:
            logger.warning("[%s] %d more of these, %s", code, count - SHOWN_PER_CODE, rest)


def codes_table() -> str:
    """The page `docs/findings.md`: one row per code."""
    title = "# Findings\n\nWhat scantling says about input it cannot or should not use as it is. "
    policy = (__doc__ or "").split("\n\n")[1]
    intro = "The code is stable; a script may match on it. The kind decides the severity:\n\n" + policy
    head = "| code | kind | meaning | what to do |\n|---|---|---|---|"
    rows = [f"| `{name}` | {code.kind} | {code.meaning} | {code.remedy} |" for name, code in CODES.items()]
    return title + intro + "\n\n" + "\n".join([head, *rows]) + "\n"


def _short(value: object) -> object:
    """The value itself if it is small and plain, else a shortened text of it."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 128):
        return value
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "..."
    if isinstance(value, list) and len(value) <= 6 and all(isinstance(v, bool | int | float) for v in value):
        return value
    return reprlib.repr(value)

"""What a finding's code says: how grave it is, what it means, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a finding means for the record it is about; `data.findings` says how severe that is."""

    STRUCTURAL = "structural"
    GEOMETRY = "geometry"
    SUSPICIOUS = "suspicious"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Code:
    """Kind, meaning and general remedy of one code."""

    kind: Kind
    meaning: str
    remedy: str = ""

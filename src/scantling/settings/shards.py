"""How a person shares out a prediction of many images."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from scantling.errors import UsageError
from scantling.settings.paths import is_url

DEFAULT_SIZE = 500
"""Images of a shard: enough that starting one costs nothing, few enough that little is lost when one is cut short."""


@dataclass(frozen=True, slots=True)
class PartOfShards:
    """Every so many-th shard: what one of several machines does.

    Attributes:
        number: Which of them, from 1.
        count: How many there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> PartOfShards:
        """`I/N`, such as `2/4`.

        Raises:
            UsageError: It is something else, or I is not in 1..N.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            hint = "Write I/N with I from 1 to N: --shard 1/4 on the first of four machines."
            raise UsageError(f"--shard {text}: expected such as 2/4", hint=hint)
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, num_shards: int) -> range:
        """Indices of its shards."""
        return range(self.number - 1, num_shards, self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Where a prediction in shards goes, and how it is shared out.

    Attributes:
        folder: For the plan, the shards and the logs; that of an earlier prediction is gone on with.
        size: Images of a shard; None takes that of the plan in the folder, or 500.
        part: Which shards this command does.
        resume: Go on as planned, without looking for images anew.
        retry_unread: Do those shards again, too, some of whose images could not be read.
    """

    folder: Path
    size: int | None = None
    part: PartOfShards = PartOfShards()
    resume: bool = False
    retry_unread: bool = False

    @classmethod
    def of(cls, given: GivenShards) -> Shards:
        """Shards as they were given."""
        return given if isinstance(given, Shards) else cls.in_folder(given)

    @classmethod
    def in_folder(
        cls,
        folder: str | Path,
        *,
        size: int | None = None,
        part: str = "1/1",
        resume: bool = False,
        retry_unread: bool = False,
    ) -> Shards:
        """Shards as a person says them.

        Args:
            folder: On this machine, or on a drive that several have in common.
            size: See the attributes.
            part: `I/N`.
            resume: See the attributes.
            retry_unread: See the attributes.

        Raises:
            UsageError: The folder is a URL, a number is below 1, or the part is none.
        """
        if is_url(str(folder)):
            hint = "Copy the folder there when it is done; SOURCE may be a URL."
            raise UsageError(
                f"--shards {folder}: shards need a folder on this machine or a common drive", hint=hint
            )
        if size is not None and size < 1:
            raise UsageError(f"--shard-size {size}: expected a whole number from 1 on")
        own = PartOfShards.parse(part)
        return cls(folder=Path(folder), size=size, part=own, resume=resume, retry_unread=retry_unread)

    @property
    def command(self) -> str:
        """What goes on with them."""
        part = f" --shard {self.part}" if self.part.count > 1 else ""
        return f"scantling predict --shards {shlex.quote(str(self.folder))} --resume{part}"


GivenShards: TypeAlias = str | Path | Shards
"""A folder of shards as a person names it."""

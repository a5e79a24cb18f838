"""Which process holds a lease, and whether it is certain that it has ended."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        space: Where that number counts: a container numbers its processes anew.
        began: When it began, as the machine's kernel counts; processes with the same number differ in it.
        token: Of its own, whatever the other facts are.
    """

    host: str
    pid: int
    space: str
    began: str
    token: str

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=pid,
            space=_pid_space(),
            began=_began(pid) or "",
            token=uuid.uuid4().hex[:12],
        )

    @property
    def title(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """Whether it is certain that it has ended; False where this cannot be known from here."""
        if self.host != socket.gethostname() or not self.space or self.space != _pid_space():
            return False
        return _began(self.pid) != self.began


def _pid_space() -> str:
    try:
        return (
            str(Path("/proc/self/ns/pid").readlink())
            + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        )
    except OSError:  # not Linux: whether another process lives is not looked up
        return ""


def _began(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]

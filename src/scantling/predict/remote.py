"""Images that lie elsewhere: whatever fsspec has a protocol for (`s3://`, `gs://`, `https://`, `memory://`).

A place is looked through by its names alone; an image is fetched into a file of its own when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from scantling.data.findings import FindingLog, Policy
from scantling.errors import DataError, ScantlingError, UsageError
from scantling.settings.paths import is_url

LOCAL_PROTOCOLS = ("file", "local")

FileSystem = Any
"""Of fsspec, which has no types."""


def without_file_protocol(source: str) -> str:
    """The path in `file:///photos`; anything else as it is."""
    protocol, _, path = source.partition("://")
    return path if is_url(source) and protocol in LOCAL_PROTOCOLS else source


def open_url(url: str) -> tuple[FileSystem, str]:
    """What reads a URL, and the path in there.

    Raises:
        UsageError: There is no such protocol, or its package is not installed.
    """
    protocol = url.partition("://")[0]
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("err", str(error))
        hint = f"{package}, in the Python in which scantling is installed."
        raise UsageError(
            f"{url}: the package that reads {protocol}:// is not installed", hint=hint
        ) from error
    except ValueError as error:
        hint = f"There are {', '.join(name for name in fsspec.available_protocols() if name.isalnum())}."
        raise UsageError(f"{url}: there is no protocol {protocol}://", hint=hint) from error
    return system, path


@contextmanager
def explained_reads(url: str) -> Iterator[None]:
    """Turn what the library behind a protocol raises into a message that names the URL.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        yield
    except ScantlingError:
        raise
    except Exception as error:
        told = f"{url}: cannot be read: {type(error).__name__}: {error}"
        raise UsageError(told, hint="Check the URL, the network and your rights there.") from error


def fetch(url: str, to: Path) -> None:
    """Copy the file at a URL into a local one.

    Raises:
        UsageError: The package for the protocol is not installed, or there is no such protocol.
        DataError: Codes `image-missing`, `image-unreachable`.
    """
    system, path = open_url(url)
    try:
        system.get_file(path, str(to))
    except FileNotFoundError:
        _refuse("image-missing", url, "there is no such file")
    except Exception as error:  # noqa: BLE001 - whatever the library behind the protocol raises
        _refuse("image-unreachable", url, f"cannot be fetched: {type(error).__name__}: {error}")


def store(file: Path, url: str) -> None:
    """Copy a local file to a URL, where it is seen when all of it is there.

    Raises:
        UsageError: It cannot be written.
    """
    system, path = open_url(url)
    try:
        system.makedirs(path.rpartition("/")[0] or "/", exist_ok=True)
        system.put_file(str(file), path)
    except Exception as error:  # whatever the library behind the protocol raises
        told = f"{url}: cannot be written: {type(error).__name__}: {error}"
        raise UsageError(told, hint="Check the URL, the network and your rights there.") from error


def _refuse(code: str, url: str, message: str) -> None:
    log = FindingLog(url, Policy(skip_invalid=True))
    log.add(code, message)
    raise DataError(f"{url}: {message}", findings=log.findings) from None

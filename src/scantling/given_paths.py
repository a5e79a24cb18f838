"""Paths that a person typed, judged before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from scantling.errors import UsageError, did_you_mean


def require_existing(path: Path, what: str) -> None:
    """Refuse a path that leads nowhere before anything heavy is loaded.

    Raises:
        UsageError: There is nothing at that path; names one that is nearly alike.
    """
    if not path.exists():
        folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
        names = [entry.name for entry in folder.iterdir()] if folder == path.absolute().parent else []
        raise UsageError(f"{path}: there is no such {what}{did_you_mean(path.name, names)}")


def folder_of(text: str | Path) -> Path:
    """The path in `FOLDER:SPLIT`; any other text is a path as it is."""
    path, folder = Path(text), Path(str(text).rpartition(":")[0])
    return folder if not path.exists() and ":" in str(text) and folder.is_dir() else path


def require_folder(path: Path, what: str) -> None:
    """Refuse what is no folder.

    Raises:
        UsageError: There is nothing at that path, or a file.
    """
    require_existing(path, what)
    if not path.is_dir():
        raise UsageError(
            f"{path}: a {what} is a folder, this is a file", hint="Give the folder that holds it."
        )

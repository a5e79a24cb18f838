"""Paths that a person typed, judged before anything heavy is loaded."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from scantling.errors import UsageError, did_you_mean

ImageIds: TypeAlias = Literal["auto", "id", "file"]
"""What a number as `image_id` is: the data set's id, the number that the file is called by, or to be found out."""

MapValues: TypeAlias = Literal["auto", "scores", "foreground", "ids", "positions"]
"""What the numbers in another tool's maps of pixels are: scores (0 to the full range of the file, one plane for all
categories or one for each); 0 for the ground and anything else for the foreground of all; category ids of the data set;
1..K in the order of its categories; or to be found out."""

_OTHER_OUT = "Nothing was changed. Choose another file for --out."


def is_url(text: str) -> bool:
    """Whether a source is a URL: a protocol, then `://`."""
    protocol, slashes, _ = text.partition("://")
    return bool(slashes) and protocol.replace("+", "").isalnum()


def is_pattern(text: str) -> bool:
    """Whether a source has wildcards, and is not the name of a file that has them in it."""
    return any(letter in text for letter in "*?[") and not (Path(text).exists() or is_url(text))


def require_source(source: str | Path) -> None:
    """Refuse a path to images that leads nowhere; patterns and URLs are looked at later.

    Raises:
        UsageError: As `require_existing`.
    """
    if not (is_url(str(source)) or is_pattern(str(source))):
        require_existing(folder_of(source), "source")


def require_existing(path: Path, what: str) -> None:
    """Refuse a path that leads nowhere before anything heavy is loaded.

    Raises:
        UsageError: There is nothing at that path; names one that is nearly alike.
    """
    if not path.exists():
        folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
        names = [entry.name for entry in folder.iterdir()] if folder == path.absolute().parent else []
        raise UsageError(f"{path}: there is no such {what}{did_you_mean(path.name, names)}")


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """A results file, and what else a person says about it.

    Attributes:
        path: The file.
        image_ids: What numbers as `image_id` are.
        name: What its detector is called among the members of an ensemble; None takes it from the path.
    """

    path: Path
    image_ids: ImageIds = "auto"
    name: str | None = None

    @classmethod
    def of(cls, given: GivenResults) -> ResultsFile:
        """A file as it was given."""
        return given if isinstance(given, ResultsFile) else cls(Path(given))

    @classmethod
    def member(cls, given: GivenResults, image_ids: ImageIds = "auto") -> ResultsFile:
        """`FILE` or `NAME=FILE`.

        Raises:
            UsageError: The name cannot be one.
        """
        if isinstance(given, ResultsFile):
            return given
        name, equals, file = str(given).partition("=")
        if not equals or not name or not file or "/" in name or Path(given).exists():
            return cls(Path(given), image_ids)
        if "," in name or name != name.strip():
            raise UsageError(f"{given}: {name!r} cannot be the name of a member", hint="Write NAME=FILE.")
        return cls(Path(file), image_ids, name)


GivenResults: TypeAlias = str | Path | ResultsFile
"""A results file as a person names it."""


@dataclass(frozen=True, slots=True)
class MapsFolder:
    """Another tool's maps of pixels, and what the numbers in them are.

    Attributes:
        path: The folder, or a file of score maps that scantling wrote.
        values: What the numbers are.
    """

    path: Path
    values: MapValues = "auto"

    @classmethod
    def of(cls, given: GivenMaps) -> MapsFolder:
        """Maps as they were given."""
        return given if isinstance(given, MapsFolder) else cls(Path(given))


GivenMaps: TypeAlias = str | Path | MapsFolder
"""Maps of pixels as a person names them."""


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


Written = Literal[
    "results file",
    "file of results in lines",
    "parquet file",
    "submission",
    "file of metrics",
    "gate file",
    "file of tuned settings",
]
"""What a verb writes to one file."""

_BEGINNINGS: dict[Written, tuple[bytes, ...]] = {
    "results file": (b"[",),
    "file of results in lines": (b"{",),
    "parquet file": (b"PAR1",),
    "submission": (b'[{"labels":',),
    "file of metrics": (b'{\n  "bbox/', b'{\n  "segm/'),
    "gate file": (b"refiner:",),
    "file of tuned settings": (b"#", b"suppress:", b"ensemble:"),
}


def require_output(out: Path, what: Written, inputs: Iterable[str | Path | ResultsFile | None]) -> None:
    """Refuse to write onto what is read, or onto a file of another kind: a slip of the hand must not cost labels.

    Args:
        out: The file to write; an earlier one of the same kind may be there.
        what: What will be in it.
        inputs: What the verb was given to read: files, folders, `FOLDER:SPLIT`, or None.

    Raises:
        UsageError: Before anything is written.
    """
    require_unread(out, inputs)
    if out.is_file():
        try:
            with out.open("rb") as file:
                beginning = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        except OSError as error:
            raise UsageError(
                f"{out}: there is a file that cannot be read: {error.strerror}", hint=_OTHER_OUT
            ) from error
        if beginning and not beginning.startswith(_BEGINNINGS[what]):
            raise UsageError(f"{out}: there is a file already, and it is no {what}", hint=_OTHER_OUT)


def require_unread(out: Path, inputs: Iterable[str | Path | ResultsFile | None]) -> None:
    """Refuse to write onto one of the inputs, or where a folder is.

    Raises:
        UsageError: `out` is one of them, by whatever path.
    """
    if out.is_dir():
        raise UsageError(f"{out}: this is a folder", hint="Name a file in it for --out.")
    if out.exists() and out.resolve() in {_path_of(given).resolve() for given in inputs if given is not None}:
        raise UsageError(f"{out}: this is read, and never written over", hint=_OTHER_OUT)


def _path_of(given: str | Path | ResultsFile) -> Path:
    return given.path if isinstance(given, ResultsFile) else folder_of(given)

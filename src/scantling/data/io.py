"""Files read and written safely: JSON with every fault named, results that are complete or absent.

A file under its final name is complete: `replacing` writes beside it under a temporary name, flushes to disk
and renames. JSON from a user is parsed with the faults that the standard parser lets pass (repeated keys, NaN)
or answers with a traceback (deep nesting, giant integers, wrong encoding) turned into `DataError` with a place
and a remedy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from scantling.data.findings import refuse
from scantling.data.spelling import alike, other_spelling
from scantling.errors import UsageError

_HEAD_BYTES = 512
_MAX_REPEATED_KEYS = 20
_LFS_MARK = b"version https://git-lfs.github.com/spec"
_BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"jxl ": "a JPEG XL image"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "a HEIC image")
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (_LFS_MARK, "a Git-LFS pointer (the content was never downloaded: run `git lfs pull`)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"8BPS", "a Photoshop document"),
)


def temporary_beside(path: Path) -> Path:
    """A hidden name that nobody else has, in the folder of `path`, for what is to become `path`."""
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file or folder is called as `temporary_beside` does; it is in the making, or its maker was killed."""
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on success it becomes `path`, on failure it is removed.

    The folder is created if need be. The file's bytes reach the disk before the rename, so a crash or a full
    disk leaves either the old file or the new one, never a part.

    Args:
        path: Final name; an existing file is replaced only when the block ends without an exception.

    Raises:
        UsageError: The folder cannot be written to, the disk is full, or a folder or device has the name.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: cannot be written: there is something that is no ordinary file")
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary, os.O_RDWR)
        temporary.replace(path)
        _flush(path.parent, os.O_RDONLY)
    except OSError as error:
        _explain_write_failure(path, error)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def second_name(path: Path, other: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links; it never loses its first one.

    Args:
        path: The file, which is only ever replaced as a whole.
        other: Its second name; what was called so is replaced.

    Raises:
        UsageError: As `replacing`.
    """
    with replacing(other) as temporary:
        try:
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)


def atomic_write(path: Path | str, content: bytes | str) -> None:
    """Write a whole file so that it is either complete under its name or not there.

    Args:
        path: Final name; its folder is created if need be, an existing file is replaced.
        content: Bytes, or text written as UTF-8 with the line ends it has; what UTF-8 cannot express (bytes in a file
            name that are no text) as an escape.

    Raises:
        UsageError: The folder cannot be written to or the disk is full.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path | str, value: object, *, indent: int | None = None) -> None:
    """Write strict JSON (UTF-8, no NaN or infinity) atomically.

    Args:
        path: Final name.
        value: Plain lists, dicts, strings, finite numbers, booleans and None.
        indent: Spaces per level for files a person reads; None for one compact line.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON cannot express; the caller must write null.
        UsageError: The file cannot be written.
    """
    atomic_write(path, json_text(value, indent=indent) + "\n")


def json_text(value: object, *, indent: int | None = None, encoding: str | None = "utf-8") -> str:
    """Strict JSON of a value (no NaN or infinity).

    Args:
        value: Plain lists, dicts, strings, finite numbers, booleans and None.
        indent: Spaces per level; None for one compact line.
        encoding: Of what it is written to; letters that this cannot express become JSON's own escapes.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON cannot express; the caller must write null.
    """
    write = partial(
        json.dumps, allow_nan=False, indent=indent, separators=(",", ":") if indent is None else None
    )
    text = write(value, ensure_ascii=False)
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        text = write(value, ensure_ascii=True)
    return text


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in blocks."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_content(head: bytes) -> str | None:
    """Say what a file is from its first bytes, for "this is not X but Y" messages.

    Args:
        head: The first bytes of the file; 512 are plenty.

    Returns:
        Words such as "a Git-LFS pointer (...)", "an HTML page", "a zip archive"; None if nothing is known.
    """
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a film or picture in an ISO media file")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:15].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page (an error page of a download, perhaps)"
    if start.startswith(b"<?xml"):
        return "an XML document"
    return None


def is_no_text(path: Path) -> bool:
    """Whether a file that should be UTF-8 text is certainly none, by its beginning; reading it then says why.

    Args:
        path: Empty files, Git-LFS pointers, archives, pages, UTF-16 and what cannot be opened are no text.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return True
    return not head.strip() or describe_content(head) is not None or _is_wide(head)


def read_json(path: Path | str, *, keep_nan: bool = False) -> object:
    """Read a JSON file completely; every way in which it can be unreadable is a `DataError`.

    A UTF-8 byte order mark is accepted. Numbers too large for a float (`1e999`) come back as infinity.

    Args:
        path: The file.
        keep_nan: Pass the tokens NaN, Infinity and -Infinity on as floats, for readers that check every
            number themselves and can name the record; otherwise they are an error.

    Raises:
        DataError: Missing, a folder, empty, not UTF-8, not JSON (with line and column), repeated keys, nested
            too deep, an integer of thousands of digits, or NaN tokens.
    """
    path = Path(path)
    return parse_json(read_bytes(path), str(path), keep_nan=keep_nan)


def read_bytes(path: Path | str) -> bytes:
    """Read a file that must exist and hold something.

    Raises:
        DataError: Codes `file-missing`, `file-is-folder`, `file-empty`, `file-unreadable`.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        refuse("file-missing", str(path), "there is no such file", hint=hint_for_missing(path))
    except IsADirectoryError:
        refuse("file-is-folder", str(path), "this is a folder, a file is needed")
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        refuse("file-unreadable", str(path), f"cannot be read: {error}")
    if not data:
        refuse("file-empty", str(path), "the file is empty (0 bytes)")
    return data


def parse_json(data: bytes, file: str, *, keep_nan: bool = False) -> object:
    """Parse the bytes of a JSON document; see `read_json`.

    Args:
        data: The document, UTF-8 with or without byte order mark.
        file: Name used in messages.
        keep_nan: As in `read_json`.

    Raises:
        DataError: As in `read_json`.
    """
    repeated: Counter[str] = Counter()

    def as_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
        record = dict(pairs)
        if len(record) != len(pairs) and len(repeated) < _MAX_REPEATED_KEYS:
            repeated.update(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return record

    def refuse_constant(token: str) -> NoReturn:
        refuse("json-nan", file, f"the token {token} is not JSON", hint="Write null or a finite number.")

    decoder = json.JSONDecoder(
        object_pairs_hook=as_dict, parse_constant=None if keep_nan else refuse_constant
    )
    value = _decode(decoder, _text_of(data, file), file)
    if repeated:
        keys = ", ".join(f"{key!r} ({times} objects)" for key, times in repeated.items())
        hint = "Remove all but one; which of them counts would be a guess."
        refuse("json-duplicate-key", file, f"keys given more than once in one object: {keys}", hint=hint)
    return value


def _decode(decoder: json.JSONDecoder, text: str, file: str) -> object:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip())
        what = "the file ends too early (truncated?)" if ends else f"not valid JSON: {error.msg}"
        place = f"line {error.lineno} column {error.colno}"
        refuse("json-syntax", file, what, path=place, value=text[error.pos : error.pos + 20] or None)
    except RecursionError:
        refuse("json-too-deep", file, "lists or objects are nested far too deep")
    except ValueError:  # what remains is CPython's limit on the digits of an integer
        refuse("json-huge-integer", file, "holds an integer of more than 4300 digits")


def _text_of(data: bytes, file: str) -> str:
    looks = describe_content(data[:_HEAD_BYTES])
    if looks:
        refuse("json-foreign", file, f"not JSON but {looks}")
    if _is_wide(data):
        refuse("json-encoding", file, "encoded as UTF-16 or UTF-32, not UTF-8", hint="Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = data[error.start : error.start + 1].hex()
        message = f"not UTF-8: byte 0x{found} at byte offset {error.start}"
        refuse("json-encoding", file, message, hint="Save it as UTF-8.")


def _is_wide(data: bytes) -> bool:
    """Whether text is UTF-16 or UTF-32 by its byte order mark, or by the zeros of its first letters."""
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]


def hint_for_missing(path: Path) -> str | None:
    """What to say about a path that does not exist: the name in another spelling, or where the path breaks."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    if folder is None:
        return None
    if folder != path.absolute().parent:
        return f"The folder {folder} exists, what follows does not."
    meant = alike(path.name, (entry.name for entry in folder.iterdir()))
    return other_spelling(path.name, meant) if meant else None


def _flush(path: Path, flags: int) -> None:
    """Force a file or a folder's entry onto the disk; some file systems refuse this for folders."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _explain_write_failure(path: Path, error: OSError) -> NoReturn:
    """Raise what the user can act on; errors about other files pass unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"{path}: no space left on the disk; nothing was written under that name"
        raise UsageError(message, hint="Free some space and run the same command again.") from error
    ours = (
        error.filename is None
        or Path(error.filename).is_relative_to(path.parent)
        or path.is_relative_to(error.filename)
    )
    if ours and error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
    ):
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    raise error

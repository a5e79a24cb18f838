"""What a file that is not our checkpoint looks like, told from its first bytes; nothing is ever unpickled."""

from __future__ import annotations

import codecs
import json
import zipfile
from pathlib import Path

from scantling.data.io import describe_content

_HEAD_BYTES = 512
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit for its header."""

_IMPORT_HINT = "If it is an MMDetection checkpoint, convert it with `scantling import-weights`."


def describe_foreign(path: Path) -> tuple[str, str | None] | None:
    """Say what a file is, unless it opens like a safetensors file.

    Args:
        path: Any path, existing or not.

    Returns:
        What it looks like and a hint; None if its beginning is that of a safetensors file.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except FileNotFoundError:
        return "there is no such file", None
    except IsADirectoryError:
        return "it is a folder", "Give the .safetensors file inside it."
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        return f"it cannot be read ({error})", None
    return _describe(head, path)


def _describe(head: bytes, path: Path) -> tuple[str, str | None] | None:
    if not head:
        return "the file is empty (0 bytes)", None
    if head.startswith(b"PK\x03\x04"):
        return _describe_zip(path)
    if _opens_like_safetensors(head):
        return None
    known = describe_content(head)
    if known:
        return f"it looks like {known}", _IMPORT_HINT if "pickle" in known else None
    if head[8:9] == b"{":  # of an impossible length, which `header_fault` tells
        return None
    if head[257:262] == b"ustar":
        return "it looks like a tar archive (an old PyTorch checkpoint, perhaps)", _IMPORT_HINT
    return f"it looks like {_describe_rest(head)}", None


def _opens_like_safetensors(head: bytes) -> bool:
    """Whether a length and a JSON object come first; the length alone may have the first bytes of any other kind."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES


def _describe_zip(path: Path) -> tuple[str, str | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "it looks like a damaged zip archive", None
    if any(name.endswith("data.pkl") for name in names):
        return "it looks like a PyTorch checkpoint, a pickle that could run code when opened", _IMPORT_HINT
    return "it looks like a zip archive", None


def _describe_rest(head: bytes) -> str:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the head may end within a character
    except UnicodeDecodeError:
        return "binary data of an unknown kind"
    if "\0" in text:
        return "binary data of an unknown kind"
    return "a JSON document" if text.lstrip()[:1] in ("{", "[") else "a text file"


def looks_like_pytorch(path: Path) -> bool:
    """Whether a file begins as those do that `torch.save` writes: a zip archive, a pickle, or a tar archive."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return False
    if head.startswith(b"PK\x03\x04"):
        looks, _ = _describe_zip(path)
        return "PyTorch" in looks or "damaged" in looks
    is_pickle = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return (is_pickle and not _opens_like_safetensors(head)) or head[257:262] == b"ustar"


def header_fault(path: Path) -> str | None:
    """Check the length that a safetensors header claims, before any parser allocates it.

    Returns:
        What is wrong; None if the header fits into the file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        claimed = int.from_bytes(stream.read(8), "little")
    if claimed > min(size - 8, _MAX_HEADER_BYTES):
        return f"its header claims {claimed} bytes, the file has {size}"
    return None


def parse_metadata(text: str) -> dict[str, object] | None:
    """Parse the JSON object in a header; None if it is not one, however it is broken."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

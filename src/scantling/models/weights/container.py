"""The safetensors file, ours and other programs': written tensor by tensor, read with everything verified.

    8 bytes: length of the header │ header, JSON: names, types, shapes, places, metadata │ the tensors' bytes

In a file of ours the metadata hold, under the key `scantling`, a JSON record with the SHA-256 of itself and of every
tensor. Of a file of another program there is no checksum, only its structure can be verified.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scantling.data.io import json_text
from scantling.errors import CheckpointError, is_out_of_memory
from scantling.models.weights.foreign import header_fault, parse_metadata

FORMAT_VERSION = 1

_METADATA_KEY = "scantling"
_SHOWN = 10
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Container(NamedTuple):
    """What a safetensors file holds.

    Attributes:
        tensors: By their names in the file.
        record: What a file of ours says about itself, checksum included; None in another program's.
    """

    tensors: dict[str, Tensor]
    record: dict[str, object] | None


def write_container(stream: BinaryIO, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
    """Write the format tensor by tensor, so that memory does not double; wide types first keep data aligned.

    Args:
        stream: Open for writing.
        tensors: Contiguous, on the CPU.
        record: What the file says about itself, JSON; its checksum is added.
    """
    text = json_text(dict(record) | {"sha256": _checksum(tensors, record)})
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {"__metadata__": {_METADATA_KEY: text}}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    stream.write(len(head).to_bytes(8, "little") + head)
    for _, tensor in ordered:
        stream.write(_bytes_of(tensor))


def read_container(path: Path) -> Container:
    """Read a safetensors file whose beginning was recognised (`foreign.describe_foreign`).

    Returns:
        Copies of all tensors, so that the file is not mapped any more, and the record of a file of ours.

    Raises:
        CheckpointError: Damaged (in a file of ours to the last bit), of a newer version, or a value is not finite.
    """
    fault = header_fault(path)
    if fault:
        raise damaged(path, fault)
    try:
        with _named_in_utf8(path) as readable, safe_open(readable, framework="pt") as handle:
            text = (handle.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise damaged(path, str(error)) from error
    record = None if text is None else _verified_record(path, tensors, text)
    require_finite(path, tensors)
    return Container(tensors, record)


@contextmanager
def _named_in_utf8(path: Path) -> Iterator[Path]:
    """The file under a name that safetensors can open: it takes no bytes that are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "weights.safetensors"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        CheckpointError: With the first ten names.
    """
    broken = non_finite(tensors)
    if broken:
        raise CheckpointError(f"{path}: {listed(broken)} holds values that are not finite (NaN or infinite)")


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not (_has_finite_sum(tensor) or bool(torch.isfinite(tensor).all()))
    ]


def _has_finite_sum(tensor: Tensor) -> bool:
    """True if all values are finite, unless they are so large that their sum is not; a tenth of the time."""
    return tensor.dtype in _DTYPE_NAMES and bool(torch.isfinite(tensor.sum()))


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a file that is broken, with the other files one may use instead."""
    siblings = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    earlier = [file.name for file in siblings if file.name != path.name]
    hint = f"Other checkpoints beside it: {', '.join(earlier[:_SHOWN])}." if earlier else None
    return CheckpointError(f"{path} is damaged (checksum or structure): {what}", hint=hint)


def listed(names: Iterable[str]) -> str:
    """Some names for a message, at most ten."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _verified_record(path: Path, tensors: Mapping[str, Tensor], text: str) -> dict[str, object]:
    strange = [name for name, tensor in tensors.items() if tensor.dtype not in _DTYPE_NAMES]
    if strange:
        raise damaged(path, f"{listed(strange)} has a number format no checkpoint uses")
    record = parse_metadata(text)
    if record is None:
        raise damaged(path, "its metadata cannot be read")
    version = record.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this scantling reads up to {FORMAT_VERSION}",
            hint="Install a newer scantling.",
        )
    claimed = record.pop("sha256", None)
    if claimed != _checksum(tensors, record):
        raise damaged(path, "the checksum does not fit")
    return record | {"sha256": claimed}


def _checksum(tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> str:
    """SHA-256 over the metadata and over every tensor's name, type, shape and bytes, in order of name."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {_DTYPE_NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """View the bytes of a contiguous CPU tensor without copying them."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data

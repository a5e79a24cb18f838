"""The one way a file of weights is opened, whoever made it: recognised, verified, and never executed.

    scantling's checkpoint     every bit verified by its SHA-256
    other safetensors          structure verified
    PyTorch file (.pth, .pt)   tensors and plain values only (`weights_only=True`), its zip archive's CRCs verified

Of all of them: no value may be NaN or infinite, and a file that is something else is told as what it looks like.
"""

from __future__ import annotations

import importlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scantling.errors import CheckpointError
from scantling.models.weights.container import Container, damaged, read_container, require_finite
from scantling.models.weights.foreign import describe_foreign, looks_like_pytorch

_TRAINING_STATE = ("ema.", "swa.", "optimizer.")
_STATE_KEYS = ("state_dict", "model", "model_ema")
_SAFE_HINT = "Only tensors and plain values are read; files that need code to be executed are refused."
_SHOWN = 200

_FOREIGN_CLASSES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
)


class _Inert:
    """Stands in for a foreign class in a checkpoint: keeps nothing, does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file.

    Args:
        path: A checkpoint of ours, another safetensors file, or a PyTorch file; told by content, not by its name.

    Returns:
        Tensors by name; of a checkpoint of ours the model's weights under its own names, without the state of
        training.

    Raises:
        CheckpointError: Missing, something else, damaged, in need of code to be executed, or without tensors.
    """
    if looks_like_pytorch(path):
        return pytorch_tensors(path, read_pytorch(path))
    return read_safetensors(path).tensors


def read_safetensors(path: Path) -> Container:
    """Read a checkpoint of ours or another safetensors file.

    Args:
        path: The file; told by content, not by its name.

    Returns:
        Its tensors as `read_weights` has them, and what a file of ours says about itself.

    Raises:
        CheckpointError: Missing, something else, damaged, or without tensors.
    """
    foreign = describe_foreign(path)
    if foreign:
        looks, hint = foreign
        raise CheckpointError(f"{path} is not a file of weights: {looks}", hint=hint)
    tensors, record = read_container(path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if not k.startswith(_TRAINING_STATE)}
    return Container(weights, record)


def read_pytorch(path: Path) -> dict[Any, Any]:
    """Read a PyTorch file's tensors and plain values.

    Args:
        path: Of any version of PyTorch; foreign classes of MMDetection's files are passed over.

    Returns:
        The dictionary it holds, usually a state dict or one with a state dict in it.

    Raises:
        CheckpointError: Missing, something else, damaged, in need of code to be executed, or no dictionary.
    """
    if not looks_like_pytorch(path):
        looks, _ = describe_foreign(path) or ("it looks like a safetensors file", None)
        raise CheckpointError(f"{path} is not a PyTorch file: {looks}")
    _require_whole_archive(path)
    allowed: list[Any] = [(_Inert, name) for name in _FOREIGN_CLASSES]
    allowed += [np.dtype, np.ndarray, *_numpy_constructors(), *{type(np.dtype(t)) for t in "fdilq?"}]
    try:
        # As a stream: given a path, PyTorch goes by the ending of its name. Its warnings are about what it refuses.
        with (
            torch.serialization.safe_globals(allowed),
            warnings.catch_warnings(action="ignore"),
            path.open("rb") as stream,
        ):
            loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        message, hint = _reason(error)
        raise CheckpointError(f"{path} cannot be read as a weights file: {message}", hint=hint) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds no state_dict with tensors; found a {type(loaded).__name__}")
    return loaded


def pytorch_tensors(path: Path, content: dict[Any, Any]) -> dict[str, Tensor]:
    """The tensors in what `read_pytorch` returned.

    Raises:
        CheckpointError: There are none, or one is not finite.
    """
    state = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), dict)), content)
    tensors = {
        str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state_dict with tensors; found {sorted(map(str, content))[:8]}"
        )
    require_finite(path, tensors)
    return tensors


def _require_whole_archive(path: Path) -> None:
    """Verify the checksums of a zip archive, which PyTorch itself does not."""
    if not zipfile.is_zipfile(path):  # the format before PyTorch 1.6, or an archive that lost its end
        return
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    if broken is not None:
        raise damaged(path, f"the checksum of {broken} in it does not fit")


def _reason(error: Exception) -> tuple[str, str | None]:
    """What to say of a failure of `torch.load`, never its advice to load the file unsafely."""
    text = str(error)
    wanted = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|class) ([\w.]+)", text)
    if "weights_only" in text or "weights only" in text.lower():
        named = f" ({wanted[1]})" if wanted else ""
        return f"it is damaged, or it needs code to be executed{named}", _SAFE_HINT
    first = text.splitlines()[0] if text else type(error).__name__
    return f"it is damaged or incomplete ({first:.{_SHOWN}})", None


def _numpy_constructors() -> list[Any]:
    """The functions with which NumPy's own arrays and scalars are rebuilt, under the names old files use."""
    core = importlib.import_module("numpy._core.multiarray")
    functions = [core.scalar, core._reconstruct]
    return [*functions, *((f, f"numpy.core.multiarray.{f.__name__}") for f in functions)]

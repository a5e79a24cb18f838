"""The library transformers, when it is there, and checkpoints that it saved, under our names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from scantling.errors import CheckpointError, ConfigError

CONFIG = "config.json"
"""Where transformers keeps a network's settings, beside its weights."""

_PIECES = {
    "model.pixel_level_module.encoder.": "backbone.",
    "model.pixel_level_module.decoder.": "pixel_decoder.",
    "model.transformer_module.": "transformer.",
    "class_predictor.": "class_predictor.",
}
"""Names of weights in transformers' checkpoints, and here."""


def is_transformers(file: Path) -> bool:
    """Whether a file of weights is one that transformers saved: its settings lie beside it."""
    return (file.parent / CONFIG).is_file()


def read_transformers(file: Path) -> dict[str, Tensor]:
    """Weights of a Mask2Former that transformers saved, under the names they have here.

    Args:
        file: `model.safetensors`, with its `config.json` beside it; nothing is fetched, nothing unpickled.

    Raises:
        CheckpointError: It cannot be read, or is another network's.
        ConfigError: transformers is not installed.
    """
    with open_transformers() as library:
        try:
            network = library.Mask2FormerForUniversalSegmentation.from_pretrained(
                file.parent, local_files_only=True, use_safetensors=True
            )
        except Exception as error:  # whatever a damaged or foreign folder provokes
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(f"{file.parent}: not a Mask2Former of transformers: {reason}") from error
    weights = {}
    for key, value in network.state_dict().items():
        theirs = next((prefix for prefix in _PIECES if key.startswith(prefix)), None)
        if theirs is not None:
            weights[_PIECES[theirs] + key.removeprefix(theirs)] = value
    return weights


@contextmanager
def open_transformers() -> Iterator[Any]:
    """The library, when it is needed, and without its messages.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        hint = "Install it: pip install 'scantling[semantic]'. The segmenters fpn_* need no further library."
        raise ConfigError("Mask2Former needs the library transformers", hint=hint) from error
    told = library.utils.logging
    before, shows = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield library
    finally:
        told.set_verbosity(before)
        if shows:
            told.enable_progress_bar()

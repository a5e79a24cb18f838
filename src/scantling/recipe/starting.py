"""What a member's training starts from, as far as its settings depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scantling.errors import CheckpointError
from scantling.models.weights.start import read_start
from scantling.models.zoo import INIT_PRETRAIN, ModelConfig

Kind = Literal["random", "crops", "backbone", "detector"]


class Starting(NamedTuple):
    """What a training starts from.

    Attributes:
        kind: `random` weights, a backbone that learned from the data set's own `crops`, a published or other
            `backbone`, or a whole `detector`.
        model: Settings of the detector it is, as a recipe writes them; empty where they are not known.
    """

    kind: Kind
    model: Mapping[str, Any]

    @property
    def phrase(self) -> str:
        """For a reason: from ..."""
        return {
            "random": "random weights",
            "crops": "a backbone that learned from own crops",
            "backbone": "a trained backbone",
            "detector": "a trained detector",
        }[self.kind]


def starting_from(model: ModelConfig) -> Starting:
    """What a model's training starts from; a file is opened, and fetched if it has to be.

    Raises:
        CheckpointError: It cannot be used.
    """
    if model.init == "random":
        return Starting("random", {})
    if model.init == INIT_PRETRAIN:
        return Starting("crops", {})
    if model.init == "pretrained":
        return Starting("detector" if model.is_published_detector else "backbone", {})
    file = model.weights_file()
    if file is None or not file.is_file():
        model.start()  # tells what is wrong with it
        return Starting("random", {})
    try:
        return _of_file(file.absolute(), file.stat().st_mtime_ns)
    except CheckpointError as error:
        raise CheckpointError(f"model.init: {error.message}", hint=error.hint) from error


@lru_cache(maxsize=16)
def _of_file(path: Path, changed: int) -> Starting:  # noqa: ARG001 - another file under the same name
    start = read_start(path)
    own = {
        key: value
        for key, value in start.model.items()
        if key not in ("init", "spare_logits", "frozen_stages")
    }
    return Starting("detector" if start.is_detector else "backbone", own)

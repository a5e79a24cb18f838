"""The checkpoint: one safetensors file that says what it is and whether it is whole.

    NAME.safetensors
      header["__metadata__"]["scantling"]   JSON of CheckpointMeta: class table, model config, hashes, step, metrics,
                                            state of the training loop, SHA-256 of all this and of every tensor
      model.*                               weights and buffers under their names in the model
      ema.*, swa.*                          their moving average, or that of the last epochs, if training keeps one
      optimizer.KEY.*                       optimiser state (only in `last`)

Reading never unpickles anything: a foreign file is refused with what it looks like, a damaged one as damaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor, nn

from scantling.data.io import replacing, second_name
from scantling.errors import CheckpointError, TrainingError
from scantling.models.weights.container import (
    FORMAT_VERSION,
    damaged,
    listed,
    non_finite,
    read_container,
    write_container,
)
from scantling.models.weights.foreign import describe_foreign
from scantling.train.rundir import explained_writes

WEIGHTS_PREFIX = "model."
AVERAGE_PREFIX = "ema."
EPOCHS_PREFIX = "swa."


class CheckpointMeta(BaseModel):
    """What a checkpoint says about itself.

    Attributes:
        format_version: Version of this layout.
        kind: What the weights are: `detector`, `backbone`, `refiner`, ...
        class_names: Category names in label order.
        category_ids: The data set's own ids, in the same order.
        model: The model's configuration, enough to build it again.
        predict: Settings of prediction that belong to these weights: image sizes, suppression.
        recipe_hash: Hash of the settings that decide this training.
        data_hash: Hash of the training data.
        step: Updates of the weights so far.
        epoch: Finished epochs.
        metrics: Validation metrics of these weights; null where undefined.
        white: Value that was white in the pictures of 16 bits that it learned from; null for the full range.
        training: State of the training loop; only in a checkpoint that training can go on from.
        sha256: Checksum over everything above and every tensor; filled in when the file is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: int = FORMAT_VERSION
    kind: str = "detector"
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int | str, ...] = ()
    model: dict[str, JsonValue] = Field(default_factory=dict)
    predict: dict[str, JsonValue] = Field(default_factory=dict)
    recipe_hash: str = ""
    data_hash: str = ""
    step: int = 0
    epoch: int = 0
    metrics: dict[str, float | None] = Field(default_factory=dict)
    white: int | None = None
    training: dict[str, JsonValue] | None = None
    sha256: str = ""


class Checkpoint(NamedTuple):
    """A checkpoint in memory: tensors by their full names (`model.…`, `ema.…`), and what it says about itself."""

    tensors: dict[str, Tensor]
    meta: CheckpointMeta


def save_checkpoint(path: Path | str, tensors: Mapping[str, Tensor], meta: CheckpointMeta) -> None:
    """Write a checkpoint; it is complete under its name or not there, and an older one stays until then.

    Args:
        path: The file's final name.
        tensors: Tensors on any device, whose names start with `model.`, `ema.`, `swa.` or `optimizer.`.
        meta: The description to store; its `sha256` is computed here.

    Raises:
        TrainingError: No space is left, the folder cannot be written to, or a weight is not finite.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    broken = non_finite(on_cpu)
    if broken:
        raise TrainingError(f"{path}: not saved, because {listed(broken)} holds values that are not finite")
    record = meta.model_dump(mode="json", exclude={"sha256"})
    with explained_writes(path), replacing(path) as temporary, temporary.open("wb") as stream:
        write_container(stream, on_cpu, record)


def keep_previous(path: Path, previous: Path) -> None:
    """Give the file `path`, if there is one, the second name `previous`; it never loses its first one.

    Raises:
        TrainingError: No space is left or the folder cannot be written to.
    """
    if not path.exists():
        return
    with explained_writes(previous):
        second_name(path, previous)


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint written by `save_checkpoint` and verify its checksum.

    Args:
        path: The file; whatever it really is, nothing in it is executed.

    Raises:
        CheckpointError: Missing, foreign (named as what it looks like), damaged, written by a newer version, or
            holding weights that are not finite.
    """
    path = Path(path)
    foreign = describe_foreign(path)
    if foreign:
        looks, hint = foreign
        raise CheckpointError(f"{path} is not a scantling checkpoint: {looks}", hint=hint)
    tensors, record = read_container(path)
    if record is None:
        raise CheckpointError(
            f"{path} is not a scantling checkpoint: it looks like a safetensors file of another program"
        )
    try:
        return Checkpoint(tensors, CheckpointMeta.model_validate(record))
    except ValidationError as error:
        raise damaged(path, f"its metadata is incomplete: {error}") from error


def model_tensors(model: nn.Module, prefix: str = WEIGHTS_PREFIX) -> dict[str, Tensor]:
    """Return a model's weights and buffers under the names they have in a checkpoint."""
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def weights_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights to predict with, under the model's own names: the average where there is one."""
    for prefix in (EPOCHS_PREFIX, AVERAGE_PREFIX):
        if found := tensors_under(tensors, prefix):
            return found
    return tensors_under(tensors, WEIGHTS_PREFIX)


def tensors_under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Put weights into a model; every name and shape must agree.

    Args:
        model: Changed in place, or not at all if anything disagrees.
        weights: Tensors by the model's own names, such as `weights_in(checkpoint.tensors)`.
        source: The weights' file, for the message.

    Raises:
        CheckpointError: Names missing, unexpected, or of another shape; the first ten of each are listed.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    reshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    differences = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(differences.values()):
        lines = [f"  {len(names)} {kind}: {listed(names)}" for kind, names in differences.items() if names]
        raise CheckpointError("\n".join([f"{source}: the weights are for another model", *lines]))
    model.load_state_dict(dict(weights))


def class_differences(saved: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Compare two class tables by name.

    Args:
        saved: Names in a checkpoint, in label order.
        wanted: Names of the data set or model at hand.

    Returns:
        One line per kind of difference; empty if the tables are equal, order included.
    """
    lost = [name for name in saved if name not in wanted]
    added = [name for name in wanted if name not in saved]
    lines = []
    if len(saved) != len(wanted):
        lines.append(f"{len(saved)} classes instead of {len(wanted)}")
    if lost:
        lines.append(f"only in the checkpoint: {listed(lost)}")
    if added:
        lines.append(f"not in the checkpoint: {listed(added)}")
    if not lines and list(saved) != list(wanted):
        lines.append(f"another order: {listed(saved)} instead of {listed(wanted)}")
    return lines

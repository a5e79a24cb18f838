"""Foreign detector weights as a scantling checkpoint that predicts and can be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scantling.data.io import write_json
from scantling.errors import UsageError
from scantling.models.mmdet_weights import (
    Conversion,
    ForeignCheckpoint,
    convert,
    load_converted,
    num_classes_of,
    read_mmdet_checkpoint,
)
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig
from scantling.train.checkpoint import CheckpointMeta, model_tensors, save_checkpoint

WEIGHTS, ACCOUNT = "weights.safetensors", "import.json"
SHOWN_KEYS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """What became of a foreign checkpoint.

    Attributes:
        checkpoint: The file written.
        class_names: Of the file, or made up where it names none.
        conversion: Every key used, unused and missing.
    """

    checkpoint: Path
    class_names: tuple[str, ...]
    conversion: Conversion

    def to_text(self) -> str:
        """For people; the whole account is in `import.json`."""
        unused = self.conversion.unused
        lines = [
            f"{self.checkpoint}",
            f"{len(self.class_names)} classes: {', '.join(self.class_names[:SHOWN_KEYS])}",
            f"{len(self.conversion.used)} keys used, {len(unused)} unused, none missing",
            *(f"  unused: {key}" for key in unused[:SHOWN_KEYS]),
            *([f"  and {len(unused) - SHOWN_KEYS} more in {ACCOUNT}"] if len(unused) > SHOWN_KEYS else []),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For programs: every key."""
        return {
            "checkpoint": str(self.checkpoint),
            "class_names": list(self.class_names),
            "used": self.conversion.used,
            "unused": list(self.conversion.unused),
            "missing": list(self.conversion.missing),
        }


def import_mmdet(file: Path, model: ModelConfig, out: Path, *, overwrite: bool = False) -> ImportSummary:
    """Write a checkpoint with the weights of an MMDetection file.

    Args:
        file: `.pth` of MMDetection 2.x or 3.x.
        model: What the weights are for; every weight of it must be in the file.
        out: Folder for the checkpoint and for the account of every key.
        overwrite: Replace what an earlier import left there.

    Raises:
        CheckpointError: The file is no weights file, or does not fit the model; the differences are listed.
        UsageError: There is an earlier import in the folder.
    """
    if (out / WEIGHTS).exists() and not overwrite:
        raise UsageError(f"{out / WEIGHTS} exists", hint="Choose another --out, or add --overwrite.")
    if model.roi_samples is None:  # the weights were trained with RoIAlign's adaptive sampling
        model = model.model_copy(update={"roi_samples": 0})
    foreign = read_mmdet_checkpoint(file)
    names = _class_names(foreign)
    detector = build_model(model, len(names))
    conversion = convert(foreign.weights, detector)
    load_converted(detector, conversion)
    meta = CheckpointMeta(
        class_names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        model=model.model_dump(mode="json"),
        predict=PredictConfig(scales=800, long_side=1333).model_dump(mode="json"),
    )
    save_checkpoint(out / WEIGHTS, model_tensors(detector), meta)
    summary = ImportSummary(checkpoint=out / WEIGHTS, class_names=names, conversion=conversion)
    write_json(out / ACCOUNT, summary.to_dict(), indent=2)
    return summary


def _class_names(foreign: ForeignCheckpoint) -> tuple[str, ...]:
    """The file's names if it has one for every output of its classifier, else numbered ones."""
    count = num_classes_of(foreign.weights)
    names = foreign.class_names or ()
    return names if len(names) == count else tuple(f"class_{number}" for number in range(1, count + 1))

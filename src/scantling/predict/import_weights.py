"""Foreign detector weights as a scantling checkpoint that predicts and can be trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scantling.data.io import write_json
from scantling.errors import UsageError
from scantling.models.class_losses import ClassLossKind
from scantling.models.contract import Detector
from scantling.models.weights.class_rows import rows_by_name, with_rows
from scantling.models.weights.conversion import Conversion, load_converted
from scantling.models.weights.mmdet import (
    ForeignCheckpoint,
    class_loss_of,
    convert,
    norm_of,
    num_classes_of,
    pruned_stages_of,
    ranks_by_masks,
    read_mmdet_checkpoint,
    semantic_labels_of,
)
from scantling.models.weights.torchvision_detectors import (
    class_names_of,
    classifier_rows,
    convert_torchvision,
    in_our_order,
    is_torchvision,
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
        reused: Categories whose part of the classifier was taken over; None for all of them.
    """

    checkpoint: Path
    class_names: tuple[str, ...]
    conversion: Conversion
    reused: tuple[str, ...] | None = None

    def to_text(self) -> str:
        """For people; the whole account is in `import.json`."""
        unused = self.conversion.unused
        lines = [
            f"{self.checkpoint}",
            f"{len(self.class_names)} classes: {', '.join(self.class_names[:SHOWN_KEYS])}",
            f"{len(self.conversion.used)} keys used, {len(unused)} unused, none missing",
            *self._about_classes(),
            *(f"  unused: {key}" for key in unused[:SHOWN_KEYS]),
            *([f"  and {len(unused) - SHOWN_KEYS} more in {ACCOUNT}"] if len(unused) > SHOWN_KEYS else []),
        ]
        return "\n".join(lines)

    def _about_classes(self) -> list[str]:
        if self.reused is None:
            return []
        fresh = [name for name in self.class_names if name not in self.reused]
        return [
            f"classifier: {len(self.reused)} categories taken over by name, {len(fresh)} start anew",
            *(f"  anew: {name}" for name in fresh[:SHOWN_KEYS]),
        ]

    def to_dict(self) -> dict[str, Any]:
        """For programs: every key."""
        return {
            "checkpoint": str(self.checkpoint),
            "class_names": list(self.class_names),
            "reused": list(self.class_names if self.reused is None else self.reused),
            "used": self.conversion.used,
            "unused": list(self.conversion.unused),
            "missing": list(self.conversion.missing),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChoice:
    """What becomes of the classifier.

    Attributes:
        head: `keep` it as it is; `drop` it, so that it starts anew; `by-name`: keep what it knows of the categories
            in `classes` that it has, by name, and start the others anew.
        classes: Categories of the new detector, in label order; empty for the file's own.
    """

    head: Literal["keep", "drop", "by-name"] = "keep"
    classes: tuple[str, ...] = ()

    def check(self, found: tuple[str, ...]) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: Categories twice or missing, or other categories for a classifier that is kept.
        """
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise UsageError(f"--classes: {', '.join(twice)} named more than once")
        if self.head == "by-name" and not self.classes:
            raise UsageError("--head by-name needs --classes", hint="Name the categories of your data.")
        if self.head == "keep" and self.classes and len(self.classes) != len(found):
            raise UsageError(
                f"--classes names {len(self.classes)} categories, the file's classifier has {len(found)}",
                hint="Use --head by-name to keep those that the two have in common, or --head drop.",
            )

    def rows(self, found: tuple[str, ...]) -> tuple[int | None, ...] | None:
        """For each new category the file's row it takes over; None where all stays as it is."""
        if self.head == "keep":
            return None
        names = self.classes or found
        return rows_by_name(names, found) if self.head == "by-name" else (None,) * len(names)


KEEP = HeadChoice()


def parse_classes(text: str | None) -> tuple[str, ...]:
    """Category names from `a,b,c`, or from a file with one per line.

    Raises:
        UsageError: There is no name in it.
    """
    if text is None:
        return ()
    file = Path(text)
    parts = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else text.split(",")
    names = tuple(name for part in parts if (name := part.strip()))
    if not names:
        raise UsageError(f"--classes {text!r} names no category")
    return names


def import_detector(
    file: Path, model: ModelConfig, out: Path, *, choice: HeadChoice = KEEP, overwrite: bool = False
) -> ImportSummary:
    """Write a checkpoint with the weights of a detector of MMDetection or torchvision.

    Args:
        file: `.pth` of MMDetection 2.x or 3.x, or of one of torchvision's two-stage detectors.
        model: What the weights are for; every weight of it must be in the file.
        out: Folder for the checkpoint and for the account of every key.
        choice: What becomes of the classifier.
        overwrite: Replace what an earlier import left there.

    Raises:
        CheckpointError: The file is no weights file, or does not fit the model; the differences are listed.
        UsageError: There is an earlier import in the folder.
    """
    if (out / WEIGHTS).exists() and not overwrite:
        raise UsageError(f"{out / WEIGHTS} exists", hint="Choose another --out, or add --overwrite.")
    made = take_over(read_mmdet_checkpoint(file), model, choice=choice)
    save_checkpoint(out / WEIGHTS, model_tensors(made.detector), made.meta)
    summary = ImportSummary(
        checkpoint=out / WEIGHTS,
        class_names=made.meta.class_names,
        conversion=made.conversion,
        reused=made.reused,
    )
    write_json(out / ACCOUNT, summary.to_dict(), indent=2)
    return summary


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedDetector:
    """A detector with foreign weights.

    Attributes:
        detector: With the weights.
        meta: What its checkpoint says of it.
        conversion: As in `ImportSummary`, as is `reused`.
    """

    detector: Detector
    meta: CheckpointMeta
    conversion: Conversion
    reused: tuple[str, ...] | None


def take_over(
    foreign: ForeignCheckpoint, model: ModelConfig, *, choice: HeadChoice = KEEP
) -> ImportedDetector:
    """Fill a detector with foreign weights; arguments and errors as of `import_detector`."""
    theirs = is_torchvision(foreign.weights)
    if theirs:
        foreign = replace(foreign, weights=in_our_order(foreign.weights))
        model = _as_in_torchvision(model, foreign, choice)
        found, ids = _torchvision_classes(foreign)
    else:
        model = _as_trained(model, foreign, choice)
        found = _class_names(foreign, model.hyperparameters["class_loss"])
        ids = tuple(range(1, len(found) + 1))
    choice.check(found)
    names, rows = choice.classes or found, choice.rows(found)
    detector = build_model(model, len(names))
    weights = foreign.weights
    if rows is not None:
        weights = with_rows(weights, rows, len(found), detector.state_dict())
    conversion = convert_torchvision(weights, detector) if theirs else convert(weights, detector)
    load_converted(detector, conversion)
    meta = CheckpointMeta(
        class_names=names,
        category_ids=ids if names == found else tuple(range(1, len(names) + 1)),
        model=model.model_dump(mode="json"),
        predict=PredictConfig(scales=800, long_side=1333).model_dump(mode="json"),
    )
    reused = (
        None
        if rows is None
        else tuple(name for name, row in zip(names, rows, strict=True) if row is not None)
    )
    return ImportedDetector(detector=detector, meta=meta, conversion=conversion, reused=reused)


def _as_trained(model: ModelConfig, foreign: ForeignCheckpoint, choice: HeadChoice) -> ModelConfig:
    """The model with what the file says of it, where the user did not: its weights mean nothing otherwise."""
    told: dict[str, Any] = {
        "roi_samples": 0,  # MMDetection trains with RoIAlign's adaptive sampling
        "neck_norm": norm_of(foreign.weights, "neck."),
        "head_norm": norm_of(foreign.weights, "roi_head.bbox_head."),
        "mask_norm": norm_of(foreign.weights, "roi_head.mask_head."),
        "class_loss": class_loss_of(foreign.weights),
        "mask_iou": ranks_by_masks(foreign.weights),
    }
    if foreign.classifier is not None:
        told["classifier"] = foreign.classifier
    labels = semantic_labels_of(foreign.weights)
    if choice.head == "keep" and labels != num_classes_of(foreign.weights, told["class_loss"]) + 1:
        told["semantic_labels"] = labels  # learned from labels of pixels, not from the categories
    pruned = pruned_stages_of(foreign.weights)
    if pruned is not None:
        told |= {"composite": True, "pruned_stages": pruned}
    known = model.known_keys(model.model_dump())
    return model.with_options(**{k: v for k, v in told.items() if k in known and k not in model.options})


def _as_in_torchvision(model: ModelConfig, foreign: ForeignCheckpoint, choice: HeadChoice) -> ModelConfig:
    """The model with what torchvision's detectors have in common, where the user did not say otherwise."""
    count = len(foreign.weights["roi_heads.box_predictor.cls_score.bias"])
    spare = count - 1 - len(classifier_rows(foreign.weights))
    told = {
        "roi_samples": 2,
        "roi_aligned": False,
        "anchors_rounded": True,
        "spare_logits": spare if choice.head == "keep" else 0,
    }
    return model.with_options(**{k: v for k, v in told.items() if k not in model.options})


def _torchvision_classes(foreign: ForeignCheckpoint) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the categories, COCO's for a classifier of its 91 rows."""
    rows = classifier_rows(foreign.weights)
    return class_names_of(foreign.weights), rows


def _class_names(foreign: ForeignCheckpoint, class_loss: ClassLossKind) -> tuple[str, ...]:
    """The file's names if it has one for every class of its classifier, else numbered ones."""
    count = num_classes_of(foreign.weights, class_loss)
    names = foreign.class_names or ()
    return names if len(names) == count else tuple(f"class_{number}" for number in range(1, count + 1))

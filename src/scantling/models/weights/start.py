"""Weights to start from: what a file holds of a detector, put into another one as far as it fits.

    our checkpoint, torchvision's, MMDetection's ── our keys ──► backbone, whole or refused
                                                               ► neck, RPN, heads: layer by layer, where shapes agree
                                                               ► classifiers, boxes and masks per class, labels of
                                                                 cells: rows by name
    any other file ── the backbone's weights, whole or refused

What is not taken keeps its initial values.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from scantling.errors import CheckpointError
from scantling.models.contract import Detector
from scantling.models.weights.class_rows import label_rows, moved_rows, rows_by_name
from scantling.models.weights.foreign import looks_like_pytorch
from scantling.models.weights.mmdet import is_mmdet, mmdet_in_our_names, names_in
from scantling.models.weights.opener import pytorch_tensors, read_pytorch, read_safetensors
from scantling.models.weights.torchvision_detectors import (
    class_names_of,
    in_our_order,
    is_torchvision,
    torchvision_in_our_names,
)

Layout = Literal["scantling", "torchvision", "mmdetection", "backbone"]

PARTS = {
    "backbone": ("backbone.",),
    "neck": ("neck.",),
    "RPN": ("rpn.",),
    "box heads": ("head.", "stages."),
    "mask heads": ("mask_head.", "mask_stages."),
    "semantic head": ("semantic_head.",),
    "context head": ("context_head.",),
    "relay": ("relay.",),
    "MaskIoU head": ("mask_iou_head.",),
}
_PREDICTOR = re.compile(
    r"(?:head|stages\.\d+|(?:mask|semantic|context|mask_iou)_head|mask_stages\.\d+)\.(logits|deltas|ious)"
)
_NEVER_SHARED = ("context_head.", "mask_iou_head.")
"""Predictors of which one row is that of the one category, not one for all."""
_DERIVED = ("num_batches_tracked", "relative_position_index")
_NO_START = {
    "refiner": "A refiner's backbone is no start for a detector.",
    "pretraining": "Its folder holds a `backbone.safetensors`: name that.",
}
_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a file of weights holds.

    Attributes:
        path: The file.
        layout: Whose names its weights have; `backbone` where there is no more than a backbone.
        weights: Tensors by their names in the file.
        class_names: In the order of the classifier's rows; empty where they are not known.
        model: The settings of the model, of a checkpoint of ours; empty for others.
    """

    path: Path
    layout: Layout
    weights: dict[str, Tensor]
    class_names: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_detector(self) -> bool:
        """Whether there is more than a backbone in it."""
        return self.layout != "backbone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a file of weights.

    Attributes:
        path: The file.
        parts: For each part of the model how many of its tensors were taken, and how many it has.
        known: Categories whose rows were taken over by name.
        fresh: Categories that the file does not know.
        left: Names of its tensors that were not taken, ours where they have one.
    """

    path: Path
    parts: Mapping[str, tuple[int, int]]
    known: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]

    def to_text(self) -> str:
        """One line for the log."""
        told = [
            f"{part} {taken} of {number} tensors" for part, (taken, number) in self.parts.items() if number
        ]
        if self.known or self.fresh:
            anew = f" (anew: {_some(self.fresh)})" if self.fresh else ""
            told.append(
                f"classifier: {len(self.known)} of {len(self.known) + len(self.fresh)} categories by name{anew}"
            )
        if self.left:
            counts = Counter(key.partition(".")[0] for key in self.left)
            told.append(
                f"left in the file: {', '.join(f'{number} of {part}' for part, number in counts.items())}"
            )
        return f"started from {self.path}: {'; '.join(told)}"


def read_start(path: Path) -> Start:
    """Read a file to start from, whoever made it.

    Args:
        path: A checkpoint of ours, of a detector of torchvision or MMDetection, or a backbone's weights.

    Raises:
        CheckpointError: As `read_weights`, or the file is of something else than a detector or a backbone.
    """
    if looks_like_pytorch(path):
        content = read_pytorch(path)
        weights = pytorch_tensors(path, content)
        if is_torchvision(weights):
            ordered = in_our_order(weights)
            return Start(
                path=path, layout="torchvision", weights=ordered, class_names=class_names_of(weights)
            )
        if is_mmdet(weights):
            return Start(
                path=path, layout="mmdetection", weights=weights, class_names=names_in(content, weights)
            )
        return Start(path=path, layout="backbone", weights=weights)
    weights, said = read_safetensors(path)
    record = said or {}
    kind, model, names = record.get("kind"), record.get("model"), record.get("class_names")
    if kind in _NO_START:
        raise CheckpointError(
            f"{path}: expected weights to start from, found those of a {kind}", hint=_NO_START[kind]
        )
    if not any(key.startswith(("neck.", "rpn.", "pixel_decoder.")) for key in weights):
        return Start(path=path, layout="backbone", weights=weights)
    return Start(
        path=path,
        layout="scantling",
        weights=weights,
        class_names=tuple(map(str, names)) if isinstance(names, list) else (),
        model=model if isinstance(model, dict) else {},
    )


def require_fit(model: Detector, start: Start) -> None:
    """See whether a model can start there; loads nothing.

    Raises:
        ConfigError: The backbone is another one.
    """
    weights = dict(_in_our_names(model, start).values())
    for place, backbone in model.backbones().items():
        backbone.fitting(weights, place)


def take(model: Detector, start: Start, class_names: Sequence[str]) -> Taken:
    """Put into a model all that fits.

    Args:
        model: Just built; changed in place.
        start: What to take from.
        class_names: The model's K categories in label order; rows are found by them.

    Raises:
        ConfigError: The backbone is another one; the model is as it was.
    """
    require_fit(model, start)
    named, own = _in_our_names(model, start), model.state_dict()
    weights = dict(named.values())
    for place, backbone in model.backbones().items():
        backbone.load(weights, place)
    bodies = tuple(f"{place}body." for place in model.backbones())
    layers = {key: value for key, value in own.items() if not key.startswith(bodies)}
    found = _fitting_layers(weights, layers, start, class_names) if start.is_detector else {}
    model.load_state_dict(model.state_dict() | found)
    counted = [key for key in own if not key.endswith(_DERIVED)]
    used = {key for key in counted if key.startswith(bodies)} | found.keys()
    if "backbone." not in model.backbones():  # a plain one has filled two
        used |= {key for key in weights if key.startswith("backbone.body.")}
    parts = {part: [key for key in counted if key.startswith(PARTS[part])] for part in PARTS}
    places = {theirs: place for theirs, (place, _) in named.items()}
    left = [key for key in start.weights if places.get(key) not in used and not key.endswith(_DERIVED)]
    by_name = any(key.startswith(PARTS["box heads"]) and ".logits." in key for key in found)
    rows = rows_by_name(class_names, start.class_names if by_name else ())
    return Taken(
        path=start.path,
        parts={part: (sum(key in used for key in keys), len(keys)) for part, keys in parts.items()},
        known=tuple(name for name, row in zip(class_names, rows, strict=True) if row is not None),
        fresh=tuple(name for name, row in zip(class_names, rows, strict=True) if row is None),
        left=tuple(left) if start.is_detector else (),
    )


def _in_our_names(model: Detector, start: Start) -> dict[str, tuple[str, Tensor]]:
    """For each key of the file our detector's, and the tensor; those of a backbone alone are `Backbone.fitting`'s.

    A plain detector's backbone keeps its names, also where the model has two that it fills.
    """
    target = model.state_dict()
    bodies = {place: f"{place}body." for place in model.backbones()}
    plain = {
        f"backbone.{key.removeprefix(place)}": value
        for place, body in bodies.items()
        for key, value in target.items()
        if key.startswith(body)
    }
    if start.layout == "torchvision":
        return torchvision_in_our_names(start.weights, plain | target)
    if start.layout == "mmdetection":
        return mmdet_in_our_names(start.weights, plain | target)
    return {key: (key, value) for key, value in start.weights.items()}


def _fitting_layers(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], start: Start, class_names: Sequence[str]
) -> dict[str, Tensor]:
    """What of neck, RPN and heads can be taken, a layer whole or not at all."""
    layers: dict[str, list[str]] = defaultdict(list)
    for key in own:
        layers[key.rpartition(".")[0]].append(key)
    taken: dict[str, Tensor] = {}
    for layer, keys in layers.items():
        present = [key for key in keys if key in weights]
        if {key for key in keys if not key.endswith(_DERIVED)} - set(present):
            continue
        predictor = _PREDICTOR.fullmatch(layer)
        if predictor:
            moved = {key: _by_class(key, weights, own, start.class_names, class_names) for key in present}
        else:
            counts_others = layer.endswith("class_loss") and start.class_names != tuple(class_names)
            moved = {
                key: None if counts_others or weights[key].shape != own[key].shape else weights[key]
                for key in present
            }
        whole = {key: value for key, value in moved.items() if value is not None}
        if len(whole) == len(present):
            taken |= whole
    return taken


def _by_class(
    key: str,
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    found: Sequence[str],
    wanted: Sequence[str],
) -> Tensor | None:
    """A predictor's tensor with rows by category; None where nothing of it can be taken."""
    value, initial = weights[key], own[key]
    head = _PREDICTOR.match(key)
    is_classifier = key.startswith(("head.", "stages."))  # with rows behind those of the categories
    is_logits = head is not None and head[1] != "deltas"
    step = 1 if is_logits else 4
    if value.shape[1:] != initial.shape[1:]:
        return None
    if key.startswith("semantic_head."):
        if tuple(found) == tuple(wanted) and len(value) == len(initial):
            return value
        cells = label_rows(rows_by_name(wanted, found), len(found), len(value))
        taken = len(initial) == len(cells) and cells[0] is not None
        return moved_rows(value, cells, initial, step) if taken else None
    if not (is_logits and is_classifier):
        if len(value) == len(initial) == step and not key.startswith(_NEVER_SHARED):
            return value  # one for all categories: no rows to be found
        if len(value) != step * len(found) or len(initial) != step * len(wanted):
            return None
    rows = rows_by_name(wanted, found)
    if not any(row is not None for row in rows):
        return None
    if is_logits and is_classifier:
        counts = f"{key.rpartition('.logits')[0]}.class_loss.counts"
        if (counts in weights) != (counts in own):  # softmax's rows behind the categories mean something else
            return None
        tail = min(len(value) - len(found), len(initial) - len(wanted))
        rows = (*rows, *range(len(found), len(found) + tail))
    return moved_rows(value, rows, initial, step)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

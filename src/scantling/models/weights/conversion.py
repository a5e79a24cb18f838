"""What becomes of every weight of another project's detector.

{their key: tensor} ── a layout's rules ──► {their key: (our key, tensor)} ── account_for ──► Conversion ── load
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from scantling.errors import CheckpointError
from scantling.models.contract import Detector

_PART = re.compile(r"(?:backbone|neck|rpn_head|roi_head|rpn|roi_heads)\.")
_DERIVED = re.compile(r".*\.(?:relative_position_index|num_batches_tracked)")
_LEFT_OVER = re.compile(r"backbone\.cb_modules\.1\.bn1\..+")
"""Of a stem that CBNet's second ResNet does not have, but lists."""
_MASK_BRANCH = re.compile(r"roi_heads?\.mask_(?:head|iou_head|predictor)\..+")
_STATISTICS = re.compile(r".*\.running_(?:mean|var)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Outcome of translating a checkpoint for one model.

    Attributes:
        weights: Tensors by our keys, ready to load.
        used: Their key -> our key.
        unused: Their keys that no part of the model takes.
        missing: Our keys that the checkpoint does not fill.
        mismatched: (our key, our shape, their shape) where the shapes differ.
    """

    weights: dict[str, Tensor]
    used: dict[str, str]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def unplaced(self) -> tuple[str, ...]:
        """Unused keys without which the detector would not compute what it was trained to.

        What is no part of the network (an average that training keeps) may be left out, what is derived from the
        architecture, what the network itself does not use, and the masks' branch of a detector of boxes.
        """
        has_masks = any(_MASK_BRANCH.fullmatch(key) for key in self.used)
        return tuple(
            key
            for key in self.unused
            if _PART.match(key)
            and not _DERIVED.fullmatch(key)
            and not _LEFT_OVER.fullmatch(key)
            and (has_masks or not _MASK_BRANCH.fullmatch(key))
        )


def account_for(
    weights: Mapping[str, Tensor], named: Mapping[str, tuple[str, Tensor]], target: Mapping[str, Tensor]
) -> Conversion:
    """Compare what a layout's rules have named with what a model has.

    Args:
        weights: The file's tensors by their own keys.
        named: Of those that have one, our key and the tensor in our order.
        target: Our model's state.
    """
    fits = {key: (own, value) for key, (own, value) in named.items() if target[own].shape == value.shape}
    mismatched = {own: value for key, (own, value) in named.items() if key not in fits}
    ours = dict(fits.values())
    optional = {key for key in target if key.endswith(("num_batches_tracked", "class_loss.counts"))}
    return Conversion(
        weights=ours,
        used={key: own for key, (own, _) in fits.items()},
        unused=tuple(key for key in weights if key not in named),
        missing=tuple(
            key for key in target if key not in ours and key not in optional and key not in mismatched
        ),
        mismatched=tuple(
            (own, tuple(target[own].shape), tuple(value.shape)) for own, value in mismatched.items()
        ),
    )


def load_converted(model: Detector, conversion: Conversion) -> None:
    """Load a complete conversion into `model`.

    Raises:
        CheckpointError: Weights are missing or have other shapes, or the file has weights or running statistics that
            find no place in the model; the first of them are listed.
    """
    if conversion.missing or conversion.mismatched:
        shapes = [f"{k}: model {a}, checkpoint {b}" for k, a, b in conversion.mismatched[:5]]
        raise CheckpointError(
            f"the checkpoint does not fit the model: {len(conversion.missing)} weights are missing, first "
            f"{list(conversion.missing[:5])}; {len(conversion.mismatched)} have other shapes, first {shapes}; "
            f"{len(conversion.unused)} of its own are unused, first {list(conversion.unused[:5])}",
            hint="Check --model: architecture, depth, normalisation and deformable stages must agree.",
        )
    if conversion.unplaced:
        statistics = any(_STATISTICS.fullmatch(key) for key in conversion.unplaced)
        raise CheckpointError(
            f"the checkpoint does not fit the model: {len(conversion.unplaced)} of its weights find no place in it, "
            f"first {list(conversion.unplaced[:5])}; without them the detector would see something else",
            hint="These layers were trained with BatchNorm, the model has another normalisation there: set `norm` "
            "(bn_eval), `neck_norm` or `head_norm` (bn)."
            if statistics
            else "Check --model: architecture, depth, normalisation and deformable stages must agree.",
        )
    model.load_state_dict(model.state_dict() | conversion.weights)

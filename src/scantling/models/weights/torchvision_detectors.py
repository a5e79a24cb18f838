"""Reading torchvision's own detectors (Faster R-CNN and Mask R-CNN on R50-FPN, both generations) into ours.

    FILE.pth ── {their key: tensor} ── RULES, rows in our order ──► {our key: tensor} ── load ──► Detector

Their classifiers have background first; those of the published files have 91 rows, ten of which stand for no category
of COCO. These go behind ours as spare logits: they take part in the softmax as before. Files of the first generation
come from BatchNorm with fixed statistics and no epsilon; ours has 1e-5, which is taken off the variances.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from scantling.errors import CheckpointError
from scantling.models.contract import Detector
from scantling.models.weights.conversion import Conversion, account_for

EPSILON = 1e-5
COCO_ROWS = 91
_WITHOUT_CATEGORY = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(row for row in range(1, COCO_ROWS) if row not in _WITHOUT_CATEGORY)
"""Rows of the published classifiers that stand for a category, which are its ids in COCO."""

_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush
"""
COCO_NAMES = tuple(name.strip() for name in _NAMES.split(","))

_CLASS_ROWS = re.compile(r"roi_heads\.box_predictor\.cls_score\.\w+")
_BOX_ROWS = re.compile(r"roi_heads\.box_predictor\.bbox_pred\.\w+")
_MASK_ROWS = re.compile(r"roi_heads\.mask_predictor\.mask_fcn_logits\.\w+")

# (their key, our key): regular expressions over whole keys, tried in order. Names without a number in between are
# those of files written before torchvision 0.13, the published ones of the first generation among them.
_RULES = (
    (r"backbone\.body\.(.+)", r"backbone.body.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(weight|bias)", r"neck.laterals.\1.0.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.([01]\.\w+)", r"neck.laterals.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(weight|bias)", r"neck.outputs.\1.0.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.([01]\.\w+)", r"neck.outputs.\1.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"head.trunk.1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"head.trunk.3.\1"),
    (r"roi_heads\.box_head\.(.+)", r"head.trunk.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"head.logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"head.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d\.[01]\.\w+)", r"mask_head.convs.\1"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.upsample.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1"),
)


def is_torchvision(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of one of torchvision's two-stage detectors."""
    return any(_CLASS_ROWS.fullmatch(key) for key in weights)


def classifier_rows(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Rows of the classifier that stand for a category, in the order of our labels.

    Args:
        weights: Tensors by torchvision's keys.

    Returns:
        All but background; of the 91 rows of a detector for COCO the 80 that have a category.

    Raises:
        CheckpointError: There is no classifier.
    """
    count = next((len(value) for key, value in weights.items() if _CLASS_ROWS.fullmatch(key)), None)
    if count is None:
        raise CheckpointError(
            "the checkpoint has no two-stage box head (no key roi_heads.box_predictor.cls_score.*)"
        )
    return COCO_IDS if count == COCO_ROWS else tuple(range(1, count))


def class_names_of(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the categories in the order of our labels: COCO's for a classifier of its 91 rows, else numbered."""
    rows = classifier_rows(weights)
    return COCO_NAMES if rows == COCO_IDS else tuple(f"class_{row}" for row in rows)


def in_our_order(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with background behind the categories, rows without a category last, and our epsilon.

    Args:
        weights: Tensors by torchvision's keys.
    """
    rows = classifier_rows(weights)
    fixed = not any(key.endswith("num_batches_tracked") for key in weights)
    ordered = {}
    for key, value in weights.items():
        if _CLASS_ROWS.fullmatch(key):
            others = [row for row in range(len(value)) if row not in rows]  # background, then the spare ones
            ordered[key] = value[[*rows, *others]]
        elif _BOX_ROWS.fullmatch(key):
            ordered[key] = value.view(-1, 4, *value.shape[1:])[list(rows)].flatten(0, 1)
        elif _MASK_ROWS.fullmatch(key):
            ordered[key] = value[list(rows)]
        else:
            ordered[key] = value - EPSILON if fixed and key.endswith("running_var") else value
    return ordered


def convert_torchvision(weights: Mapping[str, Tensor], model: Detector) -> Conversion:
    """Translate keys for `model`; nothing is loaded.

    Args:
        weights: As `in_our_order` gives them, perhaps with other classifier rows.
        model: The detector to be filled.
    """
    target = model.state_dict()
    return account_for(weights, torchvision_in_our_names(weights, target), target)


def torchvision_in_our_names(
    weights: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, tuple[str, Tensor]]:
    """For each key that has a counterpart our key, and the tensor.

    Args:
        weights: As `in_our_order` gives them.
        target: State of the detector of ours.
    """
    num_convs = len({key for key in target if re.fullmatch(r"rpn\.earlier\.\d\.0\.weight", key)}) + 1
    named = {}
    for key, value in weights.items():
        own = _our_key(key, num_convs)
        if own is not None and own in target:
            named[key] = own, value
    return named


def _our_key(key: str, num_convs: int) -> str | None:
    if match := re.fullmatch(r"rpn\.head\.conv\.(\d)\.0\.(\w+)", key):
        number = int(match[1])
        return f"rpn.conv.{match[2]}" if number == num_convs - 1 else f"rpn.earlier.{number}.0.{match[2]}"
    if match := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", key):
        return f"mask_head.convs.{int(match[1]) - 1}.0.{match[2]}"
    return _first_match(_RULES, key)


def _first_match(rules: Sequence[tuple[str, str]], key: str) -> str | None:
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in rules)
    return next((match.expand(name) for match, name in matches if match), None)

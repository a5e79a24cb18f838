"""Every named model's numbers beside those MMDetection 3.3.0 publishes for it.

The facts are the settings of its configuration files, by our words: `faster-rcnn_r50_fpn`, `cascade-rcnn_r50_fpn`,
`cascade-rcnn_x101-64x4d_fpn`, `dconv/cascade-rcnn_r50-dconv-c3-c5_fpn`, `gn/mask-rcnn_r50_fpn_gn-all`,
`double_heads/dh-faster-rcnn_r50_fpn`, `mask-rcnn_r50_fpn`, `cascade-mask-rcnn_r50_fpn`,
`htc_r50_fpn`, `htc-without-semantic_r50_fpn`, `htc_x101-64x4d-dconv-c3-c5_fpn`, `scnet_r50_fpn`,
`scnet_x101-64x4d_fpn`, `swin/mask-rcnn_swin-t-p4-w7_fpn`,
`convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou`; of the Swin authors' own repository for the cascade on
Swin; of CBNetV2's, `faster_rcnn_cbv2d1_r50_fpn`,
`htc_cbv2_swin_base_patch4_window7_mstrain_400-1400_giou_4conv1f` (and that at Swin-T's sizes, which is the golden
case); of team RalleyTheValley's report, SCNet with deformable convolution and Seesaw loss; and of torchvision's
constructors. Where ours differ on purpose,
DEVIATIONS says so.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import BaseModel

from scantling.models.suppression import SuppressConfig
from scantling.models.zoo import MODELS, ModelConfig, build_model

COMMON = {
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
    "backbone.name": "resnet50",
    "backbone.norm": "bn_eval",
    "backbone.frozen_stages": 1,
    "backbone.deform": (),
    "backbone.deform_version": 1,
    "backbone.drop_path": None,
    "composite": None,
    "neck.channels": 256,
    "neck.norm": "none",
    "rpn.num_convs": 1,
    "rpn.anchors.rounded": False,
    "rpn.anchors.scales": (8.0,),
    "rpn.anchors.ratios": (0.5, 1.0, 2.0),
    "rpn.assign.positive_iou": 0.7,
    "rpn.assign.negative_iou": 0.3,
    "rpn.assign.low_quality_iou": 0.3,
    "rpn.sample.num": 256,
    "rpn.sample.positive_fraction": 0.5,
    "rpn.allowed_border": None,
    "rpn.loss.kind": "smooth_l1",
    "rpn.loss.beta": 0.0,
    "rpn.loss.weight": 1.0,
    "rpn.train_per_level": 2000,
    "rpn.train_proposals": 1000,
    "rpn.test_per_level": 1000,
    "rpn.test_proposals": 1000,
    "rpn.iou_threshold": 0.7,
    "sample.num": 512,
    "sample.positive_fraction": 0.25,
}
HEAD = {
    "kind": "shared_fc",
    "fc_channels": 1024,
    "conv_channels": 256,
    "norm": "none",
    "pool_side": 7,
    "pool_samples": 0,
    "aligned": True,
    "class_agnostic": False,
    "class_loss": "softmax",
    "classifier": "linear",
    "spare_logits": 0,
    "stds": (0.1, 0.1, 0.2, 0.2),
    "class_weight": 1.0,
    "box_loss.kind": "smooth_l1",
    "box_loss.beta": 0.0,
    "box_loss.weight": 1.0,
}
AT_HALF = {"positive_iou": 0.5, "negative_iou": 0.5, "low_quality_iou": None}
SWIN = {
    "backbone.name": "swin_tiny_patch4_window7_224",
    "backbone.norm": "default",
    "backbone.drop_path": 0.2,
}
GN_DCN = {"backbone.norm": "gn", "backbone.deform": (2, 3, 4), "backbone.frozen_stages": 0, "neck.norm": "gn"}


def under(prefix: str, facts: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in facts.items()}


FASTER = COMMON | under("head", HEAD) | under("assign", AT_HALF) | {"mask": None, "mask_iou": None}
CASCADE = COMMON | {
    "mask": None,
    "mask_iou": None,
    "rpn.allowed_border": 0.0,
    "rpn.loss.beta": 1 / 9,
    "rpn.train_proposals": 2000,
}
for stage, (weight, iou, xy, wh) in enumerate(
    [(1.0, 0.5, 0.1, 0.2), (0.5, 0.6, 0.05, 0.1), (0.25, 0.7, 0.033, 0.067)]
):
    own = {"class_agnostic": True, "box_loss.beta": 1.0, "stds": (xy, xy, wh, wh)}
    CASCADE |= under(f"stages.{stage}.head", HEAD | own) | {f"stages.{stage}.weight": weight}
    overlaps = AT_HALF | {"positive_iou": iou, "negative_iou": iou}
    CASCADE |= under(f"stages.{stage}.assign", overlaps)
DOUBLE_HEAD = {key: HEAD[key] for key in HEAD if key != "kind"} | {
    "conv_channels": 1024,
    "num_blocks": 4,
    "norm": "bn",
    "enlarge": 1.3,
    "class_weight": 2.0,
    "box_loss.beta": 1.0,
    "box_loss.weight": 2.0,
}
DOUBLE = COMMON | under("head", DOUBLE_HEAD) | under("assign", AT_HALF)

MASK_HEAD = {
    "num_convs": 4,
    "channels": 256,
    "residual": False,
    "norm": "none",
    "pool_side": 14,
    "pool_samples": 0,
    "aligned": True,
    "class_agnostic": False,
    "weight": 1.0,
}
BOXES = {key: value for key, value in FASTER.items() if key != "mask"}
MASK = BOXES | under("mask", MASK_HEAD) | {"assign.low_quality_iou": 0.5}
CASCADE_MASK = {key: value for key, value in CASCADE.items() if key != "mask"} | under("mask", MASK_HEAD)

SEMANTIC_HEAD = {
    "num_convs": 4,
    "residual": False,
    "num_labels": 183,
    "pool_side": 14,
    "pool_samples": 0,
    "aligned": True,
    "weight": 0.2,
}
HTC = CASCADE_MASK | under("semantic", SEMANTIC_HEAD)
SCNET = HTC | {"semantic.residual": True, "mask.num_convs": 12, "mask.residual": True, "relay": True}
SCNET |= under("context", {"num_convs": 4, "residual": True, "weight": 3.0})
SEESAW = {f"stages.{stage}.head.class_loss": "seesaw" for stage in range(3)}


def conv_giou(norm: str, class_agnostic: bool) -> dict[str, Any]:  # noqa: FBT001
    own = {"kind": "conv_fc", "norm": norm, "box_loss.kind": "giou", "box_loss.weight": 10.0}
    own |= {"class_agnostic": class_agnostic}
    return {f"stages.{stage}.head.{key}": value for stage in range(3) for key, value in own.items()}


def composite(facts: dict[str, Any], pruned: int) -> dict[str, Any]:
    """On two backbones: as CBNetV2 publishes it."""
    rest = {key: value for key, value in facts.items() if key != "composite"}
    return rest | {"composite.pruned_stages": pruned, "composite.assistant_weight": 0.5}


HTC_SWIN = CASCADE_MASK | SWIN | {"semantic": None, "backbone.frozen_stages": 0}
HTC_SWIN |= conv_giou("sync_bn", class_agnostic=True)
CONVNEXT = {"backbone.name": "convnext_tiny", "backbone.norm": "default", "backbone.drop_path": 0.4}
TORCHVISION = {
    "backbone.norm": "frozen_bn",
    "backbone.frozen_stages": 1,
    "rpn.anchors.rounded": True,
    "rpn.assign.low_quality_iou": 0.0,
    "rpn.loss.beta": 1 / 9,
    "rpn.train_proposals": 2000,
    "head.pool_samples": 2,
    "head.aligned": False,
    "head.box_loss.beta": 1 / 9,
}
TORCHVISION_V2 = TORCHVISION | {
    "backbone.norm": "bn",
    "neck.norm": "bn",
    "rpn.num_convs": 2,
    "head.kind": "conv_fc",
    "head.norm": "bn",
}
TORCHVISION_MASK = {"mask.pool_samples": 2, "mask.aligned": False, "assign.low_quality_iou": None}

FACTS = {
    "faster_rcnn_r50": FASTER,
    "faster_rcnn_swin_t": FASTER | SWIN | {"backbone.frozen_stages": 0},
    "cascade_rcnn_r50": CASCADE,
    "cascade_rcnn_r50_dcn_gn": CASCADE | GN_DCN | {f"stages.{stage}.head.norm": "gn" for stage in range(3)},
    "cascade_rcnn_x101_64x4d": CASCADE | {"backbone.name": "resnext101_64x4d"},
    "double_head_rcnn_r50": DOUBLE,
    "double_head_rcnn_r50_dcn_gn": DOUBLE | GN_DCN,
    "mask_rcnn_r50": MASK,
    "mask_rcnn_swin_t": MASK | SWIN | {"backbone.frozen_stages": 0},
    "cascade_mask_rcnn_r50": CASCADE_MASK,
    "cascade_mask_rcnn_r50_giou": CASCADE_MASK | conv_giou("bn", class_agnostic=True),
    "cascade_mask_rcnn_x101_64x4d_dcn": CASCADE_MASK
    | {"backbone.name": "resnext101_64x4d", "backbone.deform": (2, 3, 4)},
    "cascade_mask_rcnn_swin_t": CASCADE_MASK
    | SWIN
    | {"backbone.frozen_stages": 0}
    | conv_giou("sync_bn", class_agnostic=False),
    "cascade_mask_rcnn_convnext_t": CASCADE_MASK
    | CONVNEXT
    | {"backbone.frozen_stages": 0}
    | conv_giou("sync_bn", class_agnostic=False),
    "htc_r50": HTC,
    "htc_without_semantic_r50": CASCADE_MASK | {"semantic": None},
    "htc_x101_64x4d_dcn": HTC | {"backbone.name": "resnext101_64x4d", "backbone.deform": (2, 3, 4)},
    "faster_rcnn_cb_r50": composite(FASTER, pruned=1),
    "htc_cb_swin_t": composite(HTC_SWIN, pruned=0),
    "htc_cb_swin_b": composite(HTC_SWIN, pruned=0)
    | {"backbone.name": "swin_base_patch4_window7_224", "backbone.drop_path": 0.3},
    "scnet_r50": SCNET,
    "scnet_r50_dcn_seesaw": SCNET | SEESAW | {"backbone.deform": (2, 3, 4)},
    "scnet_x101_64x4d": SCNET | {"backbone.name": "resnext101_64x4d"},
    "torchvision_faster_rcnn_r50": FASTER | TORCHVISION,
    "torchvision_faster_rcnn_r50_v2": FASTER | TORCHVISION_V2,
    "torchvision_mask_rcnn_r50": MASK | TORCHVISION | TORCHVISION_MASK,
    "torchvision_mask_rcnn_r50_v2": MASK | TORCHVISION_V2 | TORCHVISION_MASK | {"mask.norm": "bn"},
}
OWN = (
    "faster_rcnn_r18_small",
    "cascade_rcnn_r18_small",
    "double_head_rcnn_r18_small",
    "mask_rcnn_r18_small",
    "cascade_mask_rcnn_r18_small",
    "htc_r18_small",
    "htc_cb_r18_small",
    "scnet_r18_small",
    "htc_without_semantic_r50_giou",
)
"""Made for CPUs and few images, or of parts published apart; nobody else has published them."""

DEVIATIONS = {
    "torchvision.low_quality_iou": (0.3, "MMDetection's; torchvision's anchors claim a truth at any overlap"),
    "torchvision_mask.assign.low_quality_iou": (
        0.5,
        "MMDetection's; changes a match only where overlaps are equal",
    ),
    "pool_samples": (
        2,
        "as in the papers; adapting to the RoI costs two to four times as much (`roi_samples`)",
    ),
    "frozen_stages": (
        0,
        "models start from random weights unless told otherwise; recipes that do not freeze a stage",
    ),
    "allowed_border": (
        None,
        "anchors that cross the border learn too, as in Faster R-CNN: a small image has few others",
    ),
    "num_labels": (
        None,
        "labels derived from the masks, the categories and the ground; the published ones are COCO's things and stuff",
    ),
    "double_head_rcnn_r50_dcn_gn.head.norm": (
        "gn",
        "CS21 has GroupNorm throughout; `head_norm: bn` is MMDetection's",
    ),
}
OURS_ALONE = {"backbone.pretrained", "backbone.activation_checkpointing"}
"""What the reference does not have."""


def names(model: str, key: str) -> tuple[str, ...]:
    """Under what a deviation may be stated: for the model, for torchvision's, for all."""
    last = key.rpartition(".")[2]
    family = [f"torchvision.{last}", f"torchvision_mask.{key}"] if model.startswith("torchvision") else []
    return (f"{model}.{key}", *family, last)


def flat(value: object, key: str = "") -> dict[str, Any]:
    """Settings by their dotted path."""
    if isinstance(value, BaseModel):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        parts = {str(number): part for number, part in enumerate(value)}
    else:
        return {key: value}
    return {k: v for name, part in parts.items() for k, v in flat(part, f"{key}.{name}".lstrip(".")).items()}


def settings_of(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        return flat(build_model(ModelConfig(name=name), num_classes=2).config)


def test_every_model_has_its_facts_or_is_our_own() -> None:
    assert set(MODELS) == set(FACTS) | set(OWN)


@pytest.mark.parametrize("name", FACTS)
def test_every_number_is_the_published_one_or_a_stated_deviation(name: str) -> None:
    found = {key: value for key, value in settings_of(name).items() if key not in OURS_ALONE}
    assert found.keys() == FACTS[name].keys()
    differing = {key: value for key, value in found.items() if value != FACTS[name][key]}
    for key in list(differing):
        if any(told in DEVIATIONS and differing.get(key) == DEVIATIONS[told][0] for told in names(name, key)):
            del differing[key]
    assert differing == {}


def test_the_mask_iou_head_is_the_published_one() -> None:
    """Of Mask Scoring R-CNN: four convolutions, two layers of 1024, loss 1 on half the squared difference."""
    with torch.device("meta"):
        found = build_model(ModelConfig(name="mask_rcnn_r50", mask_iou=True), num_classes=2).config.mask_iou
    assert dict(found) == {"num_convs": 4, "channels": 256, "fc_channels": 1024, "weight": 1.0}


def test_every_deviation_is_one() -> None:
    """What is stated and no longer true goes out of the list."""
    differing = {
        told
        for name, facts in FACTS.items()
        for key, value in settings_of(name).items()
        for told in names(name, key)
        if key in facts and value != facts[key] and told in DEVIATIONS
    }
    assert differing == set(DEVIATIONS)


def test_suppression_is_the_published_one() -> None:
    """But for the scores, kept from 0.001 up as HTC's are: AP can only lose by the others' 0.05."""
    config = SuppressConfig()
    assert (config.method, config.iou_threshold, config.score_threshold, config.max_per_image) == (
        "hard",
        0.5,
        0.001,
        100,
    )

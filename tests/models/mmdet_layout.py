"""Our detectors' weights by the keys of MMDetection 3.3.0 and CBNetV2, written down independently of the importer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from scantling.models.contract import Detector

NORMS = {nn.BatchNorm2d: "bn", nn.SyncBatchNorm: "bn", nn.GroupNorm: "gn"}
SWIN = (
    (r"patch_embed\.proj\.(\w+)", r"patch_embed.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"patch_embed.norm.\1"),
    (r"layers_(\d)\.downsample\.(.+)", lambda m: f"stages.{int(m[1]) - 1}.downsample.{m[2]}"),
    (r"layers_(\d)\.blocks\.(\d+)\.attn\.(.+)", r"stages.\1.blocks.\2.attn.w_msa.\3"),
    (r"layers_(\d)\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"stages.\1.blocks.\2.ffn.layers.0.0.\3"),
    (r"layers_(\d)\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"stages.\1.blocks.\2.ffn.layers.1.\3"),
    (r"layers_(\d)\.blocks\.(\d+)\.(norm\d\.\w+)", r"stages.\1.blocks.\2.\3"),
)
SWIN_OF_CBNET = (
    (r"layers_(\d)\.downsample\.(.+)", lambda m: f"layers.{int(m[1]) - 1}.downsample.{m[2]}"),
    (r"layers_(\d)\.(blocks\..+)", r"layers.\1.\2"),
    (r"(patch_embed\..+)", r"\1"),
)
CONVNEXT = (
    (r"stem_(\d)\.(\w+)", r"downsample_layers.0.\1.\2"),
    (r"stages_(\d)\.downsample\.(.+)", r"downsample_layers.\1.\2"),
    (r"stages_(\d)\.blocks\.(\d+)\.conv_dw\.(\w+)", r"stages.\1.\2.depthwise_conv.\3"),
    (r"stages_(\d)\.blocks\.(\d+)\.mlp\.fc(\d\.\w+)", r"stages.\1.\2.pointwise_conv\3"),
    (r"stages_(\d)\.blocks\.(\d+)\.(.+)", r"stages.\1.\2.\3"),
)


def mmdet_weights(model: Detector, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The model's weights (or others of the same keys) as MMDetection names them."""
    kinds = {name: NORMS[type(m)] for name, m in model.named_modules() if type(m) in NORMS}
    own = model.state_dict() if weights is None else weights
    return {_their_key(key, kinds): value for key, value in own.items()}


def _their_key(key: str, kinds: Mapping[str, str]) -> str:
    kind = kinds.get(key.rpartition(".")[0], "conv")
    if match := re.fullmatch(r"backbone\.(assistant|lead)\.(.+)", key):
        subnet = {"assistant": "cb_modules.0", "lead": "cb_modules.1"}[match[1]]
        return f"backbone.{subnet}.{_backbone(match[2], kind, SWIN_OF_CBNET)}"
    if match := re.fullmatch(r"backbone\.(.+)", key):
        return f"backbone.{_backbone(match[1], kind, (*SWIN, *CONVNEXT))}"
    if match := re.fullmatch(r"neck\.(laterals|outputs)\.(\d)\.[01]\.(\w+)", key):
        part = {"laterals": "lateral_convs", "outputs": "fpn_convs"}[match[1]]
        return f"neck.{part}.{match[2]}.{kind}.{match[3]}"
    if match := re.fullmatch(r"rpn\.(conv|objectness|deltas)\.(\w+)", key):
        part = {"conv": "rpn_conv", "objectness": "rpn_cls", "deltas": "rpn_reg"}[match[1]]
        return f"rpn_head.{part}.{match[2]}"
    if match := re.fullmatch(r"mask_(?:head|stages\.(\d))\.(.+)", key):
        stage = "" if match[1] is None else f"{match[1]}."
        return f"roi_head.mask_head.{stage}{_mask_head(match[2], kind)}"
    if match := re.fullmatch(r"(semantic_head|context_head|relay|mask_iou_head)\.(.+)", key):
        return f"roi_head.{_alone(match[1], match[2])}"
    match = re.fullmatch(r"(?:head|stages\.(\d))\.(.+)", key)
    stage = "" if match[1] is None else f"{match[1]}."
    return f"roi_head.bbox_head.{stage}{_head(match[2], kind)}"


def _backbone(key: str, kind: str, rules: tuple) -> str:
    if match := re.fullmatch(r"links\.(.+)", key):
        return f"cb_linears.{match[1]}"
    if match := re.fullmatch(r"out_norms\.(\d\.\w+)", key):
        return f"norm{match[1]}"
    key = key.removeprefix("body.")
    for pattern, name in rules:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    key = key.replace("conv2.offset.", "conv2.conv_offset.")
    return re.sub(r"(^|\.)bn(\d)\.", rf"\1{kind}\2.", key)


def _pairs(key: str) -> str:
    """Blocks of two convolutions."""
    match = re.fullmatch(r"convs\.(\d)\.branch\.([01])\.0\.(\w+)", key)
    return key if match is None else f"convs.{match[1]}.conv{int(match[2]) + 1}.{match[3]}"


def _mask_head(key: str, kind: str) -> str:
    key = _pairs(key)
    key = re.sub(r"convs\.(\d)\.[01]\.", rf"convs.\1.{kind}.", key)
    key = re.sub(r"^flow\.[01]\.", f"conv_res.{kind}.", key)
    return re.sub(r"^logits\.", "conv_logits.", key)


def _alone(part: str, key: str) -> str:
    if part == "mask_iou_head":
        key = re.sub(r"^(convs|fcs)\.(\d)\.", lambda m: f"{m[1]}.{int(m[2]) // 2}.", key)
        return f"mask_iou_head.{re.sub(r'^ious.', 'fc_mask_iou.', key)}"
    if part == "relay":
        return f"feat_relay_head.{key}"
    if part == "context_head":
        return f"glbctx_head.{re.sub(r'^logits.', 'fc.', _pairs(key))}"
    key = _pairs(key)
    key = re.sub(r"^laterals\.(\d)\.0\.", r"lateral_convs.\1.conv.", key)
    key = re.sub(r"^convs\.(\d)\.0\.", r"convs.\1.conv.", key)
    key = re.sub(r"^embed\.0\.", "conv_embedding.conv.", key)
    return f"semantic_head.{re.sub(r'^logits.', 'conv_logits.', key)}"


def _head(key: str, kind: str) -> str:
    if match := re.fullmatch(r"(logits|deltas)\.(\w+)", key):
        part = {"logits": "fc_cls", "deltas": "fc_reg"}[match[1]]
        return f"{part}.{match[2]}"
    if key == "class_loss.counts":
        return "loss_cls.cum_samples"
    if match := re.fullmatch(r"trunk\.(\d)\.([01])\.(\w+)", key):
        return f"shared_convs.{match[1]}.{kind}.{match[3]}"
    if match := re.fullmatch(r"trunk\.(\d)\.(\w+)", key):
        return f"shared_fcs.{(int(match[1]) - 1) // 2 if int(match[1]) < 5 else 0}.{match[2]}"
    if match := re.fullmatch(r"fc_trunk\.(\d)\.(\w+)", key):
        return f"fc_branch.{(int(match[1]) - 1) // 2}.{match[2]}"
    if match := re.fullmatch(r"widen\.shortcut\.[01]\.(\w+)", key):
        return f"res_block.conv_identity.{kind}.{match[1]}"
    if match := re.fullmatch(r"widen\.branch\.(\d)\.[01]\.(\w+)", key):
        return f"res_block.conv{int(match[1]) + 1}.{kind}.{match[2]}"
    match = re.fullmatch(r"blocks\.(\d)\.branch\.(\d)\.([01])\.(\w+)", key)
    return f"conv_branch.{match[1]}.{kind}{int(match[2]) + 1}.{match[4]}"

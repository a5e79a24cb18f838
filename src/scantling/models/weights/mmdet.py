"""Reading MMDetection checkpoints (key layout of 2.x and 3.x), and CBNetV2's, into our detectors.

    FILE.pth ── weights-only load ──► {their key: tensor} ── RULES ──► {our key: tensor} ── load ──► Detector

Only names are translated. Values are taken as they are, but for the first convolution of models trained on BGR
images, whose input channels are reversed, and the order in which Swin merges four cells. Nothing in the file is ever
executed: the loader admits tensors, plain containers, NumPy scalars, and (as inert shells) the log classes that
MMEngine leaves in training checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from scantling.errors import CheckpointError
from scantling.models.class_losses import TEMPERATURE, ClassifierKind, ClassLossKind, make_class_loss
from scantling.models.contract import Detector
from scantling.models.layers import NormKind
from scantling.models.weights.conversion import Conversion, account_for
from scantling.models.weights.opener import pytorch_tensors, read_pytorch

# (their key, our key): regular expressions over whole keys, tried in order.
_BACKBONE = (
    (r"backbone\.conv1\.weight", r"backbone.body.conv1.weight"),
    (r"backbone\.(?:bn|gn)1\.(\w+)", r"backbone.body.bn1.\1"),
    (r"backbone\.stem\.([036])\.weight", r"backbone.body.conv1.\1.weight"),
    (r"backbone\.stem\.([14])\.(\w+)", r"backbone.body.conv1.\1.\2"),
    (r"backbone\.stem\.7\.(\w+)", r"backbone.body.bn1.\1"),
    (r"backbone\.(layer\d\.\d+)\.conv2[._](?:conv_)?offset\.(\w+)", r"backbone.body.\1.conv2.offset.\2"),
    (r"backbone\.(layer\d\.\d+)\.conv(\d)\.(weight|bias)", r"backbone.body.\1.conv\2.\3"),
    (r"backbone\.(layer\d\.\d+)\.(?:bn|gn)(\d)\.(\w+)", r"backbone.body.\1.bn\2.\3"),
    (r"backbone\.(layer\d\.\d+\.downsample\.\d+\.\w+)", r"backbone.body.\1"),
)
_SWIN_BLOCK = r"backbone\.stages\.(\d)\.blocks\.(\d+)\."
_SWIN = (
    (r"backbone\.patch_embed\.projection\.(\w+)", r"backbone.body.patch_embed.proj.\1"),
    (r"backbone\.patch_embed\.norm\.(\w+)", r"backbone.body.patch_embed.norm.\1"),
    (_SWIN_BLOCK + r"(norm\d\.\w+)", r"backbone.body.layers_\1.blocks.\2.\3"),
    (_SWIN_BLOCK + r"attn\.w_msa\.(.+)", r"backbone.body.layers_\1.blocks.\2.attn.\3"),
    (_SWIN_BLOCK + r"ffn\.layers\.0\.0\.(\w+)", r"backbone.body.layers_\1.blocks.\2.mlp.fc1.\3"),
    (_SWIN_BLOCK + r"ffn\.layers\.1\.(\w+)", r"backbone.body.layers_\1.blocks.\2.mlp.fc2.\3"),
    *(
        (rf"backbone\.stages\.{i}\.downsample\.(.+)", rf"backbone.body.layers_{i + 1}.downsample.\1")
        for i in range(3)
    ),
    (r"backbone\.norm(\d\.\w+)", r"backbone.out_norms.\1"),
    # Microsoft's own names and order, as MMDetection 2's users of Swin have them
    (r"backbone\.(patch_embed\.proj\.\w+)", r"backbone.body.\1"),
    (r"backbone\.layers\.(\d\.blocks\.\d+\..+)", r"backbone.body.layers_\1"),
    *((rf"backbone\.layers\.{i}\.(downsample\..+)", rf"backbone.body.layers_{i + 1}.\1") for i in range(3)),
)
_CONVNEXT_BLOCK = r"backbone\.stages\.(\d)\.(\d+)\."
_CONVNEXT = (
    (r"backbone\.downsample_layers\.0\.(\d)\.(\w+)", r"backbone.body.stem_\1.\2"),
    (r"backbone\.downsample_layers\.(\d)\.(\d\.\w+)", r"backbone.body.stages_\1.downsample.\2"),
    (_CONVNEXT_BLOCK + r"depthwise_conv\.(\w+)", r"backbone.body.stages_\1.blocks.\2.conv_dw.\3"),
    (_CONVNEXT_BLOCK + r"pointwise_conv(\d\.\w+)", r"backbone.body.stages_\1.blocks.\2.mlp.fc\3"),
    (_CONVNEXT_BLOCK + r"(norm\.\w+|gamma)", r"backbone.body.stages_\1.blocks.\2.\3"),
)
_NECK = (
    (r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", r"neck.laterals.\1.0.\2"),
    (r"neck\.lateral_convs\.(\d+)\.(?:bn|gn)\.(\w+)", r"neck.laterals.\1.1.\2"),
    (r"neck\.fpn_convs\.(\d+)\.conv\.(\w+)", r"neck.outputs.\1.0.\2"),
    (r"neck\.fpn_convs\.(\d+)\.(?:bn|gn)\.(\w+)", r"neck.outputs.\1.1.\2"),
)
_RPN = (
    (r"rpn_head\.rpn_conv\.(\w+)", r"rpn.conv.\1"),
    (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.deltas.\1"),
)
_HEAD = (
    (r"shared_convs\.(\d+)\.conv\.(\w+)", r"trunk.\1.0.\2"),
    (r"shared_convs\.(\d+)\.(?:bn|gn)\.(\w+)", r"trunk.\1.1.\2"),
    (r"fc_cls\.(\w+)", r"logits.\1"),
    (r"fc_reg\.(\w+)", r"deltas.\1"),
    (r"loss_cls\.cum_samples", r"class_loss.counts"),
)
_PAIRS = (  # each two convolutions with a shortcut, as SCNet has them
    *((rf"convs\.(\d+)\.conv{i + 1}\.(\w+)", rf"convs.\1.branch.{i}.0.\2") for i in range(2)),
    *((rf"convs\.(\d+)\.(?:bn|gn){i + 1}\.(\w+)", rf"convs.\1.branch.{i}.1.\2") for i in range(2)),
)
_MASK_HEAD = (
    *_PAIRS,
    (r"convs\.(\d+)\.conv\.(\w+)", r"convs.\1.0.\2"),
    (r"convs\.(\d+)\.(?:bn|gn)\.(\w+)", r"convs.\1.1.\2"),
    (r"upsample\.(\w+)", r"upsample.\1"),
    (r"conv_logits\.(\w+)", r"logits.\1"),
    (r"conv_res\.conv\.(\w+)", r"flow.0.\1"),
    (r"conv_res\.(?:bn|gn)\.(\w+)", r"flow.1.\1"),
)
_SEMANTIC_HEAD = (
    (r"lateral_convs\.(\d+)\.conv\.(\w+)", r"laterals.\1.0.\2"),
    (r"convs\.(\d+)\.conv\.(\w+)", r"convs.\1.0.\2"),
    *_PAIRS,
    (r"conv_embedding\.conv\.(\w+)", r"embed.0.\1"),
    (r"conv_logits\.(\w+)", r"logits.\1"),
)
_CONTEXT_HEAD = (
    (r"convs\.(\d+)\.conv\.(\w+)", r"convs.\1.0.\2"),
    *_PAIRS,
    (r"fc\.(\w+)", r"logits.\1"),
)
_MASK_IOU_HEAD = (
    *((rf"convs\.{i}\.(\w+)", rf"convs.{2 * i}.\1") for i in range(4)),
    *((rf"fcs\.{i}\.(\w+)", rf"fcs.{2 * i}.\1") for i in range(2)),
    (r"fc_mask_iou\.(\w+)", r"ious.\1"),
)
_RELAY = ((r"fc\.(\w+)", r"fc.\1"),)
_ALONE = {  # parts of which there is one in a detector: theirs -> ours, and the rules inside
    "semantic_head": ("semantic_head", _SEMANTIC_HEAD),
    "glbctx_head": ("context_head", _CONTEXT_HEAD),
    "feat_relay_head": ("relay", _RELAY),
    "mask_iou_head": ("mask_iou_head", _MASK_IOU_HEAD),
}
_DOUBLE_HEAD = (
    *((rf"fc_branch\.{i}\.(\w+)", rf"fc_trunk.{2 * i + 1}.\1") for i in range(2)),
    *((rf"res_block\.conv{i + 1}\.conv\.(\w+)", rf"widen.branch.{i}.0.\1") for i in range(2)),
    *((rf"res_block\.conv{i + 1}\.(?:bn|gn)\.(\w+)", rf"widen.branch.{i}.1.\1") for i in range(2)),
    (r"res_block\.conv_identity\.conv\.(\w+)", r"widen.shortcut.0.\1"),
    (r"res_block\.conv_identity\.(?:bn|gn)\.(\w+)", r"widen.shortcut.1.\1"),
    *((rf"conv_branch\.(\d+)\.conv{i + 1}\.(\w+)", rf"blocks.\1.branch.{i}.0.\2") for i in range(3)),
    *((rf"conv_branch\.(\d+)\.(?:bn|gn){i + 1}\.(\w+)", rf"blocks.\1.branch.{i}.1.\2") for i in range(3)),
)
_COMPOSITE = ((r"cb_modules\.0\.", "assistant."), (r"cb_modules\.1\.", "lead."))
_LINKS = re.compile(r"backbone\.cb_linears\.(.+)")
_MERGED_CELLS = re.compile(r"\.stages\.\d\.downsample\.(?:norm|reduction)\.")
_STATISTICS = re.compile(r"(.*)\.running_(?:mean|var)")
_CLASSIFIER = re.compile(r"roi_head\.bbox_head\.(?:0\.)?fc_cls\.weight")
_SHARED_FC = r"shared_fcs\.(\d+)\.(\w+)"
_SEMANTIC_LOGITS = "roi_head.semantic_head.conv_logits.weight"
_ROI_HEAD = r"roi_head\.(\w+_head)\.(?:(\d+)\.)?(.+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignCheckpoint:
    """What a file of another tool holds.

    Attributes:
        path: The file.
        weights: Its tensors by their own keys.
        class_names: Category names recorded in it, or None.
        meta: Plain facts recorded in it (versions, epoch), as found.
        classifier: The layer of its box heads' logits, told by the configuration that the file records, since the keys
            of all are the same; None where it records none.
    """

    path: Path
    weights: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    classifier: ClassifierKind | None = None


def read_mmdet_checkpoint(path: Path) -> ForeignCheckpoint:
    """Read a `.pth` file safely.

    Args:
        path: A PyTorch file with a `state_dict` entry, or a bare state dict.

    Raises:
        CheckpointError: The file is missing, is no PyTorch file, needs code to be executed, holds no tensors, or has a
            classifier of another temperature than ours.
    """
    content = read_pytorch(path)
    weights = pytorch_tensors(path, content)
    meta = content.get("meta", {})
    return ForeignCheckpoint(
        path=path,
        weights=weights,
        class_names=_class_names(meta),
        meta=_plain(meta),
        classifier=_classifier(meta, path),
    )


def is_mmdet(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of one of MMDetection's two-stage detectors."""
    return any(_CLASSIFIER.fullmatch(key) for key in weights)


def names_in(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The category names that a file records; empty where it has none, or not one for every class of its classifier.

    Args:
        content: What `opener.read_pytorch` returned.
        weights: Its tensors by MMDetection's keys.
    """
    names = _class_names(content.get("meta")) or ()
    return names if len(names) == num_classes_of(weights, class_loss_of(weights)) else ()


def class_loss_of(weights: Mapping[str, Tensor]) -> ClassLossKind:
    """What the classifier was trained with: Seesaw's counts are part of its weights."""
    return "seesaw" if any(key.endswith("loss_cls.cum_samples") for key in weights) else "softmax"


def num_classes_of(weights: Mapping[str, Tensor], class_loss: ClassLossKind) -> int:
    """Foreground classes K of a checkpoint.

    Args:
        weights: Tensors by MMDetection's keys.
        class_loss: What the rows of its classifier mean.

    Raises:
        CheckpointError: There is no such classifier.
    """
    for key, value in weights.items():
        if _CLASSIFIER.fullmatch(key):
            return int(value.shape[0]) - make_class_loss(class_loss, 0).num_logits(0)
    raise CheckpointError(
        "the checkpoint has no two-stage box head (no key roi_head.bbox_head.*.fc_cls.weight)",
        hint=f"Its first keys are {list(weights)[:5]}",
    )


def semantic_labels_of(weights: Mapping[str, Tensor]) -> int | None:
    """Labels that a checkpoint's semantic head tells apart; None where it has no such head."""
    found = weights.get(_SEMANTIC_LOGITS)
    return None if found is None else int(found.shape[0])


def ranks_by_masks(weights: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint's detector predicts how well its masks fit (Mask Scoring R-CNN)."""
    return any(key.startswith("roi_head.mask_iou_head.") for key in weights)


def pruned_stages_of(weights: Mapping[str, Tensor]) -> int | None:
    """First stages that the lead of a checkpoint's composite backbone leaves out; None where there is one backbone."""
    stages = [int(match[1]) for key in weights if (match := re.match(r"backbone\.cb_linears\.(\d)\.", key))]
    return min(stages, default=None)


def convert(weights: Mapping[str, Tensor], model: Detector, *, bgr: bool = False) -> Conversion:
    """Translate a checkpoint's keys for `model`; nothing is loaded.

    Args:
        weights: Tensors by MMDetection's keys.
        model: The detector to be filled.
        bgr: Whether the weights expect BGR images (MMDetection's `caffe` models).

    Returns:
        What fits, and everything that does not.
    """
    target = model.state_dict()
    return account_for(weights, mmdet_in_our_names(weights, target, bgr=bgr), target)


def mmdet_in_our_names(
    weights: Mapping[str, Tensor], target: Mapping[str, Tensor], *, bgr: bool = False
) -> dict[str, tuple[str, Tensor]]:
    """For each key that has a counterpart our key, and the tensor in our order.

    Args:
        weights: Tensors by MMDetection's keys.
        target: State of the detector of ours.
        bgr: As for `convert`.
    """
    first_fc = _first_fc(target)
    named = {}
    for key, value in weights.items():
        own = _translate(key, first_fc)
        if own is not None and own in target:
            ordered = _rearranged(key, value, target[own].dim())
            named[key] = own, ordered.flip(1) if bgr and own.endswith("body.conv1.weight") else ordered
    return named


def norm_of(weights: Mapping[str, Tensor], part: str) -> NormKind:
    """Normalisation of the convolutions of a part of the detector, told by the checkpoint's keys.

    Args:
        weights: Tensors by MMDetection's keys.
        part: Beginning of the keys, such as `neck.` or `roi_head.bbox_head.`.
    """
    own = [key for key in weights if key.startswith(part)]
    if any(_STATISTICS.fullmatch(key) for key in own):
        return "bn"
    return "gn" if any(re.search(r"\.gn\d?\.", key) for key in own) else "none"


def _translate(key: str, first_fc: int) -> str | None:
    if match := _LINKS.fullmatch(key):
        return f"backbone.links.{match[1]}"
    for theirs, place in _COMPOSITE:
        if match := re.match(rf"backbone\.{theirs}", key):
            plain = _apply((*_BACKBONE, *_SWIN, *_CONVNEXT), f"backbone.{key[match.end() :]}")
            return None if plain is None else f"backbone.{place}{plain.removeprefix('backbone.')}"
    head = re.fullmatch(_ROI_HEAD, key)
    if head is None:
        return _apply((*_BACKBONE, *_SWIN, *_CONVNEXT, *_NECK, *_RPN), key)
    kind, stage, rest = head.groups()
    if kind in _ALONE:
        place, rules = _ALONE[kind]
        inner = _apply(rules, rest)
        return None if inner is None else f"{place}.{inner}"
    if kind not in ("bbox_head", "mask_head"):
        return None
    if kind == "mask_head":
        place = "mask_head" if stage is None else f"mask_stages.{stage}"
        inner = _apply(_MASK_HEAD, rest)
        return None if inner is None else f"{place}.{inner}"
    place = "head" if stage is None else f"stages.{stage}"
    fc = re.fullmatch(_SHARED_FC, rest)
    inner = f"trunk.{first_fc + 2 * int(fc[1])}.{fc[2]}" if fc else _apply((*_HEAD, *_DOUBLE_HEAD), rest)
    return None if inner is None else f"{place}.{inner}"


def _rearranged(key: str, value: Tensor, dim: int) -> Tensor:
    """A value in the order of ours: Swin's merged cells; ConvNeXt's linear layers as 1 x 1 convolutions or back.

    Args:
        key: Theirs.
        value: Theirs.
        dim: Dimensions of ours.
    """
    if _MERGED_CELLS.search(key):  # theirs: channel, row, column; ours, as Microsoft's: column, row, channel
        cells = value.reshape(*value.shape[:-1], -1, 2, 2)
        return cells.transpose(-1, -3).reshape(value.shape)
    if ".pointwise_conv" in key and {dim, value.dim()} == {2, 4}:
        return value.flatten(1) if dim == 2 else value[:, :, None, None]
    return value


def _apply(rules: Sequence[tuple[str, str]], key: str) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None


def _first_fc(target: Mapping[str, Tensor]) -> int:
    """Position of the first fully connected layer in our heads' trunk."""
    numbers = [
        int(match[1])
        for key, value in target.items()
        if (match := re.fullmatch(r"(?:head|stages\.0)\.trunk\.(\d+)\.weight", key)) and value.dim() == 2
    ]
    return min(numbers, default=1)


def _class_names(meta: object) -> tuple[str, ...] | None:
    if not isinstance(meta, dict):
        return None
    dataset = meta.get("dataset_meta")
    names = (
        dataset.get("classes", dataset.get("CLASSES")) if isinstance(dataset, dict) else meta.get("CLASSES")
    )
    return tuple(map(str, names)) if isinstance(names, list | tuple) else None


def _classifier(meta: object, path: Path) -> ClassifierKind | None:
    """What the recorded configuration, a Python text, says of `cls_predictor_cfg` (where it spells `tempearture`)."""
    texts = [meta.get(key) for key in ("cfg", "config")] if isinstance(meta, dict) else []
    for text in (text for text in texts if isinstance(text, str)):
        layers = re.findall(r"cls_predictor_cfg\s*=\s*dict\(([^()]*)\)", text)
        if not any("NormedLinear" in layer for layer in layers):
            return "linear"
        found = {float(t) for layer in layers for t in re.findall(r"temp\w+ture\s*=\s*([\d.]+)", layer)}
        if found - {TEMPERATURE}:
            raise CheckpointError(
                f"{path}: its classifier was trained at temperature {', '.join(f'{t:g}' for t in sorted(found))}",
                hint=f"Only the usual one, {TEMPERATURE:g}, can be imported.",
            )
        return "normalised"
    return None


def _plain(meta: object) -> dict[str, Any]:
    if not isinstance(meta, dict):
        return {}
    return {str(k): v for k, v in meta.items() if isinstance(v, str | int | float) and len(str(v)) < 200}

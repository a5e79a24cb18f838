"""EfficientNet weights of other layouts under timm's names.

    EfficientNet-PyTorch    _blocks.N._expand_conv, _depthwise_conv, _project_conv; blocks counted through
    torchvision             features.S.B.block.I.J; stages S from 1, the layers of a block in one sequence
    timm                    blocks.S.B.conv_pw, conv_dw, conv_pwl (conv_dw, conv_pw in blocks that widen nothing)

Weights that were made with TensorFlow, as EfficientNet-PyTorch's were, belong into the networks that timm calls `tf_`:
these pad as TensorFlow does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

_COUNTED_ENDS = (
    (r"_conv_stem\.(.+)", r"conv_stem.\1"),
    (r"_bn0\.(.+)", r"bn1.\1"),
    (r"_conv_head\.(.+)", r"conv_head.\1"),
    (r"_bn1\.(.+)", r"bn2.\1"),
    (r"_fc\.(.+)", r"classifier.\1"),
)
_WIDENED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1",
    "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_PLAIN = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1",
    "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip

_BLOCK = r"features\.([2-7])\.(\d+)\.block\."
_NUMBERED = (
    (r"features\.0\.0\.(.+)", "conv_stem.{0}"),
    (r"features\.0\.1\.(.+)", "bn1.{0}"),
    (r"features\.8\.0\.(.+)", "conv_head.{0}"),
    (r"features\.8\.1\.(.+)", "bn2.{0}"),
    (r"classifier\.1\.(.+)", "classifier.{0}"),
    (r"features\.(1)\.(\d+)\.block\.0\.0\.(.+)", "blocks.{stage}.{1}.conv_dw.{2}"),
    (r"features\.(1)\.(\d+)\.block\.0\.1\.(.+)", "blocks.{stage}.{1}.bn1.{2}"),
    (r"features\.(1)\.(\d+)\.block\.1\.fc1\.(.+)", "blocks.{stage}.{1}.se.conv_reduce.{2}"),
    (r"features\.(1)\.(\d+)\.block\.1\.fc2\.(.+)", "blocks.{stage}.{1}.se.conv_expand.{2}"),
    (r"features\.(1)\.(\d+)\.block\.2\.0\.(.+)", "blocks.{stage}.{1}.conv_pw.{2}"),
    (r"features\.(1)\.(\d+)\.block\.2\.1\.(.+)", "blocks.{stage}.{1}.bn2.{2}"),
    (_BLOCK + r"0\.0\.(.+)", "blocks.{stage}.{1}.conv_pw.{2}"),
    (_BLOCK + r"0\.1\.(.+)", "blocks.{stage}.{1}.bn1.{2}"),
    (_BLOCK + r"1\.0\.(.+)", "blocks.{stage}.{1}.conv_dw.{2}"),
    (_BLOCK + r"1\.1\.(.+)", "blocks.{stage}.{1}.bn2.{2}"),
    (_BLOCK + r"2\.fc1\.(.+)", "blocks.{stage}.{1}.se.conv_reduce.{2}"),
    (_BLOCK + r"2\.fc2\.(.+)", "blocks.{stage}.{1}.se.conv_expand.{2}"),
    (_BLOCK + r"3\.0\.(.+)", "blocks.{stage}.{1}.conv_pwl.{2}"),
    (_BLOCK + r"3\.1\.(.+)", "blocks.{stage}.{1}.bn3.{2}"),
)


def efficientnet_names(state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Each key's name in timm's EfficientNets, its own where it has no counterpart.

    Args:
        state: Any state dict.

    Returns:
        None where it is in neither of the two other layouts.
    """
    if "_blocks.0._depthwise_conv.weight" in state:
        places = list(_places(state))
        return {key: _counted(key, state, places) for key in state}
    if "features.1.0.block.1.fc1.weight" in state:  # EfficientNetV2 has no squeezing in its first stage
        return {key: _numbered(key) for key in state}
    return None


def _places(state: Mapping[str, Tensor]) -> Iterator[tuple[int, int]]:
    """Stage and number in it of each block: within a stage, blocks give as many channels as they take."""
    stage, number, width, block = -1, 0, 0, 0
    while (key := f"_blocks.{block}._project_conv.weight") in state:
        made = len(state[key])
        stage, number = (stage, number + 1) if made == width else (stage + 1, 0)
        yield stage, number
        width, block = made, block + 1


def _counted(key: str, state: Mapping[str, Tensor], places: list[tuple[int, int]]) -> str:
    if match := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(.+)", key):
        block, part, rest = match.groups()
        names = _WIDENED if f"_blocks.{block}._expand_conv.weight" in state else _PLAIN
        if part not in names or int(block) >= len(places):
            return key
        stage, number = places[int(block)]
        return f"blocks.{stage}.{number}.{names[part]}.{rest}"
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in _COUNTED_ENDS)
    return next((match.expand(name) for match, name in matches if match), key)


def _numbered(key: str) -> str:
    for pattern, name in _NUMBERED:
        if match := re.fullmatch(pattern, key):
            place = match[1]
            return name.format(*match.groups(), stage=int(place) - 1 if place.isdigit() else 0)
    return key

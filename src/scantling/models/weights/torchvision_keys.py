"""Weights of backbones from other projects under timm's names, which our backbones have.

torchvision's Swin and ConvNeXt are here, EfficientNet in `efficientnet_keys`. torchvision numbers the parts of the two
in one sequence: the stem is `features.0`; the blocks of stage s (0..3) are `features.{2s + 1}.N`; what halves the map
before stage s is `features.{2s}`. Its ResNets need no renaming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from scantling.models.weights.efficientnet_keys import efficientnet_names

_SWIN = (
    (r"features\.0\.0\.(.+)", "patch_embed.proj.{0}"),
    (r"features\.0\.2\.(.+)", "patch_embed.norm.{0}"),
    (r"features\.([246])\.((?:norm|reduction)\..+)", "layers.{stage}.downsample.{1}"),
    (r"features\.([1357])\.(\d+)\.mlp\.0\.(.+)", "layers.{stage}.blocks.{1}.mlp.fc1.{2}"),
    (r"features\.([1357])\.(\d+)\.mlp\.3\.(.+)", "layers.{stage}.blocks.{1}.mlp.fc2.{2}"),
    (
        r"features\.([1357])\.(\d+)\.((?:norm|attn)(?!.*relative_position_index).+)",
        "layers.{stage}.blocks.{1}.{2}",
    ),
)
_CONVNEXT = (
    (r"features\.0\.([01])\.(.+)", "stem.{0}.{1}"),
    (r"features\.([246])\.([01])\.(.+)", "stages.{stage}.downsample.{1}.{2}"),
    (r"features\.([1357])\.(\d+)\.layer_scale", "stages.{stage}.blocks.{1}.gamma"),
    (r"features\.([1357])\.(\d+)\.block\.0\.(.+)", "stages.{stage}.blocks.{1}.conv_dw.{2}"),
    (r"features\.([1357])\.(\d+)\.block\.2\.(.+)", "stages.{stage}.blocks.{1}.norm.{2}"),
    (r"features\.([1357])\.(\d+)\.block\.3\.(.+)", "stages.{stage}.blocks.{1}.mlp.fc1.{2}"),
    (r"features\.([1357])\.(\d+)\.block\.5\.(.+)", "stages.{stage}.blocks.{1}.mlp.fc2.{2}"),
    (r"classifier\.0\.(.+)", "head.norm.{0}"),
)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under timm's names.

    Args:
        state: Any state dict.

    Returns:
        With torchvision's names of a Swin (first version), ConvNeXt or EfficientNet replaced, and those of
        EfficientNet-PyTorch; what has no counterpart (classifier, position indices) and any other state dict keep
        theirs.
    """
    efficientnet = efficientnet_names(state)
    if efficientnet is not None:
        return {efficientnet[key]: value for key, value in state.items()}
    rules: tuple[tuple[str, str], ...] = ()
    if "features.1.0.attn.relative_position_bias_table" in state:
        rules = _SWIN
    elif "features.1.0.layer_scale" in state:
        rules = _CONVNEXT
    renamed = {key: _rename(key, rules) for key in state}
    return {
        name: state[key].flatten() if name.endswith(".gamma") else state[key] for key, name in renamed.items()
    }


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in rules:
        if match := re.fullmatch(pattern, key):
            place = match[1]
            return name.format(*match.groups(), stage=int(place) // 2 if place.isdigit() else 0)
    return key

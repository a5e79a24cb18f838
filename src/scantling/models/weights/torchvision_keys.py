"""torchvision's Swin and ConvNeXt weights under the names of our backbones, which are timm's.

torchvision numbers the parts of both in one sequence: the stem is `features.0`; the blocks of stage s (0..3) are
`features.{2s + 1}.N`; what halves the map before stage s is `features.{2s}`. Its ResNets need no renaming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_SWIN = (
    (r"features\.0\.0\.(.+)", "patch_embed.proj.{0}"),
    (r"features\.0\.2\.(.+)", "patch_embed.norm.{0}"),
    (r"features\.([246])\.((?:norm|reduction)\..+)", "layers_{stage}.downsample.{1}"),
    (r"features\.([1357])\.(\d+)\.mlp\.0\.(.+)", "layers_{stage}.blocks.{1}.mlp.fc1.{2}"),
    (r"features\.([1357])\.(\d+)\.mlp\.3\.(.+)", "layers_{stage}.blocks.{1}.mlp.fc2.{2}"),
    (
        r"features\.([1357])\.(\d+)\.((?:norm|attn)(?!.*relative_position_index).+)",
        "layers_{stage}.blocks.{1}.{2}",
    ),
)
_CONVNEXT = (
    (r"features\.0\.([01])\.(.+)", "stem_{0}.{1}"),
    (r"features\.([246])\.([01])\.(.+)", "stages_{stage}.downsample.{1}.{2}"),
    (r"features\.([1357])\.(\d+)\.layer_scale", "stages_{stage}.blocks.{1}.gamma"),
    (r"features\.([1357])\.(\d+)\.block\.0\.(.+)", "stages_{stage}.blocks.{1}.conv_dw.{2}"),
    (r"features\.([1357])\.(\d+)\.block\.2\.(.+)", "stages_{stage}.blocks.{1}.norm.{2}"),
    (r"features\.([1357])\.(\d+)\.block\.3\.(.+)", "stages_{stage}.blocks.{1}.mlp.fc1.{2}"),
    (r"features\.([1357])\.(\d+)\.block\.5\.(.+)", "stages_{stage}.blocks.{1}.mlp.fc2.{2}"),
)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under timm's names.

    Args:
        state: Any state dict.

    Returns:
        With torchvision's names of a Swin (first version) or ConvNeXt replaced; what has no counterpart (classifier,
        last norm, position indices) and any other state dict keep theirs.
    """
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

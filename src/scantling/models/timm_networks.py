"""Networks of timm, on any device, and as sources of feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from scantling.errors import ConfigError


def timm_network(name: str, **options: Any) -> nn.Module:
    """A network of timm with random weights on the default device, which may be meta.

    Args:
        name: As timm has it.
        options: Further arguments of the network.
    """
    device = torch.get_default_device()
    try:
        made: nn.Module = timm.create_model(name, **options)
    except (
        NotImplementedError
    ):  # on meta, RegNets and the `torch.unique` of torch 2.11, and Swin of timm 1.0.20
        with torch.device("cpu"):
            made = timm.create_model(name, **options).to(device)
    return made


def timm_features(name: str, options: Mapping[str, object]) -> nn.Module:
    """A network of timm that returns its stages' maps, with random weights, on the default device.

    Args:
        name: As timm has it.
        options: Further arguments of the network.

    Raises:
        ConfigError: There is no such network, or it cannot give maps.
    """
    try:
        return timm_network(name, features_only=True, **options)
    except (RuntimeError, TypeError, AttributeError) as error:
        near = timm.list_models(f"*{name[:6]}*")[:8]
        raise ConfigError(
            f"backbone {name!r} cannot be made: {error}", hint=f"Similar names: {near}"
        ) from error

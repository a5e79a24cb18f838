"""Networks of timm as sources of feature maps."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import nn

from scantling.errors import ConfigError


def timm_features(name: str, options: Mapping[str, object]) -> nn.Module:
    """A network of timm that returns its stages' maps, with random weights, on the default device.

    Args:
        name: As timm has it.
        options: Further arguments of the network.

    Raises:
        ConfigError: There is no such network, or it cannot give maps.
    """
    device = torch.get_default_device()
    try:
        try:
            body: nn.Module = timm.create_model(name, features_only=True, **options)
        except NotImplementedError:  # on meta, RegNets and the `torch.unique` of torch 2.11
            with torch.device("cpu"):
                body = timm.create_model(name, features_only=True, **options).to(device)
    except (RuntimeError, TypeError, AttributeError) as error:
        near = timm.list_models(f"*{name[:6]}*")[:8]
        raise ConfigError(
            f"backbone {name!r} cannot be made: {error}", hint=f"Similar names: {near}"
        ) from error
    return body

"""torchvision's Swin and ConvNeXt weights in our backbones: the same feature maps."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import convnext_tiny, swin_t

from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.weights.opener import read_weights

# torchvision leaves out Swin's shift where one window covers the map, as detection models do not: here none does
SIZE_HW = (256, 288)
NETWORKS = {"swin_tiny_patch4_window7_224": swin_t, "convnext_tiny": convnext_tiny}


def make_theirs(name: str) -> nn.Module:
    """Random weights, among them layer scales, biases and norms that are neither 0 nor 1."""
    torch.manual_seed(0)
    network = NETWORKS[name](weights=None).eval()
    for parameter in network.features.parameters():
        if parameter.dim() == 1 or parameter.shape[1:] == (1, 1):
            nn.init.uniform_(parameter, 0.2, 0.8)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_feature_maps_are_torchvisions(name: str, tmp_path) -> None:
    theirs = make_theirs(name)
    path = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), path)
    backbone = Backbone(BackboneConfig(name=name)).eval()
    unused = backbone.load(read_weights(path))
    assert {k.split(".")[0] for k in unused if "relative_position_index" not in k} <= {
        "norm",
        "head",
        "classifier",
    }
    x = torch.randn(1, 3, *SIZE_HW)
    with torch.no_grad():
        found = backbone.body(x)
        for place, layer in enumerate(theirs.features):
            x = layer(x)
            if place % 2:
                torch.testing.assert_close(found[place // 2], x, rtol=1e-4, atol=1e-4)

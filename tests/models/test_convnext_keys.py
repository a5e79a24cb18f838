"""ConvNeXt in MMDetection's layout fills every weight of ours."""

from __future__ import annotations

import re

import pytest
import torch

from models.mmdet_layout import CONVNEXT
from scantling.models.weights.mmdet import convert
from scantling.models.zoo import ModelConfig, build_model


def theirs(key: str) -> str:
    for pattern, name in CONVNEXT:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    raise AssertionError(key)


@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize("backbone", ["convnext_atto", "convnext_tiny"])
def test_every_weight_is_filled_from_linear_layers_and_from_1x1_convolutions(backbone: str, dim: int) -> None:
    model = build_model(ModelConfig(name="faster_rcnn_r18_small", backbone=backbone, norm="default"), 2)
    expected = {key: torch.rand_like(value) for key, value in model.backbone.state_dict().items()}
    weights = {}
    for key, value in expected.items():
        body = key.removeprefix("body.")
        name = f"norm{key.removeprefix('out_norms.')}" if body == key else theirs(body)
        pointwise = "pointwise_conv" in name and name.endswith("weight")
        shape = (*value.shape[:2], 1, 1)[:dim]
        weights[f"backbone.{name}"] = value.reshape(shape) if pointwise else value
    conversion = convert(weights, model)
    assert conversion.unused == conversion.mismatched == ()
    assert not [key for key in conversion.missing if key.startswith("backbone.")]
    for key, value in expected.items():
        assert torch.equal(conversion.weights[f"backbone.{key}"], value)

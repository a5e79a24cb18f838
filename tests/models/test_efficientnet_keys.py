"""EfficientNet weights in other layouts: every entry finds its place, and the features are the other project's."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import efficientnet_b0, efficientnet_v2_s

from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.weights.opener import read_weights
from scantling.models.weights.torchvision_keys import timm_names
from scantling.refine.bbrefinement import Refiner, RefinerConfig

ENDS = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
PARTS = {
    "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
    "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand", "conv_pwl": "_project_conv", "bn3": "_bn2",
}  # fmt: skip
FIRST = {**PARTS, "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}


def counted_through(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's weights as EfficientNet-PyTorch names them: blocks 0, 1, 2, ... whatever their stage."""
    blocks = sorted(
        {
            tuple(map(int, match.groups()))
            for key in state
            if (match := re.match(r"blocks\.(\d+)\.(\d+)", key))
        }
    )
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)\.(\w+)", key):
            stage, number, part, rest = match.groups()
            names = PARTS if stage != "0" else FIRST
            renamed[f"_blocks.{blocks.index((int(stage), int(number)))}.{names[part]}.{rest}"] = value
        else:
            head, _, rest = key.partition(".")
            renamed[f"{ENDS[head]}.{rest}"] = value
    return renamed


@pytest.mark.parametrize(
    ("name", "entries"),
    [("tf_efficientnet_lite0", 294), ("tf_efficientnet_b0", 358), ("tf_efficientnet_b1", 506)],
)
def test_every_entry_of_the_counted_layout_finds_its_place(name, entries):
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    theirs = counted_through(state)
    assert "_blocks.1._expand_conv.weight" in theirs or name.endswith("b1")
    found = timm_names(theirs)
    assert len(found) == entries
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in state.items()
    }
    assert all(found[key] is state[key] for key in state)


def test_detectors_and_refiners_start_from_the_counted_layout(tmp_path):
    torch.manual_seed(0)
    published, path = timm.create_model("tf_efficientnet_lite0"), tmp_path / "lite0.safetensors"
    save_file(counted_through(published.state_dict()), path)
    backbone = Backbone(BackboneConfig(name="tf_efficientnet_lite0", norm="bn"))
    assert backbone.load(read_weights(path)) == sorted(
        key for key in published.state_dict() if key.startswith(("conv_head", "bn2", "classifier"))
    )
    assert torch.equal(
        backbone.body.state_dict()["blocks.6.0.conv_pwl.weight"], published.blocks[6][0].conv_pwl.weight
    )
    refiner = Refiner(RefinerConfig(backbone="tf_efficientnet_lite0", side=64, weights=str(path)), ("a",))
    for key, value in refiner.backbone.state_dict().items():
        assert torch.equal(value, published.state_dict()[key])


def test_features_are_torchvisions(tmp_path):
    torch.manual_seed(0)
    theirs, path = efficientnet_b0().eval(), tmp_path / "b0.safetensors"
    save_file(theirs.state_dict(), path)
    refiner = Refiner(RefinerConfig(backbone="efficientnet_b0", side=64, weights=str(path)), ("a",)).eval()
    crops = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(refiner.backbone.forward_features(crops), theirs.features(crops))


def test_what_is_in_no_such_layout_keeps_its_names():
    with torch.device("meta"):
        for state in (timm.create_model("resnet10t").state_dict(), efficientnet_v2_s().state_dict()):
            assert list(timm_names(state)) == list(state)

"""Every named model: it is checked without memory, learns a step, predicts, and takes the reference's weights."""

from __future__ import annotations

import pytest
import timm
import torch

from models.mmdet_layout import mmdet_weights
from models.test_detectors import painted, with_masks
from scantling.errors import ConfigError
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.contract import total_loss
from scantling.models.suppression import detect
from scantling.models.weights.conversion import load_converted
from scantling.models.weights.mmdet import convert
from scantling.models.zoo import MODELS, ModelConfig, build_model
from scantling.structures.sample import Batch

NARROW = {
    "fpn_channels": 32,
    "fc_channels": 32,
    "num_rois": 16,
    "num_train_proposals": 50,
    "num_test_proposals": 50,
}


NARROW_MASKS = {"mask_channels": 16, "mask_convs": 2}
SMALLER = {
    **dict.fromkeys(("htc_cb_swin_t", "htc_cb_swin_b"), {"backbone": "convnext_atto"}),
    **dict.fromkeys(
        (
            "cascade_rcnn_x101_64x4d",
            "cascade_mask_rcnn_x101_64x4d_dcn",
            "htc_x101_64x4d_dcn",
            "scnet_x101_64x4d",
        ),
        {"backbone": "resnext50_32x4d"},
    ),
}
"""A smaller network of the family: two Swin-B have 176 million weights. Two Swin-T are compared with the reference."""


@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_one_step_and_predicts(name: str) -> None:
    """The whole backbone; pyramid and heads narrow, so that it takes a moment only."""
    torch.manual_seed(0)
    masks = NARROW_MASKS if ModelConfig(name=name).has_masks else {}
    changes = {**NARROW, **masks, **SMALLER.get(name, {})}
    model = build_model(ModelConfig(name=name, **changes), num_classes=2).train()
    sample = painted([(10, 20, 50, 60), (90, 30, 150, 110)], [0, 1], seed=1)
    batch = Batch.collate([with_masks(sample)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = total_loss(model.losses(batch))
    loss.backward()
    assert torch.isfinite(loss)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer.step()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n.split(".")[0] for n in before}
    with torch.no_grad():
        found = detect(model.eval(), batch)
    assert torch.isfinite(found[0].boxes).all()
    assert (
        (found[0].masks is not None)
        == model.has_masks
        == ModelConfig(name=name).has_masks
        == ("mask" in name or name.startswith(("htc_", "scnet_")))
    )
    assert (found[0].boxes[:, 2:] <= torch.tensor([160, 128])).all()


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("torchvision_")])
def test_the_references_layout_fills_a_model(name: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), num_classes=2)
    theirs = mmdet_weights(model)
    assert len(theirs) == len(model.state_dict())
    assert all(key.startswith(("backbone.", "neck.", "rpn_head.", "roi_head.")) for key in theirs)
    conversion = convert(theirs, model)
    assert conversion.unused == conversion.missing == conversion.mismatched == ()
    assert conversion.used == dict(zip(theirs, model.state_dict(), strict=True))
    load_converted(model, conversion)


def test_plain_weights_start_a_deformable_backbone() -> None:
    """With offsets of zero version 1 computes what the plain network does."""
    plain = Backbone(BackboneConfig(name="resnet18")).eval()
    deformable = Backbone(BackboneConfig(name="resnet18", deform=(3, 4))).eval()
    unused = deformable.load({**plain.body.state_dict(), "fc.weight": torch.zeros(2, 512)})
    assert unused == ["fc.weight"]
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for found, expected in zip(deformable(image), plain(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_some_offsets_missing_is_another_network() -> None:
    source = Backbone(BackboneConfig(name="resnet18", deform=(4,))).body.state_dict()
    with pytest.raises(ConfigError, match=r"layer3\.0\.conv2\.offset"):
        Backbone(BackboneConfig(name="resnet18", deform=(3, 4))).load(source)


@pytest.mark.parametrize(
    ("theirs", "ours", "first"),
    [
        ({"name": "resnet34"}, {"name": "resnet18"}, r"no place .*layer1\.2\."),
        ({"name": "resnet18"}, {"name": "resnet18", "norm": "gn"}, r"no place .*bn1\.running_mean"),
        ({"name": "resnet18", "deform": (4,)}, {"name": "resnet18"}, r"no place .*conv2\.offset"),
    ],
)
def test_weights_that_would_be_left_over_inside_the_network_are_refused(theirs, ours, first) -> None:
    with torch.device("meta"):
        source, target = (Backbone(BackboneConfig(**options)) for options in (theirs, ours))
    with pytest.raises(ConfigError, match=first):
        target.fitting(source.body.state_dict())


@pytest.mark.parametrize(
    "name", ["resnet50", "resnext50_32x4d", "regnety_004", "efficientnet_b0", "mobilenetv3_small_100", "convnext_atto",
             "swinv2_tiny_window8_256", "swin_tiny_patch4_window7_224", "resnet10t"],
)  # fmt: skip
def test_a_whole_classifier_of_timm_fits_its_backbone(name: str) -> None:
    state = timm.create_model(name).state_dict()  # in memory, as timm 1.0.20 cannot make all of them on meta
    with torch.device("meta"):
        assert Backbone(BackboneConfig(name=name)).fitting(state)

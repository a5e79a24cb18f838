"""Published weights: which are recommended, what is said of them, and how they get here without a network."""

from __future__ import annotations

import pytest
import timm
import torch
from torchvision.models import detection

from scantling.data.io import sha256_of
from scantling.errors import CheckpointError, ConfigError
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.weights import published, sources
from scantling.models.weights.published import DETECTORS, published_backbone, recommended
from scantling.models.zoo import MODELS, ModelConfig, build_model, check_initial_weights
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.refine.bbrefinement import check_initial_weights as check_refiner


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Folders of its own, and no network."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return tmp_path


def test_every_model_has_a_recommended_start():
    for name, preset in MODELS.items():
        found = recommended(name, preset.options.backbone)
        assert found.is_detector == name.startswith("torchvision_")
        assert found.url.startswith("https://")
        assert 10 < found.megabytes < 500
    for name, weights in DETECTORS.items():
        assert recommended(name, "resnet50").url == weights.url
        assert not recommended(name, "resnet34").is_detector


def test_what_is_said_of_them():
    told = recommended("torchvision_mask_rcnn_r50", "resnet50").to_text()
    assert "MaskRCNN_ResNet50_FPN trained on COCO" in told
    assert "torchvision; licence BSD-3-Clause; 170 MB" in told
    told = recommended("cascade_rcnn_r50", "resnet50").to_text()
    assert "resnet50" in told
    assert "https://huggingface.co/timm/" in told
    licence = timm.get_pretrained_cfg("resnet50").license or "not stated"  # timm 1.0.20 does not say it
    assert f"licence {licence}; 102 MB" in told
    assert licence in ("apache-2.0", "not stated")
    with pytest.raises(ConfigError, match="no weights of 'test_nothing'"):
        published_backbone("test_nothing")


def test_without_a_network_the_file_and_its_place_are_named(offline):
    config = ModelConfig(name="torchvision_faster_rcnn_r50_v2", init="pretrained")
    with pytest.raises(
        CheckpointError, match="FasterRCNN_ResNet50_FPN_V2 trained on COCO .* are not here"
    ) as caught:
        check_initial_weights(config, 2)
    hint = str(caught.value.hint)
    assert "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth" in hint
    assert "SHA-256 begins with dd69338a" in hint
    assert str(offline / "torch/hub/checkpoints/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth") in hint
    for check in (
        lambda: check_initial_weights(ModelConfig(name="faster_rcnn_swin_t", init="pretrained"), 2),
        lambda: check_refiner(RefinerConfig(backbone="resnet10t", pretrained=True)),
    ):
        with pytest.raises(CheckpointError, match="are not here") as caught:
            check()
        assert str(offline / "torch/hub/checkpoints") in str(caught.value.hint)


def test_a_detector_put_in_its_place_is_started_from(offline, monkeypatch):
    torch.manual_seed(0)
    theirs = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    raw = offline / "raw.pth"
    torch.save(theirs, raw)
    placed = f"theirs-{sha256_of(raw)[:8]}.pth"
    (offline / "torch/hub/checkpoints").mkdir(parents=True)
    raw.rename(offline / "torch/hub/checkpoints" / placed)

    class Weights:
        url, meta = f"https://example.invalid/{placed}", {"_file_size": 1.0}

    monkeypatch.setitem(DETECTORS, "torchvision_faster_rcnn_r50", Weights())
    config = ModelConfig(name="torchvision_faster_rcnn_r50", init="pretrained")
    check_initial_weights(config, 2)
    model = build_model(config, 2, ("person", "x")).state_dict()
    assert torch.equal(
        model["head.logits.bias"][[0, 2]], theirs["roi_heads.box_predictor.cls_score.bias"][[1, 0]]
    )
    assert torch.equal(model["rpn.conv.weight"], theirs["rpn.head.conv.0.0.weight"])


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_a_backbone_put_in_its_place_is_started_from(name, offline):
    torch.manual_seed(0)
    weights, place = timm.create_model(name).state_dict(), published_backbone(name).place
    place.parent.mkdir(parents=True)
    torch.save(weights, place)
    if sources.sha256_prefix(place.name):  # ours is another file than the published one
        with pytest.raises(CheckpointError, match="its SHA-256 begins with"):
            Backbone(BackboneConfig(name=name, pretrained=True))
        return
    backbone = Backbone(BackboneConfig(name=name, pretrained=True))
    key = "layers_3.blocks.1.mlp.fc2.weight"
    assert torch.equal(backbone.body.state_dict()[key], weights[key.replace("layers_", "layers.")])


def test_refiners_and_plain_networks_take_timms_file(offline, monkeypatch):
    torch.manual_seed(0)
    weights = timm.create_model("resnet10t").state_dict()
    monkeypatch.setattr(published.Published, "fetch", lambda _: offline / "w.pth")
    torch.save(weights, offline / "w.pth")
    refiner = Refiner(RefinerConfig(backbone="resnet10t", side=64, pretrained=True), ("a",))
    backbone = Backbone(BackboneConfig(name="resnet10t", pretrained=True))
    for state in (refiner.backbone.state_dict(), backbone.body.state_dict()):
        assert all(torch.equal(state[key], weights[key]) for key in state)
        assert "layer4.0.conv2.weight" in state

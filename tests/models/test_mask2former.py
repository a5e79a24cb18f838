"""Our targets, matching, losses and maps beside those of transformers' own classes, on the same tensors."""

from __future__ import annotations

import importlib
import shutil
from types import SimpleNamespace

import pytest
import torch

from models.painted import SIDE, painted_batch
from scantling.errors import CheckpointError, ConfigError
from scantling.models.contract import total_loss
from scantling.models.mask2former import (
    BACKBONES,
    Mask2Former,
    Mask2FormerOptions,
    Predicted,
    Regions,
    layer_losses,
    match,
    regions_of,
    semantic_maps,
)
from scantling.models.segmenters import SEGMENTERS, SegmenterConfig, build_segmenter, check_segmenter
from scantling.models.weights import transformers_keys

transformers = pytest.importorskip("transformers")
theirs = importlib.import_module("transformers.models.mask2former.modeling_mask2former")
pictures = importlib.import_module("transformers.models.mask2former.image_processing_mask2former")

TINY = {
    "name": "mask2former_small",
    "hidden_dim": 32,
    "feedforward_dim": 64,
    "encoder_layers": 1,
    "num_queries": 6,
    "num_points": 200,
    "drop_path": 0.0,
}


def tiny(planes="categories", num_classes=2, **changes) -> Mask2Former:
    torch.manual_seed(0)
    return build_segmenter(SegmenterConfig(**{**TINY, "planes": planes, **changes}), num_classes)


@pytest.fixture
def network(tmp_path):
    """transformers' own network with random weights, and the folder it is saved in."""
    torch.manual_seed(3)
    options = SEGMENTERS[TINY["name"]].options.model_copy(
        update={k: v for k, v in TINY.items() if k != "name"}
    )
    made = transformers.Mask2FormerForUniversalSegmentation(options.transformers_config(3)).eval()
    made.save_pretrained(tmp_path / "saved")
    return made, tmp_path / "saved"


@pytest.fixture
def tensors():
    """Predictions and regions of two images, the second with one region."""
    generator = torch.Generator().manual_seed(1)
    found = Predicted(
        torch.randn(2, 6, 4, generator=generator, requires_grad=True),
        (3 * torch.randn(2, 6, 10, 12, generator=generator)).requires_grad_(),
    )
    labels = torch.randint(0, 3, (40, 48), generator=generator)
    return found, [regions_of(labels), Regions(torch.tensor([2]), (labels == 2)[None].float())]


def test_targets_are_those_of_the_image_processor():
    labels = tiny().targets(painted_batch((SIDE, SIDE), (40, 60)))[1]
    given = labels.where(labels >= 0, 255)
    masks, classes = pictures.convert_segmentation_map_to_binary_masks_fast(given, ignore_index=255)
    ours = regions_of(labels)
    assert ours.classes.tolist() == classes.tolist() == [0, 1, 2]
    assert torch.equal(ours.masks, masks)


def test_matching(tensors):
    found, regions = tensors
    options = Mask2FormerOptions(num_points=300)
    judge = theirs.Mask2FormerHungarianMatcher(
        options.class_weight, options.mask_weight, options.dice_weight, options.num_points
    )
    torch.manual_seed(7)
    wanted = judge(found.masks, found.classes, [r.masks for r in regions], [r.classes for r in regions])
    torch.manual_seed(7)
    ours = [match(Predicted(found.classes[i], found.masks[i]), regions[i], options) for i in range(2)]
    for (queries, rows), (their_queries, their_rows) in zip(ours, wanted, strict=True):
        assert queries.tolist() == their_queries.tolist()
        assert rows.tolist() == their_rows.tolist()


def test_losses_and_their_gradients(tensors):
    found, regions = tensors
    options = Mask2FormerOptions(num_points=300)
    config = options.transformers_config(3)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    criterion = theirs.Mask2FormerLoss(config, weights)
    torch.manual_seed(7)
    wanted = criterion(found.masks, found.classes, [r.masks for r in regions], [r.classes for r in regions])
    wanted = {name: weights[name] * value for name, value in wanted.items()}
    torch.manual_seed(7)
    ours = layer_losses(found, regions, options)
    for name, theirs_name in (("class", "loss_cross_entropy"), ("mask", "loss_mask"), ("dice", "loss_dice")):
        torch.testing.assert_close(ours[name], wanted[theirs_name])
    grads = [torch.autograd.grad(total_loss(losses), list(found)) for losses in (ours, wanted)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_whole_network_and_its_loss(network):
    made, folder = network
    model = build_segmenter(SegmenterConfig(**TINY, planes="categories", init=str(folder)), 2)
    batch = painted_batch((SIDE, SIDE), (SIDE, SIDE))
    pixels = model.normalise(batch.images, batch.sizes_hw)
    regions = [regions_of(labels) for labels in model.targets(batch)]
    model.eval()
    torch.manual_seed(11)
    wanted = made(pixels, [r.masks for r in regions], [r.classes for r in regions])
    torch.manual_seed(11)
    losses = model.losses(batch)
    torch.testing.assert_close(total_loss(losses), wanted.loss.reshape(()), rtol=1e-4, atol=1e-4)
    last = model.predicted(batch)[-1]
    torch.testing.assert_close(last.classes, wanted.class_queries_logits)
    torch.testing.assert_close(last.masks, wanted.masks_queries_logits)


def test_maps_are_those_of_the_image_processor():
    generator = torch.Generator().manual_seed(2)
    found = Predicted(
        torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, 96, 96, generator=generator)
    )
    outputs = SimpleNamespace(class_queries_logits=found.classes, masks_queries_logits=found.masks)
    processor = transformers.Mask2FormerImageProcessor()
    called = processor.post_process_semantic_segmentation(outputs)
    together = semantic_maps(found, (384, 384))  # the size that they resize to
    assert torch.equal(torch.stack(called), together.argmax(dim=1))
    shares = together / together.sum(dim=1, keepdim=True)
    sure = shares.max(dim=1).values > 0.5
    assert sure.any()
    assert torch.equal((shares > 0.5).float().argmax(dim=1)[sure], torch.stack(called)[sure])


def test_scores_are_shares_of_the_ground_and_the_planes():
    batch = painted_batch((SIDE, SIDE), (33, 50))
    model = tiny().eval()
    with torch.no_grad():
        first, second = model.scores(batch)
        together = semantic_maps(model.predicted(batch)[-1], (SIDE, SIDE))
    assert (first.shape, second.shape) == ((2, SIDE, SIDE), (2, 33, 50))
    torch.testing.assert_close(first[1], together[0, 2] / together[0].sum(dim=0))


def test_every_parameter_gets_a_gradient_and_the_backbone_is_told_apart():
    model = tiny()
    total_loss(model.losses(painted_batch((SIDE, SIDE)))).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    # transformers' Swin normalises its outputs in `hidden_states_norms`, and keeps an unused layer beside them
    assert without == {"backbone.swin.layernorm.weight", "backbone.swin.layernorm.bias"}
    assert any(name.startswith("backbone.") for name, _ in model.named_parameters())


def test_each_weight_turns_its_loss_off():
    batch = painted_batch((SIDE, SIDE))
    for name in ("class", "mask", "dice"):
        assert tiny(**{f"{name}_weight": 0.0}).losses(batch)[name].item() == 0.0


def test_foreground_takes_any_checkpoint_but_its_classifier(network):
    made, folder = network
    model = build_segmenter(SegmenterConfig(**TINY, planes="foreground", init=str(folder)), 5)
    same = made.model.transformer_module.queries_features.weight
    assert torch.equal(model.transformer.queries_features.weight, same)
    assert model.class_predictor.weight.shape[0] == 3  # ground, foreground, no object
    assert made.class_predictor.weight.shape[0] == 4


def test_damaged_and_foreign_checkpoints_are_told(network, tmp_path):
    _, folder = network
    with pytest.raises(ConfigError, match="weights of the backbone are missing or have another shape"):
        check_segmenter(SegmenterConfig(**{**TINY, "backbone": "resnet50"}, init=str(folder)), 2)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a Mask2Former of transformers"):
        check_segmenter(SegmenterConfig(**TINY, init=str(broken)), 2)


def test_two_images_are_learned():
    model = tiny("foreground", decoder_layers=1, num_queries=4, num_points=100)
    batch = painted_batch((SIDE, SIDE), (SIDE, SIDE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    torch.manual_seed(0)
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        total_loss(model(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        maps = torch.stack(model.scores(batch))
    big = maps[:, 0] > 0.5
    truth = model.targets(batch) == 1
    assert ((big & truth).sum() / (big | truth).sum()).item() > 0.8  # 0.1 before


def test_published_backbones():
    # Liu et al. 2021, section 3.3; Cheng et al. 2022, section 4.1: window 12 for base and large
    shapes = {name: numbers for name, (kind, numbers) in BACKBONES.items() if kind == "swin"}
    assert shapes["swin_l"]["embed_dim"] == 192
    assert (shapes["swin_l"]["depths"], shapes["swin_l"]["num_heads"]) == ((2, 2, 18, 2), (6, 12, 24, 48))
    assert (shapes["swin_l"]["window_size"], shapes["swin_t"]["window_size"]) == (12, 7)


def test_without_the_library_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(transformers_keys.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="needs the library transformers") as error:
        tiny()
    assert "scantling[semantic]" in str(error.value)

"""Segmenters: their losses by hand, what they must learn, and what they start from."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from models.painted import SIDE, painted, painted_batch
from scantling.data.samples.augmentation import AugmentConfig, build_transforms
from scantling.errors import CheckpointError, ConfigError
from scantling.models.contract import total_loss
from scantling.models.fpn_segmenter import dice_loss
from scantling.models.segmenters import SEGMENTERS, SegmenterConfig, build_segmenter, check_segmenter
from scantling.models.zoo import ModelConfig, build_model
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Batch, Frame
from scantling.train.checkpoint import CheckpointMeta, save_checkpoint

TINY = {"name": "fpn_r18_small", "backbone": "test_resnet", "norm": "bn", "channels": 32}
NAMES = ("disc", "square")


def tiny(planes="foreground", **changes):
    torch.manual_seed(0)
    return build_segmenter(SegmenterConfig(**{**TINY, "planes": planes, **changes}), len(NAMES), NAMES)


def iou_of(model, batch, label) -> list[float]:
    """Of a category in each image."""
    model.eval()
    with torch.no_grad():
        maps = torch.stack(model.scores(batch))
    big, truth = maps[:, label] > 0.5, model.targets(batch) == label + 1
    return ((big & truth).sum((1, 2)) / (big | truth).sum((1, 2))).tolist()


def test_dice_by_hand():
    # two pixels: the truth of plane 1 is the first; softmax says 0.75 and 0.25 of it
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), -np.log(3.0)]]).reshape(1, 2, 1, 2)
    targets = torch.tensor([[[1, 0]]])
    # common 0.75, sizes 1 + 1: 1 - (2 * 0.75 + 1) / (2 + 1)
    assert dice_loss(logits, targets).item() == pytest.approx(1 - 2.5 / 3)
    # the second pixel counts for nothing: sizes 0.75 + 1
    assert dice_loss(logits, torch.tensor([[[1, -1]]])).item() == pytest.approx(1 - 2.5 / 2.75)


def test_what_a_pixel_is_to_be():
    model = tiny()
    batch = painted_batch((SIDE, SIDE), (40, 60))
    targets = model.targets(batch)
    assert targets.shape == (2, SIDE, SIDE)
    assert targets[0].sum() == sum(batch.instances[0].masks.areas())
    assert (targets[1, 40:] == -1).all()
    assert (targets[1, :, 60:] == -1).all()
    labels = tiny("categories").targets(batch)
    assert {int(value) for value in labels.unique()} == {-1, 0, 1, 2}
    assert torch.equal(labels.clamp(max=1), targets)


def test_two_images_are_learned():
    model, batch = tiny("categories"), painted_batch((SIDE, SIDE), (SIDE, SIDE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(90):
        optimizer.zero_grad()
        total_loss(model(batch)).backward()
        optimizer.step()
    for label in range(2):
        assert min(iou_of(model, batch, label)) > 0.9


def test_every_parameter_learns_and_every_loss_counts():
    model, batch = tiny("categories"), painted_batch((SIDE, SIDE))
    losses = model.losses(batch)
    assert losses.keys() == {"class", "dice"}
    total_loss(losses).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert tiny(dice_weight=0.0).losses(batch).keys() == {"class"}


@pytest.mark.parametrize("name", [TINY, {"name": "mask2former_small", "num_points": 64}])
def test_images_without_objects_and_without_labels(name):
    if name["name"].startswith("mask2former"):
        pytest.importorskip("transformers")
    batch = painted_batch((SIDE, SIDE))
    size, whole = (SIDE, SIDE), ImageMasks.from_dense(np.ones((1, SIDE, SIDE)))
    empty = Instances.empty(size, scored=False, with_masks=True)
    crowd = Instances(
        size_hw=size,
        boxes=whole.boxes(),
        labels=torch.zeros(1, dtype=torch.int64),
        masks=whole,
        is_crowd=torch.tensor([True]),
    )
    torch.manual_seed(0)
    model = build_segmenter(SegmenterConfig(**name), 2)
    for truth in (empty, crowd):
        given = Batch(
            images=batch.images,
            sizes_hw=[size],
            instances=[truth],
            frames=[Frame.identity(size)],
            image_ids=[0],
        )
        model.zero_grad()
        loss = total_loss(model.losses(given))
        loss.backward()
        assert torch.isfinite(loss)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_scores_leave_padding_out_and_share_each_cell():
    batch = painted_batch((SIDE, SIDE), (33, 50))
    model = tiny("categories").eval()
    first, second = model.scores(batch)
    assert (first.shape, second.shape) == ((2, SIDE, SIDE), (2, 33, 50))
    assert (first.sum(dim=0) <= 1).all()
    assert (first >= 0).all()


class TestStart:
    def saved(self, model, path, **meta):
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        save_checkpoint(path, tensors, CheckpointMeta(kind="segmenter", class_names=NAMES, **meta))
        return path

    def test_from_a_segmenter_of_ours(self, tmp_path):
        trained = tiny("categories")
        path = self.saved(trained, tmp_path / "s.safetensors")
        torch.manual_seed(5)
        again = build_segmenter(SegmenterConfig(**TINY, planes="categories", init=str(path)), 2, NAMES)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in trained.state_dict().items())
        others = build_segmenter(SegmenterConfig(**TINY, planes="categories", init=str(path)), 2, ("a", "b"))
        same = {k for k, v in trained.state_dict().items() if torch.equal(v, others.state_dict()[k])}
        assert trained.state_dict().keys() - same == {"logits.weight"}  # biases start at 0

    def test_from_a_detector_of_ours(self, tmp_path):
        config = ModelConfig(
            name="faster_rcnn_r18_small", backbone="test_resnet", norm="bn", fpn_channels=32, neck_norm="bn"
        )
        torch.manual_seed(1)
        path, detector = tmp_path / "d.safetensors", build_model(config, 2)
        tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
        save_checkpoint(path, tensors, CheckpointMeta(kind="detector", class_names=NAMES))
        model = tiny("categories", init=str(path))
        theirs, own = detector.state_dict(), model.state_dict()
        taken = [key for key in own if key.startswith(("backbone.", "neck."))]
        assert taken
        assert all(torch.equal(own[key], theirs[key]) for key in taken)

    def test_another_backbone_is_refused(self, tmp_path):
        path = self.saved(tiny(), tmp_path / "s.safetensors")
        config = SegmenterConfig(**{**TINY, "backbone": "resnet10t", "init": str(path)})
        with pytest.raises(ConfigError, match="do not fit backbone 'resnet10t'"):
            check_segmenter(config, 2)

    def test_a_file_that_is_not_there(self):
        with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
            check_segmenter(SegmenterConfig(**TINY, init="nowhere.safetensors"), 2)

    def test_unknown_names_and_options(self):
        with pytest.raises(ConfigError, match=r"segmenter.name: unknown model 'fpn_r51'") as error:
            build_segmenter(SegmenterConfig(name="fpn_r51"), 2)
        assert "fpn_r50" in str(error.value)
        with pytest.raises(ValueError, match="num_queries"):
            SegmenterConfig(name="fpn_r50", num_queries=5)


def test_every_named_segmenter_can_be_built(caplog):
    caplog.set_level(logging.ERROR)
    for name in SEGMENTERS:
        if name.startswith("mask2former"):
            pytest.importorskip("transformers")
        check_segmenter(SegmenterConfig(name=name), 3)


def test_slivers_at_the_edge_of_a_crop_stay_what_they_are():
    sample = painted((SIDE, SIDE), 3)
    transforms = build_transforms(AugmentConfig(short_side=SIDE, crop=24, min_visibility=0.0, flip=0.5))
    model, shown = tiny("categories"), 0
    for seed in range(12):
        cut = transforms(sample, [sample], np.random.default_rng(seed))
        targets = model.targets(Batch.collate([cut]))[0, :24, :24]
        # where it is bright the disc shows, where it is dark the square; the noise lies between 100 and 140
        bright, dark = torch.from_numpy(cut.image[0] > 160), torch.from_numpy(cut.image[0] < 80)
        assert torch.equal(targets == 1, bright)
        assert torch.equal(targets == 2, dark)
        shown += int(0 < bright.sum() < 30)
    assert shown  # some crop holds a sliver

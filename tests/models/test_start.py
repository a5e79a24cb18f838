"""Detectors start from others: all that fits is taken, categories by name, and it is said what was taken and left."""

from __future__ import annotations

import logging

import pytest
import torch
from torchvision.models import detection

from models.mmdet_layout import mmdet_weights
from scantling.errors import CheckpointError, ConfigError
from scantling.models.weights.sources import find_weights, hub_place
from scantling.models.weights.start import read_start, take
from scantling.models.weights.torchvision_detectors import COCO_IDS, COCO_NAMES
from scantling.models.zoo import ModelConfig, build_model, check_initial_weights
from scantling.train.checkpoint import CheckpointMeta, model_tensors, save_checkpoint

NARROW = {"backbone": "resnet10t", "fpn_channels": 16, "fc_channels": 16}
MASKED = {**NARROW, "mask_channels": 16}
NAMES = ("bolt", "nut", "gear")


def saved(path, name="cascade_mask_rcnn_r18_small", names=NAMES, kind="detector", **changes):
    """A detector's checkpoint, and the detector."""
    torch.manual_seed(1)
    config = ModelConfig(name=name, **{**(MASKED if "mask" in name else NARROW), **changes})
    model = build_model(config, len(names))
    meta = CheckpointMeta(
        kind=kind,
        class_names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        model=config.model_dump(mode="json"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model_tensors(model), meta)
    return model.state_dict()


def started(path, names, name="cascade_mask_rcnn_r18_small", **changes):
    """A detector started there, as it was before, and what was taken."""
    torch.manual_seed(2)
    model = build_model(
        ModelConfig(name=name, **{**(MASKED if "mask" in name else NARROW), **changes}), len(names)
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    taken = take(model, read_start(path), names)
    return model.state_dict(), before, taken


def test_of_the_same_categories_everything_is_taken(tmp_path):
    source = saved(tmp_path / "best.safetensors")
    model, _, taken = started(tmp_path / "best.safetensors", NAMES)
    assert all(torch.equal(model[key], source[key]) for key in source)
    assert taken.left == taken.fresh == ()
    assert {part: numbers for part, numbers in taken.parts.items() if numbers[0] != numbers[1]} == {}
    assert taken.parts["neck"] == (16, 16)


def test_rows_follow_their_categories_in_boxes_and_masks(tmp_path):
    path = tmp_path / "best.safetensors"
    source = saved(path, class_agnostic=False)
    model, before, taken = started(path, ("Gear", "washer", "bolt", "x"), class_agnostic=False)
    assert (taken.known, taken.fresh, taken.left) == (("Gear", "bolt"), ("washer", "x"), ())
    for stage in range(3):
        new, old = f"stages.{stage}.logits.weight", source[f"stages.{stage}.logits.weight"]
        assert torch.equal(model[new][[0, 2, 4]], old[[2, 0, 3]])  # gear, bolt, background
        assert torch.equal(model[new][[1, 3]], before[new][[1, 3]])
        new, old = f"stages.{stage}.deltas.bias", source[f"stages.{stage}.deltas.bias"]
        assert torch.equal(model[new].view(4, 4)[[0, 2]], old.view(3, 4)[[2, 0]])
        new, old = f"mask_stages.{stage}.logits.weight", source[f"mask_stages.{stage}.logits.weight"]
        assert torch.equal(model[new][[0, 2]], old[[2, 0]])
        assert torch.equal(model[new][[1, 3]], before[new][[1, 3]])


HTC = {"name": "htc_r18_small", "mask_channels": 16}


def test_labels_of_cells_follow_their_categories_with_the_ground_first(tmp_path):
    path = tmp_path / "best.safetensors"
    source = saved(path, **HTC)
    model, before, taken = started(path, ("Gear", "washer", "bolt", "x"), **HTC)
    assert (taken.known, taken.left) == (("Gear", "bolt"), ())
    assert taken.parts["semantic head"] == (18, 18)
    new, old = "semantic_head.logits.weight", source["semantic_head.logits.weight"]
    assert torch.equal(model[new][[0, 1, 3]], old[[0, 3, 1]])  # ground, gear, bolt
    assert torch.equal(model[new][[2, 4]], before[new][[2, 4]])
    model, before, _ = started(path, ("dog", "cat", "cow"), **HTC)
    assert torch.equal(model[new], before[new])
    assert torch.equal(model["semantic_head.embed.0.weight"], source["semantic_head.embed.0.weight"])


@pytest.mark.parametrize(("names", "is_kept"), [(NAMES, True), (("nut", "bolt", "gear"), False)])
def test_labels_of_other_things_are_kept_by_the_same_categories_alone(names, is_kept, tmp_path):
    path = tmp_path / "best.safetensors"
    source = saved(path, semantic_labels=9, **HTC)
    model, before, _ = started(path, names, semantic_labels=9, **HTC)
    expected = source if is_kept else before
    assert torch.equal(model["semantic_head.logits.weight"], expected["semantic_head.logits.weight"])


SCNET = {"name": "scnet_r18_small", "mask_channels": 16}


def test_classes_of_an_image_follow_their_categories(tmp_path):
    path = tmp_path / "best.safetensors"
    source = saved(path, class_loss="seesaw", **SCNET)
    model, before, taken = started(path, ("Gear", "x", "bolt"), class_loss="seesaw", **SCNET)
    assert {part: taken.parts[part] for part in ("context head", "relay")} == {
        "context head": (6, 6),
        "relay": (2, 2),
    }
    key = "context_head.logits.weight"
    assert torch.equal(model[key][[0, 2]], source[key][[2, 0]])
    assert torch.equal(model[key][1], before[key][1])
    saved(path, names=("bolt",), **SCNET)
    model, before, _ = started(path, ("nut",), **SCNET)
    assert torch.equal(model[key], before[key])  # one row, of another category


def test_a_cascade_starts_a_hybrid_task_cascade(tmp_path):
    """All but what the masks tell each other, and the semantic branch."""
    path = tmp_path / "best.safetensors"
    source = saved(path)
    model, before, taken = started(path, NAMES, **HTC)
    assert all(torch.equal(model[key], value) for key, value in source.items())
    assert taken.left == ()
    assert {key for key in model if key not in source and torch.equal(model[key], before[key])} == {
        key for key in model if ".flow." in key or key.startswith("semantic_head.")
    }


def test_without_a_common_category_the_classifier_starts_anew_and_shared_boxes_stay(tmp_path):
    path = tmp_path / "best.safetensors"
    source = saved(path)
    model, before, taken = started(path, ("dog", "cat"))
    assert taken.known == ()
    assert taken.fresh == ("dog", "cat")
    assert torch.equal(model["stages.0.logits.weight"], before["stages.0.logits.weight"])
    assert torch.equal(model["stages.0.deltas.weight"], source["stages.0.deltas.weight"])
    assert torch.equal(model["stages.0.trunk.1.weight"], source["stages.0.trunk.1.weight"])


def test_layers_of_another_shape_are_left_whole_and_told(tmp_path):
    path = tmp_path / "best.safetensors"
    source = saved(path)
    model, before, taken = started(
        path, NAMES, name="cascade_rcnn_r18_small", fc_channels=24, anchor_scales=(8.0,)
    )
    assert torch.equal(model["neck.outputs.0.0.weight"], source["neck.outputs.0.0.weight"])
    assert torch.equal(model["rpn.conv.weight"], source["rpn.conv.weight"])
    for key in ("rpn.objectness.weight", "rpn.deltas.bias", "stages.1.logits.bias", "stages.1.trunk.3.bias"):
        assert torch.equal(model[key], before[key])
    assert taken.parts["RPN"] == (2, 6)
    assert taken.parts["box heads"] == (0, 24)
    assert len([key for key in taken.left if key.startswith("mask_stages.")]) == 24
    assert "24 of mask_stages" in taken.to_text()
    assert "classifier: 0 of 3 categories" in taken.to_text()


def test_the_background_of_another_class_loss_is_not_mistaken_for_ours(tmp_path):
    path = tmp_path / "best.safetensors"
    saved(path, class_loss="seesaw")
    model, before, taken = started(path, NAMES)
    assert torch.equal(model["stages.0.logits.weight"], before["stages.0.logits.weight"])
    assert taken.known == ()
    model, before, _ = started(path, ("nut", "gear"), class_loss="seesaw")
    assert torch.equal(
        model["stages.0.logits.bias"], saved(path, class_loss="seesaw")["stages.0.logits.bias"][[1, 2, 3, 4]]
    )


def test_a_torchvision_file_starts_a_detector_without_being_imported(tmp_path):
    torch.manual_seed(0)
    theirs = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    torch.save(theirs, tmp_path / "theirs.pth")
    config = ModelConfig(name="torchvision_mask_rcnn_r50_v2", init=str(tmp_path / "theirs.pth"))
    names = ("gear", "Person", "bottle")
    model = build_model(config, 3, names).state_dict()
    logits = theirs["roi_heads.box_predictor.cls_score.bias"]
    person, bottle = (COCO_IDS[COCO_NAMES.index(name)] for name in ("person", "bottle"))
    assert torch.equal(model["head.logits.bias"][1:], logits[[person, bottle, 0]])
    masks = theirs["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    assert torch.equal(model["mask_head.logits.weight"][1:], masks[[person, bottle]])
    assert torch.equal(model["neck.laterals.2.0.weight"], theirs["backbone.fpn.inner_blocks.2.0.weight"])


def test_an_mmdetection_file_starts_a_detector_without_being_imported(tmp_path):
    torch.manual_seed(0)
    changes = {"backbone": "resnet18", "class_agnostic": False}
    config = ModelConfig(name="cascade_rcnn_r18_small", **{**NARROW, **changes})
    source = build_model(config, 3)
    path = tmp_path / "theirs.pth"
    for names, known in (
        (NAMES, ("nut",)),
        (("only", "two"), ()),
    ):  # not one for each row: names that mean nothing
        torch.save({"state_dict": mmdet_weights(source), "meta": {"CLASSES": names}}, path)
        model, before, taken = started(path, ("nut", "x"), name=config.name, **changes)
        assert (taken.known, taken.left) == (known, () if known else taken.left)
        logits, own = model["stages.2.logits.weight"], source.state_dict()["stages.2.logits.weight"]
        assert torch.equal(logits[[0, 2]], own[[1, 3]]) == bool(known)
        assert torch.equal(logits[1], before["stages.2.logits.weight"][1])
        assert torch.equal(model["rpn.deltas.weight"], source.state_dict()["rpn.deltas.weight"])


def test_a_backbone_file_fills_the_backbone_and_says_that_the_rest_starts_anew(tmp_path, caplog):
    path = tmp_path / "backbone.safetensors"
    source = saved(tmp_path / "best.safetensors")
    body = {f"model.{key}": value for key, value in source.items() if key.startswith("backbone.body.")}
    save_checkpoint(path, body, CheckpointMeta(kind="backbone"))
    with caplog.at_level(logging.INFO):
        model = build_model(
            ModelConfig(name="cascade_rcnn_r18_small", init=str(path), **NARROW), 2, ("a", "b")
        )
    assert torch.equal(model.state_dict()["backbone.body.bn1.weight"], source["backbone.body.bn1.weight"])
    assert (
        "backbone 70 of 70 tensors; neck 0 of 16 tensors; RPN 0 of 6 tensors; box heads 0 of 24"
        in caplog.text
    )


def test_folders_of_runs_imports_and_pretrainings_are_known(tmp_path):
    cascade, faster = (tmp_path / f"run/members/{name}/best.safetensors" for name in ("c", "f"))
    saved(cascade)
    assert find_weights(str(tmp_path / "run")) == cascade
    assert find_weights(str(cascade.parent)) == cascade
    saved(faster, name="faster_rcnn_r18_small")
    assert find_weights(str(tmp_path / "run"), "faster_rcnn_r18_small") == faster
    with pytest.raises(CheckpointError, match="the weights of 2 trainings") as caught:
        find_weights(str(tmp_path / "run"), "mask_rcnn_r50")
    assert str(faster.parent) in str(caught.value.hint)
    for name in ("weights", "backbone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").touch()
        assert find_weights(str(tmp_path / name)).name == f"{name}.safetensors"
    with pytest.raises(CheckpointError, match="holds no weights"):
        find_weights(str(tmp_path))
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(CheckpointError, match="holds no weights") as caught:
        find_weights(str(tmp_path))
    assert "Finish its training" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["refiner", "pretraining"])
def test_checkpoints_of_something_else_are_refused(kind, tmp_path):
    saved(tmp_path / "best.safetensors", kind=kind)
    config = ModelConfig(name="cascade_rcnn_r18_small", init=str(tmp_path), **NARROW)
    with pytest.raises(CheckpointError, match=rf"model\.init: .*found those of a {kind}"):
        check_initial_weights(config, 3)


def test_a_detector_with_another_backbone_is_refused(tmp_path):
    saved(tmp_path / "best.safetensors")
    config = ModelConfig(name="cascade_rcnn_r18_small", init=str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"model\.init: .*best\.safetensors: weights do not fit backbone 'resnet18'"
    ):
        check_initial_weights(config, 3)


def test_a_fetched_file_is_held_to_the_hash_in_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = hub_place("weights-01234567.pth")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"its SHA-256 begins with [0-9a-f]{8}, expected 01234567"):
        find_weights("https://example.invalid/weights-01234567.pth")
    place = hub_place("plain.pth")
    place.write_bytes(b"anything")
    assert find_weights("https://example.invalid/plain.pth") == place

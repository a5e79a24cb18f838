"""Classifier rows follow their categories' names."""

from __future__ import annotations

import pytest
import torch

from models.mmdet_layout import mmdet_weights
from scantling.errors import CheckpointError, UsageError
from scantling.models.weights.class_rows import rows_by_name, with_rows
from scantling.models.weights.mmdet import class_loss_of, num_classes_of
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.import_weights import HeadChoice, import_detector, parse_classes
from scantling.train.checkpoint import load_checkpoint, weights_in

BOLT, NUT, BACKGROUND = 1.0, 2.0, 9.0


def head(prefix: str, shared_boxes: bool = False) -> dict[str, torch.Tensor]:
    """Rows that name their category: bolt 1, nut 2, background 9; box rows 4 per category."""
    logits = torch.tensor([BOLT, NUT, BACKGROUND])
    deltas = torch.tensor([5.0] * 4 if shared_boxes else [10.0, 11, 12, 13, 20, 21, 22, 23])
    return {
        f"{prefix}fc_cls.weight": logits[:, None].repeat(1, 2), f"{prefix}fc_cls.bias": logits,
        f"{prefix}fc_reg.weight": deltas[:, None].repeat(1, 2), f"{prefix}fc_reg.bias": deltas,
        f"{prefix}shared_fcs.0.weight": torch.ones(2, 2),
    }  # fmt: skip


def fresh(prefix: str, num_classes: int) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{name}.{part}": torch.zeros((rows, 2) if part == "weight" else rows)
        for name, rows in (("logits", num_classes + 1), ("deltas", 4 * num_classes))
        for part in ("weight", "bias")
    }


def test_rows_are_found_by_name_whatever_the_case():
    assert rows_by_name(("Nut", "gear", "bolt"), ("bolt", "nut")) == (1, None, 0)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("roi_head.bbox_head.", "head."), ("roi_head.bbox_head.2.", "stages.2.")]
)
def test_rows_follow_names_the_background_stays_last_and_new_ones_are_as_initialised(theirs, ours):
    weights = head(theirs)
    moved = with_rows(weights, (1, None, 0), 2, fresh(ours, 3))
    assert moved[f"{theirs}fc_cls.bias"].tolist() == [NUT, 0, BOLT, BACKGROUND]
    assert moved[f"{theirs}fc_cls.weight"][:, 1].tolist() == [NUT, 0, BOLT, BACKGROUND]
    assert moved[f"{theirs}fc_reg.bias"].tolist() == [20, 21, 22, 23, 0, 0, 0, 0, 10, 11, 12, 13]
    assert moved[f"{theirs}shared_fcs.0.weight"] is weights[f"{theirs}shared_fcs.0.weight"]


def test_a_dropped_classifier_is_all_new_and_boxes_shared_by_all_classes_stay():
    prefix = "roi_head.bbox_head."
    moved = with_rows(head(prefix, shared_boxes=True), (None, None, None), 2, fresh("head.", 3))
    assert moved[f"{prefix}fc_cls.bias"].tolist() == [0, 0, 0, 0]
    assert moved[f"{prefix}fc_reg.bias"].tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("roi_head.mask_head.", "mask_head."),
        ("roi_head.mask_head.1.", "mask_stages.1."),
        ("roi_heads.mask_predictor.", "mask_head."),
    ],
)
def test_masks_of_each_class_follow_its_name_and_shared_ones_stay(theirs, ours):
    name = f"{theirs}{'mask_fcn_logits' if 'predictor' in theirs else 'conv_logits'}.weight"
    rows = torch.tensor([BOLT, NUT])[:, None, None, None].repeat(1, 4, 1, 1)
    fresh = {f"{ours}logits.weight": torch.zeros(3, 4, 1, 1)}
    moved = with_rows({name: rows}, (1, None, 0), 2, fresh)[name]
    assert moved[:, 0, 0, 0].tolist() == [NUT, 0, BOLT]
    shared = {name: rows[:1]}
    assert with_rows(shared, (1, None, 0), 2, fresh)[name] is shared[name]


def test_labels_of_cells_follow_the_names_and_the_ground_stays_first():
    name, ground = "roi_head.semantic_head.conv_logits.bias", BACKGROUND
    new = {"semantic_head.logits.bias": torch.zeros(4)}
    derived, pixels = torch.tensor([ground, BOLT, NUT]), torch.ones(7)
    assert with_rows({name: derived}, (1, None, 0), 2, new)[name].tolist() == [ground, NUT, 0, BOLT]
    assert with_rows({name: derived}, (None, None, None), 2, new)[name].tolist() == [0] * 4
    assert with_rows({name: pixels}, (1, None, 0), 2, new)[name].tolist() == [0] * 4  # labels of other things
    assert with_rows({name: derived}, (1, None, 0), 2, {})[name] is derived  # a model without the branch


def test_classes_of_an_image_have_no_row_behind_them():
    name, new = "roi_head.glbctx_head.fc.bias", {"context_head.logits.bias": torch.zeros(3)}
    theirs = {name: torch.tensor([BOLT, NUT])}
    assert with_rows(theirs, (1, None, 0), 2, new)[name].tolist() == [NUT, 0, BOLT]
    assert with_rows(theirs, (None, None, None), 2, new)[name].tolist() == [0] * 3
    assert with_rows(theirs, (1, None, 0), 2, {})[name] is theirs[name]  # a model without that head


def small_htc(**options) -> ModelConfig:
    narrow = {"fpn_channels": 16, "fc_channels": 16, "mask_channels": 16, "mask_convs": 1}
    return ModelConfig(name="htc_r18_small", **narrow, **options)


@pytest.mark.parametrize(("labels", "told"), [(None, None), (3, None), (9, 9)])
def test_a_hybrid_task_cascade_is_imported_with_its_labels_of_pixels(labels, told, tmp_path):
    torch.manual_seed(3)
    model = build_model(small_htc(semantic_labels=labels), 2)
    theirs = mmdet_weights(model)
    assert "roi_head.mask_head.0.conv_res.conv.weight" not in theirs
    assert "roi_head.mask_head.2.conv_res.conv.weight" in theirs
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    summary = import_detector(tmp_path / "theirs.pth", small_htc(), tmp_path / "ours")
    assert set(summary.conversion.used) == set(theirs)
    assert summary.conversion.unused == summary.conversion.missing == ()
    tensors, meta = load_checkpoint(summary.checkpoint)
    assert meta.model.get("semantic_labels") == told
    assert all(torch.equal(weights_in(tensors)[key], value) for key, value in model.state_dict().items())


def test_other_categories_need_no_labels_of_pixels(tmp_path):
    theirs = mmdet_weights(build_model(small_htc(semantic_labels=9), 2))
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    choice = HeadChoice(head="by-name", classes=("nut", "gear", "crank"))
    summary = import_detector(tmp_path / "theirs.pth", small_htc(), tmp_path / "ours", choice=choice)
    found = weights_in(load_checkpoint(summary.checkpoint)[0])
    assert found["semantic_head.logits.weight"].shape == (4, 16, 1, 1)
    assert torch.equal(
        found["semantic_head.convs.0.0.weight"], theirs["roi_head.semantic_head.convs.0.conv.weight"]
    )


def test_a_mask_iou_head_is_found_in_the_file(tmp_path):
    narrow = {"fpn_channels": 16, "fc_channels": 16, "mask_channels": 16, "mask_convs": 1}
    config = ModelConfig(name="mask_rcnn_r18_small", **narrow)
    model = build_model(config.with_options(mask_iou=True), 2)
    theirs = mmdet_weights(model)
    keys = {"convs.3.weight", "fcs.1.bias", "fc_mask_iou.weight"}
    assert {f"roi_head.mask_iou_head.{key}" for key in keys} < theirs.keys()
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    choice = HeadChoice(head="by-name", classes=("class_2", "gear", "crank"))
    summary = import_detector(tmp_path / "theirs.pth", config, tmp_path / "ours", choice=choice)
    assert set(summary.conversion.used) == set(theirs)
    tensors, meta = load_checkpoint(summary.checkpoint)
    assert meta.model["mask_iou"]
    ious = weights_in(tensors)["mask_iou_head.ious.bias"]
    assert (len(ious), float(ious[0])) == (3, float(theirs["roi_head.mask_iou_head.fc_mask_iou.bias"][1]))


def test_a_semantic_branch_is_not_left_out_in_silence(tmp_path):
    theirs = mmdet_weights(build_model(small_htc(), 2))
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"find no place .*semantic_head"):
        import_detector(tmp_path / "theirs.pth", small_htc(semantic=False), tmp_path / "ours")


def test_the_number_of_classes_is_the_class_losses_affair():
    softmax = {"roi_head.bbox_head.0.fc_cls.weight": torch.zeros(5, 8)}
    seesaw = softmax | {"roi_head.bbox_head.0.loss_cls.cum_samples": torch.zeros(4)}
    assert [class_loss_of(weights) for weights in (softmax, seesaw)] == ["softmax", "seesaw"]
    assert num_classes_of(softmax, "softmax") == 4
    assert num_classes_of(seesaw, "seesaw") == 3


def test_a_seesaw_detector_is_imported_with_its_counts(tmp_path):
    """Five rows of three classes: the file's counts say that they are Seesaw's."""
    small = {"fpn_channels": 16, "fc_channels": 16}
    config = ModelConfig(name="cascade_rcnn_r18_small", class_loss="seesaw", **small)
    model = build_model(config, 3)
    for stage, head in enumerate(model.heads):
        head.class_loss.counts += stage + torch.arange(4)
    theirs = mmdet_weights(model)
    assert "roi_head.bbox_head.1.loss_cls.cum_samples" in theirs
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    plain = ModelConfig(name="cascade_rcnn_r18_small", **small)
    summary = import_detector(tmp_path / "theirs.pth", plain, tmp_path / "ours")
    tensors, meta = load_checkpoint(summary.checkpoint)
    assert (meta.model["class_loss"], len(meta.class_names)) == ("seesaw", 3)
    found = weights_in(tensors)
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


NORMED = "cls_predictor_cfg=dict({}type='NormedLinear'), loss_cls=dict(type='SeesawLoss')"


@pytest.mark.parametrize(
    ("meta", "options", "kind"),
    [
        ({"cfg": f"model = dict(bbox_head=dict({NORMED.format('tempearture=20, ')}))"}, {}, "normalised"),
        ({"config": f"bbox_head = dict({NORMED.format('')})"}, {}, "normalised"),
        ({}, {"classifier": "normalised"}, "normalised"),
        ({"cfg": "model = dict(bbox_head=dict(type='Shared2FCBBoxHead'))"}, {}, "linear"),
        ({}, {}, "linear"),
    ],
)
def test_a_normalised_classifier_is_told_by_the_recorded_configuration(meta, options, kind, tmp_path):
    """Of one file, whose keys say nothing: the logits are MMDetection's t x / (|x| + eps) . w / (|w| + eps) + b."""
    small = {"fpn_channels": 16, "fc_channels": 16}
    torch.manual_seed(0)
    theirs = mmdet_weights(build_model(ModelConfig(name="faster_rcnn_r18_small", **small), 3))
    weight = theirs["roi_head.bbox_head.fc_cls.weight"].normal_()
    bias = theirs["roi_head.bbox_head.fc_cls.bias"].normal_()
    torch.save({"state_dict": theirs, "meta": meta}, tmp_path / "theirs.pth")
    plain = ModelConfig(name="faster_rcnn_r18_small", **small, **options)
    summary = import_detector(tmp_path / "theirs.pth", plain, tmp_path / "ours")
    assert set(summary.conversion.used) == set(theirs)
    tensors, saved = load_checkpoint(summary.checkpoint)
    model = build_model(ModelConfig.model_validate(saved.model), 3)
    model.load_state_dict(weights_in(tensors))
    x = torch.randn(5, 16)
    if kind == "linear":
        expected = x @ weight.T + bias
    else:
        directions = weight / (weight.norm(dim=1, keepdim=True) + 1e-6)
        expected = 20 * x / (x.norm(dim=1, keepdim=True) + 1e-6) @ directions.T + bias
    torch.testing.assert_close(model.head.logits(x), expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_of_another_temperature_is_refused(tmp_path):
    meta = {"cfg": f"bbox_head = dict({NORMED.format('tempearture=10.0, ')})"}
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": meta}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="temperature 10"):
        import_detector(tmp_path / "theirs.pth", ModelConfig(name="faster_rcnn_r18_small"), tmp_path / "ours")


def test_categories_come_from_a_list_or_a_file(tmp_path):
    assert parse_classes("bolt, hex nut ,größe") == ("bolt", "hex nut", "größe")
    file = tmp_path / "classes.txt"
    file.write_text("\ufeffbolt\n\nhex nut\n", encoding="utf-8")
    assert parse_classes(str(file)) == ("bolt", "hex nut")
    with pytest.raises(UsageError, match="no category"):
        parse_classes(" , ")


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        (HeadChoice(head="by-name"), "needs --classes"),
        (HeadChoice(classes=("bolt",)), "by-name"),
        (HeadChoice(head="drop", classes=("bolt", "bolt")), "more than once"),
    ],
)
def test_what_cannot_be_meant_is_refused(choice, part):
    with pytest.raises(UsageError) as caught:
        choice.check(("bolt", "nut"))
    assert part in f"{caught.value} {caught.value.hint}"


def test_what_each_choice_takes_over():
    found = ("bolt", "nut")
    assert HeadChoice().rows(found) is None
    assert HeadChoice(classes=("M6", "M6 nut")).rows(found) is None
    assert HeadChoice(head="drop").rows(found) == (None, None)
    assert HeadChoice(head="by-name", classes=("nut", "gear")).rows(found) == (1, None)


def test_an_import_by_name_keeps_what_it_knows_and_says_so(golden_checkpoint_of, tmp_path):
    """The file's categories are bolt, nut, washer."""
    file = golden_checkpoint_of("cascade_rcnn_r50")
    choice = HeadChoice(head="by-name", classes=("washer", "gear", "crank", "bolt"))
    summary = import_detector(file, ModelConfig(name="cascade_rcnn_r50"), tmp_path, choice=choice)
    assert summary.reused == ("washer", "bolt")
    assert "2 categories taken over by name, 2 start anew" in summary.to_text()
    tensors, meta = load_checkpoint(summary.checkpoint)
    assert meta.class_names == choice.classes
    theirs = torch.load(file, weights_only=True)["state_dict"]
    for stage in range(3):
        ours = weights_in(tensors)[f"stages.{stage}.logits.weight"]
        expected = theirs[f"roi_head.bbox_head.{stage}.fc_cls.weight"]
        assert torch.equal(ours[[0, 3, 4]], expected[[2, 0, 3]])
        assert not torch.equal(ours[1], ours[2])

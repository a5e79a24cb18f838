"""Composite backbones: CBNetV2's numbers, its checkpoints, what each part has to say, what is not kept in memory."""

from __future__ import annotations

import re
from types import MappingProxyType

import pytest
import torch

from models.conftest import NEVER_USED, golden_checkpoint, golden_shapes
from models.test_detectors import ALL, VARIANTS, build, two_images
from models.test_golden import assert_close, every_sample
from scantling.api import import_weights
from scantling.errors import ConfigError
from scantling.models.backbone import Backbone, BackboneConfig
from scantling.models.cbnet import CompositeBackbone, CompositeConfig
from scantling.models.contract import total_loss
from scantling.models.suppression import detect
from scantling.models.two_stage import TwoStageDetector
from scantling.models.weights.mmdet import convert
from scantling.models.weights.start import read_start, take
from scantling.models.zoo import ModelConfig, build_model
from scantling.train.checkpoint import CheckpointMeta, load_checkpoint, model_tensors, save_checkpoint

CASES = ("cb_resnet50", "htc_cb_swin_t")
SWIN, CONVNEXT, RESNET, RESNEXT = (
    "swin_tiny_patch4_window7_224", "convnext_atto", "resnet10t", "resnext50_32x4d",
)  # fmt: skip
THEIR_LOSSES = MappingProxyType({"loss_cls": "class", "loss_bbox": "box", "loss_mask": "mask"})


@pytest.fixture(params=CASES)
def golden(request, load_golden):
    return load_golden(request.param)


def published(losses: dict[str, float], ending: str = "") -> dict[str, float]:
    """Losses under our names, of the assistant (`0_w0.5`) or the lead (`1`) where they are told apart."""
    named = {}
    for key, value in losses.items():
        match = re.fullmatch(
            rf"(s\d\.)?(loss_rpn_cls|loss_rpn_bbox|loss_cls|loss_bbox|loss_mask){ending}", key
        )
        if match is None:
            continue
        if match[2].startswith("loss_rpn"):
            named[{"loss_rpn_cls": "rpn/objectness", "loss_rpn_bbox": "rpn/box"}[match[2]]] = value
        else:
            part = "box_head" if match[1] is None else f"stage{match[1][1]}"
            named[f"{part}/{THEIR_LOSSES[match[2]]}"] = value
    return named


def test_what_each_subnet_gives_and_what_is_added_to_the_lead(golden) -> None:
    backbone = golden.model.backbone
    with torch.no_grad():
        lead, assistant = backbone.both(golden.image)
        for level in range(4):
            assert_close(assistant[level][:, ::16, ::4, ::4], golden.tensor(f"assist_c{level + 2}"))
            assert_close(lead[level][:, ::16, ::4, ::4], golden.tensor(f"lead_c{level + 2}"))
        sizes = [
            assistant[max(i - 1, 0) if "resnet" in golden.facts["case"] else i].shape[-2:] for i in range(4)
        ]
        sums = backbone.sums(assistant, sizes)
    added = [i for i in range(4) if f"cb_feat_{i}" in golden.arrays]
    assert [i for i, each in enumerate(sums) if each is not None] == added
    for stage in added:
        assert_close(sums[stage][:, ::16, ::4, ::4], golden.tensor(f"cb_feat_{stage}"))


def test_one_neck_serves_both(golden) -> None:
    with torch.no_grad():
        lead, assistant = golden.model.pyramids(golden.image)
        alone = golden.model.features(golden.image)
    assert (lead.weight, assistant.weight) == (1.0, 0.5)
    for level in range(5):
        assert_close(assistant.levels[level][:, ::16, ::4, ::4], golden.tensor(f"fpn_assist_{level}"))
        assert torch.equal(lead.levels[level], alone[level])


def test_losses_of_the_assistant_and_the_sum_with_the_leads(golden) -> None:
    """The lead's own are compared with the others' in `test_golden`."""
    model = golden.model
    with every_sample(golden), torch.no_grad():
        levels, weight = model.pyramids(golden.image)[1]
        found = model.rpn.losses(model.rpn(levels), golden.batch)
        found |= model.roi_losses(golden.encoded(levels), [golden.truth])
    assert {k: float(v) for k, v in found.items()} == pytest.approx(
        published(golden.facts["losses_assist"]), rel=1e-3
    )
    total = sum(published(golden.facts["losses"]).values()) + weight * float(total_loss(found))
    assert total == pytest.approx(golden.facts["loss_total_published"], rel=1e-3)


@pytest.mark.parametrize("golden", CASES[:1], indirect=True)
def test_a_step_with_the_leads_own_proposals_for_both(golden, monkeypatch) -> None:
    model = golden.model
    monkeypatch.setattr(model, "pyramids", lambda _: TwoStageDetector.pyramids(model, golden.image))
    with every_sample(golden), torch.no_grad():
        found = {name: float(loss) for name, loss in model.losses(golden.batch).items()}
    facts = golden.facts["losses_published_own_proposals"]
    lead, assistant = published(facts, "1"), published(facts, "0_w0.5")
    expected = lead | {f"pyramid1/{name}": loss for name, loss in assistant.items()}
    assert found == pytest.approx(expected, rel=1e-3)


def test_every_key_of_the_published_swin_b_layout_is_accounted_for() -> None:
    """The case's layout at the sizes of HTC on CB-Swin-B for COCO, with what its files list beside the weights."""
    wide = {96 * 2**i: 128 * 2**i for i in range(7)} | {288 * 2**i: 384 * 2**i for i in range(4)}
    theirs: dict[str, torch.Tensor] = {}
    with torch.device("meta"):
        for key, value in golden_shapes("htc_cb_swin_t").items():
            shape = list(value.shape)
            if key.startswith("backbone."):
                heads = key.endswith("bias_table")
                shape = [shape[0], shape[1] * 4 // 3] if heads else [wide.get(side, side) for side in shape]
            elif key.startswith("neck.lateral"):
                shape = [wide.get(side, side) if place else side for place, side in enumerate(shape)]
            elif "fc_cls" in key or "conv_logits" in key:
                shape[0] += 77
            deeper = [key]
            if ".layers.2.blocks.0." in key or ".layers.2.blocks.1." in key:
                deeper = [re.sub(r"(layers\.2\.blocks)\.\d+", rf"\1.{block}", key) for block in range(18)]
            theirs |= {name: torch.empty(shape) for name in deeper}
            if key.endswith("bias_table"):
                index = [name.replace("bias_table", "index") for name in deeper]
                theirs |= {name: torch.empty(49, 49) for name in index}
        model = build_model(ModelConfig(name="htc_cb_swin_b"), num_classes=80)
    conversion = convert(theirs, model)
    assert conversion.missing == conversion.mismatched == conversion.unplaced == ()
    assert len(conversion.unused) == 2 * 24
    assert all(key.endswith("relative_position_index") for key in conversion.unused)
    assert len(set(conversion.used.values())) == len(theirs) - 48


def test_only_the_layer_that_the_lead_does_not_use_may_be_left_over() -> None:
    theirs = golden_shapes("cb_resnet50")
    with torch.device("meta"):
        model = build_model(ModelConfig(name="faster_rcnn_cb_r50"), num_classes=3)
        whole = build_model(ModelConfig(name="faster_rcnn_cb_r50", pruned_stages=2), num_classes=3)
    conversion = convert(theirs, model)
    assert (conversion.unused, conversion.unplaced) == (NEVER_USED, ())
    assert any(key.startswith("backbone.cb_modules.1.layer2.") for key in convert(theirs, whole).unplaced)


def test_two_backbones_are_read_off_a_file(tmp_path) -> None:
    summary = import_weights(golden_checkpoint("cb_resnet50", tmp_path), "faster_rcnn_r50", tmp_path / "out")
    assert summary.conversion.missing == ()
    assert load_checkpoint(summary.checkpoint).meta.model["pruned_stages"] == 1


def composite(name: str, pruned: int, **changes) -> CompositeBackbone:
    torch.manual_seed(0)
    norm = "bn_eval" if name in (RESNET, RESNEXT) else "default"
    config = BackboneConfig(name=name, **{"norm": norm, "drop_path": 0.1, **changes})
    return CompositeBackbone(config, CompositeConfig(pruned_stages=pruned)).eval()


def images(side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side + 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "pruned"),
    [(RESNET, 0), (RESNET, 1), (RESNET, 3), (RESNEXT, 1), (SWIN, 0), (SWIN, 2), (CONVNEXT, 1)],
)
def test_without_connections_the_lead_goes_on_where_it_leaves_the_assistant(
    name, pruned, monkeypatch
) -> None:
    model = composite(name, pruned)
    # the lead's own weights, and of what it has not, the assistant's: stem, pruned stages, the halving that follows
    bare = Backbone(model.config).eval()
    own = {**bare.state_dict(), **model.assistant.state_dict(), **model.lead.state_dict()}
    bare.load_state_dict(own)
    with torch.no_grad():
        connected, expected = model(images()), bare(images())
        monkeypatch.setattr(model, "sums", lambda maps, sizes: [None] * 4)
        found, assistant = model.both(images())
    for level in range(4):
        torch.testing.assert_close(found[level], expected[level], rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[3], assistant[3])
    alike = [torch.equal(one, other) for one, other in zip(found, connected, strict=True)]
    # a ResNet's connections start at nothing; in a Swin what is as wide as the input is added from the start
    assert alike == [name in (RESNET, RESNEXT) or level < pruned for level in range(4)]


def by_hand(model: CompositeBackbone, maps: list[torch.Tensor], stage: int) -> torch.Tensor:
    """The sum for a ResNet's stage (from 0) whose links are drawn at random, with repeated cells for resizing."""
    total = 0.0
    for link, x in zip(model.links[stage], maps[stage:], strict=True):
        conv, norm = link
        y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
        size = maps[max(stage - 1, 0)].shape[-1]
        total = total + y.repeat_interleave(size // y.shape[-1], 2).repeat_interleave(size // y.shape[-1], 3)
    return total


def test_a_sum_is_what_the_paper_writes() -> None:
    model = composite(RESNET, 0)
    with torch.no_grad():
        for number, value in enumerate(model.links.state_dict().values()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(number)) + 0.1)
        maps = model.assistant(images())
        sizes = [maps[0].shape[-2:], *(m.shape[-2:] for m in maps[:3])]
        for stage, found in enumerate(model.sums(maps, sizes)):
            torch.testing.assert_close(found, by_hand(model, maps, stage), rtol=1e-4, atol=1e-3)


def test_every_connection_and_both_backbones_learn() -> None:
    model = composite(RESNET, 1).train()
    for name, parameter in model.links.named_parameters():
        if name.endswith(".1.weight"):
            torch.nn.init.ones_(parameter)  # as after the first step
    for part in (model.assistant, model.lead):
        for norm in part.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(
                    norm.weight
                )  # residual branches that start at zero hide what is before them
    sum(x.square().mean() for x in model(images())).backward()
    silent = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert silent == set()  # the assistant learns through the connections alone


@pytest.mark.parametrize("frozen", [1, 2])
@pytest.mark.parametrize(("name", "pruned"), [(RESNET, 1), (SWIN, 0)])
def test_frozen_stages_are_those_of_both(name, pruned, frozen) -> None:
    model = composite(name, pruned, frozen_stages=frozen).train()
    stages = {
        number: f"layer{number}." if name == RESNET else f"layers_{number - 1}." for number in (1, 2, 3, 4)
    }
    stem = "patch_embed." if name == SWIN else "conv1."
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for part in ("assistant", "lead"):
        body = [key for key, _ in model.named_parameters() if key.startswith(f"{part}.body.")]
        assert any(key.startswith(f"{part}.body.{stem}") for key in body) == (part == "assistant")
        assert not any(key.startswith(f"{part}.body.{stem}") for key in trained)
        for number, stage in stages.items():
            own = {key for key in body if key.startswith(f"{part}.body.{stage}")}
            assert bool(own) == (part == "assistant" or number > pruned)
            assert own & trained == (own if number > frozen else set())
    drop = [m.training for m in model.lead.stage(frozen + 1).modules()]
    assert all(drop) or name == RESNET  # BatchNorm stays in evaluation mode there
    if frozen > pruned:
        assert not any(m.training for m in model.lead.stage(frozen).modules())


class Saved:
    """Bytes that autograd keeps for the backward pass; weights do not count."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.bytes = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in self.own:
            self.bytes += tensor.numel() * tensor.element_size()
        return tensor


@pytest.mark.parametrize(
    ("name", "norm"), [(RESNET, "gn"), (RESNET, "bn_eval"), (SWIN, "default"), (CONVNEXT, "default")]
)
def test_checkpoints_change_no_gradient_and_keep_less(name, norm) -> None:
    """Stochastic depth included: the second computation drops the same paths."""
    found, kept = {}, {}
    model = composite(name, 1, norm=norm, **({} if name == RESNET else {"drop_path": 0.5})).train()
    for on in (False, True):
        for part in (model.assistant, model.lead):
            part.config = part.config.model_copy(update={"activation_checkpointing": on})
        model.zero_grad()
        torch.manual_seed(3)
        saved = Saved(model)
        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            total = sum(x.square().mean() for maps in model.both(images()) for x in maps)
        total.backward()
        found[on], kept[on] = {n: p.grad for n, p in model.named_parameters()}, saved.bytes
    for key, gradient in found[False].items():
        torch.testing.assert_close(found[True][key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    share = 0.7 if name == RESNET else 0.5  # with one block a stage most is the stem's
    assert kept[True] < share * kept[False]


def test_a_single_backbone_by_parts_is_the_same() -> None:
    whole = Backbone(BackboneConfig(name=RESNET, norm="gn")).train()
    parts = Backbone(BackboneConfig(name=RESNET, norm="gn", activation_checkpointing=True)).train()
    parts.load_state_dict(whole.state_dict())
    for one, other in zip(whole(images()), parts(images()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("efficientnet_b0", {"norm": "bn_eval"}, "cannot be taken apart"),
        ("regnety_004", {"norm": "bn_eval"}, "cannot be taken apart"),
        (RESNET, {"norm": "bn", "activation_checkpointing": True}, "every batch twice"),
        (RESNET, {"norm": "default", "activation_checkpointing": True}, "every batch twice"),
    ],
)
def test_what_cannot_be_done_is_told(name, changes, message) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        composite(name, 0, **changes)


def test_the_lead_alone_predicts() -> None:
    """Its connections to the assistant start at nothing: until they are trained the assistant's stages have no say."""
    model, batch = build("htc cb").eval(), two_images()
    with torch.no_grad():
        before = detect(model, batch, ALL)
        for parameter in model.backbone.assistant.stage(3).parameters():
            parameter.add_(0.1)
        same = detect(model, batch, ALL)
        for links in model.backbone.links:
            for link in links:
                link[1].weight.fill_(0.5)
        after = detect(model, batch, ALL)
    assert torch.equal(before[0].boxes, same[0].boxes)
    assert torch.equal(before[0].masks.probabilities, same[0].masks.probabilities)
    assert not torch.equal(before[0].boxes, after[0].boxes)


def test_of_assistant_weight_zero_the_assistant_learns_through_the_connections_alone() -> None:
    torch.manual_seed(0)
    config = build("htc cb").config
    unsupervised = config.composite.model_copy(update={"assistant_weight": 0.0})
    model = build("htc cb")
    model.config = config.model_copy(update={"composite": unsupervised})
    losses = model.train().losses(two_images())
    assert all(float(loss.detach()) == 0 for name, loss in losses.items() if name.startswith("pyramid1/"))
    total_loss(losses).backward()
    learned = {n.split(".")[1] for n, p in model.backbone.assistant.named_parameters() if p.grad.any()}
    assert learned == {
        "conv1",
        "bn1",
        "layer1",
    }  # what the pruned lead takes over; its connections start at nothing


@pytest.mark.parametrize("variant", ["faster", "cascade mask", "double head"])
def test_every_two_stage_method_has_both(variant) -> None:
    """The same losses for the assistant as for the lead, on the lead's proposals, and the lead's masks."""
    torch.manual_seed(0)
    model, batch = (
        build_model(VARIANTS[variant].with_options(composite=True), num_classes=2).train(),
        two_images(),
    )
    losses = model.losses(batch)
    lead = {name for name in losses if not name.startswith("pyramid1/")}
    assert {name.removeprefix("pyramid1/") for name in losses if name not in lead} == lead
    total_loss(losses).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        found = detect(model.eval(), batch, ALL)
    assert len(found[0]) > 0
    assert (found[0].masks is not None) == model.has_masks


NARROW = {"backbone": RESNET, "fpn_channels": 16, "fc_channels": 16}


def stored(path, name: str, **changes):
    """A detector's checkpoint, and what is in it."""
    torch.manual_seed(1)
    config = ModelConfig(name=name, **{**NARROW, **changes})
    model = build_model(config, 2)
    meta = CheckpointMeta(class_names=("a", "b"), category_ids=(1, 2), model=config.model_dump(mode="json"))
    save_checkpoint(path, model_tensors(model), meta)
    return model.state_dict()


def test_a_plain_detector_or_backbone_starts_both(tmp_path) -> None:
    path = tmp_path / "best.safetensors"
    source = stored(path, "faster_rcnn_r50")
    torch.save(
        {key.removeprefix("backbone.body."): value for key, value in source.items()}, tmp_path / "body.pth"
    )
    for file in (path, tmp_path / "body.pth"):
        torch.manual_seed(2)
        model = build_model(ModelConfig(name="faster_rcnn_cb_r50", **NARROW), 2)
        taken = take(model, read_start(file), ("a", "b"))
        for part in (model.backbone.assistant, model.backbone.lead):
            assert all(
                torch.equal(value, source[f"backbone.body.{key}"])
                for key, value in part.body.state_dict().items()
            )
        assert taken.left == ()
        neck = torch.equal(model.state_dict()["neck.laterals.0.0.weight"], source["neck.laterals.0.0.weight"])
        assert neck == (file == path)


def test_a_composite_starts_another_whole_and_no_plain_one(tmp_path) -> None:
    path = tmp_path / "best.safetensors"
    source = stored(path, "faster_rcnn_cb_r50")
    torch.manual_seed(2)
    model = build_model(ModelConfig(name="faster_rcnn_cb_r50", **NARROW), 2)
    assert not torch.equal(
        model.state_dict()["backbone.lead.body.layer2.0.conv1.weight"],
        source["backbone.lead.body.layer2.0.conv1.weight"],
    )
    taken = take(model, read_start(path), ("a", "b"))
    assert all(torch.equal(value, source[key]) for key, value in model.state_dict().items())
    assert taken.left == ()
    assert taken.parts["backbone"][0] == taken.parts["backbone"][1]
    with pytest.raises(ConfigError, match="weights do not fit backbone 'resnet10t'"):
        take(build_model(ModelConfig(name="faster_rcnn_r50", **NARROW), 2), read_start(path), ("a", "b"))

"""Recipes: the shipped ones, reading and writing, and what `auto` becomes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from scantling.data.samples.augmentation import AugmentConfig, SideRange
from scantling.errors import ConfigError
from scantling.models.segmenters import SEGMENTERS
from scantling.models.zoo import MODELS, ModelConfig, build_model
from scantling.predict.predictor import PredictConfig
from scantling.recipe.auto import RULES, resolve
from scantling.recipe.factors import combinations_of, overrides_of
from scantling.recipe.facts import DataFacts
from scantling.recipe.recipe import MemberConfig, Recipe, load_recipe, parse_recipe
from scantling.recipe.shipped import find_recipe, read_recipe, shipped_recipes
from scantling.run.without_val import check_without_val
from scantling.train.config import TrainConfig
from scantling.train.optim import parameter_groups

AUTOMATIC = """
members:
  a:
    model: {name: faster_rcnn_r18_small, frozen_stages: auto}
    augment: {short_side: auto}
    train: {epochs: auto, repeats: auto, batch_size: auto, workers: auto, lr: auto}
"""


def facts(**changes) -> DataFacts:
    known = {
        "num_images": 200,
        "median_hw": (480, 640),
        "small_object": 32.0,
        "device": "cpu",
        "memory_gib": None,
        "cpu_count": 8,
    }
    return DataFacts(**{**known, **changes})


def resolved(text: str = AUTOMATIC, **changes) -> MemberConfig:
    return resolve(parse_recipe(text, file="r.yaml"), facts(**changes)).recipe.members["a"]


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_resolve_and_read_back_equal(name):
    recipe = resolve(load_recipe(name), facts()).recipe
    assert parse_recipe(recipe.to_yaml(), file="again") == recipe
    assert recipe.about.endswith(".")
    for member in recipe.members.values():
        assert member.network.name in (SEGMENTERS if member.gives_maps else MODELS)


def test_the_whole_delftbikes_recipe_is_the_published_one():
    whole, base = load_recipe("delftbikes-cs21"), load_recipe("delftbikes-cs21-base").members["cascade"]
    names = {name: member.detector.name for name, member in whole.members.items()}
    assert names == {"cascade": "cascade_rcnn_r50_dcn_gn", "double_head": "double_head_rcnn_r50_dcn_gn"}
    for member in whole.members.values():
        assert member.detector.init == "pretrain"
        assert (member.augment, member.train, member.predict) == (base.augment, base.train, base.predict)
        assert member.detector.roi_samples == 0
    pretrain = whole.pretrain
    assert pretrain is not None
    assert (pretrain.epochs, pretrain.total_batch, pretrain.queue, pretrain.lr) == (200, 256, 65_536, 0.03)
    assert (pretrain.momentum, pretrain.temperature, pretrain.embedding) == (0.999, 0.2, 128)
    assert (pretrain.head, pretrain.own_keys) == (
        "bn",
        "negatives",
    )  # the published head learns less (bench/)
    assert (pretrain.crops.context, pretrain.crops.min_side) == (0.0, 8)
    assert (whole.combining.ensemble.method, whole.tunes_suppression, whole.tunes_weights) == (
        "wbf",
        True,
        True,
    )
    assert whole.combining.eliminate is not None


def test_the_delftbikes_detector_is_the_published_one():
    member = load_recipe("delftbikes-cs21-base").members["cascade"]
    assert member.model == ModelConfig(
        name="cascade_rcnn_r50_dcn_gn", num_train_proposals=2000, roi_samples=0
    )
    assert member.augment.short_side == SideRange(min=800, max=1600)
    assert member.augment.long_side == member.predict.long_side == 2666
    assert member.predict.scales == tuple(range(800, 1700, 100))
    assert not member.predict.flip
    train, suppress = member.train, member.predict.suppress
    assert (train.optimizer, train.lr, train.momentum, train.weight_decay) == ("sgd", 0.08, 0.9, 1e-4)
    assert (train.epochs, train.milestones, train.gamma) == (24, (16, 22), 0.1)
    assert (train.batch_size, train.total_batch, train.clip_norm, train.norm_decay) == (2, 64, None, True)
    assert (suppress.method, suppress.score_threshold) == ("soft_linear", 1e-7)


@pytest.mark.parametrize(("name", "proposals"), [("coco-cascade-r50", 2000), ("coco-faster-r50", 1000)])
def test_the_coco_recipes_are_the_published_ones(name, proposals):
    (member,) = load_recipe(name).members.values()
    train, suppress = member.train, member.predict.suppress
    numbers = member.detector.hyperparameters
    names = ("frozen_stages", "roi_samples", "num_train_proposals")
    assert tuple(numbers[name] for name in names) == (1, 0, proposals)
    assert (train.epochs, train.milestones, train.gamma, train.warmup_steps) == (12, (8, 11), 0.1, 500)
    assert (train.total_batch, train.lr, train.momentum, train.weight_decay) == (16, 0.02, 0.9, 1e-4)
    assert (train.clip_norm, train.norm_decay, train.bias_decay) == (None, True, True)
    assert (suppress.method, suppress.iou_threshold, suppress.score_threshold) == ("hard", 0.5, 0.05)
    assert suppress.max_per_image == 100


VISION = {
    "vision23-htc-cbswinb": "htc_cb_swin_b",
    "vision23-cascade-r50": "cascade_mask_rcnn_r50",
    "vision23-cascade-convnext": "cascade_mask_rcnn_convnext_t",
}


@pytest.mark.parametrize("name", VISION)
def test_the_vision_recipes_are_the_published_ones(name):
    recipe = load_recipe(name)
    (member,) = recipe.members.values()
    assert (member.detector.name, member.detector.init) == (VISION[name], "pretrained")
    assert (recipe.data.train, recipe.data.has_val) == (("train", "val"), False)
    check_without_val(recipe)
    sides = (1024, 1536, 2048, 2560, 3072, 3584, 4096)
    assert (member.augment.short_sides, member.augment.long_side, member.augment.crop) == (sides, None, 2048)
    assert (member.predict.scales, member.predict.long_side, member.predict.flip) == (sides, None, False)
    train, suppress = member.train, member.predict.suppress
    assert (train.optimizer, train.lr, train.weight_decay, train.betas) == ("adamw", 1e-4, 0.05, (0.9, 0.999))
    assert (train.norm_decay, train.position_decay, train.clip_norm) == (False, False, None)
    assert (train.epochs, train.repeats, train.milestones, train.gamma) == (10, 5, (2, 6, 9), 0.1)
    assert (train.batch_size, train.total_batch, train.precision) == (2, 4, "fp16")
    assert (train.warmup_steps, train.warmup_scale, train.schedule) == (100, 0.001, "step")
    assert (suppress.method, suppress.iou_threshold, suppress.score_threshold) == ("soft_linear", 0.5, 0.001)
    assert (suppress.min_score, suppress.max_per_image) == (1e-4, 100)
    assert member.detector.hyperparameters["frozen_stages"] == 2


def test_the_vision_detector_is_built_and_decays_as_published():
    """Swin-B twice: 128 channels, 2, 2, 18, 2 blocks; no decay on norms and position tables; two stages frozen."""
    member = load_recipe("vision23-htc-cbswinb").members["htc"]
    with torch.device("meta"):
        model = build_model(member.detector.model_copy(update={"init": "random"}), num_classes=3)
    config = model.config
    heads = [(s.assign.positive_iou, s.weight, s.head.stds[0], s.head.norm) for s in config.stages]
    assert heads == [(0.4, 1.0, 0.1, "sync_bn"), (0.5, 0.5, 0.05, "sync_bn"), (0.6, 0.25, 0.033, "sync_bn")]
    assert {(s.head.box_loss.kind, s.head.box_loss.weight, s.head.class_agnostic) for s in config.stages} == {
        ("giou", 10.0, True)
    }
    assert (config.sample.num, config.sample.positive_fraction, config.semantic) == (512, 0.25, None)
    assert model.backbone.channels == (128, 256, 512, 1024)
    for part in (model.backbone.assistant, model.backbone.lead):
        assert [len(part.stage(number).blocks) for number in (1, 2, 3, 4)] == [2, 2, 18, 2]
        assert [part.stage(n).blocks[0].attn.heads for n in (1, 2, 3, 4)] == [4, 8, 16, 32]
    groups = parameter_groups(model, member.train)
    spared = {name for group in groups for name, _ in group["params"] if group["weight_decay"] == 0}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tables = {name for name in trained if name.endswith("relative_position_bias_table")}
    norms = {name for name in trained if re.search(r"norm\d?\.|norms\.|trunk\.\d\.1\.", name)}
    assert (len(tables), spared) == (2 * 20, tables | norms)
    assert not any(".layers_0." in name or ".layers_1." in name or "patch_embed" in name for name in trained)


def test_the_deepsport_detector_is_the_published_one():
    """The report of team RalleyTheValley; MMDetection's SCNet and 20-epoch schedule where it says "unchanged"."""
    recipe = load_recipe("deepsport-scnet")
    check_without_val(recipe)
    assert (recipe.data.train, recipe.evaluate.split) == (("train", "val"), "test")
    assert (recipe.evaluate.iou_type, recipe.evaluate.occlusion) == ("segm", True)
    member = recipe.members["scnet"]
    options = member.detector.hyperparameters
    assert (options["backbone"], tuple(options["deform"]), options["class_loss"]) == (
        "resnet50",
        (2, 3, 4),
        "seesaw",
    )
    assert all(options[name] for name in ("semantic", "context", "relay", "residual"))
    assert (options["semantic_weight"], options["context_weight"], options["mask_convs"]) == (0.2, 3.0, 12)
    train = member.train
    assert (train.epochs, train.batch_size, train.total_batch, train.milestones) == (20, 2, 2, (16, 19))
    assert (train.optimizer, train.momentum, train.weight_decay, train.norm_decay) == ("sgd", 0.9, 1e-4, True)
    assert train.lr == pytest.approx(0.02 * 2 / 16)
    assert (train.warmup_steps, train.warmup_scale, train.clip_norm) == (500, 0.001, None)
    augment = member.augmentation
    assert (augment.short_side, augment.long_side, augment.flip) == (800, 1333, 0.5)
    boost = augment.instaboost
    assert (boost.probability, boost.min_scale, boost.max_scale, boost.angle) == (0.5, 0.8, 1.2, 1.0)
    assert boost.shift == pytest.approx(1 / 15)
    suppress = member.predict.suppress
    assert (suppress.method, suppress.iou_threshold, suppress.score_threshold) == ("hard", 0.5, 0.001)


def test_the_later_winner_has_all_that_it_is_made_of():
    recipe = load_recipe("deepsport-strong")
    check_without_val(recipe)
    member = recipe.members["htc"]
    options = member.detector.hyperparameters
    assert member.detector.name == "htc_cb_swin_b"
    assert (options["composite"], options["semantic"], options["mask_iou"], options["head_norm"]) == (
        True,
        False,
        True,
        "sync_bn",
    )
    augment = member.augmentation
    assert (augment.short_side, augment.long_side) == (SideRange(min=820, max=3080), 3680)
    assert augment.crop == (1440, 1920)
    assert (augment.copy_paste.place, augment.copy_paste.probability) == ("learned", 0.8)
    assert (augment.affine.shear, augment.affine.translate, augment.affine.rotate) == (10.0, 0.1, 0.0)
    assert augment.brightness == pytest.approx(32 / 255, abs=0.001)
    train = member.train
    assert (train.epochs, train.milestones, train.swa, train.optimizer) == (100, (25, 50), 12, "adamw")


def test_the_ablation_of_deepsport_has_all_combinations_and_leads_to_its_recipe():
    """With all four factors the member is that of `deepsport-scnet`, but for the splits."""
    recipe, whole = load_recipe("deepsport-ablation"), load_recipe("deepsport-scnet").members["scnet"]
    rows = combinations_of(recipe.ablation)
    assert (len(rows), rows[-1].factors) == (16, ("scnet", "seesaw", "dcn", "instaboost"))
    settings = [text for name in rows[-1].factors for text in overrides_of(recipe.ablation.factors[name])]
    member = load_recipe("deepsport-ablation", settings).members["detector"]
    assert member.detector.init == whole.detector.init
    ours, theirs = member.detector.hyperparameters, whole.detector.hyperparameters
    assert {key: value for key, value in ours.items() if key != "deform"} == {
        key: value for key, value in theirs.items() if key != "deform"
    }
    assert tuple(ours["deform"]) == tuple(theirs["deform"])
    assert member.augment == whole.augment
    assert member.train.model_copy(update={"validate_every": 1}) == whole.train
    assert member.predict == whole.predict
    assert recipe.evaluate.split == "val"


def test_recipes_for_few_images_tune_and_keep_what_counts():
    for name in ("bccd-cpu", "parts-cpu", "ablation-cpu"):
        recipe = load_recipe(name)
        assert recipe.tunes_suppression, name
        for member in recipe.members.values():
            assert member.predict.suppress.score_threshold == 0.001, name


def test_every_value_survives_writing_and_reading():
    recipe = Recipe(
        about="yes: 1e-4 # no",
        seed=7,
        members={
            "a-1": MemberConfig(
                model=ModelConfig(name="cascade_rcnn_r50", deform=(2, 3), init="weights/ä b.pth"),
                augment=AugmentConfig(short_side=(480, 640), long_side=None, crop=(64, 96)),
                train=TrainConfig(lr=1e-7, ema=0.999, milestones=(1.5, 3)),
                predict=PredictConfig(
                    scales=(480, 640), suppress={"iou_threshold": {"WBC": 0.4, "1": 0.5, "no": 1}}
                ),
            )
        },
    )
    assert parse_recipe(recipe.to_yaml(), file="again") == recipe


def test_a_recipe_is_found_by_name_or_as_a_file(tmp_path):
    assert find_recipe("parts-cpu").name == "parts-cpu.yaml"
    own = tmp_path / "own.yaml"
    own.write_bytes(b"\xef\xbb\xbfmembers: {a: {model: {name: cascade_rcnn_r50}, train: {lr: 1e-4}}}")
    assert load_recipe(own).members["a"].train.lr == 1e-4
    with pytest.raises(ConfigError, match=r"no recipe is called 'parts-cp'; did you mean 'parts-cpu'\?"):
        find_recipe("parts-cp")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("folder", "cannot be read"),
        (b"\xff\xd8\xff\xe0\x00", "not a text file"),
        (
            b"- a\n- b",
            "expected a mapping with the keys about, seed, data, pretrain, members, combine, refine, audit, evaluate",
        ),
        (b"", "expected a mapping"),
        (b"members: {a: {model: {name: x}}}\nmembers: {}", "line 2: key 'members' is given twice"),
        (b"members:\n\ta: 1", "line 2"),
        (b"refining: {backbone: x}\nmembers: {a: {model: {name: x}}}", "refining: unknown key"),
        (b"members: {../x: {}}", "a name here should match pattern"),
        (b"seed: -1\nmembers: {a: {model: {}}}", "seed: found -1; expected greater than or equal to 0"),
        (b"members: {a: {model: {}, train: {epochs: 1e3}}}", "epochs: found 1000.0"),
        (b"members: {a: {model: {}, augment: {short_side: 10000000}}}", "short_side"),
    ],
)
def test_wrong_files_are_refused_with_their_name(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_data_set_and_a_seed_are_put_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("parts-cpu")
    assert recipe.on() == recipe
    assert recipe.on(data="d", seed=3).seed == 3
    assert recipe.on(data="d").data.root == str(Path.cwd() / "d")


@pytest.mark.parametrize(
    ("num_images", "passes"),
    [
        (7_000, 24),  # the anchor: DelftBikes' published schedule
        (28_000, 12),  # four times the images, half the epochs
        (1_750, 48),  # a quarter of the images, twice the epochs
        (117_000, 12),  # COCO, never fewer than 12
        (50, 150),  # never more than 150
    ],
)
def test_length_falls_with_the_root_of_the_number_of_images(num_images, passes):
    member = resolved(num_images=num_images)
    assert member.train.epochs == round(passes / member.train.repeats)
    assert member.train.decay_epochs() == pytest.approx(
        (member.train.epochs * 2 / 3, member.train.epochs * 11 / 12)
    )


@pytest.mark.parametrize(("num_images", "repeats"), [(1, 50), (40, 5), (100, 2), (200, 1), (5000, 1)])
def test_small_sets_are_repeated_to_fifty_steps(num_images, repeats):
    member = resolved(num_images=num_images)
    assert member.train.repeats == repeats
    assert math.ceil(num_images * repeats / member.train.batch_size) >= 50


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"device": "cuda", "memory_gib": 24.0}, (384, 576)),  # 480 px as it is, objects are 32 px
        ({"device": "cuda", "memory_gib": 24.0, "small_object": 16.0}, (768, 1152)),  # objects doubled
        ({"device": "cuda", "memory_gib": 24.0, "small_object": 4.0}, (768, 1152)),  # not more than doubled
        ({"device": "cuda", "memory_gib": 24.0, "small_object": 64.0}, (256, 384)),  # large objects: smaller
        ({"device": "cuda", "memory_gib": 24.0, "small_object": None}, (384, 576)),
        ({"device": "cpu"}, (256, 384)),  # a CPU takes up to 320
    ],
)
def test_image_size_follows_the_smaller_objects(changes, limits):
    assert resolved(**changes).augment.short_side == SideRange(min=limits[0], max=limits[1])


def test_batch_follows_memory_and_prediction_follows_training():
    large, small = (resolved(device="cuda", memory_gib=gib) for gib in (80.0, 4.0))
    assert large.train.batch_size == 16
    assert small.train.batch_size == 2  # 3.2 GiB for 0.44 megapixels at 3 GiB each
    assert resolved().train.batch_size == 4
    assert resolved(num_images=3).train.batch_size == 3
    assert large.predict.scales == 480
    assert (resolved().train.workers, large.train.workers) == (0, 7)


def test_every_choice_is_explained_and_nothing_else_changes():
    recipe = parse_recipe(AUTOMATIC, file="r.yaml")
    chosen, reasons = resolve(recipe, facts())
    assert len(reasons) == len(RULES) - 1  # what is monitored for boxes needs no word
    assert all(reason.startswith("members.a.") and ": " in reason for reason in reasons)
    assert resolve(chosen, facts(num_images=5000)) == (chosen, ())
    assert chosen.members["a"].detector == recipe.members["a"].detector.with_options(frozen_stages=0)


def test_a_detector_of_masks_is_judged_by_masks_and_that_is_told():
    recipe = load_recipe("masks-cpu")
    assert recipe.draws_masks
    chosen, reasons = resolve(recipe, facts())
    assert chosen.members["cascade"].train.monitor == "segm/AP"
    assert "members.cascade.train.monitor = segm/AP: the detector draws masks" in reasons


def test_the_segmenter_of_vision23_is_the_published_one():
    # report of Aoi-overfitting-Team, section 2.2; Cheng et al. 2022, section 4.1, for what it leaves open
    member = load_recipe("vision23-mask2former").members["mask2former"]
    segmenter, train = member.segmenter, member.train
    assert (segmenter.hyperparameters["backbone"], segmenter.planes) == ("swin_l", "foreground")
    assert segmenter.init.endswith("ade-semantic")
    assert (member.augment.crop, member.predict.scales) == (512, 512)
    assert {
        key: segmenter.hyperparameters[key] for key in ("num_queries", "decoder_layers", "num_points")
    } == {
        "num_queries": 100,
        "decoder_layers": 9,
        "num_points": 12544,
    }
    weights = [segmenter.hyperparameters[f"{name}_weight"] for name in ("class", "mask", "dice", "no_object")]
    assert weights == [2.0, 5.0, 5.0, 0.1]
    settings = (train.optimizer, train.lr, train.weight_decay, train.backbone_lr_scale, train.clip_norm)
    assert settings == ("adamw", 1e-4, 0.05, 0.1, 0.01)
    assert (train.total_batch, train.norm_decay, train.position_decay) == (16, False, False)


def test_a_segmenter_learns_every_pixel_that_shows():
    member = MemberConfig(segmenter={"name": "fpn_r50"}, augment={"min_visibility": 0.4, "crop": 64})
    assert (member.augmentation.min_visibility, member.augmentation.crop) == (0.0, 64)
    detector = MemberConfig(model={"name": "mask_rcnn_r50"}, augment={"min_visibility": 0.4})
    assert detector.augmentation is detector.augment


def test_what_is_shipped_is_readable():
    for name, path in shipped_recipes().items():
        text = read_recipe(path)
        assert text.startswith("about: "), name
        assert max(map(len, text.splitlines())) <= 120, name


@pytest.mark.parametrize(("processes", "batches"), [(1, 32), (8, 4)])
def test_what_a_step_holds_is_told_and_kept_where_the_recipe_names_it(processes, batches):
    named = load_recipe("delftbikes-cs21-base", ["members.cascade.train.workers=0"])
    told = resolve(named, facts(processes=processes)).reasons
    where = "one process" if processes == 1 else f"each of {processes} processes"
    wanted = f"a step is 64 images: {batches} batches of 2 on {where}, as total_batch says"
    assert f"members.cascade.train: {wanted}" in told


def test_a_learning_rate_as_written_is_told_with_what_a_step_then_holds():
    recipe = load_recipe("bccd-cpu")
    assert not any("a step is" in reason for reason in resolve(recipe, facts()).reasons)
    (told,) = (reason for reason in resolve(recipe, facts(processes=4)).reasons if "a step is" in reason)
    assert told.startswith(
        "members.cascade.train: a step is 8 images: 1 batches of 2 on each of 4 processes; lr 0.001"
    )


def test_an_automatic_batch_divides_the_total():
    changes = ["members.a.train.batch_size=auto", "members.a.train.total_batch=60"]
    recipe = parse_recipe(
        "members: {a: {model: {}, augment: {short_side: 320}}}", file="r.yaml", overrides=changes
    )
    for processes, largest in ((1, 4), (4, 3), (7, None)):
        if largest is None:
            with pytest.raises(ConfigError, match="total_batch is 60, but 7 processes"):
                resolve(recipe, facts(processes=processes, device="cpu", memory_gib=None))
        else:
            found = resolve(recipe, facts(processes=processes, device="cpu", memory_gib=None)).recipe
            assert found.members["a"].train.batch_size == largest

"""Training without a recipe: what is chosen for which data and device, and that it is said."""

from __future__ import annotations

import pytest

from scantling.errors import ConfigError, UsageError
from scantling.models.zoo import MODELS
from scantling.recipe.auto import auto_keys, resolve
from scantling.recipe.facts import DataFacts
from scantling.recipe.recipe import load_recipe, parse_recipe
from scantling.recipe.suggest import CPU_MEGAPIXELS, MEMBER, OpenRecipe, resolve_auto, sided_names

TOPICS = ("model: ", "image size: ", "schedule: ", "augmentation: ", "labels: ")
GPU = {"device": "cuda", "memory_gib": 24.0, "bf16": True}


def facts(**changes) -> DataFacts:
    known = {
        "num_images": 200,
        "median_hw": (480, 640),
        "small_object": 32.0,
        "device": "cpu",
        "memory_gib": None,
        "cpu_count": 2,
        "class_counts": {"bolt": 900, "nut": 7},
        "max_objects": 12,
    }
    return DataFacts(**{**known, **changes})


def chosen(*overrides: str, **changes):
    recipe, reasons = OpenRecipe.over("data", overrides=overrides).choose(facts(**changes))
    return recipe.members[MEMBER], reasons


@pytest.mark.parametrize(
    ("overrides", "changes", "model", "precision", "rate"),
    [
        ((), {}, "cascade_rcnn_r18_small", "fp32", 1e-3),
        ((), {"device": "mps"}, "cascade_rcnn_r18_small", "fp32", 1e-3),
        ((), GPU, "cascade_rcnn_r50_dcn_gn", "bf16", 1e-4),
        ((), {**GPU, "bf16": False}, "cascade_rcnn_r50_dcn_gn", "fp32", 1e-4),
        ((f"members.{MEMBER}.model.init=pretrained",), GPU, "cascade_rcnn_r50", "bf16", 1e-4),
    ],
)
def test_the_model_goes_by_the_device_and_its_first_weights(overrides, changes, model, precision, rate):
    member, reasons = chosen(*overrides, **changes)
    assert (member.model.name, member.train.precision, member.train.lr) == (model, precision, rate)
    assert model in MODELS
    assert model in reasons[0]


@pytest.mark.parametrize("changes", [{}, GPU, {"device": "mps"}, {"num_images": 1}, {"num_images": 90_000}])
def test_everything_is_decided_said_in_five_lines_and_reads_back(changes):
    recipe, reasons = resolve_auto(OpenRecipe.over("data", seed=3), facts(**changes))
    assert list(auto_keys(recipe.to_dict()["members"], "members")) == []
    assert recipe.seed == 3
    assert [reason.startswith(topic) for reason, topic in zip(reasons, TOPICS, strict=True)] == [True] * 5
    assert max(map(len, reasons)) < 170
    assert parse_recipe(recipe.to_yaml(), file="again") == recipe


def test_the_length_on_a_cpu_is_bounded_by_its_budget():
    member, reasons = chosen(num_images=1000)
    assert (min(member.augment.short_sides), max(member.augment.short_sides)) == (256, 384)
    megapixels = 320 * 320 * (640 / 480) / 1e6  # 0.137 an image, 137 a pass over 1000 images
    assert member.train.epochs == int(CPU_MEGAPIXELS / (1000 * megapixels)) == 4
    assert "1000 steps of 4; on two cores some 28 minutes" in reasons[2]  # 4 * 137 / 20
    on_gpu, _ = chosen(num_images=1000, **GPU)
    assert on_gpu.train.epochs == 63  # 24 passes * sqrt(7000 / 1000)
    assert chosen(num_images=90_000)[0].train.epochs == 1


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["left pedal", "right pedal", "saddle"], ["left pedal", "right pedal"]),
        (["Mirror_L", "mirror-RIGHT"], ["mirror-RIGHT"]),
        (["leftover", "bright", "copyright"], []),
        (["0", "1", "A", "plate"], ["0", "1", "A"]),
        (["A", "plate", "sign"], []),
        ([], []),
    ],
)
def test_names_that_a_mirror_image_makes_wrong(names, found):
    assert sided_names(names) == found
    member, reasons = chosen(class_counts=dict.fromkeys(names, 1))
    assert member.augment.flip == (0.0 if found else 0.5)
    assert ("not flipped" in reasons[3]) == bool(found)


def test_augmentation_and_limits_follow_the_data():
    few, many = chosen()[0], chosen(num_images=5000)[0]
    assert (few.augment.brightness, many.augment.brightness) == (0.2, 0.1)
    crowd = chosen(max_objects=61)[0]
    assert (few.predict.suppress.max_per_image, crowd.predict.suppress.max_per_image) == (100, 300)


def test_overrides_win_and_what_depends_on_them_follows():
    member, reasons = chosen(f"members.{MEMBER}.train.batch_size=8", f"members.{MEMBER}.train.epochs=3")
    assert (member.train.batch_size, member.train.epochs, member.train.repeats) == (8, 3, 2)
    assert "3 epochs of 200 images, each 2 times: 150 steps of 8" in reasons[2]
    flipped, reasons = chosen(f"members.{MEMBER}.augment.flip=0.0")
    assert flipped.augment.flip == 0.0
    assert "not flipped," in reasons[3]


def test_what_is_hard_is_said():
    _, reasons = chosen(small_object=5.0)
    assert "look at tiles" in reasons[1]  # 5 px of 480 are 3 px of 320
    assert "look at tiles" not in chosen()[1][1]
    assert (
        "look at tiles" not in chosen(small_object=5.0, median_hw=(96, 128))[1][1]
    )  # larger than life already
    assert "'nut' is rarest with 7; label more of it" in reasons[4]
    assert "label more" not in chosen(class_counts={"bolt": 20})[1][4]
    assert "pretrained" in chosen(**GPU)[1][0]


def test_wrong_overrides_are_told_before_any_data_is_read():
    with pytest.raises(ConfigError, match="did you mean"):
        OpenRecipe.over("nowhere", overrides=[f"members.{MEMBER}.train.epoch=3"])
    with pytest.raises(UsageError, match="not to be chosen"):
        OpenRecipe.over("nowhere", overrides=["members={a: {model: {name: faster_rcnn_r50}}}"])


def test_a_written_recipe_is_resolved_as_ever():
    recipe = load_recipe("parts-cpu")
    assert resolve_auto(recipe, facts()) == resolve(recipe, facts())

"""What `auto` means: settings chosen once from facts about the data set and the machine, each with its reason.

The rules anchor on published schedules and on what few labels need:

* Length: the number of epochs falls with the square root of the number of images, through 24 epochs for the
  7000 images of DelftBikes; never fewer than COCO's 12, never more than 150 (small sets overfit before).
* Repeats: an epoch has at least 50 steps, so that validation and saving do not outweigh training (VISION's
  winners repeat sets of some 40 images five times).
* Image size: the smaller objects (their tenth percentile) become 32 pixels, the smallest anchor of the usual
  pyramid, as far as enlarging helps (twice) and the device can afford it.
* Batch: what fits into the device's memory at that size, 16 at most.
* Learning rate: the optimiser's usual one; from a trained detector a third of it, since its heads, too, are to be
  kept; half the length then, as less is left to learn.
* Frozen: stem and first stage of a backbone that was trained elsewhere, as COCO's published schedules have it; the
  second stage, too, of a detector that sees fewer than 100 images.

A resolved recipe holds no `auto`; it is what a run saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from scantling.errors import CheckpointError
from scantling.recipe.facts import DataFacts
from scantling.recipe.recipe import MemberConfig, Recipe
from scantling.recipe.starting import Starting, starting_from
from scantling.settings.auto import Choice, resolved

PUBLISHED_IMAGES, PUBLISHED_EPOCHS = 7000, 24
MIN_EPOCHS, MAX_EPOCHS = 12, 150
MIN_STEPS_PER_EPOCH = 50
TARGET_SMALL_OBJECT = 32
MAX_ENLARGEMENT = 2.0
SHORT_SIDE_STEP = 32
SHORT_SIDE_LIMITS = {"cpu": (160, 320), "cuda": (320, 1600), "mps": (320, 800)}
RANGE_SHARE = 0.2
GIB_PER_MEGAPIXEL = 3.0
"""GPU memory of one training image with a ResNet-50 pyramid in float32: a cautious estimate, not a measurement."""
MAX_BATCH, CPU_BATCH = 16, 4
SGD_LR_PER_IMAGE = 0.02 / 16
ADAMW_LR = {"cpu": 1e-3, "mps": 1e-3, "cuda": 1e-4}
FINE_TUNING_LR, FINE_TUNING_LENGTH = 1 / 3, 1 / 2
FEW_TO_FREEZE = 100
MAX_WORKERS = 8


Rule = Callable[[MemberConfig, DataFacts], Choice]


class Resolution(NamedTuple):
    """A recipe without `auto`, and a sentence for every choice made."""

    recipe: Recipe
    reasons: tuple[str, ...]


def resolve(recipe: Recipe, facts: DataFacts) -> Resolution:
    """Replace every `auto` by a value.

    Args:
        recipe: As the user wrote it.
        facts: About its training data and the machine.
    """
    reasons: list[str] = []
    members = {
        name: _resolve_member(f"members.{name}", member, facts, reasons)
        for name, member in recipe.members.items()
    }
    resolved = recipe.model_copy(update={"members": members})
    left = list(auto_keys(resolved.to_dict()["members"], "members"))
    if left:
        raise RuntimeError(f"no rule decides {', '.join(left)}")
    return Resolution(resolved, tuple(reasons))


def auto_keys(value: Any, path: str) -> Iterator[str]:
    """Key paths whose value is `auto`."""
    if value == "auto":
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from auto_keys(inner, f"{path}.{key}")


def _resolve_member(path: str, member: MemberConfig, facts: DataFacts, reasons: list[str]) -> MemberConfig:
    for (section, key), rule in RULES.items():
        config: BaseModel | None = getattr(member, section)
        if config is not None and getattr(config, key, None) == "auto":
            choice = _chosen(rule, path, member, facts)
            if choice.reason:
                reasons.append(f"{path}.{section}.{key} = {_shown(choice.value)}: {choice.reason}")
            changed = type(config).model_validate({**config.model_dump(), key: choice.value})
            member = member.model_copy(update={section: changed})
    if member.is_trained and (facts.processes > 1 or member.train.total_batch is not None):
        reasons.append(f"{path}.train: {_step_size(member, facts.processes)}")
    return member


def _chosen(rule: Rule, path: str, member: MemberConfig, facts: DataFacts) -> Choice:
    try:
        return rule(member, facts)
    except CheckpointError as error:  # of what training starts from
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error


def _step_size(member: MemberConfig, processes: int) -> str:
    """What a step holds, and what that means for the learning rate.

    Raises:
        ConfigError: The processes together cannot make steps of `total_batch` images.
    """
    train = member.train
    batches, size = train.batches_per_step(processes), resolved(train.batch_size)
    where = "on one process" if processes == 1 else f"on each of {processes} processes"
    shown = f"a step is {size * batches * processes} images: {batches} batches of {size} {where}"
    if train.total_batch is not None:
        return f"{shown}, as total_batch says"
    return f"{shown}; lr {resolved(train.lr):g} stays as it is, give total_batch if it is meant for another number"


def _short_side(member: MemberConfig, facts: DataFacts) -> Choice:
    short = min(_shown_hw(member, facts))
    wanted = TARGET_SMALL_OBJECT / facts.small_object if facts.small_object else 1.0
    smallest, largest = SHORT_SIDE_LIMITS[facts.device]
    side = min(max(short * min(wanted, MAX_ENLARGEMENT), smallest), largest)
    side = max(SHORT_SIDE_STEP, round(side / SHORT_SIDE_STEP) * SHORT_SIDE_STEP)
    limit = member.augment.long_side or side
    low, high = (min(round(side * share), limit) for share in (1 - RANGE_SHARE, 1 + RANGE_SHARE))
    small = f"{facts.small_object:.0f} px" if facts.small_object else "unknown"
    what = "images" if member.augment.tile is None else "tiles"
    reason = (
        f"{what} are {short} px short, their smaller objects {small}; {facts.device} takes up to {largest}"
    )
    return Choice({"min": low, "max": high}, reason)


def _shown_hw(member: MemberConfig, facts: DataFacts) -> tuple[int, int]:
    """Size of what is resized: the usual image, or the tile that is cut from it."""
    tile = member.augment.tile or max(facts.median_hw)
    return min(tile, facts.median_hw[0]), min(tile, facts.median_hw[1])


def _batch_size(member: MemberConfig, facts: DataFacts) -> Choice:
    if facts.memory_gib is None:
        largest, reason = CPU_BATCH, "a CPU gains nothing from larger batches"
    else:
        short, long = sorted(_shown_hw(member, facts))
        side = max(member.augment.short_sides)
        megapixels = side * min(side * long / short, member.augment.long_side or side) / 1e6
        largest = min(int(0.8 * facts.memory_gib / (GIB_PER_MEGAPIXEL * megapixels)), MAX_BATCH)
        reason = f"{facts.memory_gib:.0f} GiB for images of {megapixels:.1f} megapixels"
    size, total = max(1, min(largest, facts.num_images)), member.train.total_batch
    if total is not None:
        sizes = range(1, size + 1)
        size = max((number for number in sizes if total % (number * facts.processes) == 0), default=1)
        reason += f", and whole batches in a step of {total}"
    return Choice(size, reason)


def _repeats(member: MemberConfig, facts: DataFacts) -> Choice:
    batches = member.train.batches_per_step(facts.processes)
    images_per_step = resolved(member.train.batch_size) * batches * facts.processes
    repeats = max(1, math.ceil(MIN_STEPS_PER_EPOCH * images_per_step / facts.num_images))
    tiles = math.prod(
        math.ceil(side / shown) for side, shown in zip(facts.median_hw, _shown_hw(member, facts), strict=True)
    )
    if tiles > repeats:
        return Choice(tiles, f"an image makes {tiles} tiles, of which each pass takes one")
    return Choice(
        repeats, f"an epoch of {facts.num_images} images then has at least {MIN_STEPS_PER_EPOCH} steps"
    )


def _epochs(member: MemberConfig, facts: DataFacts) -> Choice:
    passes = PUBLISHED_EPOCHS * math.sqrt(PUBLISHED_IMAGES / facts.num_images)
    passes = min(max(passes, MIN_EPOCHS), MAX_EPOCHS)
    reason = "12 for COCO, 24 for 7000 images"
    if _start(member).kind == "detector":
        passes *= FINE_TUNING_LENGTH
        reason += "; half of it from a trained detector"
    epochs = max(1, round(passes / resolved(member.train.repeats)))
    return Choice(epochs, f"{passes:.0f} passes over {facts.num_images} images ({reason})")


def _start(member: MemberConfig) -> Starting:
    return Starting("random", {}) if member.model is None else starting_from(member.model)


def _lr(member: MemberConfig, facts: DataFacts) -> Choice:
    train, start = member.train, _start(member)
    if train.optimizer == "sgd":
        size = train.total_batch or resolved(train.batch_size) * train.accumulate * facts.processes
        rate, reason = SGD_LR_PER_IMAGE * size, f"0.02 for 16 images, here {size}"
    elif train.optimizer == "adamw":
        rate, reason = ADAMW_LR[facts.device], "what AdamW takes for models of that size"
    else:
        rate, reason = 1.0, "AdaDelta's own"
    if start.kind == "detector" and train.optimizer != "adadelta":
        rate, reason = rate * FINE_TUNING_LR, f"{reason}; a third of it from a trained detector"
    return Choice(float(f"{rate:.3g}"), reason)


def _frozen_stages(member: MemberConfig, facts: DataFacts) -> Choice:
    start = _start(member)
    if start.kind in ("random", "crops"):
        return Choice(0, f"training starts from {start.phrase}")
    if start.kind == "detector" and facts.num_images < FEW_TO_FREEZE:
        return Choice(2, f"training starts from {start.phrase}, and {facts.num_images} images are few")
    return Choice(1, f"training starts from {start.phrase}, as COCO's published schedules do")


def _milestones(member: MemberConfig, facts: DataFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    used = (
        ""
        if member.train.schedule == "step"
        else f" (the schedule {member.train.schedule} does not look at it)"
    )
    return Choice(member.train.decay_epochs(), f"2/3 and 11/12 of the length{used}")


def _workers(member: MemberConfig, facts: DataFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    if facts.device == "cpu":
        return Choice(0, "the processor is busy training")
    return Choice(
        min(MAX_WORKERS, max(1, facts.cpu_count - 1)), f"{facts.cpu_count} cores feed the {facts.device}"
    )


def _scales(member: MemberConfig, facts: DataFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    sides = member.augment.short_sides
    return Choice(sides[len(sides) // 2], "the middle of the training sizes")


def _tile(member: MemberConfig, facts: DataFacts) -> Choice:  # noqa: ARG001 - a rule's signature
    tile = member.augment.tile
    return Choice(tile, "whole images, as in training" if tile is None else "the tiles of training")


def _monitor(member: MemberConfig, _facts: DataFacts) -> Choice:
    if member.segmenter is not None:
        return Choice("semantic/mIoU", "a segmenter")
    if member.draws_masks:
        return Choice("segm/AP", "the detector draws masks")
    return Choice("bbox/AP", "")  # what everybody expects of boxes


RULES: dict[tuple[str, str], Rule] = {
    ("model", "frozen_stages"): _frozen_stages,
    ("augment", "short_side"): _short_side,
    ("train", "batch_size"): _batch_size,
    ("train", "repeats"): _repeats,
    ("train", "lr"): _lr,
    ("train", "epochs"): _epochs,
    ("train", "milestones"): _milestones,
    ("train", "workers"): _workers,
    ("train", "monitor"): _monitor,
    ("predict", "scales"): _scales,
    ("predict", "tile"): _tile,
}
"""Setting -> rule, in the order in which they are decided: later rules look at earlier choices."""


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)

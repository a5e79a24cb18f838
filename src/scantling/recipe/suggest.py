"""`train DIR` without a recipe: a whole recipe for a data set and a machine, and why it is as it is.

What comes out is an ordinary recipe with one member, `detector`: the model goes by the device, everything that
`resolve` has a rule for (image size, batch, repeats, length) is left to it, and what remains is chosen here:

* Masks: where every annotation has one.
* Length on a CPU: a budget of pixels that a processor of two cores works off in about half an hour.
* Mirroring: not where the categories tell left from right, or are letters and digits.
* Colours: varied more where images are few.
* Objects kept per image: three times COCO's where images hold that many.

`--set` is applied to what is chosen, so a value that the user gives also decides what depends on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scantling.data.splits import DataConfig, read_run_data
from scantling.errors import UsageError
from scantling.models.zoo import MODELS, ModelConfig
from scantling.recipe.auto import Resolution, resolve
from scantling.recipe.facts import DataFacts, measure
from scantling.recipe.recipe import EvaluateConfig, MemberConfig, Recipe, parse_recipe
from scantling.recipe.starting import Starting, starting_from
from scantling.settings import yaml as strict_yaml
from scantling.settings.auto import resolved
from scantling.train.devices import resolve_device

MEMBER = "detector"
COMBINE: dict[str, Any] = {"tune": {}}
"""What follows on predicting: suppression by category, which costs seconds, where its gain holds on val."""
ABOUT = "Chosen for the data set and the machine by `scantling train`."
BOX_MODELS: tuple[dict[str, Any], ...] = (
    {"name": "cascade_rcnn_r18_small"},
    {"name": "cascade_rcnn_r50_dcn_gn"},
    {"name": "cascade_rcnn_r50"},
)
"""For a CPU, for a GPU from random weights, for a GPU from published weights of the backbone."""
MASK_MODELS: tuple[dict[str, Any], ...] = (
    {"name": "cascade_mask_rcnn_r18_small"},
    {"name": "cascade_mask_rcnn_r50", "norm": "gn", "deform": (2, 3, 4)},
    {"name": "cascade_mask_rcnn_r50"},
)
"""The same where every object has a mask."""
CPU_MEGAPIXELS, CPU_MEGAPIXELS_PER_MINUTE = 600, 20
LONG_SIDE = {"cpu": 576, "mps": 1333, "cuda": 2666}
FEW_IMAGES = 1000
CROWDED = 60
SMALLEST_EASY_OBJECT = 16
FEW_OBJECTS = 20
LONGEST_SHOWN = 40
_SIDES = {"left", "right", "links", "rechts", "gauche", "droite", "izquierda", "derecha"}
SCRATCH = Starting("random", {})
_UNKNOWN = DataFacts(
    num_images=100, median_hw=(480, 640), small_object=None, device="cpu", memory_gib=None, cpu_count=1
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRecipe:
    """A recipe whose member is chosen once the data has been read.

    Attributes:
        root: Folder of the data set.
        seed: Of all randomness; None is the recipes' default.
        overrides: `KEY.PATH=VALUE` texts, applied to what is chosen.
    """

    root: str
    seed: int | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def over(cls, data: str | Path, *, seed: int | None = None, overrides: Iterable[str] = ()) -> OpenRecipe:
        """For a folder.

        Raises:
            ConfigError: An override is wrong: that is told before any data is read.
            UsageError: The overrides leave no member to choose.
        """
        opened = cls(root=str(Path(data).absolute()), seed=seed, overrides=tuple(overrides))
        if MEMBER not in opened._written(_UNKNOWN).members:
            raise UsageError(
                "these members are not to be chosen", hint="Write a recipe; give it with --recipe."
            )
        opened.choose(_UNKNOWN)
        return opened

    @property
    def data(self) -> DataConfig:
        """Which splits are read, and how strictly."""
        return self._written(_UNKNOWN).data

    @property
    def needs_masks(self) -> bool:
        """Whether a model that draws masks was asked for; whether one is chosen goes by the labels."""
        return self._written(_UNKNOWN).needs_masks

    @property
    def evaluate(self) -> EvaluateConfig:
        """What is evaluated."""
        return self._written(_UNKNOWN).evaluate

    def choose(self, facts: DataFacts) -> Resolution:
        """The recipe, without `auto`, and five lines that explain it.

        Args:
            facts: About the training data and the machine.
        """
        start = self._start()
        first = resolve(self._written(facts, start), facts).recipe
        length = affordable_epochs(first.members[MEMBER], facts)
        recipe = resolve(self._written(facts, start, epochs=length), facts).recipe
        return Resolution(recipe, explain(recipe.members[MEMBER], facts))

    def _start(self) -> Starting:
        return starting_from(self._written(_UNKNOWN).members[MEMBER].detector)

    def _written(self, facts: DataFacts, start: Starting = SCRATCH, *, epochs: int | None = None) -> Recipe:
        member = write_member(facts, start, epochs=epochs)
        text = strict_yaml.dump({"about": ABOUT, "members": {MEMBER: member}, "combine": COMBINE})
        recipe = parse_recipe(text, file="the chosen recipe", overrides=self.overrides)
        return recipe.on(data=self.root, seed=self.seed)


def resolve_auto(recipe: Recipe | OpenRecipe, facts: DataFacts) -> Resolution:
    """A recipe without `auto`, whether it was written or is to be chosen; see `resolve`."""
    return recipe.choose(facts) if isinstance(recipe, OpenRecipe) else resolve(recipe, facts)


def suggest_recipe(opened: OpenRecipe, *, device: str = "auto") -> str:
    """The chosen recipe as a file to start one's own from, its reasons in comments.

    Args:
        opened: For a data set.
        device: Where it is to train.

    Raises:
        ScantlingError: The data or the device cannot be used.
    """
    chosen = resolve_device(device)
    data = read_run_data(opened.data, opened.evaluate.split, with_masks=opened.needs_masks)
    recipe, reasons = opened.choose(measure(data.train, chosen))
    comments = [f"# {reason}" for reason in reasons]
    members = {name: _short(member) for name, member in recipe.members.items()}
    about = f"Chosen for {Path(opened.root).name}."
    text = strict_yaml.dump({"about": about, "members": members, "combine": COMBINE})
    return "\n".join([*comments, text.rstrip("\n")])


def _short(member: MemberConfig) -> dict[str, Any]:
    """What a member's file has to say: all that is not a default, and the model's name."""
    values = member.model_dump(mode="json", exclude_defaults=True)
    return {**values, "model": {"name": member.detector.name, **values.get("model", {})}}


def write_member(facts: DataFacts, start: Starting = SCRATCH, *, epochs: int | None = None) -> dict[str, Any]:
    """Plain values of the member; `auto` where `resolve` has a rule.

    Args:
        facts: About the training data and the machine.
        start: What training starts from: a detector of ours brings its model along, and published backbones are made
            for BatchNorm.
        epochs: Length of the training; None leaves it to `resolve`.
    """
    gpu, few = facts.device == "cuda", facts.num_images < FEW_IMAGES
    small, scratch, published = MASK_MODELS if facts.has_masks else BOX_MODELS
    large = scratch if start.kind == "random" else published
    model = _for_labels(start.model, facts) or dict(large if gpu else small)
    colours = 0.2 if few else 0.1
    return {
        "model": {**model, "frozen_stages": "auto"},
        "augment": {
            "short_side": "auto",
            "long_side": LONG_SIDE[facts.device],
            "flip": 0.0 if sided_names(facts.class_counts) else 0.5,
            "brightness": colours,
            "contrast": colours,
        },
        "train": {
            "epochs": epochs or "auto",
            "repeats": "auto",
            "batch_size": "auto",
            "workers": "auto",
            "optimizer": "adamw",
            "lr": "auto",
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup_steps": 200 if gpu else 20,
            "validate_every": 1 if epochs is None else max(1, round(epochs / 10)),
            "precision": "bf16" if gpu and facts.bf16 else "fp32",
        },
        "predict": {
            "scales": "auto",
            "long_side": LONG_SIDE[facts.device],
            "batch_size": 4,
            "suppress": {"max_per_image": 300 if facts.max_objects > CROWDED else 100},
        },
    }


def _for_labels(model: Mapping[str, Any], facts: DataFacts) -> dict[str, Any]:
    """The model that a start brings along; without its mask heads where not every object has a mask."""
    config = ModelConfig.model_validate(dict(model))
    name = config.name.replace("cascade_mask_rcnn", "cascade_rcnn").replace("mask_rcnn", "faster_rcnn")
    if not model or facts.has_masks or not config.has_masks or name not in MODELS:
        return dict(model)
    known = ModelConfig.known_keys({"name": name})
    return {key: value for key, value in model.items() if key in known} | {"name": name}


def affordable_epochs(member: MemberConfig, facts: DataFacts) -> int:
    """Length of the training: what `resolve` says, on a CPU no more than its budget of pixels holds.

    Args:
        member: Without `auto`.
        facts: About the training data and the machine.
    """
    wanted = resolved(member.train.epochs)
    if facts.device != "cpu":
        return wanted
    return max(1, min(wanted, int(CPU_MEGAPIXELS / epoch_megapixels(member, facts))))


def epoch_megapixels(member: MemberConfig, facts: DataFacts) -> float:
    """Pixels that one epoch of training looks at, in millions.

    Args:
        member: Without `auto`.
        facts: About the training data.
    """
    sides = member.augment.short_sides
    short, aspect = sides[len(sides) // 2], max(facts.median_hw) / min(facts.median_hw)
    long = min(short * aspect, member.augment.long_side or short)
    return short * long / 1e6 * facts.num_images * resolved(member.train.repeats)


def sided_names(names: Iterable[str]) -> list[str]:
    """Names of categories that a flipped image would make wrong: sides, or letters and digits."""
    known = list(names)
    sided = [name for name in known if _SIDES & set(re.split(r"[\W\d_]+", name.lower()))]
    characters = [name for name in known if len(name.strip()) == 1]
    return sided or (characters if 2 * len(characters) > len(known) else [])


def explain(member: MemberConfig, facts: DataFacts) -> tuple[str, ...]:
    """Five lines: model, image size, schedule, augmentation, and what the labels hold.

    Args:
        member: As it was chosen and perhaps overridden.
        facts: What it was chosen from.
    """
    lines = {
        "model": _model_line(member, facts),
        "image size": _size_line(member, facts),
        "schedule": _schedule_line(member, facts),
        "augmentation": _augmentation_line(member, facts),
        "labels": _labels_line(facts),
    }
    return tuple(f"{topic + ':':<13} {line}" for topic, line in lines.items())


def _model_line(member: MemberConfig, facts: DataFacts) -> str:
    name, key, start = (
        member.detector.name,
        f"--set members.{MEMBER}.model.init",
        starting_from(member.detector),
    )
    if start.kind != "random":
        frozen, rate = member.detector.hyperparameters["frozen_stages"], resolved(member.train.lr)
        held = (
            f"stem and {frozen} stage{'s' * (frozen > 1)} stay as they are"
            if frozen
            else "all of it is trained"
        )
        return f"{name} from {start.phrase} ({_short_name(member.detector.init)}): {held}, learning rate {rate:g}"
    if facts.device != "cuda":
        return f"{name}, made for training without a large GPU (the device is {facts.device})"
    memory = f"a GPU of {facts.memory_gib:.0f} GiB" if facts.memory_gib else "a GPU"
    return f"{name} from random weights on {memory}; published ones, if you may download: {key}=pretrained"


def _short_name(init: str) -> str:
    """An `init` as a line can show it."""
    return init if len(init) <= LONGEST_SHOWN else f"...{init[-LONGEST_SHOWN:]}"


def _size_line(member: MemberConfig, facts: DataFacts) -> str:
    sides, (height, width) = member.augment.short_sides, facts.median_hw
    shown = f"short side {min(sides)} to {max(sides)} px of images of {width}x{height}"
    if facts.small_object is None:
        return shown
    seen = facts.small_object * sides[len(sides) // 2] / min(facts.median_hw)
    shrunk = sides[len(sides) // 2] < min(facts.median_hw)
    advice = "; too few: look at tiles" if shrunk and seen < SMALLEST_EASY_OBJECT else ""
    return f"{shown}: a tenth of the objects is under {facts.small_object:.0f} px and gets {seen:.0f}{advice}"


def _schedule_line(member: MemberConfig, facts: DataFacts) -> str:
    train = member.train
    repeats, batch, epochs = resolved(train.repeats), resolved(train.batch_size), resolved(train.epochs)
    per_step = batch * train.batches_per_step(facts.processes) * facts.processes
    steps = epochs * math.ceil(facts.num_images * repeats / per_step)
    shown = f"{epochs} epochs of {facts.num_images} images, each {repeats} times: {steps} steps of {per_step}"
    if facts.device != "cpu":
        return f"{shown}; the fewer the images, the more often each is seen"
    minutes = math.ceil(epochs * epoch_megapixels(member, facts) / CPU_MEGAPIXELS_PER_MINUTE)
    return f"{shown}; on two cores some {minutes} minutes, half an hour at most unless you say more"


def _augmentation_line(member: MemberConfig, facts: DataFacts) -> str:
    augment, sided = member.augment, sided_names(facts.class_counts)
    colours = f"brightness and contrast up to {augment.brightness:.0%} ({facts.num_images} images)"
    if augment.flip:
        return f"flipped left to right, sizes as above, {colours}"
    why = f" ({', '.join(sided[:2])} would be wrong)" if sided else ""
    return f"not flipped{why}, sizes as above, {colours}"


def _labels_line(facts: DataFacts) -> str:
    counts = dict(facts.class_counts)
    if not counts:
        return "none"
    rarest = min(counts, key=lambda name: counts[name])
    shown = f"{sum(counts.values())} objects in {len(counts)} categories"
    fewest = f"{rarest!r} is rarest with {counts[rarest]}" if len(counts) > 1 else "up to"
    most = f"at most {facts.max_objects} in an image"
    advice = "; label more of it" if counts[rarest] < FEW_OBJECTS else ""
    return f"{shown}, {most}; {fewest}{advice}" if len(counts) > 1 else f"{shown}, {most}{advice}"

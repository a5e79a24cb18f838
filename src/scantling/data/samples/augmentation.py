"""How training images are varied: the settings, and the transforms that they ask for.

AugmentConfig ── build_transforms ──► Compose: InstaBoost ► copy-paste ► tile ► resize ► affine ► crop ► flips, turns
                                               ► mosaic ► mixup ► colours ► blur ► noise ► JPEG ► cut-out
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from scantling.data.coco import CocoDataset
from scantling.data.samples.affine import AffineConfig, RandomAffine
from scantling.data.samples.copy_paste import CopyPaste, CopyPasteConfig, Occurrences
from scantling.data.samples.degrade import Blur, CutOut, Jpeg, Noise
from scantling.data.samples.instaboost import InstaBoost, InstaBoostConfig
from scantling.data.samples.mosaic import MixUp, MixUpConfig, Mosaic, MosaicConfig
from scantling.data.samples.photometric import Photometric
from scantling.data.samples.transforms import (
    Closing,
    Compose,
    HorizontalFlip,
    PadTo,
    RandomCrop,
    RandomRotate90,
    RandomTile,
    ResizeShortSide,
    Transform,
    VerticalFlip,
)
from scantling.errors import ConfigError
from scantling.settings.fields import Fraction

Side = Annotated[int, Field(strict=True, ge=16, le=16384)]

_Section = Literal[
    "instaboost", "copy_paste", "affine", "mosaic", "mixup", "blur", "noise", "jpeg", "cut_out"
]
Closable = Literal["photometric", "turn"] | _Section
"""Options that training can go without towards its end."""

_OFF: dict[Closable, float | None] = {
    "photometric": 0.0,
    "turn": 0.0,
    **dict.fromkeys(get_args(_Section)),
}


class SideRange(BaseModel):
    """Every whole length from `min` to `max`, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Side
    max: Side

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class AugmentConfig(BaseModel):
    """How training images are varied; the defaults are the usual resize and flip.

    Attributes:
        tile: Side in pixels of a random square that is cut from the image first, for images too large to be taken
            whole; the rest happens to the square. null: the whole image.
        tile_objects: Probability that the square shows a random object of the image; the others lie anywhere.
        short_side: Length of the short side in pixels: one number, a list to choose from, or `{min, max}` for any
            length between them. The aspect is kept. `auto` is resolved from the sizes of images and objects
            before training starts.
        long_side: The long side is never longer than this. null: never longer than the length drawn for the short
            side, so that images fit into a square of that length.
        crop: Size of a random crop after resizing, one number for a square or [height, width]; null for none.
        crop_pad: Fill images smaller than the crop with black at the right and bottom.
        min_visibility: Objects of which a crop leaves a smaller share than this are no targets in it, nor those
            of which pasted objects do; where a tile does, the region is ignored. The share is that of the mask
            where objects have masks, else of the box; a crop is drawn again until it shows enough of some
            object, ten times at most, then put around one, then where it shows the largest share of one, which
            stays a target even if it is a smaller one: an image with objects is never cropped to one without.
        flip: Probability of exchanging left and right.
        vertical_flip: Probability of exchanging top and bottom.
        turn: Probability of a turn by 90, 180 or 270 degrees.
        photometric: Probability of changing colours at all; how much is said by the next five.
        brightness: Largest relative change of brightness (0.2: factor 0.8 to 1.2).
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest turn of the colour circle, in whole turns.
        gamma: Largest relative change of the gamma exponent.
        instaboost: Objects moved a little within their image, before anything else; null for none. Needs masks.
        copy_paste: Objects of other training images laid onto the image, after that; null for none.
        affine: Rotation by any angle, scale, shear and shift, between resize and crop; null for none, `{}` for some.
        mosaic: Four images in one, each of which has gone through all of the above but colours; null for none.
        mixup: Another image shining through, a mosaic perhaps; null for none.
        blur: Gaussian and motion blur, after colours; null for none, `{}` for some.
        noise: Noise of a sensor, after that; null for none, `{}` for some.
        jpeg: Artefacts of JPEG, after that; null for none, `{}` for some.
        cut_out: Rectangles that hide parts of the image, at last; null for none, `{}` for some.
        close_epochs: So many epochs at the end of training go without the options that `closed` names, so that training
            ends on images as they are met with later; 0 for none.
        closed: Options that `close_epochs` switches off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: Annotated[int, Field(strict=True, ge=32, le=16384)] | None = None
    tile_objects: Fraction = 0.75
    short_side: Side | Annotated[tuple[Side, ...], Field(min_length=1)] | SideRange | Literal["auto"] = 800
    long_side: Side | None = 1333
    crop: Side | tuple[Side, Side] | None = None
    crop_pad: StrictBool = False
    min_visibility: Fraction = 0.1
    flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    turn: Fraction = 0.0
    photometric: Fraction = 1.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(strict=True, ge=0, le=0.5)] = 0.0
    gamma: Fraction = 0.0
    instaboost: InstaBoostConfig | None = None
    copy_paste: CopyPasteConfig | None = None
    affine: AffineConfig | None = None
    mosaic: MosaicConfig | None = None
    mixup: MixUpConfig | None = None
    blur: Blur | None = None
    noise: Noise | None = None
    jpeg: Jpeg | None = None
    cut_out: CutOut | None = None
    close_epochs: Annotated[int, Field(strict=True, ge=0)] = 0
    closed: tuple[Closable, ...] = ("mosaic", "mixup")

    @property
    def short_sides(self) -> Sequence[int]:
        """All lengths that the short side may take, in the order given; none while it is `auto`."""
        if self.short_side == "auto":
            return ()
        if isinstance(self.short_side, SideRange):
            return range(self.short_side.min, self.short_side.max + 1)
        return self.short_side if isinstance(self.short_side, tuple) else (self.short_side,)

    @model_validator(mode="after")
    def _sides_agree(self) -> Self:
        longest = max(self.short_sides, default=0)
        if self.long_side is not None and longest > self.long_side:
            raise ValueError(f"short_side {longest} is larger than long_side {self.long_side}")
        return self

    def at_the_end(self) -> AugmentConfig:
        """What is left in the last `close_epochs` epochs."""
        return self.model_copy(update={name: _OFF[name] for name in self.closed})


def uses_masks(config: AugmentConfig, train: CocoDataset) -> bool:
    """Whether images have to carry masks for their augmentation, whatever learns from them.

    Raises:
        ConfigError: They have to, and there are annotations without masks.
    """
    lacking = [each for many in train.annotations for each in many if each.segmentation is None]
    if config.instaboost is not None and lacking:
        told = f"{len(lacking)} of {train.num_annotations} annotations of {train.file} have no mask"
        raise ConfigError(
            f"augment.instaboost: {told}",
            hint="InstaBoost needs them. Use augment.copy_paste, which can do with boxes, or add masks.",
        )
    return not lacking and (config.instaboost, config.copy_paste) != (None, None)


def closing_of(config: AugmentConfig, epochs: int, train: CocoDataset | None = None) -> Closing | None:
    """What training goes over to in its last epochs; None where it stays as it is.

    Args:
        config: Of the whole training.
        epochs: How many epochs training has, if nothing stops it early.
        train: As of `build_transforms`.

    Raises:
        ConfigError: Training has no more epochs than are to go without.
    """
    end = config.at_the_end()
    if not config.close_epochs or end == config:
        return None
    if config.close_epochs >= epochs:
        told = f"{config.close_epochs} epochs at the end are to go without {', '.join(config.closed)}"
        raise ConfigError(
            f"augment.close_epochs: {told}, and training has {epochs}",
            hint="Give fewer than train.epochs, or leave these options out.",
        )
    return Closing(epochs - config.close_epochs, build_transforms(end, train))


def build_transforms(config: AugmentConfig, train: CocoDataset | None = None) -> Compose:
    """The transforms a configuration asks for, in the order at the top; not what is off.

    Args:
        config: What is done to training images.
        train: Where copy-paste learns which objects there are, and where they occur; needed for nothing else.

    Raises:
        ValueError: Copy-paste without a data set.
    """
    steps: list[Transform] = [*_pastes(config, train)]
    if config.tile is not None:
        share, visible = config.tile_objects, config.min_visibility
        steps.append(RandomTile(side=config.tile, object_share=share, min_visibility=visible))
    steps.append(ResizeShortSide(short_side=config.short_sides, long_side=config.long_side))
    if config.affine is not None:
        steps.append(RandomAffine(config=config.affine, min_visibility=config.min_visibility))
    if config.crop is not None:
        size_hw = (config.crop, config.crop) if isinstance(config.crop, int) else config.crop
        steps.append(RandomCrop(size_hw=size_hw, min_visibility=config.min_visibility))
    if config.flip:
        steps.append(HorizontalFlip(probability=config.flip))
    if config.vertical_flip:
        steps.append(VerticalFlip(probability=config.vertical_flip))
    if config.turn:
        steps.append(RandomRotate90(probability=config.turn))
    if config.mosaic is not None:
        steps = [Mosaic(config.mosaic, Compose(tuple(steps)), config.min_visibility)]
    if config.mixup is not None:
        steps = [MixUp(config.mixup, Compose(tuple(steps)), config.min_visibility)]
    steps.extend(_colour_steps(config))
    worse = (config.blur, config.noise, config.jpeg, config.cut_out)
    steps.extend(step for step in worse if step is not None)
    if config.crop is not None and config.crop_pad:
        steps.append(PadTo(size_hw=size_hw))
    return Compose(tuple(steps))


def _pastes(config: AugmentConfig, train: CocoDataset | None) -> list[Transform]:
    steps: list[Transform] = []
    if config.instaboost is not None:
        steps.append(InstaBoost(config.instaboost, config.min_visibility))
    if config.copy_paste is not None:
        if train is None:
            raise ValueError("build_transforms: copy_paste needs the training set, found None")
        steps.append(CopyPaste(config.copy_paste, Occurrences.of(train), config.min_visibility))
    return steps


def _colour_steps(config: AugmentConfig) -> list[Transform]:
    step = Photometric(
        probability=config.photometric,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        hue=config.hue,
        gamma=config.gamma,
    )
    return [] if step == Photometric(probability=config.photometric) or not config.photometric else [step]

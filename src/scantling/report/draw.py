"""Instances drawn on an image: translucent masks, crisp boxes, label tags that keep out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scantling.ops.overlaps import common_areas
from scantling.report.palette import Colour, colour_of, ink_on
from scantling.structures.instances import ImageMasks, Instances

Pixels = NDArray[np.uint8]
Rectangle = tuple[float, float, float, float]

_SUBPIXEL_BITS = 4
_CASING: Colour = (24, 24, 24)
_FALLBACK_FAMILIES = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "PingFang SC",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawStyle:
    """How instances look.

    Attributes:
        line_width: Pixels; None scales with the image.
        font_size: Pixels; None scales with the image.
        show_labels: Whether boxes carry a tag with category and score.
        mask_opacity: 0..1.
        colour: RGB of every instance instead of one per category.
    """

    line_width: int | None = None
    font_size: int | None = None
    show_labels: bool = True
    mask_opacity: float = 0.35
    colour: Colour | None = None


def draw(
    image: Pixels, instances: Instances, class_names: Sequence[str], style: DrawStyle | None = None
) -> Pixels:
    """A copy of the image with the instances drawn on it.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: In the frame of the image; no instances give a plain copy.
        class_names: Names in label order; tags read "name 0.93", without scores "name".
        style: How it looks; the default scales lines and text with the image.

    Raises:
        ValueError: Image and instances differ in size.
    """
    if image.shape[:2] != instances.size_hw:
        raise ValueError(f"image is {image.shape[:2]}, instances live in {instances.size_hw} (height, width)")
    style = _scaled(style or DrawStyle(), instances.size_hw)
    canvas = np.ascontiguousarray(image).copy()
    colours = [style.colour or colour_of(int(label)) for label in instances.labels]
    boxes = [cast(Rectangle, tuple(map(float, box))) for box in instances.boxes]
    _draw_masks(canvas, instances, colours, style)
    for box, colour in zip(boxes, colours, strict=True):
        _draw_box(canvas, box, colour, style.line_width or 1)
    return _draw_tags(canvas, boxes, _captions(instances, class_names), colours, style)


def _scaled(style: DrawStyle, size_hw: tuple[int, int]) -> DrawStyle:
    short = min(size_hw)
    return DrawStyle(
        line_width=style.line_width or max(1, round(short / 300)),
        font_size=style.font_size or max(11, round(short / 34)),
        show_labels=style.show_labels,
        mask_opacity=style.mask_opacity,
        colour=style.colour,
    )


def _captions(instances: Instances, class_names: Sequence[str]) -> list[str]:
    names = [class_names[int(label)] for label in instances.labels]
    if instances.scores is None:
        return names
    return [f"{name} {float(score):.2f}" for name, score in zip(names, instances.scores, strict=True)]


def _draw_box(canvas: Pixels, box: Rectangle, colour: Colour, line_width: int) -> None:
    scale = 1 << _SUBPIXEL_BITS
    x1, y1, x2, y2 = (round((edge - 0.5) * scale) for edge in box)  # OpenCV counts from pixel centres
    for paint, width in ((_CASING, line_width + 2), (colour, line_width)):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), paint, width, cv2.LINE_AA, _SUBPIXEL_BITS)


# ---------------------------------------------------------------- masks


def _draw_masks(canvas: Pixels, instances: Instances, colours: Sequence[Colour], style: DrawStyle) -> None:
    if instances.masks is None:
        return
    masks = instances.masks
    if not isinstance(masks, ImageMasks):
        masks = masks.to_image(instances.boxes, instances.size_hw, 0.5)
    for (patch, (x, y)), colour in zip(masks, colours, strict=True):
        fill_mask(canvas[y : y + patch.shape[0], x : x + patch.shape[1]], patch, colour, style.mask_opacity)
        contours, _ = cv2.findContours(patch, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        cv2.drawContours(canvas, contours, -1, colour, style.line_width or 1, cv2.LINE_AA)


def fill_mask(region: Pixels, mask: Pixels, colour: Colour, opacity: float) -> None:
    """Blend a colour into an (h, w, 3) region where the (h, w) mask is set; changes the region."""
    inside = mask > 0
    blended = region[inside] * (1 - opacity) + np.asarray(colour) * opacity
    region[inside] = np.rint(blended).astype(np.uint8)


# ---------------------------------------------------------------- tags


def _draw_tags(
    canvas: Pixels,
    boxes: Sequence[Rectangle],
    captions: Sequence[str],
    colours: Sequence[Colour],
    style: DrawStyle,
) -> Pixels:
    if not boxes or not style.show_labels:
        return canvas
    size = style.font_size or 11
    pad, height = max(2, size // 5), round(size * 1.45)
    fonts = [_font(_font_file(caption), size) for caption in captions]
    widths = [font.getlength(text) + 2 * pad for font, text in zip(fonts, captions, strict=True)]
    places = place_tags(boxes, [(width, height) for width in widths], (canvas.shape[0], canvas.shape[1]))
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for place, caption, colour, font in zip(places, captions, colours, fonts, strict=True):
        pen.rounded_rectangle(place, radius=pad, fill=colour)
        pen.text((place[0] + pad, (place[1] + place[3]) / 2), caption, ink_on(colour), font, anchor="lm")
    return np.asarray(picture)


def place_tags(
    boxes: Sequence[Rectangle], tag_sizes: Sequence[tuple[float, float]], size_hw: tuple[int, int]
) -> list[Rectangle]:
    """Rectangles for the tags of boxes: beside their box, inside the image, over each other only if need be.

    Args:
        boxes: xyxy in image pixels; earlier boxes choose first.
        tag_sizes: Width and height of each tag.
        size_hw: Height and width of the image.
    """
    places = np.empty((len(boxes), 4))
    for row, (box, tag) in enumerate(zip(boxes, tag_sizes, strict=True)):
        options = np.array([_inside(option, tag, size_hw) for option in _corners(box, tag)])  # (12, 4)
        costs = common_areas(options[:, None], places[:row]).sum(axis=1)
        places[row] = options[costs.argmin()]
    return [cast(Rectangle, tuple(place)) for place in places.tolist()]


def _corners(box: Rectangle, tag: tuple[float, float]) -> list[tuple[float, float]]:
    """Top left corners worth trying, the usual one first."""
    (x1, y1, x2, y2), (width, height) = box, tag
    outside = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)]
    inside = [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
    beside = [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
    return outside[:1] + inside[:1] + outside[1:] + inside[1:] + beside


def _inside(corner: tuple[float, float], tag: tuple[float, float], size_hw: tuple[int, int]) -> Rectangle:
    x = min(max(corner[0], 0.0), max(size_hw[1] - tag[0], 0.0))
    y = min(max(corner[1], 0.0), max(size_hw[0] - tag[1], 0.0))
    return (x, y, x + tag[0], y + tag[1])


# ---------------------------------------------------------------- fonts


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1024)
def _font_file(text: str) -> str:
    """File of a font that has every character of the text, else of the usual font."""
    usual = _usual_font()
    if _covers(usual, text):
        return usual
    return next((font for font in _fallback_fonts() if _covers(font, text)), usual)


@lru_cache(maxsize=1)
def _usual_font() -> str:
    import matplotlib as mpl

    return str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _fallback_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    known = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    return tuple(known[family] for family in _FALLBACK_FAMILIES if family in known)


def _covers(font_file: str, text: str) -> bool:
    from matplotlib.ft2font import FT2Font

    font = FT2Font(font_file)
    return all(font.get_char_index(ord(character)) for character in text if not character.isspace())

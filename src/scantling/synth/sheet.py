"""A contact sheet: many scenes in one picture, two of them with their truth drawn in."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.synth.layout import CATEGORY_IDS
from scantling.synth.scene import Part, Scene, SynthConfig, generate_scene

Image = NDArray[np.uint8]
ABSENT_COLOR = (235, 235, 235)


def contact_sheet(config: SynthConfig, seed: int, *, first: int = 0) -> Image:
    """One scene large, the same with its truth, and eight small ones below.

    Args:
        config: What the scenes are like; `size_hw` is that of the small ones.
        seed: Of the scenes.
        first: Number of the first scene.

    Returns:
        uint8 RGB, four small pictures wide and as high.
    """
    height, width = config.size_hw
    large = generate_scene(config.model_copy(update={"size_hw": (2 * height, 2 * width)}), first, seed)
    small = [generate_scene(config, first + number, seed).image for number in range(1, 9)]
    rows = [[large.image, draw_truth(large)], small[:4], small[4:]]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def draw_truth(scene: Scene) -> Image:
    """The picture with masks tinted, visible boxes drawn, and absent parts boxed by broken lines."""
    image = scene.image.copy()
    for part in scene.targets:
        color = np.array(category_color(part.category), np.float32)
        here = part.mask
        image[here] = (0.55 * image[here] + 0.45 * color).astype(np.uint8)
    for part in scene.targets:
        _box(image, part, category_color(part.category))
    for part in scene.parts:
        if part.state == "absent":
            _broken_box(image, part)
    return image


def category_color(category: str) -> tuple[int, int, int]:
    """A colour of its own for every category."""
    number = list(CATEGORY_IDS).index(category)
    red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _box(image: Image, part: Part, color: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = (int(edge) for edge in part.box)
    cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), color, 1)
    word = part.category if part.state in ("intact", None) else f"{part.category} {part.state}"
    (width, height), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.36, 1)
    base = max(y1 - 3, height + 1)
    image[max(base - height - 2, 0) : base + 3, x1 : x1 + width + 2] //= 3
    cv2.putText(image, word, (x1 + 1, base), cv2.FONT_HERSHEY_SIMPLEX, 0.36, color, 1, cv2.LINE_AA)


def _broken_box(image: Image, part: Part) -> None:
    x1, y1, x2, y2 = (int(edge) for edge in part.full_box)
    for x in range(x1, x2, 6):
        image[[y1, y2 - 1], x : min(x + 3, x2)] = ABSENT_COLOR
    for y in range(y1, y2, 6):
        image[y : min(y + 3, y2), [x1, x2 - 1]] = ABSENT_COLOR

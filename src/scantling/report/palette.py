"""Colours that people with a colour vision deficiency can tell apart, shared by drawings and pages.

Source: Okabe and Ito, Color Universal Design, 2008 (first seven); Paul Tol, Colour Schemes, 2021 (the rest).
"""

from __future__ import annotations

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (136, 34, 85),
    (170, 170, 0),
    (51, 34, 136),
    (119, 204, 204),
    (17, 119, 51),
)


def colour_of(label: int) -> Colour:
    """RGB of a category; colours repeat after twelve categories."""
    return PALETTE[label % len(PALETTE)]


def hex_of(colour: Colour) -> str:
    """CSS notation, `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on the colour.

    Source: relative luminance and contrast ratio of WCAG 2.1; both contrasts are equal at luminance 0.179.
    """
    linear = [_linear(channel / 255) for channel in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)

"""Light, lens and sensor: from height and material at every pixel to a photograph.

    layers (H, W, 8) ── normals ──► two light probes (soft, sharp) ─► diffuse + specular ─┐
           └─ height ─► cast shadow, shade in corners ────────────────────────────────────┴─► linear light
    linear light ─► lamp fall-off, vignetting ─► lens blur ─► exposure ─► sqrt ─► sensor noise ─► tone curve ─► uint8

A light probe is a picture of what a surface returns for each direction of its normal: bright where a lamp is
mirrored. Looking it up is one `cv2.remap`, whatever the number of lamps. The square root is the transform under
which photon noise is equally strong everywhere, so that one noise tile serves dark and bright pixels alike.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.synth.relief import Array, fractal

PROBE = 48
STEPS = 12.0  # per unit of height, when shadows are cast
WHITE = 1.45  # square root of the linear value at which the sensor saturates, relative to mid-gray exposure


class Lighting(NamedTuple):
    """The lamps of one scene.

    Attributes:
        soft: (PROBE, PROBE, 3) light a matt surface returns, by normal.
        sharp: (PROBE, PROBE, 3) light a mirror returns, by normal.
        toward: Direction of the main lamp in the image plane (x right, y down), unit length.
        rise: Tangent of the main lamp's elevation.
        shadow: Share of light the main lamp contributes, 0..1.
    """

    soft: Array
    sharp: Array
    toward: tuple[float, float]
    rise: float
    shadow: float


def random_lighting(rng: np.random.Generator) -> Lighting:
    """A main lamp, up to three others, and a room around them."""
    nx, ny, nz = _probe_normals()
    mirror = np.stack([2 * nz * nx, 2 * nz * ny, 2 * nz * nz - 1], axis=-1)
    azimuth, elevation = rng.uniform(-np.pi, np.pi), np.deg2rad(rng.uniform(28, 56))
    lamp = _direction(azimuth, elevation)
    warmth = rng.uniform(-0.14, 0.16)
    key = np.array([1 + warmth, 1.0, 1 - warmth], np.float32) * rng.uniform(1.0, 1.7)
    room = np.array([0.9, 0.97, 1.06], np.float32) * rng.uniform(0.14, 0.34)
    facing = np.clip(nx * lamp[0] + ny * lamp[1] + nz * lamp[2], 0, 1)
    soft = room * (0.55 + 0.45 * nz[..., None]) + key * facing[..., None]
    sharp = (
        room * _room(rng, mirror)[..., None]
        + key * 5.0 * _lamp_image(mirror, lamp, rng.uniform(0.28, 0.5))[..., None]
    )
    for _ in range(int(rng.integers(1, 4))):
        other = _direction(rng.uniform(-np.pi, np.pi), np.deg2rad(rng.uniform(20, 80)))
        glow = _lamp_image(mirror, other, rng.uniform(0.15, 0.45))
        sharp += np.float32(rng.uniform(0.6, 2.0)) * glow[..., None]
    toward = (float(np.cos(azimuth)), float(np.sin(azimuth)))
    share = float(np.clip(key.mean() / (key.mean() + room.mean()), 0, 0.85))
    return Lighting(
        soft.astype(np.float32), sharp.astype(np.float32), toward, float(np.tan(elevation)), share
    )


def _probe_normals() -> tuple[Array, Array, Array]:
    axis = np.linspace(-1, 1, PROBE, dtype=np.float32)
    nx, ny = np.meshgrid(axis, axis)
    return nx, ny, np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))


def _direction(azimuth: float, elevation: float) -> tuple[float, float, float]:
    flat = float(np.cos(elevation))
    return flat * float(np.cos(azimuth)), flat * float(np.sin(azimuth)), float(np.sin(elevation))


def _lamp_image(mirror: Array, lamp: tuple[float, float, float], width: float) -> Array:
    """A softbox: flat inside, soft at the rim, a halo around it; `width` is its half angle in radians."""
    away = np.arccos(np.clip(mirror @ np.asarray(lamp, np.float32), -1, 1)) / np.float32(width)
    return np.exp(-np.square(away * away)) + np.float32(0.16) * np.exp(-np.float32(0.9) * away)


def _room(rng: np.random.Generator, mirror: Array) -> Array:
    """What else a mirror shows: bright ceiling, a dark horizon with furniture, a pale floor."""
    up = mirror[..., 2]
    ceiling = 0.8 + 0.55 * np.tanh((up - 0.3) * 4)
    azimuth = np.arctan2(mirror[..., 1], mirror[..., 0])
    walls = sum(np.sin(k * azimuth + rng.uniform(0, 6.3)) * rng.uniform(0.1, 0.4) for k in (1, 2, 3, 5))
    brightness: Array = np.clip(ceiling + walls * np.sqrt(np.clip(1 - up * up, 0, 1)), 0.08, 3.0)
    return brightness


def shade(layers: Array, lighting: Lighting, pixels_per_unit: float) -> Array:
    """Linear light that leaves every pixel towards the camera.

    Args:
        layers: (CHANNELS, H, W) as the camera sees them.
        lighting: The lamps.
        pixels_per_unit: Picture pixels per unit of height.

    Returns:
        (H, W, 3) float32.
    """
    half = np.float32((PROBE - 1) / 2)
    look_x, look_y = layers[4] * half + half, layers[5] * half + half
    soft = _probe(lighting.soft, look_x, look_y)
    drift_x, drift_y = _view_drift(layers.shape[1], layers.shape[2])
    sharp = _probe(lighting.sharp, look_x + drift_x, look_y + drift_y)
    metal, gloss = layers[6], layers[7]
    light = sharp - soft
    light *= cv2.merge([metal * gloss] * 3)
    light += soft
    light *= cv2.merge([layers[0], layers[1], layers[2]])
    sharp *= cv2.merge([(1 - metal) * gloss * gloss * np.float32(0.09)] * 3)
    light += sharp
    light *= cv2.merge([_dimming(layers[3], lighting, pixels_per_unit)] * 3)
    return light


def _probe(probe: Array, column: Array, row: Array) -> Array:
    light: Array = cv2.remap(probe, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return light


def _view_drift(rows: int, columns: int) -> tuple[Array, Array]:
    """The camera sees the edges of the picture at a slant, so flat metal mirrors other parts of the room."""
    reach = np.float32(0.16 * (PROBE - 1) / 2)
    down, right = np.linspace(-1, 1, rows, dtype=np.float32), np.linspace(-1, 1, columns, dtype=np.float32)
    return right[None, :] * reach, down[:, None] * reach * np.float32(0.75)


def _dimming(height: Array, lighting: Lighting, pixels_per_unit: float) -> Array:
    """Share of light that reaches each pixel: cast shadow times what corners swallow.

    Worked out on heights in steps of 1/STEPS unit in uint8, whose saturating arithmetic is what is needed here.
    """
    coarse = cv2.convertScaleAbs(height, alpha=STEPS)
    shadow = _cast_shadow(coarse, lighting, pixels_per_unit)
    lost = np.zeros_like(coarse)
    for reach, strength in ((1.5, 0.22), (5.0, 0.16)):
        side = 2 * round(reach * pixels_per_unit) + 1
        around = cv2.boxFilter(coarse, cv2.CV_8U, (side, side), borderType=cv2.BORDER_REFLECT)
        lost = cv2.scaleAdd(cv2.subtract(around, coarse), strength, lost)
    levels = np.arange(256, dtype=np.float32)
    open_sky = 1 / (1 + levels / STEPS)
    lit = 1 - levels / 255 * np.float32(lighting.shadow)
    dimming: Array = cv2.LUT(lost, open_sky) * cv2.LUT(shadow, lit)
    return dimming


def _cast_shadow(coarse: NDArray[np.uint8], lighting: Lighting, pixels_per_unit: float) -> NDArray[np.uint8]:
    """0 in the light of the main lamp to 255 in full shadow."""
    rows, columns = coarse.shape
    reach = int(np.ceil(9 * pixels_per_unit)) + 1
    padded = cv2.copyMakeBorder(coarse, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    darkest = np.zeros_like(coarse)
    for step in (1.0, 2.0, 3.2, 4.8, 6.6, 9.0):
        right = reach + round(lighting.toward[0] * step * pixels_per_unit)
        down = reach + round(lighting.toward[1] * step * pixels_per_unit)
        ray = cv2.subtract(padded[down : down + rows, right : right + columns], STEPS * step * lighting.rise)
        above = cv2.convertScaleAbs(cv2.subtract(ray, coarse), alpha=255 / STEPS / (0.5 + 0.12 * step))
        darkest = cv2.max(darkest, above)
    side = 2 * round(0.8 * pixels_per_unit) + 1
    shadow: NDArray[np.uint8] = cv2.blur(darkest, (side, side))
    return shadow


def sensor_noise(rng: np.random.Generator, size: int) -> Array:
    """(size, size, 3) noise tile of deviation about 1: mostly luminance, slightly blurred by demosaicing."""
    luminance = rng.standard_normal((size, size, 1), np.float32)
    color = rng.standard_normal((size, size, 3), np.float32)
    noise: Array = cv2.GaussianBlur(luminance * np.float32(1.2) + color, (0, 0), 0.55)
    return noise


def develop(light: Array, noise: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Photograph linear light (H, W, 3): fall-off, lens blur, exposure, noise, tone curve; uint8 RGB."""
    rows, columns = light.shape[:2]
    light *= cv2.merge([_fall_off(rng, rows, columns)] * 3)
    light = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.35, 0.75) * max(min(rows, columns) / 240, 0.5))
    small = cv2.resize(light, (40, 30), interpolation=cv2.INTER_AREA)
    exposure = rng.uniform(0.75, 1.3) * 0.27 / max(float(np.sqrt(small.clip(0, 2)).mean()) ** 2, 0.02)
    signal = cv2.sqrt(light * np.float32(exposure))
    top, left = (
        int(rng.integers(0, noise.shape[axis] - side + 1)) for axis, side in ((0, rows), (1, columns))
    )
    grain = noise[top : top + rows, left : left + columns]
    signal = cv2.scaleAdd(grain, float(rng.uniform(0.006, 0.022)), signal)
    levels = cv2.convertScaleAbs(np.maximum(signal, 0), alpha=255 / WHITE)
    image: NDArray[np.uint8] = cv2.LUT(levels, _tone_curve(rng))
    return image


def _fall_off(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Uneven lamp light and vignetting, drawn small and enlarged."""
    down, right = np.mgrid[-1:1:24j, -1:1:32j].astype(np.float32)
    lamp_x, lamp_y = rng.uniform(-1, 1, 2)
    lamp = 1 / (1 + rng.uniform(0.1, 0.45) * ((right - lamp_x) ** 2 + (down - lamp_y) ** 2))
    vignette = 1 - rng.uniform(0.08, 0.28) * (right**2 + down**2) / 2
    uneven = 1 + 0.04 * fractal(rng, down.shape, 12, 2)
    turn, edge = rng.uniform(-np.pi, np.pi), rng.uniform(-0.2, 2.2)
    beam = np.tanh((edge - right * np.cos(turn) - down * np.sin(turn)) * rng.uniform(2, 6)) * 0.5 + 0.5
    uneven = uneven * (
        1 - rng.uniform(0.1, 0.55) * (1 - beam)
    )  # the edge of a shade, or of somebody's shadow
    gain: Array = cv2.resize(
        (lamp * vignette * uneven).astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR
    )
    return gain


def _tone_curve(rng: np.random.Generator) -> NDArray[np.uint8]:
    """(1, 256, 3) table: gentle S with a soft shoulder, and a white balance slightly off."""
    value = np.linspace(0, 1, 256)[:, None] * np.array([1, 1, 1]) * WHITE
    balance = 1 + rng.uniform(-0.045, 0.045, 3)
    value = value * balance
    contrast = rng.uniform(1.05, 1.35)
    mid = 0.52
    curved = mid * (value / mid) ** contrast
    shoulder = np.where(curved > 0.7, 0.7 + 0.3 * np.tanh((curved - 0.7) / 0.3 * 0.75), curved)
    black = rng.uniform(0.0, 0.02)
    curve: NDArray[np.uint8] = (
        np.clip(255 * (black + (1 - black) * shoulder), 0, 255).round().astype(np.uint8)
    )
    return curve[None]

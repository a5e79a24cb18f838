"""Everything that is rendered once per (resolution, seed) and used in many scenes.

Pieces are drawn on first use from a random stream of their own, so what a scene looks like does not depend on
which scenes were made before it, nor in which process.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from scantling.data.dataset import rng_for
from scantling.data.scenes.fasteners import Job
from scantling.data.scenes.housing import draw_housing
from scantling.data.scenes.layout import DRAW, FRAME_WH, Slot
from scantling.data.scenes.occluders import OCCLUDERS
from scantling.data.scenes.relief import Array, Sprite, fractal
from scantling.data.scenes.shading import sensor_noise

OVERSAMPLE = 1.1  # canvas pixels per picture pixel: the camera only ever shrinks a little
MARGIN = 1.14  # canvas extent per frame extent: what a shifted or turned camera may see
FINESSE, HOUSING_FINESSE = 3, 2  # drawing pixels per canvas pixel
HOUSINGS, DIRTS, OCCLUDER_VARIANTS = 10, 6, 8
SPECIMENS = {"bolt": 24, "screw": 20, "led": 20}
OTHER_SPECIMENS = 12


class Kit:
    """Housings, components and occluders at one resolution.

    Args:
        size_hw: Picture size in pixels.
        seed: Decides what the specimens look like.
    """

    def __init__(self, size_hw: tuple[int, int], seed: int) -> None:
        self.size_hw = size_hw
        self.seed = seed
        self.pixels_per_unit = min(size_hw[0] / FRAME_WH[1], size_hw[1] / FRAME_WH[0])
        self.scale = self.pixels_per_unit * OVERSAMPLE
        self.extent_wh = (
            size_hw[1] / self.pixels_per_unit * MARGIN,
            size_hw[0] / self.pixels_per_unit * MARGIN,
        )
        self._made: dict[tuple[object, ...], Sprite] = {}
        self._housings: dict[int, Array] = {}
        self._dirts: dict[int, Array] = {}

    def housing(self, variant: int) -> Array:
        """(CHANNELS, h, w) the empty housing on its bench; read-only."""
        if variant not in self._housings:
            rng = rng_for(self.seed, 0, variant, "synth housing")
            relief = draw_housing(rng, self.extent_wh, self.scale * HOUSING_FINESSE, variant)
            self._housings[variant] = relief.planes(HOUSING_FINESSE)
            self._housings[variant].flags.writeable = False
        return self._housings[variant]

    def component(self, slot: Slot, specimen: int, *, damaged: bool) -> Sprite:
        """One specimen of the component that belongs into `slot`."""
        key = (slot.category, slot.size, slot.seat, slot.turn, specimen % specimens(slot), damaged)
        if key not in self._made:
            rng = rng_for(self.seed, 0, str(key), "synth specimen")
            job = Job(rng, self.scale * FINESSE, slot.size, slot.seat, damaged, slot.turn)
            self._made[key] = DRAW[slot.category](job).sprite(FINESSE)
        return self._made[key]

    def occluder(self, kind: int, variant: int) -> Sprite:
        """Something that lies over the parts."""
        key = (kind, variant)
        if key not in self._made:
            rng = rng_for(self.seed, 0, str(key), "synth occluder")
            self._made[key] = OCCLUDERS[kind](rng, self.scale * HOUSING_FINESSE).sprite(HOUSING_FINESSE)
        return self._made[key]

    def dirt(self, variant: int) -> Array:
        """Factor on everything's albedo, a little larger than the canvas: handled, oily surfaces; one of `DIRTS`."""
        key = variant % DIRTS
        if key not in self._dirts:
            rng = rng_for(self.seed, 0, key, "synth dirt")
            shape = (round(self.extent_wh[1] * self.scale) + 8, round(self.extent_wh[0] * self.scale) + 8)
            blotches = fractal(rng, shape, 45 * self.scale, 6)
            smears = fractal(rng, shape, 12 * self.scale, 5)
            oily = np.clip(blotches * 0.8 + smears * 0.5 - 0.4, 0, 1.5)
            self._dirts[key] = np.clip(1 + 0.10 * smears - 0.33 * oily, 0.35, 1.3).astype(np.float32)
        return self._dirts[key]

    @cached_property
    def noise(self) -> Array:
        """A tile of sensor noise somewhat larger than the picture."""
        return sensor_noise(rng_for(self.seed, 0, 0, "synth noise"), max(self.size_hw) + 128)


def specimens(slot: Slot) -> int:
    """How many different specimens of a slot's component there are."""
    return SPECIMENS.get(slot.category, OTHER_SPECIMENS)


@lru_cache(maxsize=4)
def kit_for(size_hw: tuple[int, int], seed: int) -> Kit:
    """The kit of one resolution and seed, kept between scenes."""
    return Kit(size_hw, seed)

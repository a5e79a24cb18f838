"""Everything that is rendered once per (resolution, seed) and used in many scenes.

Pieces are drawn on first use from a random stream of their own, so what a scene looks like does not depend on
which scenes were made before it, nor in which process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Generic, TypeVar

import numpy as np

from scantling.data.samples.dataset import rng_for
from scantling.synth.fasteners import Job
from scantling.synth.housing import draw_housing
from scantling.synth.layout import DRAW, FRAME_WH, Slot
from scantling.synth.occluders import OCCLUDERS
from scantling.synth.relief import Array, Sprite, fractal
from scantling.synth.shading import sensor_noise

OVERSAMPLE = 1.1  # canvas pixels per picture pixel: the camera only ever shrinks a little
MARGIN = 1.14  # canvas extent per frame extent: what a shifted or turned camera may see
HOUSINGS, DIRTS, OCCLUDER_VARIANTS = 6, 5, 8
SPECIMENS = {"bolt": 18, "screw": 16, "led": 16}
OTHER_SPECIMENS = 9
SMALL = 12  # units: below, a component is drawn finer
SHELF_BYTES = 512 << 20

Piece = TypeVar("Piece")


class _Shelf(Generic[Piece]):
    """Pieces by key; the oldest go when they take too much memory; they are drawn again when needed."""

    def __init__(self, weigh: Callable[[Piece], int]) -> None:
        self._weigh = weigh
        self._pieces: dict[tuple[object, ...], Piece] = {}
        self._bytes = 0

    def take(self, key: tuple[object, ...], make: Callable[[], Piece]) -> Piece:
        """The piece of that key, made if it is not there."""
        if key not in self._pieces:
            piece = make()
            self._bytes += self._weigh(piece)
            while self._pieces and self._bytes > SHELF_BYTES:
                self._bytes -= self._weigh(self._pieces.pop(next(iter(self._pieces))))
            self._pieces[key] = piece
        return self._pieces[key]


class Kit:
    """Housings, components and occluders at one resolution.

    Args:
        size_hw: Picture size in pixels.
        seed: Decides what the specimens look like.

    Attributes:
        pixels_per_unit: Picture pixels per unit.
        scale: Canvas pixels per unit.
    """

    def __init__(self, size_hw: tuple[int, int], seed: int) -> None:
        self.size_hw = size_hw
        self.seed = seed
        self.pixels_per_unit = min(size_hw[0] / FRAME_WH[1], size_hw[1] / FRAME_WH[0])
        self.scale = self.pixels_per_unit * OVERSAMPLE
        side = MARGIN / self.pixels_per_unit
        self._extent_wh = (size_hw[1] * side, size_hw[0] * side)
        self._sprites = _Shelf[Sprite](lambda sprite: sprite.layers.nbytes + 2 * sprite.rest.nbytes)
        self._housings = _Shelf[Array](lambda housing: housing.nbytes)
        self._dirts = _Shelf[Array](lambda dirt: dirt.nbytes)

    def housing(self, variant: int) -> Array:
        """(CHANNELS, h, w) the empty housing on its bench, one of `HOUSINGS`; read-only."""
        return self._housings.take((variant,), lambda: self._draw_housing(variant))

    def _draw_housing(self, variant: int) -> Array:
        finesse = self._finesse(2)
        rng = rng_for(self.seed, 0, variant, "synth housing")
        layers = draw_housing(rng, self._extent_wh, self.scale * finesse, variant).planes(finesse)
        layers.flags.writeable = False
        return layers

    def component(self, slot: Slot, specimen: int, *, damaged: bool) -> Sprite:
        """One specimen of the component that belongs into `slot`."""
        count = SPECIMENS.get(slot.category, OTHER_SPECIMENS)
        key = (slot.category, slot.size, slot.seat, slot.turn, specimen % count, damaged)
        return self._sprites.take(key, lambda: self._draw_component(slot, str(key), damaged=damaged))

    def _draw_component(self, slot: Slot, key: str, *, damaged: bool) -> Sprite:
        finesse = self._finesse(3 if slot.size < SMALL else 2)
        rng = rng_for(self.seed, 0, key, "synth specimen")
        job = Job(rng, self.scale * finesse, slot.size, slot.seat, damaged, slot.turn)
        return DRAW[slot.category](job).sprite(finesse)

    def occluder(self, kind: int, variant: int) -> Sprite:
        """Something that lies over the parts."""
        key = (kind, variant)
        return self._sprites.take(key, lambda: self._draw_occluder(kind, str(key)))

    def _draw_occluder(self, kind: int, key: str) -> Sprite:
        finesse = self._finesse(2)
        rng = rng_for(self.seed, 0, key, "synth occluder")
        return OCCLUDERS[kind](rng, self.scale * finesse).sprite(finesse)

    def dirt(self, variant: int) -> Array:
        """Factor on everything's albedo, a little larger than the canvas: handled, oily surfaces; one of `DIRTS`."""
        return self._dirts.take((variant,), lambda: self._draw_dirt(variant))

    def _draw_dirt(self, variant: int) -> Array:
        rng = rng_for(self.seed, 0, variant, "synth dirt")
        shape = (round(self._extent_wh[1] * self.scale) + 8, round(self._extent_wh[0] * self.scale) + 8)
        blotches = fractal(rng, shape, 45 * self.scale, 6)
        smears = fractal(rng, shape, 12 * self.scale, 5)
        oily = np.clip(blotches * 0.8 + smears * 0.5 - 0.4, 0, 1.5)
        return np.clip(1 + 0.10 * smears - 0.33 * oily, 0.35, 1.3).astype(np.float32)

    @cached_property
    def noise(self) -> Array:
        """A tile of sensor noise somewhat larger than the picture."""
        return sensor_noise(rng_for(self.seed, 0, 0, "synth noise"), max(self.size_hw) + 128)

    def _finesse(self, most: int) -> int:
        """Drawing pixels per canvas pixel: small pictures need the finer drawing, large ones the memory."""
        return max(1, min(most, round(most * 1.4 / self.pixels_per_unit)))


@lru_cache(maxsize=2)
def kit_for(size_hw: tuple[int, int], seed: int) -> Kit:
    """The kit of one resolution and seed, kept between scenes."""
    return Kit(size_hw, seed)

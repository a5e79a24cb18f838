"""Pictures of the same scene: copies stored anew, brightened, scaled, or shifted by part of a frame.

A perceptual hash in two steps. The amplitudes of a thumbnail's Fourier transform do not change when the picture
shifts, so they find each picture's likeliest duplicates by one matrix product; the phases then decide: the peak of the
phase correlation of two pictures is 1 for copies and near 0 for unrelated ones, wherever the one lies in the other.
Before two pictures are accused their pixels are compared where the peak says that they lie upon each other.
The usual 64-bit hash of DCT signs misses shifted pictures (on microscope photos shifted by a tenth of the frame: all).

Source: Kuglin and Hines, "The phase correlation image alignment method", 1975.
N: pictures, S: side of a thumbnail.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.coco.records import ImageRecord
from scantling.data.images.open import open_image
from scantling.errors import DataError

SIDE = 64
SAME_SCENE = 0.32
"""Peak of two pictures of one scene; unrelated ones stay below 0.25, views of one fixed set-up around 0.3."""

_BAND = 12  # lowest frequencies that are compared first
_CANDIDATES = 40  # likeliest duplicates of each picture that are looked at
_ROWS = 512
_PAIRS = 2048
_MIN_CONTRAST = 2.0  # grey levels; flat pictures have no phase
_BLOCK = 8  # side of the blocks in which contrast is sought
_MIN_STRUCTURE = 1 / 3  # of the blocks of what two pictures share
_MIN_OVERLAP = 1 / 4  # of a picture
_MIN_LIKENESS = 0.8  # correlation of pixels; the known pairs of microscope photos have 0.91 and more
_THREADS = 4

Thumbnail = NDArray[np.float32]


class NearDuplicatePair(NamedTuple):
    """Positions of two pictures of the same scene, and the peak of their phase correlation."""

    first: int
    second: int
    peak: float


def thumbnails(records: Sequence[ImageRecord]) -> list[Thumbnail | None]:
    """Grey thumbnails (S, S) of images; None where the image cannot be read or is flat."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_thumbnail, records))


def find_near_duplicates(
    pictures: Sequence[Thumbnail | None], *, threshold: float = SAME_SCENE
) -> list[NearDuplicatePair]:
    """All pairs of pictures of the same scene, the most alike first.

    Args:
        pictures: Thumbnails (S, S); None takes part in no pair.
        threshold: Smallest peak of a pair.
    """
    usable = [index for index, picture in enumerate(pictures) if picture is not None]
    if len(usable) < 2:
        return []
    spectra = np.stack([_spectrum(picture) for picture in pictures if picture is not None])
    pairs = _likely_pairs(_amplitudes(spectra))
    spectra /= np.maximum(np.abs(spectra), 1e-6)
    peaks = np.concatenate(
        [_peaks(spectra, pairs[start : start + _PAIRS]) for start in range(0, len(pairs), _PAIRS)]
    )
    found = []
    for k in np.flatnonzero(peaks >= threshold):
        first, second = (usable[position] for position in pairs[k].tolist())
        one, other = pictures[first], pictures[second]
        shift = _shift_between(*spectra[pairs[k]])
        if one is not None and other is not None and _agree(one, other, shift):
            found.append(NearDuplicatePair(first, second, float(peaks[k])))
    return sorted(found, key=lambda duplicates: (-duplicates.peak, duplicates.first, duplicates.second))


def _thumbnail(record: ImageRecord) -> Thumbnail | None:
    return read_thumbnail(record.path, record.size_hw, record.white)


def read_thumbnail(
    path: Path, size_hw: tuple[int, int] | None = None, white: int | None = None
) -> Thumbnail | None:
    """Grey thumbnail (S, S) of an image file; None where it cannot be read or is flat."""
    try:
        pixels = open_image(path, size_hw=size_hw, white=white)
    except DataError:
        return None
    grey = cv2.cvtColor(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return grey.astype(np.float32) if grey.std() >= _MIN_CONTRAST else None


def _spectrum(picture: Thumbnail) -> NDArray[np.complex64]:
    """Fourier transform (S, S / 2 + 1) under a window that hides the frame."""
    window = cv2.createHanningWindow((SIDE, SIDE), cv2.CV_32F)
    return np.fft.rfft2((picture - picture.mean()) * window).astype(np.complex64, copy=False)


def _amplitudes(spectra: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Unit vectors (N, D) of low-frequency log amplitudes, less what all pictures have in common."""
    low = np.concatenate([spectra[:, :_BAND, :_BAND], spectra[:, 1 - _BAND :, :_BAND]], axis=1)
    values = np.log1p(np.abs(low)).reshape(len(spectra), -1)
    values -= values.mean(axis=0)
    unit: NDArray[np.float32] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return unit


def _likely_pairs(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Pairs (P, 2) of each picture with those whose vectors are nearest."""
    count = min(_CANDIDATES, len(vectors) - 1)
    pairs = set()
    for start in range(0, len(vectors), _ROWS):
        likeness = vectors[start : start + _ROWS] @ vectors.T
        rows = np.arange(len(likeness))
        likeness[rows, rows + start] = -np.inf
        nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        pairs |= {
            (min(start + r, c), max(start + r, c)) for r, row in enumerate(nearest.tolist()) for c in row
        }
    return np.array(sorted(pairs), dtype=np.int64)


def _peaks(spectra: NDArray[np.complex64], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Peak of the phase correlation of each pair (P); `spectra` have amplitude 1."""
    crossed = spectra[pairs[:, 0]] * spectra[pairs[:, 1]].conj()
    surfaces = np.fft.irfft2(crossed, s=(SIDE, SIDE), axes=(1, 2))
    peaks: NDArray[np.float32] = surfaces.reshape(len(pairs), -1).max(axis=1).astype(np.float32)
    return peaks


def _shift_between(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> tuple[int, int]:
    """Rows and columns, modulo S, by which the second of two spectra lies before the first."""
    surface = np.fft.irfft2(first * second.conj(), s=(SIDE, SIDE))
    rows, columns = np.unravel_index(int(surface.argmax()), surface.shape)
    return int(rows), int(columns)


def _agree(first: Thumbnail, second: Thumbnail, shift: tuple[int, int]) -> bool:
    """A second look, at the pixels: laid upon each other, the pictures are alike, and there is something to see.

    The peak alone accuses pictures that hold one mark each on a blank ground: moved, the one mark is the other.
    """
    rows, columns = shift
    for down, right in itertools.product((rows, rows - SIDE), (columns, columns - SIDE)):
        one = first[max(0, down) : SIDE + min(0, down), max(0, right) : SIDE + min(0, right)]
        other = second[max(0, -down) : SIDE + min(0, -down), max(0, -right) : SIDE + min(0, -right)]
        if one.size < _MIN_OVERLAP * SIDE * SIDE or min(_structure(one), _structure(other)) < _MIN_STRUCTURE:
            continue
        if float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) >= _MIN_LIKENESS:
            return True
    return False


def _structure(part: Thumbnail) -> float:
    """Share of the blocks of a part of a thumbnail that are not blank."""
    rows, columns = part.shape[0] // _BLOCK, part.shape[1] // _BLOCK
    blocks = part[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    return float((blocks.std(axis=(1, 3)) >= _MIN_CONTRAST).mean()) if rows and columns else 0.0

"""COCO run-length masks: checked, coded and decoded in numpy; without torch.

A run-length encoding (RLE) lists, column by column, how many pixels are off, on, off, ... `counts` is COCO's
compressed text. Everything read from a file is checked here before anything is allocated from it or handed to
native code: pycocotools hangs on counts that overrun and takes the process down on others.

A *patch* is the part of a mask that is not empty, a uint8 (h, w) array of 0 and 1 with the (x, y) of its upper
left pixel in the image; work and memory then follow the object's size, not the image's. H, W: image; h, w: patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scantling.errors import DataError

MAX_MASK_PIXELS = 1 << 28
"""Largest image (height x width) for which a mask is decoded: 16384 x 16384."""

_MAX_CHARS = 7  # 35 bits: more than any legal count needs

Patch = NDArray[np.uint8]
Counts = NDArray[np.int64]


class RLE(TypedDict):
    """COCO's mask object; written with `counts` as text (ready for JSON), read with text or bytes."""

    size: list[int]
    counts: str | bytes


def check_size(size: object) -> tuple[int, int]:
    """Height and width of an RLE, once they are known to be two positive integers of a bearable product.

    Raises:
        DataError: They are not; the message says what was found.
    """
    if not isinstance(size, Sequence) or len(size) != 2 or any(type(side) is not int for side in size):
        raise DataError(f"RLE size: expected [height, width] as two integers, found {size!r:.80}")
    height, width = size
    if height <= 0 or width <= 0 or height * width > MAX_MASK_PIXELS:
        raise DataError(f"RLE size: expected 1 to {MAX_MASK_PIXELS} pixels, found {height} x {width}")
    return height, width


def rle_counts(rle: RLE | Mapping[str, object]) -> Counts:
    """Run lengths of an RLE (off, on, off, ...), checked to cover its image exactly.

    Args:
        rle: Compressed (`counts` text or bytes) or uncompressed (`counts` a list of integers).

    Returns:
        (R,) run lengths >= 0 whose sum is height * width.

    Raises:
        DataError: Size, characters or run lengths are impossible; the message says what was found.

    Source:
        COCO API `maskApi.c`: 5 bits per character from chr(48), a continuation bit, sign extension, each count from
        the third on as difference to the count two before.
    """
    height, width = check_size(rle.get("size"))
    counts = rle.get("counts")
    if isinstance(counts, str | bytes):
        return _check_counts(_counts_from_text(counts), height, width)
    if isinstance(counts, Sequence) and all(type(count) is int for count in counts):
        limited = [min(max(count, -1), MAX_MASK_PIXELS + 1) for count in counts]
        return _check_counts(np.asarray(limited, dtype=np.int64), height, width)
    raise DataError(f"RLE counts: expected text or a list of integers, found {counts!r:.80}")


def check_rle(rle: RLE | Mapping[str, object], size_hw: tuple[int, int] | None = None) -> None:
    """Refuse an RLE that is damaged or was made for another image size.

    Raises:
        DataError: As `rle_counts`, or the size is not `size_hw`.
    """
    rle_counts(rle)
    found = check_size(rle.get("size"))
    if size_hw is not None and found != tuple(size_hw):
        raise DataError(
            f"RLE size: expected {list(size_hw)} (height, width of the image), found {list(found)}"
        )


def rle_from_uncompressed(counts: Sequence[int] | Counts, size_hw: tuple[int, int]) -> RLE:
    """Compress a list of run lengths.

    Args:
        counts: Off, on, off, ... pixels in column order.
        size_hw: Height and width of the image.

    Raises:
        DataError: The runs do not cover the image exactly.
    """
    height, width = check_size(list(size_hw))
    if isinstance(counts, np.ndarray):
        checked = _check_counts(counts, height, width)
    else:
        checked = rle_counts({"size": [height, width], "counts": list(counts)})
    return RLE(size=[height, width], counts=_counts_to_text(checked))


def rle_encode(mask: ArrayLike) -> RLE:
    """Compress a dense mask.

    Args:
        mask: (H, W), true or non-zero where the object is.

    Raises:
        ValueError: Not two-dimensional, or without pixels.
    """
    dense = np.asarray(mask)
    if dense.ndim != 2 or dense.size == 0:
        raise ValueError(f"rle_encode: expected a mask (H, W) with H, W > 0, found shape {dense.shape}")
    return patch_to_rle(dense, (0, 0), (dense.shape[0], dense.shape[1]))


def rle_decode(rle: RLE | Mapping[str, object]) -> NDArray[np.bool_]:
    """Dense (H, W) mask of an RLE; raises `DataError` as `rle_counts` does."""
    patch, (x, y) = rle_to_patch(rle)
    dense = np.zeros(check_size(rle.get("size")), dtype=np.bool_)
    dense[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return dense


def rle_area(rle: RLE | Mapping[str, object]) -> int:
    """Number of pixels that are on; raises `DataError` as `rle_counts` does."""
    return int(rle_counts(rle)[1::2].sum())


def rle_to_box(rle: RLE | Mapping[str, object]) -> tuple[float, float, float, float]:
    """Tight box around the mask: xyxy, absolute, continuous edges; all zero for an empty mask."""
    starts, ends = _runs(rle_counts(rle))
    height, _ = check_size(rle.get("size"))
    x1, y1, x2, y2 = _bounds(starts, ends, height)
    return float(x1), float(y1), float(x2), float(y2)


def patch_to_rle(patch: ArrayLike, offset_xy: tuple[int, int], size_hw: tuple[int, int]) -> RLE:
    """Compress a patch into the RLE of its whole image without making the dense mask.

    Args:
        patch: (h, w), non-zero where the object is; may be empty.
        offset_xy: Image column and row of its upper left pixel; the patch lies inside the image.
        size_hw: Height and width of the image.

    Raises:
        ValueError: The patch does not lie inside the image.
    """
    patch = np.asarray(patch)
    (x, y), (height, width), (h, w) = offset_xy, size_hw, patch.shape
    if min(x, y) < 0 or x + w > width or y + h > height:
        raise ValueError(f"patch_to_rle: patch {h} x {w} at x {x}, y {y} leaves the image {height} x {width}")
    columns = np.zeros((w, h + 1), dtype=np.bool_)  # the extra row ends every run with its column
    columns[:, :h] = patch.T != 0
    flips = np.flatnonzero(np.diff(columns.ravel(), prepend=False))
    column, row = np.divmod(flips, h + 1)
    places = (column + x) * height + y + row
    starts, ends = places[0::2], places[1::2]
    joined = np.flatnonzero(ends[:-1] == starts[1:])  # full-height columns run on into the next
    starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [height * width]])
    counts = np.diff(bounds)
    return RLE(size=[height, width], counts=_counts_to_text(counts[:-1] if counts[-1] == 0 else counts))


def rle_to_patch(rle: RLE | Mapping[str, object]) -> tuple[Patch, tuple[int, int]]:
    """The non-empty part of an RLE: the inverse of `patch_to_rle`.

    Returns:
        The patch (h, w) of 0 and 1 (0 x 0 for an empty mask) and the image (x, y) of its upper left pixel. An object
        that reaches from the last row of a column into the next keeps the full height.

    Raises:
        DataError: As `rle_counts`.
    """
    starts, ends = _runs(rle_counts(rle))
    height, _ = check_size(rle.get("size"))
    x1, y1, x2, y2 = _bounds(starts, ends, height)
    h, w = y2 - y1, x2 - x1
    column = starts // height - x1
    first = column * h + starts % height - y1
    runs = np.stack([first, first + ends - starts], axis=1).ravel()
    lengths = np.diff(np.concatenate([[0], runs, [h * w]]))
    values = (np.arange(len(lengths)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(values, lengths).reshape(w, h).T), (x1, y1)


def _check_counts(counts: Counts, height: int, width: int) -> Counts:
    """Refuse run lengths that are negative or do not add up to the image."""
    if (counts < 0).any():
        raise DataError(f"RLE counts: expected run lengths >= 0, found {int(counts.min())}")
    if (total := int(counts.sum())) != height * width:
        raise DataError(
            f"RLE counts: expected {height * width} pixels ({height} x {width}) in all, found {total}"
        )
    return counts


def _counts_from_text(text: str | bytes) -> Counts:
    """Decode COCO's compressed counts; raises `DataError` on anything no encoder writes."""
    raw = text.encode("utf-8") if isinstance(text, str) else text
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if codes.size and (codes.min() < 0 or codes.max() > 63):
        raise DataError(f"RLE counts: expected characters '0' to 'o', found {text!r:.80}")
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    lengths = last - first + 1
    if codes.size and (len(last) == 0 or last[-1] != codes.size - 1 or lengths.max() > _MAX_CHARS):
        raise DataError(f"RLE counts: the text is cut off or damaged: {text!r:.80}")
    if not codes.size:
        return np.zeros(0, dtype=np.int64)
    place = np.arange(codes.size) - np.repeat(first, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    deltas = values - np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    if np.abs(deltas).max() > MAX_MASK_PIXELS:
        raise DataError(
            f"RLE counts: expected at most {MAX_MASK_PIXELS} pixels, found {int(np.abs(deltas).max())}"
        )
    deltas[1::2] = np.cumsum(deltas[1::2])
    deltas[2::2] = np.cumsum(deltas[2::2])
    return deltas


def _counts_to_text(counts: Counts) -> str:
    """COCO's compressed text of checked run lengths."""
    deltas = counts.astype(np.int64)
    deltas[3:] -= counts[1:-2]
    magnitude = deltas ^ (deltas >> 63)  # ~x for negative x: the bits that must survive beside the sign
    place = np.arange(_MAX_CHARS)
    lengths = 1 + (magnitude[:, None] >> (5 * place[1:] - 1) > 0).sum(axis=1)
    codes = ((deltas[:, None] >> (5 * place)) & 31) + 48 + 32 * (place < lengths[:, None] - 1)
    text: bytes = codes[place < lengths[:, None]].astype(np.uint8).tobytes()
    return text.decode("ascii")


def _runs(counts: Counts) -> tuple[Counts, Counts]:
    """First position and the position after the last of every non-empty run that is on, in column order."""
    ends = np.cumsum(counts)[1::2]
    lengths = counts[1::2]
    return (ends - lengths)[lengths > 0], ends[lengths > 0]


def _bounds(starts: Counts, ends: Counts, height: int) -> tuple[int, int, int, int]:
    """Tight x1, y1, x2, y2 of runs; zeros when there are none."""
    if not len(starts):
        return 0, 0, 0, 0
    first, last = starts // height, (ends - 1) // height
    crosses = bool((first != last).any())
    top = 0 if crosses else int((starts % height).min())
    bottom = height if crosses else int(((ends - 1) % height).max()) + 1
    return int(first.min()), top, int(last.max()) + 1, bottom

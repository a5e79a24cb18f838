"""The one opener of images: any ordinary file -> uint8 RGB in the frame in which its labels live.

| file | result |
|---|---|
| gray, gray + alpha, 1 bit, palette, RGBA, CMYK | as its RGB twin; alpha is dropped |
| 16 bits per channel | scaled so that white becomes 255, never clipped; white is 65535 unless the file says less |
| | (TIFF MaxSampleValue, PNG sBIT) or the caller knows what the set's pictures have (`images.white`) |
| 9 to 15 bits per channel (TIFF) | scaled likewise |
| EXIF rotation | applied if width and height say so or cannot tell; `size_hw` decides |
| animation, several pages | the first frame |
| cut off, damaged | `DataError`; half-gray pictures are recognised |

JPEG and PNG of 8 bits, the usual case, go through OpenCV; what is unusual or suspicious through Pillow.
H, W: height and width.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scantling.data.findings import refuse
from scantling.data.images.header import (
    LARGE_PIXELS,
    MAX_PIXELS,
    ImageHeader,
    check_header,
    open_with_pillow,
    parse_header,
    parse_quickly,
    sniff,
)
from scantling.data.io import hint_for_missing

__all__ = [
    "LARGE_PIXELS",
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "ImageHeader",
    "begins_as_image",
    "decode_image",
    "image_header",
    "list_images",
    "open_image",
    "read_image",
    "rotation_for",
]

Pixels = NDArray[np.uint8]

FULL_WHITE = (1 << 16) - 1
"""Largest value of a channel of 16 bits."""

_OPENED = "jpg jpeg jpe jfif mpo png bmp dib webp tif tiff gif"
_NOT_OPENED = "avif heic heif jp2 j2k jpx jpeg2000 jxl dng pfm ppm pgm pbm pnm tga psd"
PICTURE_SUFFIXES = frozenset(f".{word}" for word in (*_OPENED.split(), *_NOT_OPENED.split()))
"""Endings that a data set's pictures have, of kinds that are opened and of kinds that are refused by name."""
_HEAD_BYTES = 1 << 16
_MAX_FILE_BYTES = 1 << 31
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_DEPTH = cv2.IMREAD_UNCHANGED
_JPEG_END = b"\xff\xd9"
_JPEG_FILLING = bytes((37 * index + 11) % 251 for index in range(64))  # any codes, no marker
_JPEG_GRAY = 128  # libjpeg's value for pixels it has no data for
_JPEG_TAIL = 8
_NO_WHITE = ("I", "F")  # Pillow's modes of integers and floats
_UNDONE_BY = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def open_image(
    path: Path | str, *, size_hw: tuple[int, int] | None = None, white: int | None = None
) -> Pixels:
    """Read an image as RGB.

    Args:
        path: Any supported file; its name and extension do not matter.
        size_hw: Height and width of the frame in which the labels live. It decides whether an EXIF rotation is
            applied; where it cannot (half turns, square images) the rotation is applied. None: upright.
        white: Value that becomes 255 in pictures of 16 bits that do not say it themselves; None: 65535.

    Returns:
        (H, W, 3) uint8 RGB, contiguous, of size `size_hw` if given.

    Raises:
        DataError: Missing, not an image, damaged, too large, or of another size than `size_hw`.
    """
    file = str(path)
    data = read_image(path)
    header = parse_header(data, file)
    rotation = rotation_for(header, size_hw, file)
    return rotate(decode_image(data, header, file, white), rotation)


def brightest_value(path: Path | str) -> int | None:
    """Largest value of any channel of a picture of 16 bits, transparency left out; None if it cannot be decoded.

    Raises:
        DataError: The file is missing or no image.
    """
    deep = _decode(read_image(path), _DEPTH)
    if deep is None or deep.dtype != np.uint16:
        return None
    return int(deep[..., :3].max() if deep.ndim == 3 else deep.max())


def image_header(path: Path | str) -> ImageHeader:
    """What an image says about itself; usually from its first 64 KiB.

    Raises:
        DataError: Missing, not an image, or its header is damaged or asks for too many pixels.
    """
    header = parse_quickly(read_image(path, limit=_HEAD_BYTES))
    if header is None:
        return parse_header(read_image(path), str(path))
    check_header(header, str(path))
    return header


def rotation_for(header: ImageHeader, size_hw: tuple[int, int] | None, file: str) -> int:
    """The EXIF orientation to apply (1: none) so that the image has the frame of its labels.

    Args:
        header: Of the image.
        size_hw: Frame of the labels; None for upright.
        file: Name for messages.

    Raises:
        DataError: Code `image-size-differs`: neither the stored nor the upright image has that size.
    """
    if size_hw is None or header.upright_hw == tuple(size_hw):
        return header.orientation
    if header.size_hw == tuple(size_hw):
        return 1
    (height, width), (stored_height, stored_width) = size_hw, header.size_hw
    swapped = "; width and height are swapped" if header.size_hw == (width, height) else ""
    message = (
        f"the file has width {stored_width} and height {stored_height}, "
        f"its record width {width} and height {height}{swapped}"
    )
    return refuse("image-size-differs", file, message)


def rotate(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (1..8) to an image (H, W, 3); 5 to 8 swap height and width."""
    if orientation == 1:
        return pixels
    rotated = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    if orientation in (2, 3, 6, 7):
        rotated = rotated[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rotated = rotated[::-1]
    return np.ascontiguousarray(rotated)


def read_image(path: Path | str, *, limit: int = -1) -> bytes:
    """The bytes of a file that should be an image.

    Args:
        path: The file.
        limit: Read at most so many bytes; -1 for all.

    Raises:
        DataError: Codes `image-missing`, `image-unreadable`, `image-too-large`.
    """
    file = str(path)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - twice as fast as Path.open, for every image read
            if limit < 0 and os.fstat(stream.fileno()).st_size > _MAX_FILE_BYTES:
                refuse("image-too-large", file, f"the file has more than {_MAX_FILE_BYTES} bytes")
            data = stream.read(limit)
    except FileNotFoundError:
        refuse("image-missing", file, "there is no such image file", hint=hint_for_missing(Path(path)))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        refuse("image-unreadable", file, f"the image file cannot be read: {error}")
    if not data:
        refuse("image-unreadable", file, "the image file is empty (0 bytes)")
    return data


def decode_image(data: bytes, header: ImageHeader, file: str, white: int | None = None) -> Pixels:
    """Decode the first frame as stored, without any rotation.

    Args:
        data: The whole file.
        header: Its header, already checked.
        file: Name for messages.
        white: As in `open_image`.

    Returns:
        (H, W, 3) uint8 RGB of the header's size.

    Raises:
        DataError: Code `image-damaged`.
    """
    if header.format == "JPEG" and header.mode in ("L", "RGB"):
        pixels = _decode_jpeg(data, header, file)
    elif 8 < header.bits <= 16:
        pixels = _decode_deep(data, header, white)
    elif header.format == "PNG":
        pixels = _decode(data, _RGB)
    else:
        pixels = None
    if pixels is None:
        pixels = _decode_with_pillow(data, header, file)
    if header.format == "TIFF":  # both libraries rotate TIFF files unasked
        pixels = rotate(pixels, _UNDONE_BY[header.orientation])
    if pixels.shape != (*header.size_hw, 3):
        refuse("image-damaged", file, f"decoded to {pixels.shape}, the header says {header.size_hw}")
    return pixels


def jpeg_leftover(data: bytes, header: ImageHeader) -> bool:
    """Whether a JPEG's last bytes of pixel data change nothing: after damage its picture can end too early."""
    end = data.rfind(_JPEG_END, header.body)
    if end < header.body + 2 * _JPEG_TAIL:
        return False
    return _same_pixels(data[:end], data[: end - _JPEG_TAIL])


def _decode_jpeg(data: bytes, header: ImageHeader, file: str) -> Pixels | None:
    """Decode, and refuse a picture whose data end before its pixels do."""
    end = data.rfind(_JPEG_END, header.body)
    if end < 0:
        _refuse_if_starved(data, file)
        return _decode(data + _JPEG_END, _RGB)
    pixels = _decode(data, _RGB)
    if pixels is not None and _ends_gray(pixels):
        _refuse_if_starved(data[:end], file)
    return pixels


def _refuse_if_starved(data: bytes, file: str) -> None:
    if not _same_pixels(data, data + _JPEG_FILLING):
        refuse("image-damaged", file, "the JPEG is cut off: pixels are missing at its end")


def _ends_gray(pixels: Pixels) -> bool:
    """Whether the last 8 x 8 block is what libjpeg shows for missing data."""
    height, width = pixels.shape[:2]
    if pixels[-1, -1, 0] != _JPEG_GRAY:
        return False
    return bool((pixels[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :] == _JPEG_GRAY).all())


def _same_pixels(first: bytes, second: bytes) -> bool:
    """Whether two JPEGs without end marker show the same.

    A decoder that has all its pixels ignores further data; one that lacks some shows the data it is given. Pillow
    is used because OpenCV writes a line to the terminal for each such file.
    """
    with (
        Image.open(io.BytesIO(first + _JPEG_END)) as one,
        Image.open(io.BytesIO(second + _JPEG_END)) as other,
    ):
        try:
            return one.tobytes() == other.tobytes()
        except OSError:
            return False


def _decode(data: bytes, flags: int) -> NDArray[np.uint8] | None:
    try:
        pixels: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        return None
    return pixels


def _decode_deep(data: bytes, header: ImageHeader, white: int | None) -> Pixels | None:
    """More than 8 bits per channel -> 8, so that white becomes 255; None if OpenCV cannot."""
    deep = _decode(data, _DEPTH)
    if deep is None or deep.dtype != np.uint16 or deep.shape[2:] not in ((), (3,), (4,)):
        return None
    shallow = cv2.convertScaleAbs(deep, alpha=255 / _white_in(deep, header, white))
    if shallow.ndim == 2:
        return cv2.cvtColor(shallow, cv2.COLOR_GRAY2RGB)  # type: ignore[no-any-return] # untyped library
    code = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[shallow.shape[2]]
    return cv2.cvtColor(shallow, code)  # type: ignore[no-any-return] # untyped library


def _white_in(deep: NDArray[Any], header: ImageHeader, white: int | None) -> int:
    """What becomes 255: the file's own word, else the set's, else the full range; never less than is there."""
    if header.bits < 16:  # OpenCV has moved the bits to the upper end
        return FULL_WHITE - ((1 << (16 - header.bits)) - 1)
    told = header.white
    if header.significant is not None:
        told = FULL_WHITE if _is_scaled_up(deep, header.significant) else (1 << header.significant) - 1
    chosen = told or white or FULL_WHITE
    return chosen if chosen == FULL_WHITE or int(deep.max()) <= chosen else FULL_WHITE


def _is_scaled_up(deep: NDArray[Any], depth: int) -> bool:
    """Whether pixels of fewer bits fill all 16: below them are zeros, or their uppermost bits once more."""
    below = deep & ((1 << (16 - depth)) - 1)
    return bool((below == 0).all() or (below == deep >> depth).all())


def _decode_with_pillow(data: bytes, header: ImageHeader, file: str) -> Pixels:
    try:
        image = open_with_pillow(data, header.format)
        image.load()
        pixels = None if image.mode.startswith(_NO_WHITE) else np.array(image.convert("RGB"))
    except (Image.DecompressionBombError, MemoryError):
        refuse("image-too-large", file, f"the image has more than {MAX_PIXELS} pixels")
    except Exception as error:  # decoders raise whatever a damaged file provokes
        refuse("image-damaged", file, f"the pixels of this {header.format} cannot be decoded: {error}")
    if pixels is None:
        refuse("image-format", file, f"pixels of kind {image.mode!r}, which have no fixed white")
    return pixels


def list_images(folder: Path | str) -> list[Path]:
    """All images in a folder and its sub-folders, recognised by content, sorted by name.

    Raises:
        DataError: The folder is missing, is a file, or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        code = "file-missing" if not folder.exists() else "file-unreadable"
        refuse(code, str(folder), "this is not a folder", hint=hint_for_missing(folder))
    images = [path for path in files_below(folder) if not path.name.startswith(".") and begins_as_image(path)]
    if not images:
        refuse("no-image-in-folder", str(folder), "the folder holds no image")
    return images


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its sub-folders but hidden ones, sorted."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place) / name for name in names]
    return sorted(files)


def pictures_below(folder: Path) -> list[Path]:
    """All files in a folder and its sub-folders that are called like pictures, whether they can be opened or not."""
    return [path for path in files_below(folder) if is_picture(path)]


def is_picture(path: Path) -> bool:
    """Whether a file is called like a picture; hidden ones (`._a.jpg` of macOS) are none."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def begins_as_image(path: Path) -> bool:
    """Whether the first bytes of a file are those of an image; whether it can be opened only opening it says."""
    try:
        with path.open("rb") as stream:
            return sniff(stream.read(16)) is not None
    except OSError:
        return False

"""What an image file says about itself, read without decoding a pixel: kind, size, depth, frames, EXIF rotation.

JPEG and PNG are parsed here, because that happens for every image of every epoch; the other kinds by Pillow. The
number of pixels is limited before anything is allocated from it. Nothing here trusts the file name.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from PIL import Image, TiffImagePlugin

from scantling.data.findings import refuse
from scantling.data.io import describe_content

MAX_PIXELS = 178_000_000
"""Largest image that is ever decoded (about 13,300 x 13,300)."""
LARGE_PIXELS = 100_000_000
"""Images with more pixels than this are worth a warning."""

ImageFormat = Literal["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"]

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_CHANNELS, _TIFF_SAMPLE_FORMAT = 256, 257, 258, 277, 339
_TIFF_MAX_SAMPLE = 281
_TIFF_FLOAT = 3
_BANDS = " bands"
_TIFF_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_WARNINGS = threading.Lock()
_SUPPORTED = "Supported: JPEG, PNG, BMP, WebP, TIFF and GIF with 8 or 16 bits per channel."


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What is known of an image before decoding.

    Attributes:
        format: Recognised by content, not by file name.
        size_hw: Height and width as stored, before any rotation.
        mode: Pillow's name of the pixel layout: 1, L, LA, P, RGB, RGBA, CMYK; F for floats, else `5 bands` (TIFF).
        bits: Bits per channel.
        frames: 1 for an ordinary picture, more for an animation or a TIFF with several pages.
        orientation: EXIF rotation 1..8; 1 means as stored.
        body: Byte offset from which pixel data follow (JPEG only).
        white: Largest value that the file says its pixels take (TIFF MaxSampleValue); None where it does not.
        significant: Bits that the file says are meant, of 16 (PNG sBIT); its pixels may be scaled up to 16 or not.
    """

    format: ImageFormat
    size_hw: tuple[int, int]
    mode: str
    bits: int = 8
    frames: int = 1
    orientation: int = 1
    body: int = 0
    white: int | None = None
    significant: int | None = None

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width once the EXIF rotation is applied."""
        return self.size_hw[::-1] if self.orientation in _SIDEWAYS else self.size_hw

    @property
    def ambiguous(self) -> bool:
        """Whether width and height cannot tell labels in the stored frame from labels in the upright one."""
        return self.orientation != 1 and self.upright_hw == self.size_hw


def sniff(head: bytes) -> ImageFormat | None:
    """Kind of image by the first 16 bytes, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"BM"):
        return "BMP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    return "WEBP" if head.startswith(b"RIFF") and head[8:12] == b"WEBP" else None


def parse_header(data: bytes, file: str) -> ImageHeader:
    """Read the header of a whole image file.

    Args:
        data: The file's bytes.
        file: Name for messages.

    Raises:
        DataError: Codes `image-format`, `image-damaged`, `image-too-large`; also for a Git-LFS pointer or an HTML
            page in the place of an image, which the message names.
    """
    kind = sniff(data[:16])
    if kind is None:
        found = describe_content(data[:512]) or f"content that starts with {data[:8]!r}"
        refuse("image-format", file, f"not an image but {found}", hint=_SUPPORTED)
    header = parse_quickly(data) if kind in ("JPEG", "PNG") else _parse_with_pillow(data, kind, file)
    if header is None:
        refuse("image-damaged", file, f"the {kind} header is cut off or damaged")
    check_header(header, file)
    return header


def parse_quickly(data: bytes) -> ImageHeader | None:
    """Header of a JPEG or PNG from its first bytes; None if there are too few of them or for other kinds."""
    kind = sniff(data[:16])
    try:
        if kind == "JPEG":
            return _parse_jpeg(data)
        return _parse_png(data) if kind == "PNG" else None
    except struct.error:
        return None


def check_header(header: ImageHeader, file: str) -> None:
    """Refuse what would not fit into memory or has no meaning as 8-bit RGB.

    Args:
        header: Of any image.
        file: Name for messages.

    Raises:
        DataError: Codes `image-too-large`, `image-damaged`, `image-format`.
    """
    height, width = header.size_hw
    if height * width > MAX_PIXELS:
        refuse("image-too-large", file, f"{width} x {height} pixels are more than {MAX_PIXELS}")
    if height <= 0 or width <= 0:
        refuse("image-damaged", file, f"the header gives a size of {width} x {height}")
    if header.mode == "F":
        refuse("image-format", file, "floating-point pixels, which have no fixed white", hint=_SUPPORTED)
    if header.mode.endswith(_BANDS):
        hint = "Save the three that are to be seen as an RGB image."
        refuse("image-format", file, f"{header.mode} for each pixel, not gray or RGB", hint=hint)
    if header.bits > 16 or (header.format == "JPEG" and header.bits != 8):
        message = f"{header.bits} bits per channel in a {header.format}"
        refuse("image-format", file, message, hint=_SUPPORTED)


def _parse_jpeg(data: bytes) -> ImageHeader | None:
    """Walk the segments up to the frame header (ITU T.81, B.2)."""
    position, orientation = 2, 1
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:
            position += 1
            continue
        if marker in _JPEG_BARE or marker == 0:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            mode = _JPEG_MODES.get(channels, "?")
            size_hw = (height, width)
            body = position + length
            return ImageHeader(
                format="JPEG", size_hw=size_hw, mode=mode, bits=bits, orientation=orientation, body=body
            )
        if marker == 0xE1 and orientation == 1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    return None


def _parse_png(data: bytes) -> ImageHeader | None:
    """Walk the chunks up to the first pixels (PNG specification, section 5)."""
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    position, orientation, frames, significant = 8, 1, 1, None
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        name = data[position + 4 : position + 8]
        if name == b"IDAT":
            mode = "1" if (color, bits) == (0, 1) else _PNG_MODES.get(color, "?")
            size_hw = (height, width)
            return ImageHeader(
                format="PNG",
                size_hw=size_hw,
                mode=mode,
                bits=bits,
                frames=frames,
                orientation=orientation,
                significant=significant,
            )
        if name == b"acTL":
            (frames,) = struct.unpack_from(">I", data, position + 8)
        if name == b"eXIf":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        if name == b"sBIT" and bits == 16:
            depth = max(data[position + 8 : position + 8 + min(length, 3)], default=16)
            significant = depth if 8 <= depth < 16 else None
        position += 12 + length
    return None


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 in an EXIF block (a TIFF directory); 1 if there is none or the block is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for index in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * index)
            if tag == _EXIF_ORIENTATION:
                return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _parse_with_pillow(data: bytes, kind: ImageFormat, file: str) -> ImageHeader:
    try:
        if kind == "TIFF":
            return _parse_tiff(data)
        image = open_with_pillow(data, kind)
        frames = int(getattr(image, "n_frames", 1))
        orientation = exif_orientation(_exif_of(image)) if kind == "WEBP" else 1
    except Image.DecompressionBombError:
        refuse("image-too-large", file, f"more than {MAX_PIXELS} pixels")
    except Exception as error:  # Pillow's parsers raise whatever a damaged file provokes
        refuse("image-damaged", file, f"the {kind} header is damaged: {error}")
    size_hw = (image.height, image.width)
    return ImageHeader(format=kind, size_hw=size_hw, mode=image.mode, frames=frames, orientation=orientation)


def open_with_pillow(data: bytes, kind: ImageFormat) -> Image.Image:
    """Open a file as one kind of image, without its pixels and without warnings on the terminal.

    Args:
        data: The whole file.
        kind: The only format that is tried.

    Raises:
        Exception: Whatever a damaged file provokes in Pillow.
    """
    with _quietly():
        return Image.open(io.BytesIO(data), formats=[kind])


@contextmanager
def _quietly() -> Iterator[None]:
    """No warnings from Pillow; one thread at a time, because the filters are the whole process's."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _exif_of(image: Image.Image) -> bytes:
    exif = image.info.get("exif", b"")
    return exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""


def _parse_tiff(data: bytes) -> ImageHeader:
    """First directory of a TIFF; Pillow's own header reader hides the depth of colour images."""
    stream = io.BytesIO(data)
    big = b"+" in data[2:4]
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
    stream.seek(directory.next)
    with _quietly():
        directory.load(stream)
    channels = int(directory.get(_TIFF_CHANNELS, 1))
    floating = _TIFF_FLOAT in directory.get(_TIFF_SAMPLE_FORMAT, (1,))
    orientation = directory.get(_EXIF_ORIENTATION, 1)
    return ImageHeader(
        format="TIFF",
        size_hw=(int(directory[_TIFF_HEIGHT]), int(directory[_TIFF_WIDTH])),
        mode="F" if floating else _TIFF_MODES.get(channels, f"{channels}{_BANDS}"),
        bits=int(max(directory.get(_TIFF_BITS, (1,)))),
        frames=2 if directory.next else 1,
        orientation=orientation if orientation in range(1, 9) else 1,
        white=_declared_white(directory),
    )


def _declared_white(directory: TiffImagePlugin.ImageFileDirectory_v2) -> int | None:
    """MaxSampleValue, where it says more than the number of bits."""
    values = directory.get(_TIFF_MAX_SAMPLE, ())
    white = max((int(value) for value in (values if isinstance(values, tuple) else (values,))), default=0)
    return white if 255 <= white < (1 << 16) - 1 else None

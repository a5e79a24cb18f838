"""The image opener: every ordinary file gives the pixels of its RGB twin (RELIABILITY rows 39-48)."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scantling.data.images.open import MAX_PIXELS, image_header, list_images, open_image, rotate
from scantling.errors import DataError

HEIGHT, WIDTH = 40, 56


def scene() -> np.ndarray:
    """Smooth colours and a noisy part, so that JPEGs have something to lose."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
    pixels[:12, :20] = np.random.default_rng(0).integers(0, 255, (12, 20, 3))
    return pixels


SCENE = scene()
GRAY = SCENE[..., 1]
GRAY_RGB = np.repeat(GRAY[..., None], 3, axis=2)
ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def deep(pixels: np.ndarray, suffix: str) -> bytes:
    """16 bits per channel, as OpenCV (BGR) writes it."""
    wide = pixels.astype(np.uint16) * 257
    wide = wide[..., [2, 1, 0, *range(3, wide.shape[2])]] if wide.ndim == 3 else wide
    return cv2.imencode(suffix, wide)[1].tobytes()


def damaged(error: pytest.ExceptionInfo[DataError]) -> str:
    (finding,) = error.value.findings
    assert finding.hint
    return finding.code


def with_text_bomb() -> bytes:
    data = encoded(SCENE, "PNG")
    body = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return data[:33] + chunk + data[33:]


def with_bad_checksum() -> bytes:
    data = bytearray(encoded(SCENE, "PNG"))
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    data[start + 4 + length] ^= 0xFF
    return bytes(data)


PALETTE = Image.fromarray(SCENE).quantize(32)
BILEVEL = Image.fromarray(SCENE).convert("1")
CMYK = Image.fromarray(SCENE).convert("CMYK")
EXACT: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "PNG RGB": (lambda: encoded(SCENE, "PNG"), SCENE),
    "PNG gray": (lambda: encoded(GRAY, "PNG"), GRAY_RGB),
    "PNG gray + alpha": (lambda: encoded(np.dstack([GRAY, ALPHA]), "PNG"), GRAY_RGB),
    "PNG RGBA": (lambda: encoded(np.dstack([SCENE, ALPHA]), "PNG"), SCENE),
    "PNG gray with a transparent value": (lambda: encoded(GRAY, "PNG", transparency=6), GRAY_RGB),
    "PNG 1 bit": (lambda: encoded(BILEVEL, "PNG"), np.asarray(BILEVEL.convert("RGB"))),
    "PNG palette": (lambda: encoded(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "PNG palette + alpha": (
        lambda: encoded(PALETTE, "PNG", transparency=3),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "PNG 4 colours": (
        lambda: encoded(PALETTE.quantize(4), "PNG"),
        np.asarray(PALETTE.quantize(4).convert("RGB")),
    ),
    "PNG 16-bit gray": (lambda: deep(GRAY, ".png"), GRAY_RGB),
    "PNG 16-bit RGB": (lambda: deep(SCENE, ".png"), SCENE),
    "PNG 16-bit RGBA": (lambda: deep(np.dstack([SCENE, ALPHA]), ".png"), SCENE),
    "TIFF 16-bit gray": (lambda: deep(GRAY, ".tiff"), GRAY_RGB),
    "TIFF 16-bit RGB": (lambda: deep(SCENE, ".tiff"), SCENE),
    "TIFF RGB": (lambda: encoded(SCENE, "TIFF"), SCENE),
    "TIFF packed": (lambda: encoded(SCENE, "TIFF", compression="tiff_lzw"), SCENE),
    "TIFF gray": (lambda: encoded(GRAY, "TIFF"), GRAY_RGB),
    "TIFF RGBA": (lambda: encoded(np.dstack([SCENE, ALPHA]), "TIFF"), SCENE),
    "TIFF 1 bit": (lambda: encoded(BILEVEL, "TIFF"), np.asarray(BILEVEL.convert("RGB"))),
    "TIFF CMYK": (lambda: encoded(CMYK, "TIFF"), np.asarray(CMYK.convert("RGB"))),
    "BMP RGB": (lambda: encoded(SCENE, "BMP"), SCENE),
    "BMP gray": (lambda: encoded(GRAY, "BMP"), GRAY_RGB),
    "BMP palette": (lambda: encoded(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB"))),
    "WebP RGB": (lambda: encoded(SCENE, "WEBP", lossless=True), SCENE),
    "WebP RGBA": (lambda: encoded(np.dstack([SCENE, ALPHA | 1]), "WEBP", lossless=True, exact=True), SCENE),
    "GIF": (lambda: encoded(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "GIF animated": (
        lambda: encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "PNG animated": (
        lambda: encoded(SCENE, "PNG", save_all=True, append_images=[Image.fromarray(255 - SCENE)]),
        SCENE,
    ),
    "TIFF of two pages": (
        lambda: encoded(SCENE, "TIFF", save_all=True, append_images=[Image.fromarray(255 - SCENE)]),
        SCENE,
    ),
    "PNG with a zTXt of 100 MB": (with_text_bomb, SCENE),
    "PNG with a damaged checksum of its pixels": (with_bad_checksum, SCENE),
    "PNG without end chunk": (lambda: encoded(SCENE, "PNG")[:-12], SCENE),
}


@pytest.mark.parametrize("kind", EXACT)
def test_rows_42_to_47_every_kind_gives_the_pixels_of_its_rgb_twin(tmp_path, kind):
    make, expected = EXACT[kind]
    path = tmp_path / "picture.JPG"  # the name says nothing
    path.write_bytes(make())
    pixels = open_image(path, size_hw=(HEIGHT, WIDTH))
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (HEIGHT, WIDTH, 3), True)
    assert np.array_equal(pixels, expected)


LOSSY = {
    "JPEG": {"quality": 95},
    "JPEG progressive": {"quality": 95, "progressive": True},
    "JPEG 4:4:4": {"quality": 95, "subsampling": 0},
    "JPEG with restarts": {"quality": 95, "restart_marker_rows": 1},
}


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_row_42_jpeg_equals_pillow(tmp_path, kind, mode):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(SCENE).convert(mode), "JPEG", **LOSSY[kind]))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(open_image(path) - expected).max() <= 1  # two builds of libjpeg may round differently


def test_row_43_cmyk_jpeg(tmp_path):
    path = tmp_path / "print.jpg"
    path.write_bytes(encoded(CMYK, "JPEG", quality=100, subsampling=0))
    assert np.abs(open_image(path).astype(int) - SCENE).mean() < 3


def test_row_44_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.array([[0, 1, 128, 129, 257, 40000, 65535]], np.uint16)
    (tmp_path / "ramp.png").write_bytes(cv2.imencode(".png", ramp)[1].tobytes())
    assert open_image(tmp_path / "ramp.png")[0, :, 0].tolist() == [0, 0, 0, 1, 1, 156, 255]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)])
def test_row_44_pixels_without_a_fixed_white_are_refused(tmp_path, kind, shape):
    done, data = cv2.imencode(".tiff", np.ones(shape, kind))
    assert done
    (tmp_path / "deep.tif").write_bytes(data.tobytes())
    with pytest.raises(DataError) as error:
        open_image(tmp_path / "deep.tif")
    assert damaged(error) == "image-format"


# ---------------------------------------------------------------- EXIF


def rotated_by_pillow(pixels: np.ndarray, orientation: int) -> np.ndarray:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return pixels if orientation == 1 else np.asarray(Image.fromarray(pixels).transpose(turns[orientation]))


def with_orientation(kind: str, orientation: int, pixels: np.ndarray = SCENE) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF":
        return encoded(pixels, kind, tiffinfo={0x0112: orientation})
    return encoded(pixels, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_row_45_width_and_height_decide_about_the_rotation(tmp_path, kind, orientation):
    path = tmp_path / "camera"
    path.write_bytes(with_orientation(kind, orientation))
    stored = SCENE
    if kind == "JPEG":
        path.write_bytes(encoded(SCENE, "JPEG"))
        stored = open_image(path)
        path.write_bytes(with_orientation("JPEG", orientation))
    upright = rotated_by_pillow(stored, orientation)
    assert image_header(path).upright_hw == upright.shape[:2]
    assert np.array_equal(open_image(path), upright)
    assert np.array_equal(open_image(path, size_hw=upright.shape[:2]), upright)
    if orientation >= 5:
        assert np.array_equal(open_image(path, size_hw=(HEIGHT, WIDTH)), stored)
        assert not image_header(path).ambiguous
    else:
        assert image_header(path).ambiguous == (orientation > 1)


def test_row_45_sixteen_bit_tiff_too(tmp_path):
    wide = (SCENE.astype(np.uint16) * 257)[..., ::-1]
    done, data = cv2.imencode(".tiff", wide)
    assert done
    data = bytearray(data.tobytes())
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    for place in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, place)[0] == 284:  # planar configuration, 1 by default
            struct.pack_into("<HHII", data, place, 0x0112, 3, 1, 6)
    (tmp_path / "a.tif").write_bytes(data)
    assert image_header(tmp_path / "a.tif").orientation == 6
    assert np.array_equal(open_image(tmp_path / "a.tif"), rotated_by_pillow(SCENE, 6))
    assert np.array_equal(open_image(tmp_path / "a.tif", size_hw=(HEIGHT, WIDTH)), SCENE)


@given(orientation=st.integers(1, 8))
def test_rotations_agree_with_pillow(orientation):
    assert np.array_equal(rotate(SCENE, orientation), rotated_by_pillow(SCENE, orientation))


@given(
    block=st.binary(max_size=60), prefix=st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08\0\x05"])
)
def test_row_41_random_exif_bytes_do_no_harm(tmp_path_factory, block, prefix):
    data = encoded(SCENE, "JPEG")
    body = b"Exif\0\0" + prefix + block
    path = tmp_path_factory.getbasetemp() / "exif.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    assert open_image(path).shape in ((HEIGHT, WIDTH, 3), (WIDTH, HEIGHT, 3))


# ---------------------------------------------------------------- damage


def test_row_39_what_is_no_image_is_named(tmp_path):
    cases = {
        "page": (b"<!DOCTYPE html><html><body>404", "image-format", "HTML page"),
        "pointer": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "image-format",
            "git lfs pull",
        ),
        "archive": (b"PK\x03\x04" + bytes(40), "image-format", "zip archive"),
        "text": (b"just words", "image-format", "just wor"),
        "empty": (b"", "image-unreadable", "0 bytes"),
        "short": (b"\xff\xd8\xff", "image-damaged", "JPEG header"),
        "shorter": (b"\x89PNG\r\n\x1a\n", "image-damaged", "PNG header"),
    }
    for name, (data, code, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        for opener in (open_image, image_header):
            with pytest.raises(DataError) as error:
                opener(tmp_path / name)
            assert damaged(error) == code
            assert words in str(error.value)
            assert str(tmp_path / name) in str(error.value)


def test_row_39_missing_file_and_folder(tmp_path):
    (tmp_path / "Photo.jpg").write_bytes(b"x")
    for name, code in (
        ("photo.jpg", "image-missing"),
        (".", "image-unreadable"),
        ("a\0b", "image-unreadable"),
    ):
        with pytest.raises(DataError) as error:
            open_image(f"{tmp_path}/{name}")
        assert damaged(error) == code
    with pytest.raises(DataError, match=r"Did you mean 'Photo\.jpg'\?"):
        open_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("progressive", "end"),
    [(False, b""), (True, b""), (False, b"\xff\xd9"), (False, b"\xff\xd9" + bytes(50))],
    ids=["cut", "progressive cut", "cut and closed", "cut, closed and padded"],
)
def test_row_40_truncated_jpeg(tmp_path, progressive, mode, end):
    data = encoded(Image.fromarray(SCENE).convert(mode), "JPEG", quality=95, progressive=progressive)
    scan = data.rindex(b"\xff\xda") + 12 if not progressive else data.index(b"\xff\xda") + 12
    half = (scan + len(data)) // 2
    (tmp_path / "half.jpg").write_bytes(data[:half] + end)
    with pytest.raises(DataError, match="cut off") as error:
        open_image(tmp_path / "half.jpg")
    assert damaged(error) == "image-damaged"


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_row_40_truncated_files_of_other_kinds(tmp_path, kind, kept):
    noise = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    data = encoded(noise, kind)
    (tmp_path / "half").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DataError) as error:
        open_image(tmp_path / "half")
    assert damaged(error) == "image-damaged"


def test_row_40_damaged_pixel_stream_of_a_png(tmp_path):
    data = bytearray(encoded(SCENE, "PNG"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "flipped.png").write_bytes(data)
    with pytest.raises(DataError) as error:
        open_image(tmp_path / "flipped.png")
    assert damaged(error) == "image-damaged"


def test_row_40_a_jpeg_that_ends_in_real_gray_is_sound(tmp_path):
    gray = SCENE.copy()
    gray[24:] = 128
    (tmp_path / "gray.jpg").write_bytes(encoded(gray, "JPEG", subsampling=0))
    pixels = open_image(tmp_path / "gray.jpg")
    assert (pixels[-8:, -8:] == 128).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_row_41_jpeg_without_end_marker(tmp_path, progressive):
    data = encoded(SCENE, "JPEG", progressive=progressive)
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "open.jpg").write_bytes(data[:-2])
    assert np.array_equal(open_image(tmp_path / "open.jpg"), open_image(tmp_path / "whole.jpg"))


def test_row_35_another_size_than_the_record(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(SCENE, "PNG"))
    with pytest.raises(DataError, match="width 56 and height 40, its record width 30 and height 20") as error:
        open_image(tmp_path / "a.png", size_hw=(20, 30))
    assert damaged(error) == "image-size-differs"
    with pytest.raises(DataError, match="swapped"):
        open_image(tmp_path / "a.png", size_hw=(WIDTH, HEIGHT))


@given(data=st.data())
def test_damage_anywhere_gives_pixels_or_a_data_error(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["PNG", "BMP", "TIFF", "WEBP", "GIF"]))
    content = bytearray(encoded(SCENE, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        pixels = open_image(path)
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("size_hw", [(1, 1), (10, 20000), (3000, 6)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_row_46_extreme_shapes(tmp_path, size_hw, kind):
    (tmp_path / "a").write_bytes(encoded(np.full((*size_hw, 3), 200, np.uint8), kind))
    pixels = open_image(tmp_path / "a")
    assert pixels.shape == (*size_hw, 3)
    assert (pixels == 200).all()


def bombs() -> dict[str, bytes]:
    side = 30_000
    png = bytearray(encoded(SCENE, "PNG"))
    struct.pack_into(">II", png, 16, side, side)
    struct.pack_into(">I", png, 29, zlib.crc32(bytes(png[12:29])))
    jpeg = bytearray(encoded(SCENE, "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, side, side)
    bitmap = bytearray(encoded(SCENE, "BMP"))
    struct.pack_into("<ii", bitmap, 18, side, side)
    gif = bytearray(encoded(PALETTE, "GIF"))
    struct.pack_into("<HH", gif, 6, side, side)
    tiff = encoded(Image.new("1", (side, 6000)), "TIFF", compression="tiff_deflate")
    return {"PNG": bytes(png), "JPEG": bytes(jpeg), "BMP": bytes(bitmap), "GIF": bytes(gif), "TIFF": tiff}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
def test_row_48_a_bomb_is_refused_by_its_header(tmp_path, kind):
    (tmp_path / "bomb").write_bytes(bombs()[kind])
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000,) * 2)\n"
        "from scantling.data.images.open import open_image\nfrom scantling.errors import DataError\n"
        "try: open_image(sys.argv[1])\nexcept DataError as e: sys.exit(f'{e.findings[0].code}')"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "bomb")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("image-too-large"), done.stderr
    assert MAX_PIXELS < 30_000 * 6000


# ---------------------------------------------------------------- folders


def test_list_images_goes_by_content_and_ignores_what_is_hidden(tmp_path):
    for name in ("b.png", "a.dat", "sub/c.JPG", ".hidden.png", ".cache/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(SCENE, "PNG"))
    (tmp_path / "README").write_text("words")
    (tmp_path / "fake.png").write_text("words")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.dat", "b.png", "sub/c.JPG"]


@pytest.mark.parametrize(
    ("name", "code"), [("no", "file-missing"), ("file", "file-unreadable"), ("empty", "no-image-in-folder")]
)
def test_row_49_no_folder_or_nothing_in_it(tmp_path, name, code):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        list_images(tmp_path / name)
    assert error.value.findings[0].code == code

"""Pictures are written with Pillow (or by hand) in every kind that people have, and read back."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from lora_train.core.errors import DatasetError
from lora_train.data.images import (
    LARGEST_MEGAPIXELS,
    PICTURE_SUFFIXES,
    fit,
    fit_to_bucket,
    open_picture,
    picture_size,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def corner_picture(size: tuple[int, int] = (32, 16)) -> Image.Image:
    """Blue, with the left upper quarter red: every turn of it looks different."""
    picture = Image.new("RGB", size, BLUE)
    picture.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    return picture


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_bytes(width_px: int, height_px: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand (PNG specification, section 11.2); `rows` has the filter bytes."""
    header = struct.pack(">IIBBBBB", width_px, height_px, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("A.PNG", {}),
        ("a.jpg", {"quality": 95}),
        ("A.JPEG", {"quality": 95}),
        ("a.webp", {"lossless": True}),
        ("a.bmp", {}),
        ("a.gif", {}),
        ("a.tif", {}),
        ("A.TIFF", {"compression": "tiff_lzw"}),
        ("自作.png", {}),
        ("Кот.png", {}),
        ("🐱 cat.png", {}),
    ],
)
def test_every_usual_kind_is_read(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = tmp_path / name
    corner_picture().save(path, **options)
    picture = open_picture(path)
    assert path.suffix.lower() in PICTURE_SUFFIXES
    assert picture.mode == "RGB"
    assert picture_size(path) == picture.size == (32, 16)
    difference = pixels(picture).astype(int) - pixels(corner_picture())
    # JPEG blurs colours over the edge between the quarters; away from it, it is off by 1 or 2.
    inner = np.abs(difference)[[2, 2, 13, 13], [2, 29, 2, 29]]
    assert inner.max() <= 2
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        assert np.abs(difference).max() == 0


def test_a_compressed_bmp_is_read(tmp_path: Path) -> None:
    """By 600,000 reads of one byte, more than other pictures may take."""
    path = tmp_path / "rle.bmp"
    grey = np.random.default_rng(1).integers(0, 256, (500, 600), np.uint8)
    Image.fromarray(grey).save(path)
    header = bytearray(path.read_bytes()[: 14 + 40 + 256 * 4])
    header[30] = 1  # BI_RLE8 in the BITMAPINFOHEADER: runs, here each of one pixel, from the lowest row up
    rows = [b"".join(b"\x01" + bytes([value]) for value in row) + b"\0\0" for row in grey[::-1].tolist()]
    path.write_bytes(header + b"".join(rows) + b"\0\1")
    assert np.array_equal(pixels(open_picture(path))[..., 0], grey)


def test_avif_is_read_or_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    if "avif" in features.modules and features.check_module("avif"):
        Image.new("RGB", (16, 8), RED).save(path)
        assert open_picture(path).size == (16, 8)
    else:
        path.write_bytes(b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miafMA1B")
        with pytest.raises(DatasetError, match=r"a\.avif.*can't read AVIF.*save it as PNG"):
            open_picture(path)


# What a red left upper quarter becomes, as (rows, columns) of where it is after turning upright:
# EXIF 2.32 names the side on which stored row 0 and stored column 0 belong.
ORIENTATIONS = {
    1: ("top", "left", False),
    2: ("top", "right", False),
    3: ("bottom", "right", False),
    4: ("bottom", "left", False),
    5: ("top", "left", True),
    6: ("top", "right", True),
    7: ("bottom", "right", True),
    8: ("bottom", "left", True),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {}),
        ("a.png", {}),
        ("a.webp", {}),
        ("a.tif", {}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
    ],
)
def test_orientation(tmp_path: Path, name: str, options: dict[str, Any], orientation: int) -> None:
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner_picture().save(path, exif=exif, **options)

    vertical, horizontal, swapped = ORIENTATIONS[orientation]
    width_px, height_px = (16, 32) if swapped else (32, 16)
    assert picture_size(path) == (width_px, height_px)
    picture = open_picture(path)
    assert picture.size == (width_px, height_px)
    x = 3 if horizontal == "left" else width_px - 4
    y = 3 if vertical == "top" else height_px - 4
    red, green, blue = pixels(picture)[y, x]
    assert red > 200
    assert max(green, blue) < 60
    opposite = pixels(picture)[height_px - 1 - y, width_px - 1 - x]
    assert opposite[2] > 200


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    corner_picture().save(path, exif=b"Exif\x00\x00not a TIFF header at all")
    assert picture_size(path) == open_picture(path).size == (32, 16)


def test_transparency_is_flattened_onto_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 51))
    picture.save(path)
    # 51/255 = 0.2 of black over white: 255 * 0.8 = 204.
    assert pixels(open_picture(path))[0].tolist() == [list(WHITE), list(RED), [204, 204, 204]]


def test_grey_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Image.new("LA", (2, 1), (0, 0))
    picture.putpixel((1, 0), (100, 255))
    picture.save(path)
    assert pixels(open_picture(path))[0].tolist() == [list(WHITE), [100, 100, 100]]


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_transparent_palette_entry(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    picture = Image.new("P", (2, 1))
    picture.putpalette([*GREEN, *RED])
    picture.putpixel((1, 0), 1)
    picture.save(path, transparency=0)
    assert pixels(open_picture(path))[0].tolist() == [list(WHITE), list(RED)]


def test_transparent_colour_of_rgb_and_grey_png(tmp_path: Path) -> None:
    colours = Image.new("RGB", (2, 1), GREEN)
    colours.putpixel((1, 0), RED)
    colours.save(tmp_path / "rgb.png", transparency=GREEN)
    assert pixels(open_picture(tmp_path / "rgb.png"))[0].tolist() == [list(WHITE), list(RED)]

    greys = Image.new("L", (2, 1), 7)
    greys.putpixel((1, 0), 9)
    greys.save(tmp_path / "grey.png", transparency=7)
    assert pixels(open_picture(tmp_path / "grey.png"))[0, :, 0].tolist() == [255, 9]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    # 65535 / 257 = 255; 32896 / 257 = 128; 300 / 257 rounds to 1 (clipping would give 255).
    Image.fromarray(np.array([[0, 300, 32896, 65535]], dtype=np.uint16)).save(path)
    assert pixels(open_picture(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_grey_png_with_a_transparent_value(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = b"\x00" + struct.pack(">HH", 300, 32896)
    transparent = png_chunk(b"tRNS", struct.pack(">H", 300))
    path.write_bytes(png_bytes(2, 1, depth=16, colour=0, rows=rows, extra=transparent))
    assert pixels(open_picture(path))[0, :, 0].tolist() == [255, 128]


def test_16_bit_colour_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = b"\x00" + struct.pack(">HHH", 65535, 32896, 0)
    path.write_bytes(png_bytes(1, 1, depth=16, colour=2, rows=rows))
    assert pixels(open_picture(path))[0, 0].tolist() == [255, 128, 0]


def test_float_tiff(tmp_path: Path) -> None:
    unit, bytes_like = tmp_path / "unit.tif", tmp_path / "bytes.tif"
    Image.fromarray(np.array([[-1, 0, 0.5, 1, np.nan]], dtype=np.float32)).save(unit)
    Image.fromarray(np.array([[0, 127, 255]], dtype=np.float32)).save(bytes_like)
    # 0.5 * 255 = 127.5, rounded to even.
    assert pixels(open_picture(unit))[0, :, 0].tolist() == [0, 0, 128, 255, 0]
    assert pixels(open_picture(bytes_like))[0, :, 0].tolist() == [0, 127, 255]


def test_32_bit_tiff(tmp_path: Path) -> None:
    small, large = tmp_path / "small.tif", tmp_path / "large.tif"
    Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.int32)).save(small)
    Image.fromarray(np.array([[0, 2**31 - 1]], dtype=np.int32)).save(large)
    assert pixels(open_picture(small))[0, :, 0].tolist() == [0, 128, 255]
    # Half of 2^32 - 1 is half of 255.
    assert pixels(open_picture(large))[0, :, 0].tolist() == [0, 127]


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    # No ink is white, full magenta and yellow is red.
    picture = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 255, 255, 0), (8, 0, 16, 16))
    picture.save(path, quality=95)
    read = pixels(open_picture(path))
    assert read[8, 2].min() > 245
    assert read[8, 13, 0] > 245
    assert read[8, 13, 1:].max() < 10


def test_one_bit_and_palette(tmp_path: Path) -> None:
    bits = Image.new("1", (2, 1), 0)
    bits.putpixel((1, 0), 1)
    bits.save(tmp_path / "bits.png")
    assert pixels(open_picture(tmp_path / "bits.png"))[0, :, 0].tolist() == [0, 255]

    corner_picture().quantize(2).save(tmp_path / "palette.png")
    assert np.array_equal(pixels(open_picture(tmp_path / "palette.png")), pixels(corner_picture()))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_first_frame_of_several(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    red, _, blue = pixels(open_picture(path))[4, 4]
    assert red > 245
    assert blue < 10


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DatasetError, match=r"cut\.jpg can't be used: it is damaged or cut short"):
        open_picture(path)
    assert picture_size(path) == (64, 64)


def test_other_files_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("1girl, 黒髪", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    # Ghostscript must never be started for something called .png.
    (tmp_path / "postscript.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    (tmp_path / "folder.png").mkdir()
    for name, reason in [
        ("text.png", "it is not a picture"),
        ("empty.png", "the file is empty"),
        ("postscript.png", "it is not a picture"),
        ("missing.png", "the file can't be read"),
        ("folder.png", "the file can't be read"),
    ]:
        for read in (open_picture, picture_size):
            with pytest.raises(DatasetError) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in caught.value.message
            assert reason in caught.value.message


@pytest.mark.parametrize(
    ("width_px", "height_px"),
    # Beyond Pillow's own refusal; just above our limit, where Pillow only warns.
    [(60_000, 60_000), (17_800, 10_001)],
)
def test_decompression_bomb_is_refused_from_its_header(tmp_path: Path, width_px: int, height_px: int) -> None:
    path = tmp_path / "bomb.png"
    # No pixels follow: decoding would fail with another reason.
    path.write_bytes(png_bytes(width_px, height_px, depth=8, colour=2, rows=b""))
    for read in (open_picture, picture_size):
        with pytest.raises(DatasetError, match=f"bomb.*too large.*{LARGEST_MEGAPIXELS} megapixels"):
            read(path)


def test_large_pictures_below_the_limit_give_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_bytes(10_000, 12_000, depth=8, colour=2, rows=b""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture_size(path) == (10_000, 12_000)
    with pytest.raises(DatasetError, match="damaged or cut short"):
        open_picture(path)


def test_picture_without_pixels(tmp_path: Path) -> None:
    path = tmp_path / "nothing.png"
    path.write_bytes(png_bytes(0, 5, depth=8, colour=2, rows=b""))
    with pytest.raises(DatasetError, match=r"nothing\.png can't be used"):
        open_picture(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "lzw.tif", "a.bmp"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    corner_picture().save(path, **({"compression": "tiff_lzw"} if "lzw" in name else {}))
    whole = path.read_bytes()
    refused = 0
    generator = np.random.default_rng(7)
    for _ in range(100):
        damaged = bytearray(whole)
        for position in generator.integers(0, len(whole), 4):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(damaged[: generator.integers(1, len(whole) + 1)])
        for read in (open_picture, picture_size):
            try:
                read(path)
            except DatasetError:
                refused += 1
    assert refused > 20


class TestFitToBucket:
    def test_wide_picture_is_cut_left_and_right(self) -> None:
        # 400x100 over 64x64: 0.64 times, 256x64, so (256 - 64) / 2 = 96 px go on each side.
        picture = Image.new("RGB", (400, 100), BLUE)
        picture.paste(RED, (160, 0, 240, 100))
        fitted = fit_to_bucket(picture, (64, 64))
        assert fitted.shape == (64, 64, 3)
        assert fitted.dtype == np.uint8
        assert fit((400, 100), (64, 64)).crop_left_top == (96, 0)
        # Red was 160-240, so it is 102.4-153.6 in the resized picture, 6.4-57.6 after the cut.
        assert fitted[32, 32].tolist() == list(RED)
        assert fitted[32, 10].tolist() == list(RED)
        assert fitted[32, 2].tolist() == list(BLUE)
        assert fitted[32, 61].tolist() == list(BLUE)

    def test_tall_picture_is_cut_above_and_below(self) -> None:
        fitted = fit_to_bucket(Image.new("RGB", (100, 300)), (128, 64))
        # 1.28 times: 128x384, and (384 - 64) / 2 = 160.
        assert fitted.shape == (64, 128, 3)
        assert fit((100, 300), (128, 64)).crop_left_top == (0, 160)

    def test_picture_of_the_right_size_stays_as_it_is(self) -> None:
        picture = corner_picture((64, 128))
        fitted = fit_to_bucket(picture, (64, 128))
        assert np.array_equal(fitted, pixels(picture))
        assert fit((64, 128), (64, 128)).crop_left_top == (0, 0)

    def test_lanczos(self) -> None:
        # Lanczos rings beside an edge: enlarging 100 | 200 goes below 100, bilinear never does.
        edge = np.full((8, 8, 3), 100, dtype=np.uint8)
        edge[:, 4:] = 200
        fitted = fit_to_bucket(Image.fromarray(edge), (64, 64))
        assert fitted.min() < 100

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (777, 3), (513, 511), (333, 1000)])
    def test_every_shape_covers_the_bucket(self, size: tuple[int, int]) -> None:
        for bucket in [(64, 64), (192, 64), (64, 192)]:
            fitted = fit_to_bucket(Image.new("RGB", size, RED), bucket)
            assert fitted.shape == (bucket[1], bucket[0], 3)
            # Black would be the empty border of a cut that leaves the picture.
            assert fitted.min(axis=(0, 1)).tolist() == list(RED)

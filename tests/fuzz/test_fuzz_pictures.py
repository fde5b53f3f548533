"""Pictures that are damaged, called by another name, or made to do harm, with whichever Pillow is installed."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lora_train.app.thumbnails import Thumbnails
from lora_train.core.errors import DatasetError
from lora_train.data.captions import caption_text
from lora_train.data.facts import picture_facts
from lora_train.data.images import open_alpha, open_picture, picture_size, texts_in_picture, usual_suffix
from lora_train.data.picture_text import prompt_in
from lora_train.data.thumbnails import card_thumbnail

INFOTEXT = "a (cat:1.2), [b|c] <lora:x:1>\nNegative prompt: d\nSteps: 20, Sampler: Euler a, Seed: 1"


def look_at(path: Path) -> None:
    """All that reads pictures. What can be opened is upright 8-bit RGB of the size that its header tells."""
    texts_in_picture(path)
    caption_text(prompt_in(path).encode("utf-8"))
    usual_suffix(path)
    size = picture_size(path)
    picture = open_picture(path)
    assert picture.mode == "RGB"
    assert picture.size == size
    alpha = open_alpha(path)
    assert alpha is None or (alpha.mode == "L" and alpha.size == size)
    smaller = open_picture(path, least_px=(8, 8))
    assert smaller.width <= size[0]


def look_closely(path: Path) -> None:
    look_at(path)
    Image.open(io.BytesIO(Thumbnails().of(path))).load()
    Image.open(io.BytesIO(card_thumbnail(path))).load()
    picture_facts(open_picture(path))


# --- valid ones of every kind ---


def _exif(orientation: int, comment: bytes = b"UNICODE\0" + INFOTEXT.encode("utf-16-be")) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9286] = comment
    return exif.tobytes()


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _noise(mode: str, size: tuple[int, int] = (24, 17)) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode in ("I;16", "I"):
        return Image.fromarray(values[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 200)
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32) / 255)
    return Image.fromarray(values).convert(mode)


def _animated(kind: str, **options: Any) -> bytes:
    frames = [Image.new("RGB", (12, 9), (number * 40, 0, 0)) for number in range(4)]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, loop=0, **options)


def samples() -> dict[str, bytes]:
    """Every kind that is opened, in the modes in which people have it."""
    found: dict[str, bytes] = {}
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        found[f"{mode}.png"] = _saved(_noise(mode), "PNG")
    transparent = _noise("P")
    found["P transparent.png"] = _saved(transparent, "PNG", transparency=3)
    found["P transparent by steps.png"] = _saved(transparent, "PNG", transparency=bytes(range(256)))
    found["RGB transparent.png"] = _saved(_noise("RGB"), "PNG", transparency=(1, 2, 3))
    for mode in ("RGB", "L", "CMYK"):
        found[f"{mode}.jpg"] = _saved(_noise(mode), "JPEG", exif=_exif(6))
    for orientation in range(10):
        found[f"orientation {orientation}.jpg"] = _saved(_noise("RGB"), "JPEG", exif=_exif(orientation))
    found["progressive.jpg"] = _saved(_noise("RGB"), "JPEG", progressive=True)
    for mode in ("RGB", "RGBA"):
        found[f"{mode}.webp"] = _saved(_noise(mode), "WEBP", exif=_exif(8))
        found[f"{mode} lossless.webp"] = _saved(_noise(mode), "WEBP", lossless=True)
    for mode in ("RGB", "L", "P", "1"):
        found[f"{mode}.bmp"] = _saved(_noise(mode), "BMP")
    for mode in ("RGB", "RGBA", "L", "CMYK", "I;16", "I", "F", "P"):
        found[f"{mode}.tif"] = _saved(_noise(mode), "TIFF")
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        found[f"{compression}.tif"] = _saved(_noise("RGB"), "TIFF", compression=compression)
    found["P.gif"] = _saved(_noise("P"), "GIF", transparency=1)
    found["animated.gif"], found["animated.webp"] = _animated("GIF"), _animated("WEBP")
    found["animated.png"] = _animated("PNG")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", INFOTEXT)
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>", zip=True)
    found["with text.png"] = _saved(_noise("RGB"), "PNG", pnginfo=info, exif=_exif(3), icc_profile=bytes(200))
    found["one pixel.png"] = _saved(_noise("RGBA", (1, 1)), "PNG")
    found["a line.png"], found["a column.png"] = (
        _saved(_noise("RGB", size), "PNG") for size in ((3_000, 1), (1, 3_000))
    )
    if "AVIF" in _saving():
        found["RGB.avif"] = _saved(_noise("RGB"), "AVIF", exif=_exif(5))
    return found


def _saving() -> set[str]:
    Image.init()
    return set(Image.SAVE)


SAMPLES = samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_valid_ones_are_all_opened(tmp_path: Path, guard: Any, name: str) -> None:
    path = tmp_path / f"picture.{name.rpartition('.')[2]}"
    path.write_bytes(SAMPLES[name])
    assert not isinstance(guard(look_closely, path), DatasetError)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif", "avif"])
def test_damaged_ones(
    tmp_path: Path,
    guard: Any,
    share: Callable[[int], int],
    damaged: Callable[[bytes, Random], bytes],
    suffix: str,
) -> None:
    chosen = [content for name, content in SAMPLES.items() if name.endswith(suffix)]
    if not chosen:
        pytest.skip("this Pillow has no AVIF")
    random, path = Random(suffix), tmp_path / f"picture.{suffix}"
    for _ in range(share(2_000)):
        content = random.choice(chosen)
        changed = damaged(content, random)
        if suffix == "png" and random.random() < 0.7:
            changed = _with_right_checksums(changed)
        path.write_bytes(changed)
        guard(look_at, path)
    assert 0 < guard.refused < guard.cases


def _with_right_checksums(png: bytes) -> bytes:
    """So that Pillow gets to what is in a damaged chunk."""
    fixed, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + min(length, len(png))]
        fixed += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(fixed) + png[at:]


# --- made to do harm ---


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width_px: int, height_px: int, *more: bytes, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", data or zlib.compress(bytes(1 + 3 * width_px) * min(height_px, 10)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + body + chunk(b"IEND", b"")


def _gif(width_px: int, height_px: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width_px, height_px, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, width_px, height_px, 0)
        + b"\x02\x02L\x01\x00;"
    )


def _tiff(*entries: tuple[int, int, int, int], next_at: int = 0) -> bytes:
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\x00\x08\x00\x00\x00" + directory + struct.pack("<I", next_at)


_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n"
_ZTXT = b"parameters\0\0" + zlib.compress(bytes(300 * 2**20), 9)
_EXIF_LOOP = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
HARMFUL: dict[str, bytes] = {
    "svg.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "html.jpg": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "html behind a gif's mark.gif": b"GIF89a/*<script>*/=1;//<html></html>",
    "postscript.png": _POSTSCRIPT,
    "pdf.webp": b"%PDF-1.7\n1 0 obj\n<</OpenAction<</S/JavaScript>>>>\n",
    "program.png": b"MZ" + bytes(2_000),
    "zip.png": b"PK\x03\x04" + bytes(2_000),
    "nothing.png": b"",
    "one byte.jpg": b"\xff",
    "50,000 x 50,000.png": png(50_000, 50_000),
    "2^31 x 2^31.png": png(2**31 - 1, 2**31 - 1, data=b"x"),
    "0 x 0.png": png(0, 0, data=b"x"),
    "a line of 2^31.png": png(2**31 - 1, 1, data=b"x"),
    "65,535 x 65,535.gif": _gif(65_535, 65_535),
    "0 x 5.gif": _gif(0, 5),
    "60,000 x 60,000.bmp": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHH", 40, 60_000, 60_000, 1, 24)
    + bytes(60),
    "less than nothing.bmp": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHH", 40, -5, -(2**31), 1, 24)
    + bytes(60),
    "2^32 x 2^32.tif": _tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), (258, 3, 1, 8), (262, 3, 1, 1)),
    "a directory of itself.tif": _tiff((256, 4, 1, 5), (257, 4, 1, 5), next_at=8),
    "tags of four gigabytes.tif": _tiff((256, 4, 1, 5), (257, 4, 1, 5), (273, 4, 2**30, 8), (279, 4, 2**30, 8)),
    "no size at all.tif": _tiff((262, 3, 1, 1)),
    "300 MB of text in 300 kB.png": png(4, 4, chunk(b"zTXt", _ZTXT)),
    "many texts.png": png(4, 4, *[chunk(b"tEXt", b"parameters\0" + b"x" * 900_000) for _ in range(90)]),
    "300 MB of profile.png": png(4, 4, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(300 * 2**20), 9))),
    "exif in itself.png": png(4, 4, chunk(b"eXIf", _EXIF_LOOP[6:])),
    "a million frames.png": png(4, 4, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "a frame outside.png": png(
        4,
        4,
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 9_999, 9_999, 0, 0, 1, 1, 0, 0)),
    ),
    "chunks without end.png": png(4, 4, *[chunk(b"tIME", b"")] * 1_000_000),
    "comments of a gif.gif": _gif(4, 4)[:13] + b"!\xfe" + (b"\xff" + bytes(255)) * 100_000 + b"\0" + _gif(4, 4)[13:],
    "many comments of a gif.gif": _gif(4, 4)[:13] + b"!\xfe\x01x\0" * 1_000_000 + _gif(4, 4)[13:],
    "marks without end.jpg": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 2_000_000,
    "parts of one byte.png": png(1_000, 1_000, *[chunk(b"IDAT", b"x")] * 1_000_000),
    "a large one in few bytes.png": png(5_000, 5_000, data=zlib.compress(bytes(5_000 * 5_001), 9), colour=0),
    "comments without end.jpg": b"\xff\xd8" + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 100 + b"\xff\xd9",
    "webp of 16,383.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_ones(tmp_path: Path, guard: Any, name: str) -> None:
    path = tmp_path / f"picture.{name.rpartition('.')[2]}"
    path.write_bytes(HARMFUL[name])
    guard(look_at, path)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.endswith((".jpg", ".png"))][:12])
def test_another_suffix_changes_nothing(tmp_path: Path, guard: Any, name: str) -> None:
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".gif", ".tif"):
        path = tmp_path / f"picture{suffix}"
        path.write_bytes(SAMPLES[name])
        assert not isinstance(guard(look_at, path), DatasetError)


@pytest.mark.parametrize("seed", range(2))
def test_infotexts(guard: Any, tmp_path: Path, share: Callable[[int], int], odd: Any, seed: int) -> None:
    """What programs and people write into pictures, as PNG text and as EXIF comment."""
    random, path = Random(f"infotexts {seed}"), tmp_path / "picture.png"
    image = Image.new("RGB", (2, 2))
    for _ in range(share(1_500)):
        text = "".join(
            random.choices(
                [*"()[]:|\\,<> ", "AND", "BREAK", "Steps: 20,", "\n", "cat", "1.2", "Negative prompt:"], k=40
            )
        )
        text += odd.odd_text(random) if random.random() < 0.3 else ""
        info = PngImagePlugin.PngInfo()
        readable = text.encode("utf-8", "ignore").decode()
        info.add_itxt("parameters", f"{readable}\nSteps: 20, Seed: 1")
        comment = random.choice((b"UNICODE\0", b"ASCII\0\0\0", b"", b"JIS\0\0\0\0\0")) + random.randbytes(20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(path, "PNG", pnginfo=info, exif=_exif(1, comment))
        caption = guard(prompt_in, path)
        assert isinstance(caption, str)
        assert "\n" not in caption
        caption.encode("utf-8")

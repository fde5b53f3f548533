"""Zip archives made to do harm, damaged, or from machines with other rules for names."""

from __future__ import annotations

import io
import os
import stat
import struct
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from lora_train.core.names import fold
from lora_train.data.uploads import keep_uploads


def picture(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 5), (seed % 256, 10, 200)).save(stream, "PNG")
    return stream.getvalue()


def packed(entries: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are there twice
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def entry(name: str, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.flag_bits |= flags
    return info


def told_size(raw: bytes, number: int) -> bytes:
    """With another unpacked size in all its headers."""
    changed = bytearray(raw)
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = -1
        while (at := changed.find(mark, at + 1)) >= 0:
            changed[at + offset : at + offset + 4] = struct.pack("<I", number)
    return bytes(changed)


class Uploads:
    """A version's folder among others; after each upload it is seen that nothing else was written."""

    def __init__(self, root: Path) -> None:
        self.outer = root / "outer"
        self.origin, self.trash = self.outer / "v" / "origin", self.outer / "v" / "trash"
        self.archive = root / "upload.zip"
        self.kept = 0

    def take(self, content: bytes) -> None:
        self.archive.write_bytes(content)
        problems = keep_uploads([("upload.zip", self.archive)], self.origin, self.trash)
        assert all(len(problem) < 1_500 for problem in problems)
        "".join(problems).encode("utf-8")
        kept = [path for path in self.origin.rglob("*") if path.is_file()]
        for path in kept:
            assert not path.is_symlink()
            assert unicodedata.normalize("NFC", path.name) == path.name
            assert not set('<>:"|?*\\') & set(path.name)
        assert len({fold(str(path)) for path in kept}) == len(kept), "two are one file on Windows"
        assert not list(self.origin.glob(".incoming*")), "something was left behind"
        assert {path.name for path in self.outer.iterdir()} == {"v"}
        self.kept += len(kept)
        for path in kept:
            path.unlink()


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


NAMES = (
    *(
        "a.png",
        "b/a.png",
        "A.PNG",
        "a\u0301.png",
        "á.png",
        "mask/a.png",
        "a.txt",
        "b/a.caption",
        "a.png.txt",
        "日本.png",
    ),
    *(
        "../evil.png",
        "a/../../evil.png",
        "/abs.png",
        "\\abs.png",
        "C:\\x.png",
        "c:x.png",
        "..\\..\\x.png",
        "\\\\s\\x.png",
    ),
    *("CON.png", "nul.txt", "aux/a.png", "com1.png", "a .png", "a..png", " .png", "....png", "a\x00.png", "a\n.png"),
    *(
        "a:stream.png",
        "a?.png",
        "a*.png",
        "a|b.png",
        "<a>.png",
        "inner.zip",
        "run.exe",
        "a.svg",
        "__MACOSX/a.png",
        ".a.png",
    ),
    *(
        "x" * 300 + ".png",
        "日" * 100 + ".png",
        "a/" * 200 + "a.png",
        "\u202egnp.exe.png",
        "%2e%2e/a.png",
        "．．/a.png",
        "",
    ),
)


@pytest.mark.parametrize("seed", range(2))
def test_drawn_archives(uploads: Uploads, guard: Any, share: Callable[[int], int], odd: Any, seed: int) -> None:
    random = Random(f"zips {seed}")
    contents = [picture(1), picture(2), b"a, b", "日本".encode("cp932"), b"", b"<svg/>", packed([("a.png", picture())])]
    for _ in range(share(2_500)):
        entries: list[tuple[str | zipfile.ZipInfo, bytes]] = []
        for _ in range(random.randrange(6)):
            name = random.choice(NAMES) if random.random() < 0.7 else odd.odd_text(random) + ".png"
            name = name.encode("utf-8", "ignore").decode()
            mode = random.choice((0, 0, 0, 0, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777))
            entries.append((entry(name, mode), random.choice(contents)))
        guard(
            uploads.take, packed(entries, random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
        )


@pytest.mark.parametrize("seed", range(3))
def test_damaged_archives(
    uploads: Uploads, guard: Any, share: Callable[[int], int], damaged: Callable[[bytes, Random], bytes], seed: int
) -> None:
    random = Random(f"damaged zips {seed}")
    valid = packed([("a.png", picture(1)), ("b/a.txt", b"x, y"), ("日本.png", picture(2)), ("b/", b"")])
    tail = valid.index(b"PK\x01\x02")
    for _ in range(share(2_500)):
        kept = valid[:tail] if random.random() < 0.5 else b""
        guard(uploads.take, kept + damaged(valid[len(kept) :], random))


def test_names_in_other_encodings(uploads: Uploads, guard: Any, share: Callable[[int], int]) -> None:
    random = Random("encodings")
    words = ("日本語", "写真", "图片", "Ünïcode", "файл", "ｶﾒﾗ", "..", "a/b", "\\", "표")
    for _ in range(share(2_000)):
        encoding = random.choice(("utf-8", "cp932", "gb18030", "cp437", "cp1251", "euc-kr", "utf-16", "utf-7"))
        names = ["".join(random.choices(words, k=3)).encode(encoding, "ignore") + b".png" for _ in range(3)]
        names += [random.randbytes(random.randrange(1, 12)) + b".png"]
        raw = _raw([(name, picture(number)) for number, name in enumerate(names)], random.choice((0, 0x800)))
        guard(uploads.take, raw)
    assert uploads.kept > guard.cases / 2, "most were no archives at all"


def _raw(entries: list[tuple[bytes, bytes]], flags: int) -> bytes:
    """Stored entries whose names are these very bytes."""
    local, directory = b"", b""
    for name, content in entries:
        told = struct.pack("<HHHHHIIIHH", 20, flags, 0, 0, 0x21, zlib.crc32(content), *[len(content)] * 2, len(name), 0)
        # The same once more, with the version that made it before and extra, comment, disk, attributes, offset behind.
        directory += b"PK\x01\x02\x14\x00" + told[:26] + struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + name
        local += b"PK\x03\x04" + told + name + content
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(local), 0)
    return local + directory + b"PK\x05\x06" + end


def test_links_devices_and_encrypted_ones_are_refused_as_a_whole(uploads: Uploads, guard: Any) -> None:
    kinds = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    for kind in kinds:
        uploads.archive.write_bytes(packed([("good.png", picture()), (entry("x.png", kind | 0o777), b"/etc/passwd")]))
        problems = keep_uploads([("u.zip", uploads.archive)], uploads.origin, uploads.trash)
        assert "no file" in problems[0]
        assert not list(uploads.origin.iterdir())
    encrypted = bytearray(packed([("good.png", picture())]))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(mark) + at] |= 1
    guard(uploads.take, bytes(encrypted))
    for name in ("../x.png", "/x.png", "C:/x.png", "a/../../x.png"):
        uploads.archive.write_bytes(packed([("good.png", picture()), (name, picture())]))
        assert keep_uploads([("u.zip", uploads.archive)], uploads.origin, uploads.trash)
        assert not list(uploads.origin.iterdir())
    assert not (uploads.outer / "x.png").exists()


def test_bombs(uploads: Uploads, guard: Any) -> None:
    """None fills the disk or takes long: what they tell is believed where it is too much, and else counted."""
    zeros = bytes(16 * 2**20)
    one = packed([("a.png", zeros)])
    many = [("good.png", picture()), *((f"{number}.png", zeros) for number in range(20))]
    for what, content in (
        ("many large ones", packed(many)),
        ("many large ones that tell another size", told_size(packed(many), 100)),
        ("one that tells another size", told_size(one, 100)),
        ("one that tells four gigabytes", told_size(one, 2**32 - 2)),
        ("a zip in a zip", packed([("a.png", one), ("b.zip", one), ("c.txt", one)])),
        ("a huge caption", packed([("a.png", picture()), ("a.txt", zeros)])),
        ("six thousand entries", packed([(f"{number}.txt", b"") for number in range(6_000)])),
        ("a comment of 64 kB", packed([("a.png", picture())])[:-2] + b"\xff\xff" + bytes(65_535)),
        ("a zip at the end of a picture", picture() + packed([("a.png", picture())])),
    ):
        before = _free_bytes(uploads.outer.parent)
        guard(uploads.take, content)
        assert before - _free_bytes(uploads.outer.parent) < 2**30, what


def _free_bytes(folder: Path) -> int:
    return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize

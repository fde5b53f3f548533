"""Zip archives: pictures with the captions of their folders, and nothing that an archive may try."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_train.data import archives
from lora_train.data.uploads import keep_uploads

Keep = Callable[[bytes], list[str]]


def picture(color: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 8), color).save(stream, "PNG")
    return stream.getvalue()


RED, BLUE = picture(), picture((10, 10, 200))


def packed(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return stream.getvalue()


def packed_raw(*entries: tuple[bytes, bytes], extra: bytes = b"", flags: int = 0) -> bytes:
    """Stored entries whose names are these very bytes, without a word on their encoding."""
    local, directory = b"", b""
    for name, content in entries:
        told = struct.pack("<HHHHHIIIHH", 20, flags, 0, 0, 0x21, zlib.crc32(content), *[len(content)] * 2, len(name), 0)
        central = struct.pack(
            "<HHHHHHIIIHHHHHII",
            *(20, 20, flags, 0, 0, 0x21, zlib.crc32(content), len(content), len(content)),
            *(len(name), len(extra), 0, 0, 0, 0, len(local)),
        )
        directory += b"PK\x01\x02" + central + name + extra
        local += b"PK\x03\x04" + told + name + content
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(local), 0)
    return local + directory + b"PK\x05\x06" + end


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "v1" / "dataset" / "origin"


@pytest.fixture
def keep(tmp_path: Path, origin: Path) -> Keep:
    """Uploads an archive, under a name that does not say so."""

    def upload(content: bytes) -> list[str]:
        path = tmp_path / "upload"
        path.write_bytes(content)
        problems = keep_uploads([("x/my set", path)], origin, tmp_path / "trash")
        assert not any(path.name.startswith(".") for path in origin.iterdir()), "what was unpacked is cleared away"
        return problems

    return upload


def kept(origin: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(origin.iterdir())}


def test_pictures_with_the_captions_of_their_folders(keep: Keep, origin: Path) -> None:
    archive = packed(
        ("sub/", b""),
        ("other/x.txt", b"blue"),
        ("sub/x.png", RED),
        ("sub/x.txt", b"red"),
        ("other/x.png", BLUE),
        ("10_cat/猫.png", RED),
        ("__MACOSX/sub/._x.png", b"\x00\x05"),
        ("sub/.DS_Store", b"\x00"),
        ("Thumbs.db", b"\x00"),
    )
    assert keep(archive) == []
    assert kept(origin) == {"x.png": RED, "x.txt": b"red", "x-2.png": BLUE, "x-2.txt": b"blue", "猫.png": RED}
    assert keep(archive) == []
    assert len(kept(origin)) == 5, "the same again adds nothing"


def test_captions_alone_go_to_the_pictures_that_are_there(keep: Keep, origin: Path) -> None:
    keep(packed(("a.png", RED)))
    assert keep(packed(("set/a.txt", b"red"))) == []
    assert kept(origin) == {"a.png": RED, "a.txt": b"red"}


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("自作の猫.png", "cp932"),
        ("表示/ソース.png", "cp932"),  # their second bytes are a backslash
        ("中文图片.png", "gb18030"),
        ("кот.png", "utf-8"),
        ("か\u3099.png", "utf-8"),  # macOS: decomposed, and without the flag
        ("café.png", "cp437"),
    ],
)
def test_names_without_a_word_on_their_encoding(keep: Keep, origin: Path, name: str, encoding: str) -> None:
    import unicodedata

    assert keep(packed_raw((name.encode(encoding), RED), (b"plain.png", BLUE))) == []
    assert set(kept(origin)) == {unicodedata.normalize("NFC", name).rpartition("/")[2], "plain.png"}


def test_the_unicode_name_in_an_extra_field(keep: Keep, origin: Path) -> None:
    content = b"\x01" + struct.pack("<I", zlib.crc32(b"???.png")) + "猫.png".encode()
    assert keep(packed_raw((b"???.png", RED), extra=struct.pack("<HH", 0x7075, len(content)) + content)) == []
    assert set(kept(origin)) == {"猫.png"}


def test_backslashes_of_old_windows_tools(keep: Keep, origin: Path) -> None:
    assert keep(packed_raw((b"sub\\x.png", RED), (b"sub\\x.txt", b"red"), (b"x.txt", b"other"))) == [
        "x.txt is left out: the picture of this name came from another folder."
    ]
    assert kept(origin) == {"x.png": RED, "x.txt": b"red"}


# --- what is refused as a whole ---


def linked(kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("link.png")
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("/etc/a.png", "its entry '/etc/a.png' leads out of it"),
        ("\\\\server\\a.png", "its entry '//server/a.png' leads out of it"),
        ("../a.png", "its entry '../a.png' leads out of it"),
        ("x/..\\../a.png", "leads out of it"),
        ("C:/a.png", "its entry 'C:/a.png' names a drive"),
        ("c:a.png", "its entry 'c:a.png' names a drive"),
        (linked(stat.S_IFLNK), "its entry 'link.png' is a link or a device, no file"),
        (linked(stat.S_IFCHR), "is a link or a device"),
    ],
)
def test_an_entry_that_no_archive_of_pictures_has(
    keep: Keep, origin: Path, entry: str | zipfile.ZipInfo, why: str
) -> None:
    (problem,) = keep(packed(("good.png", RED), (entry, b"/etc/passwd")))
    assert problem.startswith("my set can't be used: ")
    assert why in problem
    assert problem.endswith(" Nothing of it was added.")
    assert kept(origin) == {}
    assert not list(origin.parents[2].rglob("a.png"))


def test_encrypted(keep: Keep, origin: Path) -> None:
    assert keep(packed_raw((b"a.png", RED), flags=1)) == [
        "my set can't be used: it is encrypted. Unpack it, and add the pictures."
    ]
    assert kept(origin) == {}


@pytest.mark.parametrize("cut", [10, 60, 200])
def test_cut_short(keep: Keep, origin: Path, cut: int) -> None:
    (problem,) = keep(packed(("a.png", RED), ("b.png", BLUE))[:-cut])
    assert "my set can't be used: it is damaged or cut short" in problem
    assert kept(origin) == {}


def test_too_many_entries(keep: Keep, origin: Path) -> None:
    assert keep(packed(*((f"{number}.txt", b"") for number in range(5_001)))) == [
        "my set can't be used: it has more than 5000 entries. Nothing of it was added."
    ]
    assert kept(origin) == {}


def test_a_total_that_is_told_is_refused_before_anything_is_unpacked(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST_TOTAL_BYTES", 2**20)
    monkeypatch.setattr(archives, "_unpack_all", None)
    assert keep(packed(("a.png", bytes(2**20)), ("b.png", b"x"))) == [
        "my set can't be used: it is too large: the limit is 0.000976562 GB, unpacked. Nothing of it was added."
    ]


def test_entries_that_share_their_bytes_are_counted_as_they_are_read(
    keep: Keep, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bomb of one block to which many entries of the directory lead, each of which tells a size of nothing."""
    monkeypatch.setattr(archives, "LARGEST_TOTAL_BYTES", 3 * 2**20)
    monkeypatch.setattr(zipfile.ZipInfo, "file_size", property(lambda self: 0, lambda self, size: None), raising=False)
    read = iter([b"x" * 2**20] * 100)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, size: next(read))
    (problem,) = keep(packed_raw(*((b"a.png", RED) for _ in range(10))))
    assert "my set can't be used: it is too large" in problem
    assert kept(origin) == {}
    assert 94 <= len(list(read)) <= 97, "it stopped where the limit is"


# --- what is left out ---


def test_one_entry_that_is_too_large(keep: Keep, origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_ENTRY_BYTES", 2**20)
    archive = packed(("bomb.png", bytes(2**21)), ("a.png", RED))
    assert len(archive) < 5_000, "it is a bomb: 2 MB in 2 kB"
    assert keep(archive) == ["bomb.png in my set can't be used: the limit of one file is 1 MB."]
    assert kept(origin) == {"a.png": RED}


def test_archives_in_archives(keep: Keep, origin: Path) -> None:
    inner = packed(("b.png", BLUE))
    why = "in my set can't be used: an archive in an archive is not opened."
    assert keep(packed(("inner.zip", inner), ("disguised.png", inner), ("a.png", RED))) == [
        f"inner.zip {why}",
        f"disguised.png {why}",
    ]
    assert kept(origin) == {"a.png": RED}


def test_one_damaged_entry(keep: Keep, origin: Path) -> None:
    archive = bytearray(packed_raw((b"a.png", RED), (b"b.png", BLUE)))
    archive[archive.index(RED) + 40] ^= 0xFF
    (problem,) = keep(bytes(archive))
    assert problem.startswith("a.png in my set can't be used: it is damaged (")
    assert kept(origin) == {"b.png": BLUE}


def test_unusual_compression(keep: Keep, origin: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.png", RED)
    assert keep(stream.getvalue()) == [
        "a.png in my set can't be used: it is compressed in an unusual way; pack it in the usual one (Deflate)."
    ]
    assert kept(origin) == {}


def test_many_other_files_are_told_in_few_sentences(keep: Keep, origin: Path) -> None:
    problems = keep(packed(*((f"{number}.md", b"") for number in range(100)), ("a.png", b"text")))
    assert len(problems) == 12
    assert problems[0] == "0.md in my set can't be used: it is neither a picture nor a caption."
    assert problems[10] == "90 more files in my set can't be used."
    assert problems[11].startswith("a.png can't be used: it is not a picture")


def test_nothing_in_it(keep: Keep) -> None:
    assert keep(packed((".hidden", b""))) == ["There is neither a picture nor a caption in my set."]
    assert keep(packed()) == ["There is neither a picture nor a caption in my set."]

"""Uploads of any name and content: what can be used is kept once, the rest is told in a sentence."""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import pytest
from PIL import Image

from lora_train.core.errors import DatasetError, WorkspaceError
from lora_train.core.progress import StopAskedForError, telling
from lora_train.data.uploads import keep_uploads

Keep = Callable[..., list[str]]


def picture(color: tuple[int, int, int] = (200, 10, 10), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 8), color).save(stream, kind)
    return stream.getvalue()


RED, BLUE = picture(), picture((10, 10, 200))


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "v1" / "dataset" / "origin"


@pytest.fixture
def keep(tmp_path: Path, origin: Path) -> Keep:
    """`keep((name, content), ...)` uploads several files at once."""

    def upload(*files: tuple[str, bytes]) -> list[str]:
        told: list[tuple[str, Path]] = []
        for number, (name, content) in enumerate(files):
            path = tmp_path / f"upload-{number}"
            path.write_bytes(content)
            told.append((name, path))
        return keep_uploads(told, origin, tmp_path / "trash")

    return upload


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_stopped_before_anything_is_kept(tmp_path: Path, origin: Path, keep: Keep) -> None:
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise StopAskedForError

    assert keep(("a.png", RED)) == []
    with telling(stop), pytest.raises(DatasetError, match="Stopped: nothing was added"):
        keep(("b.png", BLUE), ("b.txt", b"blue"), ("c.png", picture((0, 9, 0))))
    assert told == [(0, 3), (1, 3), (2, 3)]
    assert names(origin) == ["a.png"]


def test_others_wait_only_while_places_are_given(tmp_path: Path, origin: Path) -> None:
    """Copying, unpacking and looking are done before; whoever enters finds nothing new in the folder yet."""
    told: list[tuple[str, Path]] = []
    for name, content in (("a.png", RED), ("b.png", BLUE), ("c.png", b"none"), ("a.txt", b"a cat")):
        path = tmp_path / f"upload-{len(told)}"
        path.write_bytes(content)
        told.append((name, path))
    found: list[list[str]] = []

    @contextmanager
    def receiving() -> Generator[None, None, None]:
        found.append([path.name for path in origin.iterdir() if path.is_file()])
        (incoming,) = (path for path in origin.iterdir() if path.is_dir())
        found.append(names(incoming))
        yield

    problems = keep_uploads(told, origin, tmp_path / "trash", receiving())
    assert found == [[], ["picture-0", "picture-1"]]
    assert (names(origin), len(problems)) == (["a.png", "a.txt", "b.png"], 1)

    @contextmanager
    def refusing() -> Generator[None, None, None]:
        raise WorkspaceError("It is gone.")
        yield

    other = tmp_path / "v2" / "dataset" / "origin"
    with pytest.raises(WorkspaceError, match="gone"):
        keep_uploads(told, other, tmp_path / "trash", refusing())
    assert names(other) == []


# --- the same again ---


def test_untouched(keep: Keep, origin: Path) -> None:
    assert keep(("猫.PNG", RED), ("b.jpeg", picture(kind="JPEG")), ("猫.txt", b"a cat")) == []
    assert names(origin) == ["b.jpeg", "猫.PNG", "猫.txt"]
    assert (origin / "猫.PNG").read_bytes() == RED


def test_the_same_picture_is_kept_once(keep: Keep, origin: Path) -> None:
    assert keep(("a.png", RED), ("a.png", RED)) == []
    assert keep(("a.png", RED)) == []
    assert names(origin) == ["a.png"]


def test_another_picture_of_the_same_name_gets_a_number_and_its_caption_follows(keep: Keep, origin: Path) -> None:
    keep(("a.png", RED), ("a.txt", b"red"))
    assert keep(("a.txt", b"blue"), ("a.png", BLUE)) == [], "whatever comes first"
    assert names(origin) == ["a-2.png", "a-2.txt", "a.png", "a.txt"]
    assert (origin / "a.txt").read_bytes() == b"red"
    assert (origin / "a-2.txt").read_bytes() == b"blue"
    keep(("a.jpg", picture(kind="JPEG")))
    keep(("A.png", BLUE), ("A.txt", b"blue again"))
    assert names(origin) == ["a-2.png", "a-2.txt", "a-3.jpg", "a.png", "a.txt"], "one caption file for each stem"
    assert (origin / "a-2.txt").read_bytes() == b"blue again"


def test_pictures_of_equal_size_and_moment_are_told_apart(keep: Keep, origin: Path) -> None:
    many = [picture((number, 0, 0), "BMP") for number in range(40)]
    assert len({len(content) for content in many}) == 1
    keep(*[("a.bmp", content) for content in many])
    assert {path.read_bytes() for path in origin.iterdir()} == set(many)


def test_sub_folders_of_an_upload(keep: Keep, origin: Path) -> None:
    keep(("x/a.png", RED), ("y\\a.png", BLUE), ("x/a.txt", b"red"), ("y\\a.txt", b"blue"))
    assert (origin / "a.txt").read_bytes() == b"red"
    assert (origin / "a-2.txt").read_bytes() == b"blue"


def test_captions_that_come_later(keep: Keep, origin: Path, tmp_path: Path) -> None:
    keep(("a.png", RED))
    assert keep(("a.caption", b"first")) == []
    assert keep(("a.caption", b"first")) == []
    assert not (tmp_path / "trash").exists(), "nothing has changed"
    assert keep(("a.txt", b"second")) == []
    assert names(origin) == ["a.png", "a.txt"]
    assert [path.read_bytes() for path in (tmp_path / "trash").iterdir()] == [b"first"]


def test_captions_that_come_before_their_picture(keep: Keep, origin: Path) -> None:
    assert keep(("v1.5 a.txt", b"first")) == []
    assert keep(("v1.5 a.png", RED)) == []
    assert names(origin) == ["v1.5 a.png", "v1.5 a.txt"]


# --- folders ---


def test_a_folder_gives_its_pictures_and_those_of_its_sub_folders(origin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    contents = {
        "a.png": RED,
        "a.txt": b"red",
        "10_cat/a.png": BLUE,
        "10_cat/a.caption": b"blue",
        "10_cat/deeper/猫.JPG": picture(kind="JPEG"),
        "10_cat/notes.md": b"passed over",
        ".git/b.png": RED,
        ".c.png": RED,
        "__MACOSX/a.png": RED,
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert keep_uploads([("set", folder)], origin, tmp_path / "trash") == []
    assert names(origin) == ["a-2.caption", "a-2.png", "a.png", "a.txt", "猫.JPG"]
    kept = {path.name: path.read_bytes() for path in origin.iterdir()}
    assert (kept["a.png"], kept["a.txt"], kept["a-2.png"], kept["a-2.caption"]) == (RED, b"red", BLUE, b"blue")
    assert (folder / "a.png").read_bytes() == RED
    assert keep_uploads([("set", folder)], origin, tmp_path / "trash") == [], "the same again adds nothing"
    assert names(origin) == ["a-2.caption", "a-2.png", "a.png", "a.txt", "猫.JPG"]


def test_a_caption_goes_to_no_picture_of_another_folder(keep: Keep, origin: Path) -> None:
    (problem,) = keep(("x/a.png", RED), ("y/a.txt", b"of another"))
    assert problem == "a.txt is left out: the picture of this name came from another folder."
    assert names(origin) == ["a.png"]


def test_a_caption_that_comes_later_finds_its_picture(keep: Keep, origin: Path) -> None:
    """Its name may be written in other letter cases, or in the form in which macOS writes it."""
    assert keep(("A.PNG", RED), ("é.png", BLUE)) == []
    assert keep(("a.txt", b"red"), ("e\u0301.TXT", b"blue")) == []
    assert names(origin) == ["A.PNG", "A.txt", "é.png", "é.txt"]
    assert keep(("nobody's.txt", b"waits for its picture")) == []
    assert "nobody's.txt" in names(origin)


def test_folders_that_can_not_be_taken(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "large").mkdir()
    for number in range(3):
        (tmp_path / "large" / f"{number}.png").write_bytes(RED)
    monkeypatch.setattr("lora_train.data.uploads.MOST_FILES", 2)
    told = [("", tmp_path), ("empty", tmp_path / "empty"), ("large", tmp_path / "large")]
    assert keep_uploads(told, origin, tmp_path / "trash") == [
        f"{tmp_path} can't be added: this dataset itself lies in it. Choose another folder.",
        "There is neither a picture nor a caption in empty.",
        "large can't be added: it has more than 2 files. Choose the folder of the pictures.",
    ]
    assert names(origin) == []


# --- names ---


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("../../evil.png", "evil.png"),
        ("..\\..\\evil.png", "evil.png"),
        ("/etc/passwd.png", "passwd.png"),
        ("C:\\x\\y.png", "y.png"),
        ('a<b>:"|?*.png', "a_b______.png"),
        ("a\x00b.png", "a_b.png"),
        ("a\nb.png", "a_b.png"),
        ("CON.png", "CON_.png"),
        ("con.tar.png", "con_.tar.png"),
        ("nul .png", "nul_.png"),
        (".png", "picture.png"),
        ("  .png", "picture.png"),
        ("...png", "picture.png"),
        ("..", "picture.png"),
        ("", "picture.png"),
        ("a . .png", "a.png"),
        ("no suffix", "no suffix.png"),
        ("photo.heic.верблюд", "photo.heic.верблюд.png"),
        ("か\u3099.png", "が.png"),
        ("\ud800cat.png", "cat.png"),
        ("🐈.png", "🐈.png"),
        ("x" * 300 + ".png", "x" * 180 + ".png"),
        ("猫" * 300 + ".png", "猫" * 60 + ".png"),
        ("a." + "x" * 300, "a." + "x" * 178 + ".png"),
    ],
)
def test_every_name_becomes_one_that_every_system_allows(keep: Keep, origin: Path, told: str, kept: str) -> None:
    assert keep((told, RED)) == []
    assert names(origin) == [kept]
    assert names(origin.parent) == ["origin"]
    assert PureWindowsPath(kept).name == kept
    assert len(f"{kept}-2-flip.txt".encode()) <= 255
    assert unicodedata.is_normalized("NFC", kept)


def test_emoji_that_an_upload_lost(keep: Keep, origin: Path) -> None:
    """Some gradio versions drop what is not ASCII: three pictures then come under one name."""
    assert keep((".png", RED), (".png", BLUE), (".png", picture((0, 0, 0)))) == []
    assert names(origin) == ["picture-2.png", "picture-3.png", "picture.png"]


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("GIF", ".gif")])
def test_a_name_without_suffix_gets_that_of_its_content(keep: Keep, origin: Path, kind: str, suffix: str) -> None:
    keep(("photo", picture(kind=kind)))
    assert names(origin) == [f"photo{suffix}"]


# --- contents ---


def header_of_a_huge_png() -> bytes:
    """30 000 x 30 000 pixels, and no data."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.png", b"I am a text.", "a.png can't be used: it is not a picture of a kind that can be read"),
        ("a.png", b"", "a.png can't be used: the file is empty"),
        ("a.png", header_of_a_huge_png(), "a.png can't be used: it is too large: the limit is 120 megapixels"),
        ("a.png", RED[:20], "a.png can't be used: it is"),
        ("a.pdf", b"%PDF-1.4", "a.pdf is neither a picture (.avif, .bmp,"),
        ("a.pdf", b"", "a.pdf is neither a picture"),
        ("a", b"a text", "a is neither a picture"),
        ("a.zip", b"PK\x03\x04", "a.zip can't be used: it is damaged or cut short"),
        ("a.zip", b"no zip", "a.zip is neither a picture (.avif, .bmp,"),
        ("a.txt", b"x" * (2**20 + 1), "a.txt is no caption: the limit is 1 MB."),
    ],
    ids=["text", "empty", "huge", "cut header", "pdf", "empty pdf", "no suffix", "cut zip", "no zip", "book"],
)
def test_what_is_no_picture_is_told_and_left_out(keep: Keep, origin: Path, name: str, content: bytes, why: str) -> None:
    problems = keep(("good.png", RED), (name, content), ("better.png", BLUE))
    assert len(problems) == 1
    assert why in problems[0]
    assert str(origin) not in problems[0], "the person gave a name, no path"
    assert names(origin) == ["better.png", "good.png"]


def test_a_picture_that_is_cut_short_behind_its_header_is_kept(keep: Keep, origin: Path) -> None:
    """An upload looks at headers alone; *Update Dataset* decodes."""
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "JPEG")
    assert keep(("a.jpg", stream.getvalue()[:-500])) == []
    assert names(origin) == ["a.jpg"]


def test_files_that_are_gone(keep: Keep, origin: Path, tmp_path: Path) -> None:
    told = [("a.png", tmp_path / "gone"), ("b.txt", tmp_path / "gone")]
    problems = keep_uploads(told, origin, tmp_path / "trash")
    assert [problem.split(" (")[0] for problem in problems] == [f"{name} can't be kept" for name in ("a.png", "b.txt")]
    assert names(origin) == []


def test_a_folder_that_cannot_be_written(keep: Keep, origin: Path) -> None:
    origin.parent.mkdir(parents=True)
    origin.write_bytes(b"a file where the folder should be")
    with pytest.raises(DatasetError, match="can't be written") as error:
        keep(("a.png", RED))
    assert str(origin) in error.value.message
    assert "disk" in error.value.hint


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(keep: Keep, origin: Path) -> None:
    origin.mkdir(parents=True)
    origin.chmod(0o500)
    try:
        with pytest.raises(DatasetError, match="can't be written"):
            keep(("a.png", RED))
    finally:
        origin.chmod(0o700)

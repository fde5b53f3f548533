"""Captions as they are written beside their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_train.core.errors import DatasetError
from lora_train.core.progress import StopAskedForError, telling
from lora_train.core.trash import Trash
from lora_train.data import caption_files
from lora_train.data.caption_files import write_captions
from lora_train.data.captions import read_caption

UNDO = "Undo takes back those that were written."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "processed"
    for file in ("4_猫/a.png", "4_猫/b.v2.png", "5_dog/a.png"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"a picture")
    return root


@pytest.fixture
def trash(tmp_path: Path) -> Trash:
    return Trash(tmp_path / "trash", tmp_path)


def test_each_goes_beside_its_picture(root: Path, trash: Trash) -> None:
    write_captions(root, {"4_猫/a.png": "白い猫", "4_猫/b.v2.png": "", "5_dog/a.png": "x"}, trash, UNDO)
    assert (root / "4_猫" / "a.txt").read_bytes() == "白い猫".encode()
    assert (root / "4_猫" / "b.v2.txt").read_bytes() == b""
    assert read_caption(root / "5_dog" / "a.png") == "x"
    write_captions(root, {}, trash, UNDO)


@pytest.mark.parametrize(
    "content", [b"\x00a\x00,\x00 \x00b", "白い猫, 黒髪".encode("cp932"), b"\xef\xbb\xbfa", b"a\x00b"]
)
@pytest.mark.parametrize("name", ["a.caption", "a.TXT", "a.txt", "a.Caption"])
def test_old_files_of_any_kind_give_way(root: Path, trash: Trash, tmp_path: Path, name: str, content: bytes) -> None:
    (root / "4_猫" / name).write_bytes(content)
    write_captions(root, {"4_猫/a.png": "新しい"}, trash, UNDO)
    assert read_caption(root / "4_猫" / "a.png") == "新しい"
    assert [path.name for path in (root / "4_猫").iterdir() if path.suffix != ".png"] == ["a.txt"]
    if name != "a.txt":
        (kept,) = (tmp_path / "trash").glob(f"*/{name}")
        assert kept.read_bytes() == content


def test_a_composed_and_a_decomposed_name_are_one(root: Path, trash: Trash) -> None:
    (root / "5_dog" / "é.png").write_bytes(b"a picture")
    (root / "5_dog" / "e\u0301.txt").write_text("old", encoding="utf-8")
    write_captions(root, {"5_dog/é.png": "new"}, trash, UNDO)
    assert read_caption(root / "5_dog" / "é.png") == "new"
    assert len([path for path in (root / "5_dog").iterdir() if path.suffix == ".txt"]) == 1


def test_a_full_disk_is_told(root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "4_猫" / "a.caption").write_text("old", encoding="utf-8")
    written: list[Path] = []
    write = caption_files.write_text

    def full(path: Path, text: str) -> None:
        if path.parent.name == "4_猫":
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, text)

    monkeypatch.setattr(caption_files, "write_text", full)
    with pytest.raises(DatasetError, match=r"1 of 2 captions could not be written\. .*No space left") as told:
        write_captions(root, {"4_猫/a.png": "new", "5_dog/a.png": "new"}, trash, UNDO)
    assert "Undo" in told.value.hint
    assert len(written) == 1
    assert read_caption(root / "4_猫" / "a.png") == "old", "what was not replaced is not put away"


def test_stopped_in_between(root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is whole, the rest as it was; and old files give way only to what was written."""
    monkeypatch.setattr(caption_files, "_TOLD_AFTER", 1)
    (root / "5_dog" / "a.caption").write_text("old", encoding="utf-8")
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise StopAskedForError

    new = dict.fromkeys(["4_猫/a.png", "4_猫/b.v2.png", "5_dog/a.png"], "new")
    with telling(stop), pytest.raises(DatasetError, match="Stopped: 2 of 3 captions were written") as refused:
        write_captions(root, new, trash, UNDO)
    assert refused.value.hint == UNDO
    assert told == [(1, 3), (2, 3)]
    assert [read_caption(root / file) for file in new] == ["new", "new", "old"]


def test_stopped_at_the_end_is_done(root: Path, trash: Trash) -> None:
    def stop(done: int, total: int) -> None:
        raise StopAskedForError

    with telling(stop):
        write_captions(root, {"5_dog/a.png": "new"}, trash, UNDO)
    assert read_caption(root / "5_dog" / "a.png") == "new"


def test_a_folder_that_is_gone_is_told(root: Path, trash: Trash) -> None:
    with pytest.raises(DatasetError, match="no caption was written"):
        write_captions(root, {"4_猫/a.png": "x", "6_bird/a.png": "x"}, trash, UNDO)
    assert read_caption(root / "4_猫" / "a.png") == ""

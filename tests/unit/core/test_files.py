"""Files are written whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lora_train.core.files import replace, write_bytes, write_text


def test_written_with_the_folders_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "日本語" / "кот" / "a.json"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [own.name for own in path.parent.iterdir()] == ["a.json"]


def test_text_is_utf_8_with_line_feeds(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "猫\nкот\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "猫\nкот\r\n".encode()


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert [(own.name, own.read_bytes()) for own in tmp_path.iterdir()] == [("a.json", b"old")]


def test_flushed_to_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut could leave an empty file under the right name."""
    seen: list[tuple[bytes, bool]] = []
    real_fsync = os.fsync

    def fsync(number: int) -> None:
        (temporary,) = tmp_path.iterdir()
        seen.append((temporary.read_bytes(), (tmp_path / "a").exists()))
        real_fsync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(tmp_path / "a", b"content")
    assert seen == [(b"content", False)]


class Locked:
    """A file that something else holds for the first `times` attempts, as virus scanners do on Windows."""

    def __init__(self, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempts = 0
        real = Path.replace

        def held(source: Path, target: Path) -> Path:
            self.attempts += 1
            if self.attempts <= times:
                raise PermissionError(13, "Access is denied")
            return real(source, target)

        monkeypatch.setattr(Path, "replace", held)
        monkeypatch.setattr(time, "sleep", lambda _: None)


def test_patient_with_a_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    locked = Locked(3, monkeypatch)
    replace(tmp_path / "a", tmp_path / "b")
    assert locked.attempts == 4
    assert (tmp_path / "b").read_bytes() == b"x"


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").write_bytes(b"old")
    locked = Locked(1000, monkeypatch)
    with pytest.raises(PermissionError):
        write_bytes(tmp_path / "b", b"new")
    assert 10 < locked.attempts < 100
    assert [own.name for own in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"old"

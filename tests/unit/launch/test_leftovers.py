"""What dead processes left is removed; what living ones write is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lora_train.core.files import temporary_beside, temporary_folder, this_machine, write_bytes
from lora_train.launch.leftovers import remove_leftovers


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def _named(name: str, pid: int, machine: str = "") -> str:
    return f"{name}.train-tools-{machine or this_machine()}-{pid}-1.tmp"


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path) -> None:
    dead, living = _dead_pid(), os.getpid()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / _named("a.json", dead)).touch()
    (tmp_path / _named("b", dead)).mkdir()
    (tmp_path / _named("b", dead) / "picture").touch()
    kept = [_named("c.txt", living), "somebody's.tmp", f"photos.{dead}-12.tmp", f"{_named('d', dead)}.png", "e.png"]
    kept.append(_named("f.json", dead, machine="0a0a0a"))
    for name in kept:
        (tmp_path / name).touch()
    with temporary_folder(tmp_path / "f") as own:
        remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "deep", own.name])
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_number_that_another_process_has_by_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container every start has the same. A copy has the old times of what it is a copy of, and is at work yet."""
    left = temporary_beside(tmp_path / "a.json")
    left.touch()
    long_ago = time.time() - 10 * 86400
    os.utime(left, (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert left.exists()
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() + 60)
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_another_machine_is_given_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / _named("a.json", _dead_pid(), machine="0a0a0a")
    left.touch()
    remove_leftovers(tmp_path)
    assert left.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 90_000)
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_of_a_folder_that_is_not_ours_its_own_files_alone(tmp_path: Path) -> None:
    dead = _dead_pid()
    (tmp_path / "deep").mkdir()
    for place in (_named("a.safetensors", dead), f"deep/{_named('b.safetensors', dead)}"):
        (tmp_path / place).touch()
    (tmp_path / _named("c", dead)).mkdir()
    remove_leftovers(tmp_path, is_ours=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([_named("c", dead), "deep"])
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_long_names_keep_room_for_the_mark(tmp_path: Path) -> None:
    wanted = tmp_path / ("猫" * 84 + ".png")  # 256 bytes are one too many, 255 is what a name may have
    wanted = wanted.with_name(wanted.name[1:])
    write_bytes(wanted, b"content")
    assert wanted.read_bytes() == b"content"

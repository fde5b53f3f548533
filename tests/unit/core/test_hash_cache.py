"""A file that nobody touched is hashed once; whatever is wrong with the cache, the hash is right."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_train.core.hash_cache import FILE_NAME, HashCache
from lora_train.core.tensorfiles import file_sha256

LONG_AGO_NS = 1_700_000_000_000_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "模型.safetensors"
    path.write_bytes(b"weights")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


class Counted:
    """SHA-256 of a file, counting how often it was worked out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        return file_sha256(self.path)


def test_a_file_that_was_not_touched_is_read_once(tmp_path: Path, model: Path) -> None:
    place, work_out = tmp_path / "cache" / FILE_NAME, Counted(model)
    first = HashCache(place).get(model, "sha256", work_out)
    assert HashCache(place).get(model, "sha256", work_out) == first == file_sha256(model)
    assert work_out.count == 1
    assert HashCache(place).get(model, "other", lambda: "another hash") == "another hash"
    assert HashCache(place).get(model, "sha256", work_out) == first
    assert work_out.count == 1, "hashes of the same file stand side by side"


def other_size(path: Path) -> None:
    path.write_bytes(b"other weights")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def other_time(path: Path) -> None:
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS + 1))


@pytest.mark.parametrize("touch", [other_size, other_time])
def test_a_file_that_was_touched_is_read_again(tmp_path: Path, model: Path, touch: Callable[[Path], None]) -> None:
    place, work_out = tmp_path / FILE_NAME, Counted(model)
    before = HashCache(place).get(model, "sha256", work_out)
    HashCache(place).get(model, "other", lambda: "of the file as it was")
    touch(model)
    assert HashCache(place).get(model, "sha256", work_out) == file_sha256(model) != before
    assert HashCache(place).get(model, "other", lambda: "of the file as it is") == "of the file as it is"


def test_what_changed_just_now_is_not_trusted(tmp_path: Path, model: Path) -> None:
    place, work_out = tmp_path / FILE_NAME, Counted(model)
    os.utime(model)
    HashCache(place).get(model, "sha256", work_out)
    HashCache(place).get(model, "sha256", work_out)
    assert work_out.count == 2
    assert not place.exists()


def test_what_changes_while_it_is_read_is_not_remembered(tmp_path: Path, model: Path) -> None:
    place = tmp_path / FILE_NAME

    def work_out() -> str:
        other_size(model)
        return "of something in between"

    HashCache(place).get(model, "sha256", work_out)
    assert not place.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe\x00"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, model: Path, content: bytes) -> None:
    place, work_out = tmp_path / FILE_NAME, Counted(model)
    place.write_bytes(content)
    for _ in range(2):
        assert HashCache(place).get(model, "sha256", work_out) == file_sha256(model)
    assert work_out.count == 1


def test_without_a_place_or_where_it_cannot_be_written_hashes_are_worked_out(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (None, tmp_path / "file" / FILE_NAME):
        work_out = Counted(model)
        for _ in range(2):
            assert HashCache(place).get(model, "sha256", work_out) == file_sha256(model)
        assert work_out.count == 2


def test_a_missing_file_is_the_callers_matter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HashCache(tmp_path / FILE_NAME).get(tmp_path / "missing", "sha256", lambda: "")


def test_old_files_are_forgotten_first_and_threads_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_train.core.hash_cache._MOST_FILES", 3)
    place = tmp_path / FILE_NAME
    cache, files = HashCache(place), [tmp_path / f"{index}.bin" for index in range(4)]
    for file in files:
        file.write_bytes(b"x")
        os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))

    def remember(file: Path) -> None:
        cache.get(file, "sha256", lambda: file.name)

    remember(files[0])
    threads = [threading.Thread(target=remember, args=(file,)) for file in files[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for file in files[1:]:
        assert HashCache(place).get(file, "sha256", lambda: "worked out again") == file.name
    assert HashCache(place).get(files[0], "sha256", lambda: "worked out again") == "worked out again"

"""Records that several read at once, that people edit, and that newer releases know more of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import msgspec
import pytest

from lora_train.core.caches import read_cache, write_cache
from lora_train.core.records import damage_of, read_json, write_json

READERS = 8


class Record(msgspec.Struct):
    number: int = 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.json"


@pytest.mark.parametrize("has_before", [True, False])
def test_a_damaged_record_is_rescued_once_for_all_who_read_it(path: Path, has_before: bool) -> None:
    for _ in range(20):
        for number in (1, 2) if has_before else (2,):
            write_json(path, Record(number), keeps_before=True)
        damaged = path.read_bytes()[:-5]
        path.write_bytes(damaged)
        together = Barrier(READERS)

        def read(together: Barrier = together) -> int:
            together.wait()
            return read_json(path, Record, Record(-1)).number

        with ThreadPoolExecutor(READERS) as pool:
            found = {reading.result() for reading in [pool.submit(read) for _ in range(READERS)]}
        assert found == ({1} if has_before else {-1})
        assert path.with_name("record.json.damaged").read_bytes() == damaged
        assert path.exists() == has_before
        for file in path.parent.iterdir():
            file.unlink()


def test_a_deleted_record_is_what_it_was_before(path: Path) -> None:
    assert read_json(path, Record, Record(-1)).number == -1
    for number in (1, 2):
        write_json(path, Record(number), keeps_before=True)
    path.unlink()
    assert read_json(path, Record, Record(-1)).number == 1
    write_json(path, Record(3), keeps_before=True)
    assert read_json(path, Record, Record(-1)).number == 3


def _fields(path: Path) -> dict[str, object]:
    return msgspec.json.decode(path.read_bytes())


def test_what_a_newer_release_knows_stays_when_a_person_edited_the_file(path: Path) -> None:
    write_json(path, Record(1))
    path.write_bytes(path.read_bytes().replace(b'"number": 1', b'"number": 3,\n  "newer": "kept"'))
    assert damage_of(path) == "changed"
    write_json(path, Record(2))
    assert {name: value for name, value in _fields(path).items() if name != "check"} == {"number": 2, "newer": "kept"}
    assert damage_of(path) == ""


def test_a_check_that_was_sorted_to_another_place_is_none(path: Path) -> None:
    write_json(path, Record(1))
    path.write_bytes(msgspec.json.encode(dict(sorted(_fields(path).items()))))
    assert read_json(path, Record, Record()) == Record(1)
    write_json(path, Record(2))
    assert path.read_bytes().count(b'"check"') == 1
    assert read_json(path, Record, Record()) == Record(2)


def test_a_cache_does_not_bring_back_a_folder_that_was_deleted(tmp_path: Path) -> None:
    write_cache(tmp_path / "gone" / "cache.json", [1])
    assert list(tmp_path.iterdir()) == []
    write_cache(tmp_path / "cache.json", [1])
    assert read_cache(tmp_path / "cache.json", list[int]) == [1]

"""What was kept comes back bit for bit or not at all, and nothing that goes wrong with a cache stops a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_train.engine.devices import Device
from lora_train.engine.disk_cache import DiskCache, Tensors, circumstances

pytestmark = pytest.mark.compat


def tensors(seed: int = 0, count: int = 6) -> Tensors:
    numbers = torch.Generator().manual_seed(seed)
    return {
        "whole": torch.randn(2, count, generator=numbers),
        "half": torch.randn(count, generator=numbers).to(torch.bfloat16),
        "rows": torch.tensor([1, 5]),
        "none": torch.tensor([], dtype=torch.int64),
        "scalar": torch.tensor(torch.pi),
    }


def equal(first: Tensors | None, second: Tensors) -> bool:
    return first is not None and all(
        first[name].dtype == tensor.dtype and torch.equal(first[name], tensor) for name, tensor in second.items()
    )


def cache_at(folder: Path | None, *constants: str, told: list[str] | None = None, most_bytes: int = 10**9) -> DiskCache:
    return DiskCache(folder, constants, (told if told is not None else []).append, most_bytes)


def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = cache_at(tmp_path / "cache", "a"), cache_at(tmp_path / "cache", "a")
    key = first.key("picture", "flips")
    assert first.find(key) is None
    first.keep(key, {**tensors(), "strided": torch.arange(6).reshape(2, 3).t()})
    found = second.find(second.key("picture", "flips"))
    assert equal(found, {**tensors(), "strided": torch.tensor([[0, 3], [1, 4], [2, 5]])})
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{key}.safetensors"]


def test_everything_that_counts_is_in_the_key(tmp_path: Path) -> None:
    keys = [
        cache_at(tmp_path, *constants).key(*parts)
        for constants in [("a",), ("b",), ("a", "b")]
        for parts in [("x",), ("x", "y"), ("xy",), ("b", "x")]
    ]
    assert len(set(keys)) == len(keys)


def test_circumstances_tell_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    one, two = circumstances(Device(cpu, "CPU, 1 thread")), circumstances(Device(cpu, "CPU, 2 threads"))
    assert one != two, "the number of threads decides in which order sums are added up"
    assert any(part.startswith("torch 2") for part in one)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert circumstances(Device(cpu, "CPU, 1 thread")) != one


def test_get_makes_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Tensors:
        made.append(1)
        return tensors()

    for _ in range(2):
        assert equal(cache_at(tmp_path).get(make, "x"), tensors())
    assert made == [1]
    assert equal(cache_at(tmp_path).get(lambda: tensors(1), "y"), tensors(1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def zeros_at_the_end(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-64] + bytes(64))


def of_another_key(path: Path) -> None:
    other = cache_at(path.parent)
    other.keep(other.key("other"), tensors(1))
    (path.parent / f"{other.key('other')}.safetensors").replace(path)


def of_another_program(path: Path) -> None:
    import safetensors.torch

    path.write_bytes(safetensors.torch.save(tensors()))


def text(path: Path) -> None:
    path.write_text("not tensors at all, but long enough to look like a header", encoding="utf-8")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [cut, cut_in_header, empty, flipped_bit, zeros_at_the_end, of_another_key, of_another_program, text, folder],
)
def test_damaged_and_foreign_files_are_made_anew(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    told: list[str] = []
    cache = cache_at(tmp_path, told=told)
    key = cache.key("x")
    cache.keep(key, tensors())
    path = tmp_path / f"{key}.safetensors"
    spoil(path)
    assert cache.find(key) is None
    assert equal(cache.get(tensors, "x"), tensors())
    if spoil is not folder:
        assert equal(cache_at(tmp_path).find(key), tensors())
        assert told == []


def test_a_place_that_cannot_be_written_is_told_of_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    told: list[str] = []
    cache = cache_at(tmp_path / "file" / "cache", told=told)
    for name in ("x", "y"):
        assert equal(cache.get(tensors, name), tensors())
    assert len(told) == 1
    assert told[0].startswith("What is encoded can't be kept for the next start: ")
    cache.trim()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions don't bind here")
def test_a_folder_that_can_only_be_read_is_read(tmp_path: Path) -> None:
    cache_at(tmp_path).get(tensors, "x")
    tmp_path.chmod(0o500)
    try:
        told: list[str] = []
        assert equal(cache_at(tmp_path, told=told).find(cache_at(tmp_path).key("x")), tensors())
        assert equal(cache_at(tmp_path, told=told).get(lambda: tensors(1), "y"), tensors(1))
        assert len(told) == 1
    finally:
        tmp_path.chmod(0o700)


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = cache_at(None)
    assert equal(cache.get(tensors, "x"), tensors())
    assert cache.find(cache.key("x")) is None
    cache.trim()
    assert [*tmp_path.iterdir()] == []


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    keys = [cache.key(str(number)) for number in range(4)]
    for age, key in enumerate(keys):
        cache.keep(key, tensors())
        os.utime(tmp_path / f"{key}.safetensors", (1e9 + age, 1e9 + age))
    size = (tmp_path / f"{keys[0]}.safetensors").stat().st_size
    assert cache.find(keys[0]) is not None, "it is used, and so the newest"
    cache_at(tmp_path, most_bytes=2 * size).trim()
    assert [key for key in keys if cache.find(key) is not None] == [keys[0], keys[3]]

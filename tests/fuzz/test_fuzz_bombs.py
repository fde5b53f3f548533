"""Small files that ask for much memory, each read in a process of its own that has a limit, and is measured."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

LIMIT_MB = 6_000
"""Of the process, its libraries included; what exceeds it ends in a MemoryError."""
LONGEST_S = 5.0
"""Of the processor's time, as in `conftest.py`."""
_READER = Path(__file__).parents[1] / "assets" / "measured_reader.py"


class Bomb(NamedTuple):
    kind: str
    write: Callable[[Path], object]
    most_mb: int
    """Beside what the process takes anyway."""


def _header(raw: bytes, data: bytes = b"") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def _repeated(begin: bytes, middle: bytes, end: bytes, size: int) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        count = (size - len(begin) - len(end)) // len(middle)
        _header(begin + middle * count + end)(path)

    return write


def _png(width_px: int, height_px: int, depth: int, colour: int, row_bytes: int) -> Callable[[Path], object]:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def write(path: Path) -> None:
        packer = zlib.compressobj(6)
        row = bytes(1 + row_bytes)
        data = b"".join(packer.compress(row * 100) for _ in range(height_px // 100)) + packer.flush()
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, depth, colour, 0, 0, 0))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b""))

    return write


def _many_members(path: Path) -> None:
    """A zip whose list of members is 60 MB long, as zipfile would read it."""
    names = 1_000_000
    one = b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0x21, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    directory = b"".join(one + b"%08d" % number for number in range(names))
    long_end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, names, names, len(directory), 4)
    place = b"PK\x06\x07" + struct.pack("<IQI", 0, 4 + len(directory), 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(b"PK\x03\x04" + directory + long_end + place + end)
    assert zipfile.is_zipfile(path)


_100_MB = 99_999_000
BOMBS: dict[str, Bomb] = {
    "100 MB of metadata in one text": Bomb(
        "model", _repeated(b'{"__metadata__":{"a":"', b"x" * 1_000, b'"}}', _100_MB), 600
    ),
    "100 MB of metadata in wide letters": Bomb(
        "model", _repeated(b'{"__metadata__":{"a":"', "日🙂".encode() * 100, b'"}}', _100_MB), 600
    ),
    "100 MB of lists": Bomb("model", _repeated(b'{"a":[', b"[],", b"1]}", _100_MB), 300),
    "100 MB of objects": Bomb("model", _repeated(b'{"a":[', b"{},", b"1]}", _100_MB), 300),
    "100 MB of numbers": Bomb("model", _repeated(b'{"a":[', b"1,", b"1]}", _100_MB), 300),
    "as many parts as there may be": Bomb("model", _repeated(b'{"a":[', b"[],", b"1]}", 5_900_000), 600),
    "100 MB of one number": Bomb("model", _repeated(b'{"a":', b"9" * 1_000, b"}", _100_MB), 600),
    "JSON in metadata": Bomb("model", _repeated(b'{"__metadata__":{"a":"[', b"[],", b'1]"}}', 5_900_000), 600),
    "a zip of a million members": Bomb("model", _many_members, 300),
    "120 megapixels": Bomb("picture", _png(10_950, 10_950, 8, 2, 3 * 10_950), 2_500),
    "120 megapixels with transparency": Bomb("picture", _png(10_950, 10_950, 8, 6, 4 * 10_950), 2_500),
    "the transparency of 120 megapixels": Bomb("transparency", _png(10_950, 10_950, 8, 6, 4 * 10_950), 2_500),
    "120 megapixels of 16 bits": Bomb("picture", _png(10_950, 10_950, 16, 0, 2 * 10_950), 2_500),
    "2,500 megapixels": Bomb("picture", _png(50_000, 50_000, 1, 0, 6_250), 50),
}


def measured(kind: str, path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(_READER), kind, str(path), str(LIMIT_MB)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", BOMBS)
def test_memory_and_time(
    tmp_path: Path, share: Callable[[int], int], count: Callable[[str, int], None], what: str
) -> None:
    bomb = BOMBS[what]
    if share(10) < 10 and what not in _IN_THE_GATE:
        pytest.skip("with --full")
    path = tmp_path / "bomb"
    bomb.write(path)
    told = measured(bomb.kind, path)
    print(f"{what}: {told['mb']} MB, {told['s']} s: {told['said'][-100:]}")
    assert told["mb"] <= bomb.most_mb
    assert told["s"] <= LONGEST_S
    count("cases", 1)


_IN_THE_GATE = ("100 MB of lists", "as many parts as there may be", "a zip of a million members", "2,500 megapixels")


@pytest.mark.parametrize("place", ["zip", "legacy"])
def test_memory_of_pickles(
    tmp_path: Path, share: Callable[[int], int], count: Callable[[str, int], None], hostile_pickles: Any, place: str
) -> None:
    bombs: Iterator[tuple[str, bytes]] = hostile_pickles.bombs()
    for number, (what, pickled) in enumerate(bombs):
        if number % 10 != 5 and share(10) < 10:
            continue
        path = tmp_path / "bomb"
        path.write_bytes(hostile_pickles.packed(pickled, place))
        told = measured("model", path)
        print(f"{what}: {told['mb']} MB, {told['s']} s: {told['said'][-100:]}")
        assert told["said"]
        assert told["mb"] <= 700, what
        assert told["s"] <= LONGEST_S, what
        count("cases", 1)

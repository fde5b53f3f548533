"""Whichever write of a training fails, and however full its disk is: the reason is told, and when there is space again
the resume ends with the bytes of a straight run.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.damaging import Failing, SmallDisk, can_mount, half_written, lost, precious, temporary
from tests.faults.forge import Forge

WRITES = 40
"""Of a resume; those after that are events alone."""
LEFT_BYTES = (0, 4_096, 12_288, 40_960, 65_536, 131_072, 200_704, 262_144, 307_200, 409_600)
"""From no page at all to room for the state and not for the LoRA (each about 100 kB) and on."""


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    """On a disk of its own where that can be, else in a folder."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True) as root:
        disk = SmallDisk(Path(root) / "disk") if can_mount() else None
        opened = Forge(Path(root), Path(root) / "disk" / "place" if disk else None)
        opened.disk = disk
        yield opened
        if disk:
            disk.close()


def test_every_write_of_a_resume_may_fail(
    forge: Forge, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    failing = Failing(forge.place / "workspace")
    step = WRITES // share(WRITES)
    for number in range(1 + 3 % step, WRITES + 1, step):
        for code in (errno.ENOSPC, errno.EIO) if step == 1 else (errno.ENOSPC,):
            forge.put_back()
            before = precious(forge.place)
            where = f"write {number}, {os.strerror(code)}"
            _is_right(forge, before, forge.outcome(around=failing.at(number, code)), where)
            count("failed writes", 1)


@pytest.mark.parametrize("left_bytes", LEFT_BYTES)
def test_a_full_disk(
    forge: Forge, share: Callable[[int], int], count: Callable[[str, int], None], left_bytes: int
) -> None:
    if forge.disk is None:
        pytest.skip("a small disk needs root and the right to mount")
    if share(10) == 1 and left_bytes not in (0, 131_072):
        pytest.skip("with --full")
    forge.put_back()
    before = precious(forge.place)

    @contextmanager
    def full() -> Iterator[None]:
        forge.disk.fill(left_bytes)
        yield

    outcome = forge.outcome(around=full())
    forge.disk.free()
    assert "full" in outcome or outcome == "equal", outcome
    _is_right(forge, before, outcome, f"{left_bytes} bytes left")
    count("full disks", 1)


def test_a_read_only_disk(forge: Forge, count: Callable[[str, int], None]) -> None:
    if forge.disk is None:
        pytest.skip("a small disk needs root and the right to mount")
    forge.put_back()
    before = precious(forge.place)
    forge.disk.read_only()
    try:
        code, _ = forge.resume()
    finally:
        forge.disk.read_only(False)
    said = forge.log.read_text(encoding="utf-8")
    assert code != 0
    assert "is read-only." in said
    assert "Traceback" not in said
    _is_right(forge, before, "told", "read-only")
    count("read-only", 1)


def _is_right(forge: Forge, before: dict[str, bytes], outcome: str, where: str) -> None:
    gone = [path for path in lost(before, forge.place) if "/cache/" not in path and "/state/" not in path]
    assert gone == [], f"{where}: {outcome}"
    assert half_written(forge.place / "workspace") == [], f"{where}: {outcome}"
    forge.next_start()
    if outcome != "equal":
        assert forge.outcome() == "equal", f"{where}: {outcome}"
    assert temporary(forge.place) == [], where

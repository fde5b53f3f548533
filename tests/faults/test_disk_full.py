"""What a person does on a small disk that is full to the last page, full but for some, or read-only.

As root no folder's rights keep anybody from writing, so read-only is a disk that is mounted so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.damaging import SmallDisk, can_mount, half_written, lost, precious, refused, temporary
from tests.faults.shelf import ACTIONS, CAPTION_EDITS, QUEUED, Shelf, all_is_in_order, jobs_of
from tests.unit.app.conftest import Desk, updates_here  # noqa: F401  (a fixture)

LEFT_PAGES = (0, 1, 2, 3, 5, 8, 13)
"""Of 4 KB: a file takes one at least."""

pytestmark = pytest.mark.usefixtures("updates_here")


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[Shelf, SmallDisk]]:
    if not can_mount():
        pytest.skip("a small disk needs root and the right to mount")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        disk = SmallDisk(Path(root) / "disk")
        yield Shelf(Path(root), Path(root) / "disk" / "place"), disk
        disk.close()


@pytest.mark.parametrize("name", ACTIONS)
def test_a_full_disk(
    small: tuple[Shelf, SmallDisk], share: Callable[[int], int], count: Callable[[str, int], None], name: str
) -> None:
    shelf, disk = small
    chosen = LEFT_PAGES if share(10) == 10 else LEFT_PAGES[len(name) % 4 :][:1]
    for pages in chosen:
        desk = shelf.put_back(is_idle=name not in QUEUED)
        before = precious(shelf.place / "work space", but="/processed/" if name in CAPTION_EDITS else "//")
        queued = jobs_of(desk)
        disk.fill(pages * 4096)
        told = refused(lambda desk=desk: ACTIONS[name](desk))
        disk.free()
        where = f"{name}, {pages} pages left: {told}"
        assert lost(before, shelf.place) == [], where
        assert half_written(shelf.place) == [], where
        all_is_in_order(Desk(shelf.place), queued, name, told)
        if told:
            assert refused(lambda: ACTIONS[name](Desk(shelf.place))) == "", where
        assert [file for file in temporary(shelf.place) if not file.endswith("processed.old")] == [], where
        count("full disks", 1)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_read_only_disk(small: tuple[Shelf, SmallDisk], count: Callable[[str, int], None], name: str) -> None:
    shelf, disk = small
    desk = shelf.put_back(is_idle=name not in QUEUED)
    before, queued = precious(shelf.place), jobs_of(desk)
    disk.read_only()
    try:
        told = refused(lambda: ACTIONS[name](desk))
    finally:
        disk.read_only(False)
    assert told or name in ("select", "publish again"), "nothing of it can be done"
    assert precious(shelf.place) == before
    all_is_in_order(Desk(shelf.place), queued, name, told)
    count("read-only", 1)

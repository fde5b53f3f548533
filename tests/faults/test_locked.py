"""Files that another program holds, as Windows does it, and files that are gone when they are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_train.core import files
from tests.faults.damaging import SHARING_VIOLATION, Vanishing, half_written, lost, precious, refused, temporary
from tests.faults.shelf import ACTIONS, CAPTION_EDITS, QUEUED, TRAIN, Shelf, all_is_in_order, jobs_of
from tests.faults.test_damage_workspace import LOOKS
from tests.unit.app.conftest import Desk, updates_here  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("updates_here")


@pytest.fixture(scope="module")
def shelf() -> Iterator[Shelf]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True) as root:
        yield Shelf(Path(root))


@pytest.fixture(scope="module")
def vanishing(shelf: Shelf) -> Vanishing:
    return Vanishing(shelf.place)


class Held:
    """Every rename is refused so many times, for each source and target anew."""

    def __init__(self, times: float) -> None:
        self.times = times
        self.refused: dict[tuple[Path, Path], int] = {}
        self.replace = Path.replace

    def __call__(self, source: Path, target: Path) -> Path:
        key = (source, Path(target))
        self.refused[key] = self.refused.get(key, 0) + 1
        if self.refused[key] <= self.times:
            error = PermissionError(13, "The process cannot access the file", str(source))
            error.winerror = SHARING_VIOLATION  # type: ignore[attr-defined]
            raise error
        return self.replace(source, target)


@pytest.mark.parametrize("name", ACTIONS)
def test_held_for_a_moment(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, count: Callable[[str, int], None], name: str
) -> None:
    desk = shelf.put_back(is_idle=name not in QUEUED)
    monkeypatch.setattr(files, "_REPLACE_PAUSE_S", 0.0)
    held, queued = Held(3), jobs_of(desk)
    monkeypatch.setattr(Path, "replace", lambda source, target: held(source, target))
    ACTIONS[name](desk)
    assert name == "select" or held.refused, "nothing was renamed"
    all_is_in_order(Desk(shelf.place), queued, name, "")
    count("held for a moment", 1)


@pytest.mark.parametrize("name", ACTIONS)
def test_held_for_ever(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, count: Callable[[str, int], None], name: str
) -> None:
    desk = shelf.put_back(is_idle=name not in QUEUED)
    before = precious(shelf.place / "work space", but="/processed/" if name in CAPTION_EDITS else "//")
    queued = jobs_of(desk)
    monkeypatch.setattr(files, "_REPLACE_PAUSE_S", 0.0)
    with monkeypatch.context() as patch:
        held = Held(float("inf"))
        patch.setattr(Path, "replace", lambda source, target: held(source, target))
        told = refused(lambda: ACTIONS[name](desk))
    assert lost(before, shelf.place) == []
    assert half_written(shelf.place) == []
    all_is_in_order(Desk(shelf.place), queued, name, told)
    if told:
        assert refused(lambda: ACTIONS[name](Desk(shelf.place))) == "", told
    assert temporary(shelf.place) == [] or name == "update dataset"
    count("held for ever", 1)


@pytest.mark.parametrize("name", [*ACTIONS, *LOOKS])
def test_gone_when_it_is_needed(
    shelf: Shelf, vanishing: Vanishing, share: Callable[[int], int], count: Callable[[str, int], None], name: str
) -> None:
    act = ACTIONS.get(name) or LOOKS[name]
    step = 1 if share(10) == 10 else 9
    number = 1 + len(name) % step
    while number < 400:
        desk = shelf.put_back(is_idle=name not in QUEUED)
        before = precious(shelf.place / "work space", but="/processed/" if name in CAPTION_EDITS else "//")
        queued = jobs_of(desk)
        with vanishing.at(number):
            told = refused(lambda desk=desk: act(desk))
        if not vanishing.gone:
            break
        own = Path(vanishing.gone).read_bytes() if Path(vanishing.gone).exists() else b""
        gone = [file for file in lost(before, shelf.place) if not vanishing.gone.endswith(file)]
        assert own is not None
        assert _without_twins(before, gone, vanishing.gone) == [], f"{vanishing.gone}: {told}"
        assert half_written(shelf.place) == [], f"{vanishing.gone}: {told}"
        is_queue = vanishing.gone.endswith("queue.json")
        all_is_in_order(Desk(shelf.place), queued, name, told, may_lack=is_queue)
        count("gone", 1)
        number += step


def _without_twins(before: dict[str, bytes], gone: list[str], deleted: str) -> list[str]:
    """What is lost besides the deleted file and its equals."""
    own = {digest for file, digest in before.items() if deleted.endswith(file)}
    return [file for file in gone if before[file] not in own]


@pytest.mark.parametrize("place", ["projects/cat", "projects/cat/versions/v1", TRAIN, "projects", "jobs", "trash", ""])
def test_a_folder_is_gone_while_the_page_watches(shelf: Shelf, count: Callable[[str, int], None], place: str) -> None:
    desk = shelf.put_back()
    queued = jobs_of(desk)
    for look in LOOKS.values():
        look(desk)
    moved = shelf.place / "moved away"
    (desk.workspace.root / place).rename(moved)
    for look in LOOKS.values():
        refused(lambda look=look: look(desk))
    for name in ("save settings", "begin training", "publish", "upload", "select"):
        refused(lambda name=name: ACTIONS[name](desk))
    assert desk.app.projects.create("after all").project
    all_is_in_order(Desk(shelf.place), queued, "begin training", "refused", may_lack=not place)
    count("folders gone", 1)

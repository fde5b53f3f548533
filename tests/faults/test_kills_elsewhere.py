"""kill -9 at every change that the other deeds make to files: updates, captions, uploads, publishing, the trash.

Each deed dies at one of its changes, the page starts again, and the deed is done once more. Nothing is lost on the way,
no file is half of one, and in the end all is as if it had been done at once.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import ProjectInfo, VersionInfo
from lora_train.launch.queue import JobQueue
from lora_train.publish import Record
from tests.faults import deeds
from tests.faults.conftest import Forker, fingerprint, temporary_files, zombies

_SEED = 8
_MOST = 400
"""Deeds make fewer changes than this."""

_RECORDS = {"version.json": VersionInfo, "project.json": ProjectInfo, "published.json": Record}


class Scene:
    """A place where everything can be put back as it was at first."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "scene"
        self.log = folder / "log"
        self._at_first = folder / "at first"
        deeds.set_up(self.root)
        self.root.rename(self._at_first)
        self.again()

    def again(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._at_first, self.root)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("deeds"))


def _of_a_person(root: Path) -> dict[Path, str]:
    """Pictures, captions and LoRAs, wherever they are now."""
    kinds = {".png", ".txt", ".safetensors"}
    folders = [root / "workspace", root / "Lora"]
    return fingerprint(folders, without=lambda path: path.suffix not in kinds or path.name == "worker.log")


def _result(root: Path, deed: deeds.Deed) -> dict[str, str]:
    folder = root / deed.result
    kinds = {".png", ".txt", ".safetensors"}
    found = fingerprint([folder], without=lambda path: path.suffix not in kinds)
    return {path.relative_to(folder).as_posix(): content for path, content in found.items()}


@pytest.mark.parametrize("name", deeds.DEEDS)
def test_killed_at_every_change(
    name: str,
    scene: Scene,
    data_forker: Forker,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
) -> None:
    deed, root = deeds.DEEDS[name], scene.root
    data_forker.root, data_forker.before_start = root, lambda: None
    scene.again()
    before = set(_of_a_person(root).values())

    data_forker.dies_at = 0
    data_forker.start("tests.faults.deeds:do", [name, str(root)], scene.log)
    assert data_forker.ended() == 0, scene.log.read_text(encoding="utf-8")
    changes = data_forker.changes
    assert 0 < changes < _MOST
    after, expected = set(_of_a_person(root).values()), _result(root, deed)
    to_keep = before & after if deed.is_edit else before
    assert to_keep <= after, "nothing is lost where nobody dies"

    chosen = random.Random(_SEED).sample(range(1, changes + 1), share(changes))
    for dies_at in sorted(chosen):
        scene.again()
        data_forker.dies_at = dies_at
        pid = data_forker.start("tests.faults.deeds:do", [name, str(root)], scene.log)
        assert data_forker.ended() == -signal.SIGKILL, f"process {pid} was to die at change {dies_at}"
        _is_sound(root, to_keep, before | after, dies_at)
        app = deeds.next_start(root)
        assert temporary_files(root) == [], f"after change {dies_at} of {changes}"
        _is_sound(root, to_keep, before | after, dies_at)
        deed.do(app, root)
        assert _result(root, deed) == expected, f"after change {dies_at} of {changes}"
        assert to_keep <= set(_of_a_person(root).values())
    assert zombies() == []
    count(f"kills within: {name}", len(chosen))


def _is_sound(root: Path, must_be: set[str], may_be: set[str], dies_at: int) -> None:
    """Nothing is lost, and no file is half of what it looks like."""
    there = {path: content for path, content in _of_a_person(root).items() if ".tmp" not in str(path)}
    assert must_be <= set(there.values()), f"lost at change {dies_at}"
    assert [path for path, content in there.items() if content not in may_be] == [], f"half at change {dies_at}"
    workspace = root / "workspace"
    for path in workspace.rglob("*.json"):
        msgspec.json.decode(path.read_bytes(), type=_RECORDS.get(path.name, object))
    queue = JobQueue(workspace)
    for job in queue.waiting():
        JobFolder(workspace / job).read_spec()
    assert queue.running() == ""
    assert len(queue.waiting()) <= 1

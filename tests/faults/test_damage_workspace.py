"""Every file of a workspace, cut off or with a wrong bit: whatever the page asks and a person does then, it is answered
or refused in a sentence; and what was damaged is never taken for what was written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.jobs import JobFolder
from lora_train.core.sealed import BrokenSealError, sealed, unsealed
from lora_train.launch.queue import JobQueue
from tests.faults.damaging import damages, lost, precious, refused
from tests.faults.shelf import (
    ACTIONS,
    FILE,
    IDS,
    LORAS,
    QUEUED,
    TRAIN,
    Shelf,
    all_is_in_order,
    empty_queue,
    jobs_of,
)
from tests.unit.app.conftest import Desk, updates_here  # noqa: F401  (a fixture)

SEED = 8
"""Of the damaged places."""
AFTERWARDS = ("save settings", "set caption", "update dataset", "begin training", "publish", "begin grid", "resume")
"""What a person then does."""

LOOKS: dict[str, Callable[[Desk], Any]] = {
    "projects": lambda desk: desk.app.projects.list(),
    "selection": lambda desk: desk.app.projects.selection(),
    "page": lambda desk: desk.app.snapshot(*IDS, TRAIN),
    "pictures": lambda desk: desk.app.datasets.snapshot(*IDS),
    "thumbnail": lambda desk: desk.app.datasets.thumbnail(*IDS, FILE, is_waiting=False),
    "captions": lambda desk: desk.app.captions.view(*IDS),
    "health": lambda desk: desk.app.health.report(*IDS),
    "forecast": lambda desk: desk.app.training.forecast(*IDS),
    "trainings": lambda desk: desk.app.training.list(*IDS),
    "judgement": lambda desk: desk.app.judging.snapshot(TRAIN),
    "grids": lambda desk: desk.app.grids.snapshot(*IDS),
    "sweeps": lambda desk: desk.app.sweeps.list(*IDS),
    "presets": lambda desk: [desk.app.presets.list(), desk.app.presets.state(*IDS)],
    "queue": lambda desk: desk.app.queue.entries(),
    "report": lambda desk: desk.app.reports.html(TRAIN),
    "classes": lambda desk: desk.app.regularisation.snapshot(*IDS),
    "settings": lambda desk: [desk.app.settings.train(*IDS), desk.app.settings.notes(*IDS)],
    "next turn": lambda desk: JobQueue(desk.workspace.root).take_next(),
}


@pytest.fixture(scope="module")
def shelf() -> Iterator[Shelf]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True) as root:
        yield Shelf(Path(root))


@pytest.mark.usefixtures("updates_here")
def test_every_file_may_be_damaged(
    shelf: Shelf, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    files = [path.relative_to(shelf.place) for path in sorted(shelf.place.rglob("*")) if path.is_file()]
    cases = [(file, what, content) for file in files for what, content in _damages_of(shelf.place / file)]
    assert len(files) > 30, "the workspace is to have something in it"
    step = len(cases) // share(len(cases))
    for number, (file, what, content) in enumerate(cases[SEED % step :: step]):
        desk = shelf.put_back()
        before = {kept: digest for kept, digest in precious(shelf.place).items() if kept != file.as_posix()}
        queued = jobs_of(desk)
        (shelf.place / file).write_bytes(content)
        desk = Desk(shelf.place)
        where = f"{file}, {what}"
        for look in LOOKS.values():
            refused(lambda look=look, desk=desk: look(desk))
        all_is_in_order(desk, queued, "look", "", may_lack=file.name == "queue.json")
        name = AFTERWARDS[number % len(AFTERWARDS)]
        if name not in QUEUED:
            refused(lambda desk=desk: empty_queue(desk))
        queued = jobs_of(desk)
        told = refused(lambda desk=desk, name=name: ACTIONS[name](desk))
        if name in ("set caption",):
            before = {kept: digest for kept, digest in before.items() if not kept.endswith("a.txt")}
        assert lost(before, shelf.place) == [], f"{where}, then {name}: {told}"
        all_is_in_order(Desk(shelf.place), queued, name, told)
        count("damaged files", 1)


def _damages_of(path: Path) -> Iterator[tuple[str, bytes]]:
    return damages(path.read_bytes(), SEED) if path.stat().st_size > 1 else iter(())


@pytest.mark.parametrize("file", ["version.json", "trains/cat-v1/job.json", "trains/cat-v1/published.json"])
def test_a_wrong_bit_is_never_taken_for_what_was_written(shelf: Shelf, file: str) -> None:
    """Every byte of it: another content is noticed, or means the same."""
    content = shelf.put_back().workspace.find_version(*IDS).path.joinpath(file).read_bytes()
    meant = json.loads(unsealed(content))
    for place in range(len(content)):
        wrong = bytearray(content)
        wrong[place] ^= 1 << (place % 8)
        try:
            told = json.loads(unsealed(bytes(wrong)))
        except (BrokenSealError, ValueError):
            continue
        told.pop("check", None), [told.pop(key) for key in [*told] if key not in meant]
        assert told == meant, f"byte {place}"


def test_a_seal_fits_any_object() -> None:
    for content in (b'{"a":1}', b'{\n  "a": [1]\n}', b'{"a": {"b": 1}}\n'):
        assert json.loads(sealed(content))["check"]
        assert json.loads(unsealed(sealed(content))) == json.loads(content)
        assert b"\n" in content or b"\n" not in sealed(content), "a line stays a line"
    assert sealed(b"{}") == b"{}"
    assert unsealed(b'{"a": 1}') == b'{"a": 1}', "of an earlier release"


def test_settings_come_back_as_they_were_before_the_last_change(shelf: Shelf) -> None:
    desk = shelf.put_back()
    path = desk.workspace.find_version(*IDS).path / "version.json"
    for epochs in (5, 6):
        desk.app.settings.save(*IDS, train={"epochs": epochs})
    path.write_bytes(path.read_bytes()[:100])
    desk = Desk(shelf.place)
    assert desk.app.settings.train(*IDS)["epochs"] == 5
    assert "look through them" in desk.app.settings.notes(*IDS)[0]
    assert path.with_name("version.json.damaged").stat().st_size == 100
    assert desk.app.settings.train(*IDS)["epochs"] == 5, "they are in its place again"


def test_settings_changed_by_hand_are_used_and_told_of(shelf: Shelf) -> None:
    desk = shelf.put_back()
    path = desk.workspace.find_version(*IDS).path / "version.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"epochs": 2', '"epochs": 3'), encoding="utf-8")
    assert desk.app.settings.train(*IDS)["epochs"] == 3
    assert "Look through the settings" in desk.app.settings.notes(*IDS)[0]
    desk.app.settings.save(*IDS, train={"epochs": 4})
    assert desk.app.settings.notes(*IDS) == []


def test_a_job_with_a_wrong_bit_is_not_begun(shelf: Shelf) -> None:
    desk = shelf.put_back()
    job = desk.workspace.find_job(desk.app.training.begin(*IDS))
    spec = job / "job.json"
    spec.write_text(spec.read_text(encoding="utf-8").replace('"epochs": 2', '"epochs": 3'), encoding="utf-8")
    assert "was changed or damaged" in refused(lambda: desk.app.start(JobFolder(job)))


def test_a_damaged_queue_is_the_one_before(shelf: Shelf) -> None:
    desk = shelf.put_back()
    empty_queue(desk)
    others = jobs_of(desk)
    first, second = desk.app.training.begin(*IDS), desk.app.training.begin(*IDS)
    path = desk.workspace.root / "queue.json"
    path.write_bytes(b"")
    assert JobQueue(desk.workspace.root).waiting() == [*others, first], "what the last change added can be begun again"
    assert second not in JobQueue(desk.workspace.root).waiting()
    assert LORAS

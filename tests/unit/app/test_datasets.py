"""The pictures of a version, as the page shows and changes them; updates run in this process."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from lora_train.app.snapshot import DatasetSnapshot, Undo
from lora_train.core import events as ev
from lora_train.core.errors import ConfigError, DatasetError, JobError, WorkspaceError
from lora_train.data import uploads
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


pytestmark = pytest.mark.usefixtures("updates_here")


# --- what is shown ---


def test_from_upload_to_set(desk: Desk) -> None:
    desk.version()
    assert desk.shown() == DatasetSnapshot()
    desk.upload("b.png", "猫.png")
    desk.app.datasets.add_bytes("cat", "v1", [("猫.txt", b"a cat\nsits")])
    entries = {entry.file: entry for entry in desk.shown().pictures}
    assert list(entries) == ["b.png", "猫.png"]
    assert all(entry.is_waiting for entry in entries.values())
    assert (entries["猫.png"].caption, entries["猫.png"].width_px, entries["猫.png"].height_px) == (
        "a cat sits",
        64,
        64,
    )
    assert desk.shown().folders == []

    desk.update(width_px=128)
    snapshot = desk.shown()
    entries = {entry.file: entry for entry in snapshot.pictures}
    assert list(entries) == ["4_cat/b.png", "4_cat/猫.png"]
    assert (entries["4_cat/b.png"].caption, entries["4_cat/猫.png"].caption) == ("cat", "a cat sits")
    assert (entries["4_cat/b.png"].width_px, entries["4_cat/b.png"].repeats) == (128, 4)
    assert not any(entry.is_waiting or entry.is_regularisation for entry in entries.values())
    assert [Path(folder).name for folder in snapshot.folders] == ["4_cat"]
    assert Path(snapshot.folders[0]).is_dir()
    assert snapshot.update is not None
    assert (snapshot.update.state, snapshot.problems) == ("finished", [])

    desk.upload("new.png")
    assert desk.files() == [("4_cat/b.png", False), ("4_cat/猫.png", False), ("new.png", True)]
    assert desk.again().datasets.snapshot("cat", "v1").pictures == desk.shown().pictures


def test_folder_by_the_project_caption_by_the_trigger_word(desk: Desk) -> None:
    desk.upload("a.png")
    desk.app.settings.save("cat", "v1", train={"repeats": 4, "trigger_word": " sks "}, dataset={"width_px": 64})
    desk.app.datasets.start_update("cat", "v1")
    assert [(entry.file, entry.caption) for entry in desk.shown().pictures] == [("4_cat/a.png", "sks")]


def test_all_pieces_of_a_picture_are_removed(desk: Desk) -> None:
    desk.version()
    desk.app.datasets.add("cat", "v1", [("long.png", desk.picture((200, 64)))])
    desk.upload("a.png")
    desk.update(split=True, flip=True)
    assert len(desk.shown().pictures) == 4 * 2 + 2  # L = 200: ceil((200 - 12.8) / 51.2)
    undo = desk.app.datasets.remove("cat", "v1", "4_cat/long-2.png")
    assert [file for file, _ in desk.files()] == ["4_cat/a-flip.png", "4_cat/a.png"]
    desk.workspace.trash.restore(undo.entry)
    assert len(desk.shown().pictures) == 10


def test_masks_go_where_their_pictures_go(desk: Desk) -> None:
    desk.upload("a.png", "b.png")
    desk.update(flip=True)
    assert [is_waiting for _, is_waiting in desk.files()] == [False] * 4
    mask = desk.picture(color=(0, 0, 0)).read_bytes()
    assert desk.app.datasets.add_bytes("cat", "v1", [("mask/a.png", mask)]) == []
    assert desk.app.datasets.originals("cat", "v1").keys() == {"a.png", "b.png", "mask/a.png"}
    assert desk.files()[4:] == [("a.png", True)], "a new mask waits as a new picture does"

    desk.update(flip=True)
    assert [is_waiting for _, is_waiting in desk.files()] == [False] * 4, "masks are no pictures"
    assert desk.shown().problems == []
    version = desk.workspace.find_version("cat", "v1")
    masks = {path.relative_to(version.path).as_posix() for path in version.path.rglob("mask/*")}
    processed = {f"dataset/processed/4_cat/mask/{name}.png" for name in ("a", "a-flip")}
    assert masks == {"dataset/origin/mask/a.png", *processed}

    undo = desk.app.datasets.remove("cat", "v1", "4_cat/a.png")
    assert not [path for path in version.path.rglob("mask/*") if path.is_file()]
    assert [file for file, _ in desk.files()] == ["4_cat/b-flip.png", "4_cat/b.png"]
    assert desk.shown().problems == []
    desk.workspace.trash.restore(undo.entry)
    assert {path.relative_to(version.path).as_posix() for path in version.path.rglob("mask/*")} == masks
    assert (version.origin_dir / "mask" / "a.png").read_bytes() == mask


def test_regularisation_and_repeats(desk: Desk) -> None:
    desk.trained("3_cat/a.png", "5_dog/d.png", "reg/1_person/r.png")
    by_file = {entry.file: entry for entry in desk.shown().pictures}
    assert [(entry.repeats, entry.is_regularisation) for entry in by_file.values()] == [
        (3, False),
        (5, False),
        (1, True),
    ]
    desk.app.settings.save("cat", "v1", train={"repeats": 9})
    assert [entry.repeats for entry in desk.shown().pictures] == [9, 9, 1]


def test_damage_is_told(desk: Desk) -> None:
    processed = desk.trained("4_cat/a.png")
    (processed / "4_cat" / "b.png").write_bytes(b"a text")
    snapshot = desk.shown()
    assert [entry.file for entry in snapshot.pictures] == ["4_cat/a.png"]
    assert "b.png can't be used" in snapshot.problems[0]
    (processed / "4_cat" / "a.png").unlink()
    assert any("b.png can't be used" in problem for problem in desk.shown().problems)
    assert desk.shown().pictures == []


def test_a_picture_that_can_not_be_read_waits_all_the_same(desk: Desk) -> None:
    desk.version()
    origin = desk.workspace.find_version("cat", "v1").origin_dir
    origin.mkdir(parents=True)
    (origin / "a.png").write_bytes(b"a text")
    (entry,) = desk.shown().pictures
    assert (entry.file, entry.width_px, entry.is_waiting) == ("a.png", 0, True)


def test_the_set_is_read_again_only_when_it_changed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for every second, by several pages."""
    processed = desk.trained("4_cat/a.png", "4_cat/b.png")
    desk.upload("c.png")
    read: list[Path] = []

    from lora_train.data import dataset as dataset_module  # the name that is replaced

    original = dataset_module.open_picture
    monkeypatch.setattr(dataset_module, "open_picture", lambda path: read.append(path) or original(path))
    first = desk.shown()
    assert len(read) == 2
    with ThreadPoolExecutor(4) as pool:
        assert all(snapshot.pictures == first.pictures for snapshot in pool.map(lambda _: desk.shown(), range(8)))
    assert len(read) == 2
    desk.app.datasets.set_caption("cat", "v1", "4_cat/a.png", "new")
    assert desk.shown().pictures[0].caption == "new"
    assert len(read) == 2, "an edited caption makes no picture be decoded again"
    time.sleep(0.01)
    Image.new("RGB", (8, 8)).save(processed / "4_cat" / "a.png")
    assert desk.shown().pictures[0].width_px == 8
    assert len(read) == 3
    begun = time.process_time()
    for _ in range(10):
        desk.shown()
    assert (time.process_time() - begun) / 10 < 0.02


def test_many_pictures_that_wait(desk: Desk) -> None:
    """Each has its caption: one listing of the folder for all of them, not one for each."""
    desk.version()
    origin = desk.workspace.find_version("cat", "v1").origin_dir
    origin.mkdir(parents=True)
    content = desk.picture((8, 8)).read_bytes()
    for number in range(1000):
        (origin / f"{number:04}.png").write_bytes(content)
        (origin / f"{number:04}.txt").write_text(f"caption {number}", encoding="utf-8")
    begun = time.process_time()
    pictures = desk.shown().pictures
    assert time.process_time() - begun < 3, "0.3 s on one slow core"
    assert [picture.caption for picture in pictures] == [f"caption {number}" for number in range(1000)]


# --- files and thumbnails ---


def test_thumbnail(desk: Desk) -> None:
    desk.version()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = desk.root / "photo.jpg"
    Image.new("RGB", (1000, 500), (200, 10, 10)).save(path, exif=exif)
    desk.app.datasets.add("cat", "v1", [("photo.jpg", path), ("small.png", desk.picture((20, 10)))])
    sizes = {}
    for file in ("photo.jpg", "small.png"):
        content = desk.app.datasets.thumbnail("cat", "v1", file, is_waiting=True)
        with Image.open(io.BytesIO(content)) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            sizes[file] = picture.size
        assert desk.app.datasets.thumbnail("cat", "v1", file, is_waiting=True) is content, "kept"
    assert sizes == {"photo.jpg": (160, 320), "small.png": (20, 10)}


def test_thumbnail_of_a_file_that_changed(desk: Desk) -> None:
    processed = desk.trained("4_cat/a.png")
    before = desk.app.datasets.thumbnail("cat", "v1", "4_cat/a.png", is_waiting=False)
    stamp = desk.shown().pictures[0].stamp
    time.sleep(0.01)
    Image.new("RGB", (32, 8)).save(processed / "4_cat" / "a.png")
    assert desk.app.datasets.thumbnail("cat", "v1", "4_cat/a.png", is_waiting=False) != before
    assert desk.shown().pictures[0].stamp != stamp


@pytest.mark.parametrize(
    "file",
    ["", ".", "..", "../origin/o.png", "4_cat/../../../version.json", "4_cat", "4_cat/b.png", "a.png", "4_cat/a.txt"],
)
@pytest.mark.parametrize("is_waiting", [False, True])
def test_only_pictures_of_the_dataset_are_given(desk: Desk, file: str, is_waiting: bool) -> None:
    processed = desk.trained("4_cat/a.png")
    desk.upload("o.png")
    datasets = desk.app.datasets
    assert datasets.picture_path("cat", "v1", "4_cat/a.png", False) == processed / "4_cat" / "a.png"
    assert datasets.picture_path("cat", "v1", "o.png", True).parent == processed.with_name("origin")
    for name in (file, str(processed / "4_cat" / "a.png")):
        with pytest.raises(WorkspaceError, match="no picture"):
            datasets.picture_path("cat", "v1", name, is_waiting)
        with pytest.raises(WorkspaceError, match="no picture"):
            datasets.thumbnail("cat", "v1", name, is_waiting)
    with pytest.raises(WorkspaceError, match="no picture"):
        datasets.set_caption("cat", "v1", "o.png", "waiting ones have none to edit")
    with pytest.raises(WorkspaceError, match="no picture"):
        datasets.remove("cat", "v1", "../version.json")


def test_unknown_version(desk: Desk) -> None:
    desk.version()
    for call in (
        lambda: desk.app.datasets.snapshot("cat", "v2"),
        lambda: desk.app.datasets.add("../cat", "v1", []),
        lambda: desk.app.datasets.start_update("dog", "v1"),
    ):
        with pytest.raises(WorkspaceError, match="does not exist"):
            call()


def test_a_folder_that_can_not_be_written(desk: Desk) -> None:
    desk.version()
    (desk.workspace.find_version("cat", "v1").path / "dataset").write_bytes(b"a file")
    with pytest.raises(DatasetError, match="can't be written"):
        desk.app.datasets.add("cat", "v1", [("a.png", desk.picture())])


# --- captions ---


def test_edit_a_caption(desk: Desk) -> None:
    processed = desk.trained("4_cat/a.png", "4_cat/b.png")
    (processed / "4_cat" / "b.txt").rename(processed / "4_cat" / "b.caption")
    for file, caption in (("4_cat/a.png", "  自作,\n a \t cat\x00"), ("4_cat/b.png", "")):
        desk.app.datasets.set_caption("cat", "v1", file, caption)
    assert [entry.caption for entry in desk.shown().pictures] == ["自作, a cat", ""]
    assert (processed / "4_cat" / "a.txt").read_bytes() == "自作, a cat".encode()
    assert not (processed / "4_cat" / "b.caption").exists(), "one caption for one picture"
    assert len(list(desk.workspace.trash_dir.glob("*/b.caption"))) == 1
    desk.upload("a.png")
    desk.update()
    assert {entry.file: entry.caption for entry in desk.shown().pictures}["4_cat/a.png"] == "自作, a cat"


# --- while jobs need it ---


@pytest.mark.parametrize(
    ("phase", "is_free"),
    [
        ("", False),
        ("reading the pictures", False),
        ("encoding the pictures", False),
        ("training", True),
        ("drawing previews", True),
    ],
)
def test_pictures_stay_as_they_are_until_a_training_has_read_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, phase: str, is_free: bool
) -> None:
    desk.upload("a.png")
    desk.update()
    monkeypatch.setattr(launcher, "_process", lambda job, pid: object() if pid else None)
    earlier = [ev.Started(pid=1, step=0), ev.Phase("training"), ev.Paused(step=40)]
    job = desk.train(events=[*earlier, ev.Started(pid=2), *([ev.Phase(phase)] if phase else [])])
    queue = JobQueue(desk.workspace.root)
    queue.add(job)
    queue.take_next()
    datasets = desk.app.datasets
    for call in (
        lambda: datasets.set_caption("cat", "v1", "4_cat/a.png", "new"),
        lambda: datasets.start_update("cat", "v1"),
        lambda: datasets.remove("cat", "v1", "4_cat/a.png"),
    ):
        if is_free:
            call()
        else:
            with pytest.raises(JobError, match="needs the pictures as they are") as error:
                call()
            assert "queue" in error.value.hint


def test_pictures_stay_as_they_are_while_a_training_waits(desk: Desk) -> None:
    desk.upload("a.png")
    desk.update()
    job = desk.train()
    desk.version("cat", "v2")
    queue = JobQueue(desk.workspace.root)
    queue.add(job)
    with pytest.raises(JobError, match="needs the pictures"):
        desk.app.datasets.start_update("cat", "v1")
    desk.upload("b.png")  # uploads do no harm
    queue.cancel(job)
    desk.app.datasets.start_update("cat", "v1")


def test_a_version_that_is_deleted_while_pictures_come_in(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the pictures to come in, and they bring nothing back."""
    ids = desk.version()
    look = uploads.picture_size

    def slow(path: Path) -> tuple[int, int]:
        if not deleted:
            deleted.append(desk.app.projects.delete_version(*ids))
        return look(path)

    deleted: list[Undo] = []
    monkeypatch.setattr(uploads, "picture_size", slow)
    with pytest.raises(WorkspaceError, match="does not exist"):
        desk.upload("a.png", "b.png")
    assert [version.name for version in desk.app.projects.list()[0].versions] == []
    desk.app.projects.restore(deleted[0].entry)
    assert desk.shown().pictures == []
    desk.upload("a.png")
    assert desk.files() == [("a.png", True)]


def test_sizes_that_can_not_be_are_told_before_the_update(desk: Desk) -> None:
    desk.upload("a.png")
    desk.app.settings.save("cat", "v1", dataset={"width_px": 500})
    with pytest.raises(ConfigError, match="500 is not a multiple of 8"):
        desk.app.datasets.start_update("cat", "v1")


def test_stop_of_an_update_that_does_not_run(desk: Desk) -> None:
    desk.upload("a.png")
    for _ in range(2):
        with pytest.raises(JobError, match="No update is running"):
            desk.app.datasets.stop_update("cat", "v1")
        desk.update()


def test_an_update_job_that_is_gone(desk: Desk) -> None:
    """The person may empty the jobs folder."""
    desk.upload("a.png")
    desk.update()
    for path in desk.workspace.jobs_dir.iterdir():
        path.rename(desk.root / path.name)
    assert desk.shown().update is None
    desk.update()

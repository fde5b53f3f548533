"""The pictures of a version, as the page shows and changes them; updates run in this process."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, PngImagePlugin

from lora_train.app.snapshot import DatasetSnapshot
from lora_train.core import events as ev
from lora_train.core.errors import ConfigError, DatasetError, JobError, WorkspaceError
from lora_train.core.events import EventWriter
from lora_train.core.jobs import DatasetSpec, JobFolder
from lora_train.data.update import update_dataset
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update is done here instead, at once."""

    def start(job: JobFolder) -> None:
        spec = job.read_spec()
        assert isinstance(spec, DatasetSpec)
        events = EventWriter(job.events_path)
        events.write(ev.Started(pid=0))
        events.write(ev.Finished(result=update_dataset(spec, job, events)))
        events.close()

    class Ended(launcher.Worker):
        def __init__(self, job: JobFolder) -> None:
            start(job)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(launcher, "start_worker", Ended)
    monkeypatch.setattr(Ended, "__del__", lambda self: None)


def upload(desk: Desk, *names: str) -> None:
    desk.version()
    files = [(name, desk.picture(color=(number, 0, 0))) for number, name in enumerate(names)]
    assert desk.app.datasets.add("cat", "v1", files) == []


def update(desk: Desk, **settings: object) -> None:
    desk.app.settings.save("cat", "v1", train={"repeats": 4}, dataset={"width_px": 64, "height_px": 64, **settings})
    desk.app.datasets.start_update("cat", "v1")


def shown(desk: Desk) -> DatasetSnapshot:
    return desk.app.datasets.snapshot("cat", "v1")


def files(desk: Desk) -> list[tuple[str, bool]]:
    return [(entry.file, entry.is_waiting) for entry in shown(desk).pictures]


# --- what is shown ---


def test_from_upload_to_set(desk: Desk) -> None:
    desk.version()
    assert shown(desk) == DatasetSnapshot()
    upload(desk, "b.png", "猫.png")
    desk.app.datasets.add_bytes("cat", "v1", [("猫.txt", b"a cat\nsits")])
    entries = {entry.file: entry for entry in shown(desk).pictures}
    assert list(entries) == ["b.png", "猫.png"]
    assert all(entry.is_waiting for entry in entries.values())
    assert (entries["猫.png"].caption, entries["猫.png"].width_px, entries["猫.png"].height_px) == (
        "a cat sits",
        64,
        64,
    )
    assert shown(desk).folders == []

    update(desk, width_px=128)
    snapshot = shown(desk)
    entries = {entry.file: entry for entry in snapshot.pictures}
    assert list(entries) == ["4_cat/b.png", "4_cat/猫.png"]
    assert (entries["4_cat/b.png"].caption, entries["4_cat/猫.png"].caption) == ("cat", "a cat sits")
    assert (entries["4_cat/b.png"].width_px, entries["4_cat/b.png"].repeats) == (128, 4)
    assert not any(entry.is_waiting or entry.is_regularisation for entry in entries.values())
    assert [Path(folder).name for folder in snapshot.folders] == ["4_cat"]
    assert Path(snapshot.folders[0]).is_dir()
    assert snapshot.update is not None
    assert (snapshot.update.state, snapshot.problems) == ("finished", [])

    upload(desk, "new.png")
    assert files(desk) == [("4_cat/b.png", False), ("4_cat/猫.png", False), ("new.png", True)]
    assert desk.again().datasets.snapshot("cat", "v1").pictures == shown(desk).pictures


def test_folder_by_the_project_caption_by_the_trigger_word(desk: Desk) -> None:
    upload(desk, "a.png")
    desk.app.settings.save("cat", "v1", train={"repeats": 4, "trigger_word": " sks "}, dataset={"width_px": 64})
    desk.app.datasets.start_update("cat", "v1")
    assert [(entry.file, entry.caption) for entry in shown(desk).pictures] == [("4_cat/a.png", "sks")]


def test_all_pieces_of_a_picture_are_removed(desk: Desk) -> None:
    desk.version()
    desk.app.datasets.add("cat", "v1", [("long.png", desk.picture((200, 64)))])
    upload(desk, "a.png")
    update(desk, split=True, flip=True)
    assert len(shown(desk).pictures) == 4 * 2 + 2  # L = 200: ceil((200 - 12.8) / 51.2)
    undo = desk.app.datasets.remove("cat", "v1", "4_cat/long-2.png")
    assert [file for file, _ in files(desk)] == ["4_cat/a-flip.png", "4_cat/a.png"]
    desk.workspace.trash.restore(undo.entry)
    assert len(shown(desk).pictures) == 10


def test_regularisation_and_repeats(desk: Desk) -> None:
    desk.trained("3_cat/a.png", "5_dog/d.png", "reg/1_person/r.png")
    by_file = {entry.file: entry for entry in shown(desk).pictures}
    assert [(entry.repeats, entry.is_regularisation) for entry in by_file.values()] == [
        (3, False),
        (5, False),
        (1, True),
    ]
    desk.app.settings.save("cat", "v1", train={"repeats": 9})
    assert [entry.repeats for entry in shown(desk).pictures] == [9, 9, 1]


def test_damage_is_told(desk: Desk) -> None:
    processed = desk.trained("4_cat/a.png")
    (processed / "4_cat" / "b.png").write_bytes(b"a text")
    snapshot = shown(desk)
    assert [entry.file for entry in snapshot.pictures] == ["4_cat/a.png"]
    assert "b.png can't be used" in snapshot.problems[0]
    (processed / "4_cat" / "a.png").unlink()
    assert any("b.png can't be used" in problem for problem in shown(desk).problems)
    assert shown(desk).pictures == []


def test_a_picture_that_can_not_be_read_waits_all_the_same(desk: Desk) -> None:
    desk.version()
    origin = desk.workspace.find_version("cat", "v1").origin_dir
    origin.mkdir(parents=True)
    (origin / "a.png").write_bytes(b"a text")
    (entry,) = shown(desk).pictures
    assert (entry.file, entry.width_px, entry.is_waiting) == ("a.png", 0, True)


def test_the_set_is_read_again_only_when_it_changed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for every second, by several pages."""
    processed = desk.trained("4_cat/a.png", "4_cat/b.png")
    upload(desk, "c.png")
    read: list[Path] = []

    from lora_train.data import dataset as dataset_module  # the name that is replaced

    original = dataset_module.open_picture
    monkeypatch.setattr(dataset_module, "open_picture", lambda path: read.append(path) or original(path))
    first = shown(desk)
    assert len(read) == 2
    with ThreadPoolExecutor(4) as pool:
        assert all(snapshot.pictures == first.pictures for snapshot in pool.map(lambda _: shown(desk), range(8)))
    assert len(read) == 2
    desk.app.datasets.set_caption("cat", "v1", "4_cat/a.png", "new")
    assert shown(desk).pictures[0].caption == "new"
    assert len(read) == 2, "an edited caption makes no picture be decoded again"
    time.sleep(0.01)
    Image.new("RGB", (8, 8)).save(processed / "4_cat" / "a.png")
    assert shown(desk).pictures[0].width_px == 8
    assert len(read) == 3
    begun = time.perf_counter()
    for _ in range(10):
        shown(desk)
    assert (time.perf_counter() - begun) / 10 < 0.02


def test_many_pictures_that_wait(desk: Desk) -> None:
    """Each has its caption: one listing of the folder for all of them, not one for each."""
    desk.version()
    origin = desk.workspace.find_version("cat", "v1").origin_dir
    origin.mkdir(parents=True)
    content = desk.picture((8, 8)).read_bytes()
    for number in range(1000):
        (origin / f"{number:04}.png").write_bytes(content)
        (origin / f"{number:04}.txt").write_text(f"caption {number}", encoding="utf-8")
    begun = time.perf_counter()
    pictures = shown(desk).pictures
    assert time.perf_counter() - begun < 3, "0.3 s on one slow core"
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
    stamp = shown(desk).pictures[0].stamp
    time.sleep(0.01)
    Image.new("RGB", (32, 8)).save(processed / "4_cat" / "a.png")
    assert desk.app.datasets.thumbnail("cat", "v1", "4_cat/a.png", is_waiting=False) != before
    assert shown(desk).pictures[0].stamp != stamp


@pytest.mark.parametrize(
    "file",
    ["", ".", "..", "../origin/o.png", "4_cat/../../../version.json", "4_cat", "4_cat/b.png", "a.png", "4_cat/a.txt"],
)
@pytest.mark.parametrize("is_waiting", [False, True])
def test_only_pictures_of_the_dataset_are_given(desk: Desk, file: str, is_waiting: bool) -> None:
    processed = desk.trained("4_cat/a.png")
    upload(desk, "o.png")
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
    assert [entry.caption for entry in shown(desk).pictures] == ["自作, a cat", ""]
    assert (processed / "4_cat" / "a.txt").read_bytes() == "自作, a cat".encode()
    assert not (processed / "4_cat" / "b.caption").exists(), "one caption for one picture"
    assert len(list(desk.workspace.trash_dir.glob("*/b.caption"))) == 1
    upload(desk, "a.png")
    update(desk)
    assert {entry.file: entry.caption for entry in shown(desk).pictures}["4_cat/a.png"] == "自作, a cat"


# --- removing ---


def test_remove_and_restore(desk: Desk) -> None:
    upload(desk, "a.png", "b.jpg")
    desk.app.datasets.add_bytes("cat", "v1", [("a.txt", b"a cat")])
    update(desk, flip=True)
    upload(desk, "w.png")
    version_dir = desk.workspace.find_version("cat", "v1").path / "dataset"

    def all_files() -> set[str]:
        return {path.relative_to(version_dir).as_posix() for path in version_dir.rglob("*") if path.is_file()}

    before, pictures = all_files(), shown(desk).pictures
    undo = desk.app.datasets.remove("cat", "v1", "4_cat/a-flip.png")
    assert undo.what == "a.png"
    assert before - all_files() == {
        *("origin/a.png", "origin/a.txt"),
        *(f"processed/4_cat/a{flip}.{suffix}" for flip in ("", "-flip") for suffix in ("png", "txt")),
    }
    waiting = desk.app.datasets.remove("cat", "v1", "w.png")
    assert ("w.png", True) not in files(desk)
    assert len(files(desk)) == 2

    desk.app.projects.restore(waiting.entry)
    assert desk.app.projects.restore(undo.entry).version == "v1"
    assert all_files() == before
    assert shown(desk).pictures == pictures


def test_remove_what_was_put_there_by_hand(desk: Desk) -> None:
    """It has no original; an upload of the same name that has one is another picture."""
    upload(desk, "a.png")
    update(desk)
    desk.trained("5_dog/a.png")
    desk.app.datasets.remove("cat", "v1", "5_dog/a.png")
    assert files(desk) == [("4_cat/a.png", False)]
    assert (desk.workspace.find_version("cat", "v1").origin_dir / "a.png").is_file()


def test_remove_from_a_set_of_the_command_line(desk: Desk) -> None:
    """It has no manifest: equal names tell."""
    upload(desk, "a.png", "b.png")
    desk.trained("4_cat/a.png", "4_cat/b.png")
    desk.app.datasets.remove("cat", "v1", "4_cat/a.png")
    assert files(desk) == [("4_cat/b.png", False)]


def test_remove_touches_no_other_caption(desk: Desk) -> None:
    """Also where two pictures share one, and where one has two."""
    folder = desk.trained("4_cat/a.png", "4_cat/b.png") / "4_cat"
    Image.new("RGB", (64, 64)).save(folder / "a.jpg")
    (folder / "b.caption").write_text("older", encoding="utf-8")
    desk.app.datasets.remove("cat", "v1", "4_cat/a.png")
    assert (folder / "a.txt").is_file(), "it is a.jpg's too"
    undo = desk.app.datasets.remove("cat", "v1", "4_cat/b.png")
    assert {path.name for path in folder.iterdir()} == {"a.jpg", "a.txt"}
    desk.app.projects.restore(undo.entry)
    assert {path.name for path in folder.iterdir()} == {"a.jpg", "a.txt", "b.png", "b.txt", "b.caption"}


# --- replacing ---


def everything(desk: Desk) -> dict[str, bytes]:
    folder = desk.workspace.find_version("cat", "v1").path / "dataset"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_replace_a_waiting_picture(desk: Desk) -> None:
    upload(desk, "a.png", "b.png")
    desk.app.datasets.add_bytes("cat", "v1", [("a.txt", b"a cat")])
    before = everything(desk)
    new = desk.root / "new"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(new, "JPEG")
    undo = desk.app.datasets.replace("cat", "v1", "a.png", "photo.whatever", new)
    assert undo.what == "a.png"
    changed = everything(desk)
    assert changed["origin/a.jpg"] == new.read_bytes()
    assert {name: changed.get(name) for name in before} == {**before, "origin/a.png": None}
    entries = {entry.file: entry for entry in shown(desk).pictures}
    assert (entries["a.jpg"].caption, entries["a.jpg"].width_px) == ("a cat", 30)
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before


def test_replace_a_trained_picture(desk: Desk) -> None:
    """It is trained as it was until the next update; captions edited by hand stay, of this picture and of others."""
    upload(desk, "a.png", "b.png")
    update(desk, flip=True)
    for file, caption in (("4_cat/a.png", "edited"), ("4_cat/a-flip.png", "flipped"), ("4_cat/b.png", "other")):
        desk.app.datasets.set_caption("cat", "v1", file, caption)
    before = everything(desk)
    undo = desk.app.datasets.replace("cat", "v1", "4_cat/a-flip.png", "x.png", desk.picture((96, 32), (0, 255, 0)))
    assert {name for name, content in everything(desk).items() if before[name] != content} == {"origin/a.png"}
    assert [entry for entry in files(desk) if entry[1]] == [("a.png", True)], "the new one waits"
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before
    assert [entry for entry in files(desk) if entry[1]] == []

    desk.app.datasets.replace("cat", "v1", "4_cat/a.png", "x.png", desk.picture((96, 32), (0, 255, 0)))
    update(desk, flip=True)
    captions = {entry.file: entry.caption for entry in shown(desk).pictures}
    assert captions == {
        "4_cat/a.png": "edited",
        "4_cat/a-flip.png": "flipped",
        "4_cat/b.png": "other",
        "4_cat/b-flip.png": "cat",
    }
    with Image.open(desk.workspace.find_version("cat", "v1").dataset_dir / "4_cat" / "a.png") as made:
        assert made.getpixel((32, 32)) == (0, 255, 0)


def test_replace_by_a_picture_of_another_kind(desk: Desk) -> None:
    """The original gets another suffix, and still stands for the same trained picture."""
    upload(desk, "a.png", "b.png")
    update(desk)
    desk.app.datasets.set_caption("cat", "v1", "4_cat/a.png", "edited")
    before = everything(desk)
    new = desk.root / "new"
    Image.new("RGB", (96, 96), (0, 255, 0)).save(new, "JPEG")
    undo = desk.app.datasets.replace("cat", "v1", "4_cat/a.png", "x.jpg", new)
    assert files(desk) == [("4_cat/a.png", False), ("4_cat/b.png", False), ("a.jpg", True)]
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before
    desk.app.datasets.replace("cat", "v1", "4_cat/a.png", "x.jpg", new)
    update(desk)
    assert {entry.file: entry.caption for entry in shown(desk).pictures} == {
        "4_cat/a.png": "edited",
        "4_cat/b.png": "cat",
    }


def test_the_prompt_in_a_replaced_picture_stays_its_caption(desk: Desk) -> None:
    desk.version()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a (cat:1.2)\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 1")
    path = desk.root / "made.png"
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    desk.app.datasets.add("cat", "v1", [("a.png", path)])
    before = everything(desk)
    assert shown(desk).pictures[0].caption == "a cat"
    undo = desk.app.datasets.replace("cat", "v1", "a.png", "b.png", desk.picture())
    assert shown(desk).pictures[0].caption == "a cat"
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before


def test_what_can_not_be_put_in_the_place_of_a_picture(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(desk, "a.png")
    before = everything(desk)
    text = desk.root / "text"
    text.write_bytes(b"no picture")
    replace = desk.app.datasets.replace
    with pytest.raises(DatasetError, match=r"^new\.png can't be used: it is not a picture"):
        replace("cat", "v1", "a.png", "new.png", text)
    with pytest.raises(WorkspaceError, match="There is no picture"):
        replace("cat", "v1", "../a.png", "new.png", desk.picture())

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_train.data.replacing.replace", full)
    with pytest.raises(DatasetError, match=r"a\.png can't be replaced: No space left on device"):
        replace("cat", "v1", "a.png", "new.png", desk.picture(color=(9, 9, 9)))
    assert everything(desk) == before


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
    upload(desk, "a.png")
    update(desk)
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
    upload(desk, "a.png")
    update(desk)
    job = desk.train()
    desk.version("cat", "v2")
    queue = JobQueue(desk.workspace.root)
    queue.add(job)
    with pytest.raises(JobError, match="needs the pictures"):
        desk.app.datasets.start_update("cat", "v1")
    upload(desk, "b.png")  # uploads do no harm
    queue.cancel(job)
    desk.app.datasets.start_update("cat", "v1")


def test_sizes_that_can_not_be_are_told_before_the_update(desk: Desk) -> None:
    upload(desk, "a.png")
    desk.app.settings.save("cat", "v1", dataset={"width_px": 500})
    with pytest.raises(ConfigError, match="500 is not a multiple of 8"):
        desk.app.datasets.start_update("cat", "v1")


def test_stop_of_an_update_that_does_not_run(desk: Desk) -> None:
    upload(desk, "a.png")
    for _ in range(2):
        with pytest.raises(JobError, match="No update is running"):
            desk.app.datasets.stop_update("cat", "v1")
        update(desk)


def test_an_update_job_that_is_gone(desk: Desk) -> None:
    """The person may empty the jobs folder."""
    upload(desk, "a.png")
    update(desk)
    for path in desk.workspace.jobs_dir.iterdir():
        path.rename(desk.root / path.name)
    assert shown(desk).update is None
    update(desk)

"""Pictures of a version are removed, replaced and brought back; updates run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, PngImagePlugin

from lora_train.core.errors import DatasetError, WorkspaceError

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

pytestmark = pytest.mark.usefixtures("updates_here")


# --- removing ---


def test_remove_and_restore(desk: Desk) -> None:
    desk.upload("a.png", "b.jpg")
    desk.app.datasets.add_bytes("cat", "v1", [("a.txt", b"a cat")])
    desk.update(flip=True)
    desk.upload("w.png")
    version_dir = desk.workspace.find_version("cat", "v1").path / "dataset"

    def all_files() -> set[str]:
        return {path.relative_to(version_dir).as_posix() for path in version_dir.rglob("*") if path.is_file()}

    before, pictures = all_files(), desk.shown().pictures
    undo = desk.app.datasets.remove("cat", "v1", "4_cat/a-flip.png")
    assert undo.what == "a.png"
    assert before - all_files() == {
        *("origin/a.png", "origin/a.txt"),
        *(f"processed/4_cat/a{flip}.{suffix}" for flip in ("", "-flip") for suffix in ("png", "txt")),
    }
    waiting = desk.app.datasets.remove("cat", "v1", "w.png")
    assert ("w.png", True) not in desk.files()
    assert len(desk.files()) == 2

    desk.app.projects.restore(waiting.entry)
    assert desk.app.projects.restore(undo.entry).version == "v1"
    assert all_files() == before
    assert desk.shown().pictures == pictures


def test_remove_what_was_put_there_by_hand(desk: Desk) -> None:
    """It has no original; an upload of the same name that has one is another picture."""
    desk.upload("a.png")
    desk.update()
    desk.trained("5_dog/a.png")
    desk.app.datasets.remove("cat", "v1", "5_dog/a.png")
    assert desk.files() == [("4_cat/a.png", False)]
    assert (desk.workspace.find_version("cat", "v1").origin_dir / "a.png").is_file()


def test_remove_from_a_set_of_the_command_line(desk: Desk) -> None:
    """It has no manifest: equal names tell."""
    desk.upload("a.png", "b.png")
    desk.trained("4_cat/a.png", "4_cat/b.png")
    desk.app.datasets.remove("cat", "v1", "4_cat/a.png")
    assert desk.files() == [("4_cat/b.png", False)]


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
    desk.upload("a.png", "b.png")
    desk.app.datasets.add_bytes("cat", "v1", [("a.txt", b"a cat")])
    before = everything(desk)
    new = desk.root / "new"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(new, "JPEG")
    undo = desk.app.datasets.replace("cat", "v1", "a.png", "photo.whatever", new)
    assert undo.what == "a.png"
    changed = everything(desk)
    assert changed["origin/a.jpg"] == new.read_bytes()
    assert {name: changed.get(name) for name in before} == {**before, "origin/a.png": None}
    entries = {entry.file: entry for entry in desk.shown().pictures}
    assert (entries["a.jpg"].caption, entries["a.jpg"].width_px) == ("a cat", 30)
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before


def test_replace_a_trained_picture(desk: Desk) -> None:
    """It is trained as it was until the next update; captions edited by hand stay, of this picture and of others."""
    desk.upload("a.png", "b.png")
    desk.update(flip=True)
    for file, caption in (("4_cat/a.png", "edited"), ("4_cat/a-flip.png", "flipped"), ("4_cat/b.png", "other")):
        desk.app.datasets.set_caption("cat", "v1", file, caption)
    before = everything(desk)
    undo = desk.app.datasets.replace("cat", "v1", "4_cat/a-flip.png", "x.png", desk.picture((96, 32), (0, 255, 0)))
    assert {name for name, content in everything(desk).items() if before[name] != content} == {"origin/a.png"}
    assert [entry for entry in desk.files() if entry[1]] == [("a.png", True)], "the new one waits"
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before
    assert [entry for entry in desk.files() if entry[1]] == []

    desk.app.datasets.replace("cat", "v1", "4_cat/a.png", "x.png", desk.picture((96, 32), (0, 255, 0)))
    desk.update(flip=True)
    captions = {entry.file: entry.caption for entry in desk.shown().pictures}
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
    desk.upload("a.png", "b.png")
    desk.update()
    desk.app.datasets.set_caption("cat", "v1", "4_cat/a.png", "edited")
    before = everything(desk)
    new = desk.root / "new"
    Image.new("RGB", (96, 96), (0, 255, 0)).save(new, "JPEG")
    undo = desk.app.datasets.replace("cat", "v1", "4_cat/a.png", "x.jpg", new)
    assert desk.files() == [("4_cat/a.png", False), ("4_cat/b.png", False), ("a.jpg", True)]
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before
    desk.app.datasets.replace("cat", "v1", "4_cat/a.png", "x.jpg", new)
    desk.update()
    assert {entry.file: entry.caption for entry in desk.shown().pictures} == {
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
    assert desk.shown().pictures[0].caption == "a cat"
    undo = desk.app.datasets.replace("cat", "v1", "a.png", "b.png", desk.picture())
    assert desk.shown().pictures[0].caption == "a cat"
    desk.app.projects.restore(undo.entry)
    assert everything(desk) == before


def test_what_can_not_be_put_in_the_place_of_a_picture(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.upload("a.png")
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


# --- problems ---


def test_a_picture_that_another_program_held_is_there_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a change of any file; what pages show may take a moment, what is done looks again."""
    desk.trained("5_dog/a.png", "5_dog/b.png")
    version = desk.workspace.find_version("cat", "v1")
    scans = desk.app.datasets
    with monkeypatch.context() as held:

        def refuse(path: Path) -> bytes:
            raise PermissionError(13, "held", str(path))

        held.setattr(Path, "read_bytes", refuse)
        with scans.glancing(), pytest.raises(DatasetError, match=r"a\.png can't be used: it can't be read"):
            scans.numbered(version)
    with scans.glancing(), pytest.raises(DatasetError):
        scans.numbered(version)
    read = scans.numbered(version)
    assert len(read.pictures) == 2
    assert scans.numbered(version) is read
    with scans.glancing():
        assert scans.numbered(version) is read


def test_what_is_still_a_problem_makes_no_other_set(desk: Desk) -> None:
    root = desk.trained("5_dog/a.png", "5_dog/b.png")
    (root / "5_dog" / "b.png").write_bytes(b"none")
    version = desk.workspace.find_version("cat", "v1")
    read = desk.app.datasets.numbered(version)
    assert len(read.problems) == 1
    assert desk.app.datasets.numbered(version) is read

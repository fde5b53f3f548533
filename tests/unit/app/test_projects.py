"""Projects and versions of any name: made, renamed, copied, deleted, brought back, and remembered."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_train.app.snapshot import Selection
from lora_train.app.version_settings import dataset_settings
from lora_train.core import events as ev
from lora_train.core.errors import WorkspaceError
from lora_train.core.jobs import JobFolder
from lora_train.core.progress import StopAskedForError, telling
from lora_train.core.specs import DatasetSpec, SamplesSpec, TrainSpec
from lora_train.data.update import update_dataset

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

NAMES = ["自作LORA", "Кот", "🐈 猫", "CON", "dots...", "x" * 200, "cat", "Cat", "../x", "a:b", "a?b", "قطة", "100%"]
HARD_NAMES = [*NAMES, "aux.txt", "猫" * 200, "が", "か\u3099", "..\\..\\x", "👨‍👩‍👧", " padded ", "COM1."]

_KNOWN_IN_ROOT = {"projects", "page.json", "trash", "changes.lock", "settings.lock"}


def files_below(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# --- names ---


def test_names_of_any_kind_live_together(desk: Desk) -> None:
    projects = desk.app.projects
    for name in NAMES:
        shown = projects.create(name)
        assert shown.version == ""
        assert projects.create_version(shown.project, name).project == shown.project
    entries = projects.list()
    assert [entry.name for entry in entries] == NAMES[::-1], "newest first"
    assert [entry.versions[0].name for entry in entries] == NAMES[::-1]
    folded = {unicodedata.normalize("NFC", entry.id).casefold() for entry in entries}
    assert len(folded) == len(NAMES), "also where letter case makes no difference"
    assert {path.name for path in desk.workspace.root.iterdir()} == {"projects", "page.json"}
    assert {path.parent for path in desk.workspace.root.glob("projects/*/project.json")} == {
        desk.workspace.projects_dir / entry.id for entry in entries
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_name_once(desk: Desk, name: str) -> None:
    projects = desk.app.projects
    shown = projects.create(name)
    projects.create_version(shown.project, name)
    for again in (name, f"  {name} ", unicodedata.normalize("NFD", name)):
        with pytest.raises(WorkspaceError, match="There is a project"):
            projects.create(again)
        with pytest.raises(WorkspaceError, match="There is a version") as error:
            projects.create_version(shown.project, again)
        assert "another name" in error.value.hint
    assert len(projects.list()) == 1
    assert len(projects.list()[0].versions) == 1


@pytest.mark.parametrize("name", HARD_NAMES)
def test_a_name_through_its_whole_life(desk: Desk, name: str) -> None:
    """Made, renamed, copied, deleted and brought back: always found by the name as typed, in a folder of its own."""
    projects = desk.app.projects
    typed = unicodedata.normalize("NFC", name.strip())

    def names() -> list[tuple[str, list[str]]]:
        assert {path.name for path in desk.workspace.root.iterdir()} <= _KNOWN_IN_ROOT
        assert not list(desk.root.glob("x*"))
        listed = [(entry.name, sorted(version.name for version in entry.versions)) for entry in projects.list()]
        assert {path.name for path in desk.workspace.projects_dir.iterdir()} == {entry.id for entry in projects.list()}
        return sorted(listed)

    plain = projects.create("plain").project
    projects.create_version(plain, "v1")
    desk.trained("1_a/a.png", project="plain")
    assert desk.workspace.project("plain").version("v1").path.name == "v1"

    copied = projects.duplicate_version(plain, "v1", name)
    assert names() == [("plain", sorted(["v1", typed]))]
    assert len(desk.app.datasets.snapshot(*ids_of(copied)).pictures) == 1
    other = projects.rename_version(plain, copied.version, "other")
    again = projects.rename_version(plain, other.version, name)
    assert desk.workspace.project("plain").version(name).path.name == again.version

    renamed = projects.rename(plain, name)
    assert renamed == Selection(renamed.project, again.version)
    assert desk.workspace.project(name).path.name == renamed.project
    assert names() == [(typed, sorted(["v1", typed]))]

    undo_version = projects.delete_version(renamed.project, again.version)
    assert names() == [(typed, ["v1"])]
    undo = projects.delete(renamed.project)
    assert names() == []
    assert projects.restore(undo.entry).project == renamed.project
    assert projects.restore(undo_version.entry) == renamed
    assert names() == [(typed, sorted(["v1", typed]))]
    assert len(desk.app.datasets.snapshot(*ids_of(renamed)).pictures) == 1


def ids_of(selection: Selection) -> tuple[str, str]:
    return selection.project, selection.version


@pytest.mark.parametrize("name", ["", "  ", "...", "/", "\x00", "\ud800"])
def test_names_that_are_none(desk: Desk, name: str) -> None:
    shown = desk.app.projects.create("cat")
    desk.app.projects.create_version("cat", "v1")
    for create in (
        lambda: desk.app.projects.create(name),
        lambda: desk.app.projects.create_version("cat", name),
        lambda: desk.app.projects.rename("cat", name),
        lambda: desk.app.projects.rename_version("cat", "v1", name),
        lambda: desk.app.projects.duplicate_version("cat", "v1", name),
    ):
        with pytest.raises(WorkspaceError, match=r"can't be a name|Type a name first"):
            create()
    assert [(entry.name, [v.name for v in entry.versions]) for entry in desk.app.projects.list()] == [("cat", ["v1"])]
    assert shown.project == "cat"


def test_unknown_ids(desk: Desk) -> None:
    desk.version()
    projects = desk.app.projects
    for call in (
        lambda: projects.rename("dog", "x"),
        lambda: projects.delete("../cat"),
        lambda: projects.create_version("dog", "v1"),
        lambda: projects.rename_version("cat", "v9", "x"),
        lambda: projects.duplicate_version("cat", "../v1", "x"),
        lambda: projects.delete_version("cat", ""),
        lambda: projects.select("dog", "v1"),
    ):
        with pytest.raises(WorkspaceError, match="does not exist"):
            call()


# --- renaming ---


def test_rename_takes_everything_along(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    job = desk.finished(loras=["cat-v1-000001.safetensors", "cat-v1.safetensors"])
    desk.app.settings.save("cat", "v1", train={"epochs": 3})
    assert len(desk.app.training.list("cat", "v1")[0].loras) == 2
    before = files_below(desk.workspace.projects_dir / "cat" / "versions" / "v1" / "dataset")

    assert desk.app.projects.rename("cat", "猫: 2") == Selection("猫_ 2", "v1")
    assert desk.app.projects.rename_version("猫_ 2", "v1", "neu") == Selection("猫_ 2", "neu")
    for app in (desk.app, desk.again()):
        (entry,) = app.projects.list()
        assert (entry.id, entry.name, entry.versions[0].name) == ("猫_ 2", "猫: 2", "neu")
        assert app.settings.train("猫_ 2", "neu")["epochs"] == 3
        (train,) = app.training.list("猫_ 2", "neu")
        assert train.job == job.replace("projects/cat/versions/v1", "projects/猫_ 2/versions/neu")
        assert len(train.loras) == 2, "files keep the name they have in prompts"
    assert files_below(desk.workspace.projects_dir / "猫_ 2" / "versions" / "neu" / "dataset") == before


def test_rename_keeps_what_was_looked_at(desk: Desk) -> None:
    for version in ("v1", "v2", "v3"):
        desk.version("cat", version)
    desk.app.projects.select("cat", "v2")
    assert desk.app.projects.rename("cat", "dog") == Selection("dog", "v2")
    desk.version("bird")
    desk.app.projects.select("bird", "v1")
    assert desk.app.projects.rename("dog", "frog").project == "frog"


def test_rename_to_a_name_that_is_taken(desk: Desk) -> None:
    desk.version("cat", "v1")
    desk.version("cat", "v2")
    desk.version("dog")
    with pytest.raises(WorkspaceError, match="dog exists already"):
        desk.app.projects.rename("cat", "dog")
    with pytest.raises(WorkspaceError, match="v2 exists already"):
        desk.app.projects.rename_version("cat", "v1", "v2")
    assert desk.app.projects.rename("cat", "cat").project == "cat"
    assert desk.app.projects.rename("cat", "CAT").project == "CAT"


def test_another_project_under_the_old_name_is_another(desk: Desk) -> None:
    """What was read of the first one's train must not be told of the second's."""
    desk.finished(rank=4)
    assert desk.app.training.list("cat", "v1")[0].status.state == "finished"
    desk.app.projects.rename("cat", "dog")
    time.sleep(0.01)
    desk.train(rank=32)
    (train,) = desk.app.training.list("cat", "v1")
    assert (train.status.state, train.loras) == ("waiting", [])
    assert "rank 32" in train.summary
    assert "rank 4 " in desk.app.training.list("dog", "v1")[0].summary


# --- copies ---


def test_duplicate(desk: Desk) -> None:
    project, version = desk.version()
    desk.trained("4_cat/a.png", "reg/r.png")
    desk.app.datasets.add(project, version, [("b.png", desk.picture())])
    (desk.trained() / ".made.json").write_bytes(b'{"files":{}}')
    desk.finished()
    desk.app.settings.save(project, version, train={"epochs": 3, "trigger_word": "猫"}, dataset={"flip": True})
    with desk.workspace.find_version(project, version).changing() as info:
        info.update_job = "jobs/some"
    source = desk.workspace.projects_dir / "cat" / "versions" / "v1"
    (source / "dataset" / "processed.new").mkdir()
    before = files_below(source)

    assert desk.app.projects.duplicate_version(project, version, "v2") == Selection("cat", "v2")
    copy = desk.workspace.find_version("cat", "v2")
    assert files_below(copy.path / "dataset") == files_below(source / "dataset")
    assert not (copy.path / "dataset" / "processed.new").exists()
    assert desk.app.settings.train("cat", "v2")["trigger_word"] == "猫"
    assert desk.app.settings.dataset("cat", "v2")["flip"] is True
    assert desk.app.training.list("cat", "v2") == []
    assert desk.app.datasets.snapshot("cat", "v2").update is None
    assert copy.info().created > desk.workspace.find_version("cat", "v1").info().created
    assert files_below(source) == before
    (copy.dataset_dir / "4_cat" / "a.txt").write_text("changed", encoding="utf-8")
    assert files_below(source) == before
    with pytest.raises(WorkspaceError, match="There is a version v2"):
        desk.app.projects.duplicate_version(project, version, "v2")


def test_a_copy_that_can_not_be_made_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    project, version = desk.version()
    desk.trained("4_cat/a.png", "4_cat/b.png")

    def full(source: str, target: str, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(WorkspaceError, match="cat v1 can't be copied: No space left"):
        desk.app.projects.duplicate_version(project, version, "v2")
    assert [entry.id for entry in desk.app.projects.list()[0].versions] == ["v1"]


def test_a_copy_that_is_stopped_leaves_nothing(desk: Desk) -> None:
    project, version = desk.version()
    desk.trained("4_cat/a.png", "4_cat/b.png")
    before = files_below(desk.workspace.projects_dir)
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        raise StopAskedForError

    with telling(stop), pytest.raises(WorkspaceError, match="Stopped: there is no copy"):
        desk.app.projects.duplicate_version(project, version, "v2")
    assert told == [(1, len(files_below(desk.workspace.find_version(project, version).path / "dataset")))]
    assert files_below(desk.workspace.projects_dir) == before


@pytest.mark.parametrize("has_links", [True, False])
def test_versions_are_cheap_forks_that_share_no_change(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Pictures are the same files on the disk, and whatever is done in one version changes no other."""
    if not has_links:

        def refuse(*args: object, **options: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("os.link", refuse)
    datasets, (project, version) = desk.app.datasets, desk.version()
    names = ["a.png", "b.png", "c.png"]
    datasets.add(project, version, [(name, desk.picture(color=(i, 0, 0))) for i, name in enumerate(names)])
    datasets.add_bytes(project, version, [("a.txt", b"a cat")])
    desk.app.settings.save(project, version, train={"repeats": 4}, dataset={"width_px": 64, "height_px": 64})
    update_here(desk, "v1")

    desk.app.projects.duplicate_version(project, version, "v2")
    first, second = (desk.workspace.find_version(project, name).path / "dataset" for name in ("v1", "v2"))
    for file in ("origin/a.png", "processed/4_cat/a.png"):
        assert (first / file).samefile(second / file) == has_links
    assert not (first / "processed/4_cat/a.txt").samefile(second / "processed/4_cat/a.txt")
    assert datasets.snapshot(project, "v1").pictures == datasets.snapshot(project, "v2").pictures

    kept = {"v1": files_below(first), "v2": files_below(second)}
    assert {name: content for name, content in kept["v1"].items() if name in kept["v2"]} == kept["v2"]
    for here, there, folder in (("v2", "v1", first), ("v1", "v2", second)):
        before = files_below(folder)
        datasets.set_caption(project, here, "4_cat/a.png", f"edited in {here}")
        datasets.replace(project, here, "4_cat/b.png", "new.png", desk.picture(color=(9, 99, 9)))
        datasets.remove(project, here, "4_cat/c.png")
        datasets.add_bytes(project, here, [("a.txt", f"of {here}".encode())])
        desk.app.settings.save(project, here, dataset={"flip": True, "width_px": 32})
        update_here(desk, here)
        assert files_below(folder) == before, f"{here} changed {there}"
    desk.app.projects.delete_version(project, "v1")
    assert len(datasets.snapshot(project, "v2").pictures) == 4
    assert all(datasets.thumbnail(project, "v2", e.file, False) for e in datasets.snapshot(project, "v2").pictures)


def update_here(desk: Desk, version: str) -> None:
    """*Update Dataset*, in this process."""
    found = desk.workspace.find_version("cat", version)
    job = JobFolder(desk.workspace.new_job_dir("dataset"))
    spec = DatasetSpec(
        dataset=str(found.path / "dataset"),
        trash=str(desk.workspace.trash_dir),
        settings=dataset_settings(found),
        concept="cat",
        repeats=4,
        project="cat",
    )
    job.create(spec)
    update_dataset(spec, job, ev.EventWriter(job.events_path))


# --- deleted and brought back ---


def test_delete_and_restore(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    desk.finished()
    desk.version("cat", "v2")
    desk.version("dog")
    desk.app.projects.select("cat", "v1")
    before = files_below(desk.workspace.projects_dir)

    undo_version = desk.app.projects.delete_version("cat", "v1")
    assert undo_version.what == "cat v1"
    assert desk.app.projects.selection() == Selection("cat", "v2")
    undo_project = desk.app.projects.delete("cat")
    assert [entry.id for entry in desk.app.projects.list()] == ["dog"]
    assert desk.app.projects.selection() == Selection("dog", "v1")

    with pytest.raises(WorkspaceError, match="is gone too"):
        desk.app.projects.restore(undo_version.entry)
    app = desk.again()
    assert app.projects.restore(undo_project.entry) == Selection("cat", "v2")
    assert app.projects.restore(undo_version.entry) == Selection("cat", "v1")
    assert files_below(desk.workspace.projects_dir) == before
    assert app.training.list("cat", "v1")[0].status.state == "finished"
    with pytest.raises(WorkspaceError, match="trash any more"):
        app.projects.restore(undo_version.entry)


def test_a_place_that_is_taken_again(desk: Desk) -> None:
    desk.version("cat")
    undo = desk.app.projects.delete("cat")
    desk.app.projects.create("cat")
    with pytest.raises(WorkspaceError, match="exists again"):
        desk.app.projects.restore(undo.entry)
    desk.app.projects.rename("cat", "cat 2")
    desk.app.projects.restore(undo.entry)
    assert sorted(entry.name for entry in desk.app.projects.list()) == ["cat", "cat 2"]


# --- what is looked at ---


def test_selection_is_remembered(desk: Desk) -> None:
    assert desk.app.projects.selection() == Selection()
    assert desk.app.projects.list() == []
    assert not desk.workspace.root.exists(), "looking makes nothing"
    for project in ("cat", "dog"):
        for version in ("v1", "v2"):
            desk.version(project, version)
            time.sleep(0.002)
    assert desk.app.projects.selection() == Selection("dog", "v2"), "the newest"
    assert desk.app.projects.select("cat", "v1") == Selection("cat", "v1")
    assert desk.again().projects.selection() == Selection("cat", "v1")
    assert desk.app.projects.select("cat", "") == Selection("cat", "v2")
    assert desk.app.projects.select("cat", "v9") == Selection("cat", "v2")
    (desk.workspace.root / "page.json").write_bytes(b"{")
    assert desk.app.projects.selection() == Selection("dog", "v2")
    assert desk.app.projects.select("", "") == Selection()


def test_one_damaged_project_hides_no_other(desk: Desk) -> None:
    """Whatever is damaged, the page comes up and the rest can be worked with."""
    for project in ("cat", "dog"):
        desk.finished(f"{project}-v1", project=project)
    cat = desk.workspace.projects_dir / "cat"
    (cat / "project.json").write_bytes(b"{")
    (cat / "versions" / "v1" / "version.json").write_bytes(b'"\xff"')
    (desk.workspace.root / "page.json").write_bytes(b"[]")
    (desk.workspace.root / "queue.json").write_bytes(b"")
    (desk.workspace.root / "paces.json").write_bytes(b"null")
    (desk.job("projects/dog/versions/v1/trains/dog-v1").path / "published.json").write_bytes(b"}")
    assert [entry.name for entry in desk.app.projects.list()] == ["dog", "cat"]
    assert desk.app.snapshot("cat", "v1").project_name == "cat"
    assert len(desk.app.snapshot("dog", "v1").trains[0].loras) == 1
    desk.app.training.forecast("dog", "v1")
    desk.app.projects.rename("cat", "bird")
    assert sorted(entry.name for entry in desk.again().projects.list()) == ["bird", "dog"]


def test_spec_of_previews_leads_to_the_train(desk: Desk) -> None:
    drawing = desk.app.training.draw_previews(desk.finished())
    spec = desk.job(drawing).read_spec()
    assert isinstance(spec, SamplesSpec)
    train = JobFolder(desk.job(drawing).path / spec.train)
    assert isinstance(train.read_spec(), TrainSpec)

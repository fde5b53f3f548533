"""What is deleted comes back as it was, and nothing is ever half deleted, half restored or lost."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from lora_train.core import trash as trash_module
from lora_train.core.errors import WorkspaceError
from lora_train.core.trash import Trash


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "work space"


@pytest.fixture
def trash(root: Path) -> Trash:
    return Trash(root / "trash", root)


def put_file(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def content_of(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


@pytest.fixture
def other_drive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renames from or to the trash fail, as between drives."""
    rename = trash_module.replace

    def replace(source: Path, target: Path) -> None:
        if (root / "trash" in source.parents) != (root / "trash" in target.parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(trash_module, "replace", replace)


def delete_and_restore(root: Path, trash: Trash, outside: Path) -> None:
    put_file(root / "projects" / "猫" / "a" / "b.txt", "b")
    put_file(root / "x.png", "x")
    put_file(outside / "x.png", "of the host")
    before, before_outside = content_of(root), content_of(outside)
    places = [root / "projects" / "猫", root / "x.png", outside / "x.png"]

    entry = trash.put("three things", places)
    assert content_of(outside) == {}
    assert not any(place.exists() for place in places)
    record = json.loads((root / "trash" / entry / "from.json").read_text(encoding="utf-8"))
    assert record["what"] == "three things"
    assert sorted(record["places"].values()) == sorted(["projects/猫", "x.png", str(outside / "x.png")])

    assert trash.restore(entry) == places
    assert content_of(outside) == before_outside
    assert content_of(root) == before, "and the entry is gone"
    with pytest.raises(WorkspaceError, match="in the trash any more"):
        trash.restore(entry)


def test_comes_back_as_it_was(root: Path, trash: Trash, tmp_path: Path) -> None:
    delete_and_restore(root, trash, tmp_path / "models" / "Lora")


@pytest.mark.usefixtures("other_drive")
def test_over_drives_too(root: Path, trash: Trash, tmp_path: Path) -> None:
    delete_and_restore(root, trash, tmp_path / "models" / "Lora")


def test_names_that_meet(root: Path, trash: Trash) -> None:
    """Also those that are one file on some systems, and that of the record."""
    paths = [put_file(root / f"{index}" / name, name) for index, name in enumerate(["A.png", "a.png", "from.json"])]
    entry = trash.put("names", paths)
    names = [path.name.casefold() for path in (root / "trash" / entry).iterdir()]
    assert len(set(names)) == 4
    trash.restore(entry)
    assert [path.read_text(encoding="utf-8") for path in paths] == ["A.png", "a.png", "from.json"]


def test_entries_in_the_same_second(root: Path, trash: Trash) -> None:
    entries = [trash.put("x", [put_file(root / "x.txt", str(number))]) for number in range(3)]
    assert len(set(entries)) == 3
    trash.restore(entries[1])
    assert (root / "x.txt").read_text(encoding="utf-8") == "1"


@pytest.mark.parametrize("name", ["🐈" * 62, "x" * 251, "...", "a" * 49 + " ."])
def test_long_and_odd_names(root: Path, trash: Trash, name: str) -> None:
    path = put_file(root / f"{name}.txt", "content")
    entry = trash.put("odd", [path])
    assert len(entry.encode("utf-8")) < 250
    assert not entry.endswith((" ", ".")), "Windows drops them"
    trash.restore(entry)
    assert path.read_text(encoding="utf-8") == "content"


def test_taken_place(root: Path, trash: Trash) -> None:
    one, two = put_file(root / "1.txt", "one"), put_file(root / "2.txt", "two")
    entry = trash.put("both", [one, two])
    put_file(two, "new")
    with pytest.raises(WorkspaceError, match=r"2\.txt exists again") as error:
        trash.restore(entry)
    assert "Rename" in error.value.hint
    assert not one.exists(), "all or nothing"
    two.unlink()
    trash.restore(entry)
    assert (one.read_text(encoding="utf-8"), two.read_text(encoding="utf-8")) == ("one", "two")


def test_a_folder_around_it_that_is_gone(root: Path, trash: Trash) -> None:
    version = put_file(root / "cat" / "versions" / "v1" / "version.json", "v1").parent
    version_entry = trash.put("cat v1", [version])
    project_entry = trash.put("cat", [root / "cat"])
    with pytest.raises(WorkspaceError, match="cat v1 can't be restored") as error:
        trash.restore(version_entry)
    assert "Restore that one first" in error.value.hint
    trash.restore(project_entry)
    trash.restore(version_entry)
    assert (version / "version.json").is_file()


def test_the_last_folder_alone_is_made_again(root: Path, trash: Trash) -> None:
    picture = put_file(root / "processed" / "10_cat" / "a.png", "a")
    entry = trash.put("a", [picture])
    picture.parent.rmdir()
    trash.restore(entry)
    assert picture.is_file()


def test_nothing_is_half_deleted(root: Path, trash: Trash, tmp_path: Path) -> None:
    first = put_file(root / "1.txt", "one")
    before = content_of(root)
    with pytest.raises(WorkspaceError, match="both can't be deleted: No such file") as error:
        trash.put("both", [first, tmp_path / "not there"])
    assert "try again" in error.value.hint
    assert content_of(root) == before
    assert list((root / "trash").iterdir()) == []


@pytest.mark.parametrize("refused", ["rename", "delete"])
def test_a_folder_that_is_in_use_is_not_lost(
    root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch, refused: str, request: pytest.FixtureRequest
) -> None:
    """On Windows a file that is open lets no folder around it be renamed, and can't be deleted itself."""
    put_file(root / "cat" / "1.txt", "one")
    locked = put_file(root / "cat" / "2.txt", "two")
    before = content_of(root / "cat")
    if refused == "rename":

        def in_use(source: Path, target: Path) -> None:
            raise PermissionError(errno.EACCES, "The process cannot access the file")

        monkeypatch.setattr(trash_module, "replace", in_use)
        with pytest.raises(WorkspaceError, match="cannot access"):
            trash.put("cat", [root / "cat"])
        assert content_of(root / "cat") == before
        return
    request.getfixturevalue("other_drive")
    remove = shutil.rmtree

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path == root / "cat":
            (path / "1.txt").unlink()  # and the open one stays
        else:
            remove(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    entry = trash.put("cat", [root / "cat"])
    assert content_of(root / "trash" / entry / "cat") == before, "the copy is whole"
    assert locked.is_file()


@pytest.mark.usefixtures("other_drive")
def test_a_file_that_cannot_be_deleted_stays(root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_file(root / "1.txt", "one")
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == path:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(WorkspaceError, match="cannot access"):
        trash.put("one", [path])
    assert content_of(root) == {"1.txt": "one"}


def test_nothing_is_half_restored(root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = put_file(root / "1.txt", "one"), put_file(root / "2.txt", "two")
    entry = trash.put("both", [one, two])
    kept = content_of(root / "trash" / entry)
    rename = trash_module.replace

    def full_disk(source: Path, target: Path) -> None:
        if target == two:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(trash_module, "replace", full_disk)
    with pytest.raises(WorkspaceError, match="both can't be restored: No space left"):
        trash.restore(entry)
    assert content_of(root / "trash" / entry) == kept
    assert not one.exists()


@pytest.mark.parametrize("entry", ["", ".", "..", "../projects", "20200101-000000 nothing", "/"])
def test_entries_that_are_not_there(root: Path, trash: Trash, entry: str) -> None:
    put_file(root / "projects" / "cat.txt", "cat")
    with pytest.raises(WorkspaceError, match="in the trash any more"):
        trash.restore(entry)
    trash.put("x", [put_file(root / "x.txt", "x")])
    with pytest.raises(WorkspaceError, match="in the trash any more"):
        trash.restore(entry)


@pytest.mark.parametrize("record", [None, b"{", b'{"what": "\xff", "places": {}}', b'{"what": "x"}'])
def test_damaged_record(root: Path, trash: Trash, record: bytes | None) -> None:
    entry = trash.put("x", [put_file(root / "x.txt", "x")])
    path = root / "trash" / entry / "from.json"
    path.unlink() if record is None else path.write_bytes(record)
    with pytest.raises(WorkspaceError, match="does not tell where its files were"):
        trash.restore(entry)
    assert (root / "trash" / entry / "x.txt").is_file()


def test_a_trash_that_cannot_be_written(root: Path, trash: Trash) -> None:
    path = put_file(root / "x.txt", "x")
    put_file(root / "trash", "a file")
    with pytest.raises(WorkspaceError, match="can't be written"):
        trash.put("x", [path])
    assert path.is_file()


# --- what was put instead ---


def test_what_was_put_instead_makes_room(root: Path, trash: Trash) -> None:
    old = put_file(root / "a" / "x.png", "old")
    new = root / "a" / "x.jpg"
    entry = trash.put("x.png", [old], replaced_by=[new, old.with_suffix(".txt")])
    put_file(new, "new")
    trash.restore(entry)
    assert content_of(root / "a") == {"x.png": "old"}
    assert "new" in content_of(root / "trash").values()

    entry = trash.put("x.png", [old], replaced_by=[old])
    put_file(old, "new again")
    trash.restore(entry)
    assert content_of(root / "a") == {"x.png": "old"}


def test_a_restore_that_fails_leaves_what_was_put_instead(
    root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put_file(root / "a" / "x.png", "old")
    entry = trash.put("x.png", [old], replaced_by=[old])
    put_file(old, "new")
    rename = trash_module.replace

    def locked(source: Path, target: Path) -> None:
        if source.parent.name == entry:
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(trash_module, "replace", locked)
    with pytest.raises(WorkspaceError, match=r"x\.png can't be restored: Permission denied"):
        trash.restore(entry)
    assert content_of(root / "a") == {"x.png": "new"}
    monkeypatch.setattr(trash_module, "replace", rename)
    trash.restore(entry)
    assert content_of(root / "a") == {"x.png": "old"}


def test_a_death_within_a_deletion_is_put_back(root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two things one is here by then; the mark tells that the entry is half done."""
    one, two = put_file(root / "1.txt", "one"), put_file(root / "2.txt", "two")
    before = content_of(root)
    rename = trash_module.replace

    def die(source: Path, target: Path) -> None:
        if source == two:
            raise KeyboardInterrupt  # nothing catches it, as nothing catches a kill
        rename(source, target)

    monkeypatch.setattr(trash_module, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        trash.put("both", [one, two])
    monkeypatch.undo()
    assert not one.exists()
    (mark,) = trash.half_done()
    trash.restore(mark.parent.name)
    assert content_of(root) == before
    trash.put("both", [one, two])
    assert trash.half_done() == []


def test_a_death_before_anything_is_restored_leaves_a_mark(
    root: Path, trash: Trash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put instead is in the trash by then, and neither of the two in its place."""
    place = put_file(root / "1.txt", "old")
    entry = trash.put("1.txt", [place], replaced_by=[place])
    put_file(place, "new")
    trash.keep(entry)
    rename = trash_module.replace

    def die(source: Path, target: Path) -> None:
        if target == place:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(trash_module, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        trash.restore(entry)
    monkeypatch.undo()
    assert not place.exists()
    assert [mark.parent.name for mark in trash.half_done()] == [entry]
    assert trash.places_of(entry) == [place]
    trash.restore(entry)
    assert place.read_text(encoding="utf-8") == "old"

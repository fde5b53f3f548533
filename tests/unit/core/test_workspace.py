"""Names in any script become folders that every system accepts, and no two LoRAs share a name."""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lora_train.core.errors import WorkspaceError
from lora_train.core.names import NAME_LIMIT_BYTES, folder_name, is_reserved, typed
from lora_train.core.workspace import Workspace, move_to_trash


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work space")


# --- folder names ---


@pytest.mark.parametrize("name", ["自作LORA", "Кот", "🐈 cat", "👨‍👩‍👧", "v1.5-b_2", "ñandú", "قطة", "100%"])
def test_names_keep_their_script(name: str) -> None:
    assert folder_name(name) == name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("  cat  ", "cat"),
        ("cat...", "cat"),
        ("cat. . ", "cat"),
        (".cat", "cat"),
        ("a\u3000b\u00a0c", "a b c"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("<lora:cat:1>", "_lora_cat_1_"),
        ("a,b=c{d}[e](f)`'", "a_b_c_d__e__f___"),
        ("a\tb\nc\x00d\x7f", "a_b_c_d_"),
        ("../x", "_x"),
        ("..\\..\\x", "_.._x"),
        ("C:\\x", "C__x"),
        ("/etc/passwd", "_etc_passwd"),
        ("\ud800cat", "cat"),
        ("CON", "CON_"),
        ("con.txt", "con_.txt"),
        ("Nul .x", "Nul_.x"),
        ("COM1", "COM1_"),
        ("LPT\u00b9", "LPT\u00b9_"),
        ("none", "none_"),
        ("Addams", "Addams_"),
        ("console", "console"),
        ("com10", "com10"),
    ],
)
def test_what_systems_and_prompts_forbid_is_replaced(name: str, folder: str) -> None:
    assert folder_name(name) == folder


@pytest.mark.parametrize("name", ["", "   "])
def test_no_name_at_all(name: str) -> None:
    with pytest.raises(WorkspaceError, match="Type a name first"):
        folder_name(name)


@pytest.mark.parametrize("name", ["...", "..", "/", "???", "___", "\x00", "\ud800"])
def test_names_of_which_nothing_is_left(name: str) -> None:
    with pytest.raises(WorkspaceError, match="can't be a name") as error:
        folder_name(name)
    assert "letter or digit" in error.value.hint


def test_decomposed_letters_are_composed() -> None:
    """macOS hands file names over in NFD: か + a voicing mark is が."""
    assert folder_name("か\u3099") == "が"
    assert folder_name(unicodedata.normalize("NFD", "Ёлка über")) == "Ёлка über"


@pytest.mark.parametrize("letter", ["x", "猫", "🐈", "й"])
def test_long_names_are_cut_and_stay_apart(letter: str) -> None:
    one, other = folder_name(letter * 200), folder_name(letter * 201)
    assert one != other
    assert one == folder_name(letter * 200)
    for name in (one, other):
        assert NAME_LIMIT_BYTES - 4 < len(name.encode("utf-8")) <= NAME_LIMIT_BYTES
        assert re.fullmatch(rf"{letter}+~[0-9a-f]{{6}}", name)
    # With project, version, run, step, suffix and a temporary ending: the 255 bytes of common file systems.
    assert len(f"{one}-{other}-r99-step000123.safetensors.4194304.tmp".encode()) <= 255


@pytest.mark.parametrize("name", ["自作LORA", "CON", "a:b", "x" * 200, "..\\x", "aux.x", "名. "])
def test_folders_are_legal_on_windows(name: str) -> None:
    folder = folder_name(name)
    path = PureWindowsPath(folder)
    assert path.name == folder, "one part, no drive"
    assert not path.is_reserved() if hasattr(path, "is_reserved") else True
    assert not folder.endswith((".", " "))


# --- projects and versions ---


def test_project_is_made_once(workspace: Workspace) -> None:
    assert not workspace.root.exists()
    project = workspace.project("自作LORA")
    assert project.path == workspace.projects_dir / "自作LORA"
    assert json.loads((project.path / "project.json").read_text(encoding="utf-8"))["name"] == "自作LORA"
    assert workspace.project("自作LORA").path == project.path
    assert [own.path for own in workspace.projects()] == [project.path]


def test_same_name_in_another_unicode_form_is_the_same_project(workspace: Workspace) -> None:
    project = workspace.project("が")
    assert workspace.project("か\u3099").path == project.path
    assert project.version("ü").path == project.version("u\u0308").path


def test_name_is_kept_as_typed(workspace: Workspace) -> None:
    project = workspace.project("my cat: the movie?")
    assert (project.info().name, project.path.name) == ("my cat: the movie?", "my cat_ the movie_")
    assert workspace.project("my cat: the movie?").path == project.path


def test_names_that_would_meet_in_one_folder_get_folders_of_their_own(workspace: Workspace) -> None:
    """Also where the file system itself would tell "Cat" from "cat": it may be copied to one that doesn't."""
    names = ["cat", "Cat", "CAT", "a:b", "a?b", "straße", "STRASSE"]
    folders = [workspace.project(name).path.name for name in names]
    assert folders == ["cat", "Cat-2", "CAT-3", "a_b", "a_b-2", "straße", "STRASSE-2"]
    assert [workspace.project(name).path.name for name in names] == folders
    assert len({folder.casefold() for folder in folders}) == len(names)


def test_nothing_leaves_the_workspace(workspace: Workspace) -> None:
    for name in ("../x", "/abs", "..\\x", "C:\\x"):
        project = workspace.project(name)
        assert project.path.parent == workspace.projects_dir
        assert project.version(name).path.parent == project.path / "versions"


def test_versions(workspace: Workspace) -> None:
    project = workspace.project("cat")
    version = project.version("v1")
    assert version.path == project.path / "versions" / "v1"
    assert version.trains_dir == version.path / "trains"
    assert version.dataset_dir == version.path / "dataset" / "processed"
    assert version.stem() == "cat-v1"
    info = version.info()
    info.train = {"epochs": 3}
    version.write_info(info)
    assert project.version("v1").info().train == {"epochs": 3}
    assert project.version("V1").path.name == "V1-2"


def test_projects_newest_first(workspace: Workspace) -> None:
    for name, created in (("old", 1.0), ("new", 3.0), ("middle", 2.0)):
        path = workspace.project(name).path / "project.json"
        path.write_text(json.dumps({"name": name, "created": created}), encoding="utf-8")
    (workspace.projects_dir / ".hidden").mkdir()
    (workspace.projects_dir / "a file").write_bytes(b"")
    assert [project.info().name for project in workspace.projects()] == ["new", "middle", "old"]


@pytest.mark.parametrize("content", [b"", b'{"name": ', b'{"name": 3}', b"[]", b'{"name": "\xff"}', b"\x00" * 20])
def test_a_damaged_json_hides_nothing_and_is_kept(workspace: Workspace, content: bytes) -> None:
    """By itself it can't happen, as files are written whole; a disk or a person may do it."""
    workspace.project("dog")
    path = workspace.project("cat: 1").path / "project.json"
    path.write_bytes(content)
    assert {project.info().name for project in workspace.projects()} == {"dog", "cat_ 1"}
    assert path.with_name("project.json.damaged").read_bytes() == content
    found = workspace.find_project("cat_ 1")
    version = found.version("v1")
    (version.path / "version.json").write_bytes(content)
    assert [own.info().name for own in found.versions()] == ["v1"]
    assert version.info().train == {}


def test_info_is_changed_by_one_at_a_time(workspace: Workspace) -> None:
    """A page saves settings while it notes a job in the same file."""
    version = workspace.project("cat").version("v1")

    def count(_: int) -> None:
        with version.changing() as info:
            info.train = {"count": int(str(info.train.get("count", 0))) + 1}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    assert version.info().train == {"count": 40}


def test_an_unchanged_info_is_not_written(workspace: Workspace) -> None:
    version = workspace.project("cat").version("v1")
    before = (version.path / "version.json").stat().st_mtime_ns
    with version.changing() as info:
        info.train = {}
    assert (version.path / "version.json").stat().st_mtime_ns == before


# --- renaming and finding ---


def test_rename_takes_the_folder_along(workspace: Workspace) -> None:
    project = workspace.project("cat")
    project.version("v1")
    renamed = project.rename("か\u3099: 2")
    assert (renamed.path.name, renamed.info().name) == ("が_ 2", "が: 2")
    assert [version.info().name for version in renamed.versions()] == ["v1"]
    assert not project.path.exists()
    version = renamed.find_version("v1").rename("V1")
    assert (version.path.name, version.info().name) == ("V1", "V1")
    assert [path.name for path in (renamed.path / "versions").iterdir()] == ["V1"]


def test_rename_to_another_ones_name(workspace: Workspace) -> None:
    workspace.project("dog")
    cat = workspace.project("cat")
    with pytest.raises(WorkspaceError, match="exists already"):
        cat.rename("dog")
    assert cat.rename("DOG").path.name == "DOG-2", "another name, but not another folder on every system"
    assert workspace.find_project("DOG-2").rename("DOG").path.name == "DOG-2"


@pytest.mark.parametrize("folder", ["", ".", "..", "../cat", "cat/../cat", "cat/versions", "/", "dog", "cat\x00"])
def test_only_folders_that_are_there_are_found(workspace: Workspace, folder: str) -> None:
    workspace.project("cat").version("v1")
    with pytest.raises(WorkspaceError, match="does not exist"):
        workspace.find_project(folder)
    with pytest.raises(WorkspaceError, match="does not exist"):
        workspace.find_version("cat", folder)


def test_names_are_found_however_they_are_composed(workspace: Workspace) -> None:
    """Also those of folders that came, went, or were renamed after the first look."""
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    workspace.project("cat")
    assert workspace.find_project("cat").path.name == "cat"
    folder = workspace.projects_dir / decomposed
    folder.mkdir()
    assert workspace.find_project(composed).path.samefile(folder)
    folder.rename(workspace.projects_dir / "dog")
    with pytest.raises(WorkspaceError, match="does not exist"):
        workspace.find_project(composed)
    assert workspace.find_project("dog").path.name == "dog"


def test_jobs_that_are_there_are_listed_at_once(workspace: Workspace) -> None:
    first, second = (workspace.new_job_dir(kind) for kind in ("preview", "judge"))
    assert workspace.jobs_there(["jobs/none"]) == []
    first.mkdir(parents=True)
    assert workspace.jobs_there(map(workspace.id_of, (second, first))) == [workspace.id_of(first)]


def test_jobs_are_found_by_their_place(workspace: Workspace) -> None:
    version = workspace.project("猫").version("v1")
    train = version.trains_dir / "猫-v1"
    train.mkdir(parents=True)
    other = workspace.new_job_dir("preview")
    other.mkdir(parents=True)
    for path in (train, other):
        assert workspace.find_job(workspace.id_of(path)) == path
    assert workspace.id_of(train) == "projects/猫/versions/v1/trains/猫-v1"
    for wrong in (
        *("", "jobs", "jobs/", "jobs/..", "jobs/../trash", "projects", "projects/猫", str(train), "trash/x"),
        *("projects/猫/versions/v1/trains/..", "projects/猫/versions/v1/dataset/processed", "jobs\\" + other.name),
    ):
        with pytest.raises(WorkspaceError, match=r"does not exist|no job"):
            workspace.find_job(wrong)


def test_folder_without_json_is_called_by_its_name(workspace: Workspace) -> None:
    (workspace.projects_dir / "copied by hand").mkdir(parents=True)
    assert workspace.project("copied by hand").path.name == "copied by hand"


# --- LoRA names ---


def test_free_stem(workspace: Workspace) -> None:
    version = workspace.project("cat").version("v1")
    assert workspace.free_stem("cat-v1") == "cat-v1"
    (version.trains_dir / "cat-v1").mkdir(parents=True)
    assert workspace.free_stem("cat-v1") == "cat-v1-r2"
    (version.trains_dir / "cat-v1-r2").mkdir()
    assert workspace.free_stem("cat-v1") == "cat-v1-r3"
    assert workspace.free_stem("dog-v1") == "dog-v1"


@pytest.mark.parametrize("taken", ["cat-v1", "CAT-V1", "cat-v1-000002", "cat-v1-step000123", "cat-v1-step1234567"])
def test_names_in_the_hosts_folder_are_taken_too(workspace: Workspace, taken: str) -> None:
    """A save of a run takes the run's own name: its next save, or its last, may be called so."""
    assert workspace.free_stem("cat-v1", [taken]) == "cat-v1-r2"
    assert workspace.free_stem("cat-v1", [taken, "cat-v1-r2-000004"]) == "cat-v1-r3"


@pytest.mark.parametrize("other", ["cat-v10", "cat-v1-00002", "my cat-v1", "cat-v1-r2"])
def test_other_names_take_nothing(workspace: Workspace, other: str) -> None:
    assert workspace.free_stem("cat-v1", [other]) == "cat-v1"


def test_files_moved_by_hand_are_seen(workspace: Workspace) -> None:
    folder = workspace.project("dog").version("v1").trains_dir / "dog-v1"
    folder.mkdir(parents=True)
    (folder / "cat-v1-000002.safetensors").write_bytes(b"")
    assert workspace.free_stem("cat-v1") == "cat-v1-r2"


def test_equal_stems_of_different_projects(workspace: Workspace) -> None:
    """Project "a" with version "b-v1", and project "a-b" with "v1"."""
    first = workspace.project("a").version("b-v1")
    second = workspace.project("a-b").version("v1")
    assert first.stem() == second.stem() == "a-b-v1"
    (first.trains_dir / first.stem()).mkdir(parents=True)
    assert workspace.free_stem(second.stem()) == "a-b-v1-r2"


# --- other jobs, trash ---


def test_job_folders_are_free(workspace: Workspace) -> None:
    first = workspace.new_job_dir("preview")
    assert first.parent == workspace.jobs_dir
    assert first.name.endswith("-preview")
    first.mkdir(parents=True)
    second = workspace.new_job_dir("preview")
    assert second != first
    assert not second.exists()


def test_move_to_trash_keeps_everything(workspace: Workspace) -> None:
    for content in (b"one", b"two"):
        path = workspace.root / "猫.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        target = move_to_trash(path, workspace.trash_dir)
        assert not path.exists()
        assert target.parent == workspace.trash_dir
        assert "猫.txt" in target.name
    moved = move_to_trash(workspace.project("cat").path, workspace.trash_dir)
    assert (moved / "project.json").is_file()
    assert {path.read_bytes() for path in workspace.trash_dir.glob("*猫*")} == {b"one", b"two"}
    assert ":" not in "".join(path.name for path in workspace.trash_dir.iterdir())


# --- any name at all ---


@settings(deadline=None)  # the disk may be busy
@given(st.text(max_size=300))
@example("../x")
@example("..\\x")
@example("\u202egnp.x")
@example("COM¹.txt")
@example("\u0130" * 90)  # its lower case is longer
def test_no_name_leads_out_and_every_name_is_found_again(name: str) -> None:
    try:
        folder = folder_name(name)
    except WorkspaceError:
        return
    assert folder_name(folder) == folder, "a folder's name names itself"
    assert unicodedata.is_normalized("NFC", folder)
    assert len(folder.encode("utf-8")) <= NAME_LIMIT_BYTES
    assert folder not in ("", ".", "..")
    assert not set(folder) & set('<>:"/\\|?*')
    assert (PureWindowsPath("C:/x") / folder).parent == PureWindowsPath("C:/x")
    assert PureWindowsPath(folder).name == folder == folder.strip(" .")
    assert not is_reserved(folder)
    with tempfile.TemporaryDirectory() as root:
        workspace = Workspace(Path(root))
        project = workspace.project(name)
        assert project.path.parent == workspace.projects_dir
        assert project.path.is_dir()
        assert workspace.project(name).path == project.path
        assert workspace.project(unicodedata.normalize("NFD", name)).path == project.path
        assert workspace.find_project(project.path.name).info().name == typed(name)
        assert workspace.find_project(unicodedata.normalize("NFD", project.path.name)).path == project.path
        version = project.version(name)
        assert workspace.find_version(project.path.name, version.path.name).path == version.path

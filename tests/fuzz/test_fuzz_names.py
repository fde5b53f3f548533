"""Names in any script and with any trick: what is accepted stays in the workspace, opens again and suits Windows."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import strategies as st

from lora_train.app.version_settings import VersionSettings
from lora_train.core.errors import TrainToolsError, WorkspaceError
from lora_train.core.infotext import lora_tag
from lora_train.core.names import NAME_LIMIT_BYTES, fold, folder_name, is_reserved, typed
from lora_train.core.records import read_json
from lora_train.core.workspace import ProjectInfo, Workspace, move_to_trash
from lora_train.data.captions import has_word, with_trigger_word
from lora_train.data.uploads import _file_name

WINDOWS_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
FORBIDDEN_ON_WINDOWS = set('<>:"/\\|?*') | {chr(code) for code in range(32)}
TRICKS = (
    *(
        "..",
        ".",
        "...",
        "../x",
        "..\\x",
        "/etc/passwd",
        "C:\\x",
        "C:x",
        "\\\\server\\share",
        "//server/share",
        "~",
        "~root",
    ),
    *("CON", "con.txt", "CON .txt", "Nul", "AUX.", "COM1", "com¹", "LPT9.x.y", "CONIN$", "CONOUT$", "con.", "PRN  "),
    *("a.", "a..", "a ", " a", "a\t", "a. . .", ".hidden", "a/", "a\\", "a\x00b", "a\nb", "a\r", "a\x7f", "a\x85b"),
    *("%2e%2e%2f", "%2e", "..%c0%af", "‥", "．．／", "∕etc", "a∕b", "a⁄b", "a：b", "‮gnp.exe", "a\u200bb", "\u200b"),
    *("e\u0301", "é", "İ", "ı", "ſ", "ß", "ẞ", "ﬁ", "K", "Å", "Ω", "\ufeffa", "a\ufeff", "\u3164", "\u115f", "\ud800a"),
    *(
        "🙂" * 40,
        "日" * 40,
        "a" * 255,
        "é" * 200,
        "e\u0301" * 100,
        "a" * 5_000,
        "x\u0301" + "\u0301" * 200,
        "\U000e0041",
    ),
    *("<lora:x:1>", "a:b", "a,b", "a=b", "{a}", "(a:1.2)", "[a|b]", "none", "ADDAMS", "$HOME", "`id`", "a;b", "a&b"),
    *("-", "--help", "-rf", "_", "__", "~1", "PROGRA~1", "desktop.ini", "thumbs.db", "$MFT", "\u2028a", "a\u2029"),
)


def drawn(random: Random, odd: Any) -> str:
    name = random.choice(TRICKS) if random.random() < 0.4 else odd.odd_text(random)
    if random.random() < 0.4:
        name += random.choice((" ", ".", "", "..", "\u0301", "\u200e", "/")) + random.choice(TRICKS)
    return unicodedata.normalize(random.choice(("NFC", "NFD", "NFKC")), name) if random.random() < 0.3 else name


def require_portable(name: str, limit_bytes: int) -> None:
    """A single file name that Windows, macOS and Linux keep as it is."""
    assert name
    assert name not in (".", "..")
    assert not FORBIDDEN_ON_WINDOWS & set(name)
    assert name[-1] not in " ."
    assert not name.startswith((" ", "."))
    assert name.partition(".")[0].strip().lower() not in WINDOWS_DEVICES
    assert len(name.encode("utf-8")) <= limit_bytes
    assert unicodedata.normalize("NFC", name) == name


def look_at_folder(name: str) -> None:
    made = folder_name(name)
    require_portable(made, NAME_LIMIT_BYTES)
    assert not is_reserved(made)
    assert folder_name(made) == made, "a folder's name makes another folder"
    assert fold(unicodedata.normalize("NFD", made)) == fold(made)
    assert not any(
        unicodedata.bidirectional(char) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI") for char in made
    )
    tag = lora_tag(made, 1.0)
    assert tag.count(":") == 2
    assert tag.count(">") == 1


@pytest.mark.parametrize("seed", range(3))
def test_folder_names(guard: Any, share: Callable[[int], int], odd: Any, seed: int) -> None:
    random = Random(f"folders {seed}")
    for _ in range(share(6_000)):
        guard(look_at_folder, drawn(random, odd))
    assert guard.refused < guard.cases / 2


def test_folder_names_that_hypothesis_thinks_of(guard: Any, each: Any) -> None:
    each(st.text(min_size=1, max_size=150), 3_000, lambda name: guard(look_at_folder, name))


@pytest.mark.parametrize("name", TRICKS)
def test_tricks(guard: Any, name: str) -> None:
    guard(look_at_folder, name)


def test_projects_and_versions(tmp_path: Path, guard: Any, share: Callable[[int], int], odd: Any) -> None:
    """What is made under a name is found again under that name, and nothing lies outside of the workspace."""
    random = Random("projects")

    def look(root: Path, names: list[str]) -> None:
        workspace = Workspace(root)
        for name in names:
            try:
                project = workspace.project(name)
                version = project.version(name)
            except WorkspaceError:
                continue
            assert project.path.parent == workspace.projects_dir
            assert version.path.parent == project.path / "versions"
            assert project.info().name == typed(name)
            assert workspace.project(name).path == project.path
            assert project.version(unicodedata.normalize("NFD", name)).path == version.path
            assert workspace.find_version(project.path.name, version.path.name).path == version.path
            for wanted in (name, f"../{name}", f"{project.path.name}/..", ".."):
                with_trick = guard(workspace.find_project, wanted)
                if not isinstance(with_trick, TrainToolsError):
                    assert with_trick.path.parent == workspace.projects_dir
            for job in (f"jobs/{name}", f"projects/{name}/versions/{name}/trains/{name}", name):
                guard(workspace.find_job, job)
        folders = [path.name for path in workspace.projects_dir.iterdir()] if workspace.projects_dir.is_dir() else []
        assert len({fold(folder) for folder in folders}) == len(folders), "two are one folder on Windows"

    for number in range(share(600)):
        names = [drawn(random, odd) for _ in range(3)]
        names.append(names[0].swapcase())
        guard(look, tmp_path / "outer" / str(number), names)
    assert {path.name for path in (tmp_path / "outer").iterdir()} <= {str(number) for number in range(share(600))}
    assert [path.name for path in tmp_path.iterdir()] == ["outer"]


def test_renaming_and_the_trash(tmp_path: Path, guard: Any, share: Callable[[int], int], odd: Any) -> None:
    random, workspace = Random("renaming"), Workspace(tmp_path / "workspace")
    project = workspace.project("a")
    for _ in range(share(600)):
        renamed = guard(project.rename, drawn(random, odd))
        if not isinstance(renamed, TrainToolsError):
            project = renamed
        assert project.path.parent == workspace.projects_dir
        assert project.path.is_dir()
        thrown = tmp_path / "workspace" / folder_name(f"x{random.random()}")
        thrown.mkdir()
        assert move_to_trash(thrown, workspace.trash_dir).parent == workspace.trash_dir
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


@pytest.mark.parametrize("seed", range(2))
def test_names_of_uploads(guard: Any, share: Callable[[int], int], odd: Any, seed: int) -> None:
    random = Random(f"uploads {seed}")

    def look(told: str) -> None:
        name = str(_file_name(told))
        require_portable(name, 255 - len("-1000.flipped.caption"))

    for _ in range(share(6_000)):
        name = drawn(random, odd)
        guard(look, name + random.choice(("", ".png", ".PNG", ".txt", ".png.exe", ".", ".png ", "/x.jpg", "\\x.webp")))


def test_trigger_words(tmp_path: Path, guard: Any, share: Callable[[int], int], odd: Any) -> None:
    random = Random("triggers")
    version = Workspace(tmp_path).project("p").version("v")
    settings = VersionSettings(version.project.workspace)

    def look(word: str) -> None:
        settings.save("p", "v", train={"trigger_word": word})
        saved = settings.effective("p", "v").trigger_word
        assert saved in (word, "") or saved == previous[0]
        previous[0] = saved
        caption = with_trigger_word("a, b", saved)
        assert "a" in caption
        has_word(caption, word)

    previous = [""]
    for _ in range(share(1_500)):
        guard(look, drawn(random, odd))
    assert read_json(version.project.path / "project.json", ProjectInfo, ProjectInfo("", 0)).name == "p"

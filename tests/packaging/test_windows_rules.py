"""What Windows asks of a program, as far as it can be held on any system: by the code, and by imitation."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_train.core import files, path_limits
from lora_train.core.config import TrainSettings
from lora_train.core.errors import WorkspaceError
from lora_train.core.jobs import JobFolder
from lora_train.core.names import folder_name
from lora_train.core.specs import TrainSpec
from lora_train.core.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
PRODUCT = sorted(
    [*(REPOSITORY / "lora_train").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py"), REPOSITORY / "install.py"]
)
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"}
WINDOWS_ONLY = {"_winapi", "msvcrt", "winreg", "winsound"}
FORBIDDEN_IN_OS = {
    *("kill", "killpg", "fork", "forkpty", "getuid", "geteuid", "setsid", "getpgid", "uname", "mkfifo", "startfile"),
    *("rename", "renames"),  # neither replaces a file on Windows
}
SIGNALS = {"send_signal", "pthread_kill"}
FORKING = {"Process", "Pool", "get_context", "set_start_method", "ProcessPoolExecutor", "DataLoader"}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    paths = {path.relative_to(REPOSITORY).as_posix(): path for path in PRODUCT}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}


def names_of(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is used, and every one that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_no_signals_and_no_forks(trees: dict[str, ast.Module]) -> None:
    """Windows has none: `os.kill` ends a process there whatever it is told, a child starts from nothing."""
    assert [(file, name) for file, tree in trees.items() for name in names_of(tree) if _is_posix(name)] == []


def _is_posix(name: str) -> bool:
    room, _, last = name.rpartition(".")
    if room.startswith("multiprocessing"):  # of it, only the line between processes
        return last != "AuthenticationError" and ".connection" not in name
    in_os = room == "os" and last in FORBIDDEN_IN_OS
    return in_os or name.split(".")[0] == "signal" or last in SIGNALS or (last in FORKING and room != "psutil")


def test_what_one_system_has_is_asked_for_there_alone(trees: dict[str, ast.Module]) -> None:
    """Each such import stands where `sys.platform` was looked at."""
    imports = [(file, node) for file, tree in trees.items() for node in _imports_of_one_system(tree)]
    guarded = {id(inner) for tree in trees.values() for node in ast.walk(tree) for inner in _behind_the_platform(node)}
    assert len(imports) >= 3  # locks on both, and the length of paths
    assert [(file, node.lineno) for file, node in imports if id(node) not in guarded] == []


def _imports_of_one_system(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            told = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            if (POSIX_ONLY | WINDOWS_ONLY) & set(told):
                yield node


def _behind_the_platform(node: ast.AST) -> Iterator[ast.AST]:
    """All that is below `if sys.platform ...`, or after an `if sys.platform ...: return` in the same function."""
    if isinstance(node, ast.If) and "sys.platform" in ast.unparse(node.test):
        yield from ast.walk(node)
    if isinstance(node, ast.FunctionDef):
        for number, line in enumerate(node.body):
            if isinstance(line, ast.If) and "sys.platform" in ast.unparse(line.test):
                leaves = isinstance(line.body[-1], ast.Return | ast.Raise)
                yield from (inner for after in node.body[number + 1 :] for inner in ast.walk(after) if leaves)


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call, set[str | None]]]:
    """The last word of what is called, the call, and the names of its keyword arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            yield name, node, {keyword.arg for keyword in node.keywords}


def test_text_has_an_encoding(trees: dict[str, ast.Module]) -> None:
    """By itself Windows reads and writes text in its code page."""
    calls = [(file, *call) for file, tree in trees.items() for call in calls_of(tree)]
    without = [
        (file, call.lineno) for file, name, call, told in calls if "encoding" not in told and _is_text(name, call, told)
    ]
    assert without == []


def _is_text(name: str, call: ast.Call, told: set[str | None]) -> bool:
    if name in ("run", "Popen", "check_output"):
        return bool({"text", "universal_newlines"} & told)
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)  # a path's own, and not `files.write_text`
    owner = ast.unparse(call.func).rpartition(".")[0].rpartition(".")[2]
    mode = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else "r"
    is_a_file = name == "open" and owner not in ("Image", "projects", "self", "team") and len(call.args) <= 1
    return is_a_file and not (call.args and mode == "r") and "b" not in str(mode)


def test_paths_that_are_written_have_forward_slashes(trees: dict[str, ast.Module]) -> None:
    """`os.path.relpath` and `str` of a relative path give backslashes on Windows, which no other system takes apart."""
    found = [
        (file, ast.unparse(call.func))
        for file, tree in trees.items()
        for name, call, _ in calls_of(tree)
        if name == "relpath" or (name == "str" and call.args and ".relative_to(" in ast.unparse(call.args[0]))
    ]
    assert found == [("lora_train/core/files.py", "os.path.relpath")]  # the one place, which puts it right


@settings(deadline=None)  # the processor may be busy
@given(st.text(min_size=1, max_size=200))
def test_any_name_gives_a_folder_that_windows_takes(name: str) -> None:
    """Rules of https://learn.microsoft.com/windows/win32/fileio/naming-a-file."""
    try:
        folder = folder_name(name)
    except WorkspaceError:
        return
    assert not set(folder) & set('<>:"/\\|?*')
    assert min(map(ord, folder)) >= 32
    assert folder == folder.strip(" ")
    assert not folder.endswith(".")
    stem = folder.partition(".")[0].strip().upper()
    assert stem not in {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³")}


def test_names_that_differ_in_case_have_folders_that_differ_otherwise(tmp_path: Path) -> None:
    """Windows and macOS take the two for one."""
    workspace = Workspace(tmp_path)
    names = ("Cat", "cat", "CAT", "straße", "STRASSE", "İ", "é", "e\u0301")
    folders = [workspace.project(name).path.name for name in names]
    assert folders[-1] == folders[-2]  # é twice: composed, and in two parts
    assert len({name.casefold() for name in folders[:-1]}) == len(names) - 1
    versions = [workspace.project("Cat").version(name).path.name for name in ("v1", "V1")]
    assert len({name.casefold() for name in versions}) == 2


def test_a_replacement_waits_for_whoever_has_the_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses it while a virus scanner reads."""
    path = tmp_path / "version.json"
    path.write_bytes(b"before")
    real, refusals = Path.replace, [3]

    def refuse(source: Path, target: Path) -> Path:
        if refusals[0]:
            refusals[0] -= 1
            raise PermissionError(13, "Access is denied")
        return real(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(files, "_REPLACE_PAUSE_S", 0.0)
    files.write_bytes(path, b"after")
    assert (path.read_bytes(), refusals) == (b"after", [0])
    refusals[0] = 1000
    with pytest.raises(PermissionError):
        files.write_bytes(path, b"never")
    assert [entry.name for entry in tmp_path.iterdir()] == ["version.json"]
    assert path.read_bytes() == b"after"


def test_paths_too_long_for_this_windows_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not path_limits.is_limited()  # not here
    monkeypatch.setattr(path_limits, "is_limited", lambda: True)
    deep = tmp_path / ("w" * (path_limits.LONGEST - len(str(tmp_path)) - 60))
    with pytest.raises(WorkspaceError, match="this Windows opens at most 259"):
        Workspace(deep).project("cat").version("v1")
    assert not list(deep.glob("projects/*/versions/*"))
    room = path_limits.LONGEST - 121 - len(str(tmp_path / "projects" / "cat" / "versions" / "v1"))
    version = Workspace(tmp_path / ("w" * (room - 1))).project("cat").version("v1")  # fits to the letter
    JobFolder(version.trains_dir / "cat-v1").create(spec())
    with pytest.raises(WorkspaceError, match="opens at most 259"):
        JobFolder(version.trains_dir / ("猫" * 40)).create(spec())
    assert [path.name for path in version.trains_dir.iterdir()] == ["cat-v1"]


def spec(**given_: str) -> TrainSpec:
    paths = {"dataset": "../../dataset/processed", "trash": "../../../../../../trash", **given_}
    return TrainSpec(name="cat-v1", dataset_fingerprint="", settings=TrainSettings(), **paths)


def test_a_job_that_was_written_on_windows_opens_elsewhere(tmp_path: Path) -> None:
    job = JobFolder(tmp_path)
    elsewhere = spec(dataset="..\\..\\dataset\\processed", trash="..\\..\\..\\..\\..\\..\\trash", cache="..\\cache")
    job.spec_path.write_bytes(msgspec.json.encode(elsewhere))
    assert job.read_spec() == spec(cache="../cache")


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["status", "猫 кошка 🐈/há"], 1),
        (["train", "--images", "無い", "--name", "猫 кошка", "--base-model", "demo"], 2),
        (["train", "--set", "学習率=速い", "--images", "x", "--name", "x"], 2),
    ],
)
def test_the_command_line_speaks_through_any_code_page(
    encoding: str, arguments: list[str], code: int, tmp_path: Path
) -> None:
    """A pipe of Windows has its code page; names in other scripts come through, as UTF-8, and nothing crashes."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "lora_train", *arguments], capture_output=True, cwd=tmp_path, env=environment
    )
    told = (done.stdout + done.stderr).decode("utf-8")
    assert done.returncode == code, told
    assert "Traceback" not in told
    name = next((word for word in arguments if not word.isascii()), "")
    assert name.rpartition("=")[0] in told

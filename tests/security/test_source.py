"""What the code must not do at all, read from its syntax: shells, code from data or the hub, unchecked downloads."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from lora_train.core.captioners import MODELS

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / "lora_train").rglob("*.py"),
    *(ROOT / "scripts").glob("*.py"),
    ROOT / "install.py",
]
_RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
_UNPICKLES = {"pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "shelve.open"}
_UNPICKLES |= {"marshal.load", "marshal.loads", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load"}
_SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
_DOWNLOADS = {"urllib.request.urlopen", "urllib.request.urlretrieve", "requests.get", "httpx.get", "snapshot_download"}
_DOWNLOADS |= {"hf_hub_download", "huggingface_hub.hf_hub_download", "huggingface_hub.snapshot_download"}


@cache
def calls() -> list[tuple[Path, ast.Call, str]]:
    """Every call in our code, with the name of what is called."""
    return [
        (path, node, ast.unparse(node.func))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def places(names: set[str]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{call.lineno} {name}" for path, call, name in calls() if name in names]


def test_the_code_is_there() -> None:
    assert len(FILES) > 200
    assert len(calls()) > 5000


def test_no_text_is_run_as_code() -> None:
    assert places(_RUNS_TEXT) == []


def test_no_file_is_unpickled() -> None:
    assert places(_UNPICKLES) == []
    for path, call, name in calls():
        if name == "torch.load":
            told = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert told.get("weights_only") == "True", f"{path}:{call.lineno}"


def test_no_command_goes_through_a_shell() -> None:
    assert places(_SHELLS) == []
    for path, call, _ in calls():
        assert not [word for word in call.keywords if word.arg == "shell"], f"{path}:{call.lineno}"


def test_no_code_of_the_hub_is_trusted() -> None:
    for path in FILES:
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8").replace(" ", ""), path
    loading = [(path, call) for path, call, name in calls() if name.endswith(".from_pretrained")]
    assert len(loading) > 5
    for path, call in loading:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("trust_remote_code", "False") == "False", f"{path}:{call.lineno}"
        if given.get("local_files_only") != "True":  # then it is among the options that are handed over
            assert given.get(None) == "options", f"{path}:{call.lineno}"
            assert '"local_files_only": True' in path.read_text(encoding="utf-8"), path


def test_nothing_is_downloaded_but_by_the_one_who_checks_it() -> None:
    """`caption/downloads.py` compares every checksum; tests/unit/caption/test_downloads.py sends it wrong files."""
    assert places(_DOWNLOADS) == []
    fetching = {path.relative_to(ROOT).as_posix() for path, _, name in calls() if name == "http_get"}
    assert fetching == {"lora_train/caption/hub.py"}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_model_that_is_proposed_is_one_commit_with_checksums(model: object) -> None:
    assert len(model.revision) == 40  # type: ignore[attr-defined]
    large = [file for file in model.files if file.size_bytes > 100_000]  # type: ignore[attr-defined]
    assert large
    assert all(len(file.sha256) == 64 for file in large)

"""`lora-train presets`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_train.__main__ import main
from lora_train.app import App
from lora_train.core.preset_files import purpose
from lora_train.core.purposes import PURPOSES
from lora_train.core.workspace import Workspace


class Shell:
    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def run(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        """Standard output and error of one command."""
        assert main([*map(str, arguments), "--workspace", str(self.root)]) == code
        told = self._capsys.readouterr()
        return told.out, told.err

    def json(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json", code=code)[0].splitlines()[-1])


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "workspace", capsys)


def test_list_and_show(shell: Shell) -> None:
    assert [line.split()[0] for line in shell.run("presets", "list")[0].splitlines()] == [*PURPOSES]
    out, _ = shell.run("presets", "show", "pose", "--family", "sdxl")
    for name, choice in purpose("pose").choices("sdxl").items():
        (line,) = [line for line in out.splitlines() if line.split()[0] == name]
        assert line.endswith(choice.why)
    told = shell.json("presets", "show", "nobody", code=2)
    assert "there is none called 'nobody'" in told["message"]


def test_a_preset_goes_round(shell: Shell, tmp_path: Path) -> None:
    app = App(Workspace(shell.root))
    selection = app.projects.open("猫", "v1")
    app.settings.save(selection.project, selection.version, train={"rank": 24, "base_model": "/home/me/x.ckpt"})
    shell.run("presets", "save", "自作", "--name", "猫")
    target = tmp_path / "shared.json"
    assert shell.run("presets", "export", "自作", "--out", target)[0].strip() == str(target)
    assert "/home/me" not in target.read_text(encoding="utf-8")
    assert "exists already" in shell.run("presets", "export", "自作", "--out", target, code=2)[1]
    assert shell.json("presets", "delete", "自作")["trash"]
    broken = json.loads(target.read_text(encoding="utf-8"))
    broken["settings"]["alpha"]["value"] = "much"
    target.write_text(json.dumps(broken), encoding="utf-8")
    out, err = shell.run("presets", "import", target)
    assert out.strip() == "自作"
    assert "Left out: alpha (Alpha): 'much' is not" in err
    assert shell.json("presets", "rename", "自作", "Mine")["preset"] == "Mine"
    assert shell.run("presets", "list")[0].splitlines()[-1] == "Mine  Your own."


@pytest.mark.parametrize("content", [b"{}", b"\x00\xff", None])
def test_other_files_are_refused_in_words(shell: Shell, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    err = shell.run("presets", "import", path, code=1 if content is not None else 2)[1]
    assert "Traceback" not in err
    assert "no preset" in err or "is not a file" in err


def test_train_takes_a_preset_that_is_known(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    told = shell.json(
        *("train", "--images", tmp_path / "pictures", "--name", "x", "--base-model", "demo", "--preset", "nobody"),
        code=2,
    )
    assert "there are: character, style, concept" in told["message"]
    assert not (shell.root / "projects").exists()

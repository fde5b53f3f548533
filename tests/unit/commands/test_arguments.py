"""Arguments as a person types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_train.__main__ import main
from lora_train.app import App
from lora_train.commands import arguments
from lora_train.commands.arguments import Parser, values_of
from lora_train.core.errors import ConfigError
from lora_train.core.workspace import Workspace


def _values(*words: str) -> dict[str, str]:
    parser = Parser()
    arguments.add_settings(parser, [])
    return values_of(parser.parse_args([*words]))


def test_a_list_grows_and_other_values_are_replaced() -> None:
    told = _values("--set", "optimizer_args=betas=0.9,0.99", "--set", "rank=4", "--set", "optimizer-args=eps=1e-6")
    assert told == {"optimizer_args": "betas=0.9,0.99\neps=1e-6", "rank": "4"}
    assert _values("--set", "rank=4", "--set", "rank=8") == {"rank": "8"}


def test_a_value_that_begins_with_minus() -> None:
    parser = Parser()
    parser.add_argument("--weights")
    with pytest.raises(ConfigError) as error:
        parser.parse_args(["--weights", "-1,1"])
    assert "--weights=-1,1" in error.value.message
    assert parser.parse_args(["--weights=-1,1"]).weights == "-1,1"


def test_a_mistyped_model_of_captions_is_not_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(Workspace(tmp_path))
    selection = app.projects.open("猫", "v1")
    line = ["caption", "--name", "猫", "--with", "wd14", "--workspace", str(tmp_path)]
    assert main([*line, "--model", str(tmp_path / "nowhere")]) == 2
    assert "neither a folder nor a name on the hub" in capsys.readouterr().err
    assert app.settings.caption(selection.project, selection.version)["wd14_model"] == ""


def test_a_preview_is_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"only its path is looked at")
    line = ["preview", str(lora), "--base-model", "demo", "--prompt", "猫", "--workspace", str(tmp_path)]
    assert main([*line, "--out", str(tmp_path / "grid.txt")]) == 2
    assert "grid.txt does not end with .png" in capsys.readouterr().err
    assert not (tmp_path / "jobs").exists()

"""`scripts/train_tools.py` in a host: the tab, the routes, the settings, and what it costs."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

pytestmark = pytest.mark.compat

REPOSITORY = Path(__file__).parents[2]
VERSION = "train-tools/v1/version"
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "numpy.distutils"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "Stable-diffusion" / "one.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    return path


def test_the_tab_is_there_and_costs_little(start_host: Callable[..., Any], checkpoint: Path) -> None:
    host = start_host()
    text = host.page_text()
    for element in ("tab_train_tools", "train_tools_page", "train_tools_project_create", "train_tools_app"):
        assert f'"{element}"' in text, element
    for setting in ("train_tools_workspace", "train_tools_lora_folder", "train_tools_auto_publish"):
        assert f'"setting_{setting}"' in text
    assert "***" not in host.log()
    state = host.state()
    assert not HEAVY & set(state["imported"])
    assert state["tabs_s"] + state["scripts_s"] < 1.5  # 0.5 s, and a machine that is busy or slowed down
    status, body = host.call("")
    assert status == 200
    assert body.count("minimal-host/asset/") >= 3  # the host's script, ours, our style


def test_widgets_stay_out_of_the_hosts_defaults(
    start_host: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    start_host()
    kept = json.loads((tmp_path / "ui-config.json").read_text(encoding="utf-8"))
    assert "txt2img/Prompt/value" in kept
    assert [key for key in kept if not key.startswith("txt2img/")] == []


def test_the_page_may_call_and_strangers_may_not(start_host: Callable[..., Any], checkpoint: Path) -> None:
    host = start_host()
    assert host.call(VERSION)[0] == 401
    status, answer = host.call(VERSION, headers=host.token())
    assert (status, answer["host"]) == (200, "Automatic1111 v0.1-minimal")
    models = host.call("train-tools/v1/base-models", headers=host.token())[1]
    assert models[0] == {"name": "one.safetensors", "path": str(checkpoint)}


def test_a_page_with_login(start_host: Callable[..., Any], checkpoint: Path) -> None:
    host = start_host("--gradio-auth", "ann:x", "--api-auth", "bob:y")
    basic = {"Authorization": f"Basic {base64.b64encode(b'bob:y').decode()}"}
    assert host.call(VERSION)[0] == 401
    assert host.call(VERSION, headers=basic)[0] == 200
    assert host.call("config")[0] == 401


def test_without_a_page(start_host: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    host = start_host("--nowebui", "--api-auth", "bob:y")
    basic = {"Authorization": f"Basic {base64.b64encode(b'bob:y').decode()}"}
    assert host.call(VERSION)[0] == 401
    assert host.call(VERSION, headers=basic)[0] == 200
    assert "train-tools-queue" in host.state()["threads"]


def test_reload_ui_twice(start_host: Callable[..., Any], checkpoint: Path) -> None:
    host = start_host()
    before = host.token()
    for _ in range(2):
        host.reload_ui()
        assert host.state()["threads"].count("train-tools-queue") == 1
        assert host.token() == before
        assert host.call(VERSION, headers=before)[0] == 200
    assert "***" not in host.log()


def without_msgspec(folder: Path) -> dict[str, str]:
    """An environment in which the package is not there."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['msgspec'] = None\n", encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def test_a_missing_package_makes_a_tab_that_says_how_to_get_it(
    start_host: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    host = start_host(environment=without_msgspec(tmp_path / "without"))
    text = host.page_text()
    assert "Train Tools can&#x27;t start: a package that it needs is not installed (msgspec)." in text
    assert re.search(r"&quot;[^&]+&quot; -m pip install msgspec<", text)
    assert '"tab_train_tools"' in text
    assert '"txt2img_prompt"' in text  # the host lives
    assert host.call(VERSION)[0] == 404
    host.reload_ui()
    assert '"train_tools_broken"' in host.page_text()


def test_a_mistake_of_ours_makes_a_tab_that_tells_it(
    start_host: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    extension = tmp_path / "copy"
    shutil.copytree(
        REPOSITORY / "lora_train", extension / "lora_train", ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    shutil.copytree(REPOSITORY / "scripts", extension / "scripts")
    (extension / "lora_train" / "ui" / "tab.py").write_text("raise ValueError('<b>half a file')", encoding="utf-8")
    host = start_host(extension=extension)
    text = host.page_text()
    assert "Train Tools can&#x27;t start: ValueError: &lt;b&gt;half a file" in text
    assert "Traceback" in text
    assert '"train_tools_broken"' in text


def test_a_workspace_that_cannot_be_made_is_told(
    start_host: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    saved = {"train_tools_workspace": str(tmp_path / "file" / "below")}
    (tmp_path / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    host = start_host()
    assert '"tab_train_tools"' in host.page_text()
    assert host.call("internal/ping")[0] == 200


def test_a_package_of_the_trainings_is_missing(
    start_host: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    """The page works; above it stands what training lacks."""
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'lion_pytorch' else find(name, package)\n",
        encoding="utf-8",
    )
    host = start_host(environment={"PYTHONPATH": str(folder)})
    text = host.page_text()
    assert "Training can&#x27;t start yet." in text
    assert "pip install lion-pytorch" in text
    assert '"train_tools_project_create"' in text
    assert host.call(VERSION, headers=host.token())[0] == 200
    kept = json.loads((tmp_path / "ui-config.json").read_text(encoding="utf-8"))
    assert [key for key in kept if key.startswith("train_tools/")] == []

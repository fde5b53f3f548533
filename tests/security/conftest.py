"""Servers to attack, and what must not change meanwhile."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

Tree = dict[str, str]


@pytest.fixture
def world(servers: Any, tmp_path: Path) -> Any:
    """A server over a version with a picture and a finished training."""
    return servers.World(tmp_path).fill()


@pytest.fixture(scope="session")
def tree() -> Callable[..., Tree]:
    """`tree(folder, without)`: every file, link and folder below it -> what is in it."""

    def tree(folder: Path, without: tuple[Path, ...] = ()) -> Tree:
        found: Tree = {}
        for path in sorted(folder.rglob("*")):
            if any(path == other or other in path.parents for other in without):
                continue
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[name] = f"link to {path.readlink()}"
            else:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        return found

    return tree


@pytest.fixture
def open_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`open_page(auth=…, is_local=…, workspace=…)` opens the standalone page, over a new workspace below the folder it
    is started in where none is given.

    Gives an httpx client of it, with `app` and `root`. Closed with the test.
    """
    pytest.importorskip("gradio")
    import httpx

    from lora_train.app import App
    from lora_train.core.workspace import Workspace
    from lora_train.hosts import standalone

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    started_in = tmp_path / "home"
    started_in.mkdir()
    monkeypatch.chdir(started_in)
    opened: list[Callable[[], object]] = []

    def open_page(*, auth: tuple[str, str] | None = None, is_local: bool = True, workspace: Path | None = None) -> Any:
        host = standalone.Standalone(models=None, lora_dir=None, is_local=is_local)
        app = App(Workspace(workspace or started_in / "outputs" / "train_tools"), host)
        if workspace is None:
            app.projects.create("P")
            app.projects.create_version("P", "v1")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        page, address = standalone._open(app, port=port, share=False, auth=auth, host="127.0.0.1")
        client = httpx.Client(base_url=address, trust_env=False, timeout=30)
        client.app = app  # type: ignore[attr-defined]
        opened.extend((functools.partial(page.close, verbose=False), client.close))
        return client

    yield open_page
    for close in reversed(opened):
        close()


class Watched:
    """A folder around which every opening, listing and changing by this process is noted, by Python's audit events.

    Looking whether a path exists is no such event.
    """

    def __init__(self) -> None:
        self._folder = ""
        self.seen: list[str] = []
        sys.addaudithook(self._hook)  # for good, so once for all tests

    def watch(self, folder: Path | None) -> None:
        self._folder = "" if folder is None else str(folder)
        self.seen.clear()

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._folder and event.startswith(("open", "os.", "shutil.")):
            paths = [
                os.path.normpath(Path.cwd() / os.fsdecode(one))
                for one in arguments
                if isinstance(one, (str, bytes, Path))
            ]
            self.seen += [f"{event} {path}" for path in paths if path.startswith(self._folder)]


@pytest.fixture(scope="session")
def watched() -> Watched:
    return Watched()


@pytest.fixture
def outside(world: Any, watched: Watched) -> Iterator[Path]:
    """A person's own folder beside the workspace, with something for every taste; watched."""
    folder = world.root / "outside"
    folder.mkdir()
    (folder / "secret.png").write_bytes(world.png())
    (folder / "secret.txt").write_text("secret words", encoding="utf-8")
    (folder / "secret.safetensors").write_bytes(world.lora_bytes())
    for name in ("model.onnx", "selected_tags.csv", "config.json", "model.safetensors"):
        (folder / name).write_text("secret words", encoding="utf-8")
    (world.root / "workspace" / "link").symlink_to(folder)
    watched.watch(folder)
    yield folder
    watched.watch(None)


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that would start a process for minutes are told that it can't be started."""
    from lora_train.core.errors import JobError

    def refuse(*_args: object, **_options: object) -> None:
        raise JobError("The worker can't be started.", "Try again.")

    monkeypatch.setattr("lora_train.launch.launcher.start_worker", refuse)
    for place in ("launch.optimizer_tries", "app.doctor"):
        monkeypatch.setattr(f"lora_train.{place}.run_module", lambda *_: ("", "not here"))
    monkeypatch.setattr("lora_train.core.packages.judge", dict)

"""The minimal host, within this process or as a server of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

MINIMAL_HOST = Path(__file__).parent / "minimal_host"
REPOSITORY = Path(__file__).parents[2]
_LIMIT_S = 60.0


class RunningHost:
    """A minimal host in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self._log = log

    def call(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and decoded answer: GET, or POST with a body."""
        data = None if body is None else json.dumps(body).encode("utf-8")
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text[:1] in (b"{", b"[", b'"') else text.decode("utf-8")

    def state(self) -> dict[str, Any]:
        return self.call("internal/state")[1]

    def page_text(self) -> str:
        """All that the page's components hold."""
        return json.dumps(self.call("config")[1], ensure_ascii=False).replace('\\"', '"')

    def token(self) -> dict[str, str]:
        """What the page's script sends along."""
        found = re.search(r'data-token="([\w-]+)"', self.page_text())
        assert found is not None
        return {"X-Train-Tools": found[1]}

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def reload_ui(self) -> None:
        """Press "Reload UI", and wait for the new page."""
        before = self.log().count("ready: ")
        self.call("internal/reload-ui", {})
        self.wait_until(lambda: self.log().count("ready: ") > before)

    def wait_until(self, condition: Callable[[], object], limit_s: float = _LIMIT_S) -> None:
        until = time.monotonic() + limit_s
        while True:
            try:
                if condition():
                    return
            except OSError:  # between the old server and the new one
                pass
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.1)


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[Callable[..., RunningHost]]:
    """Starts a minimal host with an extension folder and flags; ended with the test."""
    running: list[RunningHost] = []

    def start(*flags: str, extension: Path = REPOSITORY, environment: dict[str, str] | None = None) -> RunningHost:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = tmp_path / f"host-{port}.log"
        command = [sys.executable, str(MINIMAL_HOST / "launch.py"), "--port", str(port), "--data-dir", str(tmp_path)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, "--extension", str(extension), *flags],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **(environment or {})},
                cwd=tmp_path,
            )
        host = RunningHost(process, f"http://127.0.0.1:{port}/", log)
        running.append(host)
        host.wait_until(lambda: "ready: " in host.log())
        return host

    yield start
    for host in running:
        host.process.terminate()
        host.process.wait(10)
    for process in psutil.process_iter(["cmdline"]):  # workers outlive their host on purpose
        if any(str(tmp_path) in argument for argument in process.info["cmdline"] or ()):
            process.kill()


@pytest.fixture
def host_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`modules.*` of the minimal host in this process, on a "cuda" device; gives its data folder."""
    names = ("modules", "networks", "modules_forge", "backend", "ldm_patched")
    data = tmp_path / "webui"
    checkpoints = data / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    (data / "models" / "Lora").mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        (checkpoints / name).write_bytes(b"")
    _forget(names)
    monkeypatch.setattr(sys, "argv", ["launch.py", "--data-dir", str(data), "--device", "cuda"])
    monkeypatch.syspath_prepend(str(MINIMAL_HOST))
    from lora_train.hosts import webui

    monkeypatch.setattr(webui, "_hosts", [])
    monkeypatch.setattr(webui, "_apps", {})
    import modules.lora
    from modules import sd_models, shared

    shared.reset_options()
    sd_models.list_models()
    assert sys.modules["networks"] is modules.lora
    yield data
    _forget(names)


def _forget(names: tuple[str, ...]) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]

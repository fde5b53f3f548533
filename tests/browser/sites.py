"""The servers of the pages to test: the standalone page, a small WebUI of our own, a genuine one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "lora_train" / "assets" / "demo"
START_S = 150

CPU_FLAGS = [
    *("--use-cpu", "all", "--no-half", "--precision", "full", "--skip-torch-cuda-test", "--no-download-sd-model"),
    *("--do-not-download-clip", "--no-hashing", "--api", "--skip-prepare-environment", "--skip-version-check"),
]
"""A genuine WebUI on a machine without a card or network."""


class Kind(NamedTuple):
    """A page to test: "standalone" or "webui", the Python that serves it, and the folder of a genuine WebUI."""

    name: str
    python: str
    folder: str

    def __str__(self) -> str:
        version = subprocess.run(
            [self.python, "-c", "import importlib.metadata as m; print(m.version('gradio'))"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        return f"{'genuine-' if self.folder else ''}{self.name}-gradio{version}"


class Site:
    """A running page over a workspace of its own."""

    def __init__(self, kind: Kind, root: Path, flags: tuple[str, ...] = (), *, is_installed: bool = True) -> None:
        self.kind = kind
        self.root = root
        self.flags = flags
        self.port = _free_port()
        self.lora_dir = root / "models" / "Lora"
        self.models_dir = root / "models" / "Stable-diffusion"
        self.log_path = root / "site.log"
        is_webui = kind.name == "webui"
        self.workspace = root / "outputs" / "train_tools" if is_webui else root / "workspace"
        self._process: subprocess.Popen[bytes] | None = None
        self.lora_dir.mkdir(parents=True, exist_ok=True)
        self.models_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DEMO / "tiny_sd.safetensors", self.models_dir / "tiny_sd.safetensors")
        if kind.folder:
            self._prepare_genuine(is_installed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start the server and wait until it can be used."""
        before = self.times_ready()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                cwd=self.kind.folder or self.root,
                env=environment,
                start_new_session=True,
            )
        self.wait_until_up(before + 1)

    def wait_until_up(self, times: int = 1) -> None:
        """Wait until the server has said so often that it is ready. A1111 must not be asked anything before."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process is not None and self._process.poll() is None:
            if self.times_ready() >= times:
                return
            time.sleep(0.2)
        pytest.fail(f"{self.kind} did not start:\n{self.log()}")

    def times_ready(self) -> int:
        """How often this server or one before it got ready."""
        if not self.log_path.exists():
            return 0
        log = self.log_path.read_text(encoding="utf-8", errors="replace")
        return len(re.findall(r"^(?:ready: http|Train Tools: http|Startup time: )", log, re.MULTILINE))

    def kill(self) -> None:
        """End the server as a crash would; its workers go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """End the server, and the workers that a failed test left behind."""
        self.kill()
        for process in psutil.process_iter(["cmdline"]):
            if "lora_train.worker" in (command := process.info["cmdline"] or []) and str(self.root) in command[-1]:
                process.kill()

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")[-8000:]

    def told(self) -> str:
        """What the server and its workers wrote last."""
        lines = [self.log()[-3000:]]
        for events in sorted(self.workspace.rglob("events.jsonl")):
            own = [events, events.with_name("worker.log")]
            lines += [
                f"{path}: {path.read_text(encoding='utf-8', errors='replace')[-1000:]}" for path in own if path.exists()
            ]
        return "\n".join(lines)

    def _prepare_genuine(self, is_installed: bool) -> None:
        """The small model's own config and text encoder for the host, and the extension."""
        clip = self.root / "tiny_clip"
        shutil.copytree(DEMO / "tiny_clip", clip, dirs_exist_ok=True)
        shutil.copytree(DEMO.parent / "clip_vocabulary", clip, dirs_exist_ok=True)
        config = (DEMO / "tiny_sd.yaml").read_text(encoding="utf-8")
        path = self.models_dir / "tiny_sd.yaml"
        path.write_text(re.sub(r"version: .*", f"version: {clip}", config), encoding="utf-8")
        extension = self.root / "extensions" / "train-tools"
        if is_installed and not extension.exists():
            extension.parent.mkdir(parents=True, exist_ok=True)
            extension.symlink_to(ROOT)

    def _command(self) -> list[str]:
        if self.kind.folder:
            launch = [str(Path(self.kind.folder) / "launch.py")]
            own = ["--data-dir", str(self.root), *CPU_FLAGS]
        elif self.kind.name == "webui":
            launch = [str(ROOT / "tests" / "host" / "minimal_host" / "launch.py")]
            own = ["--data-dir", str(self.root), "--extension", str(ROOT)]
        else:
            launch = [
                "-c",
                f"import sys; sys.path.insert(0, {str(ROOT)!r}); from lora_train.__main__ import main; main()",
                "ui",
            ]
            own = [
                *("--workspace", str(self.workspace), "--models", str(self.models_dir)),
                *("--lora-dir", str(self.lora_dir)),
            ]
        return [self.kind.python, *launch, "--port", str(self.port), *own, *self.flags]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

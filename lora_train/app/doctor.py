"""The doctor: looks at the installation, in the background, and keeps what it found last."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
import threading
import time
from pathlib import Path

import msgspec

from lora_train import __version__
from lora_train.core import packages
from lora_train.core.diagnosis import (
    Diagnosis,
    Found,
    Probe,
    helpful_found,
    machine_found,
    packages_found,
    room_found,
    torch_found,
)
from lora_train.core.errors import JobError
from lora_train.core.host import Host, NoHost
from lora_train.core.optimizers import optional_optimizers
from lora_train.core.workspace import Workspace
from lora_train.launch.child import run_module
from lora_train.launch.device_memory import main_memory, nvidia_cards

_LIMIT_S = 180.0

_USES = {
    "gradio": "the page",
    "accelerate": "several machines",
    "huggingface_hub": "downloads",
    "onnxruntime": "WD14 tags",
    "imagehash": "near-duplicates",
}
"""What training can do without, by the name for `import`, and what it is for; optimizers' packages come to it."""

_log = logging.getLogger(__name__)


class DoctorSnapshot(msgspec.Struct):
    is_running: bool = False
    diagnosis: Diagnosis | None = None
    """The last one since the program started; None before there is any."""


class Doctor:
    def __init__(self, workspace: Workspace, host: Host) -> None:
        self._workspace = workspace
        self._host = host
        self._lock = threading.Lock()
        self._shown = DoctorSnapshot()

    def examine(self) -> Diagnosis:
        """Look at everything. Takes seconds: torch and the packages are imported in processes of their own."""
        told, error = run_module("lora_train.engine.probe", [], _LIMIT_S)
        probe = _read(told)
        memory = main_memory()
        found = [
            *machine_found(
                python=platform.python_version(),
                system=f"{platform.system()} {platform.release()} ({platform.machine()})",
                host=_host_told(self._host.name),
                release=__version__,
            ),
            *torch_found(probe, error or "it told nothing", [card.name for card in nvidia_cards()]),
            *room_found(
                memory_bytes=memory.free_bytes,
                total_memory_bytes=memory.total_bytes,
                disk_bytes=_free_disk_bytes(self._workspace.root),
            ),
            *_packages(),
        ]
        return Diagnosis(at=time.time(), found=tuple(found))

    def begin(self) -> None:
        """Look in the background. Raises JobError while it is being done."""
        with self._lock:
            if self._shown.is_running:
                raise JobError("The installation is being checked.", "Wait until it is done.")
            self._shown = DoctorSnapshot(is_running=True, diagnosis=self._shown.diagnosis)
        threading.Thread(target=self._work, name="train-tools-doctor", daemon=True).start()

    def snapshot(self) -> DoctorSnapshot:
        return self._shown

    def report(self) -> str:
        """The last diagnosis as a text without anything private. Raises JobError before there is one."""
        if self._shown.diagnosis is None:
            raise JobError("The installation has not been checked yet.", "Press Check the installation first.")
        return self._shown.diagnosis.text()

    def _work(self) -> None:
        diagnosis = self._shown.diagnosis
        try:
            diagnosis = self.examine()
        except Exception:  # the border of the thread
            _log.exception("The installation could not be checked.")
        finally:
            self._shown = DoctorSnapshot(diagnosis=diagnosis)


def _read(told: str) -> Probe | None:
    try:
        return msgspec.json.decode(told.strip().splitlines()[-1], type=Probe)
    except (msgspec.DecodeError, IndexError):
        return None


def _host_told(name: str) -> str:
    """The host's name; on the command line, which has none, that of the WebUI whose extension this is."""
    webui = packages.ROOT.parents[1]
    if name != NoHost.name or packages.ROOT.parent.name != "extensions" or not (webui / "webui.py").is_file():
        return name
    program = "Forge" if (webui / "modules_forge").is_dir() else "Automatic1111"
    return f"{name}; this is an extension of {program}"


def _packages() -> list[Found]:
    """Those that training needs, and those that it can do without."""
    needed = {**packages.OF_THE_HOST, **packages.ADDED}
    uses = dict(_USES)
    for optimizer, package in optional_optimizers().items():
        uses[package] = f"{uses[package]}, {optimizer}" if package in uses else optimizer
    try:
        verdict = packages.judge(uses)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [Found(title="Packages", state="error", error=f"{type(error).__name__}: {error}".splitlines()[0])]
    broken = {needed[name]: error for name, error in verdict.items() if name in needed}
    commands = {needed[name]: packages.pip_command([name]) for name in verdict if name in needed}
    versions = {name: packages.version(name) for name in needed.values()}
    helpful = {name: packages.version(name) for name in uses}
    return [*packages_found(versions, broken, commands), *helpful_found(helpful, verdict, uses)]


def _free_disk_bytes(root: Path) -> int:
    existing = next(path for path in (root, *root.parents) if path.exists())
    return shutil.disk_usage(existing).free

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
from lora_train.core.diagnosis import Diagnosis, Found, Probe, machine_found, packages_found, room_found, torch_found
from lora_train.core.errors import JobError
from lora_train.core.host import Host
from lora_train.core.optimizers import optional_optimizers
from lora_train.core.workspace import Workspace
from lora_train.launch.child import run_module
from lora_train.launch.device_memory import main_memory, nvidia_cards

_LIMIT_S = 180.0
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
                host=self._host.name,
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


def _packages() -> list[Found]:
    """Those that training needs, and those that it can do without where they are installed."""
    distributions = {**packages.OF_THE_HOST, **packages.ADDED, **packages.HELPFUL}
    try:
        verdict = packages.judge()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [Found(title="Packages", state="error", error=f"{type(error).__name__}: {error}".splitlines()[0])]
    broken = {distributions[name]: error for name, error in verdict.items()}
    commands = {distributions[name]: packages.pip_command([name]) for name in verdict}
    optional = sorted(set(optional_optimizers().values()) | {"onnxruntime", "accelerate", "huggingface-hub"})
    versions = {name: packages.version(name) for name in distributions.values()}
    versions |= {name: packages.version(name) for name in optional if name not in versions}
    return packages_found(versions, broken, commands)


def _free_disk_bytes(root: Path) -> int:
    existing = next(path for path in (root, *root.parents) if path.exists())
    return shutil.disk_usage(existing).free

"""Which optimizers of optional packages can be used: looked up at once, and tried out in the background."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
import time

import msgspec

from lora_train.app.snapshot import OptimizerEntry
from lora_train.core.config import Device, Optimizer
from lora_train.core.installing import install_command
from lora_train.core.optimizers import OPTIMIZERS, absent_problem, broken_problem, is_absent, optional_optimizers
from lora_train.launch.optimizer_tries import try_optimizers

_TRIED_AGAIN_S = 3600.0
_log = logging.getLogger(__name__)


class _Tried(msgspec.Struct):
    """What came of the last try on a device, with these versions."""

    versions: tuple[tuple[str, str], ...]
    at: float
    errors: dict[Optimizer, str] = {}
    is_running: bool = True


class Optimizers:
    """Trying them imports torch, which takes a child process some seconds: so it is done when one of them is chosen,
    and never while somebody waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tried: dict[Device, _Tried] = {}

    def entries(self, device: Device, chosen: Optimizer | None = None) -> list[OptimizerEntry]:
        """Those of optional packages. Where `chosen` is one of them, they are tried out, unless they were already."""
        if chosen is not None and OPTIMIZERS[chosen].package and not is_absent(chosen):
            self._begin_to_try(device)
        return [self._entry(name, device) for name in optional_optimizers()]

    def problems(self, chosen: Optimizer, device: Device) -> list[str]:
        """Why a training can't begin with it, as far as that is known by now; the worker finds out by itself."""
        return [entry.problem for entry in self.entries(device, chosen) if entry.name == chosen and entry.problem]

    def _entry(self, name: Optimizer, device: Device) -> OptimizerEntry:
        package = OPTIMIZERS[name].package
        if is_absent(name):
            return OptimizerEntry(name, package, "absent", absent_problem(name), install_command([package]))
        tried = self._tried.get(device)
        error = tried.errors.get(name) if tried is not None and tried.versions == _versions() else None
        if error is None:
            return OptimizerEntry(name, package, "checking")
        return OptimizerEntry(
            name, package, "broken" if error else "works", broken_problem(name, error) if error else ""
        )

    def _begin_to_try(self, device: Device) -> None:
        with self._lock:
            versions, tried = _versions(), self._tried.get(device)
            is_old = tried is None or tried.versions != versions or time.monotonic() - tried.at > _TRIED_AGAIN_S
            if not is_old or (tried is not None and tried.is_running):
                return
            errors = tried.errors if tried is not None and tried.versions == versions else {}
            coming = self._tried[device] = _Tried(versions, time.monotonic(), errors)
        threading.Thread(target=_try, args=(coming, device), name="train-tools-optimizers", daemon=True).start()


def _try(coming: _Tried, device: Device) -> None:
    names: list[Optimizer] = [name for name in optional_optimizers() if not is_absent(name)]
    names = sorted(names, key=_may_crash)
    try:
        coming.errors = try_optimizers(names, device)
    except Exception:  # the border of the thread: a training that begins will tell
        _log.exception("Optimizers could not be tried out.")
    finally:
        coming.is_running = False


def _may_crash(name: Optimizer) -> bool:
    """bitsandbytes brings machine code that may end the process: it is tried last."""
    return OPTIMIZERS[name].package == "bitsandbytes"


def _versions() -> tuple[tuple[str, str], ...]:
    """Of the optional packages that are there; another one is tried anew."""
    found: list[tuple[str, str]] = []
    for package in sorted(set(optional_optimizers().values())):
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)

"""How much memory the card and the machine have, without torch: the driver's own tool tells it."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import psutil

from lora_train.core.host import DeviceMemory
from lora_train.launch.launcher import OWN_CONSOLE

_LIMIT_S = 10.0
_FIELDS = ("index", "uuid", "name", "memory.total", "memory.free")


class _Row(NamedTuple):
    index: str
    uuid: str
    memory: DeviceMemory


def nvidia_cards(environ: Mapping[str, str] = os.environ) -> list[DeviceMemory]:
    """The NVIDIA cards that a worker started now could use, the one it would use first in front; none where there is
    no driver. Takes a tenth of a second, on some machines more.

    With cards of different kinds CUDA begins with the fastest, this tool with the first slot: set
    CUDA_DEVICE_ORDER=PCI_BUS_ID where that is to be the same.
    """
    told = ask_driver(f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
    return visible_cards(told, environ.get("CUDA_VISIBLE_DEVICES"))


def ask_driver(*arguments: str) -> str:
    """What NVIDIA's tool says; "" where there is none, or it has no answer in time."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        done = subprocess.run(
            [tool, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            creationflags=OWN_CONSOLE,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def visible_cards(told: str, visible: str | None) -> list[DeviceMemory]:
    """Those of nvidia-smi's lines that `CUDA_VISIBLE_DEVICES` lets be seen, in its order: numbers or the beginnings of
    UUIDs, up to the first that fits none, as CUDA reads it. None: all of them.
    """
    rows = [row for line in csv.reader(told.splitlines(), skipinitialspace=True) if (row := _read(line)) is not None]
    if visible is None:
        return [row.memory for row in rows]
    found: list[DeviceMemory] = []
    for wanted in visible.split(","):
        name = wanted.strip()
        fitting = [row for row in rows if name and (row.index == name or row.uuid.startswith(name))]
        if not fitting:
            break
        found.append(fitting[0].memory)
    return found


def _read(line: list[str]) -> _Row | None:
    """None for what tells no memory: a warning, or a card that shares the machine's ("[N/A]")."""
    if len(line) != len(_FIELDS) or not line[3].isdecimal() or not line[4].isdecimal():
        return None
    index, uuid, name, total_mib, free_mib = line
    memory = DeviceMemory(name=name, total_bytes=int(total_mib) * 2**20, free_bytes=int(free_mib) * 2**20)
    return _Row(index, uuid, memory)


def main_memory() -> DeviceMemory:
    """The machine's own, for a training on the CPU."""
    told = psutil.virtual_memory()
    return DeviceMemory(name="CPU", total_bytes=told.total, free_bytes=told.available, on_cpu=True)

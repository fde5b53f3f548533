"""Devices are names here; no card is needed."""

from __future__ import annotations

from modules.shared_cmd_options import cmd_opts


class Device:
    """What hosts use of a torch device."""

    def __init__(self, name: str) -> None:
        self.type, _, index = name.partition(":")
        self.index = int(index) if index else None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


cpu = Device("cpu")
device = Device(cmd_opts.device)
collections = 0


def torch_gc() -> None:
    global collections
    collections += 1

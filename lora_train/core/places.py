"""Which of several processes that train together this one is: from what it was asked for, or from the environment."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from lora_train.core.errors import ConfigError


class Place(msgspec.Struct, frozen=True):
    """Counted from 0, among all processes and among those of this machine. Number 0 is called the first."""

    number: int
    count: int
    local_number: int
    local_count: int

    @property
    def is_first(self) -> bool:
        return self.number == 0


def place_of(environ: Mapping[str, str]) -> Place | None:
    """As `accelerate launch` and torchrun tell it; None for a process on its own."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    number, count, local_number, local_count = (environ.get(name, "") for name in names)
    if not count.isdigit() or int(count) < 2 or not number.isdigit():
        return None
    return Place(int(number), int(count), int(local_number or 0), int(local_count or 1))


def place_for(processes: int, environ: Mapping[str, str]) -> Place | None:
    """The place of whoever is asked for `processes` processes, or is given one by the environment.

    None for a process on its own. Raises ConfigError for a number below 1, and where both are there.
    """
    if processes < 1:
        raise ConfigError([f"processes: {processes} is less than 1"])
    told = place_of(environ)
    if told is not None and processes > 1:
        raise ConfigError([f"processes: `accelerate launch` has started {told.count} already; leave --processes out"])
    return told or (Place(0, processes, 0, processes) if processes > 1 else None)

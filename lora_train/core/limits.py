"""Where a training ends early by itself: `limits.json` in its folder, which its worker reads when it starts."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from lora_train.core.records import read_json, write_json

_FILE = "limits.json"


class Limits(msgspec.Struct, frozen=True):
    """0 is no limit. Either one leaves LoRA and state behind, and draws no previews."""

    pause_at_step: int = 0
    """It pauses after this step; at once, where it has come so far already."""
    stop_at: float = 0.0
    """Unix seconds: it stops as soon as it is so late."""


def read_limits(job_dir: Path) -> Limits:
    return read_json(job_dir / _FILE, Limits, Limits())


def write_limits(job_dir: Path, limits: Limits) -> None:
    """Of the next worker; one that runs keeps those that it began with."""
    if limits == read_limits(job_dir):
        return
    write_json(job_dir / _FILE, limits)


def lift_reached_limits(job_dir: Path, step: int) -> None:
    """Whoever lets a training go on by hand that ended at a limit wants it to go on beyond."""
    limits = read_limits(job_dir)
    write_limits(
        job_dir,
        Limits(
            pause_at_step=limits.pause_at_step if limits.pause_at_step > step else 0,
            stop_at=limits.stop_at if limits.stop_at > time.time() else 0.0,
        ),
    )

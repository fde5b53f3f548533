"""A sweep that was begun: `versions/<version>/sweeps/<id>/sweep.json`. All that goes on with it knows it from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from lora_train.core.halving import Basis, Rung
from lora_train.core.records import read_json, write_json
from lora_train.core.workspace import Version

Ending = Literal["", "finished", "stopped", "out of time"]
"""Empty as long as it goes on."""


class SweepRun(msgspec.Struct):
    """One run: a training of the version."""

    train: str
    """The training's folder in `trains`."""
    label: str
    values: dict[str, Any]
    """Settings that differ from the version's."""
    total_steps: int
    preset: str = ""
    s_per_step: float | None = None
    """Expected when the sweep began, as is `start_s`; None where nobody knew."""
    start_s: float | None = None
    judge_s: float = 0.0
    """Expected for judging it at the end of a rung."""
    limit: int = 0
    """Where it pauses in the present rung; 0 lets it go to its end."""
    come: int = 0
    """The step at which it paused at the end of its last rung."""
    is_dropped: bool = False
    """Whether it was among the weaker ones of a rung."""


class SweepRecord(msgspec.Struct):
    """`sweep.json`."""

    created: float
    runs: list[SweepRun]
    finish_by: float = 0.0
    """Unix seconds; 0: all runs go to their end, in a single rung."""
    rungs: list[Rung] = []
    """Those that are over, the present one, and the plan for what comes."""
    rung: int = 0
    """The present one."""
    to_hand_out: list[str] = []
    """Trainings of the present rung that are still to be put into the queue."""
    is_queued: bool = True
    """Whether the queue does it; else the command line that began it, in its foreground."""
    ended: Ending = ""
    basis: Basis | Literal[""] = ""
    """By what the weaker ones were told at the last rung."""
    judges: bool = False
    """Whether the judge measures the runs of a rung before the weaker ones are dropped."""
    judging: dict[str, str] = {}
    """The jobs that do so in the present rung, by training; one that failed is not tried again."""
    notes: list[str] = []
    """What a person should know of how it went."""

    def present(self) -> list[SweepRun]:
        """The runs that no rung has dropped."""
        return [run for run in self.runs if not run.is_dropped]


def sweep_dirs(version: Version) -> list[Path]:
    """The folders of a version's sweeps, newest first."""
    parent = version.path / "sweeps"
    found = parent.iterdir() if parent.is_dir() else ()
    return sorted((path for path in found if (path / "sweep.json").is_file()), reverse=True)


def read_sweep(sweep_dir: Path) -> SweepRecord | None:
    """None where there is none, or a damaged one."""
    record = read_json(sweep_dir / "sweep.json", SweepRecord, SweepRecord(created=0.0, runs=[]))
    return record if record.runs else None


def write_sweep(sweep_dir: Path, record: SweepRecord) -> None:
    write_json(sweep_dir / "sweep.json", record)

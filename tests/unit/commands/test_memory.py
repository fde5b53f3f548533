"""What the command line tells of a training's memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from lora_train.__main__ import main
from lora_train.app.fit_snapshot import Fit
from lora_train.commands.training import _fit_text
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.memory import MemoryFacts, MemoryNeed, MemoryPlan, Trial, write_memory
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30
FIT = Fit(
    device="RTX 3070",
    on_cpu=False,
    device_bytes=8 * GIB,
    budget_bytes=7 * GIB,
    fits=True,
    asked=MemoryPlan(),
    plan=MemoryPlan(),
    asked_bytes=6 * GIB,
    needed=MemoryNeed(),
    needed_bytes=6 * GIB,
)
ALL = MemoryPlan(checkpointing="all")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Needs about 6.0 GB of 8.0 GB (RTX 3070)."),
        ({"plan": ALL}, "Needs about 6.0 GB of 8.0 GB (RTX 3070), with gradient checkpointing of all blocks."),
        (
            {"plan": ALL, "fits": False, "needed_bytes": 9 * GIB},
            "Needs about 9.0 GB of 8.0 GB (RTX 3070), even with gradient checkpointing of all blocks. It is tried all "
            "the same: this is an estimate.",
        ),
        (
            {"is_tried": False, "fits": False, "needed_bytes": 9 * GIB},
            "Needs about 9.0 GB of 8.0 GB (RTX 3070): it may run out of memory, since Fit to my GPU is off.",
        ),
    ],
)
def test_the_line_before_a_training(changes: dict[str, object], text: str) -> None:
    assert _fit_text(msgspec.structs.replace(FIT, **changes)) == text


def test_what_asked_for_most_has_nothing_more_to_save() -> None:
    """Whoever set everything by hand is told no empty list."""
    last = MemoryPlan(checkpointing="all", base_weights="int8", offload_share=1.0)
    fit = msgspec.structs.replace(FIT, asked=last, plan=last, fits=False)
    assert _fit_text(fit) == "Needs about 6.0 GB of 8.0 GB (RTX 3070). It is tried all the same: this is an estimate."


def test_status_tells_what_saved_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = JobFolder(tmp_path / "cat-v1")
    job.create(TrainSpec(name="cat-v1", dataset="d", dataset_fingerprint="f", trash="t", settings=TrainSettings()))
    assert main(["status", str(job.path)]) == 0
    assert "memory:" not in capsys.readouterr().out
    trial = Trial(plan=ALL, peak_bytes=6 * GIB, s_per_step=0.5)
    write_memory(job.path, MemoryFacts(plan=ALL, trials=(trial,)))
    assert main(["status", str(job.path)]) == 0
    assert "memory: gradient checkpointing of all blocks, at most 6.0 GB" in capsys.readouterr().out
    assert main(["status", str(job.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["memory"]["trials"][0]["peak_bytes"] == 6 * GIB

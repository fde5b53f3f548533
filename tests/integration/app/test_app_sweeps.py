"""Sweeps worked off by real workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from lora_train.app import sweep_planning
from lora_train.app.paces import Pace, remember_pace
from lora_train.core.jobs import JobStatus
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    from tests.integration.app.conftest import House


def test_halving_with_a_run_that_fails(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 runs: one loses its base model after the start, the weaker one of the others is dropped, two come to their end.

    The plan is made with a pace of 1 s a step, so that there is time for halves alone; really a step takes 0.05 s.
    """
    house.set_up(epochs=30)  # 2 pictures x 30 epochs = 60 steps
    settings = house.app.settings.effective("cat", "v1")
    spec = TrainSpec(name="x", dataset="", dataset_fingerprint="", trash="", settings=settings)
    remember_pace(house.app.workspace.root, spec, JobStatus(s_per_step=1.0, step=60), Pace(1.0, 1.0))
    monkeypatch.setattr(sweep_planning, "deadline", lambda text, now: now + 150)
    assert (
        house.app.settings.save("cat", "v1", sweep={"learning_rates": "0,1e-6,0.001,4e-3", "finish_by": "12:00"}) == []
    )
    sweep = house.app.sweeps.begin("cat", "v1")
    shown = house.app.sweeps.snapshot(sweep)
    assert [row.runs for row in shown.plan] == [4, 2, 1]
    broken = house.folder(shown.rows[2].job)
    told = broken.read_spec()
    assert isinstance(told, TrainSpec)
    gone = msgspec.structs.replace(told.settings, base_model="/gone.safetensors")
    broken.replace_spec(msgspec.structs.replace(told, settings=gone))
    began = time.monotonic()
    house.app.start_background()
    house.wait(lambda: house.app.sweeps.snapshot(sweep).ended and not house.app.queue.entries())
    assert time.monotonic() - began < 150 + 60, "what runs is ended in time; on a slow machine its files come later"
    done = house.app.sweeps.snapshot(sweep)
    rows = {row.label: row for row in done.rows}
    assert rows["0.001"].status.state == "failed"
    assert (rows["0.004"].status.state, rows["0.004"].status.step) == ("finished", 60), "the strongest"
    dropped = [row for row in done.rows if row.is_dropped]
    assert len(dropped) == 1
    assert dropped[0].status.state == "stopped"
    assert dropped[0].status.step == done.plan[0].steps_to
    assert (house.folder(dropped[0].job).path / dropped[0].lora).is_file()
    assert done.ended == "finished"
    assert done.notes, "by what they were compared"
    assert rows["0.004"].status.loss is not None

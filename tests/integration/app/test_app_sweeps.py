"""Sweeps worked off by real workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lora_train.core.sweep_record import read_sweep

if TYPE_CHECKING:
    from tests.integration.app.conftest import House

SWEPT: dict[str, Any] = {"epochs": 15, "repeats": 2, "batch_size": 1, "cpu_threads": 1}
"""2 pictures x 2 repeats x 15 epochs: 60 steps of about 0.05 s."""


def test_halving_keeps_the_strongest_and_the_time(house: House) -> None:
    house.set_up(**SWEPT)
    until = time.localtime(time.time() + 120)
    sweep = {"learning_rates": "0,0.001,0.002,0.004", "finish_by": time.strftime("%H:%M", until)}
    assert house.app.settings.save("cat", "v1", sweep=sweep) == []
    forecast = house.app.sweeps.forecast("cat", "v1")
    assert forecast.problems == []
    assert len(forecast.labels) == 4
    sweep_id = house.app.sweeps.begin("cat", "v1")
    house.app.start_background()
    house.wait(lambda: house.app.sweeps.snapshot(sweep_id).ended)
    house.wait(lambda: not house.app.queue.entries())
    snapshot = house.app.sweeps.snapshot(sweep_id)
    for row in snapshot.rows:
        print(
            row.label,
            row.status.state,
            row.status.step,
            row.status.loss,
            row.is_dropped,
            row.lora,
            row.status.s_per_step,
        )
    print(snapshot.ended, snapshot.plan, snapshot.rung, snapshot.notes, time.time() - snapshot.created)
    print(read_sweep(house.app.workspace.root / sweep_id))
    assert False

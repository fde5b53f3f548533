"""Previews of all LoRAs, drawn by real workers with the small demo model: stopped, and gone on with to their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

pytest.importorskip("lora_train.engine.grid_job")

from lora_train.app.grid_snapshot import GridJob

if TYPE_CHECKING:
    from tests.integration.app.conftest import House


def only(house: House) -> GridJob:
    (job,) = house.app.grids.snapshot("cat", "v1").jobs
    return job


def end(house: House) -> GridJob:
    ends = ("finished", "stopped", "failed")
    house.wait(lambda: only(house).place is None and only(house).status.state in ends)
    return only(house)


def test_drawn_stopped_and_gone_on_with(house: House) -> None:
    """The pace is told the next time."""
    house.set_up(epochs=2, save_every_epochs=1)
    train = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait_for(train, "finished")
    preview = {"weights": "0, 1", "seeds": "1, 2", "steps": "3", "samplers": ["Euler a"], "cfg_scales": "3"}
    assert house.app.settings.save("cat", "v1", preview=preview) == []
    told = house.app.grids.forecast("cat", "v1")
    assert (told.loras, told.pictures, told.seconds) == (2, 8, None)

    (job,) = house.app.grids.begin_all("cat", "v1")
    house.wait(lambda: only(house).drawn >= 2)
    house.app.grids.stop(job)
    stopped = end(house)
    assert stopped.status.state == "stopped"
    assert 2 <= stopped.drawn < 8
    house.app.grids.resume(job)
    done = end(house)
    assert (done.status.state, done.drawn, len(done.loras)) == ("finished", 8, 2)
    for lora in done.loras:
        with Image.open(house.app.grids.file_path(job, lora.file)) as grid:
            assert lora.stem in grid.text["parameters"]
    seconds = house.app.grids.forecast("cat", "v1").seconds
    assert seconds is not None
    assert 0 < seconds < 100
    assert house.host.parked_for[-4:] == ["in auto", "out"] * 2

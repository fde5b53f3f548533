"""A training that pauses at a step, and goes on, gives the bytes of a straight run; one whose time is over stops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lora_train.core.limits import Limits, read_limits, write_limits

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "repeats": 4,
    "batch_size": 2,
    "flip": True,
    "caption_dropout": 0.2,
    "ema_decay": 0.9,
    "save_every_epochs": 1,
}
"""4 pictures x 4 repeats / batch 2 = 8 steps an epoch."""


def test_paused_at_limits_equals_straight(studio: Studio, files: type[Files]) -> None:
    """Within an epoch, at the end of one, at a limit that was reached before, and at the very last step."""
    images = studio.pictures("plain", ["a red thing", "a blue thing", "a green thing", "a thing"])
    straight, paused = studio.plan(images, **SETTINGS), studio.plan(images, **SETTINGS)
    assert studio.run(straight).state == "finished"
    for limit, step in ((3, 3), (8, 8), (2, 8), (16, 16)):
        write_limits(paused.path, Limits(pause_at_step=limit))
        studio.work(paused)
        status = studio.app.status(paused)
        assert (status.state, status.step) == ("paused", step)
        assert (paused.path / f"{paused.path.name}-step{step:06d}.safetensors").is_file()
    assert studio.run(paused).state == "finished"
    assert read_limits(paused.path) == Limits(), "who lets it go on by hand wants it to go on"
    for name in ("", "-000001"):
        one, other = (job.path / f"{job.path.name}{name}.safetensors" for job in (straight, paused))
        assert files.tensor_bytes(one) == files.tensor_bytes(other)


def test_out_of_time_stops_with_its_lora(studio: Studio) -> None:
    """A resumed training makes one step at least, saves what it has learned, and draws nothing."""
    job = studio.plan(studio.pictures("plain", ["a thing"] * 4), **{**SETTINGS, "generate_previews": True})
    write_limits(job.path, Limits(pause_at_step=3))
    studio.work(job)
    write_limits(job.path, Limits(stop_at=time.time()))
    studio.work(job)
    status = studio.app.status(job)
    assert (status.state, status.step >= 4) == ("stopped", True)
    assert f"{job.path.name}-step{status.step:06d}.safetensors" in status.saved
    assert status.sampled == []

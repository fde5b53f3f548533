"""A training that pauses at a step, and goes on, gives the bytes of a straight run; one whose time is over stops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

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
    """Within an epoch, at the end of one, and at the very last step."""
    images = studio.pictures("plain", ["a red thing", "a blue thing", "a green thing", "a thing"])
    straight, paused = studio.plan(images, **SETTINGS), studio.plan(images, **SETTINGS)
    assert studio.run(straight).state == "finished"
    for limit in (3, 8, 16):
        write_limits(paused.path, Limits(pause_at_step=limit))
        status = studio.run(paused)
        assert (status.state, status.step) == ("paused", limit)
        assert (paused.path / f"{paused.path.name}-step{limit:06d}.safetensors").is_file()
    write_limits(paused.path, Limits())
    assert studio.run(paused).state == "finished"
    for name in ("", "-000001"):
        one, other = (job.path / f"{job.path.name}{name}.safetensors" for job in (straight, paused))
        assert files.tensor_bytes(one) == files.tensor_bytes(other)


def test_reached_limit_pauses_at_once(studio: Studio) -> None:
    job = studio.plan(studio.pictures("plain", ["a thing"] * 4), **SETTINGS)
    write_limits(job.path, Limits(pause_at_step=3))
    assert studio.run(job).step == 3
    write_limits(job.path, Limits(pause_at_step=2))
    # The worker itself, for a start by hand lifts a limit that was reached.
    import subprocess
    import sys

    from tests.integration.conftest import environment

    subprocess.run(
        [sys.executable, "-m", "lora_train.worker", str(job.path)], check=True, env=environment(), timeout=60
    )
    status = studio.app.status(job)
    assert (status.state, status.step) == ("paused", 3)
    assert studio.run(job).state == "finished"
    assert read_limits(job.path) == Limits()


@pytest.mark.parametrize("has_state", [False, True])
def test_out_of_time_stops_with_its_lora(studio: Studio, has_state: bool) -> None:
    job = studio.plan(studio.pictures("plain", ["a thing"] * 4), **{**SETTINGS, "epochs": 2000, "save_every_epochs": 0})
    if has_state:
        write_limits(job.path, Limits(pause_at_step=3))
        assert studio.run(job).step == 3
    write_limits(job.path, Limits(stop_at=time.time() + 8))
    status = studio.run(job)
    assert status.state == "stopped"
    assert status.step > 3
    assert f"{job.path.name}-step{status.step:06d}.safetensors" in status.saved
